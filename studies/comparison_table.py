"""The tables of the comparison: scores of every method over its seeds, null controls, costs.

They are made from the per-subject results of its experiments.
"""
import numpy as np
import pandas as pd

from evaluation.results import Run
from evaluation.statistics import agreement, area_under_roc, bootstrap, bootstrap_p, holm, interval
from utils import METRICS

RESAMPLES = 2000                                           # of subjects, behind intervals and p values
NAMES = {"il_cldm": "IL-CLDM (default)", "published": "IL-CLDM (published)", "pix2pix": "Pix2Pix",
         "tpa_gan": "TPA-GAN", "fgan": "FGAN", "fgan_published": "FGAN (published form)",
         "resvit": "ResViT (2D)", "ddpm": "DDPM, one sample", "ddpm_mean": "DDPM, mean of 8",
         "ddpm_ancestral": "DDPM, one ancestral sample", "latent_regression": "latent regression",
         "labelled_latent_regression": "latent regression with label", "image_regression": "image regression",
         "labelled_image_regression": "image regression with label", "mean_pet": "mean PET (floor)",
         "oracle": "oracle (ceiling)"}


def method_scores(run: Run, method: str, seed: int) -> dict:
    """The scores of a method on the test list of a run, and the bootstrap replicates of its PSNR in the brain
    and of the AUC of its SUVR, [RESAMPLES] each, of the same subjects for every method of the seed."""
    images, uptake = (table[table["method"] == method].set_index("ID") for table in (run.test, run.uptake))
    real = run.uptake[run.uptake["method"] == "real"].set_index("ID")
    suvr, label = uptake["SUVR"].reindex(real.index).to_numpy(), real["label"].to_numpy()
    agrees, psnr = agreement(real["SUVR"].to_numpy(), suvr), images["PSNR_brain"].to_numpy()
    replicates = {"PSNR_brain": bootstrap(lambda chosen: psnr[chosen].mean(-1), len(psnr), RESAMPLES, seed),
                  "AUC": bootstrap(lambda chosen: area_under_roc(label[chosen], suvr[chosen]), len(label),
                                   RESAMPLES, seed)}
    return {"scores": {**images[list(METRICS)].mean(), "r": agrees["Pearson"], "bias": agrees["bias"],
                       "slope": agrees["slope"], "AUC": float(area_under_roc(label, suvr))},
            "replicates": replicates, "subjects": len(label)}


def make_table(runs: dict[tuple[str, int], Run], costs: dict[tuple[str, int], pd.DataFrame],
               methods: dict[str, dict[str, str]]) -> pd.DataFrame:
    """A row a method: the mean of every score over the seeds, and its SD under <score>_sd; the 95 % interval
    of the AUC; p values against IL-CLDM, and at link 0 against chance, all of them adjusted together (Holm);
    costs.

    runs, costs: (experiment, seed) -> results, and cost.csv, of what is finished. methods: experiment -> its
    methods that the table shows -> the name of their row, in which "_link_0" marks a null control.
    """
    found, commands, cost_rows = {}, {}, {}
    for (name, seed), run in runs.items():
        for method, row in methods[name].items():
            if method in set(run.test["method"]):
                found.setdefault(row, {})[seed] = method_scores(run, method, seed)
                commands.setdefault(row, run.metadata["command"])
                cost = costs[name, seed].set_index("method")
                if method in cost.index:
                    cost_rows.setdefault(row, []).append(cost.loc[method])
    rows = []
    for row, by_seed in found.items():
        scores = pd.DataFrame([seed["scores"] for seed in by_seed.values()])
        low, high = interval(_mean_over(by_seed, "AUC"))
        rows.append({"method": row, "n": len(by_seed),
                     "subjects": sum(seed["subjects"] for seed in by_seed.values()),
                     **scores.mean(), **scores.std().add_suffix("_sd"), "AUC_low": low, "AUC_high": high,
                     **_p_values(row, by_seed, found.get("il_cldm", {})),
                     **(pd.DataFrame(cost_rows[row]).mean() if row in cost_rows else {}),
                     "made_by": commands[row]})
    table = pd.DataFrame(rows)
    adjusted = holm(table[["p_PSNR_brain", "p_AUC"]].to_numpy().ravel()).reshape(-1, 2)
    rows_of = [row for own in methods.values() for row in own.values()]
    order = [*NAMES, *[row for row in rows_of if row not in NAMES]]         # null controls last
    table = table.assign(p_PSNR_brain=adjusted[:, 0], p_AUC=adjusted[:, 1])
    return table.sort_values("method", key=lambda names: names.map(order.index)).reset_index(drop=True)


def _mean_over(by_seed: dict[int, dict], score: str, seeds: list[int] | None = None) -> np.ndarray:
    """Replicates of the mean over seeds, [RESAMPLES]."""
    return np.mean([by_seed[seed]["replicates"][score] for seed in seeds or by_seed], axis=0)


def _p_values(row: str, by_seed: dict[int, dict], of_il_cldm: dict[int, dict]) -> dict[str, float]:
    """p of "as IL-CLDM" on the seeds that both have; at link 0 of "no better than chance", for the AUC
    alone."""
    if "link_0" in row:
        chance = np.full(RESAMPLES, 0.5)
        return {"p_PSNR_brain": np.nan, "p_AUC": bootstrap_p(_mean_over(by_seed, "AUC"), chance)}
    seeds = [seed for seed in by_seed if seed in of_il_cldm]
    if row == "il_cldm" or not seeds:
        return {"p_PSNR_brain": np.nan, "p_AUC": np.nan}
    return {f"p_{score}": bootstrap_p(_mean_over(by_seed, score, seeds), _mean_over(of_il_cldm, score, seeds))
            for score in ("PSNR_brain", "AUC")}


HEADINGS = {"PSNR_brain": ("PSNR in brain (dB)", 2), "SSIM_brain": ("SSIM in brain", 3),
            "MAE_brain": ("MAE in brain", 4), "PSNR": ("PSNR on box (dB)", 2), "SSIM": ("SSIM on box", 3),
            "MAE": ("MAE on box", 4), "r": ("r", 2), "bias": ("bias", 3), "slope": ("slope", 2)}


def to_markdown(table: pd.DataFrame) -> str:
    """The table of scores, mean ± SD over seeds, * where p < 0.05 against IL-CLDM; that of the null controls;
    and the costs."""
    is_null = table["method"].str.contains("link_0")
    parts = [_scores_text(table[~is_null])]
    if is_null.any():
        parts.append(_null_text(table[is_null]))
    costs = table[~is_null].dropna(subset="weights") if "weights" in table else table[:0]
    if len(costs):
        parts.append(_costs_text(costs))
    return "\n\n".join(part.to_markdown(index=False, disable_numparse=True) for part in parts) + "\n"


def _scores_text(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of the scores."""
    rows = []
    for _, row in table.iterrows():
        cells = {"method": NAMES[row["method"]], "seeds": row["n"]}
        for score, (heading, digits) in HEADINGS.items():
            star = "*" if row.get(f"p_{score}", 1) < 0.05 else ""
            cells[heading] = _mean_and_sd(row[score], row[f"{score}_sd"], digits) + star
        star = "*" if row["p_AUC"] < 0.05 else ""
        cells["AUC [95 %]"] = f"{row['AUC']:.2f} [{row['AUC_low']:.2f}, {row['AUC_high']:.2f}]{star}"
        rows.append(cells)
    return pd.DataFrame(rows)


def _null_text(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of the null controls."""
    rows = []
    for _, row in table.iterrows():
        method, _, shuffled = row["method"].partition("_link_0")
        rows.append({"method": NAMES[method], "labels": "shuffled" if shuffled else "own", "seeds": row["n"],
                     "AUC [95 %]": f"{row['AUC']:.2f} [{row['AUC_low']:.2f}, {row['AUC_high']:.2f}]",
                     "p against 0.5 (Holm)": f"{row['p_AUC']:.2f}"})
    return pd.DataFrame(rows)


def _costs_text(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of the costs."""
    return pd.DataFrame({"method": table["method"].map(NAMES),
                         "weights": [f"{n:,.0f}" for n in table["weights"]],
                         "volumes seen": [f"{n:,.0f}" for n in table["volumes_seen"]],
                         "training (s)": [f"{s:,.0f}" for s in table["training_s"]],
                         "NFE": [f"{n:.0f}" for n in table["NFE"]],
                         "a scan (s)": [f"{s:.2f}" for s in table["scan_s"]]})


def _mean_and_sd(mean: float, sd: float, digits: int) -> str:
    """Mean ± SD; without the SD where there is one seed, a dash where there is no mean."""
    if not np.isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if np.isfinite(sd) else "")
