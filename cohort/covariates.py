"""Covariates of the scans, from tables beside that of the labels: --covariates FILE[:COLUMN[=NAME],...] ...

A covariate becomes a column of data_info.csv, such as apoe4, mmse or ptau217, empty where it is not known.
"""
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median

from cohort.clinical_table import ClinicalTable
from cohort.covariate_cells import Cell, is_thousandfold
from cohort.covariate_columns import Column, ColumnReader, split_choice
from cohort.covariate_kinds import GENOTYPE, Kind
from cohort.demographics import Demographics
from cohort.found import People
from cohort.matching import ScanKeys
from runtime.tables import listed, simplified

DIFFER, UNDECIDED = "rows that contradict each other", "several values and no date that decides"
FAR, ABSENT = "none that near", "no value"
REASONS = (DIFFER, UNDECIDED, FAR, ABSENT)                 # why a scan has no value; the first ones are told
KNOWN, UNDATED = "known", "without the date of the scan, from rows that agree"


class Covariates:
    """The covariates that a command line asks for.

    columns: name -> its columns, the table that was given first at first.
    """

    def __init__(self, asked: Sequence[str], keys: ScanKeys, reserved: Sequence[str], problems: list[str]):
        """asked: FILE[:COLUMN[=NAME],...]. reserved: names that no covariate may have. problems: the list to
        which problems are added."""
        self.keys, self.problems = keys, problems
        self.columns: dict[str, list[Column]] = {}
        self.tables: list[ClinicalTable] = []
        self.whole: list[ColumnReader] = []                # of files without chosen columns
        for text in asked:
            path, choices = split_choice(text)
            table = ClinicalTable(Path(path), "covariates", problems)
            self.tables.append(table)
            if table.frame is None:
                continue
            reader = ColumnReader(table, keys)
            if not choices:
                self.whole.append(reader)
            for column in reader.chosen(choices, reserved) if choices else reader.all_known():
                self.columns.setdefault(column.kind.name, []).append(column)
        self._check_names()
        for name, columns in self.columns.items():
            self._check_sources(name, columns)

    def people(self, own: Demographics | People) -> tuple[Demographics | People, list[str]]:
        """Age and sex that the other tables lack, from tables that were given whole, such as ADNIMERGE, and
        remarks on those that are taken."""
        remarks = []
        for reader in self.whole:
            if own.knows_age and own.knows_sex:
                break
            own = People(own, Demographics(reader.table, self.keys, reader.groups, needed=False))
            if own.taken:
                remarks.append(f"{' and '.join(own.taken)} from {reader.file}, where other tables have none")
        return own, remarks

    def _check_names(self) -> None:
        """Problems of names that would be one where columns are found whatever their case and punctuation."""
        first: dict[str, str] = {}
        for name, columns in self.columns.items():
            other = first.setdefault(simplified(name), name)
            if other != name:
                self.problems.append(f"covariates {name}, {columns[0].source}: differs from {other} in case "
                                     "or _ alone; give another name by COLUMN=NAME")

    def _check_sources(self, name: str, columns: list[Column]) -> None:
        """Problems of a covariate that several tables have: words in one, another assay, another unit."""
        first = columns[0]
        for other in columns[1:]:
            both = f"covariates {name}: {first.source} and {other.source}"
            if len(_types(first) | _types(other)) > 1:
                self.problems.append(f"{both} are numbers in one and words in the other; give one another "
                                     "name by FILE:COLUMN=NAME")
            elif first.kind.is_marker and first.heading != other.heading:
                self.problems.append(f"{both} are of two assays, whose values cannot be compared; choose "
                                     "one, or give one another name by FILE:COLUMN=NAME")
            elif is_thousandfold(_median(first), _median(other)):
                medians = f"{_median(first):.3g} and {_median(other):.3g}"
                self.problems.append(f"{both} have the medians {medians}: units that differ by a factor of "
                                     "1000? Bring both to one")

    def fill(self, labelled: list[dict], window_days: int) -> list[str]:
        """Add the covariates to rows of data_info.csv, in place. Returns a remark on each of them.

        window_days: most days between a scan and a value that changes with time.
        """
        remarks = [sentence for table in self.tables for sentence in table.describe()]
        for name, columns in self.columns.items():
            scans_of: dict[str, list[str]] = defaultdict(list)
            for row in labelled:
                when = row["scan_date"] or row["row_date"]
                value, reason = self._value(columns, row["ID"], when, window_days)
                row[name] = _as_text(value)
                scans_of[reason or (KNOWN if when else UNDATED)].append(row["ID"])
            remarks.append(_remark(name, columns, scans_of, window_days))
            values = [row[name] for row in labelled if row[name] is not None]
            if len(values) > 1 and len(set(values)) == 1:
                remarks.append(f"{name} is {values[0]} in all scans that have it, and tells nothing")
        return remarks

    def _value(self, columns: list[Column], scan: str, when: date | None,
               window_days: int) -> tuple[Cell, str]:
        """The value of a scan, of the first table that has one; else None and why."""
        if columns[0].kind.reads == GENOTYPE:              # of which all tables must agree
            rows = [row for column in columns for row in column.rows(scan, self.keys)]
            return pick_value(columns[0].kind, rows, when, window_days)
        reasons = []
        for column in columns:
            value, reason = pick_value(column.kind, column.rows(scan, self.keys), when, window_days)
            if not reason:
                return value, ""
            reasons.append(reason)
        return None, min(reasons, key=REASONS.index)


def pick_value(kind: Kind, rows: list[tuple[date | None, Cell]], when: date | None,
               window_days: int) -> tuple[Cell, str]:
    """The value of a scan among those of its subject, or None and why there is none.

    The nearest in time counts, of two equally near ones the earlier; two of one day must agree. Without the
    date of the scan, or without dates in its rows, all of them must agree. What lasts, such as years of
    education, has no window, and a genotype is the same in all rows.
    """
    if not rows:
        return None, ABSENT
    dated = [(day, value) for day, value in rows if day]
    is_alike = len({value for _, value in rows}) == 1
    if is_alike and (kind.lasts or not when or not dated):
        return rows[0][1], ""
    if kind.reads == GENOTYPE:
        return None, DIFFER
    if not when or not dated:
        return None, UNDECIDED
    distance, nearest = min((abs((day - when).days), day) for day, _ in dated)
    if distance > window_days and not kind.lasts:
        return None, FAR
    values = {value for day, value in dated if day == nearest}
    return (values.pop(), "") if len(values) == 1 else (None, DIFFER)


def _median(column: Column) -> float:
    """Median of the numbers of a column, 0 if it has none."""
    numbers = [value for value in column.values if isinstance(value, float)]
    return median(numbers) if numbers else 0.0


def _types(column: Column) -> set[type]:
    """Types of the values of a column: float, str, or none if it has no value."""
    return {type(value) for value in column.values if value is not None}


def _as_text(value: Cell) -> str | None:
    return f"{value:.10g}" if isinstance(value, float) else value


def _remark(name: str, columns: list[Column], scans_of: dict[str, list[str]], window_days: int) -> str:
    """Where a covariate comes from, how many scans have it, and why others do not.

    scans_of: what became of them -> scans.
    """
    kind = columns[0].kind
    text = f"{name} from {', then '.join(column.source for column in columns)}"
    has_dates = any(any(column.dates) for column in columns) and kind.reads != GENOTYPE
    if kind.reads == GENOTYPE:
        text += ", as the number of e4 alleles"
    elif has_dates:
        text += ", nearest in time" if kind.lasts else f", nearest within {window_days} days"
    else:
        text += ", without dates"
    known = len(scans_of[KNOWN]) + len(scans_of[UNDATED])
    text += f": known of {known} of {sum(map(len, scans_of.values()))} scans"
    if has_dates and scans_of[UNDATED]:
        text += f", {len(scans_of[UNDATED])} of them {UNDATED}"
    for reason in REASONS[:-1]:
        if scans_of[reason]:
            text += f"; {reason}: {listed(scans_of[reason], '')}"
    return text
