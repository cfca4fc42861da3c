"""Age and sex of the scans, from ADNI's PTDEMOG or ADNIMERGE, or from columns age and sex of any table."""
import re
from datetime import date

from cohort.clinical_table import ClinicalTable
from cohort.matching import DATES, ScanKeys
from labels.cells import SEXES, ages_remark, read_age, read_sex

YEAR = 365.25                                              # days
SAME_BIRTH = 1.5 * YEAR                                    # days between births by two ages in whole years
CENTURY = r"(?:19|20)"


class Demographics:
    """Ages and sexes in a table.

    A date of birth gives the age at the scan. So does an age with its date: that of EXAMDATE_bl in ADNIMERGE,
    whose AGE is the age at baseline, else the date of its row. An age without a date is taken as it is.

    contradictory: scans whose rows contradict each other, or give an impossible age.
    """

    def __init__(self, table: ClinicalTable, keys: ScanKeys, groups: dict[tuple[str, str], list[int]],
                 needed: bool):
        """groups: row positions of each subject, from keys. needed: a table with neither is a problem."""
        self.keys, self.groups = keys, groups
        self.contradictory: set[str] = set()
        self.sexes = _sexes(table)
        self.births, self.birth_years, self.ages = _births(table), _birth_years(table), _ages(table)
        self.knows_sex = self.sexes is not None
        self.knows_age = any(column is not None for column in (self.births, self.birth_years, self.ages))
        if needed and table.frame is not None and not (self.knows_sex or self.knows_age):
            table.problem("no column for age or sex; expected PTDOB, PTDOBYY or AGE, and PTGENDER or SEX")

    def sex(self, scan: str) -> str | None:
        """M or F, or a code of the table's own; None if its rows say nothing or contradict each other."""
        return self._shared(scan, self._values(scan, self.sexes))

    def age(self, scan: str, when: date | None) -> float | None:
        """Age in years on that day; None if it is unknown, contradictory or outside 1 to 120."""
        age = self._age(scan, when)
        if age is not None and not 1 <= age <= 120:
            self.contradictory.add(scan)
            return None
        return age

    def _age(self, scan: str, when: date | None) -> float | None:
        if births := self._values(scan, self.births) or self._values(scan, self.birth_years):
            birth = self._shared(scan, births)
            return round((when - birth).days / YEAR, 1) if birth and when else None
        ages = self._values(scan, self.ages)
        dated = [(age, on) for age, on in ages if on]
        if not dated:
            return self._shared(scan, [age for age, _ in ages])
        births = [on.toordinal() - age * YEAR for age, on in dated]
        if max(births) - min(births) > SAME_BIRTH:
            self.contradictory.add(scan)
        elif when:
            _, age, on = min((abs((on - when).days), age, on) for age, on in dated)      # the nearest
            return round(age + (when - on).days / YEAR, 1)
        return None

    def _values(self, scan: str, column: list | None) -> list:
        """Values of a column in the rows of a scan, without missing ones."""
        rows = self.groups.get(self.keys.key(scan, self.groups), [])
        return [column[i] for i in rows if column[i] is not None] if column else []

    def _shared(self, scan: str, values: list):
        """The one value that all rows share; None if there is none, or if they differ."""
        if len(set(values)) > 1:
            self.contradictory.add(scan)
            return None
        return values[0] if values else None


# ---------------------------------------------------------------- columns

def _sexes(table: ClinicalTable) -> list[str | None] | None:
    values = table.column("sex", ("PTGENDER", "SEX", "GENDER"))
    if values is None:
        return None
    if table.used["sex"].upper() == "PTGENDER":
        return table.parsed("sex", values, _adni_sex, "1 or Male, 2 or Female")
    return table.parsed("sex", values, read_sex, "a sex")


def _adni_sex(text: str) -> str:
    return SEXES[text.upper()]


def _births(table: ClinicalTable) -> list[date | None] | None:
    """Dates of birth; the middle of a month or year where the day is not given."""
    values = table.column("date of birth", ("PTDOB", "DATE_OF_BIRTH", "BIRTH_DATE", "DOB"))
    if values is None:
        return None
    reader = table.date_reader("date of birth", values, short_century=1900)

    def parse(text: str) -> date:
        """A date of birth. Raises ValueError for anything else."""
        if match := re.fullmatch(rf"(?:(\d{{1,2}})/)?({CENTURY}\d\d)", text):
            return _middle(int(match[2]), int(match[1]) if match[1] else None)
        return reader.read(text)

    return table.parsed("date of birth", values, parse, "a date of birth such as 04/1935, 1935-04-15 or 1935")


def _birth_years(table: ClinicalTable) -> list[date | None] | None:
    """The middle of the year of birth, or of its month where that is given."""
    values = table.column("year of birth", ("PTDOBYY", "YEAR_OF_BIRTH", "BIRTH_YEAR", "YOB"))
    if values is None:
        return None
    years = table.parsed("year of birth", values, _year, "a year such as 1935")
    months: list[int | None] = [None] * len(years)
    if texts := table.column("month of birth", ("PTDOBMM",)):
        months = table.parsed("month of birth", texts, _month, "a month from 1 to 12")
    return [year and _middle(year, month) for year, month in zip(years, months, strict=True)]


def _ages(table: ClinicalTable) -> list[tuple[float, date | None] | None] | None:
    """Ages in years, each with the date that it belongs to."""
    values = table.column("age", ("AGE",))
    if values is None:
        return None
    ages = table.parsed("age", values, read_age, "an age from 1 to 120 years")
    if remark := ages_remark(values):
        table.remarks.append(remark)
    texts = table.column("age's date", ("EXAMDATE_bl", *DATES), ranked=True)
    dates = table.dates("age's date", texts) if texts else [None] * len(ages)
    return [None if age is None else (age, day) for age, day in zip(ages, dates, strict=True)]


def _middle(year: int, month: int | None) -> date:
    return date(year, month, 15) if month else date(year, 7, 1)


def _year(text: str) -> int:
    if match := re.fullmatch(rf"({CENTURY}\d\d)(?:\.0|-\d\d-\d\d)?", text):
        return int(match[1])
    raise ValueError(text)


def _month(text: str) -> int:
    if 1 <= float(text) <= 12:
        return int(float(text))
    raise ValueError(text)
