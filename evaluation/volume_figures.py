"""The pictures of an experiment that show volumes: PETs beside each other, over their MRI, by several
methods, and failure cases."""
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import voxel_sizes

from evaluation.figures import METHOD_TITLES, pyplot, save_figure
from imaging.volumes import read_in_range
from runtime.files import atomic, brief

if TYPE_CHECKING:                                          # only drawing needs matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evaluation.failure_cases import Case

PLANES_MM = {                                              # slices through the brain, in MNI space
    "z": (-40, -20, 0, 20, 40, 60), "y": (-80, -55, -30, -5, 20, 45), "x": (-50, -30, -10, 10, 30, 50)}
PETS = ("real PET", "synthetic PET", "one sample")         # columns of plot_volumes


def _planes(voxels: np.ndarray) -> np.ndarray:
    """Sagittal, coronal and axial slice through the middle of [D, H, W] in RAS, side by side."""
    planes = [np.rot90(np.take(voxels, n // 2, axis)) for axis, n in enumerate(voxels.shape)]
    height = max(plane.shape[0] for plane in planes)
    padded = []
    for plane in planes:
        missing = height - plane.shape[0]
        padded.append(np.pad(plane, (((missing + 1) // 2, missing // 2), (1, 1))))
    return np.concatenate(padded, axis=1)


def plot_synthesized(stem: Path, rows: dict[str, tuple[Path, Path, Path]], is_drawn: bool,
                     notice: str) -> None:
    """Draw a PNG with a row a subject: real PET, synthetic PET and one sample, three planes each, one colour
    scale.

    rows: title of the subject -> files of these three, whatever their orientation. is_drawn: whether a sample
    has a label of its own, drawn from what the MRI leaves open.
    """
    pictures = {title: [_planes(read_in_range(file)[0]) for file in files] for title, files in rows.items()}
    top = max(picture.max() for row in pictures.values() for picture in row)
    size = (9, 0.95 * len(rows) + 0.85)
    figure, axes = pyplot().subplots(len(rows), 3, figsize=size, layout="constrained", squeeze=False)
    for line, (title, row) in zip(axes, pictures.items(), strict=True):
        for axis, picture in zip(line, row, strict=True):
            image = axis.imshow(picture, cmap="hot", vmin=0, vmax=top, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8)
    sample = "one PET that this person might have" if is_drawn else "with the same label as the mean"
    titles = ("real PET", "synthetic PET, from the MRI\n(the mean, so smoother by nature)",
              f"one sample, from the MRI\n({sample})")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label="uptake, as stored in [0, 1]")
    save_figure(figure, stem, notice, (".png",))


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


def plot_volumes(stem: Path, rows: dict[str, dict[str, np.ndarray]], notice: str) -> None:
    """Draw real PET, synthetic PET, one sample if there is one, and absolute error, a row a subject, three
    planes each.

    rows: title -> the PETs by these names, of PETS, volumes [D, H, W] in RAS. One scale of uptake
    and one of error for all.
    """
    columns = [name for name in PETS if all(name in pets for pets in rows.values())]
    errors = [np.abs(pets["real PET"] - pets["synthetic PET"]) for pets in rows.values()]
    top = max(pets[name].max() for pets in rows.values() for name in columns)
    worst = max(np.quantile(error, 0.999) for error in errors)
    size = (4 * len(columns) + 4, 1.4 * len(rows) + 1)
    figure, axes = pyplot().subplots(len(rows), len(columns) + 1, figsize=size, layout="constrained",
                                     squeeze=False)
    pet_scale = {"cmap": "inferno", "vmin": 0, "vmax": top, "interpolation": "nearest"}
    for line, (title, pets), error in zip(axes, rows.items(), errors, strict=True):
        for axis, name in zip(line[:-1], columns, strict=True):
            uptake = axis.imshow(_planes(pets[name]), **pet_scale)
        shown_error = line[-1].imshow(_planes(error), cmap="viridis", vmin=0, vmax=worst,
                                      interpolation="nearest")
        line[0].set_ylabel(title)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], (*columns, "absolute error of the synthetic PET"), strict=True):
        axis.set_title(title)
    figure.colorbar(uptake, ax=axes[:, :-1], location="bottom", shrink=0.5, aspect=40,
                    label="uptake, as stored in [0, 1]")
    figure.colorbar(shown_error, ax=axes[:, -1], location="bottom", shrink=0.9, aspect=36,
                    label="absolute error of the uptake")
    save_figure(figure, stem, notice)


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
    save_figure(figure, path.with_suffix(""), notice, (".png",), y=1 - 0.1 / figure.get_figheight())


def plot_samples(path: Path, rows: dict[str, list[tuple[str, np.ndarray]]], where: str, notice: str) -> None:
    """Draw a PNG with a row a subject: PETs with a text above each, all in one scale.

    rows: title of the subject -> (text, axial slice [D, H]) of as many PETs each. where: place of the slices.
    """
    slices = np.stack([[pet for _, pet in row] for row in rows.values()])                 # [n, PETs, D, H]
    each, shape = 1.35, slices.shape[3] / slices.shape[2]  # inches, height over width
    left, right, head, below, text = 1.15, 0.1, 0.35, 0.75, 0.62
    width = left + slices.shape[1] * each + right
    height = head + len(rows) * (each * shape + text) + below
    margins = {"left": left / width, "right": 1 - right / width, "bottom": below / height,
               "top": 1 - (head + text) / height, "wspace": 0.04, "hspace": text / (each * shape)}
    figure, axes = pyplot().subplots(len(rows), slices.shape[1], figsize=(width, height), gridspec_kw=margins,
                                     squeeze=False)
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for axis, (about, pet) in zip(line, row, strict=True):
            image = _axial(axis, pet, "inferno", slices.max())
            axis.set_title(about, fontsize=8)
    bar = figure.add_axes((0.35, 0.5 / height, 0.3, 0.1 / height))
    figure.colorbar(image, cax=bar, orientation="horizontal")
    bar.set_xlabel(f"uptake, as stored in [0, 1]; {where}; left is the subject's left", fontsize=8)
    bar.tick_params(labelsize=8)
    save_figure(figure, path.with_suffix(""), notice, (".png",), y=1 - 0.08 / height)


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
    save_figure(figure, stem, notice, y=1 - 0.1 / height)


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
