"""Cells of a column of covariates: numbers with bounds, units, decimal commas and codes for missing,
genotypes, words."""
import math
import re
from collections import Counter, defaultdict

import numpy as np

from cohort.clinical_table import ClinicalTable
from cohort.covariate_kinds import ANY, GENOTYPE, WORDS, Kind
from cohort.dates import MONTHS
from labels.cells import MISSING
from runtime.files import brief
from runtime.tables import listed

NUMBER = re.compile(r"(?P<bound>[<>]=?|[≤≥])? ?(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
                    r" ?(?P<unit>[A-Za-zμ%][A-Za-zμ%/]*)?")
LIMIT = re.compile(r"[<>≤≥]? ?(?:[lub]?lo[dq]|blq|below (?:detection|limit))", re.IGNORECASE)
MAYBE_THOUSANDS = re.compile(r"\D*[1-9]\d{0,2},\d{3}\D*")
LOOKALIKES = str.maketrans("−–µ", "--μ")                   # minus signs, and the micro sign
ALLELE = r"(?:[eεɛ]|epsilon)?([234])(?:\.0)?"
ALLELES = re.compile(rf"(?:apoe[ -]?)?{ALLELE} ?[/|,;:_-]? ?{ALLELE}", re.IGNORECASE)
COUNT = re.compile(r"([012])(?:[.,]0*)?")
DAY_OF_MONTH = re.compile(r"(\d\d?)[- ]([a-z]{3})|([a-z]{3})[- ](\d\d?)", re.IGNORECASE)
CODE = re.compile(r"-\d+(?:\.0*)?")                        # for missing, where no value is negative
CODES = {1, 4, 7, 8, 9, 77, 88, 99, 777, 888, 999, 7777, 8888, 9999, 99999}      # most often with a minus
LEAST_POSITIVE_CODE = 77
FAR = 10                                                   # a code is so many times as large as all values
MOST_WORDS = 6
GAP, APART = 20, (200, 5000)                               # ratios of neighbours and of medians in two units

Cell = float | str | None


def read_cells(table: ClinicalTable, kind: Kind, heading: str, values: list[str]) -> list[Cell]:
    """The values of a column, None where they are missing or cannot be read. How they were read joins the
    remarks of the table, what cannot be used its problems.

    values: the cells as text, empty in rows that are of no scan here.
    """
    return _Cells(table, kind, heading).read([value.translate(LOOKALIKES) for value in values])


def read_e4(text: str) -> float:
    """Number of e4 alleles of a genotype (3/4, 34, e3/e4, or 4-Mar, which a spreadsheet makes of 3/4), or of
    that number itself. Raises ValueError for anything else."""
    if match := COUNT.fullmatch(text):
        return float(match[1])
    if match := ALLELES.fullmatch(text):
        return float((match[1] + match[2]).count("4"))
    if match := DAY_OF_MONTH.fullmatch(text):
        day, month = match[1] or match[4], (match[2] or match[3]).lower()
        pair = [int(day), MONTHS.index(month) + 1]         # ValueError if it is no month
        if set(pair) <= {2, 3, 4}:
            return float(pair.count(4))
    raise ValueError(text)


def is_thousandfold(one: float, other: float) -> bool:
    """Whether two medians are as far apart as units that differ by a factor of 1000."""
    small, large = sorted((one, other))
    return small > 0 and APART[0] <= large / small <= APART[1]


def _counted(counts: Counter, texts: list[str]) -> str:
    """Texts, each with the number of its rows."""
    return listed([f"{text} ({counts[text]} row{'s' * (counts[text] > 1)})" for text in sorted(texts)], "")


class _Cells:
    """Reader of the cells of one column."""

    def __init__(self, table: ClinicalTable, kind: Kind, heading: str):
        self.table, self.kind, self.name = table, kind, f"column {heading}"
        table.used[kind.name] = heading

    def read(self, values: list[str]) -> list[Cell]:
        """The values of the cells."""
        if self.kind.reads == GENOTYPE:
            return self._genotypes(values)
        if self.kind.reads == WORDS or (self.kind.reads == ANY and not self._are_numbers(values)):
            return self._words(values)
        return self._numbers(values)

    def _remark(self, text: str) -> None:
        self.table.remarks.append(f"{self.name}: {text}")

    def _problem(self, text: str) -> None:
        self.table.problem(f"{self.name}: {text}")

    # ------------------------------------------------------------ numbers

    def _are_numbers(self, values: list[str]) -> bool:
        """Whether at least half of the cells are numbers; in several units, more than words may be."""
        filled = [value for value in values if value.upper() not in MISSING and not CODE.fullmatch(value)]
        matches = [match for value in filled if (match := NUMBER.fullmatch(value.replace(",", ".")))]
        units = {match["unit"].lower() for match in matches if match["unit"]}
        return 2 * len(matches) >= len(filled) and (len(units) <= 1 or len(set(filled)) > MOST_WORDS)

    def _numbers(self, values: list[str]) -> list[float | None]:
        if math.isfinite(self.kind.high):                  # a score of 26/30
            values = [re.sub(rf" ?/ ?{self.kind.high:g}$", "", value) for value in values]
        values = self._with_points(values)
        matches = {value: match for value in set(values) if (match := NUMBER.fullmatch(value))}
        found = {value: float(match["number"]) for value, match in matches.items()}

        def parse(text: str) -> float:
            """The number of a cell. Raises ValueError or KeyError if it has none in the range."""
            number = found[text]
            is_in_range = self.kind.low <= number <= self.kind.high and math.isfinite(number)
            if not is_in_range or (self.kind.is_marker and number == 0):
                raise ValueError(text)
            return number

        codes = self._missing_codes(Counter(values), found)
        numbers = self.table.parsed(self.kind.name, values, parse, self.kind.what, [*MISSING, *codes])
        rows = {i: matches[value] for i, value in enumerate(values) if numbers[i] is not None}
        bounds = Counter(match[0] for match in rows.values() if match["bound"])
        if bounds:
            self._remark(f"{_counted(bounds, list(bounds))} counts as the number that is written")
        self._check_units(rows)
        self._check_scale({i: numbers[i] for i in rows if numbers[i] > 0})
        return numbers

    def _with_points(self, values: list[str]) -> list[str]:
        """Values with points for decimal commas. As in tables without commas between columns, 1,234 may be
        thousands, unless another number of the column can be nothing else than a decimal."""
        commas = {value for value in set(values)
                  if "," in value and NUMBER.fullmatch(value.replace(",", "."))}
        if all(MAYBE_THOUSANDS.fullmatch(value) for value in commas):
            return values
        self._remark("decimal commas are read as points")
        return [value.replace(",", ".") if value in commas else value for value in values]

    def _missing_codes(self, counts: Counter, found: dict[str, float]) -> list[str]:
        """Texts that mean that there is no number, in capitals: codes, and limits of detection without one.

        A negative code is one where no value can be negative, or no other one is. Elsewhere, and without a
        minus, it is one if it is ten times as large as all other values. counts: rows of each text. found:
        number of each text that has one.
        """
        suspects = {text: number for text, number in found.items()
                    if -number in CODES or (number in CODES and number >= LEAST_POSITIVE_CODE)}
        others = [number for text, number in found.items() if text not in suspects]
        largest = max(map(abs, others), default=math.inf)
        may_be_negative = self.kind.low < 0 and any(number < 0 for number in others)
        codes, kept = [text for text in counts if LIMIT.fullmatch(text)], []
        for text, number in suspects.items():
            if (number < 0 and not may_be_negative) or abs(number) >= FAR * largest > 0:
                codes.append(text)
            elif number < 0:
                kept.append(text)
        if codes:
            self._remark(f"{_counted(counts, codes)} counts as missing")
        if kept:
            self._remark(f"{_counted(counts, kept)} counts as a value, because others are negative too; "
                         "empty it if it is a code for missing")
        return [code.upper() for code in codes]

    def _check_units(self, rows: dict[int, re.Match]) -> None:
        """A remark on a unit in the cells, and a problem with several. rows: position -> the number read."""
        examples: dict[str, str] = {}
        for i, match in rows.items():
            if match["unit"]:
                examples.setdefault(match["unit"].lower(), f"{self.table.rows[i]} ({match[0]!r})")
        if len(examples) > 1:
            self._problem(f"{len(examples)} units, as in {listed(list(examples.values()))}; bring all to one")
        elif examples:
            self._remark(f"the unit {next(iter(examples))} is left away")

    def _check_scale(self, numbers: dict[int, float]) -> None:
        """Name rows that are about 1000 times the others: another unit. In a marker they are a problem; other
        columns may spread that far, so there they are a remark. numbers: position -> number above 0."""
        if math.isfinite(self.kind.high) or len(numbers) < 3:
            return
        rows = sorted(numbers, key=numbers.get)
        sizes = np.array([numbers[i] for i in rows])
        jumps = sizes[1:] / sizes[:-1]
        cut = int(jumps.argmax()) + 1
        low, high = np.median(sizes[:cut]), np.median(sizes[cut:])
        if jumps[cut - 1] < GAP or not is_thousandfold(low, high):
            return
        few = sorted(rows[:cut] if cut < len(rows) / 2 else rows[cut:])
        text = (f"some numbers are about {low:.3g} and others about {high:.3g}: units that differ by a "
                f"factor of 1000? The fewer ones are in {listed([self.table.rows[i] for i in few])}")
        if self.kind.is_marker:
            self._problem(f"{text}; bring all to one, or empty those cells")
        else:
            self._remark(text)

    # ------------------------------------------------------------ genotypes and words

    def _codes(self, values: list[str]) -> list[str]:
        """Negative whole numbers, which are codes for missing where no value is a negative number."""
        counts = Counter(value for value in values if CODE.fullmatch(value))
        if counts:
            self._remark(f"{_counted(counts, list(counts))} counts as missing")
        return list(counts)

    def _genotypes(self, values: list[str]) -> list[float | None]:
        """Numbers of e4 alleles."""
        missing = [*MISSING, *self._codes(values)]
        alleles = self.table.parsed(self.kind.name, values, read_e4, self.kind.what, missing)
        dates = {value for value, count in zip(values, alleles, strict=True)
                 if count is not None and DAY_OF_MONTH.fullmatch(value)}
        if dates:
            self._remark(f"{listed(sorted(dates), '')} is read as a genotype that a spreadsheet made a date")
        return alleles

    def _words(self, values: list[str]) -> list[str | None]:
        """Words, each in its most frequent spelling; more than MOST_WORDS are a problem in a column that is
        not known to hold words."""
        missing = {*MISSING, *self._codes(values)}
        counts = Counter(value for value in values if value.upper() not in missing)
        spellings: dict[str, list[str]] = defaultdict(list)
        for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            spellings[word.casefold()].append(word)
        for first, *others in spellings.values():
            if others:
                self._remark(f"{listed(others, '')} differs only in case from {first} and is written as that")
        if self.kind.reads == ANY and len(spellings) > MOST_WORDS:
            some = brief(", ".join(repr(words[0]) for words in list(spellings.values())[:3]))
            self._problem(f"{len(spellings)} different values, such as {some}; expected numbers, or at most "
                          f"{MOST_WORDS} words")
        return [spellings[value.casefold()][0] if value in counts else None for value in values]
