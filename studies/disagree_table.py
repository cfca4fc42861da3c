"""The table of `python main.py study disagree`: scores by what the label was predicted from, and by whether a
subject's atrophy and amyloid agree."""
import numpy as np
import pandas as pd

from evaluation.statistics import area_under_roc, bootstrap, interval

RESAMPLES = 2000
LEAST = 10                                                 # subjects of a group and seed that have a row
SCORES = ("PSNR_brain", "SSIM_brain", "r", "slope", "AUC", "AUC_label", "AUC_status")
TITLES = {"discordance": "discordant", "row": "label from", "group": "subjects", "n": "n", "seeds": "seeds",
          "PSNR_brain": "PSNR in brain", "SSIM_brain": "SSIM in brain", "r": "r", "slope": "slope",
          "AUC": "AUC [95 %]", "AUC_label": "AUC of the label", "AUC_status": "AUC without PET",
          "gain_AUC": "gain in AUC over mri"}


def make_table(subjects: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """A row for each share of discordant subjects, budget, row of the study, and group of its test subjects:
    all, concordant, discordant.

    Scores are means over the seeds, with _sd their standard deviation. The AUC and its gain over the row mri
    have 95 % intervals: bootstrap over the subjects of every seed.
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
    replicates = [_auc_replicates(one, int(seed)) for seed, one in own.groupby("seed")]
    found["AUC_low"], found["AUC_high"] = map(float, interval(np.mean(replicates, axis=0)))
    return found


def _auc_replicates(one: pd.DataFrame, seed: int) -> np.ndarray:
    """AUC of the SUVR on resampled subjects of a seed, [resamples]."""
    label, suvr = one["label"].to_numpy(), one["SUVR"].to_numpy()

    def auc(indices: np.ndarray) -> np.ndarray:
        """AUC on resampled lists [..., n]."""
        return area_under_roc(label[indices], suvr[indices])
    return bootstrap(auc, len(label), RESAMPLES, seed)


def _of_one_seed(one: pd.DataFrame) -> dict[str, float]:
    label, real, synthetic = (one[name].to_numpy(float) for name in ("label", "SUVR_real", "SUVR"))
    return {"PSNR_brain": one["PSNR_brain"].mean(), "SSIM_brain": one["SSIM_brain"].mean(),
            "r": np.corrcoef(real, synthetic)[0, 1], "slope": np.polyfit(real, synthetic, 1)[0],
            "AUC": float(area_under_roc(label, synthetic)),
            "AUC_label": float(area_under_roc(label, one["p_label"].to_numpy())),
            "AUC_status": float(area_under_roc(label, one["p_status"].to_numpy()))}


def gain_of(own: pd.DataFrame, mri: pd.DataFrame) -> dict[str, float]:
    """Gain in AUC over the row mri, mean over the seeds that both have, with its 95 % interval."""
    gains = []
    for seed, one in own.groupby("seed"):
        other = mri[mri["seed"] == seed].set_index("ID")
        if len(other) == len(one):
            label, mine = one["label"].to_numpy(), one["SUVR"].to_numpy()
            theirs = other.loc[one["ID"], "SUVR"].to_numpy()
            gains.append(_gains(label, mine, theirs, int(seed)))
    if not gains:
        return dict.fromkeys(("gain_AUC", "gain_AUC_low", "gain_AUC_high"), np.nan)
    low, high = interval(np.mean([replicates for _, replicates in gains], axis=0))
    return {"gain_AUC": float(np.mean([gain for gain, _ in gains])), "gain_AUC_low": float(low),
            "gain_AUC_high": float(high)}


def _gains(label: np.ndarray, mine: np.ndarray, theirs: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """The gain in AUC on one list [n], and its replicates [resamples] over the subjects."""
    def gain(indices: np.ndarray) -> np.ndarray:
        """Gain on resampled lists [..., n]."""
        picked = label[indices]
        return area_under_roc(picked, mine[indices]) - area_under_roc(picked, theirs[indices])
    return float(gain(np.arange(len(label)))), bootstrap(gain, len(label), RESAMPLES, seed)


def to_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, a section for each share of discordant subjects and budget."""
    parts = []
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
    if name == "gain_AUC":
        return f"{value:+.3f} [{record['gain_AUC_low']:+.3f}, {record['gain_AUC_high']:+.3f}]"
    std = record.get(f"{name}_sd", np.nan)
    spread = "" if np.isnan(std) else f" ± {std:.{places}f}"
    span = f" [{record['AUC_low']:.2f}, {record['AUC_high']:.2f}]" if name == "AUC" else ""
    return f"{value:.{places}f}{spread}{span}"
