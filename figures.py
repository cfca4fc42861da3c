"""The pictures of a run, drawn from its files."""
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pandas as pd

matplotlib.use("Agg")                                      # a cluster node has no display
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from utils import atomic  # noqa: E402

CURVES = {"aae": ("Stage 1, autoencoder", {"rec": "L1 reconstruction"}),
          "ldm": ("Stage 2, denoiser", {"mse": "training", "mse_validation": "validation"})}


def _save(figure: plt.Figure, path: Path, notice: str) -> None:
    figure.supxlabel(notice, x=0.99, ha="right", fontsize=8, color="0.35")
    with atomic(path) as partial:
        figure.savefig(partial, dpi=150)
    plt.close(figure)


def plot_curves(folder: Path, notice: str) -> Path:
    """loss_curve.png: the losses of the stages so far and the validation PSNR, the chosen epoch marked; from the two CSVs."""
    losses, validation = pd.read_csv(folder / "loss_curve.csv"), pd.read_csv(folder / "validation.csv")
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
    path = folder / "loss_curve.png"
    _save(figure, path, notice)
    return path


def _planes(voxels: np.ndarray) -> np.ndarray:
    """Sagittal, coronal and axial slice through the middle of [D, H, W] in RAS, side by side as one picture."""
    planes = [np.rot90(np.take(voxels, n // 2, axis)) for axis, n in enumerate(voxels.shape)]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(plane, (((height - plane.shape[0] + 1) // 2, (height - plane.shape[0]) // 2), (1, 1))) for plane in planes]
    return np.concatenate(padded, axis=1)


def plot_synthesized(path: Path, rows: list[tuple[str, Path, Path]], notice: str) -> Path:
    """synthesized.png: a row a subject, real PET left and synthetic PET right, three planes each, one colour scale.

    rows: (title of the subject, real PET file, synthetic PET file), whatever their orientation.
    """
    pairs = [(title, *(_planes(np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj, np.float32)) for file in files))
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
    _save(figure, path, notice)
    return path
