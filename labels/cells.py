"""Cells of tables: what may stand there for a label, an age or a sex, and for nothing."""
import re
from collections.abc import Iterable, Sequence

MISSING = ("", "NA", "N/A", "N.A.", "#N/A", "<NA>", "NAN", "NONE", "NULL", "NIL", "UNKNOWN", "MISSING", ".",
           "-", "--")
CODES = ("-4", "-4.0", "-1", "-1.0")                       # ADNI's; a Centiloid may be -4, so not everywhere
MISSING_CODES = (*MISSING, *CODES)

# Words for the labels 0 and 1, in lower case, with dashes as minus signs.
WORDS = (("negative", "neg", "amyloid negative", "amyloid neg", "amyloid-negative", "amyloid-neg", "a-",
          "amyloid-", "abeta-", "aβ-", "false", "no"),
         ("positive", "pos", "amyloid positive", "amyloid pos", "amyloid-positive", "amyloid-pos", "a+",
          "amyloid+", "abeta+", "aβ+", "true", "yes"))
LABEL_NUMBER = re.compile(r"0*([0-9]{1,6})(?:[.,]0*)?")
AGE = re.compile(
    r"(>=|>|≥)? ?([0-9]{1,3}(?:\.[0-9]*)?) ?"
    r"(\+|or (?:older|over|above)|and (?:older|over|above))? ?(y|yrs?|years?|y/o)?", re.IGNORECASE)
SEXES = {"1": "M", "1.0": "M", "MALE": "M", "M": "M", "2": "F", "2.0": "F", "FEMALE": "F", "F": "F"}


def is_unknown(text: str) -> bool:
    """Whether a cell holds nothing, or a word for it; not a number that may be a code for it."""
    return text.upper() in MISSING


def are_codes(texts: Sequence[str], least: float = 0.0) -> list[bool]:
    """Which cells of a column are ADNI's codes for a missing value, -4 and -1: they are numbers where another
    one is below 0 too. least: smallest number of the column's training list, if it is known."""
    for text in texts:
        if text not in CODES and _is_negative(text):
            return [False] * len(texts)
    return [text in CODES and least >= 0 for text in texts]


def _is_negative(text: str) -> bool:
    try:
        return float(text) < 0
    except ValueError:
        return False


def is_missing(text: str) -> bool:
    """Whether a cell says that its value is not known."""
    return text.upper() in MISSING_CODES


def read_label(text: str, num_classes: int) -> int:
    """Label in 0 .. num_classes - 1 of a whole number (1, 1.0, 1.00 or 1,0), or of one of WORDS where there
    are two labels. Raises ValueError for anything else."""
    if (match := LABEL_NUMBER.fullmatch(text)) and int(match[1]) < num_classes:
        return int(match[1])
    if num_classes == 2:
        word = _word(text)
        for label, words in enumerate(WORDS):
            if word in words:
                return label
    raise ValueError(text)


def _word(text: str) -> str:
    return re.sub(r"[\s_]+", " ", re.sub(r"[‐-―−]", "-", text)).lower()


def expected_labels(num_classes: int) -> str:
    """The labels that are read, for a message."""
    words = " or a word for them, such as negative and positive" if num_classes == 2 else ""
    return f"a label in 0 .. {num_classes - 1}{words}"


def labels_remark(texts: Iterable[str]) -> str:
    """How words were read as labels; empty if there were none."""
    read = {}
    for text in dict.fromkeys(texts):
        for label, words in enumerate(WORDS):
            if _word(text) in words:
                read[text] = label
    return ", ".join(f"{text} is read as the label {label}" for text, label in sorted(read.items()))


def read_age(text: str) -> float:
    """Age in years, from 1 to 120. Of an age that is given by its bound alone, such as 90+ or >89, that
    bound. Raises ValueError for anything else."""
    match = AGE.fullmatch(text)
    if not match or not 1 <= float(match[2]) <= 120:
        raise ValueError(text)
    return float(match[2])


def ages_remark(texts: Iterable[str]) -> str:
    """How ages that are given by a bound were read; empty if there were none."""
    bounds = {}
    for text in dict.fromkeys(texts):
        match = AGE.fullmatch(text)
        if match and (match[1] or match[3]):
            bounds[text] = match[2]
    return ", ".join(f"the age {text} is read as {years}" for text, years in sorted(bounds.items()))


def read_sex(text: str) -> str:
    """M or F of a word; a code of the table's own, in capitals, stays as it is: 1 might be either."""
    return SEXES.get(text.upper(), text.upper()) if text.isalpha() else text
