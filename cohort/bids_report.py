"""What a BIDS dataset holds for us: the scans, what is left out, one table of both, and files for prepare."""
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cohort.bids_files import is_dataset
from cohort.derivative import foreign_datasets
from cohort.raw_scans import LISTED, RawScan
from runtime.files import read_own_table, write_csv
from runtime.logs import say
from utils import InputError

Visit = tuple[str, str]                                    # labels of subject and session


def scan_id(visit: Visit) -> str:
    """The ID of a visit: sub-01_ses-2."""
    return f"sub-{visit[0]}_ses-{visit[1]}" if visit[1] else f"sub-{visit[0]}"


@dataclass
class Dataset:
    """What a BIDS dataset holds for us.

    scans: to be preprocessed. left_out: rows ID, reason, found. ignored: number of files by what they are,
    such as PETs of other tracers.
    ambiguous: sentences that name files among which the user must choose. remarks: how it was read.
    has_pets: whether it has PETs that show amyloid, or may, even if they cannot be used.
    """
    root: Path
    scans: list[RawScan] = field(default_factory=list)
    left_out: list[dict] = field(default_factory=list)
    ignored: Counter = field(default_factory=Counter)
    ambiguous: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    has_pets: bool = False

    def leave_out(self, visit: Visit | str, reason: str, found: str) -> None:
        """Add a row of left_out.csv."""
        name = visit if isinstance(visit, str) else scan_id(visit)
        self.left_out.append({"ID": name, "reason": reason, "found": found})

    def table(self) -> str:
        """One table of what was found, taken and left out, for the screen."""
        pets = [scan for scan in self.scans if scan.pet]
        kinds = Counter(f"{scan.tracer.label}{f' rec-{scan.rec}' if scan.rec else ''}" for scan in pets)
        rows = [*self.counts.items(), ("taken", len(self.scans))]
        rows += [(f"  with {kind}", count) for kind, count in sorted(kinds.items())]
        rows += [(f"ignored {what}", count) for what, count in sorted(self.ignored.items())]
        rows.append(("left out", len(self.left_out)))
        names = defaultdict(list)
        for row in self.left_out:
            names[row["reason"]].append(row["ID"])
        for reason, ids in sorted(names.items()):
            rows.append((f"  {reason}", f"{len(ids)}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}"))
        return "\n".join(f"  {what:<32} {number}" for what, number in rows)


def say_found(dataset: Dataset, stage: str = "preprocess") -> None:
    """Print what a dataset holds. Raises InputError if the user must choose among files, or if none is left.

    stage: as lines on the screen begin.
    """
    say(stage, f"BIDS dataset {dataset.root}:\n{dataset.table()}")
    for remark in dataset.remarks:
        say(stage, remark)
    if dataset.ambiguous:
        shown = dataset.ambiguous[:LISTED]
        if len(dataset.ambiguous) > LISTED:
            shown.append(f"... and {len(dataset.ambiguous) - LISTED} more")
        number = len(dataset.ambiguous)
        raise InputError("\n  ".join([f"{number} visits have several files that may be meant:", *shown]))
    if not dataset.scans:
        expected = ("no scan can be used; expected sub-*/[ses-*/]anat/*_T1w.nii[.gz] and "
                    "sub-*/[ses-*/]pet/*_pet.nii[.gz]")
        if dataset.has_pets:
            expected = "none of its amyloid PETs can be used; --mri_only takes the T1 MRIs alone"
        found = [f"{row['ID']}: {row['reason']}: {row['found']}" for row in dataset.left_out
                 if row["reason"] != "no amyloid PET"]     # which only follows from the others
        raise InputError("\n  ".join([f"{dataset.root}: {expected}", *found[:LISTED]]))
    if "with amyloid PET" in dataset.counts and not any(scan.pet for scan in dataset.scans):
        say(stage, "no amyloid PET: the T1 MRIs are taken alone")


def refuse_inside(folder: Path, root: Path, setting: str) -> None:
    """Raise InputError if a folder lies in the dataset, outside its derivatives/NAME: nothing may be written
    there. setting: that names the folder."""
    place, root = folder.resolve(), root.resolve()
    inside = place.relative_to(root).parts if place.is_relative_to(root) else None
    if inside is not None and (len(inside) < 2 or inside[0] != "derivatives"):
        raise InputError(f"{setting} {folder}: lies in the BIDS dataset, into which nothing is written but "
                         f"{root / 'derivatives' / 'NAME'}; give such a folder, or one elsewhere")


def refuse_inside_source(folder: Path, source: Path, setting: str) -> None:
    """Raise InputError if a folder lies in a dataset in which the source, a file or folder of images, lies
    too. setting: that names the folder."""
    for root in (*([source] if is_dataset(source) else []), *foreign_datasets(source)):
        refuse_inside(folder, root, setting)


def write_found(folder: Path, scans: list[RawScan], left_out: list[dict] | None) -> None:
    """Write scans.csv, which prepare reads, with what is known of date, age, sex and tracer, and left_out.csv
    of a dataset. What an earlier run knew stays where this one knows nothing. left_out: its rows; None: not a
    dataset."""
    rows = []
    for scan in scans:
        tracer = scan.tracer.label if scan.tracer and scan.pet else None
        date = scan.scanned and scan.scanned.isoformat()
        rows.append({"ID": scan.id, "date": date, "age": scan.age, "sex": scan.sex or None, "tracer": tracer})
    table, path = pd.DataFrame(rows), folder / "scans.csv"
    if path.is_file():
        earlier = read_own_table(path, ["ID"], "delete it", ID=str, date=str, sex=str, tracer=str)
        table = _with_earlier(table, earlier)
    table = table.dropna(axis="columns", how="all")
    if len(table.columns) > 1:
        write_csv(path, table)
    if left_out is not None:
        write_csv(folder / "left_out.csv", pd.DataFrame(left_out, columns=["ID", "reason", "found"]))


def _with_earlier(table: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table, with what an earlier one knew of the same IDs in empty cells, and its other
    rows."""
    table, earlier = table.set_index("ID"), earlier.drop_duplicates("ID").set_index("ID")
    order = list(dict.fromkeys([*table.index, *earlier.index]))
    columns = list(dict.fromkeys([*table.columns, *earlier.columns]))
    return table.combine_first(earlier).loc[order, columns].reset_index(names="ID")
