"""Lists and labels of a cohort, from ADNI's tables or any CSV: `python main.py prepare`.

A scan is an ID with an MRI and a PET. Each gets its label from its row of the table (labelling.py,
matching.py), and its subject a place in one of the three lists (splitting.py).
"""
from collections import defaultdict
from pathlib import Path

import pandas as pd

from cohort.labelling import COLUMNS, label_scans
from cohort.matching import LeftOut, collect_left_out
from cohort.prepare_settings import PrepareSettings
from cohort.splitting import draw_lists
from dataset import FOLDERS, ID_PATTERN, SPLITS
from imaging.nifti_files import VolumeFolder
from runtime.commandline import parse
from runtime.files import check_place, link_problem, remove_leftovers, write_together
from runtime.logs import say
from runtime.program import exit_code
from runtime.tables import listed
from utils import InputError

EXAMPLES = 3                                               # scans that a message names
FILES = ("data_info.csv", *(f"{split}.txt" for split in SPLITS), "cohort.csv", "left_out.csv")


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
    with the numbers of those that are unknown, and the numbers of those whose covariates are known."""
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
        for column in info.columns.difference(COLUMNS, sort=False):
            row[f"{column} known"] = int(part[column].notna().sum())
        rows.append(row)
    return pd.DataFrame(rows)
