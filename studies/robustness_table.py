"""The table of the study on disturbed MRIs: every score, and its change against the undisturbed MRI."""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy import ndarray

from evaluation.statistics import area_under_roc, bootstrap, interval
from evaluation.uncertainty import COVERAGE, Calibration
from utils import derived_seed

IMAGE = ("PSNR_brain", "SSIM_brain", "MAE_brain")
UPTAKE = ("SUVR_bias", "SUVR_r", "SUVR_slope", "AUC", "coverage")
AGAINST = ("same_status", "SUVR_abs_change")              # comparisons with the undisturbed MRI by themselves
SUBJECTS = ("disturbance", "ID", "label", *IMAGE, "SUVR", "SUVR_sd", "SUVR_real", "low", "high", "covered",
            "positive", "SUVR_change", "measured_on")
# score -> heading and decimals
HEADINGS = {"PSNR_brain": ("PSNR (dB)", 2), "SSIM_brain": ("SSIM", 3), "MAE_brain": ("MAE", 4),
            "SUVR_bias": ("bias of the SUVR", 3), "SUVR_r": ("r", 2), "SUVR_slope": ("slope", 2),
            "AUC": ("AUC", 2), "coverage": ("coverage", 2), "same_status": ("same status", 2),
            "SUVR_abs_change": ("mean abs. change of the SUVR", 3)}


class Frozen(NamedTuple):
    """What the test stage of the experiment fixed: the calibration of the SUVR, or None without regions, and
    the threshold of the SUVR for positive status, or NaN."""
    calibration: Calibration | None
    threshold: float


def judge(measured: pd.DataFrame, frozen: Frozen) -> pd.DataFrame:
    """A row a disturbance and subject, with what follows from its SUVR: the ends `low` and `high` of the
    calibrated interval; covered, whether that holds the real one; positive, the status at the threshold (all
    0 or 1, or NaN); SUVR_change, against the undisturbed MRI.

    measured: columns disturbance, ID, label, IMAGE, measured_on, and with regions SUVR, SUVR_sd, SUVR_real;
    the undisturbed MRIs first.
    """
    table = measured.copy()
    if frozen.calibration:
        suvr, real = table["SUVR"].to_numpy(float), table["SUVR_real"].to_numpy(float)
        low, high = frozen.calibration.interval(suvr, table["SUVR_sd"].to_numpy(float))
        known = np.isfinite(low + high + real)
        undisturbed = _rows_of(table, "undisturbed").set_index("ID")["SUVR"]
        table = table.assign(
            low=low, high=high, covered=np.where(known, (low <= real) & (real <= high), np.nan),
            positive=np.where(np.isfinite(suvr + frozen.threshold), suvr >= frozen.threshold, np.nan),
            SUVR_change=suvr - table["ID"].map(undisturbed).to_numpy(float))
    return table[[name for name in SUBJECTS if name in table]]


def make_table(subjects: pd.DataFrame, texts: dict[str, str], resamples: int, seed: int) -> pd.DataFrame:
    """A row a disturbance: n, each score, its change against the undisturbed MRI under <score>_change, and
    the paired 95 % bootstrap interval of that change under <score>_change_low and _high; same_status, the
    share of subjects whose status stays, and SUVR_abs_change, the mean absolute change of their SUVR, with
    intervals under <score>_low and _high.

    subjects: as judge gives them. texts: disturbance -> what it is, the undisturbed one among them.
    """
    seed, rows = derived_seed("robustness", seed), []
    undisturbed = _rows_of(subjects, "undisturbed")
    before = _replicates(_scores_of, undisturbed, undisturbed, resamples, seed)
    for name, text in texts.items():
        own = _rows_of(subjects, name)
        if own["ID"].tolist() != undisturbed["ID"].tolist():
            raise AssertionError(f"{name}: other subjects than those of the undisturbed MRIs")
        row = {"disturbance": name, "text": text, "n": len(own)}
        values, replicates = _replicates(_scores_of, own, undisturbed, resamples, seed)
        for i, score in enumerate(_names(subjects)):
            low, high = interval(replicates[i] - before[1][i])
            row |= {score: values[i], f"{score}_change": values[i] - before[0][i],
                    f"{score}_change_low": float(low), f"{score}_change_high": float(high)}
        if "SUVR" in subjects:
            values, replicates = _replicates(_against, own, undisturbed, resamples, seed)
            for i, score in enumerate(AGAINST):
                low, high = interval(replicates[i])
                row |= {score: values[i], f"{score}_low": float(low), f"{score}_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)


def _rows_of(table: pd.DataFrame, disturbance: str) -> pd.DataFrame:
    return table[table["disturbance"] == disturbance].reset_index(drop=True)


def _names(subjects: pd.DataFrame) -> tuple[str, ...]:
    """The scores that there are."""
    return IMAGE + (UPTAKE if "SUVR" in subjects else ())


def _replicates(statistic: Callable, own: pd.DataFrame, undisturbed: pd.DataFrame, resamples: int,
                seed: int) -> tuple[ndarray, ndarray]:
    """Values of a statistic of the subjects [k], and their bootstrap replicates [k, resamples]."""
    def of_subjects(index: ndarray) -> ndarray:
        """The statistic of lists of subjects: [R, n] -> [k, R]."""
        return statistic(own, undisturbed, index)
    return (of_subjects(np.arange(len(own))[None])[:, 0],
            bootstrap(of_subjects, len(own), resamples, seed))


def _scores_of(own: pd.DataFrame, _undisturbed: pd.DataFrame, index: ndarray) -> ndarray:
    """The scores of lists of subjects, in the order of _names: [R, n] -> [k, R]."""
    scores = [own[name].to_numpy(float)[index].mean(-1) for name in IMAGE]
    if "SUVR" in own:
        real, suvr = own["SUVR_real"].to_numpy(float)[index], own["SUVR"].to_numpy(float)[index]
        r, slope = line(real, suvr)
        scores += [(suvr - real).mean(-1), r, slope, _auc(own["label"].to_numpy()[index], suvr),
                   own["covered"].to_numpy(float)[index].mean(-1)]
    return np.stack(scores)


def _against(own: pd.DataFrame, undisturbed: pd.DataFrame, index: ndarray) -> ndarray:
    """AGAINST of lists of subjects: [R, n] -> [2, R]."""
    positive, before = own["positive"].to_numpy(float), undisturbed["positive"].to_numpy(float)
    same = np.where(np.isfinite(positive + before), positive == before, np.nan)
    change = own["SUVR_change"].abs().to_numpy(float)
    return np.stack([same[index].mean(-1), change[index].mean(-1)])


def line(real: ndarray, synthetic: ndarray) -> tuple[ndarray, ndarray]:
    """Correlation, and slope of synthetic on real by least squares, over the last axis; both [...]. NaN where
    they are not defined; the correlation of a constant is NaN, its slope 0."""
    x, y = (values - values.mean(-1, keepdims=True) for values in (real, synthetic))
    is_constant = np.ptp(synthetic, axis=-1) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
        slope = (x * y).sum(-1) / (x * x).sum(-1)
    no_slope = np.ptp(real, axis=-1) == 0
    slope = np.where(is_constant, 0.0, slope)
    return np.where(is_constant | no_slope, np.nan, r), np.where(no_slope, np.nan, slope)


def _auc(label: ndarray, suvr: ndarray) -> ndarray:
    """AUC of the SUVR over the last axis; NaN where the labels are not those of status."""
    if not np.isin(label, (0, 1)).all():
        return np.full(label.shape[:-1], np.nan)
    return area_under_roc(label, suvr)


# ---------------------------------------------------------------- for a reader

def to_markdown(table: pd.DataFrame, note: str) -> str:
    """The scores inside the brain, and with regions those of the SUVR, each with its change in brackets."""
    parts = ["# Disturbed MRIs", f"{note}.",
             "In round brackets the change against the undisturbed MRI, in square ones its 95 % interval "
             "(paired bootstrap of subjects). All PETs are compared with the real one inside the brain; that "
             "of a turned or shifted MRI is brought back first.",
             _shown(table, IMAGE).to_markdown(index=False, disable_numparse=True)]
    if "SUVR_bias" in table:
        parts += [f"Same status: share of subjects whose status at the frozen threshold of the SUVR stays. "
                  f"Coverage: of the frozen {COVERAGE} % interval.",
                  _shown(table, ("SUVR_bias", "SUVR_abs_change", "SUVR_r", "SUVR_slope")).to_markdown(
                      index=False, disable_numparse=True),
                  _shown(table, ("AUC", "same_status", "coverage")).to_markdown(
                      index=False, disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def _shown(table: pd.DataFrame, scores: tuple[str, ...]) -> pd.DataFrame:
    """The cells of these scores."""
    rows = []
    for row in table.to_dict("records"):
        cells = {"MRI": row["text"], "n": row["n"]}
        for score in scores:
            heading, digits = HEADINGS[score]
            cells[heading] = _cell(row, score, digits)
        rows.append(cells)
    return pd.DataFrame(rows)


def _cell(row: dict, score: str, digits: int) -> str:
    """A score with its change and that one's interval; a dash where it is not known."""
    if not np.isfinite(row[score]):
        return "-"
    value = f"{row[score]:.{digits}f}"
    if row["disturbance"] == "undisturbed":
        return value
    if score in AGAINST:
        return value + _interval_text(row, score, digits, "")
    change = f"{score}_change"
    return f"{value} ({row[change]:+.{digits}f}{_interval_text(row, change, digits, '+')})"


def _interval_text(row: dict, score: str, digits: int, sign: str) -> str:
    """An interval in brackets; nothing where there is none."""
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    if not np.isfinite(low + high):
        return ""
    return f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
