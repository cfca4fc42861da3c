"""The table of the study of samples: every predictive distribution against the truth, and each against that
of the drawn samples."""
import numpy as np
import pandas as pd
from numpy import ndarray

from evaluation.samples import LEVELS, expected_coverage, score_ensembles, uniform_p, wilson
from evaluation.statistics import bootstrap, interval
from utils import derived_seed, draw_uniform

REFERENCE = "sampled"                                      # the row that the others are compared with
METHODS = {
    "sampled": "samples, amount drawn",
    "fixed": "samples, amount as predicted",
    "written": "written mean PET, with its validation errors",
    "latent_regression": "latent regression, with its validation errors",
    "labelled_latent_regression": "latent regression with label, with its validation errors",
    "amount": "drawn amounts alone, no PET",
}
MEANS = ("CRPS", "CRPS_regions", "energy")
BINS = 10                                                  # of the histogram of the PIT


def judge(ensembles: dict[str, dict[str, ndarray]], real: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A row a method and scan: method, ID, label, m and the scores of evaluation/samples.py.

    ensembles: method -> uptake (SUVR, SUVR_<region>) -> [n, m]. real: columns ID, label and the same uptakes.
    """
    u, tables = np.array([draw_uniform(seed, name, -1) for name in real["ID"]]), []
    for method, samples in ensembles.items():
        table = score_ensembles(samples, {name: real[name].to_numpy() for name in samples}, u)
        m = samples["SUVR"].shape[1]
        about = real[["ID", "label"]].assign(method=method, m=m)[["method", "ID", "label", "m"]]
        tables.append(about.reset_index(drop=True).join(table))
    return pd.concat(tables, ignore_index=True)


def make_table(subjects: pd.DataFrame, calibrated_on: dict[str, int], resamples: int,
               seed: int) -> pd.DataFrame:
    """A row a list and method: n, m, each of MEANS with its 95 % bootstrap interval and its change against
    the row `sampled` with the paired one; coverage_<level> with Wilson's interval, and the range that is
    expected of a list as long as the one it was calibrated on; KS_p, and the histogram of the PIT.

    subjects: as judge gives them, with a column list. calibrated_on: method -> number of subjects.
    """
    rows, seed = [], derived_seed("samples", seed)
    for (name, method), own in subjects.groupby(["list", "method"], sort=False):
        of_list = subjects[subjects["list"] == name]
        reference = of_list[of_list["method"] == REFERENCE]
        row = {"list": name, "method": method, "n": len(own), "m": int(own["m"].iloc[0])}
        for score in MEANS:
            if score in own and own[score].notna().any():
                row |= _mean_and_change(own, reference, score, resamples, seed)
        for level in LEVELS:
            row |= _coverage(own[f"covered_{level}"].dropna().to_numpy(), level, calibrated_on.get(method))
        row |= {"coverage_80_regions": own.get("covered_80_regions", pd.Series(dtype=float)).mean(),
                "KS_p": uniform_p(own["PIT"].to_numpy())}
        counts = np.histogram(own["PIT"].dropna(), BINS, (0, 1))[0]
        row |= {f"PIT_bin_{i}": int(count) for i, count in enumerate(counts, start=1)}
        rows.append(row)
    return pd.DataFrame(rows)


def _mean_and_change(own: pd.DataFrame, reference: pd.DataFrame, score: str, resamples: int,
                     seed: int) -> dict[str, float]:
    """Mean of a score and its change against the reference, with their intervals."""
    values, others = own[score].to_numpy(), reference[score].to_numpy()
    found = {}
    for name, numbers in ((score, values), (f"{score}_change", values - others)):
        def mean_of(index: ndarray, numbers: ndarray = numbers) -> ndarray:
            """Means of lists of subjects, [R, n] -> [R]."""
            return numbers[index].mean(-1)
        low, high = interval(bootstrap(mean_of, len(numbers), resamples, seed))
        found |= {name: numbers.mean(), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def _coverage(covered: ndarray, level: int, calibrated_on: int | None) -> dict[str, float]:
    """Share of covered scans [n], of 0 and 1, with its interval and the expected range."""
    name, n = f"coverage_{level}", len(covered)
    low, high = wilson(covered.sum(), n)
    expected = expected_coverage(level, n, calibrated_on) if calibrated_on and n else (np.nan, np.nan)
    return {name: covered.mean() if n else np.nan, f"{name}_low": low, f"{name}_high": high,
            f"{name}_expected_low": expected[0], f"{name}_expected_high": expected[1]}


# ---------------------------------------------------------------- for a reader

def to_markdown(table: pd.DataFrame, note: str, regions: list[str]) -> str:
    """The table with headings for a reader."""
    rows = []
    for row in table.to_dict("records"):
        cells = {"list": row["list"], "distribution": METHODS[row["method"]], "n": row["n"], "m": row["m"],
                 "CRPS of the SUVR": _with_interval(row, "CRPS"),
                 "change": "" if row["method"] == REFERENCE else _with_interval(row, "CRPS_change", "+")}
        for level in LEVELS:
            cells[f"in {level} %"] = _with_interval(row, f"coverage_{level}", digits=2)
        cells |= {"KS p": _number(row["KS_p"], 2), "energy score": _with_interval(row, "energy"),
                  "energy, change": "" if row["method"] == REFERENCE
                  else _with_interval(row, "energy_change", "+"),
                  "regions in 80 %": _number(row["coverage_80_regions"], 2)}
        rows.append(cells)
    text = ("CRPS (fair estimator) and energy score over the regions: the lower, the better; change: against "
            "the first row of the list, with its 95 % interval (paired bootstrap of subjects). In: share of "
            "real SUVRs inside the central interval of the samples, with its 95 % interval (Wilson). KS p: "
            f"test that the PIT is uniform. Regions: {', '.join(regions)}.")
    return "\n\n".join(["# Samples", f"{note}.", text, pd.DataFrame(rows).to_markdown(
        index=False, disable_numparse=True)]) + "\n"


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}" if np.isfinite(value) else "-"


def _with_interval(row: dict, name: str, sign: str = "", digits: int = 4) -> str:
    """A value with its interval in brackets; a dash where it is not known."""
    if not np.isfinite(row.get(name, np.nan)):
        return "-"
    value, low, high = (_number(row[key], digits, sign) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]"
