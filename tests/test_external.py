"""External cohorts: scored with what the experiment has and nothing fitted, refused where they are not external, and
shown beside the experiment's own test list."""
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments
from test_synthesize import run

PHANTOM = {"data_dir": "data/phantom", "phantom_subjects": (6, 10, 5), "phantom_voxel": 8, "regions": "auto"}
OTHER = PHANTOM | {"data_dir": "data/other", "phantom_subjects": (4, 2, 5), "phantom_seed": 5, "exp": "other"}
SAVED = ("mri", "mri_pet", "pet", "suvr")                  # status classifiers that the test stage leaves behind


def train(*stages: str, **settings) -> int:
    """Exit code of these stages of the phantom's experiment `a`."""
    return run(*arguments(TINY | PHANTOM | {"exp": "a"} | settings), "--stages", *stages)


def external(test_data: str = "data/other", **settings) -> int:
    """Exit code of the scoring of an external cohort by the experiment `a`."""
    return run("external", *arguments({"exp": "a", "test_data": test_data} | settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A project folder with a tiny experiment that was trained and tested on a phantom, and with another phantom."""
    root, before = tmp_path_factory.mktemp("external"), os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert train("check", "aae", "encode", "ldm", "test") == 0
        assert train("check", **OTHER) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the working directory."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def result(name: str = "other") -> Path:
    """The folder of an external cohort of the experiment `a`."""
    return Path("result/a/external") / name


def table(path: Path | str) -> pd.DataFrame:
    """A CSV whose IDs are text."""
    return pd.read_csv(path, dtype={"ID": str})


# ---------------------------------------------------------------- frozen means frozen

def test_the_experiments_own_test_list_gets_the_rows_of_the_test_stage(project):
    assert external("data/phantom") == 0
    own, found = Path("result/a"), result("phantom")
    for name in ("test.csv", "uptake.csv", "uncertainty.csv"):
        assert (found / name).read_bytes() == (own / name).read_bytes(), name
    predictions = table(own / "predictions.csv")
    kept = predictions[predictions["classifier"].isin(SAVED)].reset_index(drop=True)
    pd.testing.assert_frame_equal(table(found / "predictions.csv"), kept, check_exact=True)
    summary = pd.read_csv(found / "summary.csv")
    pd.testing.assert_frame_equal(summary, pd.read_csv(own / "summary.csv"), check_exact=True)
    for name in table(own / "test.csv")["ID"].unique():
        file = f"synthesized/{name}.nii.gz"
        assert (found / file).read_bytes() == (own / file).read_bytes()
    one, other = (json.loads((folder / "scores.json").read_text()) for folder in (own, found))
    for key in ("cohort", "training", "masks"):
        assert one[key] == other[key]
