"""Registration by ANTs: a whole head, or a PET, to a reference image; the bias field; the brain.

The template is the skull-stripped MNI152 2009a T1 that nilearn carries, on the cohort's grid (anatomy.py): RAS, whose 1 mm voxel [0, 0, 0]
lies at (-90, -126, -72) mm. antspyx is an optional package and is imported where it is used. Transforms are lists of files, as ANTs takes
them; coordinates are mm in RAS, ANTs' own in LPS.
"""
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from skimage.filters import threshold_otsu
from skimage.metrics import normalized_mutual_information

from phantom.anatomy import CORNER, block_mean
from utils import InputError

TO_LPS = np.diag([-1.0, -1.0, 1.0])                        # its own inverse
SEARCH_MM, LINEAR_MM, SYN_MM, BRAIN_MM = 8, 4, 3, 2        # mm, voxels that are compared: of heads the first two, of brains the others
SYN_ITERATIONS = (20, 10)                                  # at half of that resolution, then at it; 40 and 20 found no better masks
RIM_MM = 8.0                                               # around the brain, compared too: without it a brain may grow into its skull
BRAIN_HEIGHT = 75.0                                        # mm from the top of a head down to the middle of its brain
SMALLER = 1.08                                             # the template's brain is larger than most; at 1 some starts fit it to the scalp
REFINED = 3                                                # starts of the search that ANTs refines
PITCHES, TURNS = (-30, -15, 0, 15, 30), (-15, 0, 15)       # degrees; heads nod more than they turn
N4_MM = 8.0                                                # voxels to which the bias field is fitted; it is smoother than that
LINEAR = {"aff_metric": "mattes", "aff_sampling": 32, "aff_random_sampling_rate": 1.0, "random_seed": 1}


# ---------------------------------------------------------------- images

def to_ants(voxels: np.ndarray, affine: np.ndarray):
    """An ANTs image of [X, Y, Z] voxels. Raises InputError for sheared voxels, which ANTs cannot hold."""
    import ants

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise InputError("the axes of its affine are not perpendicular; resample it onto a grid without shear")
    return ants.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32), origin=tuple(TO_LPS @ affine[:3, 3]), spacing=tuple(spacing),
                           direction=TO_LPS @ axes)


def affine_of(image) -> np.ndarray:
    """The affine [4, 4] of an ANTs image, voxel index to mm in RAS."""
    affine = np.eye(4)
    affine[:3, :3] = TO_LPS @ np.asarray(image.direction) * np.asarray(image.spacing)
    affine[:3, 3] = TO_LPS @ np.asarray(image.origin)
    return affine


def like(image, voxels: np.ndarray):
    """An ANTs image of these voxels on the grid of another."""
    return to_ants(voxels, affine_of(image))


def coarse(image, voxel_mm: float):
    """The image at voxels of that size where its own are smaller, smoothed for it."""
    import ants

    spacing = np.asarray(image.spacing)
    factor = np.maximum(voxel_mm / spacing, 1)
    if (factor < 1.01).all():
        return image
    smooth = gaussian_filter(image.numpy(), 0.42 * np.sqrt(factor ** 2 - 1))                 # FWHM of the new voxel less that of the old
    return ants.resample_image(like(image, smooth), tuple(spacing * factor), use_voxels=False, interp_type=0)


def grid_affine(voxel_mm: int) -> np.ndarray:
    """The affine of the cohort's grid at that voxel size."""
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = CORNER + voxel_mm / 2
    return affine


@lru_cache
def load_template(voxel_mm: int, what: str = "template"):
    """The template's T1, or its brain mask (what: brain_mask) or white matter (wm_template), on the cohort's grid. Downloads nothing."""
    from nilearn import datasets  # here, because importing it takes seconds

    image = block_mean(getattr(datasets, f"load_mni152_{what}")(resolution=1), voxel_mm)
    return to_ants(image if what == "template" else image >= 0.5, grid_affine(voxel_mm))


def dilated(mask, mm: float):
    """The mask with all that lies within so many mm of it."""
    steps = max(1, round(mm / min(mask.spacing)))
    return like(mask, binary_dilation(mask.numpy() > 0, iterations=steps))


# ---------------------------------------------------------------- where to start

def head_centre(head) -> np.ndarray:
    """About the middle of the brain in a head with any length of neck, mm in RAS."""
    voxels = head.numpy()
    places = apply_affine(affine_of(head), np.argwhere(voxels > threshold_otsu(voxels) / 2))
    top = np.percentile(places[:, 2], 99.7)
    low, high = np.percentile(places[places[:, 2] > top - 120][:, :2], (1, 99), axis=0)
    return np.array([*(low + high) / 2, top - BRAIN_HEIGHT])


def centre_of_mass(image) -> np.ndarray:
    """Mean place of what is brighter than half the 98th percentile, mm in RAS."""
    voxels = image.numpy()
    return apply_affine(affine_of(image), np.argwhere(voxels > np.percentile(voxels, 98) / 2)).mean(0)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Normalised mutual information of two arrays of intensities, from 1 (none) to 2 (each tells the other)."""
    return float(normalized_mutual_information(one, other, bins=32))


def find_starts(fixed, mask, moving, centre: np.ndarray, scale: float, folder: Path) -> list[str]:
    """The best rotations and shifts of a coarse grid around `centre` in the moving image, as transform files, best first.

    mask: what of the fixed image is compared. scale: how much smaller the moving one is thought to be.
    """
    import ants

    inside = dilated(mask, SEARCH_MM).numpy() > 0
    middle = apply_affine(affine_of(mask), np.argwhere(mask.numpy() > 0)).mean(0)
    points, values = apply_affine(affine_of(fixed), np.argwhere(inside)) - middle, fixed.numpy()[inside]
    voxels, inverse = np.minimum(moving.numpy(), np.percentile(moving.numpy(), 99.5)), np.linalg.inv(affine_of(moving))

    def rate(pitch: float, roll: float, yaw: float, dy: float, dz: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Likeness at a pose (degrees, mm), its matrix [3, 3], and where the middle of the brain then lies, mm in RAS."""
        matrix = Rotation.from_euler("xyz", (pitch, roll, yaw), degrees=True).as_matrix() / scale
        place = centre + (0, dy, dz)
        found = map_coordinates(voxels, apply_affine(inverse, points @ matrix.T + place).T, order=1)
        return likeness(values, found), matrix, place

    rated = [rate(*pose) for pose in product(PITCHES, TURNS, TURNS, (-12, 0, 12), (-24, -12, 0, 12, 24))]
    starts = []
    for k, (_, matrix, place) in enumerate(sorted(rated, key=lambda found: -found[0])[:REFINED]):
        starts.append(str(folder / f"start{k}.mat"))
        ants.write_transform(ants.create_ants_transform(
            transform_type="AffineTransform", dimension=3, matrix=TO_LPS @ matrix @ TO_LPS, center=TO_LPS @ middle,
            translation=TO_LPS @ (place - middle)), starts[-1])
    return starts


# ---------------------------------------------------------------- registration

def register(fixed, moving, mask, kind: str, start: list[str], stem: Path, **settings) -> dict[str, list[str]]:
    """ANTs' registration from a start; mask: what of the fixed image is compared. Returns forward and inverse transforms."""
    import ants

    found = ants.registration(fixed, moving, type_of_transform=kind, initial_transform=start, mask=mask, mask_all_stages=True,
                              outprefix=str(stem), **settings)
    return {"forward": found["fwdtransforms"], "inverse": found["invtransforms"]}


def align(fixed, mask, moving, centre: np.ndarray, scale: float, kinds: tuple[str, ...], folder: Path) -> list[str]:
    """A linear transform from any position of the moving image. kinds: from ANTs' Rigid, Similarity, Affine; the first is tried from
    several starts, the best of which goes on."""
    import ants

    starts = find_starts(coarse(fixed, SEARCH_MM), coarse_mask(mask, SEARCH_MM), coarse(moving, SEARCH_MM), centre, scale, folder)
    fixed, moving, rim = coarse(fixed, LINEAR_MM), coarse(moving, LINEAR_MM), dilated(coarse_mask(mask, LINEAR_MM), RIM_MM)
    inside = rim.numpy() > 0

    def quality(transforms: list[str]) -> float:
        return likeness(fixed.numpy()[inside], ants.apply_transforms(fixed, moving, transforms).numpy()[inside])

    tried = [register(fixed, moving, rim, kinds[0], [start], folder / f"try{k}_", aff_iterations=(100,), aff_shrink_factors=(2,),
                      aff_smoothing_sigmas=(1,), **LINEAR)["forward"] for k, start in enumerate(starts)]
    best = max(tried, key=quality)
    return register(fixed, moving, rim, kinds[-1], best, folder / "linear_", aff_iterations=(100, 50), aff_shrink_factors=(2, 1),
                    aff_smoothing_sigmas=(1, 0), **LINEAR)["forward"]


def coarse_mask(mask, voxel_mm: float):
    """The mask on the grid that `coarse` brings its image to."""
    small = coarse(mask, voxel_mm)
    return like(small, small.numpy() >= 0.5)


# ---------------------------------------------------------------- heads and PETs

@dataclass(frozen=True)
class Head:
    """A T1 MRI in its own space: bias-corrected, the mask of its brain, and the way to the template."""
    image: object
    brain: object
    to_template: list[str]

    @property
    def brain_only(self):
        """The image, 0 outside the brain."""
        return self.image * self.brain

    @property
    def brain_ml(self) -> float:
        """Volume of the brain."""
        return float(self.brain.numpy().sum() * np.prod(self.brain.spacing) / 1000)


def correct_bias(image, mask):
    """N4 (Tustison et al. 2010) with the field fitted inside the mask."""
    import ants

    shrink = math.ceil(N4_MM / max(image.spacing) - 0.1)
    return ants.n4_bias_field_correction(image, mask=mask, shrink_factor=shrink, convergence={"iters": [30, 30, 30], "tol": 1e-6})


def register_head(image, voxel_mm: int, nonlinear: bool, folder: Path) -> Head:
    """Find the brain of a whole head and its way to the template, from any orientation and place. folder: for files in between.

    The head goes to the template by an affine transform, then by SyN (Avants et al. 2008), which brings the template's brain mask back.
    The brain alone then goes to the template's by an affine transform, and by SyN again only where that is asked for: the mask may follow
    the brain's outline, while the volume keeps its own shape.
    """
    import ants

    template, mask = (load_template(max(voxel_mm, BRAIN_MM), what) for what in ("template", "brain_mask"))
    rough = coarse(like(image, np.minimum(image.numpy(), np.percentile(image.numpy(), 99.9))), LINEAR_MM)   # fat would fill the histograms
    rough = correct_bias(rough, like(rough, rough.numpy() > threshold_otsu(rough.numpy()) / 2))
    start = align(template, mask, rough, head_centre(rough), SMALLER, ("Similarity", "Affine"), folder)
    near = ants.apply_transforms(rough, dilated(mask, RIM_MM / 2), start, whichtoinvert=[True]).numpy() >= 0.5
    back = bend(correct_bias(rough, like(rough, near)), max(voxel_mm, LINEAR_MM), start, folder / "mask_")["inverse"]
    found = ants.apply_transforms(image, load_template(voxel_mm, "brain_mask"), back, whichtoinvert=[True, False])
    brain = like(image, found.numpy() >= 0.5)
    head = Head(correct_bias(image, brain), brain, start)
    way = register(template, coarse(head.brain_only, BRAIN_MM), dilated(mask, RIM_MM), "Affine", start, folder / "brain_",
                   aff_iterations=(100, 50, 20), aff_shrink_factors=(4, 2, 1), aff_smoothing_sigmas=(2, 1, 0),
                   **LINEAR | {"aff_random_sampling_rate": 0.3})["forward"]
    if nonlinear:
        way = bend(coarse(head.brain_only, SYN_MM), max(voxel_mm, SYN_MM), way, folder / "bent_")["forward"]
    return Head(head.image, head.brain, way)


def bend(moving, voxel_mm: int, start: list[str], stem: Path) -> dict[str, list[str]]:
    """SyN to the template of that voxel size from a linear start, by local correlation, which what is left of the bias disturbs least."""
    rim = dilated(load_template(voxel_mm, "brain_mask"), RIM_MM)
    return register(load_template(voxel_mm), moving, rim, "SyNOnly", start, stem, syn_metric="CC", syn_sampling=2,
                    reg_iterations=SYN_ITERATIONS, random_seed=1)


def register_pet(frames: list, head: Head, folder: Path) -> tuple[list[list[str]], float]:
    """The way of every frame of a PET to its T1, all rigid: the frames go to their mean, and that to the brain.

    Returns the transforms of each frame, as ANTs applies them, and the largest motion of a place in the brain between frames in mm.
    """
    import ants

    mean = like(frames[0], np.mean([frame.numpy() for frame in frames], axis=0))
    to_head = align(head.brain_only, head.brain, mean, centre_of_mass(mean), 1.0, ("Rigid",), folder)
    if len(frames) == 1:
        return [to_head], 0.0
    still = str(folder / "still.mat")
    ants.write_transform(ants.create_ants_transform(transform_type="AffineTransform", dimension=3), still)
    brain = ants.apply_transforms(mean, head.brain, to_head, whichtoinvert=[True])
    fixed, mask = coarse(mean, LINEAR_MM), dilated(coarse_mask(brain, LINEAR_MM), RIM_MM)
    to_mean = [register(fixed, coarse(frame, LINEAR_MM), mask, "Rigid", [still], folder / f"frame{k}_", aff_iterations=(50, 20),
                        aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0), **LINEAR)["forward"] for k, frame in enumerate(frames)]
    places = apply_affine(affine_of(brain), np.argwhere(brain.numpy() > 0.5)[::97]) @ TO_LPS
    moved = [[ants.read_transform(way[0]).apply_to_point(place) for place in places] for way in to_mean]
    motion = np.linalg.norm(np.ptp(moved, axis=0), axis=-1).max()
    return [to_head + way for way in to_mean], float(motion)


def to_grid(images: list, ways: list[list[str]], voxel_mm: int) -> np.ndarray:
    """The mean of images on the cohort's grid, each brought there in one linear interpolation: [X, Y, Z] float32."""
    import ants

    grid = load_template(voxel_mm)
    moved = [ants.apply_transforms(grid, image, way).numpy() for image, way in zip(images, ways, strict=True)]
    return np.mean(moved, axis=0, dtype=np.float32)
