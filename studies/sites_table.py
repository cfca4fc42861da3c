"""The table of the study of sites: scores of an unseen site beside those of the same site when it is seen.

They are made from the per-subject results of its experiments.
"""
import numpy as np
import pandas as pd
from scipy.stats import binomtest

from evaluation.results import Run
from evaluation.statistics import agreement
from studies.repairs_table import auc, auc_interval, of_method

HEADINGS = {"test": "tested on", "trained": "trained on", "seed": "seed", "n": "n", "positive": "positive",
            "PSNR_brain": "PSNR in brain (dB)", "SSIM_brain": "SSIM in brain",
            "PSNR_brain_mean_pet": "PSNR of the mean PET", "PSNR_brain_oracle": "of the oracle", "r": "r",
            "bias": "bias", "slope": "slope", "AUC": "AUC [95 %]", "AUC_oracle": "AUC of the oracle",
            "SEN": "SEN", "SPE": "SPE",
            "coverage": "coverage of the 90 % interval [95 %]"}
DIGITS = {"PSNR_brain": 2, "SSIM_brain": 3, "PSNR_brain_mean_pet": 2, "PSNR_brain_oracle": 2, "r": 2,
          "bias": 3, "slope": 2, "AUC": 2, "AUC_oracle": 2, "SEN": 2, "SPE": 2,
          "coverage": 2}
LOST = ("PSNR_brain", "bias", "AUC", "SEN", "SPE", "coverage")                # unseen less seen


def score_run(run: Run, row: str, seed: int, sites: pd.Series | None) -> list[dict]:
    """The rows of an experiment: its whole test list, and beside it each site in it where sites are given.

    row: the site that is left out, or the control. sites: ID -> site.
    """
    if sites is None:
        return [score_subjects(run, of_method(run.test, "il_cldm").index, seed)
                | {"trained": "the other sites", "test": row}]
    site_of = sites[of_method(run.test, "il_cldm").index]
    groups = {"all sites": site_of.index}
    groups |= {name: site_of.index[site_of == name] for name in sorted(set(site_of))}
    return [score_subjects(run, ids, seed) | {"trained": "all sites", "test": name}
            for name, ids in groups.items()]


def score_subjects(run: Run, ids: pd.Index, seed: int) -> dict:
    """The scores of some subjects of a test list, with 95 % intervals of the AUC (bootstrap) and of the
    coverage (Wilson). SEN, SPE: of the SUVR, at the threshold that the validation list gave."""
    images, uptake = (of_method(table, "il_cldm").loc[ids] for table in (run.test, run.uptake))
    real = of_method(run.uptake, "real").loc[ids]
    agrees = agreement(real["SUVR"].to_numpy(), uptake["SUVR"].to_numpy())
    low, high = auc_interval(uptake, seed)
    by_suvr = of_method(run.predictions[run.predictions["classifier"] == "suvr"], "il_cldm").loc[ids]
    is_positive = by_suvr["label"] == 1
    scores = {"seed": seed, "n": len(ids), "positive": int(real["label"].sum()),
              **images[["PSNR_brain", "SSIM_brain"]].mean(),
              "r": agrees["Pearson"], "bias": agrees["bias"], "slope": agrees["slope"],
              "AUC": auc(real["label"], uptake["SUVR"]), "AUC_low": low, "AUC_high": high,
              "SEN": by_suvr.loc[is_positive, "positive"].mean(),
              "SPE": 1 - by_suvr.loc[~is_positive, "positive"].mean(),
              **_coverage(run.uncertainty.set_index("ID")["covered"].loc[ids])}
    for method in ("mean_pet", "oracle"):
        if method in set(run.test["method"]):
            scores[f"PSNR_brain_{method}"] = of_method(run.test, method)["PSNR_brain"].loc[ids].mean()
            scores[f"AUC_{method}"] = auc(real["label"], of_method(run.uptake, method)["SUVR"].loc[ids])
    return scores


def _coverage(covered: pd.Series) -> dict[str, float]:
    """Share of the subjects whose interval holds the real SUVR; NaN where there are no intervals."""
    if covered.isna().any():
        return dict.fromkeys(("coverage", "coverage_low", "coverage_high"), np.nan)
    limits = binomtest(int(covered.sum()), len(covered)).proportion_ci(method="wilson")
    return {"coverage": covered.mean(), "coverage_low": limits.low, "coverage_high": limits.high}


def losses(table: pd.DataFrame) -> pd.DataFrame:
    """A row a site that was run both ways: mean and, as _sd, SD over the seeds of the scores of LOST when it
    is unseen, less those when it is seen."""
    names = [name for name in LOST if name in table]
    indexed = table.set_index(["test", "seed"])
    is_unseen = indexed["trained"] == "the other sites"
    lost = (indexed.loc[is_unseen, names] - indexed.loc[~is_unseen, names]).dropna(how="all")
    of_site = lost.groupby("test")
    found = of_site.mean().join(of_site.std().add_suffix("_sd"))
    found.insert(0, "seeds", of_site.size())
    return found.reset_index()


def to_markdown(table: pd.DataFrame) -> str:
    """The table with each unseen site above the same site when it is seen, and below it what is lost."""
    shown = table.sort_values(["seed", "test", "trained"], kind="stable", key=_in_order)
    columns = {heading: [_cell(row, name) for _, row in shown.iterrows()]
               for name, heading in HEADINGS.items() if name in table}
    text = pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True) + "\n"
    lost = losses(table)
    if len(lost):
        cells = {"site": lost["test"], "seeds": lost["seeds"]}
        for name in (name for name in LOST if name in lost):
            cells[HEADINGS[name].split(" [")[0]] = [_with_sd(row, name) for _, row in lost.iterrows()]
        below = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
        text += f"\nUnseen less seen, mean (± SD) over the seeds:\n\n{below}\n"
    return text


def _with_sd(row: pd.Series, name: str) -> str:
    """A difference as text, with its SD where there are several seeds; a dash where there is none."""
    if not np.isfinite(row[name]):
        return "-"
    sd = row[f"{name}_sd"]
    spread = f" ± {sd:.{DIGITS[name]}f}" if np.isfinite(sd) else ""
    return f"{row[name]:+.{DIGITS[name]}f}{spread}"


def _in_order(column: pd.Series) -> pd.Series:
    """What a column is sorted by: unseen before seen."""
    return column != "the other sites" if column.name == "trained" else column


def _cell(row: pd.Series, name: str) -> str:
    """A value as text, with its interval; a dash where there is none."""
    value = row[name]
    if name not in DIGITS:
        return str(value)
    if not np.isfinite(value):
        return "-"
    text = f"{value:.{DIGITS[name]}f}"
    if f"{name}_low" in row and np.isfinite(row[f"{name}_low"]):
        text += f" [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
    return text
