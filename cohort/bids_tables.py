"""Tables of a BIDS dataset: dates, ages and sexes of its visits."""
import csv
import re
from datetime import date, datetime
from pathlib import Path

from cohort.bids_files import BidsFile, Listing
from runtime.files import brief, read_text
from utils import InputError

SHIFTED = 1925                                             # dates up to this year are shifted, says BIDS


class Visits:
    """What the tables of a dataset say of its visits: dates, ages, sexes. Values that cannot be read are as
    missing; remarks says how many."""

    def __init__(self, listing: Listing):
        self.remarks: list[str] = []
        self.sexes: dict[str, str] = {}
        self.ages: dict[tuple[str, str], float] = {}       # of a session, or of a subject as ('sub', '')
        self.dates: dict[tuple[str, str], date] = {}       # of a session
        self.file_dates: dict[str, date] = {}              # name of an image -> its date
        self.unread: list[str] = []
        for folder in listing.tables.values():
            for path in folder:
                self._read(path)
        if self.unread:
            self.remarks.append(f"{len(self.unread)} dates in tables are not written as BIDS does and not "
                                f"read, such as {self.unread[0]}")

    def _read(self, path: Path) -> None:
        if path.name != "participants.tsv" and not path.name.endswith(("_sessions.tsv", "_scans.tsv")):
            return
        try:
            rows = read_tsv(path)
        except InputError as error:
            self.remarks.append(str(error))
            return
        for row in rows:
            if path.name.endswith("_scans.tsv"):
                self._note_date(self.file_dates, row.get("filename", "").split("/")[-1], row)
            else:
                self._note_person(path, row)

    def _note_person(self, path: Path, row: dict[str, str]) -> None:
        """Take a row of participants.tsv, or of sub-*_sessions.tsv."""
        subject = row.get("participant_id", "").removeprefix("sub-")
        session = ""
        if path.name != "participants.tsv":
            subject = path.name.split("_")[0].removeprefix("sub-")
            session = row.get("session_id", "").removeprefix("ses-")
            self._note_date(self.dates, (subject, session), row)
        if match := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\+?", row.get("age", "")):
            self.ages[subject, session] = float(match[1])
        sex = row.get("sex", row.get("gender", "")).upper()
        if sex in ("M", "F", "MALE", "FEMALE"):
            self.sexes[subject] = sex[0]

    def _note_date(self, dates: dict, key, row: dict[str, str]) -> None:
        text = row.get("acq_time", row.get("examination_date", ""))
        if text.upper() in ("", "N/A", "NA"):
            return
        try:
            dates[key] = datetime.fromisoformat(text[:10]).date()
        except ValueError:
            self.unread.append(text)

    def date_of(self, image: BidsFile) -> date | None:
        """The date of an image: its own in *_scans.tsv, else that of its session; None if unknown."""
        return self.file_dates.get(image.path.name, self.dates.get(image.visit))

    def age_at(self, visit: tuple[str, str], when: date | None, visits: dict[tuple[str, str], date | None]
            ) -> float | None:
        """Age in years at a visit, None if unknown.

        That of the session, else that of participants.tsv, which is taken for the subject's first visit.
        when: date of the visit. visits: of this subject -> date.
        """
        if visit in self.ages:
            return self.ages[visit]
        age = self.ages.get((visit[0], ""))
        if age is None or len(visits) == 1:
            return age
        if when is None or None in visits.values():
            return None
        return round(age + (when - min(visits.values())).days / 365.25, 1)


def read_tsv(path: Path) -> list[dict[str, str]]:
    """The rows of a table as column -> text. Columns stand between tabs, or as a spreadsheet saved them
    between commas or semicolons. Raises InputError if it cannot be read."""
    lines = read_text(path).splitlines()
    header = lines[0] if lines else ""
    separator = next((sign for sign in "\t;," if sign in header), "\t")
    try:
        rows = list(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a table: {brief(error)}") from error
    names = [name.strip().lower() for name in rows[0]] if rows else []
    return [dict(zip(names, (cell.strip() for cell in row), strict=False)) for row in rows[1:]]
