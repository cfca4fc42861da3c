"""Age and sex of the scans, from ADNI's PTDEMOG or ADNIMERGE, or from the columns age and sex of any table."""
import re
from datetime import date

from cohort.clinical import ClinicalTable
from cohort.matching import DATES, ScanKeys

YEAR = 365.25                                              # days
SEXES = {"1": "M", "1.0": "M", "MALE": "M", "M": "M", "2": "F", "2.0": "F", "FEMALE": "F", "F": "F"}
SAME_BIRTH = 1.5 * YEAR                                    # days between the births that two ages of a subject, whole years, may point to


class Demographics:
    """What a table says of age and sex. age() and sex() are None where it does not say, or where its rows contradict each other.

    A date of birth gives the age at the scan. So does an age with its date: that of EXAMDATE_bl in ADNIMERGE, whose AGE is the age at
    baseline, else the date of its row. An age without a date is taken as it is. contradictory: the scans with such rows.
    """

    def __init__(self, table: ClinicalTable, keys: ScanKeys, groups: dict[tuple[str, str], list[int]], needed: bool):
        self.keys, self.groups, self.contradictory = keys, groups, set()
        self.sexes, self.births, self.birth_years, self.ages = _sexes(table), _births(table), _birth_years(table), _ages(table)
        self.knows_sex = self.sexes is not None
        self.knows_age = any(column is not None for column in (self.births, self.birth_years, self.ages))
        if needed and table.frame is not None and not (self.knows_sex or self.knows_age):
            table.problem("no column for age or sex; expected PTDOB, PTDOBYY or AGE, and PTGENDER or SEX")

    def sex(self, scan: str) -> str | None:
        """M or F, or a code of the table's own."""
        return self._one(scan, self._said(scan, self.sexes))

    def age(self, scan: str, when: date | None) -> float | None:
        """Age in years on that day."""
        age = self._age(scan, when)
        if age is not None and not 1 <= age <= 120:
            self.contradictory.add(scan)
            return None
        return age

    def _age(self, scan: str, when: date | None) -> float | None:
        if births := self._said(scan, self.births) or self._said(scan, self.birth_years):
            birth = self._one(scan, births)
            return round((when - birth).days / YEAR, 1) if birth and when else None
        ages = self._said(scan, self.ages)
        dated = [(age, on) for age, on in ages if on]
        if not dated:
            return self._one(scan, [age for age, _ in ages])
        births = [on.toordinal() - age * YEAR for age, on in dated]
        if max(births) - min(births) > SAME_BIRTH:
            self.contradictory.add(scan)
        elif when:
            age, on = min(dated, key=lambda one: (abs((one[1] - when).days), one))
            return round(age + (when - on).days / YEAR, 1)
        return None

    def _said(self, scan: str, column: list | None) -> list:
        """What the rows of a scan say, without what is missing."""
        rows = self.groups.get(self.keys.key(scan, self.groups), [])
        return [column[i] for i in rows if column[i] is not None] if column else []

    def _one(self, scan: str, said: list):
        """The value that all rows share."""
        if len(set(said)) > 1:
            self.contradictory.add(scan)
        return said[0] if len(set(said)) == 1 else None


def _sexes(table: ClinicalTable) -> list[str | None] | None:
    values = table.column("sex", ("PTGENDER", "SEX", "GENDER"))
    if values is None:
        return None
    if table.used["sex"].upper() == "PTGENDER":
        return table.parsed("sex", values, lambda text: SEXES.get(text.upper()) or _refuse(text), "1 or Male, 2 or Female")
    return table.parsed("sex", values, lambda text: SEXES.get(text.upper(), text) if text.isalpha() else text, "a sex")  # 1 might be either


def _refuse(text: str):
    raise ValueError(text)


def _births(table: ClinicalTable) -> list[date | None] | None:
    """Dates of birth; the middle of a month or year where the day is not told."""
    values = table.column("date of birth", ("PTDOB", "DATE_OF_BIRTH", "BIRTH_DATE", "DOB"))
    if values is None:
        return None
    reader = table.date_reader("date of birth", values, short_century=1900)

    def parse(text: str) -> date:
        if match := re.fullmatch(r"(?:(\d{1,2})/)?((?:19|20)\d\d)", text):
            return _middle(int(match[2]), match[1] and int(match[1]))
        return reader.read(text)
    return table.parsed("date of birth", values, parse, "a date of birth such as 04/1935, 1935-04-15 or 1935")


def _birth_years(table: ClinicalTable) -> list[date | None] | None:
    """The middle of the year of birth, or of its month."""
    values = table.column("year of birth", ("PTDOBYY", "YEAR_OF_BIRTH", "BIRTH_YEAR", "YOB"))
    if values is None:
        return None

    def year(text: str) -> int:
        match = re.fullmatch(r"((?:19|20)\d\d)(?:\.0|-\d\d-\d\d)?", text)
        return int(match[1]) if match else _refuse(text)

    def month(text: str) -> int:
        return int(float(text)) if 1 <= float(text) <= 12 else _refuse(text)
    years = table.parsed("year of birth", values, year, "a year such as 1935")
    texts = table.column("month of birth", ("PTDOBMM",))
    months = table.parsed("month of birth", texts, month, "a month from 1 to 12") if texts else [None] * len(years)
    return [y and _middle(y, m) for y, m in zip(years, months, strict=True)]


def _middle(year: int, month: int | None) -> date:
    return date(year, month, 15) if month else date(year, 7, 1)


def _ages(table: ClinicalTable) -> list[tuple[float, date | None] | None] | None:
    """Age and the date that it belongs to."""
    values = table.column("age", ("AGE",))
    if values is None:
        return None

    def parse(text: str) -> float:
        return float(text) if 1 <= float(text) <= 120 else _refuse(text)
    ages = table.parsed("age", values, parse, "an age from 1 to 120 years")
    texts = table.column("age's date", ("EXAMDATE_bl", *DATES), ranked=True)
    on = table.dates("age's date", texts) if texts else [None] * len(ages)
    return [None if age is None else (age, day) for age, day in zip(ages, on, strict=True)]
