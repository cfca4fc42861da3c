"""The tables and the figure of the study of budgets, from its per-subject scores."""
import numpy as np
import pandas as pd
from numpy import ndarray
from scipy.stats import betabinom

from evaluation.results import Run
from evaluation.statistics import area_under_roc, bootstrap, correlation, interval
from evaluation.uncertainty import COVERAGE
from studies.budget_measure import SAMPLING
from studies.repairs_table import auc, gain_text, gains_of, mean_and_sd, mean_squared_error, uptake_scores

RESAMPLES = 2000                                           # of subjects, behind every 95 % interval
SCORES = ("PSNR_brain", "SSIM_brain", "r", "slope", "AUC")  # with an interval each
KEY = ["method", "budget", *SAMPLING, "is_setting"]        # columns that tell the rows of the table apart
REFERENCES = ("mean_pet", "oracle")                        # lower and upper bound, at budget 0
FEW_STEPS = 20                                             # of the mean of latent samples in the figure
HEADINGS = {"PSNR_brain": ("PSNR in brain (dB)", 2), "SSIM_brain": ("SSIM in brain", 3), "r": ("r", 2),
            "slope": ("slope", 2), "AUC": ("AUC", 2)}


# ---------------------------------------------------------------- the scores of one seed

def scores_of(subjects: pd.DataFrame) -> dict[str, float]:
    """Mean image scores in the brain, and what the SUVR says, of the subjects of a list. MSE in 1e-4."""
    return {**subjects[["PSNR_brain", "SSIM_brain"]].mean(), "MSE_brain": 1e4 * mean_squared_error(subjects),
            **uptake_scores(subjects["label"], subjects["SUVR_real"], subjects["SUVR"])}


def replicates_of(subjects: pd.DataFrame, seed: int) -> ndarray:
    """Bootstrap replicates of the SCORES, [5, RESAMPLES], of the same subjects for every method of a seed."""
    label, real, suvr, psnr, ssim = (
        subjects[name].to_numpy() for name in ("label", "SUVR_real", "SUVR", "PSNR_brain", "SSIM_brain"))

    def statistic(chosen: ndarray) -> ndarray:
        """The SCORES of these subjects, [R, n] indices -> [5, R]."""
        x, y = real[chosen], suvr[chosen]
        off_x, off_y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
        with np.errstate(invalid="ignore"):                # of subjects who are all the same one
            slope = (off_x * off_y).mean(-1) / x.var(-1)
        return np.stack([psnr[chosen].mean(-1), ssim[chosen].mean(-1), correlation(x, y), slope,
                         area_under_roc(label[chosen], y)])
    return bootstrap(statistic, len(subjects), RESAMPLES, seed)


class SeedScores:
    """The scores of every method, budget, sampling and seed.

    table: a row each, with the columns KEY, seed, the scores of the test list, those of the validation list
    under validation_<score>, gap_share (of the way from mean_pet to the oracle in squared error), and what
    else is known of it. replicates: (key, seed) -> those of the test list.
    """

    def __init__(self, subjects: pd.DataFrame):
        rows, self.replicates = [], {}
        for (*key, seed), group in subjects.groupby([*KEY, "seed"], sort=False):
            first = group.iloc[0]
            row = dict(zip(KEY, key, strict=True)) | {"seed": seed, "exp": first["exp"]}
            row |= {name: first[name] for name in ("NFE", "updates", "training_s", "machine")}
            for name, one in group.groupby("list"):
                one = one.sort_values("ID")
                prefix = "" if name == "test" else f"{name}_"
                row |= {f"{prefix}{score}": value for score, value in scores_of(one).items()}
                if name == "test":
                    row["subjects"] = len(one)
                    self.replicates[tuple(key), seed] = replicates_of(one, seed)
            rows.append(row)
        table = pd.DataFrame(rows)
        worst, best = (table[table["method"] == name].set_index("seed")["MSE_brain"] for name in REFERENCES)
        worst, best = table["seed"].map(worst), table["seed"].map(best)
        self.table = table.assign(gap_share=(worst - table["MSE_brain"]) / (worst - best))

    def mean_replicates(self, key: tuple, seeds: list[int]) -> ndarray:
        """Replicates of the mean over these seeds, [5, RESAMPLES]."""
        return np.mean([self.replicates[key, seed] for seed in seeds], axis=0)


# ---------------------------------------------------------------- choices, on the validation list

def best_of(scores: pd.DataFrame, by: list[str]):
    """The value of the columns `by` whose rows have the highest PSNR in the brain on the validation list,
    over the seeds that all of them have; over all seeds where there is no such seed."""
    table = scores.pivot_table(index="seed", columns=by, values="validation_PSNR_brain")
    common = table.dropna()
    return (common if len(common) else table).mean().idxmax()


def best_budgets(scores: pd.DataFrame) -> dict[str, int]:
    """Method -> its best budget, sampled as its settings say."""
    known = scores[scores["is_setting"] & ~scores["method"].isin(REFERENCES)]
    known = known.dropna(subset="validation_PSNR_brain")
    return {method: int(best_of(own, ["budget"])) for method, own in known.groupby("method", sort=False)}


# ---------------------------------------------------------------- over the seeds

def make_table(scores: SeedScores, methods: list[str]) -> pd.DataFrame:
    """A row for each method, budget and sampling: the mean over the seeds of every score, with _sd their
    standard deviation, and the 95 % interval of those of the test list, _low and _high: bootstrap over the
    subjects of every seed. is_best: whether it is the best budget of its method. methods: in their order."""
    records, best = [], best_budgets(scores.table)
    columns = [*SCORES, "MSE_brain", "gap_share"]
    columns += [f"validation_{name}" for name in (*SCORES, "MSE_brain")] + ["training_s"]
    for key, group in scores.table.groupby(KEY, sort=False):
        record = dict(zip(KEY, key, strict=True))
        record |= {"updates": group["updates"].iloc[0], "n": len(group), "subjects": group["subjects"].sum(),
                   "NFE": group["NFE"].iloc[0], "is_best": best.get(key[0]) == key[1],
                   **group[columns].mean(), **group[columns].std().add_suffix("_sd"),
                   "machine": " and ".join(sorted(set(group["machine"]) - {""})),
                   "experiments": " ".join(group["exp"])}
        seeds = [seed for seed in group["seed"] if (key, seed) in scores.replicates]
        if seeds:
            for name, low, high in zip(SCORES, *interval(scores.mean_replicates(key, seeds)), strict=True):
                record |= {f"{name}_low": low, f"{name}_high": high}
        records.append(record)
    order, names = ["method", "budget", "is_setting", "sampler", "steps", "samples"], [*methods, *REFERENCES]
    return pd.DataFrame(records).sort_values(
        order, ascending=[True, True, False, True, True, True], kind="stable",
        key=lambda column: column.map(names.index) if column.name == "method" else column)


def make_best(scores: SeedScores, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of make_table at the best budget of each method: as its settings sample it, and, where the
    validation list prefers another sampling, that one; references too.

    gain, gain_low, gain_high: PSNR in the brain over that of the default at its own best budget, on the test
    lists of the seeds that both have.
    """
    chosen = []
    for method, own in table.groupby("method", sort=False):
        at_best = own[own["is_best"] | (method in REFERENCES)]
        chosen += list(at_best.loc[at_best["is_setting"], KEY].itertuples(index=False, name=None))
        with_all_seeds = at_best[at_best["n"] == at_best["n"].max()]
        if len(with_all_seeds) > 1:
            preferred = best_of(scores.table.merge(with_all_seeds[KEY], on=KEY), KEY)
            chosen += [] if preferred in chosen else [preferred]
    found = table.set_index(KEY).loc[chosen].reset_index()
    default = next((key for key in chosen if key[0] == "default" and key[-1]), None)
    gains = pd.DataFrame([_gain_over(scores, key, default) for key in chosen])
    return pd.concat([found, gains], axis=1)


def _gain_over(scores: SeedScores, key: tuple, other: tuple | None) -> dict[str, float]:
    """Gain of a row in PSNR in the brain over another one, with its 95 % interval; NaN without common
    seeds."""
    seeds = [seed for own, seed in scores.replicates if own == key and (other, seed) in scores.replicates]
    if not seeds or key == other:
        return dict.fromkeys(("gain", "gain_low", "gain_high"), np.nan)
    one, two = (scores.table.set_index([*KEY, "seed"]).loc[[(*row, seed) for seed in seeds], "PSNR_brain"]
                for row in (key, other))
    psnr = SCORES.index("PSNR_brain")
    difference = scores.mean_replicates(key, seeds)[psnr] - scores.mean_replicates(other, seeds)[psnr]
    low, high = interval(difference)
    return {"gain": one.mean() - two.mean(), "gain_low": float(low), "gain_high": float(high)}


def make_repairs(repairs: pd.DataFrame, table: pd.DataFrame, lists: dict[tuple[str, int, int], pd.DataFrame]
                 ) -> pd.DataFrame:
    """Rows of make_table of the repairs and, at the same budgets, of the default, as their settings sample
    them.

    gain, gain_low, gain_high: PSNR in the brain over that of the default at that budget, on the validation
    list, by which choices are made. lists: (method, budget, seed) -> validation list.
    """
    found = []
    for budget, own in repairs[repairs["is_setting"]].groupby("budget"):
        of_default = table[(table["method"] == "default") & (table["budget"] == budget) & table["is_setting"]]
        names = ["default", *own["method"]]
        known = {(name, seed): rows for (name, at, seed), rows in lists.items()
                 if at == budget and name in names}
        gains = gains_of(known, dict.fromkeys(names, "default"))
        found.append(pd.concat([of_default, own]).join(gains, on="method"))
    return pd.concat(found) if found else pd.DataFrame()


# ---------------------------------------------------------------- what the default is to reach

def coverage_range(calibration: int, test: int) -> tuple[float, float]:
    """95 % range of the share of `test` subjects inside intervals that so many subjects calibrated, if both
    lists are alike: a beta-binomial distribution, since the coverage of a split conformal interval is one of
    a beta distribution (Vovk 2012)."""
    rank = -(-(calibration + 1) * COVERAGE // 100)         # of the quantile, counted from 1
    spread = betabinom(test, rank, calibration + 1 - rank)
    return float(spread.ppf(0.025)) / test, float(spread.ppf(0.975)) / test


def make_criteria(scores: pd.DataFrame, runs: dict[int, Run], fresh: dict[int, Run]) -> pd.DataFrame:
    """What the default is to reach at its best budget, on the test lists: columns criterion, found, wanted,
    reached.

    scores: of SeedScores, its rows at that budget as the settings sample it, and those of the oracle. runs:
    seed -> results at that budget. fresh: seed -> those on fresh phantoms, for the coverage, where there are
    some.
    """
    own = scores[scores["method"] == "default"]
    oracle = scores[scores["method"] == "oracle"]
    by_label = np.mean([auc(run.uncertainty["label"], run.uncertainty["p_mri"]) for run in runs.values()])
    least = {"share of the gap from mean_pet to the oracle in squared error": (own["gap_share"].mean(), 0.85),
             "AUC of the SUVR, against the label predictor - 0.01": (own["AUC"].mean(), by_label - 0.01),
             "slope of the SUVR, against 0.7 of the oracle's": (own["slope"].mean(),
                                                                0.7 * oracle["slope"].mean())}
    rows = [{"criterion": name, "found": f"{found:.3f}", "wanted": f">= {wanted:.3f}",
             "reached": bool(found >= wanted)} for name, (found, wanted) in least.items()]
    for seed, run in runs.items():
        covered = fresh.get(seed, run).uncertainty["covered"]
        low, high = coverage_range(len(run.validation_list), len(covered))
        if np.isfinite(low):                               # NaN: too few subjects for an interval
            where = f"{len(covered)} {'fresh phantoms' if seed in fresh else 'test subjects'}"
            rows.append({"criterion": f"coverage of the 90 % interval of the SUVR, seed {seed}, {where}",
                         "found": f"{covered.mean():.3f}", "wanted": f"{low:.3f} to {high:.3f}",
                         "reached": bool(low <= covered.mean() <= high)})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- the figure

def make_curves(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Name of a curve -> rows of make_table, a budget each: every method as its settings sample it, and
    default and published also by the mean of their latent samples with FEW_STEPS evaluations each."""
    curves = {}
    of_settings = table[table["is_setting"] & ~table["method"].isin(REFERENCES)]
    for method, rows in of_settings.groupby("method", sort=False):
        curves[method] = rows.sort_values("updates")
    means = table[~table["is_setting"] & (table["steps"] == FEW_STEPS) & (table["samples"] > 1)]
    for method in ("default", "published"):
        rows = means[means["method"] == method]
        if len(rows):                                      # of the largest number of samples
            rows = rows[rows["samples"] == rows["samples"].max()].sort_values("updates")
            curves[f"{method}, mean of {rows['samples'].iloc[0]}"] = rows
    return curves


# ---------------------------------------------------------------- Markdown

def to_markdown(best: pd.DataFrame, table: pd.DataFrame, criteria: pd.DataFrame, repairs: pd.DataFrame
                ) -> str:
    """The tables: each method at its best budget, all budgets, all samplings, the criteria, and the
    repairs."""
    is_setting = table["is_setting"] & ~table["method"].isin(REFERENCES)
    drawn = table[table["sampler"] != "none"]
    text = {"Each method at its own best budget, chosen on the validation list; test list:":
            pd.concat([_about(best), _sampling(best), _shown(best), _gains(best)], axis=1),
            "Every budget, sampled as the settings say:":
            pd.concat([_about(table[is_setting]), _shown(table[is_setting])], axis=1),
            "Every sampling of the diffusions:":
            pd.concat([_about(drawn)[["method", "budget"]], _sampling(drawn), _shown(drawn)], axis=1)}
    if len(criteria):
        answers = {True: "yes", False: "no"}
        text["The default at its best budget:"] = criteria.assign(reached=criteria["reached"].map(answers))
    if len(repairs):
        gains = _gains(repairs, "gain over default, validation (dB) [95 %]")
        text["The choices of the default taken back, one at a time:"] = pd.concat(
            [_about(repairs), _shown(repairs), gains], axis=1)
    return "\n".join(f"**{title}**\n\n{part.to_markdown(index=False, disable_numparse=True)}\n"
                     for title, part in text.items())


def _about(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that say which row it is, and what its training took."""
    return pd.DataFrame({"method": table["method"], "budget": table["budget"].replace(0, "").astype(str),
                         "updates": [f"{n:.0f}" if np.isfinite(n) else "" for n in table["updates"]],
                         "seeds": table["n"],
                         "training (s)": [mean_and_sd(*both, 0) for both in
                                          table[["training_s", "training_s_sd"]].to_numpy()]})


def _sampling(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that say how a diffusion was sampled."""
    drawn = table["sampler"] != "none"
    samples = table["samples"].astype(str).where(drawn, "")
    passes = table["passes"].map({1: "", 2: ", 2 passes"})
    evaluations = (table["sampler"] + " " + table["steps"].astype(str) + passes).where(drawn, "")
    return pd.DataFrame({"samples": samples, "evaluations each": evaluations,
                         "NFE": table["NFE"].astype(str).where(drawn, "")})


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The scores: PSNR of the validation list, those of the test list with their intervals."""
    of_validation = table[["validation_PSNR_brain", "validation_PSNR_brain_sd"]].to_numpy()
    columns = {"validation PSNR (dB)": [mean_and_sd(*both, 2) for both in of_validation]}
    for name, (heading, digits) in HEADINGS.items():
        numbers = table[[name, f"{name}_sd", f"{name}_low", f"{name}_high"]].to_numpy()
        columns[f"{heading} [95 %]"] = [_with_interval(*four, digits) for four in numbers]
    columns["share of the gap"] = [mean_and_sd(*both, 2) for both in
                                   table[["gap_share", "gap_share_sd"]].to_numpy()]
    return pd.DataFrame(columns, index=table.index)


def _with_interval(mean: float, sd: float, low: float, high: float, digits: int) -> str:
    """A mean with its SD over the seeds and its interval."""
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) else ""
    return mean_and_sd(mean, sd, digits) + ends


def _gains(table: pd.DataFrame, heading: str = "gain over default (dB) [95 %]") -> pd.DataFrame:
    """The gain over the default, under a heading."""
    gains = [gain_text(*three) for three in table[["gain", "gain_low", "gain_high"]].to_numpy()]
    return pd.DataFrame({heading: gains}, index=table.index)
