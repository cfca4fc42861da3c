"""What preprocess found of its scans and left in scans.csv, for prepare: it fills what the tables lack."""
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from cohort.clinical_table import ClinicalTable
from cohort.demographics import Demographics
from cohort.matching import ScanKeys
from cohort.tracers import tracer_key
from runtime.files import read_own_table

SCANS = Path("preprocess", "scans.csv")                    # in the data_dir


@dataclass(frozen=True)
class Found:
    """scans.csv. columns: that it has; none if it is not there. tracers: ID -> label."""
    path: Path
    columns: tuple[str, ...] = ()
    tracers: dict[str, str] = field(default_factory=dict)

    def people(self, keys: ScanKeys, problems: list[str]) -> Demographics | None:
        """Its ages and sexes, None if it has neither. problems: the list to which problems are added."""
        if not {"age", "sex"} & set(self.columns):
            return None
        table = ClinicalTable(self.path, "demographics", problems)
        return Demographics(table, keys, keys.group(table), needed=False)


def read_found(data_dir: Path) -> Found:
    """The scans.csv of a data_dir. Raises InputError if it is damaged."""
    path = data_dir / SCANS
    if not path.is_file():
        return Found(path)
    table = read_own_table(path, ["ID"], "python main.py preprocess writes it again", ID=str, tracer=str)
    tracers = {}
    if "tracer" in table:
        tracers = dict(table[["ID", "tracer"]].dropna().itertuples(index=False))
    return Found(path, tuple(table.columns), tracers)


class People:
    """Age and sex of the scans by the user's table, and of another one, such as scans.csv, in the place of a
    column that it lacks.

    taken: columns of the other one that are used.
    """

    def __init__(self, own: "Demographics | People", found: Demographics | None):
        use_age = found is not None and found.knows_age and not own.knows_age
        use_sex = found is not None and found.knows_sex and not own.knows_sex
        self._ages = found if use_age else own
        self._sexes = found if use_sex else own
        self.knows_age, self.knows_sex = self._ages.knows_age, self._sexes.knows_sex
        self.taken = [name for name, is_used in (("age", use_age), ("sex", use_sex)) if is_used]

    def age(self, scan: str, when: date | None) -> float | None:
        """Age in years on that day, None if it is not known."""
        return self._ages.age(scan, when)

    def sex(self, scan: str) -> str | None:
        """M or F, or a code of the table's own; None if it is not known."""
        return self._sexes.sex(scan)

    @property
    def contradictory(self) -> set[str]:
        """Scans whose rows contradict each other, or give an impossible age."""
        return self._ages.contradictory | self._sexes.contradictory


def fill_tracers(labelled: list[dict], tracers: dict[str, str]) -> bool:
    """Give rows without tracer that of scans.csv, in place. tracers: ID -> label. Returns whether one has got
    it."""
    filled = False
    for row in labelled:
        if not row["tracer"] and row["ID"] in tracers:
            row["tracer"] = tracers[row["ID"]]
            filled = True
    return filled


def name_tracers(labelled: list[dict], tracers: dict[str, str]) -> tuple[bool, list[str]]:
    """Fill in tracers, and give each tracer one name, in place: the most frequent one of the table, else its
    label. Returns whether a tracer of scans.csv was used, and remarks on names that were changed."""
    names: dict[str, Counter] = defaultdict(Counter)
    for row in labelled:
        if row["tracer"]:
            names[tracer_key(row["tracer"])][row["tracer"]] += 1
    filled = fill_tracers(labelled, tracers)
    remarks, name_of = [], {}
    for key, counts in names.items():
        first, *others = [name for name, _ in sorted(counts.items(), key=_by_count)]
        name_of[key] = first
        if others:
            remarks.append(f"the tracers {', '.join([first, *others])} are one and written as {first}")
    for row in labelled:
        if row["tracer"]:
            key = tracer_key(row["tracer"])
            row["tracer"] = name_of.get(key, key)
    return filled, remarks


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    """Most frequent names first, of equal ones in the order of the alphabet."""
    name, count = item
    return -count, name
