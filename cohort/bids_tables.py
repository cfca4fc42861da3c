"""Tables of a BIDS dataset: dates, ages and sexes of its visits.

All go through the one reader of tables, at about 1 ms each, and cells are read as prepare reads them.
"""
from collections import defaultdict
from datetime import date, datetime
from pathlib import Path

from cohort.bids_files import BidsFile, Listing
from cohort.dates import NUMERIC, DateReader
from labels.cells import ages_remark, is_missing, read_age, read_sex
from runtime.files import brief
from runtime.tables import SEPARATORS, read_table
from utils import InputError

SHIFTED = 1925                                             # dates up to this year are shifted, says BIDS
AS_USUAL = f"its columns are separated by {SEPARATORS[chr(9)]}"      # a remark that tells nothing here


class Visits:
    """What the tables of a dataset say of its visits: dates, ages, sexes. Values that cannot be read are as
    missing; remarks says how many, and how the tables were read."""

    def __init__(self, listing: Listing):
        self.remarks: list[str] = []
        self.sexes: dict[str, str] = {}
        self.ages: dict[tuple[str, str], float] = {}       # of a session, or of a subject as ('sub', '')
        self.dates: dict[tuple[str, str], date] = {}       # of a session
        self.file_dates: dict[str, date] = {}              # name of an image -> its date
        self.age_texts: set[str] = set()
        self.unread: dict[str, list[str]] = defaultdict(list)          # ages, dates -> cells
        self.read_as: dict[str, list[Path]] = defaultdict(list)        # remark of the reader -> tables
        for folder in listing.tables.values():
            for path in folder:
                self._read(path)
        self._add_remarks()

    def _add_remarks(self) -> None:
        """Add in a line each how tables were read, and in one what could not be."""
        for remark, paths in self.read_as.items():
            more = f" (and {len(paths) - 1} more tables)" if len(paths) > 1 else ""
            self.remarks.append(f"{paths[0]}{more}: {remark}")
        if bounds := ages_remark(self.age_texts):
            self.remarks.append(bounds)
        counts = [f"{len(cells)} {what} (such as {brief(cells[0])})" for what, cells in self.unread.items()]
        if counts:
            self.remarks.append(f"{' and '.join(counts)} in tables cannot be read and count as missing; "
                                "expected ages from 1 to 120 years, and dates such as 2015-03-02 or "
                                "02-Mar-2015")

    def _read(self, path: Path) -> None:
        if path.name != "participants.tsv" and not path.name.endswith(("_sessions.tsv", "_scans.tsv")):
            return
        found: list[str] = []
        try:
            table = read_table(path, remarks=found)
        except InputError as error:
            self.remarks.append(str(error))
            return
        for remark in found:
            if remark != AS_USUAL:
                self.read_as[remark].append(path)
        names = [name.lower() for name in table.columns]
        for cells in table.to_numpy().tolist():
            row = {name: cell for name, cell in zip(names, cells, strict=True) if not is_missing(cell)}
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
        if "age" in row:
            try:
                self.ages[subject, session] = read_age(row["age"])
                self.age_texts.add(row["age"])
            except ValueError:
                self.unread["ages"].append(row["age"])
        sex = row.get("sex", row.get("gender"))
        if sex:
            self.sexes[subject] = read_sex(sex)

    def _note_date(self, dates: dict, key, row: dict[str, str]) -> None:
        text = row.get("acq_time", row.get("examination_date"))
        if text is None:
            return
        try:
            dates[key] = read_date(text)
        except ValueError:
            self.unread["dates"].append(text)

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


def read_date(text: str) -> date:
    """The date of a time as BIDS writes it, of any year, or of another form that leaves no choice of day and
    month. Raises ValueError for anything else."""
    try:
        return datetime.fromisoformat(text[:10]).date()
    except ValueError:
        if NUMERIC.fullmatch(text):                        # 03/02/2012: nobody says which is the month
            raise
        return DateReader({}).read(text)
