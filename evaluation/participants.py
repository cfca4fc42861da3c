"""The flow of participants: how many scans and subjects were found, left out and put into each list.

What was found and left out is known where `python main.py prepare` wrote cohort.csv and left_out.csv beside
the lists, and nobody has changed the lists since.
"""
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dataset import SPLITS, Scan, parse_id
from runtime.tables import read_table
from utils import InputError

COHORT, LEFT_OUT = "cohort.csv", "left_out.csv"            # files of `prepare`
TITLES = {"train": "training list", "validation": "validation list", "test": "test list"}


class Count(NamedTuple):
    """A number of scans, and of the subjects that they are of."""
    scans: int
    subjects: int

    def __str__(self) -> str:
        """As a reader sees it: 1 scan, 5 scans of 4 subjects."""
        scans = f"{self.scans} scan{'s' * (self.scans != 1)}"
        return scans if self.scans < 2 else f"{scans} of {self.subjects} subject{'s' * (self.subjects != 1)}"


@dataclass(frozen=True)
class Flow:
    """The flow of participants.

    lists, labels: split -> its count, and its scans with each label. found: every ID with an MRI or a PET,
    None where that is not known. left_out: reason -> its count, the most frequent first. remark: why the
    files of `prepare` are not used, if they are there.
    """
    lists: dict[str, Count]
    labels: dict[str, dict[int, int]]
    found: Count | None = None
    left_out: dict[str, Count] = field(default_factory=dict)
    all_left_out: Count = Count(0, 0)
    labelled: Count = Count(0, 0)
    remark: str = ""

    def boxes(self) -> list[tuple[str, str, list[str]]]:
        """Title, number and further lines of each list, for the diagram."""
        return [(TITLES[split], str(count), [self._of_label(split, label) for label in self.labels[split]])
                for split, count in self.lists.items()]

    def _of_label(self, split: str, label: int) -> str:
        return f"label {label}: {self.labels[split][label]}"

    def text(self) -> str:
        """The numbers of the diagram, as sentences."""
        sentences = []
        if self.found:
            reasons = [f"{count.scans} {reason}" for reason, count in self.left_out.items()]
            left_out = f"{self.all_left_out} left out ({', '.join(reasons)})" if reasons else "none left out"
            sentences.append(f"Found, with an MRI or a PET: {self.found}; {left_out}; {self.labelled} with "
                             "both and a label.")
        for title, count, labels in self.boxes():
            sentences.append(f"{title.capitalize()}: {count} ({', '.join(labels)}).")
        return " ".join(sentences)


def count_participants(info_dir: Path, lists: dict[str, list[Scan]], subject_pattern: str) -> Flow:
    """The flow of the participants in these lists, from the files of `prepare` in info_dir if they are there
    and are about these lists."""
    pattern = re.compile(subject_pattern)
    ids = {split: [scan.id for scan in lists[split]] for split in SPLITS}
    counts = {split: _count(ids[split], pattern) for split in SPLITS}
    kinds = sorted({scan.label for scans in lists.values() for scan in scans})
    labels = {}
    for split in SPLITS:
        of_label = Counter(scan.label for scan in lists[split])
        labels[split] = {kind: of_label[kind] for kind in kinds}
    try:
        reasons = _read_prepared(info_dir, ids)
    except InputError as error:
        return Flow(counts, labels, remark=str(error))
    if reasons is None:
        return Flow(counts, labels)
    used = [scan for split in SPLITS for scan in ids[split]]
    left_out = [scan for scans in reasons.values() for scan in scans]
    by_number = sorted(reasons, key=lambda reason: (-len(reasons[reason]), reason))
    return Flow(counts, labels, _count(used + left_out, pattern),
                {reason: _count(reasons[reason], pattern) for reason in by_number},
                _count(left_out, pattern), _count(used, pattern))


def _count(ids: Iterable[str], pattern: re.Pattern) -> Count:
    ids = list(ids)
    return Count(len(ids), len({parse_id(scan, pattern)[0] for scan in ids}))


def _read_prepared(info_dir: Path, ids: dict[str, list[str]]) -> dict[str, list[str]] | None:
    """Reason -> IDs that `prepare` left out; None if it wrote nothing here.

    Raises InputError if its files cannot be read, or are about other lists than these.
    """
    there = [name for name in (COHORT, LEFT_OUT) if (info_dir / name).exists()]
    if not there:
        return None
    if len(there) == 1:
        raise InputError(f"{info_dir / there[0]} is not used: {({COHORT, LEFT_OUT} - set(there)).pop()} is "
                         "not beside it")
    table = read_table(info_dir / COHORT, "list", "scans", remarks=[])
    prepared = dict(zip(table["list"], table["scans"], strict=True))
    now = {split: str(len(ids[split])) for split in SPLITS}
    if {split: prepared.get(split) for split in SPLITS} != now:
        differ = [f"{split} {prepared.get(split)} scans, now {now[split]}" for split in SPLITS]
        raise InputError(f"{info_dir / COHORT} is not used: it is about other lists ({', '.join(differ)}); "
                         "python main.py prepare writes it again")
    table = read_table(info_dir / LEFT_OUT, "ID", "reason", remarks=[])
    in_lists = {scan for scans in ids.values() for scan in scans}.intersection(table["ID"])
    if in_lists:
        raise InputError(f"{info_dir / LEFT_OUT} is not used: {sorted(in_lists)[0]} stands in it and in a "
                         "list")
    reasons = defaultdict(list)
    for scan, reason in zip(table["ID"], table["reason"], strict=True):
        reasons[reason or "no reason given"].append(scan)
    return reasons
