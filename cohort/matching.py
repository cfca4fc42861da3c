"""Rows of a table matched to scans: subjects by any spelling, the nearest date, and never a guess."""
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

from cohort.clinical_table import ClinicalTable
from cohort.dates import DateReader, dates_in
from dataset import parse_id
from labels.cells import MISSING
from runtime.logs import readable
from runtime.near_names import NearNames
from runtime.tables import listed

SCAN_IDS = ("ID", "SCAN_ID", "PTID", "SUBJECT")
# PTID before ID, because an ADNI table may number its rows as ID.
IDS = ("PTID", "RID", "ID", "SCAN_ID", "SUBJECT_ID", "PARTICIPANT_ID", "SUBJECT")
DATES = ("SCANDATE", "EXAMDATE", "ACQ_DATE", "DATE")
GREY, OTHER_TRACER = "grey zone", "another tracer"         # reasons of rows whose scan may be one of ours
UNREADABLE_LABEL, UNREADABLE_DATE = "label cannot be read", "date of its row cannot be read"


class LeftOut(Exception):
    """A scan gets no label. reason: as it is counted. found: what was found."""

    def __init__(self, reason: str, found: str):
        super().__init__(reason, found)
        self.reason, self.found = reason, found


@contextmanager
def collect_left_out(scan: str, left_out: list[dict]) -> Iterator[None]:
    """A block that may raise LeftOut for a scan, which then becomes a row of left_out.csv."""
    try:
        yield
    except LeftOut as cause:
        left_out.append({"ID": readable(scan), "reason": cause.reason, "found": cause.found})


@dataclass(frozen=True)
class Row:
    """A row of the table."""
    number: int                                            # in a spreadsheet
    date: date | None
    label: int | None
    reason: str = ""                                       # why it gives no label
    metadata: dict = field(default_factory=dict)           # column -> value, taken over to data_info.csv


@dataclass(frozen=True)
class Match:
    """The rows that the label of a scan comes from: several where they are equally good and agree.

    how: how they were found. days: from the scan to the row, None where the scan has no date.
    """
    rows: list[Row]
    how: str
    days: int | None = None

    def shared(self, name: str) -> object:
        """The metadata of this name that all rows share, None where they differ."""
        values = {row.metadata.get(name) for row in self.rows}
        return values.pop() if len(values) == 1 else None

    @property
    def date(self) -> date | None:
        """The date that all rows share, None where they differ."""
        dates = {row.date for row in self.rows}
        return dates.pop() if len(dates) == 1 else None


# ---------------------------------------------------------------- whose row it is

class ScanKeys:
    """Subjects of the scans, and the rows of a table that belong to each scan.

    parts: scan -> subject and what else its ID says. rosters: ADNI's roster number RID -> subjects that end
    with it.
    """

    def __init__(self, scans: Iterable[str], subject_pattern: str):
        """subject_pattern: regular expression whose group is the subject of an ID."""
        self.pattern = re.compile(subject_pattern)
        self.parts = {scan: parse_id(scan, self.pattern) for scan in scans}
        self.rosters: dict[int, set[str]] = defaultdict(set)
        for subject, _ in self.parts.values():
            if match := re.fullmatch(r"\d{3}S(\d{4,5})", subject):
                self.rosters[int(match[1])].add(subject)

    def subject(self, scan: str) -> str:
        """The subject of a scan."""
        return self.parts[scan][0]

    def key(self, scan: str, groups: dict[tuple[str, str], list[int]]) -> tuple[str, str]:
        """The key of the rows of a scan in groups: the scan's own if it has rows, else its subject's."""
        return self.parts[scan] if self.parts[scan] in groups else (self.subject(scan), "")

    def group(self, table: ClinicalTable, asked: str = "", names: Sequence[str] = IDS
              ) -> dict[tuple[str, str], list[int]]:
        """Positions of the table's rows by subject and what else their ID says.

        asked, names: of the column of IDs, as in ClinicalTable.column. Without such a column there are no
        groups, and the table has a problem.
        """
        ids = table.column("id", names, asked, needed=True, ranked=True)
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        if ids is None:
            return groups
        without, shared = [], set()
        parsed: dict[str, tuple[str, str]] = {}            # an ID stands in many rows
        is_roster = table.used["id"].upper() == "RID"
        for i, (row, text) in enumerate(zip(table.rows, ids, strict=True)):
            if text.upper() in MISSING:
                without.append(row)
            elif is_roster and re.fullmatch(r"\d+(\.0)?", text):
                subjects = self.rosters.get(int(text.split(".")[0]), {text})
                if len(subjects) > 1:
                    shared |= subjects
                for subject in subjects - shared:
                    groups[subject, ""].append(i)
            else:
                if text not in parsed:
                    parsed[text] = parse_id(text, self.pattern)
                groups[parsed[text]].append(i)
        self._remark(table, groups, without, shared)
        return groups

    def _remark(self, table: ClinicalTable, groups: dict, without: list[int], shared: set[str]) -> None:
        """Remark on rows of no scan here. without: rows without ID. shared: subjects that share an RID."""
        here = {subject for subject, _ in self.parts.values()}
        subjects = {subject for subject, _ in groups}
        if elsewhere := subjects - here:
            table.remarks.append(f"{len(elsewhere)} of its {len(subjects)} subjects have no scan here"
                                 + _nearest_name(elsewhere, here - subjects))
        if without:
            table.remarks.append(f"{listed(without)} without {table.used['id']} passed over")
        if shared:
            table.remarks.append(f"{listed(sorted(shared), 'subject')} share an RID, by which alone their "
                                 "rows cannot be told apart")


def _nearest_name(names: set[str], others: set[str]) -> str:
    """The end of a message: the first of the names that is another but for zeros, case and the like."""
    near = NearNames(others)
    for name in sorted(names):
        if found := near.of(name):
            return f", such as {name}; is it {found[0]}? They differ in {found[1]}"
    return ""


class ScanDates:
    """Dates of the scans, from their IDs, else from a table of dates."""

    def __init__(self, keys: ScanKeys, table: ClinicalTable | None, problems: list[str]):
        """table: of IDs and dates, if there is one. problems: the list to which problems are added."""
        self.keys = keys
        self.texts = {scan: dates_in(rest) for scan, (_, rest) in keys.parts.items()}
        self.scans_of = Counter(keys.subject(scan) for scan in keys.parts)
        self.groups: dict[tuple[str, str], list[int]] = {}
        self.listed: list[date | None] = []
        places = {}
        for scan, found in self.texts.items():
            for text in found:
                places[f"{scan}: {text}"] = text
        self.reader = DateReader(places)
        if self.reader.contradiction:
            problems.append(f"dates in the IDs of the scans: {self.reader.contradiction}")
        if table is not None:
            self.groups = keys.group(table, names=SCAN_IDS)
            if values := table.column("date", DATES, needed=True):
                self.listed = table.dates("date", values)

    def of(self, scan: str) -> date | None:
        """The date of a scan, None if nothing says it.

        Raises LeftOut for several dates, or one that cannot be read.
        """
        try:
            own = {self.reader.read(text) for text in self.texts[scan]}
        except ValueError:
            raise LeftOut("no readable date in its ID",
                          f"{', '.join(self.texts[scan])} is no date, or has not been yet") from None
        # a date of the subject does not say of which of its scans, unless it has only one
        alone = self.scans_of[self.keys.subject(scan)] == 1
        key = self.keys.key(scan, self.groups) if alone else self.keys.parts[scan]
        given = {self.listed[i] for i in self.groups.get(key, [])} - {None}
        if len(own | given) > 1:
            places = [f"{day} in its ID" for day in sorted(own)]
            places += [f"{day} in scan_dates" for day in sorted(given)]
            raise LeftOut("several dates", ", ".join(places))
        return next(iter(own | given), None)


# ---------------------------------------------------------------- which of a subject's rows

def pick_rows(rows: list[Row], when: date | None, window_days: int, has_dates: bool, require_dates: bool,
              rivals: int) -> Match:
    """The row of a scan among those of its subject: the nearest in time, or the only one that it can be.

    The nearest row decides even if it gives no label: the scan is then left out for the reason of that row.
    Rows that are equally near, and all rows of a subject whose scan has no date, count where they agree on
    the label.

    when: date of the scan, None if unknown. has_dates: the table has dates; one without any applies to all
    scans of a subject. rivals: scans of the subject without a date, of which there cannot be more than rows.
    Raises LeftOut.
    """
    if undated := [row.number for row in rows if row.reason == UNREADABLE_DATE]:
        raise LeftOut(UNREADABLE_DATE, listed(undated))    # it might be the nearest
    if not has_dates:
        return _agreeing(rows, "no dates in the table")
    if when:
        return _nearest(rows, when, window_days)
    if require_dates:
        raise LeftOut("no date", "and require_dates asks for one")
    match = _agreeing(rows, "no date")
    if rivals > len(match.rows):
        numbers = listed([row.number for row in match.rows])
        raise LeftOut("ambiguous",
                      f"{rivals} scans of the subject have no date, and {numbers} cannot be all of them")
    return match


def _nearest(rows: list[Row], when: date, window_days: int) -> Match:
    """The usable rows nearest to a date, if they lie within the window and agree; a row in the grey zone or
    with an unreadable label agrees with none. Another tracer, or one that failed quality control, is another
    scan, and has no say."""
    distances = [(abs((row.date - when).days), row) for row in rows if row.date]
    if not distances:
        raise LeftOut("no row near its date", f"{listed([row.number for row in rows])} without a date")
    days = min(distance for distance, _ in distances)
    near = [row for distance, row in distances if distance == days]
    numbers = listed([row.number for row in near])
    if days > window_days:
        raise LeftOut("no row near its date",
                      f"the nearest is {numbers}, {days} days from {when}; window_days is {window_days}")
    usable = [row for row in near if not row.reason]
    if not usable:
        raise LeftOut(min(row.reason for row in near), f"{numbers}, {days} days from {when}")
    undecided = [row for row in near if row.reason in (GREY, UNREADABLE_LABEL)]
    if undecided or len({row.label for row in usable}) > 1:
        differ = "and differ in what they would give" if undecided else "with different labels"
        raise LeftOut("rows disagree", f"{numbers} are all {days} days from {when}, {differ}")
    return Match(usable, "nearest row" if len(usable) == 1 else "agreeing rows, equally near", days)


def _agreeing(rows: list[Row], why: str) -> Match:
    """The usable rows, if they agree; a row in the grey zone, of another tracer or with an unreadable label
    agrees with none.

    why: no date decides, for the message.
    """
    usable = [row for row in rows if not row.reason]
    if not usable:
        raise LeftOut(min(row.reason for row in rows), listed([row.number for row in rows]))
    undecided = [row for row in rows if row.reason in (GREY, OTHER_TRACER, UNREADABLE_LABEL)]
    if undecided or len({row.label for row in usable}) > 1:
        numbers = listed(sorted(row.number for row in usable + undecided))
        differ = "what they would give" if undecided else "their labels"
        raise LeftOut("ambiguous", f"{why}, and {numbers} differ in {differ}")
    return Match(usable, "only row" if len(usable) == 1 else "agreeing rows")
