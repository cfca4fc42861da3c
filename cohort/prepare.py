"""Lists and labels of a cohort, from ADNI's tables or any CSV: `python main.py prepare`.

A scan is an ID with an MRI and a PET. Each gets its label from its row of the table (matching.py), and its
subject a place in one of the three lists (splitting.py).
"""
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import pandas as pd

from cohort.clinical_table import ClinicalTable
from cohort.demographics import Demographics
from cohort.found import People, name_tracers, read_found
from cohort.matching import (DATES, GREY, OTHER_TRACER, UNREADABLE_DATE, UNREADABLE_LABEL, LeftOut, Match,
                             Row, ScanDates, ScanKeys, pick_rows)
from cohort.splitting import draw_lists
from cohort.tracers import tracer_key
from config import Config
from dataset import FOLDERS, ID_PATTERN, SPLITS
from imaging.nifti_files import VolumeFolder
from labels.cells import MISSING, expected_labels, labels_remark, read_label
from runtime.commandline import parse
from runtime.files import brief, check_place, link_problem, remove_leftovers, write_together
from runtime.logs import readable, say
from runtime.program import exit_code
from runtime.near_names import NearNames
from runtime.settings import refuse, same, setting, value_problems
from runtime.tables import listed
from utils import InputError

EXAMPLES = 3                                               # scans that a message names
FILES = ("data_info.csv", *(f"{split}.txt" for split in SPLITS), "cohort.csv", "left_out.csv")
LABELS = ("AMYLOID_STATUS", "label", "SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF",
          "SUMMARYSUVR_WHOLECEREBNORM_1.08CUTOFF")


# ---------------------------------------------------------------- settings

@dataclass(frozen=True)
class PrepareSettings:
    """Settings of `python main.py prepare`.

    Raises ValueError that lists all values which are out of range or do not fit together.
    """

    table: str = setting("", "CSV with a row a PET or a scan: ADNI's amyloid table as downloaded, or any "
                             "with a column of IDs and one of labels", section="files")
    data_dir: str = setting("data", "folder with whole_MRI and whole_Abeta")
    info_dir: str = setting("data_info", "folder to which data_info.csv and the three lists are written")
    demographics: str = setting("", "CSV with age and sex, such as ADNI's PTDEMOG or ADNIMERGE; empty: "
                                    "the columns age and sex of the table. A column that is not there is "
                                    "taken from preprocess/scans.csv in data_dir, if it has it")
    scan_dates: str = setting("", "CSV with the columns ID and date, for scans whose ID carries no date; "
                                  "empty: preprocess/scans.csv in data_dir, if it has them")
    overwrite: bool = setting(False, "replace lists and labels that are there already")

    id_column: str = setting("", "column of the table with IDs of scans or subjects; empty: found by its "
                                 "name, such as PTID, RID, ID", section="labels")
    date_column: str = setting("", "column of the table with dates of the PETs; empty: found by its "
                                   "name, such as SCANDATE, EXAMDATE")
    label_column: str = setting("", "column of the table with the labels; empty: found by its "
                                    "name, such as AMYLOID_STATUS, label")
    label_from: str = setting("status", "status: the column of labels, decided by ADNI tracer by tracer; "
                              "centiloids: 1 from centiloid_cutoff on", choices=("status", "centiloids"))
    centiloid_cutoff: float = setting(20.0, "Centiloids from which on a PET is positive, with label_from "
                                            "centiloids; ADNI, florbetapir: 20", low=-100.0, high=300.0)
    grey_zone: tuple[float, float] = setting((0.0, 0.0), "leave out scans whose Centiloids lie from the "
                                             "first to below the second; equal: none", low=-100.0, high=300.0)
    qc_keep: tuple[int, ...] = setting((2,), "values of the column qc_flag that pass; ADNI: 2", low=-9)
    tracer: str = setting("", "keep one tracer of the column TRACER, by any of its names, such as FBP; empty: "
                             "all")
    window_days: int = setting(180, "most days between a scan and its row; amyloid grows over years", low=0)
    require_dates: bool = setting(False, "leave out scans without a date where the table has dates, even if "
                                         "its rows leave no doubt")
    num_classes: int = same(Config, "num_classes")

    split_ratios: tuple[float, float, float] = setting(
        (0.8, 0.1, 0.1), "shares of subjects in training, validation, test; paper", section="lists", low=1e-6)
    split_seed: int = setting(0, "seed of the lists; same seed, same lists", low=0)
    subject_pattern: str = same(Config, "subject_pattern")

    def __post_init__(self):
        wrong_values = value_problems(self)
        missing = [] if self.table else ["prepare needs --table FILE.csv"]
        misfits = [] if wrong_values else list(self._misfits())              # which take the values for right
        refuse(wrong_values + missing + misfits)

    def _misfits(self) -> Iterator[str]:
        """Yield, as sentences, what does not fit together."""
        if self.label_from == "centiloids" and (self.num_classes != 2 or self.label_column):
            yield ("label_from centiloids gives the labels 0 and 1: it goes with num_classes 2 and without "
                   "label_column")
        low, high = self.grey_zone
        cutoff_inside = low <= self.centiloid_cutoff <= high
        if low > high:
            yield f"grey_zone {self.grey_zone} must begin below its end"
        elif self.has_grey_zone and self.label_from == "centiloids" and not cutoff_inside:
            yield f"grey_zone {self.grey_zone} must hold the centiloid_cutoff {self.centiloid_cutoff}"
        try:
            if re.compile(self.subject_pattern).groups < 1:
                yield f"subject_pattern {self.subject_pattern!r} has no group for the subject"
        except re.error as error:
            yield f"subject_pattern {self.subject_pattern!r} is not a regular expression: {error}"

    @property
    def has_grey_zone(self) -> bool:
        """Whether scans are left out whose Centiloids are neither clearly negative nor positive."""
        return self.grey_zone[0] < self.grey_zone[1]


def main(argv: list[str]) -> int:
    """Make lists and labels, with the settings of a command line. Returns the exit code."""
    settings = parse(PrepareSettings, argv, "main.py prepare",
                     "Lists and labels of a cohort, from ADNI's tables or any CSV.")
    return exit_code(lambda: prepare_cohort(settings))


# ---------------------------------------------------------------- the whole

def prepare_cohort(cfg: PrepareSettings) -> None:
    """Write data_info.csv, the three lists, a table of the cohort and the scans left out, all or none.

    Raises InputError that lists every problem of tables and folders; nothing is then written.
    """
    folder = Path(cfg.info_dir)
    problems = _places_taken(folder, cfg.overwrite)
    check_place(folder)
    say("prepare", f"labels of the scans in {cfg.data_dir} from {cfg.table}; writes to {folder}/")
    scans, left_out = find_scans(Path(cfg.data_dir), problems)
    labelled, remarks = label_scans(cfg, scans, left_out, problems)
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s):", *problems]))
    left_out.sort(key=_scan_id)
    for remark in [*remarks, _count(labelled, left_out)]:
        say("prepare", remark)
    if len({row["subject"] for row in labelled}) < len(SPLITS):
        examples = [f"{row['ID']}: {row['reason']} ({row['found']})" for row in left_out[:5]]
        raise InputError(f"too few subjects for {len(SPLITS)} lists get a label; left out, for example:\n  "
                         + "\n  ".join(examples))
    info = pd.DataFrame(labelled).astype({"days": "Int64"})                   # whole numbers, some missing
    lists = draw_lists(info, cfg.split_ratios, cfg.split_seed)
    refuse_unusable(info, lists, cfg.num_classes)
    write_cohort(folder, info, lists, left_out)


def _places_taken(folder: Path, overwrite: bool) -> list[str]:
    """Problems with files that are in the folder already."""
    problems = []
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        problems.append(f"{folder}: {', '.join(there)} there already; --overwrite replaces all of them, "
                        "--info_dir takes another folder")
    for name in there:
        if (folder / name).is_dir():
            problems.append(f"{folder / name}: is a folder; move it away")
    return problems


def _scan_id(row: dict) -> str:
    return row["ID"]


def _count(labelled: list[dict], left_out: list[dict]) -> str:
    """Numbers of scans that get a label, and that are left out for each reason."""
    scans_of: dict[str, list[str]] = defaultdict(list)
    for row in left_out:
        scans_of[row["reason"]].append(row["ID"])
    lines = [f"{len(labelled)} scans get a label, {len(left_out)} are left out"]
    for reason, scans in sorted(scans_of.items()):
        lines.append(f"  {len(scans):5} {reason}: {listed(scans, '')}")
    return "\n".join(lines)


def write_cohort(folder: Path, info: pd.DataFrame, lists: pd.Series, left_out: list[dict]) -> None:
    """Write the six files together. info: data_info.csv. lists: split of each of its rows."""
    cohort = cohort_table(info, lists)
    texts = {}
    for split in SPLITS:
        texts[f"{split}.txt"] = "".join(f"{scan}\n" for scan in info.loc[lists == split, "ID"])
    tables = {"data_info.csv": info, "cohort.csv": cohort,
              "left_out.csv": pd.DataFrame(left_out, columns=["ID", "reason", "found"])}
    for name, table in tables.items():
        texts[name] = table.to_csv(index=False, lineterminator="\n")
    remove_leftovers(folder)
    write_together(folder, texts)
    say("prepare", f"wrote {', '.join(texts)} to {folder}/; next: python main.py --stages check\n"
                   + cohort.to_string(index=False, na_rep="", float_format="{:.1f}".format))


# ---------------------------------------------------------------- the scans that are there

def find_scans(data_dir: Path, problems: list[str]) -> tuple[list[str], list[dict]]:
    """IDs that have both an MRI and a PET, sorted, and a row of left_out.csv for every other ID."""
    for folder in FOLDERS:
        if not (data_dir / folder).is_dir():
            home = data_dir / folder
            missing = f"{home}: not there; expected the volumes <ID>.nii or <ID>.nii.gz in it"
            problems.append(link_problem(home) or missing)
            return [], []
    mri, pet = (VolumeFolder(data_dir / folder) for folder in FOLDERS)
    scans, left_out = [], []
    for scan in sorted({*mri.by_stem, *pet.by_stem}):
        with collect_left_out(scan, left_out):
            _refuse_scan(scan, mri, pet)
            scans.append(scan)
    if not scans:
        problems.append(f"{data_dir}: no ID has both an MRI ({len(mri.by_stem)} files in whole_MRI) "
                        f"and a PET ({len(pet.by_stem)} in whole_Abeta) that can be used"
                        + "".join(f"\n    {row['ID']}: {row['reason']} ({row['found']})"
                                  for row in left_out[:EXAMPLES]))
    return scans, left_out


def _refuse_scan(scan: str, mri: VolumeFolder, pet: VolumeFolder) -> None:
    """Raise LeftOut if the files of an ID are not those of a scan."""
    if not ID_PATTERN.fullmatch(scan):
        raise LeftOut("file name is no ID", "expected letters, digits, '.', '_' and '-', at most 200")
    for volumes, missing in ((mri, "no MRI"), (pet, "no PET")):
        try:
            volumes.find(scan)
        except InputError as error:
            is_there = scan in volumes.by_stem
            raise LeftOut("file cannot be used" if is_there else missing, str(error)) from error


@contextmanager
def collect_left_out(scan: str, left_out: list[dict]) -> Iterator[None]:
    """A block that may raise LeftOut for a scan, which then becomes a row of left_out.csv."""
    try:
        yield
    except LeftOut as cause:
        left_out.append({"ID": readable(scan), "reason": cause.reason, "found": cause.found})


# ---------------------------------------------------------------- their labels

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
    people = People(own_people, found.people(keys, problems))
    scan_dates = ScanDates(keys, dates_table, problems)
    if problems:
        return [], []

    dates: dict[str, date | None] = {}
    for scan in scans:
        with collect_left_out(scan, left_out):
            dates[scan] = scan_dates.of(scan)
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
    remarks = [sentence for one in tables for sentence in one.describe()]
    uses_tracers, renamed = name_tracers(labelled, found.tracers)
    taken += people.taken + ["tracer"] * uses_tracers
    if taken:
        remarks.append(f"{', '.join(taken)} from {found.path}, which preprocess wrote, where the tables have "
                       "none; --scan_dates and --demographics take others")
    return labelled, remarks + renamed + remarks_on(labelled, people)


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


# ---------------------------------------------------------------- the lists

def refuse_unusable(info: pd.DataFrame, lists: pd.Series, num_classes: int) -> None:
    """Raise InputError if the training list lacks a label: no network can be trained with it."""
    labels = sorted(info.loc[lists == "train", "label"].unique())
    if len(labels) < num_classes:
        there = ", ".join(map(str, labels))
        raise InputError(f"not all of the {num_classes} labels occur in the training list, but only {there}; "
                         "take the lists from more scans, or give it a larger share by --split_ratios")


def cohort_table(info: pd.DataFrame, lists: pd.Series) -> pd.DataFrame:
    """A row a list and one for all: subjects, scans, and of the scans labels, age, sex, tracers and sites,
    with the numbers of those that are unknown."""
    rows = []
    for name in (*SPLITS, "all"):
        part = info if name == "all" else info[lists == name]
        row = {"list": name, "subjects": part["subject"].nunique(), "scans": len(part)}
        for label in sorted(info["label"].unique()):
            row[f"label {label}"] = int((part["label"] == label).sum())
        if "age" in info:
            row |= {"age": part["age"].mean(), "SD": part["age"].std()}
        for column in ("sex", "tracer"):
            for value in sorted(info[column].dropna().unique()) if column in info else []:
                row[value] = int((part[column] == value).sum())
        if info["site"].notna().any():
            row["sites"] = part["site"].nunique()
        for column in ("age", "sex", "tracer", "site"):
            if column in info and 0 < info[column].isna().sum() < len(info):
                row[f"{column} unknown"] = int(part[column].isna().sum())
        rows.append(row)
    return pd.DataFrame(rows)
