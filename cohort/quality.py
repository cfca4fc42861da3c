"""What a preprocessed scan is judged by: measures, remarks on unusual ones, and a page to look at."""
from pathlib import Path

import matplotlib
import numpy as np

from cohort.registration import grid_affine, likeness
from runtime.files import atomic

matplotlib.use("Agg")                                      # a cluster node has no display
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

PLANES = (("x", (-45, -22, -4, 22, 45)), ("y", (-80, -52, -24, 4, 36)), ("z", (-40, -18, 6, 30, 54)))   # mm, what is shown
OUTLINES = {"template": ("#E69F00", "brain of the template"), "white": ("#009E73", "its white matter"), "brain": ("#56B4E9", "brain found")}
USUAL = {"brain_ml": (900, 2000), "overlap": (0.88, 1), "correlation": (0.45, 1), "mri_below_0": (0, 0.01), "pet_likeness": (1.04, 2),
         "pet_covered": (0.97, 1), "reference_covered": (0.8, 1), "pet_motion_mm": (0, 4), "pet_above_maximum": (0, 0),
         "pet_below_0": (0, 0.01)}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks, 2 |A and B| / (|A| + |B|), in [0, 1]."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, 0 where one of them is constant."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


def compare_with_template(mri: np.ndarray, brain: np.ndarray, template: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Overlap of the brain with the template's mask, and correlation of MRI and template inside that. All [X, Y, Z] on one grid."""
    return {"overlap": dice(brain, mask), "correlation": correlation(mri[mask], template[mask])}


def compare_with_mri(pet: np.ndarray, mri: np.ndarray, brain: np.ndarray) -> dict[str, float]:
    """Normalised mutual information of PET and MRI inside the brain."""
    return {"pet_likeness": likeness(pet[brain], mri[brain])}


def remarks(measures: dict[str, float]) -> list[str]:
    """A sentence for each measure outside of what is usual; they call for a look at the page and are no verdict."""
    return [f"{name} {measures[name]:.4g} (usual: {low:g} to {high:g})" for name, (low, high) in USUAL.items()
            if name in measures and not low <= measures[name] <= high]


def _slices(voxels: np.ndarray, voxel_mm: int):
    """Plane, place in mm and slice [rows, columns] of each picture of a row, up is up, and on the right is right or front."""
    origin = grid_affine(voxel_mm)[:3, 3]
    for axis, (name, places) in enumerate(PLANES):
        for place in places:
            index = int(np.clip(round((place - origin[axis]) / voxel_mm), 0, voxels.shape[axis] - 1))
            yield name, place, np.take(voxels, index, axis).T


def draw_page(path: Path, title: str, volumes: dict[str, np.ndarray], outlines: dict[str, np.ndarray], measures: dict[str, float],
              voxel_mm: int) -> None:
    """A PNG of registered volumes in three planes, with the outlines of masks on the same grid, and the measures.

    volumes: name -> [X, Y, Z], shown from 0 to the 99.8th percentile. outlines: keys of OUTLINES -> [X, Y, Z] bool.
    """
    rows, columns, unusual = 3 * len(volumes), len(PLANES[0][1]), remarks(measures)
    numbers = [f"{key} {value:.4g}" for key, value in measures.items()]
    numbers = ["    ".join(numbers[k: k + 5]) for k in range(0, len(numbers), 5)]
    head = 0.5 + 0.2 * max(len(numbers), len(unusual))     # inches
    height = 2.05 * rows + head
    figure, axes = plt.subplots(rows, columns, figsize=(11, height), facecolor="black")
    for block, (name, voxels) in enumerate(volumes.items()):
        top = np.percentile(voxels[outlines["brain"]], 99.8)
        pictures = zip(_slices(voxels, voxel_mm), *(_slices(mask.astype(float), voxel_mm) for mask in outlines.values()), strict=True)
        for axis, ((plane, place, picture), *masks) in zip(axes[3 * block: 3 * block + 3].flat, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=top, origin="lower", interpolation="nearest")
            for key, (_, _, mask) in zip(outlines, masks, strict=True):
                if mask.any() and not mask.all():
                    axis.contour(mask, levels=[0.5], colors=OUTLINES[key][0], linewidths=0.9 if key != "white" else 0.5)
            axis.text(0.02, 0.97, f"{name}  {plane} = {place} mm", transform=axis.transAxes, color="white", fontsize=7, va="top")
            axis.axis("off")
    lines = [Line2D([], [], color=OUTLINES[key][0], label=OUTLINES[key][1]) for key in outlines]
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - head / height, 0.01, 0.01)
    figure.legend(handles=lines, loc="upper right", ncols=len(lines), fontsize=9, labelcolor="white", frameon=False)
    figure.text(0.01, 1 - 0.1 / height, title, color="white", fontsize=14, weight="bold", va="top")
    figure.text(0.01, 1 - 0.42 / height, "\n".join(numbers), color="white", fontsize=9, va="top", linespacing=1.4)
    figure.text(0.99, 1 - 0.42 / height, "look: " + "\nlook: ".join(unusual) if unusual else "no measure is unusual", ha="right", va="top",
                color="#F0E442" if unusual else "white", fontsize=9, linespacing=1.4)
    with atomic(path) as partial:
        figure.savefig(partial, dpi=100, facecolor="black")
    plt.close(figure)
