"""Storage of an MRI does not decide its synthetic PET: any orientation and type, nearly any grid, the same place."""
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY, arguments, turned
from nibabel.affines import apply_affine, from_matvec

import main
from imaging.volumes import Grid, read_volume, resample
from newscans.scans import output_name
from phantom.anatomy import Template, load_template
from phantom.uptake import draw_subject, simulate

EXPERIMENT = TINY | {"exp": "a", "data_dir": "data/phantom", "phantom_subjects": (6, 2, 2), "phantom_voxel": 8,
                     "aae_epochs": 40, "ldm_epochs": 40}
STORED = [(codes, dtype) for codes in ("RAS", "LAS", "LPS", "PSR") for dtype in ("float32", "int16")]


def cubes(voxel_mm: float, shape: tuple[int, int, int], first: tuple[float, float, float]) -> Grid:
    """A grid of cubic voxels. first: mm, centre of the first voxel."""
    return Grid(shape, from_matvec(np.diag([voxel_mm] * 3), first))


# Grids that people use, with the orientation in which their tools store them; the last lies askew to the phantom's.
GRIDS = {
    "FSL, 2 mm": (cubes(2, (91, 109, 91), (-90, -126, -72)), "LAS"),
    "SPM, 1.5 mm": (cubes(1.5, (121, 145, 121), (-90, -126, -72)), "LAS"),
    "fMRIPrep, 2 mm": (cubes(2, (97, 115, 97), (-96, -132, -78)), "RAS"),
    "shifted, 4 mm": (cubes(4, (48, 58, 48), (-93, -131, -75)), "LPS"),
}
ORIGINS = {"FSL, 2 mm": (45, 63, 36), "SPM, 1.5 mm": (60, 84, 48), "fMRIPrep, 2 mm": (48, 66, 39)}


@pytest.fixture(scope="module")
def template() -> Template:
    """The mean anatomy at 4 mm, twice as fine as the cohort."""
    return load_template(4)


@pytest.fixture(scope="module")
def mri(template) -> np.ndarray:
    """An MRI [X, Y, Z] in [0, 1] of a phantom that is in no cohort."""
    rng = np.random.default_rng(77)
    return simulate(template, rng, draw_subject(rng, 1, 0.6), 0.6)[0]


@pytest.fixture(scope="module")
def synthetic_pet(tmp_path_factory) -> Callable[[nib.Nifti1Image], tuple[np.ndarray, np.ndarray]]:
    """A function: MRI -> voxels and affine of its PET, axes in RAS order, by a tiny experiment trained on a phantom."""
    project = tmp_path_factory.mktemp("storage")
    before = Path.cwd()
    os.chdir(project)
    torch.set_num_threads(1)
    try:
        assert main.main([*arguments(EXPERIMENT), "--stages", "check", "aae", "encode", "ldm"]) == 0

        def synthesize(image: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
            """Store the MRI in a new folder, and read what the command line makes of it."""
            folder = Path(f"mri_{len(list(project.iterdir()))}")
            out = Path(f"pet_of_{folder}")
            folder.mkdir()
            nib.save(image, folder / "scan.nii.gz")        # one name for all: it seeds the sampler's noise
            assert main.main(["synthesize", "--exp", "a", "--mri", str(folder), "--out", str(out)]) == 0
            path = out / f"{output_name('scan')}.nii.gz"
            pet = nib.load(path)
            assert pet.shape == image.shape
            np.testing.assert_allclose(pet.affine, image.affine)
            return read_volume(path)
        yield synthesize
    finally:
        os.chdir(before)


def test_x(synthetic_pet, mri, template):
    import time
    first,_ = synthetic_pet(nib.Nifti1Image(mri, template.affine))
    brain = mri > 0
    def rep(n, p):
        print(n, "maxdiff", np.abs(p-first)[brain].max(), "rms", np.sqrt(((p-first)[brain]**2).mean()), "r", np.corrcoef(p[brain], first[brain])[0,1], "range", first.min(), first.max(), first[brain].std(), flush=True)
    for codes, dtype in STORED:
        im = nib.Nifti1Image(mri, template.affine)
        if dtype == "int16":
            im = nib.Nifti1Image(np.rint(4095 * mri).astype(np.int16), template.affine); 
            im.header.set_slope_inter(1/4095, 0)
        t = turned(im, codes)
        if dtype=="int16": t.header.set_slope_inter(1/4095,0)
        t0=time.time()
        p,a = synthetic_pet(t)
        rep((codes,dtype,time.time()-t0), p)
    for n,(g,c) in GRIDS.items():
        t0=time.time()
        v = resample(mri, template.affine, g)
        p,a = synthetic_pet(turned(nib.Nifti1Image(v, g.affine), c))
        rep((n,time.time()-t0), resample(p,a,Grid(mri.shape, template.affine)))
    for seed in (78, 79, 80):
        rng = np.random.default_rng(seed)
        other = simulate(template, rng, draw_subject(rng, seed%2, 0.6), 0.6)[0]
        rep(seed, synthetic_pet(nib.Nifti1Image(other, template.affine))[0])
    rep("mirror", synthetic_pet(nib.Nifti1Image(mri[::-1].copy(), template.affine))[0])
    rep("shift", synthetic_pet(nib.Nifti1Image(np.roll(mri,1,0), template.affine))[0])
    rep("shift2", synthetic_pet(nib.Nifti1Image(np.roll(mri,1,1), template.affine))[0])
    rep("dark", synthetic_pet(nib.Nifti1Image(mri*0.9, template.affine))[0])
