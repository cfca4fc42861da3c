"""Tables of a study as they were downloaded: columns by any of their names, and strict dates and numbers."""
import difflib
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from cohort.dates import DATE_FORMS, DateReader
from labels.cells import MISSING_CODES
from runtime.files import brief
from runtime.tables import listed, read_table, simplified
from utils import InputError

UNREADABLE = object()
CHOSEN = ("id", "date", "label")                           # roles whose column a setting of prepare can name


class ClinicalTable:
    """A table whose columns are asked for by their role. Problems are collected instead of raised.

    used: role -> name of the column that was found for it. rows: number of each row in a spreadsheet.
    remarks: how the table was read. frame: the cells as text; None if the file cannot be used.
    unreadable: role -> positions of the rows whose cell cannot be read.
    """

    def __init__(self, path: Path, setting: str, problems: list[str]):
        """setting: its name, by which the file was given. problems: the list to which problems are added."""
        self.name, self.setting, self.problems = f"{setting} {path}", setting, problems
        self.used: dict[str, str] = {}
        self.remarks: list[str] = []
        self.unreadable: dict[str, set[int]] = {}
        try:
            self.frame: pd.DataFrame | None = read_table(path, remarks=self.remarks)
        except InputError as error:
            self.frame = None
            problems.append(f"{setting} {error}")
            return
        self.headings = list(self.frame.columns)
        self.rows = [int(index) + 2 for index in self.frame.index]      # as a spreadsheet counts them
        if self.frame.empty:
            self.problem("holds no row")

    def describe(self) -> list[str]:
        """Sentences on which columns were read, and on what was found in them."""
        columns = ", ".join(f"{role} from {column}" for role, column in self.used.items())
        sentences = [f"{self.name}: {columns}"]
        for remark in self.remarks:
            sentences.append(f"{self.name}: {remark}")
        return sentences

    def problem(self, text: str) -> None:
        """Add a problem of this file to the list."""
        self.problems.append(f"{self.name}: {text}")

    def column(self, role: str, names: Sequence[str], asked: str = "", needed: bool = False,
               ranked: bool = False) -> list[str] | None:
        """Values of the column for a role, stripped of blanks; None if there is no such column.

        names: that the column goes by. asked: the one name that the user gave for it instead, which must be
        there. needed: its absence is a problem. ranked: of several names the first one counts; without it,
        several columns are a problem.
        """
        if self.frame is None:
            return None
        found = self._positions([asked] if asked else names, ranked)
        if len(found) == 1:
            self.used[role] = self.headings[found[0]]
            return self.frame.iloc[:, found[0]].tolist()
        if found:
            self.problem(self._ambiguous(role, found, asked))
        elif needed or asked:
            self.problem(self._missing(role, names, asked))
        return None

    def _positions(self, names: Sequence[str], ranked: bool) -> list[int]:
        """Positions of the columns of these names; ranked: those of the first name that there is."""
        found: list[int] = []
        for name in dict.fromkeys(simplified(name) for name in names):
            if not (ranked and found):
                found += [i for i, heading in enumerate(self.headings) if simplified(heading) == name]
        return found

    def _ambiguous(self, role: str, found: list[int], asked: str) -> str:
        places = ", ".join(f"{self.headings[i]} (column {i + 1})" for i in found)
        can_choose = self.setting == "table" and role in CHOSEN and not asked
        choose = f" or choose with --{role}_column" if can_choose else ""
        return f"more than one column for the {role}: {places}; keep one{choose}"

    def _missing(self, role: str, names: Sequence[str], asked: str) -> str:
        headings = {simplified(heading): heading for heading in self.headings}
        close = []
        for wanted in [asked] if asked else names:
            for name in difflib.get_close_matches(simplified(wanted), headings, n=2, cutoff=0.75):
                close.append(headings[name])
        hint = f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
        if close and self.setting == "table" and role in CHOSEN:
            hint += f" Then --{role}_column {close[0]}"
        expected = f"no column for the {role}; expected {' or '.join(names)}"
        if asked:
            expected = f"{role}_column {asked!r} is not there"
        return f"{expected}, found {brief(', '.join(self.headings))}{hint}"

    def parsed(self, role: str, values: list[str], parse: Callable, expected: str,
               missing: Sequence[str] = MISSING_CODES) -> list:
        """parse(value) for each value, None where it is missing.

        Values for which parse raises ValueError or KeyError become None. Their rows are named in a remark and
        noted in .unreadable; if half of the column is so, it is another one than was meant, and a problem.
        role: of the column. expected: values that parse takes, for the message.
        """
        read = {}                                          # each value once: most stand in many rows
        for value in set(values):
            if value.upper() not in missing:
                try:
                    read[value] = parse(value)
                except (ValueError, KeyError):
                    read[value] = UNREADABLE
        bad = {}
        for i, value in enumerate(values):
            if read.get(value) is UNREADABLE:
                bad[i] = f"{self.rows[i]} ({brief(repr(value))})"
        filled = sum(value in read for value in values)
        result = [None if i in bad else read.get(value) for i, value in enumerate(values)]
        self.unreadable[role] = set(bad)
        if bad:
            what = f"column {self.used[role]}: {listed(list(bad.values()))}"
            if 2 * len(bad) >= filled:
                self.problem(f"{what}; expected {expected}")
            else:
                self.remarks.append(f"{what} cannot be read and counts as missing; expected {expected}")
        return result

    def dates(self, role: str, values: list[str]) -> list[date | None]:
        """The dates of a column, None where there is none."""
        return self.parsed(role, values, self.date_reader(role, values).read, f"a date such as {DATE_FORMS}")

    def date_reader(self, role: str, values: list[str], short_century: int = 2000) -> DateReader:
        """Reader of the dates of a column; a contradiction is a problem, how the order was found a remark."""
        reader = DateReader(dict(zip(self.rows, values, strict=True)), short_century)
        if reader.contradiction:
            self.problem(f"column {self.used[role]}: {reader.contradiction}")
        elif reader.remark:
            self.remarks.append(f"{self.used[role]}: {reader.remark}")
        return reader
