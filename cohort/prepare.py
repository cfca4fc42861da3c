"""Lists and labels of a cohort, from ADNI's tables or any CSV: which scans are there, what their labels are, who is in which list."""
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pandas as pd

from cohort.clinical import MISSING, ClinicalTable, listed
from cohort.demographics import Demographics
from cohort.matching import DATES, GREY, OTHER_TRACER, LeftOut, Match, Row, ScanKeys, pick_rows, scan_dates
from cohort.splitting import split_subjects
from config import Config
from dataset import ID_PATTERN, SPLITS, find_volume
from runtime.commandline import parse
from runtime.files import brief, check_place, remove_leftovers, write_together
from runtime.logs import say
from runtime.program import exit_code
from runtime.settings import refuse, same, setting, value_problems
from utils import InputError

FILES = ("data_info.csv", *(f"{split}.txt" for split in SPLITS), "cohort.csv", "left_out.csv")
LABELS = ("AMYLOID_STATUS", "label", "SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF", "SUMMARYSUVR_WHOLECEREBNORM_1.08CUTOFF")
AGE_GROUPS = 4                                             # quartiles, of which each list gets its share


@dataclass(frozen=True)
class Settings:
    """The settings of `python main.py prepare`. Raises ValueError that lists all values which are out of range or do not fit together."""

    table: str = setting("", "CSV with a row a PET, or a scan: ADNI's amyloid table as downloaded, or any with a column of IDs and one of "
                             "labels", section="files")
    data_dir: str = setting("data", "folder with whole_MRI and whole_Abeta")
    info_dir: str = setting("data_info", "folder to which data_info.csv, train.txt, validation.txt and test.txt are written")
    demographics: str = setting("", "CSV with age and sex, such as ADNI's PTDEMOG or ADNIMERGE; empty: those columns of the table, if any")
    scan_dates: str = setting("", "CSV with the columns ID and date of scans whose ID carries no date")
    overwrite: bool = setting(False, "replace lists and labels that are there already")
    id_column: str = setting("", "column of the table with IDs of scans or subjects; empty: found by its name (PTID, RID, ID and others)",
                             section="labels")
    date_column: str = setting("", "column of the table with dates of the PETs; empty: found by its name (SCANDATE, EXAMDATE and others)")
    label_column: str = setting("", "column of the table with the labels; empty: found by its name (AMYLOID_STATUS, label and others)")
    label_from: str = setting("status", "status: labels are read from their column, where ADNI decides tracer by tracer; centiloids: label 1 "
                                        "from centiloid_cutoff on, else 0", choices=("status", "centiloids"))
    centiloid_cutoff: float = setting(20.0, "Centiloids from which on a PET is positive, with label_from centiloids; ADNI's florbetapir "
                                            "threshold is 20", low=-100.0, high=300.0)
    grey_zone: tuple[float, float] = setting((0.0, 0.0), "leave out scans with Centiloids from the first to below the second value, such as "
                                                         "10 30 (AMYPAD); two equal values: none", low=-100.0, high=300.0)
    qc_keep: tuple[int, ...] = setting((2,), "values of the column qc_flag that pass; ADNI: 2", low=-9)
    tracer: str = setting("", "keep one tracer, as the table's column TRACER writes it, such as FBP; empty: all")
    window_days: int = setting(180, "most days between a scan and its row; amyloid grows over years", low=0)
    require_dates: bool = setting(False, "leave out scans without a date where the table has some, even if the rows leave no doubt")
    num_classes: int = same(Config, "num_classes")
    split_ratios: tuple[float, float, float] = setting((0.8, 0.1, 0.1), "shares of the subjects in the training, validation and test list; "
                                                                        "paper: 408, 51 and 51", section="lists", low=1e-6)
    split_seed: int = setting(0, "seed of the lists; same seed, same lists", low=0)
    subject_pattern: str = same(Config, "subject_pattern")

    def __post_init__(self):
        refuse(value_problems(self) or list(self._misfits()))

    def _misfits(self) -> Iterator[str]:
        if not self.table:
            yield "prepare needs --table FILE.csv"
        if self.label_from == "centiloids" and (self.num_classes != 2 or self.label_column):
            yield "label_from centiloids gives the labels 0 and 1: it goes with num_classes 2 and without label_column"
        if self.grey_zone[0] > self.grey_zone[1]:
            yield f"grey_zone {self.grey_zone} must begin below its end"
        elif self.has_grey_zone and self.label_from == "centiloids" and not self.grey_zone[0] <= self.centiloid_cutoff <= self.grey_zone[1]:
            yield f"grey_zone {self.grey_zone} must hold the centiloid_cutoff {self.centiloid_cutoff}"

    @property
    def has_grey_zone(self) -> bool:
        """Whether scans are left out for Centiloids that are neither clearly negative nor clearly positive."""
        return self.grey_zone[0] < self.grey_zone[1]


def main(argv: list[str]) -> int:
    """Make lists and labels, with the settings of a command line. Returns the exit code."""
    settings = parse(Settings, argv, "main.py prepare", "Lists and labels of a cohort, from ADNI's tables or any CSV.")
    return exit_code(lambda: prepare_cohort(settings))


def prepare_cohort(cfg: Settings) -> None:
    """Write data_info.csv, the lists of the three splits, a table of the cohort and what was left out, all of them or none.

    Raises InputError that lists every problem of settings, tables and folders; nothing is then written.
    """
    problems: list[str] = []
    folder = Path(cfg.info_dir)
    there = [name for name in FILES if (folder / name).exists()]
    if there and not cfg.overwrite:
        problems.append(f"{folder}: {', '.join(there)} there already; --overwrite replaces all of them, --info_dir takes another folder")
    problems += [f"{folder / name}: is a folder; move it away" for name in there if (folder / name).is_dir()]
    check_place(folder)
    say("prepare", f"labels of the scans in {cfg.data_dir} from {cfg.table}; writes to {folder}/")
    scans, left = find_scans(Path(cfg.data_dir), problems)
    matches, remarks = label_scans(cfg, scans, left, problems)
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s):", *problems]))
    left.sort(key=lambda one: one["ID"])
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in left:
        reasons[one["reason"]].append(one["ID"])
    counts = "".join(f"\n  {len(ids):5} {reason}: {listed(ids, '')}" for reason, ids in sorted(reasons.items()))
    for remark in [*remarks, f"{len(matches)} scans get a label, {len(left)} are left out{counts}"]:
        say("prepare", remark)
    if len({row["subject"] for row in matches}) < len(SPLITS):
        raise InputError(f"too few subjects for {len(SPLITS)} lists get a label; left out, for example:\n  "
                         + "\n  ".join(f"{one['ID']}: {one['reason']} ({one['found']})" for one in left[:5]))
    info = pd.DataFrame(matches).astype({"days": "Int64"})                                   # whole numbers, some of them empty
    lists = draw_lists(info, cfg.split_ratios, cfg.split_seed)
    refuse_unusable(cfg, info, lists)
    cohort = cohort_table(info, lists)
    remove_leftovers(folder)
    texts = {f"{split}.txt": "".join(f"{scan}\n" for scan in info.loc[lists == split, "ID"]) for split in SPLITS}
    tables = {"data_info.csv": info, "cohort.csv": cohort, "left_out.csv": pd.DataFrame(left, columns=["ID", "reason", "found"])}
    write_together(folder, texts | {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()})
    say("prepare", f"wrote {', '.join([*texts, *tables])} to {folder}/; next: python main.py --stages check\n"
                   + cohort.to_string(index=False, na_rep="", float_format="{:.1f}".format))


# ---------------------------------------------------------------- the scans that are there

def find_scans(data_dir: Path, problems: list[str]) -> tuple[list[str], list[dict]]:
    """IDs that have both an MRI and a PET, sorted, and a record (ID, reason, found) of each file that has no part in a scan."""
    names: dict[str, set[str]] = {}
    for folder in ("whole_MRI", "whole_Abeta"):
        home = data_dir / folder
        if not home.is_dir():
            problems.append(f"{home}: not there; expected the volumes <ID>.nii or <ID>.nii.gz in it")
            return [], []
        names[folder] = {re.sub(r"\.nii(\.gz)?$", "", path.name) for path in home.iterdir()
                         if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")}
    mri, pet = names.values()
    scans, left = [], []
    for scan in sorted(mri | pet):
        if not ID_PATTERN.fullmatch(scan):
            left.append(record(scan, LeftOut("file name is no ID", "expected letters, digits, '.', '_' and '-', at most 200")))
        elif scan not in mri or scan not in pet:
            left.append(record(scan, LeftOut("no PET" if scan in mri else "no MRI", "one of the two files only")))
        else:
            try:
                for folder in names:
                    find_volume(data_dir, folder, scan)
                scans.append(scan)
            except InputError as error:
                left.append(record(scan, LeftOut("file cannot be used", str(error))))
    if not scans:
        example = f", but there are {min(mri)} and {min(pet)}" if mri and pet else ""
        problems.append(f"{data_dir}: no ID has both an MRI ({len(mri)} files in whole_MRI) and a PET ({len(pet)} in whole_Abeta); the two "
                        f"files of a scan have the same name{example}")
    return scans, left


def record(scan: str, cause: LeftOut) -> dict:
    """A scan that is left out, as left_out.csv lists it."""
    return {"ID": scan, "reason": cause.reason, "found": cause.found}


# ---------------------------------------------------------------- their labels

def label_scans(cfg: Settings, scans: list[str], left: list[dict], problems: list[str]) -> tuple[list[dict], list[str]]:
    """A row of data_info.csv for each scan that gets a label, and remarks on how the tables were read. The other scans join `left`."""
    keys = ScanKeys(scans, cfg.subject_pattern)
    tables = [table] = [ClinicalTable(Path(cfg.table), "table", problems)]
    groups, rows = keys.group(table, cfg.id_column), read_rows(cfg, table)
    people_table, people_groups, dates_table = table, groups, None
    if cfg.demographics:
        tables.append(people_table := ClinicalTable(Path(cfg.demographics), "demographics", problems))
        people_groups = keys.group(people_table)
    if cfg.scan_dates:
        tables.append(dates_table := ClinicalTable(Path(cfg.scan_dates), "scan_dates", problems))
    people = Demographics(people_table, keys, people_groups, needed=bool(cfg.demographics))
    when = scan_dates(keys, dates_table, problems)
    if problems:
        return [], []

    dates: dict[str, date | None] = {}
    for scan in scans:
        with noting(scan, left):
            dates[scan] = when(scan)
    has_dates = any(row.date for row in rows)
    rivals = Counter(keys.key(scan, groups) for scan, day in dates.items() if day is None)
    matches = []
    for scan, day in dates.items():
        with noting(scan, left):
            key = keys.key(scan, groups)
            found = [rows[i] for i in groups.get(key, [])]
            match = pick_rows(found, day, cfg.window_days, has_dates, cfg.require_dates, rivals[key])
            matches.append(info_row(scan, keys.subject(scan), match, day, people))
    return matches, [remark for one in tables for remark in one.describe()] + remarks_on(matches, people)


@contextmanager
def noting(scan: str, left: list[dict]) -> Iterator[None]:
    """A block that may find that a scan is left out, which is then noted."""
    try:
        yield
    except LeftOut as cause:
        left.append(record(scan, cause))


def read_rows(cfg: Settings, table: ClinicalTable) -> list[Row]:
    """The rows of the table, each with its label, or with the reason why it gives none."""
    by_centiloids = cfg.label_from == "centiloids"
    centiloids = table.column("Centiloids", ("CENTILOIDS", "CENTILOID", "CL"), needed=by_centiloids or cfg.has_grey_zone)
    labels = None if by_centiloids else table.column("label", LABELS, cfg.label_column, needed=True)
    dates = table.column("date", DATES, cfg.date_column)
    tracers = table.column("tracer", ("TRACER",), needed=bool(cfg.tracer))
    quality = table.column("quality control", ("qc_flag",))
    sites = table.column("site", ("SITE", "CENTER", "CENTRE"))
    if table.frame is None:
        return []
    valid = {text: k for k in range(cfg.num_classes) for text in (str(k), f"{k}.0")}
    columns = {
        "date": dates and table.dates("date", dates),
        "label": labels and table.parsed("label", labels, lambda text: valid[text], f"a label in 0 .. {cfg.num_classes - 1}"
                                         "; a SUVR is none, because its threshold depends on the tracer"),
        "centiloids": centiloids and table.parsed("Centiloids", centiloids, finite, "a number", MISSING),
        "quality": quality and table.parsed("quality control", quality, finite, "a number", MISSING),
        "tracer": tracers and table.parsed("tracer", tracers, str.upper, "a name"),
        "site": sites and table.parsed("site", sites, str, "a name")}
    if tracers and cfg.tracer and cfg.tracer.upper() not in columns["tracer"]:
        table.problem(f"column {table.used['tracer']}: no row has the tracer {cfg.tracer}; there are "
                      + brief(", ".join(sorted(set(tracers)))))
    rows = []
    for i, number in enumerate(table.rows):
        said = {name: column[i] for name, column in columns.items() if column}
        label, reason = judge(cfg, said)
        rows.append(Row(number, said.get("date"), label, reason, {name: said.get(name) for name in ("tracer", "site", "centiloids")}))
    return rows


def finite(text: str) -> float:
    """A number. Raises ValueError for anything else."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def judge(cfg: Settings, said: dict) -> tuple[int | None, str]:
    """The label that a row gives, or the reason why it gives none. said: its values by column."""
    level = said.get("centiloids")
    if cfg.tracer and said.get("tracer") != cfg.tracer.upper():
        return None, OTHER_TRACER
    if "quality" in said and said["quality"] not in cfg.qc_keep:
        return None, "failed quality control"
    if level is None and (cfg.has_grey_zone or cfg.label_from == "centiloids"):
        return None, "no Centiloids"
    if cfg.has_grey_zone and cfg.grey_zone[0] <= level < cfg.grey_zone[1]:
        return None, GREY
    label = int(level >= cfg.centiloid_cutoff) if cfg.label_from == "centiloids" else said.get("label")
    return label, "" if label is not None else "no label in its row"


def info_row(scan: str, subject: str, match: Match, day: date | None, people: Demographics) -> dict:
    """A row of data_info.csv: the label and what was known beside it, with the rows of the table that it comes from."""
    adni = re.fullmatch(r"(\d{3})S\d{4,5}", subject)
    known = {"age": people.age(scan, day or match.date)} if people.knows_age else {}
    known |= {"sex": people.sex(scan)} if people.knows_sex else {}
    return {"ID": scan, "label": match.rows[0].label, **known, "site": adni[1] if adni else match.fact("site"),
            "tracer": match.fact("tracer"), "centiloids": match.fact("centiloids"), "subject": subject, "scan_date": day,
            "row_date": match.date, "days": match.days, "matched": match.how, "rows": " ".join(str(row.number) for row in match.rows)}


def remarks_on(matches: list[dict], people: Demographics) -> list[str]:
    """What a user must know of the labels: how rows were found, mixed tracers, unknown ages and sexes."""
    info = pd.DataFrame(matches)
    if info.empty:
        return []
    remarks = ["rows found: " + ", ".join(f"{how} {count}" for how, count in info["matched"].value_counts().items())]
    if info["tracer"].nunique() > 1:
        counts = ", ".join(f"{name} {count}" for name, count in info["tracer"].value_counts().items())
        remarks.append(f"several tracers ({counts}): ADNI's status is decided for each by its own threshold, and Centiloids may be "
                       "compared; SUVRs may not. --tracer keeps one")
    for name in ("age", "sex"):
        if name in info and len(unknown := info.loc[info[name].isna(), "ID"]):
            remarks.append(f"{name} unknown: {listed(list(unknown), '')}; the read-out from age and sex needs both of every scan"
                           + "; a date of birth needs the scan's date (scan_dates)" * (name == "age"))
    if people.contradictory:
        remarks.append(f"age or sex impossible, or not the same in all rows: {listed(sorted(people.contradictory), '')}")
    return remarks


# ---------------------------------------------------------------- the lists

def draw_lists(info: pd.DataFrame, ratios: tuple[float, ...], seed: int) -> pd.Series:
    """The split of each scan: subjects are shared out by their labels, then by site, tracer, sex and quartile of age (splitting.py).

    A subject whose scans differ counts as a kind of its own: its labels are 0+1.
    """
    def joined(values: pd.Series) -> str:
        return "+".join(sorted({str(value) for value in values}))

    subjects = info.groupby("subject")                     # sorted, so that neither rows nor files have a say by their order
    factors = subjects[["label"]].agg(joined)
    for name in ("site", "tracer", "sex"):
        if name in info and info[name].nunique() > 1:
            factors[name] = subjects[name].agg(joined)
    if "age" in info and info["age"].nunique() > 1:
        factors["age"] = pd.qcut(subjects["age"].mean(), AGE_GROUPS, duplicates="drop")
    lists = pd.Series([SPLITS[k] for k in split_subjects(factors, ratios, seed)], index=factors.index)
    return info["subject"].map(lists)


def refuse_unusable(cfg: Settings, info: pd.DataFrame, lists: pd.Series) -> None:
    """Raise InputError if the check of a cohort would refuse these lists."""
    labels = info.loc[lists == "train", "label"]
    if labels.nunique() < cfg.num_classes:
        raise InputError(f"not all of the {cfg.num_classes} labels occur in the training list, but only "
                         f"{', '.join(map(str, sorted(labels.unique())))}; take the lists from more scans, or others by --split_seed")


def cohort_table(info: pd.DataFrame, lists: pd.Series) -> pd.DataFrame:
    """A row a list and one for all: subjects, scans, and of the scans labels, age, sex, tracers and sites."""
    rows = []
    for name in (*SPLITS, "all"):
        part = info if name == "all" else info[lists == name]
        row = {"list": name, "subjects": part["subject"].nunique(), "scans": len(part)}
        row |= {f"label {label}": int((part["label"] == label).sum()) for label in sorted(info["label"].unique())}
        if "age" in info:
            row |= {"age": part["age"].mean(), "SD": part["age"].std()}
        for column in ("sex", "tracer"):
            if column in info:
                row |= {value: int((part[column] == value).sum()) for value in sorted(info[column].dropna().unique())}
        rows.append(row | ({"sites": part["site"].nunique()} if info["site"].notna().any() else {}))
    return pd.DataFrame(rows)
