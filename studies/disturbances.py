"""Disturbances of MRIs, as scanners, registrations and other pipelines make them.

An MRI is a volume [X, Y, Z] float32 in [0, 1], skull-stripped with background 0, axes in RAS order. What a
disturbance draws follows from seed, subject and the kind of the disturbance alone, so that its strengths
share their field, noise or direction.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy import ndarray
from numpy.polynomial.polynomial import polygrid3d
from numpy.random import Generator
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from scipy.spatial.transform import Rotation

from imaging.grids import Grid, resample
from utils import derived_seed

Change = Callable[[ndarray, ndarray, Generator], ndarray]  # MRI, its affine [4, 4], random numbers -> MRI
Motion = Callable[[ndarray, Generator], ndarray]           # centre [3] in mm, random numbers -> [4, 4] in mm
DEGREE = 3                                                 # of the polynomial of a bias field
BRIGHT = 95                                                # percentile of the brain, about its white matter
TOLERANCE_MM = 1e-3                                        # of distances: voxel sizes are float32 in a header


@dataclass(frozen=True)
class Disturbance:
    """One way to disturb an MRI.

    name: of its row. text: for a reader. kind: shared by the strengths of one disturbance. change: of the
    intensities, if any. motion: of the MRI in space, if any; the synthetic PET of an MRI that was moved is
    brought back before it is scored. moves_mri: False for a control, whose MRI stays where it is and whose
    synthetic PET is moved there and back.
    """
    name: str
    text: str
    kind: str
    change: Change | None = None
    motion: Motion | None = None
    moves_mri: bool = True

    def random(self, seed: int, subject: str) -> Generator:
        """The random numbers of a subject, the same at every call."""
        return np.random.default_rng(derived_seed(seed, self.kind, subject))

    def disturb(self, voxels: ndarray, affine: ndarray, centre: ndarray, seed: int, subject: str) -> ndarray:
        """The disturbed MRI on its own grid; 0 where a moved one does not reach.

        centre: [3] in mm, of its turns.
        """
        rng = self.random(seed, subject)
        if self.change:
            return self.change(voxels, affine, rng)
        if self.motion and self.moves_mri:
            return moved(voxels, affine, self.motion(centre, rng))
        return voxels

    def bring_back(self, pet: ndarray, affine: ndarray, centre: ndarray, seed: int, subject: str) -> ndarray:
        """The synthetic PET [D, H, W] of the disturbed MRI, at the place of the undisturbed one."""
        if self.motion is None:
            return pet
        motion = self.motion(centre, self.random(seed, subject))
        there = pet if self.moves_mri else moved(pet, affine, motion)
        return moved(there, affine, np.linalg.inv(motion))


def moved(voxels: ndarray, affine: ndarray, motion: ndarray) -> ndarray:
    """A volume moved in space by `motion` [4, 4] in mm, interpolated on its own grid; 0 beyond it."""
    return resample(voxels, motion @ affine, Grid(voxels.shape, affine))


def brain_of(voxels: ndarray) -> ndarray:
    """The brain of a skull-stripped MRI, [X, Y, Z] bool: what is above 0, without holes."""
    return binary_fill_holes(voxels > 0)


# ---------------------------------------------------------------- intensities

def bias_field(brain: ndarray, percent: float, rng: Generator) -> ndarray:
    """A smooth random field that leads, over the brain [X, Y, Z], from 1 - percent / 200 to 1 + percent /
    200: a polynomial of degree 3 with normal coefficients. Constant 1 without a brain.

    BrainWeb states the non-uniformity of its fields in the same way.
    """
    powers = np.indices((DEGREE + 1,) * 3).sum(axis=0)
    coefficients = np.where(powers <= DEGREE, rng.standard_normal(powers.shape), 0)
    field = polygrid3d(*[np.linspace(-1, 1, n) for n in brain.shape], coefficients)
    if not brain.any():
        return np.ones(brain.shape, np.float32)
    low, high = field[brain].min(), field[brain].max()
    span = (high - low) or 1.0                             # of a brain of one voxel
    return (1 + percent / 100 * ((field - low) / span - 0.5)).astype(np.float32)


def with_bias(voxels: ndarray, _affine: ndarray, rng: Generator, percent: float) -> ndarray:
    """The MRI times a bias field, cut to [0, 1]."""
    return (voxels * bias_field(voxels > 0, percent, rng)).clip(0, 1)


def with_noise(voxels: ndarray, _affine: ndarray, rng: Generator, percent: float) -> ndarray:
    """The MRI with Gaussian noise inside the brain, cut to [0, 1]. Its standard deviation is in per cent of
    the 95th percentile of the brain, as BrainWeb's is of the brightest tissue."""
    inside = voxels > 0
    if not inside.any():
        return voxels
    std = percent / 100 * np.percentile(voxels[inside], BRIGHT)
    noise = rng.standard_normal(voxels.shape, np.float32) * np.float32(std)
    return np.where(inside, voxels + noise, 0).clip(0, 1)


def with_gamma(voxels: ndarray, _affine: ndarray, _rng: Generator, gamma: float) -> ndarray:
    """The MRI with another contrast: each intensity to the power of gamma."""
    return voxels.clip(0, 1) ** np.float32(gamma)


# ---------------------------------------------------------------- slices

def block_of(thickness_mm: float, affine: ndarray) -> int:
    """How many voxels along z, two or more, are nearest to slices of that thickness."""
    return max(2, round(thickness_mm / float(voxel_sizes(affine)[2])))


def average_blocks(voxels: ndarray, block: int) -> ndarray:
    """Means of `block` slices along z, [X, Y, n]; the last one of those that are left."""
    firsts = np.arange(0, voxels.shape[2], block)
    counts = np.diff(np.append(firsts, voxels.shape[2]))
    return np.add.reduceat(voxels, firsts, axis=2) / counts.astype(np.float32)


def with_thick_slices(voxels: ndarray, affine: ndarray, _rng: Generator, thickness_mm: float) -> ndarray:
    """The MRI as if its slices were so thick: averaged along z, and interpolated between the centres of the
    slices; constant beyond the first and last of them."""
    n, block = voxels.shape[2], block_of(thickness_mm, affine)
    means = average_blocks(voxels, block)
    numbers = np.arange(n, dtype=float)
    centres = average_blocks(numbers[None, None], block)[0, 0]
    weights = [np.interp(numbers, centres, one) for one in np.eye(len(centres))]
    return means @ np.array(weights, np.float32)


# ---------------------------------------------------------------- another brain mask

def rim_mm(wanted_mm: float, affine: ndarray) -> float:
    """The depth of a rim: as wanted, but at least one voxel of the largest size."""
    return max(wanted_mm, float(voxel_sizes(affine).max()))


def eroded(voxels: ndarray, affine: ndarray, _rng: Generator, depth_mm: float) -> ndarray:
    """The MRI without the outermost `depth_mm` of its brain, or a voxel if that is more, as a tight brain
    mask leaves it."""
    to_the_rim = distance_transform_edt(brain_of(voxels), sampling=voxel_sizes(affine))
    return np.where(to_the_rim > rim_mm(depth_mm, affine) + TOLERANCE_MM, voxels, 0)


def dilated(voxels: ndarray, affine: ndarray, _rng: Generator, depth_mm: float) -> ndarray:
    """The MRI with a rim of `depth_mm` around its brain, or of a voxel if that is more, as a loose brain mask
    leaves it.

    What lay there was stripped and is not known: each voxel takes the intensity of the nearest one inside.
    """
    brain = brain_of(voxels)
    if not brain.any():
        return voxels
    distance, nearest = distance_transform_edt(~brain, sampling=voxel_sizes(affine), return_indices=True)
    return np.where(distance <= rim_mm(depth_mm, affine) + TOLERANCE_MM, voxels[tuple(nearest)], 0)


# ---------------------------------------------------------------- places

def turned(centre: ndarray, _rng: Generator, axis: str, degrees: float) -> ndarray:
    """A turn about the axis x, y or z through `centre` [3] in mm, as [4, 4]; counter-clockwise as seen from
    where the axis points to."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    motion[:3, 3] = centre - apply_affine(motion, centre)
    return motion


def shifted(_centre: ndarray, rng: Generator, millimetres: float) -> ndarray:
    """A shift into a random direction, as [4, 4]."""
    direction, motion = rng.standard_normal(3), np.eye(4)
    motion[:3, 3] = millimetres * direction / np.linalg.norm(direction)
    return motion
