"""Registration by ANTs: a whole head, or a PET, to a reference image; the bias field; the brain.

The template is the skull-stripped MNI152 2009a T1 that nilearn carries, on the cohort's grid
(phantom/anatomy.py). antspyx is an optional package and is imported where it is used. Transforms are lists of
files, as ANTs takes them: the last one is applied first. Coordinates are mm in RAS, ANTs' own in LPS.
"""
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from operator import itemgetter
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from skimage.filters import threshold_otsu
from skimage.metrics import normalized_mutual_information

from cohort.frames import mean_of_frames
from phantom.anatomy import block_mean, grid_affine
from utils import InputError

TO_LPS = np.diag([-1.0, -1.0, 1.0])                        # its own inverse
SEARCH_MM, LINEAR_MM = 8, 4                                # mm, voxels at which heads are compared
SYN_MM, BRAIN_MM = 3, 2                                    # mm, voxels at which brains are compared
SYN_ITERATIONS = (20, 10)                                  # at half of SYN_MM, then at it; more gain nothing
RIM_MM = 8.0                                               # around the brain, compared too, to keep skull out
BRAIN_HEIGHT = 75.0                                        # mm from the top of a head to its brain's middle
SMALLER = 1.08                                             # the template over most brains; see find_brain
REFINED = 3                                                # starts of the search that ANTs refines
PITCHES, TURNS = (-30, -15, 0, 15, 30), (-15, 0, 15)       # degrees; heads nod more than they turn
SHIFTS_Y, SHIFTS_Z = (-12, 0, 12), (-24, -12, 0, 12, 24)   # mm, of the middle of the brain
N4_MM = 8.0                                                # mm, voxels at which the bias field is fitted
LINEAR = {"aff_metric": "mattes", "aff_sampling": 32, "aff_random_sampling_rate": 1.0, "random_seed": 1}


# ---------------------------------------------------------------- images

def to_ants(voxels: np.ndarray, affine: np.ndarray):
    """An ANTs image of [X, Y, Z] voxels. Raises InputError for sheared voxels, which ANTs cannot hold."""
    import ants

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise InputError("the axes of its affine are not perpendicular; resample it onto a grid without "
                         "shear")
    voxels = np.ascontiguousarray(voxels, dtype=np.float32)
    origin = tuple(TO_LPS @ affine[:3, 3])
    return ants.from_numpy(voxels, origin=origin, spacing=tuple(spacing), direction=TO_LPS @ axes)


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
    """The image at a voxel size, smoothed for it; axes along which its voxels are larger stay as they are."""
    import ants

    spacing = np.asarray(image.spacing)
    factor = np.maximum(voxel_mm / spacing, 1)
    if (factor < 1.01).all():
        return image
    sigma = 0.42 * np.sqrt(factor ** 2 - 1)                # FWHM of the new voxel less that of the old
    smooth = gaussian_filter(image.numpy(), sigma)
    return ants.resample_image(like(image, smooth), tuple(spacing * factor), use_voxels=False, interp_type=0)


def coarse_mask(mask, voxel_mm: float):
    """The mask on the grid that `coarse` brings its image to."""
    small = coarse(mask, voxel_mm)
    return like(small, small.numpy() >= 0.5)


def dilated(mask, mm: float):
    """The mask, wider by so many mm."""
    steps = max(1, round(mm / min(mask.spacing)))
    return like(mask, binary_dilation(mask.numpy() > 0, iterations=steps))


@lru_cache
def template_voxels(voxel_mm: int, what: str = "template") -> np.ndarray:
    """The template on the cohort's grid at a voxel size in mm, [X, Y, Z]. Downloads nothing, needs no ANTs.

    what: template, its T1; brain_mask; wm_template, the mask of its white matter.
    """
    from nilearn import datasets  # here, because importing it takes seconds

    image = block_mean(getattr(datasets, f"load_mni152_{what}")(resolution=1), voxel_mm)
    return image if what == "template" else image >= 0.5


@lru_cache
def load_template(voxel_mm: int, what: str = "template"):
    """The template as an ANTs image; arguments as in template_voxels."""
    return to_ants(template_voxels(voxel_mm, what), grid_affine(voxel_mm))


# ---------------------------------------------------------------- starts

def head_centre(head) -> np.ndarray:
    """Approximate middle of the brain in a head with any length of neck, mm in RAS."""
    voxels = head.numpy()
    places = apply_affine(affine_of(head), np.argwhere(voxels > threshold_otsu(voxels) / 2))
    top = np.percentile(places[:, 2], 99.7)
    low, high = np.percentile(places[places[:, 2] > top - 120][:, :2], (1, 99), axis=0)
    return np.array([*(low + high) / 2, top - BRAIN_HEIGHT])


def centre_of_mass(image) -> np.ndarray:
    """Mean place of the voxels brighter than half the 98th percentile, mm in RAS."""
    voxels = image.numpy()
    return apply_affine(affine_of(image), np.argwhere(voxels > np.percentile(voxels, 98) / 2)).mean(0)


def mutual_information(one: np.ndarray, other: np.ndarray) -> float:
    """Normalised mutual information of two arrays of intensities: from 1, independent, to 2, equivalent."""
    return float(normalized_mutual_information(one, other, bins=32))


def find_starts(fixed, mask, moving, centre: np.ndarray, scale: float, folder: Path) -> list[str]:
    """The best rotations and shifts of a coarse grid around `centre` in the moving image, best first.

    mask: the part of the fixed image that is compared. centre: mm in RAS. scale: how much smaller the moving
    image is thought to be. folder: for the transform files whose paths are returned.
    """
    import ants

    inside = dilated(mask, SEARCH_MM).numpy() > 0
    middle = apply_affine(affine_of(mask), np.argwhere(mask.numpy() > 0)).mean(0)
    offsets = apply_affine(affine_of(fixed), np.argwhere(inside)) - middle                   # [N, 3], mm
    values = fixed.numpy()[inside]
    voxels = np.minimum(moving.numpy(), np.percentile(moving.numpy(), 99.5))
    to_voxel = np.linalg.inv(affine_of(moving))

    poses = []
    for pitch, roll, yaw, dy, dz in product(PITCHES, TURNS, TURNS, SHIFTS_Y, SHIFTS_Z):
        matrix = Rotation.from_euler("xyz", (pitch, roll, yaw), degrees=True).as_matrix() / scale
        place = centre + (0, dy, dz)                       # of the middle of the brain in the moving image
        seen = map_coordinates(voxels, apply_affine(to_voxel, offsets @ matrix.T + place).T, order=1)
        poses.append((mutual_information(values, seen), matrix, place))
    poses.sort(key=itemgetter(0), reverse=True)

    starts = []
    for k, (_, matrix, place) in enumerate(poses[:REFINED]):
        transform = ants.create_ants_transform(
            transform_type="AffineTransform", dimension=3, matrix=TO_LPS @ matrix @ TO_LPS,
            center=TO_LPS @ middle, translation=TO_LPS @ (place - middle))
        starts.append(str(folder / f"start{k}.mat"))
        ants.write_transform(transform, starts[-1])
    return starts


# ---------------------------------------------------------------- registration

def register(fixed, moving, mask, kind: str, start: list[str], stem: Path, **settings
             ) -> dict[str, list[str]]:
    """Forward and inverse transforms of ANTs' registration from a start.

    mask: the part of the fixed image that is compared. kind, settings: as ants.registration takes them. stem:
    beginning of the names of the transform files.
    """
    import ants

    found = ants.registration(fixed, moving, type_of_transform=kind, initial_transform=start, mask=mask,
                              mask_all_stages=True, outprefix=str(stem), **settings)
    return {"forward": found["fwdtransforms"], "inverse": found["invtransforms"]}


def align(fixed, mask, moving, centre: np.ndarray, scale: float, kinds: tuple[str, ...], folder: Path
          ) -> list[str]:
    """Linear transforms of a moving image in any position to the fixed one.

    kinds: from ANTs' Rigid, Similarity, Affine. The first is tried from several starts, and the best of these
    is refined by the last. mask, centre, scale, folder: as in find_starts.
    """
    import ants

    starts = find_starts(coarse(fixed, SEARCH_MM), coarse_mask(mask, SEARCH_MM), coarse(moving, SEARCH_MM),
                         centre, scale, folder)
    fixed, moving = coarse(fixed, LINEAR_MM), coarse(moving, LINEAR_MM)
    rim = dilated(coarse_mask(mask, LINEAR_MM), RIM_MM)
    inside = rim.numpy() > 0
    best, best_value = [], -np.inf
    for k, start in enumerate(starts):
        tried = register(fixed, moving, rim, kinds[0], [start], folder / f"try{k}_", aff_iterations=(100,),
                         aff_shrink_factors=(2,), aff_smoothing_sigmas=(1,), **LINEAR)["forward"]
        moved = ants.apply_transforms(fixed, moving, tried)
        value = mutual_information(fixed.numpy()[inside], moved.numpy()[inside])
        if value > best_value:
            best, best_value = tried, value
    return register(fixed, moving, rim, kinds[-1], best, folder / "linear_", aff_iterations=(100, 50),
                    aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0), **LINEAR)["forward"]


def register_syn(moving, voxel_mm: int, start: list[str], stem: Path) -> dict[str, list[str]]:
    """Forward and inverse transforms by SyN (Avants et al. 2008) from a linear start to the template.

    voxel_mm: of the template. The metric is local correlation, which the rest of the bias disturbs least.
    """
    rim = dilated(load_template(voxel_mm, "brain_mask"), RIM_MM)
    return register(load_template(voxel_mm), moving, rim, "SyNOnly", start, stem, syn_metric="CC",
                    syn_sampling=2, reg_iterations=SYN_ITERATIONS, random_seed=1)


# ---------------------------------------------------------------- heads and PETs

@dataclass(frozen=True)
class Head:
    """A bias-corrected T1 MRI in its own space, the mask of its brain, and the transforms to the template."""
    image: object
    brain: object
    to_template: list[str]

    @property
    def brain_only(self):
        """The image, 0 outside the brain."""
        return self.image * self.brain

    @property
    def brain_ml(self) -> float:
        """Volume of the brain in ml."""
        return float(self.brain.numpy().sum() * np.prod(self.brain.spacing) / 1000)


def correct_bias(image, mask):
    """The image without its bias field, fitted inside the mask by N4 (Tustison et al. 2010)."""
    import ants

    shrink = math.ceil(N4_MM / max(image.spacing) - 0.1)
    return ants.n4_bias_field_correction(image, mask=mask, shrink_factor=shrink,
                                         convergence={"iters": [30, 30, 30], "tol": 1e-6})


def register_head(image, voxel_mm: int, nonlinear: bool, folder: Path) -> Head:
    """Find the brain of a whole head in any orientation and place, and its transforms to the template.

    The brain alone goes to the template's by an affine transform, and by SyN again only if nonlinear: the
    mask may follow the brain's outline, while the volume keeps its own shape. folder: for files in between.
    """
    brain, to_template = find_brain(image, voxel_mm, folder)
    head = Head(correct_bias(image, brain), brain, to_template)
    template, mask = (load_template(max(voxel_mm, BRAIN_MM), what) for what in ("template", "brain_mask"))
    small, rim = coarse(head.brain_only, BRAIN_MM), dilated(mask, RIM_MM)
    sampled = LINEAR | {"aff_random_sampling_rate": 0.3}
    to_template = register(template, small, rim, "Affine", to_template, folder / "brain_",
                           aff_iterations=(100, 50, 20), aff_shrink_factors=(4, 2, 1),
                           aff_smoothing_sigmas=(2, 1, 0), **sampled)["forward"]
    if nonlinear:
        small = coarse(head.brain_only, SYN_MM)
        to_template = register_syn(small, max(voxel_mm, SYN_MM), to_template, folder / "bent_")["forward"]
    return Head(head.image, head.brain, to_template)


def find_brain(image, voxel_mm: int, folder: Path) -> tuple[object, list[str]]:
    """Mask of the brain of a whole head, and the affine transforms of the head to the template.

    The head goes to the template by an affine transform, then by SyN, which brings the template's brain mask
    back to the grid of the head. Without SMALLER some starts would fit the template's brain to the scalp.
    """
    import ants

    template, mask = (load_template(max(voxel_mm, BRAIN_MM), what) for what in ("template", "brain_mask"))
    voxels = image.numpy()
    without_fat = np.minimum(voxels, np.percentile(voxels, 99.9))         # or it would fill the histograms
    rough = coarse(like(image, without_fat), LINEAR_MM)
    rough = correct_bias(rough, like(rough, rough.numpy() > threshold_otsu(rough.numpy()) / 2))
    affine = align(template, mask, rough, head_centre(rough), SMALLER, ("Similarity", "Affine"), folder)
    near = ants.apply_transforms(rough, dilated(mask, RIM_MM / 2), affine, whichtoinvert=[True])
    rough = correct_bias(rough, like(rough, near.numpy() >= 0.5))
    back = register_syn(rough, max(voxel_mm, LINEAR_MM), affine, folder / "mask_")["inverse"]
    mask = load_template(voxel_mm, "brain_mask")
    found = ants.apply_transforms(image, mask, back, whichtoinvert=[True, False])
    return like(image, found.numpy() >= 0.5), affine


def register_pet(frames: list, head: Head, folder: Path) -> tuple[list[list[str]], float]:
    """Rigid transforms of every frame of a PET to its T1: the frames go to their mean, and that to the brain.

    Returns the transforms of each frame, and the largest motion between frames of a place in the brain in mm.
    """
    import ants

    mean = like(frames[0], np.mean([frame.numpy() for frame in frames], axis=0))
    to_head = align(head.brain_only, head.brain, mean, centre_of_mass(mean), 1.0, ("Rigid",), folder)
    if len(frames) == 1:
        return [to_head], 0.0
    identity = str(folder / "identity.mat")
    ants.write_transform(ants.create_ants_transform(transform_type="AffineTransform", dimension=3), identity)
    brain = ants.apply_transforms(mean, head.brain, to_head, whichtoinvert=[True])
    fixed, mask = coarse(mean, LINEAR_MM), dilated(coarse_mask(brain, LINEAR_MM), RIM_MM)
    transforms = []
    for k, frame in enumerate(frames):
        to_mean = register(fixed, coarse(frame, LINEAR_MM), mask, "Rigid", [identity], folder / f"frame{k}_",
                           aff_iterations=(50, 20), aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0),
                           **LINEAR)
        transforms.append(to_mean["forward"])
    return [to_head + to_mean for to_mean in transforms], largest_motion(transforms, brain)


def largest_motion(transforms: list[list[str]], brain) -> float:
    """The largest motion of a place in the brain between frames, in mm. transforms: one of each frame."""
    import ants

    places = apply_affine(affine_of(brain), np.argwhere(brain.numpy() > 0.5)[::97]) @ TO_LPS
    moved = []                                             # [frames, places, 3]
    for files in transforms:
        transform = ants.read_transform(files[0])
        moved.append([transform.apply_to_point(place) for place in places])
    return float(np.linalg.norm(np.ptp(moved, axis=0), axis=-1).max())


def to_grid(images: list, transforms: list[list[str]], voxel_mm: int, durations: list[float] | None = None
            ) -> np.ndarray:
    """The mean of images on the cohort's grid, each brought there in one linear interpolation.

    transforms: of each image. durations: weights of the images, None for the plain mean. Returns [X, Y, Z]
    float32.
    """
    import ants

    grid = load_template(voxel_mm)
    moved = []
    for image, files in zip(images, transforms, strict=True):
        moved.append(ants.apply_transforms(grid, image, files).numpy())
    return mean_of_frames(moved, durations)
