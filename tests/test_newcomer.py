"""A newcomer's way by the commands of docs/data.md: from tables and volumes to the PET of an unseen MRI."""
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import main

ROOT = Path(__file__).resolve().parents[1]
HEADING = "## From tables to a synthetic PET"
DRAWS = False
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def commands() -> list[str]:
    """The lines of the first code block after the heading."""
    section = (ROOT / "docs" / "data.md").read_text().split(HEADING)[1]
    return re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].splitlines()


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """A folder in which the commands were run, one after the other, with links to this project's code."""
    folder = tmp_path_factory.mktemp("newcomer")
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    for path in [*ROOT.glob("*.py"), *packages, ROOT / "tests"]:
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    torch.set_num_threads(1)
    *before, last = commands()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in before:                             # in this process: a start takes seconds
            perform(command, patch)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(last.split(), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (last, done.stdout, done.stderr)
    return folder


def perform(command: str, patch: pytest.MonkeyPatch) -> None:
    """Run a command `python FILE WORDS` here; it must succeed."""
    _, file, *words = command.split()
    if file == "main.py":
        assert main.main(words) == 0, command
    else:
        patch.setattr(sys, "argv", [file, *words])
        runpy.run_path(file, run_name="__main__")


def test_the_commands_go_from_tables_to_a_pet():
    words = [command.split() for command in commands()]
    assert [line[:2] for line in words] == [["python", "tests/made_up.py"]] + 3 * [["python", "main.py"]]
    assert words[1][2] == "prepare" and words[3][2] == "synthesize"


def test_the_lists_hold_every_scan_once_with_the_label_of_the_table(walked):
    folder = walked / "made_up" / "data_info"
    info = pd.read_csv(folder / "data_info.csv").set_index("ID")
    lists = {split: (folder / f"{split}.txt").read_text().split() for split in SHARES}
    assert sorted(name for names in lists.values() for name in names) == sorted(info.index)
    for split, share in SHARES.items():
        assert abs(len(lists[split]) - share * 25) < 1
        assert info.loc[lists[split], "label"].nunique() == 2
    table = pd.read_csv(walked / "made_up/amyloid_table.csv").drop_duplicates("PTID").set_index("PTID")
    assert (info["label"] == table["AMYLOID_STATUS"].reindex(info.index)).all()


def test_the_unseen_mri_gets_a_pet_that_lies_over_it_and_looks_like_one(walked):
    [mri_path] = (walked / "made_up/new").iterdir()
    [pet_path] = (walked / "made_up/synthetic").glob("sub-*/pet/*_pet.nii.gz")
    mri, pet = nib.load(mri_path), nib.load(pet_path)
    assert nib.aff2axcodes(mri.affine) == nib.aff2axcodes(pet.affine) == ("L", "P", "S")
    assert mri.shape == pet.shape and np.array_equal(mri.affine, pet.affine)
    others = []
    for path in (walked / "made_up/data/whole_Abeta").iterdir():
        others.append(nib.as_closest_canonical(nib.load(path)).get_fdata())
    mean = np.mean(others, axis=0)
    x_hat = nib.as_closest_canonical(pet).get_fdata()
    inside = mean > 0.1
    assert np.corrcoef(x_hat[inside], mean[inside])[0, 1] > 0.5              # short as the training was
    assert pet_path.with_suffix("").with_suffix(".png").is_file()
    assert len(pd.read_csv(walked / "made_up/synthetic/synthesized.csv")) == 1
