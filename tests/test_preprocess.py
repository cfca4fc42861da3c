"""Raw scans to the cohort's space: what a phantom head in any position becomes, what is refused, what is done once only."""
import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import arguments
from nibabel.affines import apply_affine
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

import main
import phantom
from anatomy import load_template
from dataset import check_cohort
from registration import grid_affine

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="antspyx is not installed")

VOXEL, MARGIN = 4, 20                                      # mm; voxels of air and neck around the cohort's grid
GRID = (45, 54, 45)
SIZES = {4: {"image_size": GRID, "crop_start": (2, 4, 2), "volume_size": (40, 48, 40), "crop_jitter": 1,
             "unet_mults": (1, 2)},
         8: {"image_size": (22, 27, 22), "crop_start": (3, 2, 3), "volume_size": (16, 24, 16), "crop_jitter": 1, "unet_mults": (1, 2),
             "disc_channels": (8, 8)}}


def pose(degrees: tuple, shift: tuple, scale=(1, 1, 1)) -> np.ndarray:
    """MNI to scanner mm: scaled and turned about the middle of the brain, then shifted."""
    middle, matrix = np.array([0, -18, 12]), np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scale)
    matrix[:3, 3] = middle + shift - matrix[:3, :3] @ middle
    return matrix


def widened(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume of the cohort's grid with air around it, and its affine."""
    affine = grid_affine(VOXEL)
    affine[:3, 3] -= MARGIN * VOXEL
    return np.pad(volume, MARGIN), affine


def head_around(mri: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A brain with fluid, skull, scalp and neck around it, on the widened grid."""
    mri, affine = widened(mri)
    inside = binary_dilation(np.pad(brain, MARGIN))
    distance = VOXEL * distance_transform_edt(~inside)
    x, y, z = np.meshgrid(*[affine[a, 3] + VOXEL * np.arange(n) for a, n in enumerate(mri.shape)], indexing="ij")
    neck = ((x / 55) ** 2 + ((y + 35) / 60) ** 2 < 1) & (z < -50) & (z > -120)
    head = np.where(np.pad(brain, MARGIN), mri, 0.15 * inside)
    head = np.where((distance > 6) & (distance <= 16) & (z > -60), 0.8, head)
    return gaussian_filter(np.where(neck & (distance > 4), 0.5, head), 0.4)


def write_scan(path: Path, volume: np.ndarray, affine: np.ndarray, moved: np.ndarray, codes: str = "RAS", shape=(52, 60, 64)) -> None:
    """Resample into a scanner that sees everything moved, around its isocentre, and store it in that orientation; 4D: a motion a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scanner = np.diag([VOXEL] * 3 + [1.0])
    scanner[:3, 3] = apply_affine(moved if moved.ndim == 2 else moved[0], (0, -18, -10)) - VOXEL * np.array(shape) / 2
    index = np.indices(shape).reshape(3, -1).T

    def seen(motion: np.ndarray) -> np.ndarray:
        source = apply_affine(np.linalg.inv(motion @ affine) @ scanner, index)
        return map_coordinates(volume, source.T, order=1).reshape(shape).astype(np.float32)

    voxels = seen(moved) if moved.ndim == 2 else np.stack([seen(motion) for motion in moved], axis=-1)
    image = nib.Nifti1Image(voxels * 700, scanner)
    image.set_sform(scanner, 1)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(scanner), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), path)


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """MRI, PET, brain and the two regions of a phantom on the cohort's grid."""
    template = load_template(VOXEL)
    mri, pet, _ = phantom.simulate(template, np.random.default_rng(3), phantom.Subject(1, 1.5, 0.5, 0.0, 70.0, "F", 1.55), 0.6)
    return {"mri": mri, "pet": pet, "brain": mri > 0, "cortex": template.cortex, "cerebellum": template.cerebellum}


POSE = pose((14, -6, 8), (10, 45, -25), (0.93, 0.9, 0.95))
BETWEEN = pose((-5, 7, 4), (8, -6, 9))                     # PET against T1, both in the scanner
MOTION = pose((0, 0, 0), (0, 6, 0))                        # of the last of three frames


@pytest.fixture(scope="module")
def raw(tmp_path_factory, truth) -> Path:
    """Three heads: one with a PET of three frames, one in another orientation and place, and a file that breaks off."""
    folder = tmp_path_factory.mktemp("raw")
    head = head_around(truth["mri"], truth["brain"])
    affine = widened(truth["pet"])[1]
    write_scan(folder / "T1" / "a_T1w.nii.gz", head, affine, POSE)
    write_scan(folder / "PET" / "a_pet.nii.gz", widened(truth["pet"])[0], affine,
               np.stack([BETWEEN @ POSE, BETWEEN @ POSE, MOTION @ BETWEEN @ POSE]), "LPS")
    write_scan(folder / "T1" / "b.nii", head, affine, pose((-12, 5, -15), (-60, 0, 50), (0.9, 0.95, 0.9)), "PIR")
    (folder / "T1" / "c.nii.gz").write_bytes((folder / "T1" / "a_T1w.nii.gz").read_bytes()[:20_000])
    nib.save(nib.Nifti1Image(truth["cerebellum"].astype(np.uint8), grid_affine(VOXEL)), folder / "cerebellum.nii.gz")
    return folder


def run(raw: Path, data: Path, voxel: int = VOXEL, **settings) -> int:
    settings = {"raw": raw, "data_dir": data, "num_workers": 0} | SIZES[voxel] | settings
    return main.main(["--stages", "preprocess", *arguments(settings)])
