"""Columns of covariates in a table: those that are known by name, and those that a user names."""
import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

from cohort.clinical_table import ClinicalTable
from cohort.covariate_cells import Cell, read_cells
from cohort.covariate_kinds import ALLELES, ANY, BY_NAME, KNOWN, RATIOS, Kind, kind_of, rank
from cohort.matching import DATES, ScanKeys
from labels.cells import is_missing
from runtime.files import brief
from runtime.tables import simplified

DATE_COLUMNS = (*DATES, "VISDATE", "DRAWDATE", "DRAWDTE", "COLLECTION_DATE", "TEST_DATE")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Column:
    """A column of covariates in one table.

    source: column and file, for messages. values, dates: of each row, None where not known.
    """
    kind: Kind
    heading: str
    source: str
    values: list[Cell]
    dates: list[date | None]
    groups: dict[tuple[str, str], list[int]]               # row positions of each subject

    def rows(self, scan: str, keys: ScanKeys) -> list[tuple[date | None, Cell]]:
        """Dates and values of the rows of a scan, without those that have no value."""
        positions = self.groups.get(keys.key(scan, self.groups), [])
        return [(self.dates[i], self.values[i]) for i in positions if self.values[i] is not None]


def split_choice(text: str) -> tuple[str, list[str]]:
    """File and chosen columns of FILE[:COLUMN[=NAME],...].

    A colon may stand in the name of a file, and a colon or slash in that of a column: the first file that is
    there counts.
    """
    if os.path.isfile(text):                               # which takes names that are too long for a Path
        return text, []
    parts = text.split(":")
    starts = [":".join(parts[:i]) for i in range(1, len(parts))]
    files = [start for start in starts if os.path.isfile(start)]
    path = files[0] if files else text.rpartition(":")[0]
    columns = text.removeprefix(f"{path}:")
    if not path or (not files and ("/" in columns or "\\" in columns)):
        return text, []
    return path, [column.strip() for column in columns.split(",") if column.strip()]


class ColumnReader:
    """Reads the covariates of one table. Rows of subjects without a scan here are passed over."""

    def __init__(self, table: ClinicalTable, keys: ScanKeys):
        self.table, self.file = table, Path(table.name.removeprefix(f"{table.setting} ")).name
        self.groups = keys.group(table)
        self.here = {i for scan in keys.parts for i in self.groups.get(keys.key(scan, self.groups), [])}
        self.known_columns: dict[str, Column | None] = {}
        self.dates: list[date | None] = [None] * len(table.frame)
        if texts := table.column("date", DATE_COLUMNS, ranked=True):
            reader = table.date_reader("date", texts)
            self.dates = table.parsed("date", self._of_scans(texts), reader.read, "a date such as 2015-03-02")

    def all_known(self) -> list[Column]:
        """The columns that are known by name; none at all is a problem of the table."""
        found = [column for kind in KNOWN if (column := self.known(kind.name))]
        if not found:
            headings = brief(", ".join(self.table.headings))
            self.table.problem(f"no column that is known by its name, such as GENOTYPE, MMSCORE or pT217_F, "
                               f"found {headings}; choose by {self.file}:COLUMN")
        return found

    def chosen(self, choices: Sequence[str], reserved: Sequence[str]) -> list[Column]:
        """The columns that were asked for by COLUMN[=NAME]. reserved: names that none may take."""
        found: dict[str, Column] = {}
        for choice in choices:
            asked, _, name = (part.strip() for part in choice.partition("="))
            if not asked:
                self.table.problem(f"{choice!r} names no column; expected COLUMN or COLUMN=NAME")
                continue
            column = self._chosen(asked, name)
            if column is None:
                continue
            name, advice = column.kind.name, f"give another name by {asked}=NAME"
            if not NAME.fullmatch(name):
                self.table.problem(f"{choice!r}: {name!r} cannot be a column of data_info.csv; {advice}, of "
                                   "letters, digits and _")
            elif simplified(name) in map(simplified, reserved):
                if name.lower() in ("age", "sex"):
                    advice += "; --demographics takes age and sex"
                self.table.problem(f"{choice!r}: data_info.csv has its own column {name}; {advice}")
            elif simplified(name) in map(simplified, found):
                self.table.problem(f"{choice!r}: {name} stands twice; {advice}")
            else:
                found[name] = column
        return list(found.values())

    def _chosen(self, asked: str, name: str) -> Column | None:
        """The column of this heading, or known by this name; its absence is a problem."""
        headings = self.table.headings
        places = [i for i, heading in enumerate(headings) if simplified(heading) == simplified(asked)]
        if len(places) == 1:
            heading = headings[places[0]]
            kind = kind_of(heading) or BY_NAME.get(name) or Kind(_plain(heading), reads=ANY)
            return self._read(dataclasses.replace(kind, name=name or kind.name), places[0])
        if not places and asked in BY_NAME and (column := self.known(asked)):
            return dataclasses.replace(column, kind=dataclasses.replace(column.kind, name=name or asked))
        self.table.column(asked, [asked], needed=True)     # says that it is missing, or stands twice
        return None

    def known(self, name: str) -> Column | None:
        """The column of a covariate that is known, None if the table has none."""
        if name not in self.known_columns:
            self.known_columns[name] = self._known(BY_NAME[name])
        return self.known_columns[name]

    def _known(self, kind: Kind) -> Column | None:
        places = [i for i, heading in enumerate(self.table.headings) if kind_of(heading) is kind]
        places.sort(key=lambda i: rank(kind, self.table.headings[i]))
        if places:
            headings = [self.table.headings[i] for i in places]
            if len({rank(kind, heading) for heading in headings[:2]}) < len(headings[:2]):
                self.table.problem(f"more than one column for {kind.name}: {', '.join(headings)}; keep one")
                return None
            if others := headings[1:]:
                self.table.remarks.append(f"{kind.name} is taken from {headings[0]}; {self.file}:{others[0]} "
                                          f"takes {others[0]}")
            return self._read(kind, places[0])
        if kind.name == "apoe4":
            return self._alleles(kind)
        for name, dividend, divisor in RATIOS:
            if kind.name == name:
                return self._ratio(kind, self.known(dividend), self.known(divisor))
        return None

    def _read(self, kind: Kind, position: int) -> Column:
        heading = self.table.headings[position]
        texts = self._of_scans(self.table.frame.iloc[:, position].tolist())
        return self._column(kind, heading, read_cells(self.table, kind, heading, texts))

    def _of_scans(self, texts: list[str]) -> list[str]:
        """Cells, empty in rows that are of no scan here."""
        return [text if i in self.here else "" for i, text in enumerate(texts)]

    def _column(self, kind: Kind, heading: str, values: list[Cell]) -> Column:
        self.table.used[kind.name] = heading
        return Column(kind, heading, f"{heading} of {self.file}", values, self.dates, self.groups)

    def _alleles(self, kind: Kind) -> Column | None:
        """Numbers of e4 alleles of two columns with an allele each."""
        names = [simplified(heading) for heading in self.table.headings]
        if not all(name in names for name in ALLELES):
            return None
        pairs = zip(*(self.table.frame.iloc[:, names.index(name)] for name in ALLELES), strict=True)
        texts = ["" if is_missing(one) or is_missing(other) else f"{one}/{other}" for one, other in pairs]
        heading = " and ".join(ALLELES)
        return self._column(kind, heading, read_cells(self.table, kind, heading, self._of_scans(texts)))

    def _ratio(self, kind: Kind, dividend: Column | None, divisor: Column | None) -> Column | None:
        """The ratio of two columns of each row."""
        if dividend is None or divisor is None:
            return None
        pairs = list(zip(dividend.values, divisor.values, strict=True))
        values = [one / other if one is not None and other is not None else None for one, other in pairs]
        if any(values) and median(value for value in values if value is not None) > 1:
            self.table.problem(f"most of {dividend.heading} are greater than {divisor.heading}, which is "
                               "not so in one unit; bring both to one")
        return self._column(kind, f"{dividend.heading} / {divisor.heading}", values)


def _plain(heading: str) -> str:
    """A name for data_info.csv that is made of a heading."""
    return re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_")
