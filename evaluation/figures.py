"""The pictures of an experiment that show numbers: losses, sampling curve, disturbed MRIs, status and uptake.
Those of volumes are in volume_figures.py."""
import itertools
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation.statistics import agreement
from runtime.checkpoints import read_history
from runtime.files import atomic

if TYPE_CHECKING:                                          # only drawing needs matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# stage -> title, and column of loss_curve.csv -> label
CURVES = {
    "aae": ("Stage 1, autoencoder", {"rec": "L1 reconstruction"}),
    "ldm": ("Stage 2, denoiser",
            {"mse": "training", "image": "training, decoded images", "mse_validation": "validation"}),
    "latent_regression": ("Baseline, latent regression", {"mse": "training"}),
    "labelled_latent_regression": ("Baseline, latent regression with label",
                                   {"mse": "training", "image": "training, decoded images"}),
    "image_regression": ("Baseline, image regression", {"mse": "training"}),
    "labelled_image_regression": ("Baseline, image regression with label", {"mse": "training"}),
    "pix2pix": ("Pix2Pix", {"rec": "L1", "adv": "adversarial", "disc": "discriminator"}),
    "tpa_gan": ("TPA-GAN", {"classifier": "classifier T", "l1": "L1", "dssim": "1 - SSIM",
                            "adv": "adversarial", "disc": "discriminator D", "task": "task of T"}),
    "fgan": ("FGAN", {"feature": "feature consistency", "voxel": "L1", "adv": "adversarial",
                      "disc": "discriminator", "cls": "classifier DSNet"}),
    "resvit": ("ResViT (2D)", {"l1": "L1", "adv": "adversarial", "disc": "discriminator"}),
    "ddpm": ("DDPM (image space)", {"mse": "noise"}),
}
PANELS = {"PSNR_brain": "PSNR in the brain (dB)", "SSIM_brain": "SSIM in the brain",
          "SUVR_r": "correlation of SUVR"}
CHANGES = {"PSNR_brain": "PSNR in the brain (dB)", "SUVR_bias": "mean SUVR"}   # of disturbed MRIs
BUDGET_PANELS = {"PSNR_brain": PANELS["PSNR_brain"], "SSIM_brain": PANELS["SSIM_brain"],
                 "AUC": "AUC of the SUVR", "slope": "slope of the SUVR"}
BUDGET_AXES = {"updates": "updates of the denoiser or regression", "training_s": "seconds of all training"}
SAMPLERS = {"ddpm": ("", "s"), "ddim": ("-", "o"), "dpm": ("--", "^")}        # line style, marker

# The colours of Okabe and Ito, which the colour-blind tell apart; shapes and line styles differ too.
LABELS = {0: ("amyloid negative", "#0072B2", "o"), 1: ("amyloid positive", "#D55E00", "^")}
COLOURS = ("#56B4E9", "#0072B2", "#000000", "#D55E00", "#CC79A7")
BUDGET_COLOURS = ("#D55E00", "#CC79A7", "#0072B2", "#E69F00", "#009E73", "#56B4E9")
STATUS_CLASSIFIERS = {                                     # (classifier, method) -> name, colour, line style
    ("pet", "real"): ("real PET", "#000000", "-"),
    ("pet", "il_cldm"): ("synthetic PET", "#D55E00", "-"),
    ("mri_pet", "il_cldm"): ("MRI and synthetic PET", "#CC79A7", "--"),
    ("mri", "none"): ("MRI", "#0072B2", "-."),
    ("pet", "latent_regression"): ("PET by latent regression", "#009E73", "--"),
    ("pet", "image_regression"): ("PET by image regression", "#E69F00", "-."),
    ("pet", "labelled_latent_regression"): ("labelled latent regression", "#56B4E9", "--"),
    ("pet", "labelled_image_regression"): ("labelled image regression", "#F0E442", "-."),
    ("pet", "mean_pet"): ("mean training PET", "#888888", ":"),
}

SYSTEM_TITLES = {"pix2pix": "Pix2Pix", "tpa_gan": "TPA-GAN", "fgan": "FGAN", "resvit": "ResViT (2D)",
                 "ddpm": "DDPM (one sample)", "ddpm_mean": "DDPM (mean)"}
METHOD_TITLES = {                                          # in the order of the columns of plot_methods
    "real": "real PET", "il_cldm": "IL-CLDM", **SYSTEM_TITLES, "latent_regression": "latent regression",
    "labelled_latent_regression": "labelled latent regression", "image_regression": "image regression",
    "labelled_image_regression": "labelled image regression", "mean_pet": "mean training PET",
    "oracle": "oracle"}
SYSTEM_LINES = {                                           # method -> colour, line style
    "real": ("#000000", "-"), "il_cldm": ("#D55E00", "-"), "pix2pix": ("#0072B2", "--"),
    "tpa_gan": ("#56B4E9", "-."), "fgan": ("#009E73", "--"), "resvit": ("#E69F00", "-."),
    "ddpm": ("#CC79A7", ":"), "ddpm_mean": ("#888888", "--")}


def pyplot() -> ModuleType:
    """matplotlib.pyplot, which draws into files: a cluster node has no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def save_figure(figure: "Figure", stem: Path, notice: str, suffixes: tuple[str, ...] = (".png", ".pdf"),
                y: float | None = None) -> None:
    """Write and close a figure, with the notice at its top right, where no legend covers it.

    y: height of the notice, as a share of the figure's, which a constrained layout finds itself.
    """
    figure.suptitle(notice, x=0.99, y=y, ha="right", fontsize=8, color="0.35")
    for suffix in suffixes:
        metadata = {"CreationDate": None} if suffix == ".pdf" else None       # the same bytes every day
        with atomic(stem.with_name(stem.name + suffix)) as partial:
            figure.savefig(partial, dpi=150, metadata=metadata)
    pyplot().close(figure)


# ---------------------------------------------------------------- training and sampling

def plot_curves(folder: Path, stem: Path, notice: str, suffixes: tuple[str, ...] = (".png", ".pdf")) -> None:
    """Draw losses and validation PSNR of the stages trained so far, the chosen epoch marked.

    folder: where loss_curve.csv and validation.csv lie.
    """
    from matplotlib.ticker import MaxNLocator

    losses, validation = read_history(folder / "loss_curve.csv"), read_history(folder / "validation.csv")
    trained = [stage for stage in CURVES if stage in set(losses["stage"])]
    size = (9, 3 * len(trained))
    figure, axes = pyplot().subplots(len(trained), 2, figsize=size, layout="constrained", squeeze=False)
    for (left, right), stage in zip(axes, trained, strict=True):
        title, columns = CURVES[stage]
        loss, scores = losses[losses["stage"] == stage], validation[validation["stage"] == stage]
        for column, label in columns.items():
            if column in loss and loss[column].notna().any():
                known = loss.dropna(subset=column)
                left.plot(known["epoch"], known[column], marker="o", markersize=3, label=label)
        left.set(title=title, xlabel="epoch", ylabel="loss", yscale="log")
        left.legend()
        right.plot(scores["epoch"], scores["PSNR"], marker="o", markersize=3, color="tab:green")
        for epoch in scores.loc[scores["best"], "epoch"]:
            right.axvline(epoch, color="0.4", linestyle="--", label=f"chosen: epoch {epoch}")
            right.legend()
        right.set(title=f"{title}: validation", xlabel="epoch", ylabel="PSNR on the box (dB)")
        for axis in (left, right):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, stem, notice, suffixes)


def plot_sampling(table: pd.DataFrame, chosen: tuple[str, int, int], stem: Path, note: str) -> None:
    """Draw scores against network evaluations (NFE): a colour a number of latent samples, a line a sampler.

    table: columns sampler, steps, samples (latent samples a scan), NFE (of one latent sample) and the scores.
    chosen: sampler, steps and samples of the setting, which gets a ring.
    """
    panels = {column: title for column, title in PANELS.items() if column in table}
    size = (4.2 * len(panels), 4.2)
    figure, axes = pyplot().subplots(1, len(panels), figsize=size, layout="constrained")
    colours = dict(zip(sorted(table["samples"].unique()), itertools.cycle(COLOURS), strict=False))
    is_chosen = (table[["sampler", "steps", "samples"]] == list(chosen)).all(axis=1)
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for (sampler, samples), rows in table.groupby(["sampler", "samples"]):
            line, marker = SAMPLERS[sampler]
            label = f"{sampler}, {samples} latent sample{'s' if samples > 1 else ''}"
            axis.plot(rows["NFE"], rows[column], linestyle=line, marker=marker, markersize=5,
                      color=colours[samples], label=label)
        setting = table[is_chosen]
        axis.plot(setting["NFE"], setting[column], "o", markersize=13, fillstyle="none", color="#009E73",
                  label="the setting")
        axis.set(xscale="log", xlabel="network evaluations a latent sample", title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, stem, note)


def plot_robustness(table: pd.DataFrame, stem: Path, note: str) -> None:
    """Draw the change of PSNR in the brain, and with regions of the bias of the SUVR, by disturbed MRIs: a
    dot with its 95 % interval each.

    table: a row a disturbance, the undisturbed MRI first, columns text and <score>_change, _low, _high.
    """
    panels = {name: title for name, title in CHANGES.items() if name in table}
    rows = table.iloc[1:]
    size = (3.2 + 3.6 * len(panels), 1.4 + 0.32 * len(rows))
    figure, axes = pyplot().subplots(1, len(panels), figsize=size, sharey=True, layout="constrained",
                                     squeeze=False)
    places = np.arange(len(rows))
    for axis, (name, title), colour in zip(axes[0], panels.items(), ("#0072B2", "#D55E00"), strict=False):
        change = rows[f"{name}_change"]
        ends = np.stack([change - rows[f"{name}_change_low"], rows[f"{name}_change_high"] - change])
        axis.axvline(0, color="0.6", linewidth=1)
        axis.errorbar(change, places, xerr=ends.clip(min=0), fmt="o", color=colour, capsize=3)
        axis.set(title=title, xlabel="change against the undisturbed MRI")
        axis.grid(axis="x", color="0.9")
    axes[0, 0].set_yticks(places, rows["text"])
    axes[0, 0].invert_yaxis()                              # the first row at the top
    save_figure(figure, stem, note)


def plot_budget(curves: dict[str, pd.DataFrame], references: pd.DataFrame, stem: Path, note: str) -> None:
    """Draw scores against updates and against seconds of training: a line a method, with 95 %
    intervals, a little apart.

    curves: name -> a row a budget, columns updates, training_s and each score of BUDGET_PANELS, with _low and
    _high. references: a row each of mean PET and oracle, columns method and the scores: horizontal lines.
    """
    figure, axes = pyplot().subplots(2, len(BUDGET_PANELS), figsize=(16, 8.4), layout="constrained",
                                     sharey="col")
    lines = list(itertools.product(("-", "--"), BUDGET_COLOURS))
    for row, (x, label) in zip(axes, BUDGET_AXES.items(), strict=True):
        for axis, (score, title) in zip(row, BUDGET_PANELS.items(), strict=True):
            for number, (name, rows) in enumerate(curves.items()):
                line, colour = lines[number % len(lines)]
                beside = 1.02 ** (number - len(curves) / 2)            # so that no interval hides another
                ends = np.stack([rows[score] - rows[f"{score}_low"], rows[f"{score}_high"] - rows[score]])
                axis.errorbar(beside * rows[x], rows[score], yerr=ends.clip(min=0), fmt=f"o{line}",
                              color=colour, markersize=4, capsize=2, elinewidth=0.8, label=name)
            for (_, known), line in zip(references.iterrows(), (":", "-."), strict=False):
                axis.axhline(known[score], color="0.4", linestyle=line, label=METHOD_TITLES[known["method"]])
            axis.set(xscale="log", xlabel=label, title=title)
            axis.grid(axis="y", color="0.92")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    save_figure(figure, stem, note)


# ---------------------------------------------------------------- status and uptake

def _square(title: str, **settings) -> tuple["Figure", "Axes"]:
    """A figure with one axis and room for a legend below it."""
    figure, axis = pyplot().subplots(figsize=(6, 7.4), layout="constrained")
    axis.set(title=title, **settings)
    return figure, axis


def _save_with_legend(figure: "Figure", stem: Path, notice: str) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save_figure(figure, stem, notice)


def _predictions_of(predictions: pd.DataFrame, classifier: str, method: str) -> pd.DataFrame:
    return predictions[(predictions["classifier"] == classifier) & (predictions["method"] == method)]


def plot_roc(stem: Path, predictions: pd.DataFrame, notice: str) -> None:
    """Draw ROC curves of STATUS_CLASSIFIERS on the test list, and in a second panel those of the PETs of the
    compared systems, where there are any. predictions: as read_status gives them."""
    settings = {"xlabel": "1 - specificity", "ylabel": "sensitivity", "xlim": (-0.02, 1.02),
                "ylim": (-0.02, 1.02), "aspect": "equal"}
    title = f"ROC, test list, n = {predictions['ID'].nunique()}"
    if set(predictions["method"]).isdisjoint(SYSTEM_TITLES):
        figure, axis = _square(title, **settings)
        _draw_roc(axis, predictions, STATUS_CLASSIFIERS)
        _save_with_legend(figure, stem, notice)
        return
    systems = {}
    for method, (colour, line) in SYSTEM_LINES.items():
        systems["pet", method] = (METHOD_TITLES[method], colour, line)
    margins = {"left": 0.06, "right": 0.98, "bottom": 0.21, "top": 0.93, "wspace": 0.16}    # room for legends
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 7.6), gridspec_kw=margins)
    left.set(title=title, **settings)
    right.set(title="PETs of the compared systems", **settings)
    for axis, curves in ((left, STATUS_CLASSIFIERS), (right, systems)):
        _draw_roc(axis, predictions, curves)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=9)
    save_figure(figure, stem, notice)


def _draw_roc(axis: "Axes", predictions: pd.DataFrame,
              curves: dict[tuple[str, str], tuple[str, str, str]]) -> None:
    """Draw the ROC curves that there are predictions of. curves: as STATUS_CLASSIFIERS."""
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for (classifier, method), (name, colour, line) in curves.items():
        part = _predictions_of(predictions, classifier, method)
        if len(part):
            false_positives, true_positives, _ = roc_curve(part["label"], part["score"])
            label = f"{name}: AUC {roc_auc_score(part['label'], part['score']):.2f}"
            axis.plot(false_positives, true_positives, line, color=colour, linewidth=2, label=label)


def plot_calibration(stem: Path, predictions: pd.DataFrame, notice: str) -> None:
    """Draw how often subjects of a predicted probability are positive, in groups of about equal size."""
    n = predictions["ID"].nunique()
    figure, axis = _square(
        f"Calibration, test list, n = {n}", xlabel="mean predicted probability of amyloid positive",
        ylabel="share that is amyloid positive", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1, label="perfect")
    bins = max(2, min(10, n // 5))
    for (classifier, method), (name, colour, line) in STATUS_CLASSIFIERS.items():
        part = _predictions_of(predictions, classifier, method)
        if len(part) and method != "mean_pet":             # which has one probability for everybody
            share, predicted = calibration_curve(
                part["label"], part["score"], n_bins=bins, strategy="quantile")
            axis.plot(predicted, share, line, marker="o", color=colour, label=name)
    _save_with_legend(figure, stem, notice)


def _scatter(axis: "Axes", x: np.ndarray, y: np.ndarray, label: np.ndarray) -> None:
    """Draw subjects as points, a colour and shape a label. All [n]."""
    for value in np.unique(label):
        name, colour, marker = LABELS.get(value, (f"label {value}", "#009E73", "s"))
        axis.scatter(x[label == value], y[label == value], color=colour, marker=marker, s=36, label=name)


def plot_suvr(stem: Path, real: np.ndarray, synthetic: np.ndarray, label: np.ndarray, notice: str) -> None:
    """Draw the SUVR of the synthetic against the real PET, with the identity and the fitted line. All [n]."""
    found = agreement(real, synthetic)
    ends = np.array([min(real.min(), synthetic.min()) - 0.05, max(real.max(), synthetic.max()) + 0.05])
    figure, axis = _square(
        f"SUVR, test list, n = {len(real)}", xlabel="SUVR of the real PET",
        ylabel="SUVR of the synthetic PET", xlim=ends, ylim=ends, aspect="equal")
    axis.plot(ends, ends, color="0.6", linewidth=1, label="identity")
    axis.plot(ends, synthetic.mean() + found["slope"] * (ends - real.mean()), "--", color="0.3",
              label=f"fit: slope {found['slope']:.2f}, CCC {found['CCC']:.2f}")
    _scatter(axis, real, synthetic, label)
    _save_with_legend(figure, stem, notice)


def plot_bland_altman(stem: Path, real: np.ndarray, synthetic: np.ndarray, label: np.ndarray,
                      notice: str) -> None:
    """Draw the difference against the mean of the two SUVRs, with bias and limits of agreement. All [n]."""
    found = agreement(real, synthetic)
    figure, axis = _square(
        f"Bland-Altman, SUVR, test list, n = {len(real)}", xlabel="mean of real and synthetic SUVR",
        ylabel="synthetic - real SUVR")
    axis.axhline(0, color="0.8", linewidth=1)
    for name, text, line in (("bias", "bias", "-"), ("LoA_low", "bias - 1.96 SD", "--"),
                             ("LoA_high", "bias + 1.96 SD", "--")):
        axis.axhline(found[name], color="0.3", linestyle=line, label=f"{text}: {found[name]:+.3f}")
    _scatter(axis, (real + synthetic) / 2, synthetic - real, label)
    _save_with_legend(figure, stem, notice)


def plot_bland_altman_systems(stem: Path, pairs: dict[str, pd.DataFrame], notice: str) -> None:
    """Draw plot_bland_altman of IL-CLDM and of each compared system, on one scale.

    pairs: method -> a row a subject, columns real, synthetic (SUVR) and label.
    """
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = pyplot().subplots(rows, columns, figsize=(3 * columns, 3.1 * rows + 0.9), sharex=True,
                                     sharey=True, layout="constrained", squeeze=False)
    for axis in axes.flat[len(pairs):]:
        axis.remove()
    for axis, (method, table) in zip(axes.flat, pairs.items(), strict=False):
        real, synthetic, label = (table[name].to_numpy() for name in ("real", "synthetic", "label"))
        found = agreement(real, synthetic)
        axis.axhline(0, color="0.8", linewidth=1)
        axis.axhline(found["bias"], color="0.3", label="bias")
        for name, text in (("LoA_low", "bias ± 1.96 SD"), ("LoA_high", None)):
            axis.axhline(found[name], color="0.3", linestyle="--", label=text)
        _scatter(axis, (real + synthetic) / 2, synthetic - real, label)
        limits = f"{found['LoA_low']:+.3f} to {found['LoA_high']:+.3f}"
        title = f"{METHOD_TITLES[method]}, n = {len(table)}\nbias {found['bias']:+.3f} ({limits})"
        axis.set_title(title, fontsize=9)
    for axis in axes.flat[:len(pairs)][-columns:]:         # the lowest of each column
        axis.set_xlabel("mean of real and synthetic SUVR", fontsize=9)
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("synthetic - real SUVR", fontsize=9)
    handles = {name: handle for handle, name in zip(*axes[0, 0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    save_figure(figure, stem, notice)
