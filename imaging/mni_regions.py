"""Plain regions of the SUVR, made from the MNI152 maps that nilearn carries: no atlas and no download.

The whole cerebellum and a cortical target of frontal, parietal, lateral temporal and precuneus or posterior
cingulate grey matter, each cut out of the tissue maps by planes in MNI millimetres, x to the right, y to the
front, z up. The planes are whole numbers, alike on both sides, found by the Dice overlap with the Centiloid
project's masks: docs/status.md says how near they come.
"""
from functools import lru_cache

import nibabel as nib
import numpy as np

from imaging.grids import Crop

TISSUE, GREY = 0.8, 0.3                      # least share of a voxel that is tissue, or grey matter
# Boxes of the cortical target in mm: |x|, y and z from and to. Grey matter outside all of them is left out.
CORTEX = {
    "frontal pole, orbital and anterior cingulate": ((0, 45), (30, 75), (-16, 49)),
    "superior and middle frontal": ((0, 45), (13, 75), (21, 49)),
    "precuneus and posterior cingulate": ((0, 13), (-70, -24), (15, 58)),
    "lateral parietal": ((22, 75), (-67, -38), (17, 49)),
    "lateral temporal": ((43, 75), (-68, -24), (-23, 16)),
}
CEREBELLUM = ((0, 51), (-86, -36), (-52, -14))
BEHIND_BRAINSTEM = (12, -43)                 # nearer to the midline than 12 mm it begins behind y = -43
SLOPE_X, SLOPE_Y, HIGHEST_Y = 1 / 4, 1 / 10, -60     # its roof falls to the sides, and to the back from there
LEAST_INSIDE = 0.5                           # share of each region's box that a crop must hold


@lru_cache(maxsize=1)
def mni_regions() -> dict[str, nib.Nifti1Image]:
    """cortex_mask and reference_mask (whole cerebellum) as images of 0 and 1 on the template's 1 mm grid."""
    from nilearn import datasets  # here, because importing it takes seconds

    grey = datasets.load_mni152_gm_template(resolution=1)
    white = datasets.load_mni152_wm_template(resolution=1)
    grey_share, white_share = (np.asarray(image.dataobj, np.float32) for image in (grey, white))
    x, y, z = _places(grey)
    cortex = np.zeros(grey.shape, bool)
    for box in CORTEX.values():
        cortex |= _inside(box, x, y, z)
    masks = {"cortex_mask": cortex & (grey_share > GREY),
             "reference_mask": _cerebellum(x, y, z) & (grey_share + white_share > TISSUE)}
    return {name: nib.Nifti1Image(mask.astype(np.uint8), grey.affine) for name, mask in masks.items()}


def _places(image: nib.Nifti1Image) -> list[np.ndarray]:
    """|x|, y and z in mm of an image whose axes are those of the space, shaped to broadcast."""
    axes = []
    for axis, count in enumerate(image.shape):
        axes.append(image.affine[axis, 3] + image.affine[axis, axis] * np.arange(count))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return [np.abs(x), y, z]


def _inside(box: tuple, *places: np.ndarray) -> np.ndarray:
    """Voxels between both ends of a box along every axis."""
    inside = True
    for (low, high), place in zip(box, places, strict=True):
        inside = inside & (low <= place) & (place <= high)
    return inside


def _cerebellum(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Voxels below the tentorium and behind the brainstem."""
    (_, _), (_, _), (_, top) = CEREBELLUM
    roof = top - SLOPE_X * x - SLOPE_Y * np.maximum(0, HIGHEST_Y - y)
    width, front = BEHIND_BRAINSTEM
    return _inside(CEREBELLUM, x, y, z) & (z <= roof) & ((x >= width) | (y <= front))


def lies_in_mni_space(affine: np.ndarray, crop: Crop) -> bool:
    """Whether a crop of volumes with this affine [4, 4] holds the places of these regions, by its header
    alone: at least half of the box around each."""
    boxes = np.array(list(CORTEX.values()), float)                           # [boxes, axis, from and to]
    cortex = np.stack([boxes[:, :, 0].min(axis=0), boxes[:, :, 1].max(axis=0)], axis=1)
    return all(_share_inside(box, affine, crop) >= LEAST_INSIDE for box in (cortex, np.array(CEREBELLUM)))


def _share_inside(box: np.ndarray, affine: np.ndarray, crop: Crop) -> float:
    """Share of a box on both sides, [axis, from and to] in mm, whose points lie inside the crop."""
    box = np.array([(-box[0, 1], box[0, 1]), box[1], box[2]])
    axes = [np.linspace(low, high, 12) for low, high in box]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = nib.affines.apply_affine(np.linalg.inv(crop.affine(affine)), points)
    inside = (voxels >= -0.5) & (voxels <= np.array(crop.size) - 0.5)
    return float(inside.all(axis=1).mean())
