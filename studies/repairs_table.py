"""The tables of the study: scores and gains of every row, and the criteria of the default.

They are made from the per-subject results of its experiments.
"""
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from config import REGRESSIONS
from evaluation.results import Run
from evaluation.statistics import agreement, area_under_roc, bootstrap, interval

METHODS = ("mean_pet", *REGRESSIONS, "oracle")              # rows beside il_cldm, of the default's experiment
RESAMPLES = 1000                                           # of subjects, behind every 95 % interval
TABLE = ("PSNR_brain", "SSIM_brain", "gap_share", "AUC", "AUC_MRI_PET", "AUC_stacked", "r", "slope",
         "coverage", "Brier", "s_train", "s_test")         # of the test list, and seconds
CHOICE = ("PSNR_brain", "MSE_brain", "AUC", "r")           # of the validation list, by which choices are made
VALIDATION_HEADINGS = {"row": "row", "change": "differs from", "source": "source", "n": "seeds",
                       "validation_PSNR_brain": "PSNR in brain (dB)", "gain": "gain (dB) [95 %]",
                       "validation_MSE_brain": "MSE in brain (1e-4)", "validation_AUC": "AUC",
                       "validation_r": "r", "s_train": "training (s)", "s_test": "test (s)"}
TEST_HEADINGS = {"row": "row", "n": "seeds",
                 "PSNR_brain": "PSNR in brain (dB)", "SSIM_brain": "SSIM in brain",
                 "gap_share": "share of the gap", "AUC": "AUC", "AUC_MRI_PET": "AUC with MRI",
                 "AUC_stacked": "AUC stacked", "r": "r", "slope": "slope", "coverage": "coverage",
                 "Brier": "Brier"}
CRITERIA_HEADINGS = {"criterion": "criterion", "found": "found", "wanted": "wanted", "reached": "reached"}


# ---------------------------------------------------------------- the scores of one experiment

def score_run(run: Run, row: str, seed: int, seconds: pd.Series) -> pd.DataFrame:
    """The scores of an experiment, a row a method: il_cldm under the row's name, and beside the default its
    baselines, the MRI classifier and the label predictor.

    seconds: of the parts of experiments, indexed by (experiment, part); NaN where one is missing.
    """
    own = score_method(run, "il_cldm") | _uncertainty(run) | _validation_scores(run.validation_list)
    own["AUC_stacked"] = _stacked_auc(run)
    for part in ("train", "test"):
        own[f"s_{part}"] = seconds.get((run.name, part), np.nan)
    own["AUC_low"], own["AUC_high"] = auc_interval(of_method(run.uptake, "il_cldm"), seed)
    rows = {row: own}
    if row == "default":
        for method in METHODS:
            if method in set(run.test["method"]):
                rows[method] = score_method(run, method)
        rows["MRI classifier"] = _mri_classifier(run)
        rows["label predictor"] = _label_predictor(run)
    return pd.DataFrame([{"row": name, "seed": seed, **scores} for name, scores in rows.items()])


def of_method(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """The subjects of a method, indexed by ID."""
    return table[table["method"] == method].set_index("ID")


def read_by(run: Run, classifier: str, method: str) -> pd.DataFrame:
    """The scores that a status classifier gives the test subjects with the PETs of a method, indexed by ID.

    method: 'none' for a classifier that sees no PET.
    """
    return of_method(run.predictions[run.predictions["classifier"] == classifier], method)


def score_method(run: Run, method: str) -> dict[str, float]:
    """The scores of a method's PETs on the test list: image, share of the gap to the oracle, uptake, and
    status read from MRI and PET together."""
    images, both = of_method(run.test, method), read_by(run, "mri_pet", method)
    real, synthetic = of_method(run.uptake, "real"), of_method(run.uptake, method)
    error = mean_squared_error(images)
    worst, best = (mean_squared_error(of_method(run.test, name)) for name in ("mean_pet", "oracle"))
    return {"subjects": len(synthetic), **images[["PSNR_brain", "SSIM_brain"]].mean(),
            "gap_share": (worst - error) / (worst - best),
            **uptake_scores(real["label"], real["SUVR"], synthetic["SUVR"].reindex(real.index)),
            "AUC_MRI_PET": auc(both["label"], both["score"])}


def mean_squared_error(scores: pd.DataFrame) -> float:
    """Mean over subjects of the squared error inside the brain, from PSNR at data range 1."""
    return float((10 ** (-scores["PSNR_brain"] / 10)).mean())


def auc(label: pd.Series, score: pd.Series) -> float:
    """AUC of scores for labels 0 and 1, subject by subject."""
    return float(area_under_roc(label.to_numpy(), score.to_numpy()))


def auc_interval(subjects: pd.DataFrame, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC of the SUVR. subjects: columns label and SUVR."""
    label, suvr = subjects["label"].to_numpy(), subjects["SUVR"].to_numpy()

    def auc_of(chosen: np.ndarray) -> np.ndarray:
        """AUC of these subjects, [R, n] indices -> [R]."""
        return area_under_roc(label[chosen], suvr[chosen])
    low, high = interval(bootstrap(auc_of, len(label), RESAMPLES, seed))
    return float(low), float(high)


def uptake_scores(label: pd.Series, real: pd.Series, synthetic: pd.Series) -> dict[str, float]:
    """AUC of the synthetic SUVR, and its agreement with the real one: Pearson's r, and the slope of synthetic
    on real."""
    agrees = agreement(real.to_numpy(), synthetic.to_numpy())
    return {"AUC": auc(label, synthetic), "r": agrees["Pearson"], "slope": agrees["slope"]}


def brier_score(probability: pd.Series | float, label: pd.Series) -> float:
    """Mean squared distance of the probability of a positive status from the status."""
    return float(((probability - label) ** 2).mean())


def _mri_classifier(run: Run) -> dict[str, float]:
    """Status from the MRI alone, by a classifier that was fitted for it."""
    mri = read_by(run, "mri", "none")
    return {"subjects": len(mri), "AUC": auc(mri["label"], mri["score"]),
            "Brier": brier_score(mri["score"], mri["label"])}


def _label_predictor(run: Run) -> dict[str, float]:
    """Status from the MRI alone, by the predictor of the label that sampling is conditioned on."""
    table = run.uncertainty
    return {"AUC": auc(table["label"], table["p_mri"]), "Brier": brier_score(table["p_mri"], table["label"])}


def _uncertainty(run: Run) -> dict[str, float]:
    """Coverage of the test list's intervals, and the Brier score of its probabilities beside that of the base
    rate."""
    table, base_rate = run.uncertainty, run.validation_list["label"].mean()
    return {"coverage": table["covered"].mean(), "Brier": brier_score(table["probability"], table["label"]),
            "Brier_base": brier_score(base_rate, table["label"])}


def _validation_scores(table: pd.DataFrame) -> dict[str, float]:
    """The scores of the validation list, by which choices are made."""
    scores = {"PSNR_brain": table["PSNR_brain"].mean(), "MSE_brain": 1e4 * mean_squared_error(table),
              **uptake_scores(table["label"], table["SUVR_real"], table["SUVR"])}
    return {f"validation_{name}": scores[name] for name in CHOICE}


def _stacked_auc(run: Run) -> float:
    """stacked_auc of the validation and the test list of an experiment."""
    test = of_method(run.uptake, "il_cldm")[["label", "SUVR"]]
    return stacked_auc(run.validation_list, test.assign(score_mri=read_by(run, "mri", "none")["score"]))


def stacked_auc(validation: pd.DataFrame, test: pd.DataFrame) -> float:
    """AUC of MRI and synthetic PET together on the test list, weighed by stacking (Wolpert 1992).

    A logistic regression of the log odds of the MRI classifier and the synthetic SUVR is fitted on the
    validation list, so on synthetic PETs. NaN if that list has one label only, or an SUVR is missing.
    validation, test: columns label, score_mri and SUVR.
    """
    suvr = pd.concat([validation["SUVR"], test["SUVR"]])
    if validation["label"].nunique() < 2 or not np.isfinite(suvr).all():
        return float("nan")
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(_log_odds_and_suvr(validation), validation["label"])
    return float(area_under_roc(test["label"].to_numpy(), model.decision_function(_log_odds_and_suvr(test))))


def _log_odds_and_suvr(table: pd.DataFrame) -> np.ndarray:
    """[n, 2], the features of stacked_auc."""
    return np.column_stack([logit(table["score_mri"].clip(1e-9, 1 - 1e-9)), table["SUVR"]])


# ---------------------------------------------------------------- a row of the study: all its seeds

def gains_of(lists: dict[tuple[str, int], pd.DataFrame], of: dict[str, str]) -> pd.DataFrame:
    """The gain of a row over the one that it differs from, in PSNR in the brain (dB) of the validation list,
    where both have the same one.

    Columns: gain, and its 95 % bootstrap interval over the subjects of all seeds, gain_low and gain_high.
    lists: (row, seed) -> validation list, with the columns PSNR_brain and SUVR_real.
    of: row -> the row that it differs from.
    """
    by_subject = {}                                        # row -> dB of each subject, seed by seed
    for (row, seed), own in lists.items():
        other = lists.get((of[row], seed))
        if row == of[row] or other is None or not own["SUVR_real"].equals(other["SUVR_real"]):
            continue
        by_subject.setdefault(row, []).extend(own["PSNR_brain"] - other["PSNR_brain"])
    gains = {row: _mean_with_interval(np.array(values)) for row, values in by_subject.items()}
    return pd.DataFrame.from_dict(gains, orient="index", columns=["gain", "gain_low", "gain_high"])


def _mean_with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of [n], and its 95 % bootstrap interval."""
    def mean_of(chosen: np.ndarray) -> np.ndarray:
        """Mean of these subjects, [R, n] indices -> [R]."""
        return values[chosen].mean(-1)
    low, high = interval(bootstrap(mean_of, len(values), RESAMPLES, 0))
    return float(values.mean()), float(low), float(high)


def make_table(scores: pd.DataFrame, gains: pd.DataFrame, about: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """One row for each row of the study: the mean of each score over the seeds, and its SD under <score>_sd.

    scores: those of score_run, of all experiments. gains: as gains_of gives them.
    about: row -> (change, source).
    """
    wanted = [*(f"validation_{name}" for name in CHOICE), *TABLE]
    columns = [name for name in wanted if name in scores]
    by_row = scores.groupby("row", sort=False)
    table = by_row[columns].mean().join(by_row[columns].std().add_suffix("_sd"))
    table.insert(0, "n", by_row["seed"].nunique())
    about_rows = [about.get(row, ("", "baseline")) for row in table.index]
    described = pd.DataFrame(about_rows, index=table.index, columns=["change", "source"])
    return described.join(table).join(gains).reset_index()


# ---------------------------------------------------------------- the criteria of success

class Comparison(NamedTuple):
    """A criterion: the mean of the default's column is at least factor x that of another row's column, less a
    margin."""
    criterion: str
    column: str
    other: str
    other_column: str
    factor: float = 1.0
    margin: float = 0.0


COMPARISONS = (
    Comparison("PSNR in brain, against latent_regression - 0.1 dB", "PSNR_brain", "latent_regression",
               "PSNR_brain", margin=0.1),
    Comparison("AUC of the SUVR, against the MRI classifier - 0.02", "AUC", "MRI classifier", "AUC",
               margin=0.02),
    Comparison("AUC of the SUVR, against the label predictor - 0.02", "AUC", "label predictor", "AUC",
               margin=0.02),
    Comparison("AUC of MRI and synthetic PET, against MRI alone", "AUC_MRI_PET", "MRI classifier", "AUC"),
    Comparison("r of the SUVR, against 0.85 of the oracle's", "r", "oracle", "r", factor=0.85),
    Comparison("slope of the SUVR, against 0.6 of the oracle's", "slope", "oracle", "slope", factor=0.6),
)


def make_criteria(scores: pd.DataFrame) -> pd.DataFrame:
    """The criteria that the default was built for, on the test lists.

    Columns: criterion, found and found_sd (mean and SD over seeds), wanted, reached. Those that compare with
    a row that is missing are left out; without the default there are none.
    """
    by_row = {row: group.set_index("seed") for row, group in scores.groupby("row")}
    if "default" not in by_row:
        return pd.DataFrame(columns=["criterion", "found", "found_sd", "wanted", "reached"])
    default = by_row["default"]
    criteria = []
    for one in COMPARISONS:
        if one.other in by_row:
            least = one.factor * by_row[one.other][one.other_column].mean() - one.margin
            reached = default[one.column].mean() >= least
            criteria.append(_criterion(one.criterion, default[one.column], f">= {least:.3f}", reached))
    share = default["gap_share"]
    criteria.append(_criterion("share of the gap from mean_pet to the oracle in squared error", share,
                               ">= 0.7", share.mean() >= 0.7))
    for row in ("link_0", "link_0_shuffled"):
        if row in by_row:
            criteria += _chance_criteria(row, by_row[row])
    coverage, brier, base = default["coverage"], default["Brier"], default["Brier_base"].mean()
    criteria.append(_criterion("coverage of the 90 % intervals of the SUVR", coverage, "0.85 to 0.95",
                               0.85 <= coverage.mean() <= 0.95))
    criteria.append(_criterion("Brier score of the status probability, against the base rate's", brier,
                               f"< {base:.3f}", brier.mean() < base))
    return pd.DataFrame(criteria)


def _chance_criteria(row: str, by_seed: pd.DataFrame) -> list[dict]:
    """Criteria of a row in which the MRI knows nothing of amyloid: with every seed, chance lies in the
    interval of the AUC."""
    criteria = []
    for seed, scores in by_seed.iterrows():
        low, high = scores["AUC_low"], scores["AUC_high"]
        criteria.append(_criterion(f"{row}: AUC, seed {seed}", scores[["AUC"]],
                                   f"0.5 in [{low:.2f}, {high:.2f}]", low <= 0.5 <= high))
    return criteria


def _criterion(criterion: str, found: pd.Series, wanted: str, reached: bool) -> dict:
    """A row of make_criteria; found: a value a seed."""
    return {"criterion": criterion, "found": found.mean(), "found_sd": found.std(), "wanted": wanted,
            "reached": bool(reached)}


# ---------------------------------------------------------------- Markdown

def to_markdown(table: pd.DataFrame, criteria: pd.DataFrame) -> str:
    """The scores by which choices are made, those of the test list, and the criteria; a score as mean ± SD
    over the seeds."""
    chosen = table[np.isfinite(table["validation_PSNR_brain"])]
    parts = {"**Validation list**, by which choices are made:": _shown(chosen, VALIDATION_HEADINGS),
             "**Test list**:": _shown(table, TEST_HEADINGS),
             "**Criteria of the default**, test list:": _shown(criteria, CRITERIA_HEADINGS, digits=3)}
    return "\n".join(f"{title}\n\n{shown}\n" for title, shown in parts.items())


def _shown(table: pd.DataFrame, headings: dict[str, str], digits: int = 2) -> str:
    """The columns that have a heading, as Markdown."""
    columns = {heading: _texts(table, name, digits) for name, heading in headings.items() if name in table}
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)


def _texts(table: pd.DataFrame, name: str, digits: int) -> list:
    """The cells of a column, with what belongs to each."""
    if name == "gain":
        return [gain_text(*values) for values in table[["gain", "gain_low", "gain_high"]].to_numpy()]
    if name == "reached":
        return ["yes" if reached else "no" for reached in table[name]]
    if f"{name}_sd" in table:
        digits = 0 if name.startswith("s_") else digits    # seconds
        both = zip(table[name], table[f"{name}_sd"], strict=True)
        return [mean_and_sd(mean, sd, digits) for mean, sd in both]
    return table[name].tolist()


def gain_text(gain: float, low: float, high: float) -> str:
    """A gain with its interval; empty for a row that has none."""
    return f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]" if np.isfinite(gain) else ""


def mean_and_sd(mean: float, sd: float, digits: int) -> str:
    """Mean ± SD; without the SD where there is one seed, empty where there is no mean."""
    if not np.isfinite(mean):
        return ""
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if np.isfinite(sd) else "")
