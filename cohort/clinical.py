"""Tables of a study as they were downloaded: columns under any of their names, and strict dates, codes and numbers."""
import difflib
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from runtime.files import brief, read_table
from utils import InputError

MISSING = ("", "NA", "N/A", "NAN", "NONE", ".")
MISSING_CODES = (*MISSING, "-4", "-4.0", "-1", "-1.0")     # ADNI's; a Centiloid may be -4, so not everywhere
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
TIME = r"(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?"      # that spreadsheets add
YEAR_FIRST = re.compile(r"(\d{4})(?:([-/._])(\d{1,2})\2(\d{1,2})|(\d{2})(\d{2}))" + TIME)
NAMED = re.compile(r"(\d{1,2})[- ]?([A-Za-z]{3})[- ]?(\d{4}|\d{2})" + TIME)
NUMERIC = re.compile(r"(\d{1,2})(?:/(\d{1,2})/(\d{2})|([-/._])(\d{1,2})\4(\d{4}))" + TIME)   # a year of two digits only behind slashes
IN_AN_ID = re.compile(r"(?<![A-Za-z0-9])(?:((?:19|20)\d\d)(?:([-_.])\d{1,2}\2\d{1,2}|[01]\d[0-3]\d)|\d{1,2}-?[A-Za-z]{3}-?(?:19|20)\d\d"
                      r"|\d{1,2}([-_.])\d{1,2}\3(?:19|20)\d\d)(?![A-Za-z0-9])")
DATE_FORMS = "2015-03-02, 20150302, 02-Mar-2015, or 03/02/2015 with the month first"


def plain(name: str) -> str:
    """A column's name without case, blanks and punctuation: in these, releases of a table differ."""
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def listed(rows: Sequence, what: str = "row") -> str:
    """Numbers of rows, or names, for a message: the first five of them."""
    text = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
    return f"{what}{'s' * (len(rows) > 1)} {text}" if what else text


class ClinicalTable:
    """A CSV whose columns are asked for by what they mean. Every problem is noted instead of raised.

    setting: by which the file was given. problems: where they are noted, with the file. used: role -> column, for what was found.
    """

    def __init__(self, path: Path, setting: str, problems: list[str]):
        self.name, self.setting, self.problems = f"{setting} {path}", setting, problems
        self.used: dict[str, str] = {}
        self.remarks: list[str] = []
        try:
            self.frame: pd.DataFrame | None = read_table(path)
        except InputError as error:
            self.frame = None
            problems.append(f"{setting} {error}")
            return
        bare = {name: re.sub(r"\.\d+$", "", name) for name in self.frame.columns}            # pandas numbers the second of two names
        self.headings = [bare[name] if bare[name] in bare else name for name in self.frame.columns]
        self.rows = [int(index) + 2 for index in self.frame.index]                        # as a spreadsheet counts them
        if len(self.headings) == 1 and re.search(r"[;\t]", self.headings[0]):
            self.frame = None
            self.problem("its columns are not separated by commas; save it as CSV with commas")
        elif self.frame.empty:
            self.problem("holds no row")

    def describe(self) -> list[str]:
        """Which columns were read, and what was found in them on the way."""
        columns = ", ".join(f"{role} from {column}" for role, column in self.used.items())
        return [f"{self.name}: {columns}", *(f"{self.name}: {remark}" for remark in self.remarks)]

    def problem(self, text: str) -> None:
        """Note what is wrong in this file."""
        self.problems.append(f"{self.name}: {text}")

    def column(self, role: str, names: Sequence[str], asked: str = "", needed: bool = False, ranked: bool = False) -> list[str] | None:
        """The values of the column for a role, without blanks around them; None, and if it is needed a problem, where there is none.

        names: that it goes by. asked: the one that the user gave in the setting <role>_column. ranked: of several names the first counts;
        otherwise they are a problem.
        """
        if self.frame is None:
            return None
        wanted = dict.fromkeys(plain(name) for name in ([asked] if asked else names))
        found = [i for name in wanted for i, heading in enumerate(self.headings) if plain(heading) == name]
        if ranked and found:
            found = [i for i in found if plain(self.headings[i]) == plain(self.headings[found[0]])]
        if len(found) == 1:
            self.used[role] = self.headings[found[0]]
            return self.frame.iloc[:, found[0]].str.strip().tolist()
        if found:
            places = ", ".join(f"{self.headings[i]} (column {i + 1})" for i in found)
            choose = f" or choose with --{role}_column" if self.setting == "table" and role in ("id", "date", "label") and not asked else ""
            self.problem(f"more than one column for the {role}: {places}; keep one{choose}")
        elif needed or asked:
            self.problem(self._missing(role, names, asked))
        return None

    def _missing(self, role: str, names: Sequence[str], asked: str) -> str:
        headings = {plain(heading): heading for heading in self.headings}
        close = [headings[name] for wanted in ([asked] if asked else names)
                 for name in difflib.get_close_matches(plain(wanted), headings, n=2, cutoff=0.75)]
        hint = f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
        if close and self.setting == "table" and role in ("id", "date", "label"):
            hint += f" Then --{role}_column {close[0]}"
        expected = f"{role}_column {asked!r} is not there" if asked else f"no column for the {role}; expected {' or '.join(names)}"
        return f"{expected}, found {brief(', '.join(self.headings))}{hint}"

    def parsed(self, role: str, values: list[str], parse: Callable, expected: str, missing: Sequence[str] = MISSING_CODES) -> list:
        """parse(value) for each value, None where it is missing; a problem that names the rows where parse refuses it."""
        result, bad = [], []
        for row, value in zip(self.rows, values, strict=True):
            try:
                result.append(None if value.upper() in missing else parse(value))
            except (ValueError, KeyError):
                result.append(None)
                bad.append((row, value))
        if bad:
            rows = listed([f"{row} ({brief(repr(value))})" for row, value in bad])
            self.problem(f"column {self.used[role]}: {rows}; expected {expected}")
        return result

    def dates(self, role: str, values: list[str]) -> list[date | None]:
        """The dates of a column, None where there is none."""
        return self.parsed(role, values, self.date_reader(role, values).read, f"a date such as {DATE_FORMS}")

    def date_reader(self, role: str, values: list[str], short_century: int = 2000) -> "DateReader":
        """What reads the dates of this column. That they contradict each other is a problem, how they are read a remark."""
        reader = DateReader(dict(zip(self.rows, values, strict=True)), short_century)
        if reader.contradiction:
            self.problem(f"column {self.used[role]}: {reader.contradiction}")
        elif reader.remark:
            self.remarks.append(f"{self.used[role]}: {reader.remark}")
        return reader


class DateReader:
    """Reads dates of one source strictly. Whether 03/04/2015 is March or April is decided for all of them together.

    ADNI writes the month first. A date such as 25/03/2015 shows that the source writes the day first; if there is one of each kind,
    contradiction says so. values: where it stands -> text. short_century: of years of two digits. remark: how the order was found.
    """

    def __init__(self, values: dict, short_century: int = 2000):
        self.short_century = short_century
        numeric = {where: match for where, text in values.items() if (match := NUMERIC.fullmatch(text))}
        day_first = [where for where, match in numeric.items() if int(match[1]) > 12]
        month_first = [where for where, match in numeric.items() if int(match[2] or match[5]) > 12]
        self.day_first = bool(day_first)
        self.contradiction = self.remark = ""
        if day_first and month_first:
            self.contradiction = (f"{values[day_first[0]]} ({day_first[0]}) has the day first, {values[month_first[0]]} "
                                  f"({month_first[0]}) the month; bring all to one form, best 2015-03-02")
        elif numeric:
            how = f"day first, as in {values[day_first[0]]}" if day_first else "month first, as ADNI writes" \
                + (f" and as in {values[month_first[0]]}" if month_first else "; no date here tells")
            self.remark = f"dates are read with the {how}"

    def read(self, text: str) -> date | None:
        """The date of a text, a time behind it being left out; None if its source contradicts itself.

        Raises ValueError if it is no date, or lies in the future.
        """
        if match := YEAR_FIRST.fullmatch(text):
            year, month, day = match[1], match[3] or match[5], match[4] or match[6]
        elif match := NAMED.fullmatch(text):
            year, month, day = match[3], MONTHS.index(match[2].lower()) + 1, match[1]
        elif match := NUMERIC.fullmatch(text):
            if self.contradiction:
                return None                                # told already
            first, second, year = match[1], match[2] or match[5], match[3] or match[6]
            month, day = (second, first) if self.day_first else (first, second)
        else:
            raise ValueError(text)
        found = date(int(year) + (self.short_century if len(year) == 2 else 0), int(month), int(day))
        if not date(1900, 1, 1) <= found <= date.today():
            raise ValueError(text)
        return found


def dates_in(text: str) -> list[str]:
    """What looks like a date in the text, each once."""
    return list(dict.fromkeys(match[0] for match in IN_AN_ID.finditer(text)))
