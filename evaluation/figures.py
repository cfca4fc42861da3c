"""The pictures of a run, drawn from its files."""
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

matplotlib.use("Agg")                                      # a cluster node has no display
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402
from sklearn.calibration import calibration_curve  # noqa: E402
from sklearn.metrics import roc_auc_score, roc_curve  # noqa: E402

from evaluation.statistics import agreement  # noqa: E402
from imaging.volumes import read_volume  # noqa: E402
from runtime.checkpoints import read_history  # noqa: E402
from runtime.files import atomic, brief  # noqa: E402

CURVES = {"aae": ("Stage 1, autoencoder", {"rec": "L1 reconstruction"}),
          "ldm": ("Stage 2, denoiser", {"mse": "training", "image": "training, decoded images", "mse_validation": "validation"}),
          "latent_regression": ("Control, latent regression", {"mse": "training"}),
          "image_regression": ("Control, image regression", {"mse": "training"})}

SLICES_MM = (-40, -20, 0, 20, 40, 60), (-80, -55, -30, -5, 20, 45), (-50, -30, -10, 10, 30, 50)   # z, y, x in MNI space

# Okabe and Ito's colours, which the colour-blind tell apart; shapes and line styles differ too
LABELS = {0: ("amyloid negative", "#0072B2", "o"), 1: ("amyloid positive", "#D55E00", "^")}
STATUS_CLASSIFIERS = {("pet", "real"): ("real PET", "#000000", "-"), ("pet", "il_cldm"): ("synthetic PET", "#D55E00", "-"),
            ("mri_pet", "il_cldm"): ("MRI and synthetic PET", "#CC79A7", "--"), ("mri", "none"): ("MRI", "#0072B2", "-."),
            ("pet", "latent_regression"): ("PET by latent regression", "#009E73", "--"),
            ("pet", "image_regression"): ("PET by image regression", "#E69F00", "-."),
            ("pet", "mean_pet"): ("mean training PET", "#888888", ":")}


def _save(figure: plt.Figure, stem: Path, notice: str, suffixes: tuple[str, ...] = (".png", ".pdf")) -> None:
    figure.suptitle(notice, x=0.99, ha="right", fontsize=8, color="0.35")                    # at the top, where no legend covers it
    for suffix in suffixes:
        with atomic(stem.with_name(stem.name + suffix)) as partial:
            figure.savefig(partial, dpi=150, metadata={"CreationDate": None} if suffix == ".pdf" else None)   # the same bytes every day
    plt.close(figure)


def plot_curves(folder: Path, stem: Path, notice: str, suffixes: tuple[str, ...] = (".png", ".pdf")) -> None:
    """The losses of the stages so far and the validation PSNR, the chosen epoch marked; from the two CSVs in the folder."""
    losses, validation = read_history(folder / "loss_curve.csv"), read_history(folder / "validation.csv")
    curves = {stage: curve for stage, curve in CURVES.items() if stage in set(losses["stage"])}
    figure, axes = plt.subplots(len(curves), 2, figsize=(9, 3 * len(curves)), layout="constrained", squeeze=False)
    for row, (stage, (title, columns)) in zip(axes, curves.items(), strict=True):
        loss, scores = losses[losses["stage"] == stage], validation[validation["stage"] == stage]
        for column, name in columns.items():
            if column in loss and loss[column].notna().any():
                known = loss.dropna(subset=column)
                row[0].plot(known["epoch"], known[column], marker="o", markersize=3, label=name)
        row[0].set(title=title, xlabel="epoch", ylabel="loss", yscale="log")
        row[0].legend()
        for axis in row:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        row[1].plot(scores["epoch"], scores["PSNR"], marker="o", markersize=3, color="tab:green")
        for epoch in scores.loc[scores["best"], "epoch"]:
            row[1].axvline(epoch, color="0.4", linestyle="--", label=f"chosen: epoch {epoch}")
            row[1].legend()
        row[1].set(title=f"{title}: validation", xlabel="epoch", ylabel="PSNR on the box (dB)")
    _save(figure, stem, notice, suffixes)


def plot_sampling(table: pd.DataFrame, chosen: tuple[str, int, int], stem: Path, note: str) -> None:
    """Scores against network calls: a colour a number of draws, a line a sampler, a ring around the chosen (sampler, steps, draws)."""
    panels = {"PSNR_brain": "PSNR in the brain (dB)", "SSIM_brain": "SSIM in the brain", "SUVR_r": "correlation of SUVR"}
    panels = {column: title for column, title in panels.items() if column in table}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.2), layout="constrained")
    palette = itertools.cycle(("#56B4E9", "#0072B2", "#000000", "#D55E00", "#CC79A7"))
    colours = dict(zip(sorted(table["draws"].unique()), palette, strict=False))
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for (sampler, draws), rows in table.groupby(["sampler", "draws"]):
            line, marker = {"ddpm": ("", "s"), "ddim": ("-", "o"), "dpm": ("--", "^")}[sampler]
            label = f"{sampler}, {draws} draw{'s' if draws > 1 else ''}"
            axis.plot(rows["calls"], rows[column], linestyle=line, marker=marker, markersize=5, color=colours[draws], label=label)
        here = table[(table[["sampler", "steps", "draws"]] == list(chosen)).all(axis=1)]
        axis.plot(here["calls"], here[column], "o", markersize=13, fillstyle="none", color="#009E73", label="the setting")
        axis.set(xscale="log", xlabel="network calls a draw", title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    _save(figure, stem, note)


def _planes(voxels: np.ndarray) -> np.ndarray:
    """Sagittal, coronal and axial slice through the middle of [D, H, W] in RAS, side by side as one picture."""
    planes = [np.rot90(np.take(voxels, n // 2, axis)) for axis, n in enumerate(voxels.shape)]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(plane, (((height - plane.shape[0] + 1) // 2, (height - plane.shape[0]) // 2), (1, 1))) for plane in planes]
    return np.concatenate(padded, axis=1)


def plot_synthesized(stem: Path, rows: list[tuple[str, Path, Path]], notice: str) -> None:
    """A PNG with a row a subject, real PET left and synthetic PET right, three planes each, one colour scale.

    rows: (title of the subject, real PET file, synthetic PET file), whatever their orientation.
    """
    pairs = [(title, *(_planes(read_volume(file)[0]) for file in files))
             for title, *files in rows]
    top = max(real.max() for _, real, _ in pairs)
    figure, axes = plt.subplots(len(pairs), 2, figsize=(10, 1.65 * len(pairs) + 0.6), layout="constrained", squeeze=False)
    for row, (title, real, synthetic) in zip(axes, pairs, strict=True):
        for axis, picture in zip(row, (real, synthetic), strict=True):
            image = axis.imshow(picture, cmap="hot", vmin=0, vmax=top, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
    axes[0, 0].set_title("real PET")
    axes[0, 1].set_title("synthetic PET, from the MRI")
    figure.colorbar(image, ax=axes, shrink=0.8, label="uptake, as stored in [0, 1]")
    _save(figure, stem, notice, (".png",))


def plot_overlay(path: Path, mri: np.ndarray, pet: np.ndarray, affine: np.ndarray, title: str, notice: str) -> None:
    """A PNG with a PET in colour over its MRI in grey, six slices a plane through the brain, at their MNI millimetres.

    mri, pet: [X, Y, Z] on one grid, axes in RAS order; affine: [4, 4].
    """
    sizes, top = voxel_sizes(affine), max(0.1, np.ceil(10 * pet.max()) / 10)                 # steps, so that most pictures share a scale
    figure, axes = plt.subplots(3, 6, figsize=(11, 6.6), facecolor="black", gridspec_kw={
        "left": 0.01, "right": 0.91, "bottom": 0.01, "top": 0.88, "wspace": 0.02, "hspace": 0.12})
    for row, axis, name, millimetres in zip(axes, (2, 1, 0), "zyx", SLICES_MM, strict=True):
        across, up = sizes[[i for i in range(3) if i != axis]]
        for panel, mm in zip(row, millimetres, strict=True):
            index = int(np.clip(round((mm - affine[axis, 3]) / affine[axis, axis]), 0, mri.shape[axis] - 1))
            below, above = (np.take(volume, index, axis).T for volume in (mri, pet))
            panel.imshow(below, cmap="gray", vmin=0, vmax=max(mri.max(), 1e-6), origin="lower", aspect=up / across)
            image = panel.imshow(above, cmap="inferno", vmin=0, vmax=top, origin="lower", aspect=up / across,
                                 alpha=0.65 * (above > 0.03 * top))
            panel.set_title(f"{name} = {affine[axis, axis] * index + affine[axis, 3]:.0f} mm", fontsize=9, color="0.85", pad=2)
            panel.axis("off")
    for side, x in (("L", 0.02), ("R", 0.94)):
        axes[0, 0].text(x, 0.5, side, transform=axes[0, 0].transAxes, color="0.85", fontsize=9)
    bar = figure.colorbar(image, cax=figure.add_axes((0.93, 0.12, 0.015, 0.68)))
    bar.set_label("synthetic uptake, as stored in [0, 1]", color="0.85")
    bar.ax.tick_params(colors="0.85")
    figure.suptitle(f"{brief(title)}\n{notice}", fontsize=10, color="0.85", parse_math=False)   # a file's name may hold a $
    with atomic(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


def plot_volumes(stem: Path, rows: list[tuple[str, np.ndarray, np.ndarray]], notice: str) -> None:
    """Real PET, synthetic PET and absolute error, a row a subject, three planes each; one scale of uptake and one of error for all.

    rows: (title, real, synthetic), volumes [D, H, W] in RAS.
    """
    top = max(real.max() for _, real, _ in rows)
    worst = max(np.quantile(np.abs(real - synthetic), 0.999) for _, real, synthetic in rows)
    figure, axes = plt.subplots(len(rows), 3, figsize=(12, 1.4 * len(rows) + 1), layout="constrained", squeeze=False)
    for row, (title, real, synthetic) in zip(axes, rows, strict=True):
        for axis, volume in zip(row[:2], (real, synthetic), strict=True):
            uptake = axis.imshow(_planes(volume), cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
        error = row[2].imshow(_planes(np.abs(real - synthetic)), cmap="viridis", vmin=0, vmax=worst, interpolation="nearest")
        row[0].set_ylabel(title)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("real PET", "synthetic PET", "absolute error"), strict=True):
        axis.set_title(title)
    figure.colorbar(uptake, ax=axes[:, :2], location="bottom", shrink=0.5, aspect=40, label="uptake, as stored in [0, 1]")
    figure.colorbar(error, ax=axes[:, 2], location="bottom", shrink=0.9, aspect=36, label="absolute error of the uptake")
    _save(figure, stem, notice)


def _square(title: str, **settings) -> tuple[plt.Figure, plt.Axes]:
    figure, axis = plt.subplots(figsize=(6, 7.4), layout="constrained")
    axis.set(title=title, **settings)
    return figure, axis


def plot_roc(stem: Path, predictions: pd.DataFrame, notice: str) -> None:
    """ROC curves of the main read-outs on the test list. predictions: as read_status gives."""
    figure, axis = _square(f"ROC, test list, n = {predictions['ID'].nunique()}", xlabel="1 - specificity", ylabel="sensitivity",
                           xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for key, (name, colour, line) in STATUS_CLASSIFIERS.items():
        part = predictions[(predictions["classifier"] == key[0]) & (predictions["method"] == key[1])]
        if len(part):
            false_alarms, hits, _ = roc_curve(part["label"], part["score"])
            area = roc_auc_score(part["label"], part["score"])
            axis.plot(false_alarms, hits, line, color=colour, linewidth=2, label=f"{name}: AUC {area:.2f}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    _save(figure, stem, notice)


def plot_calibration(stem: Path, predictions: pd.DataFrame, notice: str) -> None:
    """How often subjects of a predicted probability are positive: groups of about equal size."""
    n = predictions["ID"].nunique()
    figure, axis = _square(f"Calibration, test list, n = {n}", xlabel="mean predicted probability of amyloid positive",
                           ylabel="share that is amyloid positive", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1, label="perfect")
    for (classifier, method), (name, colour, line) in STATUS_CLASSIFIERS.items():
        part = predictions[(predictions["classifier"] == classifier) & (predictions["method"] == method)]
        if len(part) and method != "mean_pet":
            share, predicted = calibration_curve(part["label"], part["score"], n_bins=max(2, min(10, n // 5)), strategy="quantile")
            axis.plot(predicted, share, line, marker="o", color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    _save(figure, stem, notice)


def _scatter(axis: plt.Axes, x: np.ndarray, y: np.ndarray, label: np.ndarray) -> None:
    for value in np.unique(label):
        name, colour, marker = LABELS.get(value, (f"label {value}", "#009E73", "s"))
        axis.scatter(x[label == value], y[label == value], color=colour, marker=marker, s=36, label=name)


def plot_suvr(stem: Path, real: np.ndarray, synthetic: np.ndarray, label: np.ndarray, notice: str) -> None:
    """SUVR of the synthetic against the real PET, with the identity and the fitted line. All [n]."""
    found = agreement(real, synthetic)
    ends = np.array([min(real.min(), synthetic.min()) - 0.05, max(real.max(), synthetic.max()) + 0.05])
    figure, axis = _square(f"SUVR, test list, n = {len(real)}", xlabel="SUVR of the real PET", ylabel="SUVR of the synthetic PET",
                           xlim=ends, ylim=ends, aspect="equal")
    axis.plot(ends, ends, color="0.6", linewidth=1, label="identity")
    axis.plot(ends, synthetic.mean() + found["slope"] * (ends - real.mean()), "--", color="0.3",
              label=f"fit: slope {found['slope']:.2f}, CCC {found['CCC']:.2f}")
    _scatter(axis, real, synthetic, label)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    _save(figure, stem, notice)


def plot_bland_altman(stem: Path, real: np.ndarray, synthetic: np.ndarray, label: np.ndarray, notice: str) -> None:
    """Difference against mean of the two SUVRs, with the bias and the limits of agreement. All [n]."""
    found = agreement(real, synthetic)
    figure, axis = _square(f"Bland-Altman, SUVR, test list, n = {len(real)}", xlabel="mean of real and synthetic SUVR",
                           ylabel="synthetic - real SUVR")
    axis.axhline(0, color="0.8", linewidth=1)
    for name, text, line in (("bias", "bias", "-"), ("LoA_low", "bias - 1.96 SD", "--"), ("LoA_high", "bias + 1.96 SD", "--")):
        axis.axhline(found[name], color="0.3", linestyle=line, label=f"{text}: {found[name]:+.3f}")
    _scatter(axis, (real + synthetic) / 2, synthetic - real, label)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    _save(figure, stem, notice)
