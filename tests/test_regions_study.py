"""The comparison of the regions that a run can have by itself, on a few coarse phantoms."""
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import from_matvec

import main
from studies.regions import at_1_mm, describe


def test_the_templates_regions_give_the_suvr_of_the_phantoms_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["study", "regions", "--subjects", "10", "--voxel", "8"]) == 0
    assert "left out: regions centiloid needs the package amypet" in capsys.readouterr().out
    table = pd.read_csv("result/study/regions.csv")
    assert table["regions"].tolist() == ["mni"]
    assert table["phantoms"].tolist() == [10]
    assert table["r of the SUVR with the phantom's own"].item() > 0.98
    assert table["cortex, ml"].item() == pytest.approx(309.7, abs=0.1)
    assert "| mni" in (tmp_path / "result/study/regions.md").read_text()


def test_overlap_and_line_by_hand():
    affine = from_matvec(np.eye(3), (0, 0, 0))
    one, other = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    one[:2], other[1:3] = 1, 1                             # 32 voxels each, 16 in common
    images = {
        "mni": {name: nib.Nifti1Image(one, affine) for name in ("cortex_mask", "reference_mask")},
        "centiloid": {name: nib.Nifti1Image(other, affine) for name in ("cortex_mask", "reference_mask")},
    }
    assert at_1_mm(images["mni"]["cortex_mask"]).sum() == 32
    row = describe("mni", images, pd.DataFrame({"phantom": [1.0, 1.5, 2.0], "mni": [1.1, 1.5, 1.9]}))
    assert (row["cortex_mask_ml"], row["cortex_mask_dice"], row["n"]) == (0.032, 0.5, 3)
    assert (row["r"], row["slope"], row["intercept"]) == pytest.approx((1.0, 0.8, 0.3))


def test_too_few_phantoms_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["study", "regions", "--subjects", "2"])
    assert stop.value.code == 2
    assert "at least 6" in capsys.readouterr().err
