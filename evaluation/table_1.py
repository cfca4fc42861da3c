"""Table 1 of a paper: who is in each list, and how much validation and test list differ from the training
list.

A row counts scans, because label and age are those of a visit. Differences are standardised: of numbers
Cohen's d with the pooled standard deviation, of categories the multivariate difference of Yang and Dalton
(2012, SAS Global Forum, paper 335), which of two categories is |p1 - p2| / sqrt((p1 q1 + p2 q2) / 2).
"""
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from dataset import SPLITS, Scan, parse_id
from labels.cells import is_missing, read_age, read_sex
from runtime.tables import simplified

# Name in Table 1 and people.csv -> names that it has in data_info.csv; the first that is there is taken.
COLUMNS = {"age": ("age",), "sex": ("sex", "gender"), "site": ("site", "siteid", "center", "centre"),
           "tracer": ("tracer",), "diagnosis": ("diagnosis", "dx", "dx_bl")}
MOST_LEVELS = 12                                           # that are listed, and for which there is an SMD
FEWEST_NUMBERS = 7                                         # distinct whole numbers that are not categories
MISSING, ALL, COMPARED = "missing", "all", ("validation", "test")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CAPTION = ("Scans of each list: mean ± SD, or n (% of those known). SMD: standardised difference from the "
           "training list; of numbers Cohen's d with the pooled SD (above 0: larger than in the training "
           "list), of categories the multivariate one of Yang and Dalton (2012); inf: no overlap. Of more "
           f"than {MOST_LEVELS} categories their number alone is given.")


# ---------------------------------------------------------------- standardised differences

def number_difference(values: Sequence[float], reference: Sequence[float]) -> float:
    """Cohen's d of values against a reference, with the pooled SD; NaN where there are too few to have one,
    infinite where neither varies and the means differ."""
    values, reference = np.asarray(values, float), np.asarray(reference, float)
    freedom = len(values) + len(reference) - 2
    if not len(values) or not len(reference) or freedom < 1:
        return math.nan
    squares = ((values - values.mean()) ** 2).sum() + ((reference - reference.mean()) ** 2).sum()
    difference, sd = values.mean() - reference.mean(), math.sqrt(squares / freedom)
    if math.isclose(difference, 0, abs_tol=1e-12):
        return 0.0
    return difference / sd if sd > 1e-12 else math.copysign(math.inf, difference)


def category_difference(values: Sequence[str], reference: Sequence[str]) -> float:
    """Multivariate standardised difference of two lists of categories (Yang and Dalton 2012), at least 0.

    It is the Mahalanobis distance of their shares; infinite where the lists can be told apart by category for
    certain in some respect, NaN where one is empty.
    """
    if not len(values) or not len(reference):
        return math.nan
    levels = sorted({*values, *reference})[1:]             # the shares of all sum to 1
    shares = [np.array([list(part).count(level) / len(part) for level in levels])
              for part in (values, reference)]             # [K - 1] each
    difference = shares[0] - shares[1]
    covariance = sum(np.diag(p) - np.outer(p, p) for p in shares) / 2
    scaled = np.linalg.pinv(covariance, hermitian=True) @ difference if len(levels) else difference
    if not np.allclose(covariance @ scaled, difference, atol=1e-9):
        return math.inf                                    # they differ where neither varies
    return math.sqrt(max(0.0, float(difference @ scaled)))


# ---------------------------------------------------------------- the columns

def column_of(people: pd.DataFrame, name: str) -> str | None:
    """The heading of a column of data_info.csv by its name in Table 1, whatever its case and punctuation;
    None if there is none, or nothing is known in it."""
    for spelling in COLUMNS.get(name, (name,)):
        for heading in people.columns:
            is_meant = simplified(heading) == simplified(spelling) and heading != "ID"
            if is_meant and (people[heading] != "").any():
                return heading
    return None


def named_columns(people: pd.DataFrame, further: Sequence[str] = ()) -> dict[str, str]:
    """Name in Table 1 -> heading in people, of age, sex, site, tracer, diagnosis and the further columns that
    are known."""
    found = {}
    for name in (*COLUMNS, *further):
        heading = column_of(people, name)
        if heading is not None and heading not in found.values():
            found[name] = heading
    return found


def read_cells(name: str, cells: Sequence[str]) -> list:
    """The cells of a column as numbers or as categories, None where one is empty or cannot be read.

    name: in Table 1. Ages are numbers, the other COLUMNS categories, in which ADNI's codes for missing values
    are such codes. Any other column holds numbers if all that is known is a number, with a fraction or
    FEWEST_NUMBERS different ones; fewer are categories, such as the number of alleles.
    """
    known = [cell for cell in cells if cell]
    read: Callable = str
    if name in COLUMNS:
        cells = ["" if is_missing(cell) else cell for cell in cells]
    if name == "age":
        read = read_age
    elif name == "sex":
        read = read_sex
    elif name not in COLUMNS and all(NUMBER.fullmatch(cell) for cell in known):
        values = {float(cell) for cell in known}
        if len(values) >= FEWEST_NUMBERS or any(value % 1 for value in values):
            read = float
    return [_attempt(read, cell) if cell else None for cell in cells]


def _attempt(read: Callable, cell: str):
    try:
        return read(cell)
    except ValueError:
        return None


# ---------------------------------------------------------------- the table

def make_table_1(lists: dict[str, list[Scan]], people: pd.DataFrame, subject_pattern: str,
                 further: Sequence[str] = ()) -> pd.DataFrame:
    """A row a variable, and below it a row a category: variable, level, measure, a text for each list and for
    all, and SMD_validation and SMD_test, the standardised differences from the training list.

    people: as read_people gives it, with every scan of the lists. further: columns of it beside age, sex,
    site, tracer and diagnosis.
    """
    pattern = re.compile(subject_pattern)
    subjects = {split: [parse_id(scan.id, pattern)[0] for scan in lists[split]] for split in SPLITS}
    rows = [_row("scans", "", "n", {split: str(len(lists[split])) for split in SPLITS},
                 str(sum(map(len, subjects.values())))),
            _row("subjects", "", "n", {split: str(len(set(subjects[split]))) for split in SPLITS},
                 str(len(set().union(*subjects.values()))))]
    rows += _category_rows("label", {split: [str(scan.label) for scan in lists[split]] for split in SPLITS})
    scans = [scan.id for split in SPLITS for scan in lists[split]]
    cells_of = people.set_index("ID").loc[scans]
    for name, heading in named_columns(people, further).items():
        values = dict(zip(scans, read_cells(name, cells_of[heading].tolist()), strict=True))
        parts = {split: [values[scan.id] for scan in lists[split]] for split in SPLITS}
        is_number = any(isinstance(value, float) for value in values.values())
        rows += (_number_rows if is_number else _category_rows)(name, parts)
    return pd.DataFrame(rows)


def _row(variable: str, level: str, measure: str, texts: dict[str, str], text_of_all: str,
         differences: dict[str, float] | None = None) -> dict:
    row = {"variable": variable, "level": level, "measure": measure, **texts, ALL: text_of_all}
    return row | {f"SMD_{split}": (differences or {}).get(split, math.nan) for split in COMPARED}


def _known(values: Sequence) -> list:
    return [value for value in values if value is not None]


def _with_all(parts: dict[str, list]) -> dict[str, list]:
    return parts | {ALL: [value for part in parts.values() for value in part]}


def _missing_rows(name: str, parts: dict[str, list]) -> list[dict]:
    """A row with the numbers of missing values, if there are any."""
    counts = {split: str(part.count(None)) for split, part in _with_all(parts).items()}
    text_of_all = counts.pop(ALL)
    return [] if text_of_all == "0" else [_row(name, MISSING, "n", counts, text_of_all)]


def _number_rows(name: str, parts: dict[str, list]) -> list[dict]:
    everyone = _known(_with_all(parts)[ALL])
    spread = np.std(everyone, ddof=1) if len(everyone) > 1 else 1.0
    digits = max(1, min(4, 1 - math.floor(math.log10(spread)))) if spread > 0 else 1
    texts = {split: _mean_and_sd(_known(part), digits) for split, part in _with_all(parts).items()}
    differences = {
        split: number_difference(_known(parts[split]), _known(parts["train"])) for split in COMPARED
    }
    label = f"{name} (years)" if name == "age" else name
    text_of_all = texts.pop(ALL)
    return [_row(label, "", "mean ± SD", texts, text_of_all, differences), *_missing_rows(label, parts)]


def _mean_and_sd(values: list[float], digits: int) -> str:
    if not values:
        return "not known"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _category_rows(name: str, parts: dict[str, list]) -> list[dict]:
    counts = {split: Counter(_known(part)) for split, part in _with_all(parts).items()}
    levels = sorted(counts[ALL], key=_order)
    if len(levels) > MOST_LEVELS:
        numbers = {split: str(len(counts[split])) for split in parts}
        return [_row(name, "", "categories", numbers, str(len(levels))), *_missing_rows(name, parts)]
    differences = {
        split: category_difference(_known(parts[split]), _known(parts["train"])) for split in COMPARED
    }
    rows = [_row(name, "", "n (%)", dict.fromkeys(parts, ""), "", differences)]
    for level in levels:
        texts = {split: _share(counts[split][level], counts[split].total()) for split in counts}
        text_of_all = texts.pop(ALL)
        rows.append(_row(name, level, "n (%)", texts, text_of_all))
    return rows + _missing_rows(name, parts)


def _order(level: str) -> tuple[float, str]:
    """Numbers by size, before words by letter."""
    return (float(level) if NUMBER.fullmatch(level) else math.inf, level)


def _share(count: int, known: int) -> str:
    return f"{count} ({100 * count / known:.1f} %)" if known else "not known"


def for_reader(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 as text: one column for variable and category, and differences with two digits."""
    first = []
    for variable, level, measure in zip(table["variable"], table["level"], table["measure"], strict=True):
        first.append(f"· {level}" if level else f"{variable}, {measure}")
    shown = pd.DataFrame({"": first, **{name: table[name] for name in (*SPLITS, ALL)}})
    for split in COMPARED:
        values = table[f"SMD_{split}"]
        shown[f"SMD {split}"] = ["" if math.isnan(value) else f"{value:.2f}" for value in values]
    return shown
