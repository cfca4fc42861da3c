"""The pictures of an experiment: losses, sampling curve, PETs beside each other, status and uptake."""
import itertools
import textwrap
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation.statistics import agreement
from imaging.volumes import read_in_range
from runtime.checkpoints import read_history
from runtime.files import atomic, brief

if TYPE_CHECKING:                                          # only drawing needs matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evaluation.failure_cases import Case

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
PLANES_MM = {                                              # slices through the brain, in MNI space
    "z": (-40, -20, 0, 20, 40, 60), "y": (-80, -55, -30, -5, 20, 45), "x": (-50, -30, -10, 10, 30, 50)}

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


def _save(figure: "Figure", stem: Path, notice: str, suffixes: tuple[str, ...] = (".png", ".pdf"),
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
    _save(figure, stem, notice, suffixes)


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
    _save(figure, stem, note)


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
    _save(figure, stem, note)


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
    _save(figure, stem, note)


# ---------------------------------------------------------------- PETs

def _planes(voxels: np.ndarray) -> np.ndarray:
    """Sagittal, coronal and axial slice through the middle of [D, H, W] in RAS, side by side."""
    planes = [np.rot90(np.take(voxels, n // 2, axis)) for axis, n in enumerate(voxels.shape)]
    height = max(plane.shape[0] for plane in planes)
    padded = []
    for plane in planes:
        missing = height - plane.shape[0]
        padded.append(np.pad(plane, (((missing + 1) // 2, missing // 2), (1, 1))))
    return np.concatenate(padded, axis=1)


def plot_synthesized(stem: Path, rows: list[tuple[str, Path, Path]], notice: str) -> None:
    """Draw a PNG with a row a subject: real and synthetic PET, three planes each, one colour scale.

    rows: (title of the subject, real PET file, synthetic PET file), whatever their orientation.
    """
    pictures = []
    for title, real, synthetic in rows:
        pictures.append((title, _planes(read_in_range(real)[0]), _planes(read_in_range(synthetic)[0])))
    top = max(real.max() for _, real, _ in pictures)
    size = (10, 1.65 * len(rows) + 0.6)
    figure, axes = pyplot().subplots(len(rows), 2, figsize=size, layout="constrained", squeeze=False)
    for (left, right), (title, real, synthetic) in zip(axes, pictures, strict=True):
        for axis, picture in ((left, real), (right, synthetic)):
            image = axis.imshow(picture, cmap="hot", vmin=0, vmax=top, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        left.set_ylabel(title)
    axes[0, 0].set_title("real PET")
    axes[0, 1].set_title("synthetic PET, from the MRI")
    figure.colorbar(image, ax=axes, shrink=0.8, label="uptake, as stored in [0, 1]")
    _save(figure, stem, notice, (".png",))


def plot_overlay(path: Path, mri: np.ndarray, pet: np.ndarray, affine: np.ndarray, title: str,
                 notice: str) -> None:
    """Draw a PNG with a PET in colour over its MRI in grey, six slices a plane at their MNI millimetres.

    mri, pet: [X, Y, Z] on one grid, axes in RAS order; affine: [4, 4].
    """
    top = max(0.1, np.ceil(10 * pet.max()) / 10)           # in steps, so that most pictures share a scale
    margins = {"left": 0.01, "right": 0.91, "bottom": 0.01, "top": 0.88, "wspace": 0.02, "hspace": 0.12}
    figure, axes = pyplot().subplots(3, 6, figsize=(11, 6.6), facecolor="black", gridspec_kw=margins)
    for row, (name, millimetres) in zip(axes, PLANES_MM.items(), strict=True):
        for panel, mm in zip(row, millimetres, strict=True):
            image = _overlay_slice(panel, mri, pet, affine, name, mm, top)
    for side, x in (("L", 0.02), ("R", 0.94)):
        axes[0, 0].text(x, 0.5, side, transform=axes[0, 0].transAxes, color="0.85", fontsize=9)
    bar = figure.colorbar(image, cax=figure.add_axes((0.93, 0.12, 0.015, 0.68)))
    bar.set_label("synthetic uptake, as stored in [0, 1]", color="0.85")
    bar.ax.tick_params(colors="0.85")
    text = f"{brief(title)}\n{notice}"
    figure.suptitle(text, fontsize=10, color="0.85", parse_math=False)        # a file's name may hold a $
    with atomic(path) as partial:
        figure.savefig(partial, dpi=110)
    pyplot().close(figure)


def _overlay_slice(panel: "Axes", mri: np.ndarray, pet: np.ndarray, affine: np.ndarray, name: str, mm: float,
                   top: float):
    """Draw the slice nearest to `mm` along the axis `name` (x, y or z). Returns the picture of the PET."""
    axis = "xyz".index(name)
    spacing, origin = affine[axis, axis], affine[axis, 3]
    index = int(np.clip(round((mm - origin) / spacing), 0, mri.shape[axis] - 1))
    across, up = np.delete(voxel_sizes(affine), axis)
    below, above = np.take(mri, index, axis).T, np.take(pet, index, axis).T
    shared = {"origin": "lower", "aspect": up / across}
    panel.imshow(below, cmap="gray", vmin=0, vmax=max(mri.max(), 1e-6), **shared)
    image = panel.imshow(above, cmap="inferno", vmin=0, vmax=top, alpha=0.65 * (above > 0.03 * top), **shared)
    panel.set_title(f"{name} = {spacing * index + origin:.0f} mm", fontsize=9, color="0.85", pad=2)
    panel.axis("off")
    return image


def plot_volumes(stem: Path, rows: list[tuple[str, np.ndarray, np.ndarray]], notice: str) -> None:
    """Draw real PET, synthetic PET and absolute error, a row a subject, three planes each.

    rows: (title, real, synthetic), volumes [D, H, W] in RAS. One scale of uptake and one of error for all.
    """
    top = max(real.max() for _, real, _ in rows)
    worst = max(np.quantile(np.abs(real - synthetic), 0.999) for _, real, synthetic in rows)
    size = (12, 1.4 * len(rows) + 1)
    figure, axes = pyplot().subplots(len(rows), 3, figsize=size, layout="constrained", squeeze=False)
    for row, (title, real, synthetic) in zip(axes, rows, strict=True):
        pictures = [_planes(volume) for volume in (real, synthetic, np.abs(real - synthetic))]
        row[0].imshow(pictures[0], cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
        uptake = row[1].imshow(pictures[1], cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
        error = row[2].imshow(pictures[2], cmap="viridis", vmin=0, vmax=worst, interpolation="nearest")
        row[0].set_ylabel(title)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("real PET", "synthetic PET", "absolute error"), strict=True):
        axis.set_title(title)
    figure.colorbar(uptake, ax=axes[:, :2], location="bottom", shrink=0.5, aspect=40,
                    label="uptake, as stored in [0, 1]")
    figure.colorbar(error, ax=axes[:, 2], location="bottom", shrink=0.9, aspect=36,
                    label="absolute error of the uptake")
    _save(figure, stem, notice)


def plot_methods(path: Path, titles: list[str], slices: dict[str, list[np.ndarray]], where: str,
                 notice: str) -> None:
    """Draw a PNG of PETs by several methods: two rows a subject, the PETs and their absolute errors below.

    titles: of the subjects. slices: method (one of METHOD_TITLES) -> axial slice [D, H] of each subject.
    where: place of the slices. One scale of uptake and one of error for all.
    """
    slices = {method: slices[method] for method in METHOD_TITLES if method in slices}
    real = np.stack(slices["real"])                                                       # [n, D, H]
    errors = {method: np.abs(np.stack(pets) - real) for method, pets in slices.items() if method != "real"}
    top, worst = real.max(), max(np.quantile(error, 0.999) for error in errors.values())
    figure, axes, below = _grid_of_slices(2 * len(titles), len(slices), real.shape[2] / real.shape[1])
    for column, (method, pets) in zip(axes.T, slices.items(), strict=True):
        column[0].set_title(textwrap.fill(METHOD_TITLES[method], 17), fontsize=8)
        for row, pet in enumerate(pets):
            uptake = _axial(column[2 * row], pet, "inferno", top)
            if method == "real":
                column[2 * row + 1].axis("off")
            else:
                error = _axial(column[2 * row + 1], errors[method][row], "viridis", worst)
    for axis, title in zip(axes[::2, 0], titles, strict=True):
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    texts = (f"uptake, as stored in [0, 1]\n{where}\nleft is the subject's left",
             "absolute error of the uptake\n(below each PET)\nup to its 99.9th percentile")
    for axis, picture, text in zip(below, (uptake, error), texts, strict=True):
        figure.colorbar(picture, cax=axis, orientation="horizontal", extend="max")
        axis.set_xlabel(text, fontsize=8)
        axis.tick_params(labelsize=8)
    _save(figure, path.with_suffix(""), notice, (".png",), y=1 - 0.1 / figure.get_figheight())


def plot_cases(stem: Path, cases: "list[Case]", where: str, notice: str) -> None:
    """Draw failure cases, a column each: MRI, real PET, synthetic PET and signed error, and what is known
    beneath.

    where: place of the slices. One scale of the MRI, of uptake and of the error for all.
    """
    names = ("MRI", "real PET", "synthetic PET")
    stacks = {name: np.stack([case.slices[name] for case in cases]) for name in names}     # [n, D, H]
    stacks["error"] = stacks["synthetic PET"] - stacks["real PET"]
    top, worst = stacks["real PET"].max(), np.quantile(np.abs(stacks["error"]), 0.999) or 1.0
    scales = {"MRI": ("gray", 0, stacks["MRI"].max()), "real PET": ("inferno", 0, top),
              "synthetic PET": ("inferno", 0, top), "error": ("RdBu_r", -worst, worst)}
    each, shape = 1.65, stacks["MRI"].shape[2] / stacks["MRI"].shape[1]       # inches, height over width
    left, right, bars, head = 1.05, 0.1, 0.95, 0.6
    text = 0.17 * max(len(case.text) for case in cases) + 0.2
    width = left + max(3, len(cases)) * each + right                         # the colour bars need some room
    height = head + len(scales) * each * shape + text + bars
    margins = {"left": left / width, "right": (left + len(cases) * each) / width,
               "bottom": (bars + text) / height, "top": 1 - head / height, "hspace": 0.03}
    figure, axes = pyplot().subplots(len(scales), 1, figsize=(width, height), gridspec_kw=margins)
    pictures = {}
    for axis, (name, (colours, low, high)) in zip(axes, scales.items(), strict=True):
        row, centres = _side_by_side(stacks[name])
        pictures[name] = axis.imshow(row, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        axis.set(xticks=[], yticks=[], facecolor="0.75")   # of the lines between the slices
        axis.set_ylabel("synthetic - real" if name == "error" else name, fontsize=9)
    for x, case in zip(centres, cases, strict=True):
        axes[0].annotate(case.title, (x, 1), (0, 5), ("data", "axes fraction"), "offset points", ha="center",
                         va="bottom", fontsize=9)
        axes[-1].annotate("\n".join(case.text), (x, 0), (0, -6), ("data", "axes fraction"), "offset points",
                          ha="center", va="top", fontsize=8, parse_math=False)
    about = {"real PET": f"uptake, as stored in [0, 1]\n{where}; left is the subject's left",
             "error": "error of the uptake, synthetic - real\nup to the 99.9th percentile of its size"}
    for start, (name, label) in zip((0.04, 0.54), about.items(), strict=True):
        bar = figure.add_axes((start + 0.06, 0.62 / height, 0.34, 0.12 / height))
        figure.colorbar(pictures[name], cax=bar, orientation="horizontal",
                        extend="both" if name == "error" else "max")
        bar.set_xlabel(label, fontsize=8)
        bar.tick_params(labelsize=8)
    _save(figure, stem, notice, y=1 - 0.1 / height)


def _side_by_side(slices: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Axial slices [n, D, H] as one picture, the front at the top, NaN between them, and the column of each
    centre. One axis for all is many times faster to draw than one for each."""
    turned = np.rot90(slices, axes=(1, 2))                                                # [n, H, D]
    wide = turned.shape[2]
    gap = max(1, wide // 40)
    padded = np.pad(turned.astype(float), ((0, 0), (0, 0), (0, gap)), constant_values=np.nan)
    row = np.concatenate(padded, axis=1)[:, :-gap]
    return row, [i * (wide + gap) + (wide - 1) / 2 for i in range(len(slices))]


def _grid_of_slices(rows: int, columns: int, shape: float) -> tuple["Figure", np.ndarray, list["Axes"]]:
    """A figure, its axes [rows, columns] for slices of that height over width, and two axes below them for
    colour bars. All sizes are in inches: with so many axes, a constrained layout takes a minute."""
    left, right, bottom, top, each = 1.5, 0.1, 1.0, 0.6, 1.2
    width, height = left + columns * each + right, bottom + rows * each * shape + top
    margins = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height,
               "top": 1 - top / height, "wspace": 0.06, "hspace": 0.06}
    figure, axes = pyplot().subplots(rows, columns, figsize=(width, height), gridspec_kw=margins,
                                     squeeze=False)
    half = columns * each / 2
    bars = [figure.add_axes(((start + 0.1 * half) / width, 0.75 / height, 0.8 * half / width, 0.12 / height))
            for start in (left, left + half)]
    return figure, axes, bars


def _axial(axis: "Axes", voxels: np.ndarray, colours: str, top: float):
    """Draw an axial slice [D, H] in RAS, the front at the top. Returns the picture."""
    axis.set(xticks=[], yticks=[])
    return axis.imshow(np.rot90(voxels), cmap=colours, vmin=0, vmax=top, interpolation="nearest")


# ---------------------------------------------------------------- status and uptake

def _square(title: str, **settings) -> tuple["Figure", "Axes"]:
    """A figure with one axis and room for a legend below it."""
    figure, axis = pyplot().subplots(figsize=(6, 7.4), layout="constrained")
    axis.set(title=title, **settings)
    return figure, axis


def _save_with_legend(figure: "Figure", stem: Path, notice: str) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    _save(figure, stem, notice)


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
    _save(figure, stem, notice)


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
    _save(figure, stem, notice)
