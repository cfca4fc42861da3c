"""Quality of a preprocessed scan: measures, remarks on unusual ones, and a page to look at."""
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np

from cohort.registration import mutual_information
from phantom.anatomy import grid_affine
from runtime.files import atomic

matplotlib.use("Agg")                                      # a cluster node has no display
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

# Planes and places of the slices that are shown, mm.
PLANES = {"x": (-45, -22, -4, 22, 45), "y": (-80, -52, -24, 4, 36), "z": (-40, -18, 6, 30, 54)}
COLUMNS = 5
# Outline -> colour and explanation.
OUTLINES = {"template": ("#E69F00", "brain of the template"), "white": ("#009E73", "its white matter"),
            "brain": ("#56B4E9", "brain found")}
# Measure -> smallest and largest usual value.
USUAL = {"brain_ml": (900, 2000), "overlap": (0.88, 1), "correlation": (0.45, 1), "mri_below_0": (0, 0.01),
         "pet_likeness": (1.04, 2), "pet_covered": (0.97, 1), "reference_covered": (0.8, 1),
         "pet_motion_mm": (0, 4), "pet_above_maximum": (0, 0), "pet_below_0": (0, 0.01)}


# ---------------------------------------------------------------- measures

def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks, 2 |A and B| / (|A| + |B|), in [0, 1]."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation, 0 where one of the arrays is constant."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


def compare_with_template(mri: np.ndarray, brain: np.ndarray, template: np.ndarray, mask: np.ndarray
                          ) -> dict[str, float]:
    """Overlap of the brain with the template's mask, and correlation of MRI and template inside that mask.

    All [X, Y, Z] on one grid, the brain and the mask bool.
    """
    return {"overlap": dice(brain, mask), "correlation": correlation(mri[mask], template[mask])}


def compare_with_mri(pet: np.ndarray, mri: np.ndarray, brain: np.ndarray) -> dict[str, float]:
    """Normalised mutual information of PET and MRI inside the brain. All [X, Y, Z] on one grid."""
    return {"pet_likeness": mutual_information(pet[brain], mri[brain])}


def remarks(measures: dict[str, float]) -> list[str]:
    """A sentence for each unusual measure: a reason to look at the page, no verdict."""
    sentences = []
    for name, (low, high) in USUAL.items():
        if name in measures and not low <= measures[name] <= high:
            sentences.append(f"{name} {measures[name]:.4g} (usual: {low:g} to {high:g})")
    return sentences


# ---------------------------------------------------------------- a page to look at

def draw_page(path: Path, title: str, volumes: dict[str, np.ndarray], outlines: dict[str, np.ndarray],
              measures: dict[str, float], voxel_mm: int) -> None:
    """Draw a PNG of registered volumes in three planes, outlines of masks on their grid, and the measures.

    volumes: name -> [X, Y, Z], shown from 0 to the 99.8th percentile of the brain. outlines: keys of OUTLINES
    -> [X, Y, Z] bool.
    """
    values = [f"{name} {value:.4g}" for name, value in measures.items()]
    lines = ["    ".join(values[first:first + 5]) for first in range(0, len(values), 5)]
    unusual = remarks(measures)
    head = 0.5 + 0.2 * max(len(lines), len(unusual))       # inches
    rows = len(PLANES) * len(volumes)
    height = 2.05 * rows + head
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(11, height), facecolor="black")
    for block, (name, voxels) in enumerate(volumes.items()):
        first = len(PLANES) * block
        _draw_volume(axes[first:first + len(PLANES)].flat, name, voxels, outlines, voxel_mm)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - head / height, 0.01, 0.01)
    _write_head(figure, height, title, lines, unusual, list(outlines))
    with atomic(path) as partial:
        figure.savefig(partial, dpi=100, facecolor="black")
    plt.close(figure)


def _draw_volume(axes, name: str, voxels: np.ndarray, outlines: dict[str, np.ndarray], voxel_mm: int) -> None:
    """Draw the slices of a volume, one on each of the axes, with the outlines on them."""
    top = np.percentile(voxels[outlines["brain"]], 99.8)
    for axis, (plane, place, number, index) in zip(axes, _places(voxels.shape, voxel_mm), strict=True):
        picture = np.take(voxels, index, number).T         # up is up, and on the right is right or front
        axis.imshow(picture, cmap="gray", vmin=0, vmax=top, origin="lower", interpolation="nearest")
        for key, mask in outlines.items():
            outline = np.take(mask, index, number).T.astype(float)
            if outline.any() and not outline.all():
                width = 0.5 if key == "white" else 0.9
                axis.contour(outline, levels=[0.5], colors=OUTLINES[key][0], linewidths=width)
        axis.text(0.02, 0.97, f"{name}  {plane} = {place} mm", transform=axis.transAxes, color="white",
                  fontsize=7, va="top")
        axis.axis("off")


def _places(shape: tuple[int, ...], voxel_mm: int) -> Iterator[tuple[str, int, int, int]]:
    """Plane, place in mm, number of the axis and index along it, of each slice that is shown."""
    origin = grid_affine(voxel_mm)[:3, 3]
    for number, (plane, places) in enumerate(PLANES.items()):
        for place in places:
            index = round((place - origin[number]) / voxel_mm)
            yield plane, place, number, int(np.clip(index, 0, shape[number] - 1))


def _write_head(figure: Figure, height: float, title: str, lines: list[str], unusual: list[str],
                outlines: list[str]) -> None:
    """Write title, legend, measures and remarks above the slices. height: of the figure in inches."""
    legend = [Line2D([], [], color=OUTLINES[key][0], label=OUTLINES[key][1]) for key in outlines]
    figure.legend(handles=legend, loc="upper right", ncols=len(legend), fontsize=9, labelcolor="white",
                  frameon=False)
    figure.text(0.01, 1 - 0.1 / height, title, color="white", fontsize=14, weight="bold", va="top")
    top = 1 - 0.42 / height
    figure.text(0.01, top, "\n".join(lines), color="white", fontsize=9, va="top", linespacing=1.4)
    remark = "\n".join(f"look: {sentence}" for sentence in unusual) or "no measure is unusual"
    figure.text(0.99, top, remark, ha="right", va="top", color="#F0E442" if unusual else "white", fontsize=9,
                linespacing=1.4)
