"""Covariates: what is known of a subject beside the MRI, as numbers for the predictors of the label.

A covariate is a column of numbers, or of two to six words. All that is learned of it, its mean, standard
deviation and words, comes from the training list. A missing value counts as the training list's mean, beside
an indicator where the training list lacks LEAST_MISSING values or more.
"""
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from labels.cells import are_codes, is_missing, is_unknown
from utils import InputError

NUMBER = re.compile(r"(?:<=?|>=?|≤|≥)? ?([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?) ?\+?")
MOST_WORDS = 6
LEAST_SEPARATED = 20                          # subjects whom a column does not separate perfectly by chance
LEAST_MISSING = 10                            # missing values; an indicator of fewer learns them by heart
OTHER_UNIT = 30.0                            # factor beyond the training list's range that no person explains
TWO_UNITS = 100.0                             # factor between neighbouring values of one column


@dataclass(frozen=True)
class Covariate:
    """A covariate as the training list shows it.

    words: in alphabetical order, none for a number. mean, std: [q] of its numbers, or of the indicators of
    all words but the first. low, high: range of its numbers. missing: share of the training list without a
    value where it has an indicator of that, else 0.
    """
    name: str
    words: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float
    high: float
    missing: float


class CovariateCoder:
    """Covariates as numbers [n, P], standardised on the training list. covariates: in the order of the
    columns."""

    def __init__(self, covariates: Sequence[Covariate]):
        self.covariates = tuple(covariates)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the covariates."""
        return tuple(covariate.name for covariate in self.covariates)

    @classmethod
    def fit(cls, cells: pd.DataFrame) -> "CovariateCoder":
        """The coder of these columns, which hold the cells of the training list as text."""
        return cls([_fit_one(name, cells[name].tolist()) for name in cells])

    def encode(self, cells: pd.DataFrame) -> np.ndarray:
        """Cells of n subjects, as text -> [n, P] float64. A column that is not there counts as missing.

        Raises InputError with all cells that cannot be read.
        """
        problems, columns = [], []
        for covariate in self.covariates:
            texts = cells[covariate.name].tolist() if covariate.name in cells else [""] * len(cells)
            problems += reading_problems(covariate, texts)
            if not problems:
                columns.append(_encode_one(covariate, texts))
        if problems:
            raise InputError("\n  ".join(problems))
        return np.concatenate(columns, axis=1)

    def without_codes(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The cells, '' where encode reads a code such as -4 as missing."""
        cells = cells.copy()
        for covariate in self.covariates:
            if covariate.name in cells and not covariate.words:
                cells.loc[are_codes(cells[covariate.name].tolist(), covariate.low), covariate.name] = ""
        return cells

    def state(self) -> list[dict]:
        """Plain values, for a checkpoint."""
        return [asdict(covariate) for covariate in self.covariates]

    @classmethod
    def from_state(cls, state: list[dict]) -> "CovariateCoder":
        """The coder that gave this state, or that state as JSON saved it."""
        tuples = ("words", "mean", "std")
        return cls([Covariate(**one | {name: tuple(one[name]) for name in tuples}) for one in state])


def cells_key(cells: pd.DataFrame) -> str:
    """16 hexadecimal digits that identify the cells of some subjects."""
    text = repr((list(cells), cells.to_numpy().tolist()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# ---------------------------------------------------------------- one covariate

def _fit_one(name: str, texts: list[str]) -> Covariate:
    present = [text for text in texts if not is_unknown(text)]
    if _are_numbers(present):
        words, numbers = (), _numbers(texts)
        known = numbers[np.isfinite(numbers)][:, None]                                       # [known, 1]
    else:
        words = tuple(sorted({text.casefold() for text in present}))
        known = np.array([_indicators(words, text) for text in present])                     # [known, q]
    std = tuple(_spread(column) for column in known.T)
    has_indicator = len(texts) - len(known) >= LEAST_MISSING
    return Covariate(name, words, tuple(known.mean(0).tolist()), std, float(known.min()), float(known.max()),
                     missing=1 - len(known) / len(texts) if has_indicator else 0.0)


def _spread(values: np.ndarray) -> float:
    """Standard deviation; 1 where it is 0, so that it can be divided by."""
    return float(values.std()) or 1.0


def _encode_one(covariate: Covariate, texts: list[str]) -> np.ndarray:
    """The columns [n, q] of a covariate, and its indicator of missing values if it has one."""
    if covariate.words:
        values = np.array([_indicators(covariate.words, text) for text in texts], dtype=float)       # [n, q]
    else:
        values = _numbers(texts, covariate.low)[:, None]
    known = np.isfinite(values)
    standard = np.where(known, (values - covariate.mean) / np.array(covariate.std), 0.0)
    if not covariate.missing:
        return standard
    spread = (covariate.missing * (1 - covariate.missing)) ** 0.5
    is_unknown_here = (~known[:, :1] - covariate.missing) / spread
    return np.concatenate([standard, is_unknown_here], axis=1)


def _indicators(words: tuple[str, ...], text: str) -> list[float]:
    if is_unknown(text):
        return [np.nan] * (len(words) - 1)
    return [float(text.casefold() == word) for word in words[1:]]


def _are_numbers(present: list[str]) -> bool:
    """Whether most of these cells are numbers, so that the others are mistakes."""
    return 2 * sum(bool(NUMBER.fullmatch(text)) for text in present) >= len(present)


def _numbers(texts: list[str], low: float = 0.0) -> np.ndarray:
    """Numbers [n] of cells, NaN where missing; of a bound, such as <0.2, the bound. low: smallest number of
    the training list, if it is known."""
    numbers = []
    for text, is_code in zip(texts, are_codes(texts, low), strict=True):
        match = NUMBER.fullmatch(text)
        numbers.append(float(match[1]) if match and not is_code else np.nan)
    return np.array(numbers, dtype=float)


# ---------------------------------------------------------------- what stands against the use of a column

def reading_problems(covariate: Covariate, texts: Sequence[str]) -> list[str]:
    """Problems with cells of a covariate, in the words of the training list: another type, another word,
    another unit."""
    name, present = covariate.name, [text for text in texts if not is_unknown(text)]
    if covariate.words:
        other = Counter(text for text in present if text.casefold() not in covariate.words)
        expected = f"one of {', '.join(covariate.words)}, as in the training list, or nothing"
    else:
        other = Counter(text for text in present if not NUMBER.fullmatch(text))
        expected = "a number, or nothing where it is not known"
    problems = [f"covariate {name}: {text!r} in {count} row(s); expected {expected}"
                for text, count in other.items()]
    if not covariate.words and not other:
        numbers = _numbers(list(texts), covariate.low)
        is_small = (numbers > 0) & (numbers < covariate.low / OTHER_UNIT)       # none if low is 0 or below
        largest = max(abs(covariate.low), abs(covariate.high)) or np.inf        # zeros have no unit
        is_large = abs(numbers) > OTHER_UNIT * largest
        beyond = numbers[is_large | is_small]
        if len(beyond):
            problems.append(f"covariate {name}: {len(beyond)} value(s) such as {beyond[0]:g}, but "
                            f"{covariate.low:g} to {covariate.high:g} in the training list; in another unit? "
                            "Give all in one")
    return problems


def column_problems(cells: pd.DataFrame, labels: np.ndarray) -> list[str]:
    """Problems with columns of the training list: cells as text, labels [n]. A usable column has values, not
    all the same, numbers in one unit or at most six words, and is not the label in disguise."""
    problems = []
    for name in cells:
        texts = cells[name].tolist()
        present = [text for text in texts if not is_unknown(text)]
        problem = _column_problem(present, texts, labels)
        if problem:
            problems.append(f"covariate {name}: {problem}")
    return problems


def _column_problem(present: list[str], texts: list[str], labels: np.ndarray) -> str:
    """The first thing that stands against the use of a column, or nothing. present: its cells with a
    value."""
    if all(is_missing(text) for text in present):
        return "no subject of the training list has a value; leave it out"
    are_numbers = _are_numbers(present)
    if are_numbers:
        wrong = [text for text in present if not NUMBER.fullmatch(text)]
        if wrong:
            return (f"{wrong[0]!r} among numbers ({len(wrong)} of {len(present)} cells); expected numbers "
                    "alone")
        values = _numbers(texts)
        if gap := _gap(values):
            return f"values up to {gap[0]:g}, and then from {gap[1]:g} on: in two units? Give all in one"
    else:
        words = sorted({text.casefold() for text in present})
        if len(words) > MOST_WORDS:
            return (f"{len(words)} different words, such as {', '.join(words[:3])}; expected at most "
                    f"{MOST_WORDS}")
        values = np.array([np.nan if is_unknown(text) else words.index(text.casefold()) for text in texts])
    known = np.isfinite(values)
    if np.ptp(values[known]) == 0:
        return "the same for everybody in the training list; leave it out"
    if _separates(values[known], labels[known], is_ordered=are_numbers):
        return (f"tells the labels of all {known.sum()} subjects of the training list apart without an "
                "error; is it the label, or read from the PET? A covariate must be known without a PET; "
                "leave it out")
    if _separates(known.astype(float), labels, is_ordered=False):
        return ("known or missing for all of one label and for nobody else, which tells the labels apart; "
                "leave it out")
    return ""


def _gap(values: np.ndarray) -> tuple[float, float] | None:
    """Two neighbouring values above 0, of which the second is TWO_UNITS times the first; none where a value
    is below 0, as a score may be anywhere near it."""
    known = np.sort(values[np.isfinite(values)])
    if known[0] < 0:
        return None
    known = known[known > 0]
    wide = np.flatnonzero(known[1:] >= TWO_UNITS * known[:-1])
    return (float(known[wide[0]]), float(known[wide[0] + 1])) if len(wide) else None


def _separates(values: np.ndarray, labels: np.ndarray, is_ordered: bool) -> bool:
    """Whether values [n] tell labels [n] apart without an error: each label has a range, or words, of its
    own."""
    of_labels = [set(values[labels == label].tolist()) for label in np.unique(labels)]
    if len(values) < LEAST_SEPARATED or len(of_labels) < 2:
        return False
    if not is_ordered:
        return sum(map(len, of_labels)) == len(set().union(*of_labels))
    ranges = sorted((min(found), max(found)) for found in of_labels)
    return all(below[1] < above[0] for below, above in zip(ranges, ranges[1:], strict=False))
