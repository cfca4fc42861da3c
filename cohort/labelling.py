"""The labels of scans, from the rows of a table that belong to them, with age, sex and tracer."""
import math
import re
from collections import Counter
from datetime import date
from functools import partial
from pathlib import Path

import pandas as pd

from cohort.clinical_table import ClinicalTable
from cohort.covariates import Covariates
from cohort.demographics import Demographics
from cohort.found import People, name_tracers, read_found
from cohort.matching import (DATES, GREY, OTHER_TRACER, UNREADABLE_DATE, UNREADABLE_LABEL, LeftOut, Match,
                             Row, ScanDates, ScanKeys, collect_left_out, pick_rows)
from cohort.prepare_settings import PrepareSettings
from cohort.tracers import tracer_key
from labels.cells import MISSING, expected_labels, labels_remark, read_label
from runtime.files import brief
from runtime.near_names import NearNames
from runtime.tables import listed

LABELS = ("AMYLOID_STATUS", "label", "SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF",
          "SUMMARYSUVR_WHOLECEREBNORM_1.08CUTOFF")
COLUMNS = ("ID", "label", "age", "sex", "site", "tracer", "centiloids", "subject", "scan_date", "row_date",
           "days", "matched", "rows")                      # of data_info.csv, before those of covariates


def label_scans(cfg: PrepareSettings, scans: list[str], left_out: list[dict], problems: list[str]
                ) -> tuple[list[dict], list[str]]:
    """A row of data_info.csv for each scan that gets a label, and remarks on how the tables were read.

    The other scans join left_out. With problems, which join the list, there are no rows.
    """
    keys = ScanKeys(scans, cfg.subject_pattern)
    table = ClinicalTable(Path(cfg.table), "table", problems)
    groups, rows = keys.group(table, cfg.id_column), read_rows(cfg, table)
    tables, dates_table = [table], None
    people_table, people_groups = table, groups
    if cfg.demographics:
        people_table = ClinicalTable(Path(cfg.demographics), "demographics", problems)
        people_groups = keys.group(people_table)
        tables.append(people_table)
    found, taken = read_found(Path(cfg.data_dir)), []
    dates_path = cfg.scan_dates
    if not dates_path and "date" in found.columns:
        dates_path, taken = str(found.path), ["dates"]
    if dates_path:
        dates_table = ClinicalTable(Path(dates_path), "scan_dates", problems)
        tables.append(dates_table)
    own_people = Demographics(people_table, keys, people_groups, needed=bool(cfg.demographics))
    covariates = Covariates(cfg.covariates, keys, COLUMNS, problems)
    own_people, filled = covariates.people(own_people)
    people = People(own_people, found.people(keys, problems))
    scan_dates = ScanDates(keys, dates_table, problems)
    if problems:
        return [], []

    dates: dict[str, date | None] = {}
    for scan in scans:
        with collect_left_out(scan, left_out):
            dates[scan] = scan_dates.of(scan)
    labelled = _label_each(cfg, dates, keys, groups, rows, people, left_out)
    remarks = [sentence for one in tables for sentence in one.describe()]
    uses_tracers, renamed = name_tracers(labelled, found.tracers)
    taken += people.taken + ["tracer"] * uses_tracers
    if taken:
        remarks.append(f"{', '.join(taken)} from {found.path}, which preprocess wrote, where the tables have "
                       "none; --scan_dates and --demographics take others")
    remarks += renamed + filled + covariates.fill(labelled, cfg.covariate_days)
    return labelled, remarks + remarks_on(labelled, people)


def _label_each(cfg: PrepareSettings, dates: dict[str, date | None], keys: ScanKeys,
                groups: dict[tuple[str, str], list[int]], rows: list[Row], people: People,
                left_out: list[dict]) -> list[dict]:
    """A row of data_info.csv for each scan that its rows give a label; the others join left_out.

    dates: of the scans. groups: whose row is at which position of rows.
    """
    has_dates = any(row.date for row in rows)
    near = NearNames({subject for subject, _ in groups})
    rivals = Counter(keys.key(scan, groups) for scan, day in dates.items() if day is None)
    labelled = []
    for scan, day in dates.items():
        with collect_left_out(scan, left_out):
            key = keys.key(scan, groups)
            own_rows = [rows[i] for i in groups.get(key, [])]
            if not own_rows:
                raise LeftOut("not in the table",
                              f"no row of its ID or subject{near.hint(keys.subject(scan))}")
            match = pick_rows(own_rows, day, cfg.window_days, has_dates, cfg.require_dates, rivals[key])
            labelled.append(info_row(scan, keys.subject(scan), match, day, people))
    return labelled


def read_rows(cfg: PrepareSettings, table: ClinicalTable) -> list[Row]:
    """The rows of the table, each with its label, or with the reason why it gives none."""
    columns = _read_columns(cfg, table)
    if table.frame is None:
        return []
    rows = []
    for i, number in enumerate(table.rows):
        values = {name: column[i] for name, column in columns.items()}
        label, reason = label_of(cfg, values)
        for role, why in (("label", UNREADABLE_LABEL), ("date", UNREADABLE_DATE)):
            if i in table.unreadable.get(role, ()):
                label, reason = None, why
        metadata = {name: values.get(name) for name in ("tracer", "site", "centiloids")}
        rows.append(Row(number, values.get("date"), label, reason, metadata))
    return rows


def _read_columns(cfg: PrepareSettings, table: ClinicalTable) -> dict[str, list]:
    """The columns that decide on labels, or are taken over, as far as the table has them: role -> values."""
    by_centiloids = cfg.label_from == "centiloids"
    centiloids = table.column("Centiloids", ("CENTILOIDS", "CENTILOID", "CL"),
                              needed=by_centiloids or cfg.has_grey_zone)
    labels = None if by_centiloids else table.column("label", LABELS, cfg.label_column, needed=True)
    dates = table.column("date", DATES, cfg.date_column)
    tracers = table.column("tracer", ("TRACER",), needed=bool(cfg.tracer))
    quality = table.column("quality control", ("qc_flag",))
    sites = table.column("site", ("SITE", "CENTER", "CENTRE"))
    columns = {}
    if dates:
        columns["date"] = table.dates("date", dates)
    if labels:
        expected = (f"{expected_labels(cfg.num_classes)}; a SUVR is none, because its threshold depends on "
                    "the tracer")
        columns["label"] = table.parsed("label", labels, partial(read_label, num_classes=cfg.num_classes),
                                        expected)
        if cfg.num_classes == 2 and (remark := labels_remark(labels)):
            table.remarks.append(remark)
    if centiloids:
        columns["centiloids"] = table.parsed("Centiloids", centiloids, finite, "a number", MISSING)
    if quality:
        columns["quality"] = table.parsed("quality control", quality, finite, "a number", MISSING)
    if tracers:
        columns["tracer"] = table.parsed("tracer", tracers, str.upper, "a name")
        if cfg.tracer and not any(_is_tracer(name, cfg.tracer) for name in columns["tracer"]):
            there = brief(", ".join(sorted(set(tracers))))
            column = table.used["tracer"]
            table.problem(f"column {column}: no row has the tracer {cfg.tracer}; there are {there}")
    if sites:
        columns["site"] = table.parsed("site", sites, str, "a name")
    return columns


def _is_tracer(name: str | None, asked: str) -> bool:
    """Whether a tracer, None if it is not known, is the one that was asked for, by any of its names."""
    return name is not None and tracer_key(name) == tracer_key(asked)


def finite(text: str) -> float:
    """A finite number. Raises ValueError for anything else."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def label_of(cfg: PrepareSettings, values: dict) -> tuple[int | None, str]:
    """The label that a row gives, or None and the reason why it gives none.

    values: role of the column -> cell.
    """
    level = values.get("centiloids")
    if cfg.tracer and not _is_tracer(values.get("tracer"), cfg.tracer):
        return None, OTHER_TRACER
    if "quality" in values and values["quality"] not in cfg.qc_keep:
        return None, "failed quality control"
    if level is None and (cfg.has_grey_zone or cfg.label_from == "centiloids"):
        return None, "no Centiloids"
    if cfg.has_grey_zone and cfg.grey_zone[0] <= level < cfg.grey_zone[1]:
        return None, GREY
    if cfg.label_from == "centiloids":
        return int(level >= cfg.centiloid_cutoff), ""
    label = values.get("label")
    return label, "" if label is not None else "no label in its row"


def info_row(scan: str, subject: str, match: Match, day: date | None, people: People) -> dict:
    """A row of data_info.csv: the label, age, sex and other metadata, and the rows that they come from."""
    row = {"ID": scan, "label": match.rows[0].label}
    if people.knows_age:
        row["age"] = people.age(scan, day or match.date)
    if people.knows_sex:
        row["sex"] = people.sex(scan)
    adni = re.fullmatch(r"(\d{3})S\d{4,5}", subject)
    numbers = " ".join(str(one.number) for one in match.rows)
    return row | {"site": adni[1] if adni else match.shared("site"), "tracer": match.shared("tracer"),
                  "centiloids": match.shared("centiloids"), "subject": subject, "scan_date": day,
                  "row_date": match.date, "days": match.days, "matched": match.how, "rows": numbers}


def remarks_on(labelled: list[dict], people: People) -> list[str]:
    """Remarks on the labels: how rows were found, several tracers, unknown ages and sexes."""
    info = pd.DataFrame(labelled)
    if info.empty:
        return []
    counts = ", ".join(f"{how} {count}" for how, count in info["matched"].value_counts().items())
    remarks = [f"rows found: {counts}"]
    if info["tracer"].nunique() > 1:
        counts = ", ".join(f"{name} {count}" for name, count in info["tracer"].value_counts().items())
        remarks.append(f"several tracers ({counts}): ADNI's status is decided for each by its own threshold, "
                       "and Centiloids may be compared; SUVRs may not. --tracer keeps one")
    for name in ("site", "tracer"):
        unknown = list(info.loc[info[name].isna(), "ID"])
        if 0 < len(unknown) < len(info):
            remarks.append(f"{name} unknown: {listed(unknown, '')}; this is a {name} of its own in the lists")
    for name in ("age", "sex"):
        unknown = list(info.loc[info[name].isna(), "ID"]) if name in info else []
        if unknown:
            advice = "; a date of birth needs the scan's date (scan_dates)" if name == "age" else ""
            remarks.append(f"{name} unknown: {listed(unknown, '')}; the status classifier of age and sex "
                           f"needs both of every scan{advice}")
    if people.contradictory:
        scans = listed(sorted(people.contradictory), "")
        remarks.append(f"age or sex impossible, or not the same in all rows: {scans}")
    return remarks
