"""The tables of the study, from the per-subject CSVs of its experiments: a row a repair, and the bars that it set out for."""
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from config import BASELINES
from evaluation.results import load_run
from evaluation.statistics import agreement, area_under_roc, bootstrap, interval

METHODS = ("mean_pet", *BASELINES, "oracle")               # beside il_cldm
TABLE = ("PSNR_brain", "SSIM_brain", "gap_share", "AUC", "AUC_MRI_PET", "AUC_stacked", "r", "slope", "coverage", "Brier", "s_train", "s_test")
CHOICE = ("PSNR_brain", "MSE_brain", "AUC", "r")           # of the validation list
VALIDATION_HEADINGS = {"row": "row", "change": "differs from", "source": "source", "n": "seeds",
                       "validation_PSNR_brain": "PSNR in brain", "gain": "gain [95 %]",
                       "validation_MSE_brain": "MSE in brain, 1e-4", "validation_AUC": "AUC", "validation_r": "r",
                       "s_train": "s to train", "s_test": "s to score"}
TEST_HEADINGS = {"row": "row", "n": "seeds", "PSNR_brain": "PSNR in brain", "SSIM_brain": "SSIM in brain", "gap_share": "gap_share", "AUC": "AUC",
                 "AUC_MRI_PET": "AUC with MRI", "AUC_stacked": "AUC stacked", "r": "r", "slope": "slope",
                 "coverage": "coverage", "Brier": "Brier"}
BAR_HEADINGS = {"bar": "bar", "found": "found", "wanted": "wanted", "reached": "reached"}


def mean_squared_error(scores: pd.DataFrame) -> float:
    """Mean over subjects of the squared error inside the brain, from PSNR at data range 1."""
    return float((10 ** (-scores["PSNR_brain"] / 10)).mean())


def uptake_scores(label: pd.Series, real: pd.Series, synthetic: pd.Series) -> dict[str, float]:
    """AUC of the synthetic SUVR, and its agreement with the real one: r, slope."""
    agrees = agreement(real.to_numpy(), synthetic.to_numpy())
    return {"AUC": float(area_under_roc(label.to_numpy(), synthetic.to_numpy())), "r": agrees["Pearson"], "slope": agrees["slope"]}


def read_scores(folder: Path, row: str, seed: int, seconds: pd.Series) -> pd.DataFrame:
    """The scores of an experiment, a row a method of it: il_cldm under the row's name, its controls if it is the default.

    seconds: what its parts took, indexed by (experiment, part).
    """
    run = load_run(folder)
    images, uptake = (frame.set_index("ID").groupby("method") for frame in (run.test, run.uptake))
    calls = run.predictions.set_index("ID").groupby(["classifier", "method"])
    errors = {method: mean_squared_error(scores) for method, scores in images}
    methods = {"il_cldm": row} | ({name: name for name in METHODS} if row == "default" else {})
    rows, real = [], uptake.get_group("real")
    for method, name in methods.items():
        if method not in errors:
            continue
        scores, suvr = images.get_group(method), uptake.get_group(method)
        both = calls.get_group(("mri_pet", method))
        rows.append({"row": name, "seed": seed, "subjects": len(suvr), **scores[["PSNR_brain", "SSIM_brain"]].mean(),
                     "gap_share": (errors["mean_pet"] - errors[method]) / (errors["mean_pet"] - errors["oracle"]),
                     **uptake_scores(suvr["label"], real["SUVR"], suvr["SUVR"].reindex(real.index)),
                     "AUC_MRI_PET": float(area_under_roc(both["label"].to_numpy(), both["score"].to_numpy()))})
    mri = calls.get_group(("mri", "none"))
    if row == "default":
        rows.append({"row": "MRI classifier", "seed": seed, "subjects": len(mri),
                     "AUC": float(area_under_roc(mri["label"].to_numpy(), mri["score"].to_numpy())),
                     "Brier": float(((mri["score"] - mri["label"]) ** 2).mean())})
        rows.append({"row": "label predictor", "seed": seed, **_label_predictor(folder)})
    test = uptake.get_group("il_cldm")[["label", "SUVR"]].assign(score_mri=mri["score"])
    rows[0] |= _uncertainty(folder) | _validation(folder) | {"AUC_stacked": stacked(pd.read_csv(folder / "validation_list.csv"), test)}
    rows[0] |= {f"s_{part}": seconds.get((folder.name, part), np.nan) for part in ("train", "test")}
    label, score = (uptake.get_group("il_cldm")[name].to_numpy() for name in ("label", "SUVR"))
    draws = bootstrap(lambda chosen: area_under_roc(label[chosen], score[chosen]), len(label), 1000, seed)
    rows[0] |= dict(zip(("AUC_low", "AUC_high"), map(float, interval(draws)), strict=True))
    return pd.DataFrame(rows)


def _uncertainty(folder: Path) -> dict[str, float]:
    """Coverage of the test list's intervals, and the Brier score of its probabilities beside that of the base rate."""
    table = pd.read_csv(folder / "uncertainty.csv")
    base = pd.read_csv(folder / "validation_list.csv")["label"].mean()
    return {"coverage": table["covered"].mean(), "Brier": ((table["probability"] - table["label"]) ** 2).mean(),
            "Brier_base": ((base - table["label"]) ** 2).mean()}


def stacked(validation: pd.DataFrame, test: pd.DataFrame) -> float:
    """AUC on the test list of MRI and synthetic PET together, weighed on synthetic PETs: a logistic regression of the log odds of the MRI
    classifier and the synthetic SUVR, fitted on the validation list (stacking, Wolpert 1992). NaN if that has one label only, or an SUVR is
    missing.

    validation, test: columns label, score_mri and SUVR.
    """
    if validation["label"].nunique() < 2 or not np.isfinite(np.r_[validation["SUVR"], test["SUVR"]]).all():
        return float("nan")
    seen = [np.column_stack([logit(table["score_mri"].clip(1e-9, 1 - 1e-9)), table["SUVR"]]) for table in (validation, test)]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(seen[0], validation["label"])
    return float(area_under_roc(test["label"].to_numpy(), model.decision_function(seen[1])))


def _label_predictor(folder: Path) -> dict[str, float]:
    """How well what predicts the label from the MRI tells the status, without any PET."""
    table = pd.read_csv(folder / "uncertainty.csv")
    return {"AUC": float(area_under_roc(table["label"].to_numpy(), table["p_mri"].to_numpy())),
            "Brier": ((table["p_mri"] - table["label"]) ** 2).mean()}


def _validation(folder: Path) -> dict[str, float]:
    """The scores of the validation list, by which choices are made."""
    table = pd.read_csv(folder / "validation_list.csv")
    scores = {"PSNR_brain": table["PSNR_brain"].mean(), "MSE_brain": 1e4 * mean_squared_error(table),
              **uptake_scores(table["label"], table["SUVR_real"], table["SUVR"])}
    return {f"validation_{name}": scores[name] for name in CHOICE}


def read_gains(folders: dict[tuple[str, int], Path], of: dict[str, str]) -> pd.DataFrame:
    """How far a row is above the one that it differs from in brain-only PSNR (dB) of the validation list, where both have the same one:
    gain, and its 95 % bootstrap interval over the subjects of all seeds, gain_low and gain_high.

    folders: (row, seed) -> folder of its results; of: row -> the one that it differs from.
    """
    lists = {run: pd.read_csv(folder / "validation_list.csv") for run, folder in folders.items()}
    gains = {}                                             # row -> dB of each subject, seed by seed
    for (row, seed), own in lists.items():
        other = lists.get((of[row], seed))
        if row != of[row] and other is not None and own["SUVR_real"].equals(other["SUVR_real"]):
            gains.setdefault(row, []).extend(own["PSNR_brain"] - other["PSNR_brain"])

    def summary(gain: np.ndarray) -> tuple[float, float, float]:
        return gain.mean(), *map(float, interval(bootstrap(lambda chosen: gain[chosen].mean(-1), len(gain), 1000, 0)))
    return pd.DataFrame.from_dict({row: summary(np.array(gain)) for row, gain in gains.items()}, orient="index",
                                  columns=["gain", "gain_low", "gain_high"])


def make_table(scores: pd.DataFrame, gains: pd.DataFrame, about: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """A row a row of the study, each score its mean over the seeds and its SD under <score>_sd. gains: as read_gains gives them; about:
    row -> (change, source)."""
    columns = [name for name in (*(f"validation_{name}" for name in CHOICE), *TABLE) if name in scores]
    groups = scores.groupby("row", sort=False)[columns]
    table = groups.mean().join(groups.std().add_suffix("_sd"))
    table.insert(0, "n", scores.groupby("row", sort=False)["seed"].nunique())
    described = pd.DataFrame([about.get(row, ("", "control")) for row in table.index], index=table.index, columns=["change", "source"])
    return described.join(table).join(gains).reset_index()


def make_bars(scores: pd.DataFrame) -> pd.DataFrame:
    """What the default set out for, on the test lists: bar, found and found_sd (mean and SD over seeds), wanted, reached. Rows that are
    missing have no bar."""
    by_row = {row: group.set_index("seed") for row, group in scores.groupby("row")}
    default, bars = by_row.get("default"), []

    def add(bar: str, found: pd.Series, wanted: str, reached: bool) -> None:
        bars.append({"bar": bar, "found": found.mean(), "found_sd": found.std(), "wanted": wanted, "reached": bool(reached)})

    def against(bar: str, column: str, other: str, factor: float, less: float, others: str = "") -> None:
        """default's column at least factor x that of the other row (others, if it has another name) - less, in the mean over seeds."""
        if other in by_row:
            least = factor * by_row[other][others or column].mean() - less
            add(bar, default[column], f">= {least:.3f}", default[column].mean() >= least)

    if default is None:
        return pd.DataFrame(columns=["bar", "found", "found_sd", "wanted", "reached"])
    against("PSNR in brain, against latent_regression - 0.1 dB", "PSNR_brain", "latent_regression", 1, 0.1)
    add("share of the gap from mean_pet to oracle in squared error", default["gap_share"], ">= 0.7", default["gap_share"].mean() >= 0.7)
    against("AUC of the SUVR, against the MRI classifier - 0.02", "AUC", "MRI classifier", 1, 0.02)
    against("AUC of the SUVR, against the label predictor - 0.02", "AUC", "label predictor", 1, 0.02)
    against("AUC of MRI and synthetic PET, against MRI alone", "AUC_MRI_PET", "MRI classifier", 1, 0, "AUC")
    against("r of the SUVR, against 0.85 of the oracle's", "r", "oracle", 0.85, 0)
    against("slope of the SUVR, against 0.6 of the oracle's", "slope", "oracle", 0.6, 0)
    for row in ("link_0", "link_0_shuffled"):
        for seed, one in (by_row[row].iterrows() if row in by_row else ()):
            add(f"{row}: AUC, seed {seed}", one[["AUC"]], f"0.5 in [{one['AUC_low']:.2f}, {one['AUC_high']:.2f}]",
                one["AUC_low"] <= 0.5 <= one["AUC_high"])
    add("coverage of the 90 % intervals of the SUVR", default["coverage"], "0.85 to 0.95", 0.85 <= default["coverage"].mean() <= 0.95)
    brier, base = default["Brier"], default["Brier_base"].mean()
    add("Brier score of the status probability, against the base rate's", brier, f"< {base:.3f}", brier.mean() < base)
    return pd.DataFrame(bars)


def to_markdown(table: pd.DataFrame, bars: pd.DataFrame) -> str:
    """What choices are made by, what came of them, and the bars, as Markdown; a score as mean ± SD over the seeds."""
    chosen = table[np.isfinite(table["validation_PSNR_brain"])]
    return "\n".join(["**Validation list**, by which choices are made:", "", _shown(chosen, VALIDATION_HEADINGS), "",
                      "**Test list**:", "", _shown(table, TEST_HEADINGS), "",
                      "**What the default set out for**, test list:", "", _shown(bars, BAR_HEADINGS, digits=3), ""])


def _shown(table: pd.DataFrame, headings: dict[str, str], digits: int = 2) -> str:
    """The columns that have a heading, as Markdown."""
    cells = {}
    for name, heading in headings.items():
        if name == "gain":
            cells[heading] = [f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]" if np.isfinite(gain) else ""
                              for gain, low, high in table[["gain", "gain_low", "gain_high"]].to_numpy()]
        elif f"{name}_sd" in table:
            cells[heading] = [_cell(mean, sd, 0 if name.startswith("s_") else digits)
                              for mean, sd in zip(table[name], table[f"{name}_sd"], strict=True)]
        elif name in table:
            cells[heading] = table[name].replace({True: "yes", False: "no"}) if name == "reached" else table[name]
    return pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)


def _cell(mean: float, sd: float, digits: int) -> str:
    if not np.isfinite(mean):
        return ""
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if np.isfinite(sd) else "")
