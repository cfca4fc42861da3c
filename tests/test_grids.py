"""How an MRI is stored: the grids are those that people use, and the files hold the same brain."""
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import TINY, arguments
from nibabel.affines import apply_affine

import grids
import main
from grids import CASES
from volumes import read_volume, resample

SETTINGS = TINY | {"exp": "a", "data_dir": "data/phantom", "phantom_subjects": (6, 2, 2), "phantom_voxel": 8}


@pytest.fixture(scope="module")
def mri() -> np.ndarray:
    return grids.phantom_mri(1)


@pytest.mark.parametrize(("name", "origin"), [("FSL, 1 mm", (90, 126, 72)), ("FSL, 2 mm", (45, 63, 36)), ("SPM, 1.5 mm", (60, 84, 48)),
                                              ("fMRIPrep, 1 mm", (96, 132, 78))])
def test_the_origin_of_mni_space_is_the_voxel_that_these_tools_document(tmp_path, mri, name, origin):
    grids.write_mri(tmp_path / "scan.nii.gz", next(case for case in CASES if case.grid == name), mri)
    np.testing.assert_allclose(apply_affine(nib.load(tmp_path / "scan.nii.gz").affine, origin), 0, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if not case.anew], ids=lambda case: f"{case.grid}, {case.codes}")
def test_every_file_holds_the_whole_brain_of_the_phantom_where_it_was(tmp_path, mri, case):
    path, paper = tmp_path / "scan.nii.gz", CASES[0].on_grid()
    grids.write_mri(path, case, mri)
    image = nib.load(path)
    assert "".join(nib.aff2axcodes(image.affine)) == case.codes and image.get_data_dtype() == case.dtype
    voxels, affine = read_volume(path)
    assert voxels.sum() * case.voxel_mm ** 3 == pytest.approx(mri.sum(), rel=2e-3)
    assert np.corrcoef(resample(voxels, affine, paper)[mri > 0], mri[mri > 0])[0, 1] > (0.999 if case.voxel_mm == 1 else 0.8)
    centres = [np.array(np.nonzero(v > 0.2)).mean(1) for v in (voxels, mri)]
    np.testing.assert_allclose(apply_affine(affine, centres[0]), apply_affine(paper.affine, centres[1]), atol=0.6)


def test_a_phantom_simulated_anew_is_the_same_subject_on_other_voxels(mri):
    anew, grid = grids.phantom_mri(4), next(case for case in CASES if case.anew and case.voxel_mm == 4).on_grid()
    coarse = resample(mri, CASES[0].on_grid().affine, grid)
    both = (anew > 0) & (coarse > 0)
    assert 0.9 < np.corrcoef(anew[both], coarse[both])[0, 1] < 0.999


def test_the_table_compares_the_pets_in_space_and_nothing_stays_but_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert grids.main(arguments(SETTINGS)) == 2
    assert "need a trained experiment" in capsys.readouterr().err
    assert main.main(arguments(SETTINGS) + ["--stages", "check", "aae", "encode", "ldm"]) == 0
    cases = [CASES[0], next(case for case in CASES if (case.codes, case.dtype) == ("LPS", "int16")), CASES[-1]]
    assert grids.main(arguments(SETTINGS), cases) == 0
    table = pd.read_csv("result/grids/a.csv")
    assert list(table["stored"]) == ["RAS, float32", "LPS, int16", "RAS, float32"]
    assert table["simulated"].isna().tolist() == [True, True, False]
    assert table["r"][0] == 1 and table["r"][1] > 0.9999 and 0.9 < table["r"][2] < table["r"][1]
    assert table["SUVR"][1] == pytest.approx(table["SUVR"][0], rel=2e-3) and table["SUVR"].nunique() > 1
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == ["a", "grids"]
    assert "digital phantom, not patient data" in capsys.readouterr().out
