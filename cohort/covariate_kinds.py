"""Covariates that prepare knows by name: the columns of ADNI's tables with them, and what may stand there."""
import math
from dataclasses import dataclass

from runtime.tables import simplified

GENOTYPE, NUMBER, WORDS, ANY = "genotype", "number", "words", "any"        # how cells are read
ALLELES = ("APGEN1", "APGEN2")                             # of APOERES before it had the column GENOTYPE


@dataclass(frozen=True)
class Kind:
    """A covariate.

    name: of its column in data_info.csv. columns: its names in tables; the first that is there counts.
    reads: how cells are read; ANY is numbers, or else two to six words. low, high: range of numbers. what: a
    value, for messages. lasts: is the same at all times, and needs no date. is_marker: measured by an assay,
    so above 0, and comparable in one unit only.
    """
    name: str
    columns: tuple[str, ...] = ()
    reads: str = NUMBER
    low: float = -math.inf
    high: float = math.inf
    what: str = "a number"
    lasts: bool = False
    is_marker: bool = False


def _score(name: str, high: float, *columns: str) -> Kind:
    return Kind(name, columns, low=0, high=high, what=f"a score from 0 to {high:g}")


def _marker(name: str, *columns: str) -> Kind:
    return Kind(name, columns, low=0, what="a number above 0", is_marker=True)


KNOWN = (
    Kind("apoe4", ("GENOTYPE", "APOE4", "APOE", "APOE_GENOTYPE", "NACCNE4S"), GENOTYPE, lasts=True,
         what="a genotype such as 3/4, or a number of e4 alleles (0, 1, 2)"),
    Kind("education", ("PTEDUCAT", "EDUC", "YEARS_OF_EDUCATION"), low=0, high=40,
         what="years of education from 0 to 40", lasts=True),
    Kind("diagnosis", ("DIAGNOSIS", "DX"), WORDS),
    _score("mmse", 30, "MMSCORE", "NACCMMSE"),
    _score("moca", 30),
    _score("cdr", 3, "CDGLOBAL", "CDRGLOB", "CDRTOT"),
    _score("cdrsb", 18, "CDRSUM"),
    _score("adas13", 85, "TOTAL13"),
    _marker("ptau217", "pT217_F", "pT217_C2N"),
    _marker("ptau181", "PLASMAPTAU181"),
    _marker("abeta42", "AB42_F", "AB42_C2N", "AB42"),
    _marker("abeta40", "AB40_F", "AB40_C2N", "AB40"),
    _marker("abeta42_40", "AB42_AB40_F", "AB42_AB40_C2N"),
    _marker("ptau217_abeta42", "pT217_AB42_F"),
    _marker("gfap", "GFAP_Q", "GFAP_F"),
    _marker("nfl", "NfL_Q", "NfL_F"),
    _marker("csf_abeta42", "ABETA42", "ABETA"),
    _marker("csf_abeta40", "ABETA40"),
    _marker("csf_abeta42_40"),
    _marker("csf_tau", "TAU"),
    _marker("csf_ptau", "PTAU"),
)
RATIOS = (("abeta42_40", "abeta42", "abeta40"), ("csf_abeta42_40", "csf_abeta42", "csf_abeta40"))
BY_NAME = {kind.name: kind for kind in KNOWN}
CSF = {column: kind for kind in KNOWN for column in kind.columns if kind.name.startswith("csf_")}
BY_COLUMN = {simplified(column): kind for kind in KNOWN for column in (kind.name, *kind.columns)
             if column not in CSF}


def kind_of(heading: str) -> Kind | None:
    """The covariate of a column by its heading, None if it is not known.

    Case and punctuation do not matter, but for what is measured in the cerebrospinal fluid: only ABETA42, as
    ADNI writes it, is surely that one.
    """
    return CSF.get(heading) or BY_COLUMN.get(simplified(heading))


def rank(kind: Kind, heading: str) -> int:
    """Place of a heading among the names of its kind: the column with the least one counts."""
    return [simplified(name) for name in (kind.name, *kind.columns)].index(simplified(heading))
