"""Storage of an MRI: neither orientation nor type decides the synthetic PET, and the grid hardly does.

One MRI of a phantom is stored in many ways and given to `python main.py synthesize`. The experiment is tiny
and its PETs are poor, but they depend on the MRI: the last test moves the brain, which changes more.
"""
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments, turned
from nibabel.affines import apply_affine, from_matvec

import main
from imaging.grids import Grid, resample
from imaging.volumes import read_volume
from phantom.anatomy import load_template
from phantom.uptake import draw_subject, simulate

EXPERIMENT = TINY | {
    "exp": "a",
    "regions": "auto",
    "data_dir": "data/phantom",
    "phantom_subjects": (6, 2, 2),
    "phantom_voxel": 8,
    "aae_epochs": 10,
    "aae_lr": 5e-3,
    "ldm_epochs": 10,
    "ldm_lr": 5e-3,
    "validation_every": 10,
    "samples_per_scan": 1,
    "upsampling": "transposed",  # with the other one, PETs of so short a training hardly depend on the MRI
}
DRAWS = False
VOXEL_MM = 2                 # of the MRI; the cohort's voxels have 8 mm
STEPS = 4095                 # of the integers, as in a scanner's files of 12 bits


class Synthesis(NamedTuple):
    """The synthetic PET of an MRI, and what its row of the table says."""
    pet: np.ndarray          # [X, Y, Z], axes in RAS order, on the grid of the MRI
    affine: np.ndarray       # [4, 4]
    suvr: float
    label: float             # predicted probability of label 1


def cubes(voxel_mm: float, shape: tuple[int, int, int], first: tuple[float, float, float]) -> Grid:
    """A grid of cubic voxels. first: mm, centre of the first voxel."""
    return Grid(shape, from_matvec(np.diag([voxel_mm] * 3), first))


# Grids with the orientation in which they are stored: two that tools use, and a coarse one that covers more.
# None shares its voxel faces with the phantom's.
GRIDS = {
    "FSL, 2 mm": (cubes(2, (91, 109, 91), (-90, -126, -72)), "LAS"),
    "SPM, 1.5 mm": (cubes(1.5, (121, 145, 121), (-90, -126, -72)), "LAS"),
    "wide, 3 mm": (cubes(3, (66, 78, 66), (-98, -131, -79)), "LPS"),
}
ORIGIN = {"FSL, 2 mm": (45, 63, 36), "SPM, 1.5 mm": (60, 84, 48)}    # voxel, in RAS order, at 0 mm


@pytest.fixture(scope="module")
def mri() -> nib.Nifti1Image:
    """The MRI, in [0, 1], of a phantom that is in no cohort."""
    template, rng = load_template(VOXEL_MM), np.random.default_rng(77)
    voxels, _, _ = simulate(template, rng, draw_subject(rng, 1, 0.6), 0.6)
    return nib.Nifti1Image(voxels, template.affine)


@pytest.fixture(scope="module")
def synthesize(tmp_path_factory) -> Iterator[Callable[[nib.Nifti1Image], Synthesis]]:
    """store_and_synthesize, in a folder with a tiny experiment that was trained on a phantom."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("storage"))
    torch.set_num_threads(1)
    try:
        assert main.main([*arguments(EXPERIMENT), "--stages", "check", "aae", "encode", "ldm"]) == 0
        yield store_and_synthesize
    finally:
        os.chdir(before)


def store_and_synthesize(image: nib.Nifti1Image) -> Synthesis:
    """Store the MRI in a new folder, synthesize that folder, and read PET and table."""
    number = len(list(Path().glob("mri*")))
    folder, out = Path(f"mri{number}"), Path(f"pet{number}")
    folder.mkdir()
    nib.save(image, folder / "scan.nii.gz")                # always this name: it seeds the sampler's noise
    assert main.main(["synthesize", "--exp", "a", "--mri", str(folder), "--out", str(out)]) == 0
    [path] = out.glob("sub-scan/pet/*_pet.nii.gz")
    assert nib.load(path).shape == image.shape
    np.testing.assert_allclose(nib.load(path).affine, image.affine, atol=1e-5)
    row = pd.read_csv(out / "synthesized.csv").loc[0]
    return Synthesis(*read_volume(path), row["SUVR"], row["p_label_1"])


@pytest.fixture(scope="module")
def first(synthesize, mri) -> Synthesis:
    """The synthesis of the MRI as float32 on its own grid, RAS: all others are compared with it."""
    return synthesize(mri)


def as_integers(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The image as int16 with a scale factor."""
    integers = np.rint(STEPS * image.get_fdata()).astype(np.int16)
    scaled = nib.Nifti1Image(integers, image.affine)
    scaled.header.set_slope_inter(1 / STEPS, 0)
    return scaled


def on_grid(image: nib.Nifti1Image, grid: Grid) -> nib.Nifti1Image:
    """The image brought onto another grid through the affines, float32."""
    return nib.Nifti1Image(resample(image.get_fdata(dtype=np.float32), image.affine, grid), grid.affine)


def correlation(one: np.ndarray, other: np.ndarray, mri: nib.Nifti1Image) -> float:
    """Correlation of two volumes on the grid of the MRI, inside its brain."""
    brain = mri.get_fdata() > 0
    return np.corrcoef(one[brain], other[brain])[0, 1]


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PSR"])
def test_the_orientation_changes_nothing(synthesize, mri, first, codes):
    """To 1e-6: the same voxels come to the networks, only the affine has been through other roundings."""
    found = synthesize(turned(mri, codes))
    np.testing.assert_allclose(found.affine, first.affine, atol=1e-5)
    np.testing.assert_allclose(found.pet, first.pet, atol=1e-6)
    assert (found.suvr, found.label) == pytest.approx((first.suvr, first.label), rel=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PSR"])
def test_integers_with_a_scale_factor_change_less_than_they_round(synthesize, mri, first, codes):
    """To half a step of the integers: most of it cancels where 64 voxels become one of the cohort's."""
    image = as_integers(turned(mri, codes))
    assert nib.aff2axcodes(image.affine) == tuple(codes)
    found = synthesize(image)
    np.testing.assert_allclose(found.pet, first.pet, atol=0.5 / STEPS)
    assert (found.suvr, found.label) == pytest.approx((first.suvr, first.label), abs=0.5 / STEPS)


@pytest.fixture(scope="module")
def on_grids(synthesize, mri) -> dict[str, Synthesis]:
    """The syntheses of the MRI on each of GRIDS."""
    return {name: synthesize(turned(on_grid(mri, grid), codes)) for name, (grid, codes) in GRIDS.items()}


@pytest.mark.parametrize("name", ORIGIN)
def test_the_grids_of_tools_are_those_that_they_document(name):
    grid, _ = GRIDS[name]
    np.testing.assert_allclose(apply_affine(grid.affine, ORIGIN[name]), 0, atol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_another_grid_shows_the_same_pet_at_the_same_place(mri, first, on_grids, name):
    """On the grid of the first they correlate above 0.9995, far above a PET that lies 2 mm off.

    They are not equal, because a written PET was interpolated onto its grid, and now once more.
    """
    own, found = Grid(mri.shape, mri.affine), on_grids[name]
    same_place = correlation(resample(found.pet, found.affine, own), first.pet, mri)
    beside = max(correlation(np.roll(first.pet, 1, axis), first.pet, mri) for axis in range(3))
    assert same_place > 0.9995
    assert beside < 0.998


def test_a_grid_changes_uptake_and_label_less_than_a_move_by_4_mm_does(synthesize, mri, first, on_grids):
    """The numbers of the table are measured before the PET is written: they show what the networks saw."""
    moved = []
    for axis in (0, 2):
        voxels = np.roll(mri.get_fdata(dtype=np.float32), 4 // VOXEL_MM, axis)
        moved.append(synthesize(nib.Nifti1Image(voxels, mri.affine)))
    for name in ("suvr", "label"):
        expected = getattr(first, name)
        by_grid = [abs(getattr(other, name) - expected) for other in on_grids.values()]
        by_moving = [abs(getattr(other, name) - expected) for other in moved]
        assert max(by_grid) < min(by_moving) / 2, name
