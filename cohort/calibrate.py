"""Centiloid conversion of this pipeline's SUVR from a table of paired values: `python main.py calibrate`.

Level 1 (Klunk et al. 2015, doi 10.1016/j.jalz.2014.07.003) replicates the standard on its own PiB scans, 34
young controls (YC-0) and 45 patients with AD (AD-100): CL = 100 (SUVR - mean YC) / (mean AD - mean YC).
Level 2 fits another tracer or pipeline to the standard's values of the same subjects.
"""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cohort.clinical_table import ClinicalTable
from cohort.labelling import finite
from labels.cells import MISSING
from runtime.commandline import parse
from runtime.files import atomic, check_place, make_folder, write_text
from runtime.logs import say
from runtime.program import exit_code
from runtime.settings import refuse, setting, value_problems
from runtime.tables import listed
from utils import InputError

YC_SUVR, AD_MINUS_YC = 1.009, 1.067          # of the standard: CL = 100 (SUVR - 1.009) / 1.067 (Klunk et al.)
SCANS = {"YC": 34, "AD": 45}                 # of the standard's reference data
LEAST_PAIRS = 3
HIGHEST = 1000.0                             # of the slope, and of the size of the intercept, as setting
IDS = ("ID", "subject", "subject_id", "participant_id", "PTID")
SUVRS = ("SUVR", "SUVR_own", "SUVR_local")
CENTILOIDS = ("CENTILOIDS", "CENTILOID", "CL", "CL_standard")
STANDARD = ("SUVR_standard", "SUVR_std", "PiB_SUVR")


@dataclass(frozen=True)
class CalibrateSettings:
    """Settings of `python main.py calibrate`. Raises ValueError that lists all values out of range."""

    table: str = setting("",
        "table, a row a scan: ID; SUVR, by this pipeline; Centiloids of the standard, or at level 2 "
        "SUVR_standard; at level 1 group (YC or AD), unless the IDs begin so", section="calibration")
    level: int = setting(1,
        "1: the standard's own PiB scans; 2: another tracer, or other scans that the standard measured too",
        low=1, high=2)
    out: str = setting("calibration", "folder for calibration.json and calibration.png")

    def __post_init__(self):
        refuse(value_problems(self) or ([] if self.table else ["calibrate needs --table FILE"]))


@dataclass(frozen=True)
class Pairs:
    """The scans that have both values.

    suvr: [n], by this pipeline. standard: [n], Centiloids of the standard. is_ad: [n] bool, or None where no
    groups are known.
    """
    suvr: np.ndarray
    standard: np.ndarray
    is_ad: np.ndarray | None


@dataclass(frozen=True)
class Conversion:
    """CL = slope SUVR + intercept, and the line on which it is judged.

    n: pairs. line: (slope, intercept, r2) of the regression. limits: sentence -> whether it is kept.
    """
    level: int
    n: int
    slope: float
    intercept: float
    line: tuple[float, float, float]
    limits: dict[str, bool]

    @property
    def is_valid(self) -> bool:
        """Whether all limits are kept."""
        return all(self.limits.values())

    def settings(self) -> str:
        """The settings that the other commands take."""
        return f"--centiloid {self.slope:.2f} {self.intercept:.2f}"


def main(argv: list[str]) -> int:
    """Calibrate, with the settings of a command line. Returns the exit code."""
    settings = parse(CalibrateSettings, argv, "main.py calibrate",
                     "Slope and intercept of a Centiloid conversion from paired values.")
    return exit_code(lambda: calibrate(settings))


def calibrate(cfg: CalibrateSettings) -> None:
    """Fit the conversion, judge it, and write calibration.json and calibration.png."""
    out = Path(cfg.out)
    check_place(out)
    pairs = read_pairs(cfg)
    conversion = level_1(pairs) if cfg.level == 1 else level_2(pairs)
    make_folder(out)
    slope, intercept, r2 = conversion.line
    content = {"level": cfg.level, "table": cfg.table, "n": conversion.n, "centiloid_slope": conversion.slope,
               "centiloid_intercept": conversion.intercept, "regression_slope": slope,
               "regression_intercept": intercept, "r2": r2, "limits": conversion.limits,
               "valid": conversion.is_valid, "settings": conversion.settings()}
    write_text(out / "calibration.json", json.dumps(content, indent=2) + "\n")
    if find_spec("matplotlib"):
        draw(out / "calibration.png", pairs, conversion)
    say("calibrate", f"level {cfg.level}, {conversion.n} pairs: CL = {conversion.slope:.2f} SUVR "
                     f"{conversion.intercept:+.2f}; wrote {out}/calibration.json")
    for limit, kept in conversion.limits.items():
        say("calibrate", f"{'kept' if kept else 'NOT kept'}: {limit}")
    if conversion.is_valid:
        say("calibrate", f"valid for the same tracer, preprocessing and masks alone: {conversion.settings()}")
    else:
        say("calibrate", "the limits are not kept: these Centiloids cannot be compared with those of others")


# ---------------------------------------------------------------- the table

def read_pairs(cfg: CalibrateSettings) -> Pairs:
    """The pairs of the table. Rows without one of the two values are left out, which is said.

    Raises InputError with all problems.
    """
    problems: list[str] = []
    table = ClinicalTable(Path(cfg.table), "table", problems)
    ids = table.column("subject", IDS, needed=True)
    suvr = _numbers(table, "SUVR", SUVRS, needed=True)
    centiloids = _numbers(table, "Centiloids", CENTILOIDS, needed=cfg.level == 1)
    standard = None
    if cfg.level == 2 and centiloids is None:
        standard = _numbers(table, "standard's SUVR", STANDARD, needed=True)
    groups = _groups(table, ids or []) if cfg.level == 1 and ids is not None else None
    if ids is not None:
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            table.problem(f"column {table.used['subject']}: {listed(twice, '')} more than once; keep one row "
                          "each")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s):", *problems]))
    for sentence in table.describe():
        say("calibrate", sentence)
    if standard is not None:
        centiloids = [None if value is None else 100 * (value - YC_SUVR) / AD_MINUS_YC for value in standard]
    return _complete(table, ids, suvr, centiloids, groups)


def _numbers(table: ClinicalTable, role: str, names: Sequence[str],
             needed: bool) -> list[float | None] | None:
    """The numbers of a column, None where one is missing; None if there is no such column."""
    values = table.column(role, names, needed=needed)
    return None if values is None else table.parsed(role, values, finite, "a number", MISSING)


def _groups(table: ClinicalTable, ids: list[str]) -> list[str]:
    """YC or AD of every row, from the column of the group or the beginning of the ID; a row of neither is a
    problem."""
    values = table.column("group", ("group", "cohort", "diagnosis")) or ids
    groups = [value.strip().upper()[:2] for value in values]
    wrong = [row for row, group in zip(table.rows, groups, strict=True) if group not in SCANS]
    if wrong:
        table.problem(f"{listed(wrong)}: neither group nor ID begins with YC (young control) or AD; level 1 "
                      "needs both groups")
    return groups


def _complete(table: ClinicalTable, ids: list[str], suvr: list, centiloids: list,
              groups: list[str] | None) -> Pairs:
    """The rows that have both values. Raises InputError if they are too few, or all alike."""
    whole = [i for i in range(len(ids)) if suvr[i] is not None and centiloids[i] is not None]
    if len(whole) < len(ids):
        without = [row for i, row in enumerate(table.rows) if i not in set(whole)]
        say("calibrate", f"{len(without)} row(s) without both values are left out: {listed(without)}")
    is_ad = None if groups is None else np.array([groups[i] == "AD" for i in whole], bool)
    pairs = Pairs(np.array([suvr[i] for i in whole]), np.array([centiloids[i] for i in whole]), is_ad)
    if len(whole) < LEAST_PAIRS or np.ptp(pairs.suvr) == 0 or np.ptp(pairs.standard) == 0:
        raise InputError(f"{table.name}: {len(whole)} pair(s) with both values; a line needs at least "
                         f"{LEAST_PAIRS} that are not all alike")
    if is_ad is not None and (is_ad.all() or not is_ad.any()):
        raise InputError(f"{table.name}: all pairs are of one group; level 1 needs YC and AD")
    return pairs


# ---------------------------------------------------------------- the conversion

def level_1(pairs: Pairs) -> Conversion:
    """The conversion by the means of both groups, judged by the line of its Centiloids over the standard's.

    Raises InputError if the mean of AD is not above that of YC.
    """
    young, patients = pairs.suvr[~pairs.is_ad], pairs.suvr[pairs.is_ad]
    gap = float(patients.mean() - young.mean())
    if not gap > 0:
        raise InputError(f"the mean SUVR of AD ({patients.mean():.3f}) is not above that of YC "
                         f"({young.mean():.3f}); are the groups or the regions exchanged?")
    slope, intercept = 100 / gap, -100 * float(young.mean()) / gap
    line = fit_line(pairs.standard, slope * pairs.suvr + intercept)
    found, expected = (len(young), len(patients)), (SCANS["YC"], SCANS["AD"])
    limits = {f"{expected[0]} YC and {expected[1]} AD, all of the reference data: {found[0]} and {found[1]}":
                  found == expected,
              f"slope of the regression on the standard's Centiloids, 0.98 to 1.02: {line[0]:.3f}":
                  0.98 <= line[0] <= 1.02,
              f"its intercept, -2 to 2 CL: {line[1]:.2f}": -2 <= line[1] <= 2,
              f"its r2, above 0.98: {line[2]:.4f}": line[2] > 0.98}
    return _in_range(Conversion(1, len(pairs.suvr), slope, intercept, line, limits))


def level_2(pairs: Pairs) -> Conversion:
    """The conversion by the line of this SUVR over the standard's values, solved for these.

    Raises InputError if the SUVR does not rise with them.
    """
    line = fit_line(pairs.standard, pairs.suvr)
    if not line[0] > 0:
        raise InputError("the SUVR does not rise with the standard's values; are the columns or rows "
                         "exchanged?")
    limits = {f"r2 of the regression on the standard's values, at least 0.70: {line[2]:.4f}": line[2] >= 0.70}
    return _in_range(Conversion(2, len(pairs.suvr), 1 / line[0], -line[1] / line[0], line, limits))


def _in_range(conversion: Conversion) -> Conversion:
    """The conversion. Raises InputError if no setting can hold it."""
    if conversion.slope > HIGHEST or abs(conversion.intercept) > HIGHEST:
        raise InputError(f"CL = {conversion.slope:.4g} SUVR {conversion.intercept:+.4g} is no conversion of "
                         "an SUVR; does the column SUVR hold ratios, of about 1 to 3?")
    return conversion


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and r2 of the least-squares line of y over x, both [n] and not constant."""
    covariance = np.cov(x, y)
    slope = covariance[0, 1] / covariance[0, 0]
    r2 = covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1])
    return float(slope), float(y.mean() - slope * x.mean()), float(r2)


def draw(path: Path, pairs: Pairs, conversion: Conversion) -> None:
    """Draw this pipeline's Centiloids over the standard's, with the line of identity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    converted = conversion.slope * pairs.suvr + conversion.intercept
    figure, axes = pyplot.subplots(figsize=(5, 5))
    ends = [min(converted.min(), pairs.standard.min()), max(converted.max(), pairs.standard.max())]
    axes.plot(ends, ends, color="#888888", linewidth=1, label="identity")
    axes.scatter(pairs.standard, converted, s=14, color="#0072B2")
    axes.set_xlabel("Centiloids of the standard")
    axes.set_ylabel("Centiloids of this pipeline")
    axes.set_title(f"level {conversion.level}, n = {conversion.n}, r2 = {conversion.line[2]:.4f}",
                   fontsize=10)
    axes.legend(frameon=False)
    with atomic(path) as partial:
        figure.savefig(partial, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
