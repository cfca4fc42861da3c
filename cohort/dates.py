"""Dates in tables and in IDs, read strictly: a few forms, and no guess of which number is day or month."""
import re
from datetime import date

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
TIME = r"(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?"      # that spreadsheets add
YEAR_FIRST = re.compile(r"(\d{4})(?:([-/._])(\d{1,2})\2(\d{1,2})|(\d{2})(\d{2}))" + TIME)
NAMED = re.compile(r"(\d{1,2})[- ]?([A-Za-z]{3})[- ]?(\d{4}|\d{2})" + TIME)
NUMERIC = re.compile(r"(\d{1,2})(?:/(\d{1,2})/(\d{2})|"    # a year of two digits only after slashes
                     r"([-/._])(\d{1,2})\4(\d{4}))" + TIME)
IN_AN_ID = re.compile(r"(?<![A-Za-z0-9])(?:"               # no letter or digit may touch a date
                      r"((?:19|20)\d\d)(?:([-_.])\d{1,2}\2\d{1,2}|[01]\d[0-3]\d)|"
                      r"\d{1,2}-?[A-Za-z]{3}-?(?:19|20)\d\d|"
                      r"\d{1,2}([-_.])\d{1,2}\3(?:19|20)\d\d"
                      r")(?![A-Za-z0-9])")
DATE_FORMS = "2015-03-02, 20150302, 02-Mar-2015, or 03/02/2015 with the month first"
EARLIEST = date(1900, 1, 1)


class DateReader:
    """Reader of the dates of one source, a column or the IDs of all scans.

    Whether 03/04/2015 is March or April is decided for all dates of the source together. ADNI writes the
    month first; a date such as 25/03/2015 shows that the source writes the day first.

    contradiction: two dates of the source that show both orders; empty if there are none.
    remark: how the order was found; empty if no date leaves a choice.
    """

    def __init__(self, texts: dict, short_century: int = 2000):
        """texts: place -> text, of all dates of the source. short_century: of years of two digits."""
        self.short_century = short_century
        numeric = {}
        for place, text in texts.items():
            if match := NUMERIC.fullmatch(text):
                numeric[place] = match
        day_first = [place for place, match in numeric.items() if int(match[1]) > 12]
        month_first = [place for place, match in numeric.items() if int(match[2] or match[5]) > 12]
        self.day_first = bool(day_first)
        self.contradiction = self.remark = ""
        if day_first and month_first:
            one, other = day_first[0], month_first[0]
            self.contradiction = (f"{texts[one]} ({one}) has the day first, {texts[other]} ({other}) the "
                                  "month; bring all to one form, best 2015-03-02")
        elif day_first:
            self.remark = f"dates are read with the day first, as in {texts[day_first[0]]}"
        elif month_first:
            self.remark = ("dates are read with the month first, as ADNI writes and as in "
                           f"{texts[month_first[0]]}")
        elif numeric:
            self.remark = "dates are read with the month first, as ADNI writes; no date here tells"

    def read(self, text: str) -> date | None:
        """The date of a text, without a time that follows it; None if day and month cannot be told apart.

        Raises ValueError if it is no date, or lies in the future.
        """
        if match := YEAR_FIRST.fullmatch(text):
            year, month, day = match[1], match[3] or match[5], match[4] or match[6]
        elif match := NAMED.fullmatch(text):
            year, month, day = match[3], MONTHS.index(match[2].lower()) + 1, match[1]
        elif match := NUMERIC.fullmatch(text):
            if self.contradiction:
                return None                                # reported already, once
            first, second, year = match[1], match[2] or match[5], match[3] or match[6]
            month, day = (second, first) if self.day_first else (first, second)
        else:
            raise ValueError(text)
        century = self.short_century if len(year) == 2 else 0
        found = date(century + int(year), int(month), int(day))
        if not EARLIEST <= found <= date.today():
            raise ValueError(text)
        return found


def dates_in(text: str) -> list[str]:
    """Parts of a text that look like dates, each once."""
    return list(dict.fromkeys(match[0] for match in IN_AN_ID.finditer(text)))
