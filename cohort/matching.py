"""Which row of a table is a scan's: subjects by any spelling, the nearest date, and never a guess."""
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date

from cohort.clinical import MISSING, ClinicalTable, DateReader, dates_in, listed
from dataset import parse_id

SCAN_IDS = ("ID", "SCAN_ID", "PTID", "SUBJECT")
IDS = ("PTID", "RID", "ID", "SCAN_ID", "SUBJECT_ID", "PARTICIPANT_ID", "SUBJECT")            # an ADNI table may number its rows as ID
DATES = ("SCANDATE", "EXAMDATE", "ACQ_DATE", "DATE")
GREY, OTHER_TRACER = "grey zone", "another tracer"


class LeftOut(Exception):
    """A scan that gets no label: the reason, as it is counted, and what was found."""

    def __init__(self, reason: str, found: str):
        super().__init__(reason, found)
        self.reason, self.found = reason, found


@dataclass(frozen=True)
class Row:
    """A row of the table: its number in a spreadsheet, its date, its label, or why it gives none, and what is taken over from it."""
    number: int
    date: date | None
    label: int | None
    reason: str = ""
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Match:
    """The rows that a scan's label comes from (several where they are equally good and agree), and how they were found.

    days: from the scan to the row, None where the scan has no date.
    """
    rows: list[Row]
    how: str
    days: int | None = None

    def fact(self, name: str) -> object:
        """What all of its rows say, None where they differ."""
        values = {row.metadata.get(name) for row in self.rows}
        return values.pop() if len(values) == 1 else None

    @property
    def date(self) -> date | None:
        """The date that all of its rows share."""
        dates = {row.date for row in self.rows}
        return dates.pop() if len(dates) == 1 else None


class ScanKeys:
    """Who the scans are: the subject of each, and which rows of a table speak of it."""

    def __init__(self, scans: Iterable[str], subject_pattern: str):
        self.pattern = re.compile(subject_pattern)
        self.parts = {scan: parse_id(scan, self.pattern) for scan in scans}
        self.rosters = defaultdict(set)                    # ADNI's roster number RID -> the subjects that end with it
        for subject, _ in self.parts.values():
            if match := re.fullmatch(r"\d{3}S(\d{4,5})", subject):
                self.rosters[int(match[1])].add(subject)

    def subject(self, scan: str) -> str:
        """The subject of a scan."""
        return self.parts[scan][0]

    def group(self, table: ClinicalTable, asked: str = "", names: Sequence[str] = IDS) -> dict[tuple[str, str], list[int]]:
        """Positions of the table's rows by subject and what else their ID says; none, with a problem, if it has no column of IDs."""
        ids = table.column("id", names, asked, needed=True, ranked=True)
        groups, without, shared = defaultdict(list), [], set()
        if ids is None:
            return groups
        rosters = table.used["id"].upper() == "RID"
        for i, (row, text) in enumerate(zip(table.rows, ids, strict=True)):
            if text.upper() in MISSING:
                without.append(row)
            elif rosters and re.fullmatch(r"\d+(\.0)?", text):
                subjects = self.rosters.get(int(text.split(".")[0]), {text})
                shared |= subjects if len(subjects) > 1 else set()
                for subject in subjects - shared:
                    groups[subject, ""].append(i)
            else:
                groups[parse_id(text, self.pattern)].append(i)
        elsewhere = {subject for subject, _ in groups} - {subject for subject, _ in self.parts.values()}
        if elsewhere:
            table.remarks.append(f"{len(elsewhere)} of its {len({subject for subject, _ in groups})} subjects have no scan here")
        if without:
            table.remarks.append(f"{listed(without)} without {table.used['id']} passed over")
        if shared:
            table.remarks.append(f"{listed(sorted(shared), 'subject')} share an RID, by which alone their rows cannot be told apart")
        return groups

    def key(self, scan: str, groups: dict[tuple[str, str], list[int]]) -> tuple[str, str]:
        """Under which key rows speak of a scan: its own if there are any, else its subject's."""
        return self.parts[scan] if self.parts[scan] in groups else (self.subject(scan), "")


def scan_dates(keys: ScanKeys, table: ClinicalTable | None, problems: list[str]) -> Callable[[str], date | None]:
    """A function that gives the date of a scan, from its ID, else from the table of dates; None if neither knows.

    It raises LeftOut where they contradict themselves or each other.
    """
    texts = {scan: dates_in(rest) for scan, (_, rest) in keys.parts.items()}
    reader = DateReader({f"{scan}: {text}": text for scan, found in texts.items() for text in found})
    if reader.contradiction:
        problems.append(f"dates in the IDs of the scans: {reader.contradiction}")
    listed_dates, groups = [], {}
    if table is not None:
        groups, values = keys.group(table, names=SCAN_IDS), table.column("date", DATES, needed=True)
        listed_dates = table.dates("date", values) if values else []
    scans_of = Counter(keys.subject(scan) for scan in keys.parts)

    def when(scan: str) -> date | None:
        """The date of a scan, None if nothing says it. Raises LeftOut if there are several, or one that cannot be read."""
        try:
            own = {reader.read(text) for text in texts[scan]}
        except ValueError:
            raise LeftOut("no readable date in its ID", f"{', '.join(texts[scan])} is no date, or has not been yet") from None
        alone = scans_of[keys.subject(scan)] == 1          # otherwise a date of the subject does not say of which of its scans
        key = keys.key(scan, groups) if alone else keys.parts[scan]
        given = {listed_dates[i] for i in groups.get(key, [])} - {None}
        if len(own | given) > 1:
            places = [f"{day} in its ID" for day in sorted(own)] + [f"{day} in scan_dates" for day in sorted(given)]
            raise LeftOut("several dates", ", ".join(places))
        return next(iter(own | given), None)
    return when


def pick_rows(rows: list[Row], when: date | None, window_days: int, has_dates: bool, require_dates: bool, rivals: int) -> Match:
    """The row of a scan, out of those of its subject: the nearest in time, or for a scan without date the only one that it can be.

    The nearest row decides even if it gives no label: the scan then shows what failed there. Rows equally near, and all rows of a subject
    whose scan has no date, count where they agree on the label. has_dates: the table has dates; without any, it speaks of all scans of a
    subject. rivals: scans of the subject without a date, which cannot be more than their rows. Raises LeftOut.
    """
    if not rows:
        raise LeftOut("not in the table", "no row of its ID or subject")
    if not has_dates:
        return _agreeing(rows, "no dates in the table")
    if when:
        return _nearest(rows, when, window_days)
    if require_dates:
        raise LeftOut("no date", "and require_dates asks for one")
    match = _agreeing(rows, "no date")
    if rivals > len(match.rows):
        numbers = listed([row.number for row in match.rows])
        raise LeftOut("ambiguous", f"{rivals} scans of the subject have no date, and {numbers} cannot be all of them")
    return match


def _nearest(rows: list[Row], when: date, window_days: int) -> Match:
    distances = [(abs((row.date - when).days), row) for row in rows if row.date]
    if not distances:
        raise LeftOut("no row near its date", f"{listed([row.number for row in rows])} without a date")
    days = min(distance for distance, _ in distances)
    near = [row for distance, row in distances if distance == days]
    numbers = listed([row.number for row in near])
    if days > window_days:
        raise LeftOut("no row near its date", f"the nearest is {numbers}, {days} days from {when}; window_days is {window_days}")
    usable = [row for row in near if not row.reason]
    if not usable:
        raise LeftOut(min(row.reason for row in near), f"{numbers}, {days} days from {when}")
    if len({row.label for row in usable}) > 1:
        raise LeftOut("rows disagree", f"{numbers} are all {days} days from {when}, with different labels")
    return Match(usable, "nearest row" if len(usable) == 1 else "agreeing rows, equally near", days)


def _agreeing(rows: list[Row], why: str) -> Match:
    """The usable rows, if they agree; one whose scan the user may have, but that gives no label, agrees with none."""
    usable = [row for row in rows if not row.reason]
    if not usable:
        raise LeftOut(min(row.reason for row in rows), f"{listed([row.number for row in rows])}")
    open_ones = [row for row in rows if row.reason in (GREY, OTHER_TRACER)]
    if open_ones or len({row.label for row in usable}) > 1:
        numbers = listed([row.number for row in sorted(usable + open_ones, key=lambda row: row.number)])
        raise LeftOut("ambiguous", f"{why}, and {numbers} differ in " + ("what they would give" if open_ones else "their labels"))
    return Match(usable, "only row" if len(usable) == 1 else "agreeing rows")
