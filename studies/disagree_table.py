"""The table of `python main.py study disagree`: scores by what the label was predicted from, and by whether a
subject's atrophy and amyloid agree."""
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from evaluation.statistics import area_under_roc, bootstrap, interval

RESAMPLES = 2000
LEAST = 10                                                 # subjects of a group and seed that have a row
SCORES = ("PSNR_brain", "SSIM_brain", "r", "slope", "AUC", "AUC_label", "AUC_status")
TITLES = {"discordance": "discordant", "row": "label from", "group": "subjects", "n": "n", "seeds": "seeds",
          "PSNR_brain": "PSNR in brain", "SSIM_brain": "SSIM in brain", "r": "r", "slope": "slope",
          "AUC": "AUC [95 %]", "AUC_label": "AUC of the label", "AUC_status": "AUC without PET",
          "lead": "AUC - without PET", "gain_AUC": "gain in AUC over mri",
          "gain_PSNR": "gain in PSNR over mri"}
ASKED = ("mri", "mri_marker", "mri_marker_gappy", "mri_all", "mri_all_shuffled")  # that criteria are about
GAINS = {"lead": 3, "gain_AUC": 3, "gain_PSNR": 2}         # with their intervals, and the digits of each


def make_table(subjects: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """A row for each share of discordant subjects, budget, row of the study, and group of its test subjects:
    all, concordant, discordant.

    Scores are means over the seeds, with _sd their standard deviation. lead: AUC of the SUVR minus that of
    the status classifier of the same inputs. gain_AUC, gain_PSNR: over the row mri, paired by subject. These
    and the AUC have 95 % intervals: bootstrap over the subjects of every seed.
    """
    records = []
    for (discordance, budget), cohort in subjects.groupby(["discordance", "budget"]):
        for group, members in groups_of(cohort).items():
            for row in order:
                own = members[members["row"] == row]
                if len(own):
                    about = {"discordance": discordance, "budget": budget, "row": row, "group": group}
                    records.append(about | scores_of(own) | gain_of(own, members[members["row"] == "mri"]))
    return pd.DataFrame(records)


def groups_of(cohort: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Name -> subjects: all, and concordant and discordant ones where both are there in numbers."""
    groups = {"all": cohort}
    counts = cohort[cohort["row"] == cohort["row"].iloc[0]].groupby(["seed", "discordant"]).size()
    if cohort["discordant"].nunique() == 2 and counts.min() >= LEAST:
        for name, value in (("concordant", 0), ("discordant", 1)):
            groups[name] = cohort[cohort["discordant"] == value]
    return groups


def scores_of(own: pd.DataFrame) -> dict[str, float]:
    """Scores of one row, mean over the seeds, and their standard deviation with several seeds."""
    by_seed = pd.DataFrame([_of_one_seed(one) for _, one in own.groupby("seed")])
    found = {"n": len(own), "seeds": len(by_seed)}
    for name in SCORES:
        found[name] = by_seed[name].mean()
        found[f"{name}_sd"] = by_seed[name].std(ddof=1) if len(by_seed) > 1 else np.nan
    seeds = {seed: one for seed, one in own.groupby("seed")}
    _, found["AUC_low"], found["AUC_high"] = with_interval(seeds, auc_of)
    found["lead"], found["lead_low"], found["lead_high"] = with_interval(seeds, lead_of)
    return found


# ---------------------------------------------------------------- with intervals

def auc_of(one: pd.DataFrame, indices: np.ndarray) -> np.ndarray:
    """AUC of the SUVR on lists [..., n] of the subjects of a seed."""
    return area_under_roc(one["label"].to_numpy()[indices], one["SUVR"].to_numpy()[indices])


def lead_of(one: pd.DataFrame, indices: np.ndarray) -> np.ndarray:
    """By how much that AUC is above the one without a PET."""
    without = area_under_roc(one["label"].to_numpy()[indices], one["p_status"].to_numpy()[indices])
    return auc_of(one, indices) - without


def gain_in_auc(one: pd.DataFrame, indices: np.ndarray) -> np.ndarray:
    """By how much it is above that of the row mri, whose scores stand in columns that end in _mri."""
    mri = area_under_roc(one["label"].to_numpy()[indices], one["SUVR_mri"].to_numpy()[indices])
    return auc_of(one, indices) - mri


def gain_in_psnr(one: pd.DataFrame, indices: np.ndarray) -> np.ndarray:
    """By how much the mean PSNR in the brain is above that of the row mri, in dB."""
    return (one["PSNR_brain"] - one["PSNR_brain_mri"]).to_numpy()[indices].mean(axis=-1)


def with_interval(seeds: dict[int, pd.DataFrame], score: Callable) -> tuple[float, float, float]:
    """Mean over the seeds of a score of their subjects, and its 95 % interval; NaN without seeds."""
    if not seeds:
        return np.nan, np.nan, np.nan
    values = [float(score(one, np.arange(len(one)))) for one in seeds.values()]
    replicates = [bootstrap(partial(score, one), len(one), RESAMPLES, int(seed))
                  for seed, one in seeds.items()]
    low, high = interval(np.mean(replicates, axis=0))
    return float(np.mean(values)), float(low), float(high)


def _of_one_seed(one: pd.DataFrame) -> dict[str, float]:
    label, real, synthetic = (one[name].to_numpy(float) for name in ("label", "SUVR_real", "SUVR"))
    return {"PSNR_brain": one["PSNR_brain"].mean(), "SSIM_brain": one["SSIM_brain"].mean(),
            "r": np.corrcoef(real, synthetic)[0, 1], "slope": np.polyfit(real, synthetic, 1)[0],
            "AUC": float(area_under_roc(label, synthetic)),
            "AUC_label": float(area_under_roc(label, one["p_label"].to_numpy())),
            "AUC_status": float(area_under_roc(label, one["p_status"].to_numpy()))}


def gain_of(own: pd.DataFrame, mri: pd.DataFrame) -> dict[str, float]:
    """Gains over the row mri, over the seeds that both have."""
    scores = mri[["seed", "ID", "SUVR", "PSNR_brain"]]
    both = own.merge(scores, on=["seed", "ID"], suffixes=("", "_mri"))
    seeds = {seed: one for seed, one in both.groupby("seed") if len(one) == (own["seed"] == seed).sum()}
    found = {}
    for name, score in (("gain_AUC", gain_in_auc), ("gain_PSNR", gain_in_psnr)):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = with_interval(seeds, score)
    return found


# ---------------------------------------------------------------- what was asked

def make_criteria(table: pd.DataFrame) -> pd.DataFrame:
    """What the study asks, and what was found, for all subjects at the base budget.

    Columns: discordance, criterion, found, wanted, reached.
    """
    chosen = table[(table["budget"] == "base") & (table["group"] == "all")]
    criteria = []
    for discordance, part in chosen.groupby("discordance"):
        row = {record["row"]: record for record in part.to_dict("records")}
        if row.keys() >= {*ASKED}:
            criteria += [{"discordance": discordance} | one for one in _criteria_of(row, discordance)]
    return pd.DataFrame(criteria, columns=["discordance", "criterion", "found", "wanted", "reached"])


def _criteria_of(row: dict[str, dict], discordance: float) -> list[dict]:
    """The criteria at one share of discordant subjects. row: name -> its record of the table."""
    mri, marker, gappy, full, shuffled = (row[name] for name in ASKED)
    kept = gappy["gain_AUC"] / marker["gain_AUC"]
    criteria = [
        _criterion("`mri_all`: AUC minus that without PET", full["lead"], ">= -0.02", full["lead"] >= -0.02),
        _criterion("`mri_marker`: gain in PSNR", marker["gain_PSNR"], "interval above 0",
                   marker["gain_PSNR_low"] > 0),
        _criterion("`mri_marker_gappy`: kept of the gain in AUC", kept, ">= 0.5", kept >= 0.5),
        _criterion("`mri_all_shuffled`: gain in AUC", shuffled["gain_AUC"], "interval not above 0",
                   shuffled["gain_AUC_low"] <= 0),
    ]
    if discordance == 0.6:
        gain = marker["gain_AUC"]
        criteria.append(_criterion("`mri_marker`: gain in AUC", gain, ">= 0.08", gain >= 0.08))
    if discordance == 1:
        low, high = mri["AUC_low"], mri["AUC_high"]
        criteria.append(_criterion("`mri`: AUC", mri["AUC"], f"0.5 in [{low:.2f}, {high:.2f}]",
                                   low <= 0.5 <= high))
    return criteria


def _criterion(criterion: str, found: float, wanted: str, reached: bool) -> dict:
    """A row of make_criteria."""
    return {"criterion": criterion, "found": found, "wanted": wanted, "reached": bool(reached)}


# ---------------------------------------------------------------- Markdown

def to_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, a section for each share of discordant subjects and budget; before them, what
    was asked."""
    parts, criteria = [], make_criteria(table)
    if len(criteria):
        texts = {"found": criteria["found"].map("{:.3f}".format),
                 "reached": criteria["reached"].map({True: "yes", False: "no"})}
        shown = criteria.assign(**texts).to_markdown(index=False, disable_numparse=True)
        parts.append(f"### What was asked\n\n{shown}\n")
    for (discordance, budget), part in table.groupby(["discordance", "budget"]):
        rows = [{TITLES[name]: _shown(record, name) for name in TITLES if name != "discordance"}
                for record in part.to_dict("records")]
        title = f"### {discordance:.0%} of the subjects discordant" + (
            "" if budget == "base" else ", long training"
        )
        parts.append(f"{title}\n\n{pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)}\n")
    return "\n".join(parts)


def _shown(record: dict, name: str) -> str:
    value = record[name]
    if name in ("row", "group", "n", "seeds"):
        return str(value)
    if np.isnan(value):
        return ""
    places = 2 if name == "PSNR_brain" else 3
    if digits := GAINS.get(name):
        low, high = record[f"{name}_low"], record[f"{name}_high"]
        return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    std = record.get(f"{name}_sd", np.nan)
    spread = "" if np.isnan(std) else f" ± {std:.{places}f}"
    span = f" [{record['AUC_low']:.2f}, {record['AUC_high']:.2f}]" if name == "AUC" else ""
    return f"{value:.{places}f}{spread}{span}"
