"""The newcomer's way, by the README's own commands: tables and volumes, lists, check, training, the PET of an unseen MRI."""
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """A folder in which the commands were run, one after the other, with this project laid into it as links."""
    folder = tmp_path_factory.mktemp("newcomer")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.jinja"), ROOT / "tests"]:
        (folder / path.name).symlink_to(path)
    section = (ROOT / "README.md").read_text().split("### From tables to a synthetic PET")[1]
    commands = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].splitlines()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    return folder


def test_the_lists_hold_every_scan_once_with_the_label_of_the_table(walked):
    info = pd.read_csv(walked / "made_up/data_info/data_info.csv").set_index("ID")
    lists = {split: (walked / f"made_up/data_info/{split}.txt").read_text().split() for split in ("train", "validation", "test")}
    assert sorted(name for names in lists.values() for name in names) == sorted(info.index)
    assert all(abs(len(lists[split]) - share * 25) < 1 for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)))
    table = pd.read_csv(walked / "made_up/amyloid_table.csv").drop_duplicates("PTID").set_index("PTID")
    assert (info["label"] == table["AMYLOID_STATUS"].reindex(info.index)).all()
    assert all(info.loc[names, "label"].nunique() == 2 for names in lists.values())


def test_the_unseen_mri_gets_a_pet_that_lies_over_it_and_looks_like_one(walked):
    [mri_path] = (walked / "made_up/new").iterdir()
    [pet_path] = (walked / "made_up/synthetic").glob("*_pet.nii.gz")
    mri, pet = nib.load(mri_path), nib.load(pet_path)
    assert nib.aff2axcodes(mri.affine) == nib.aff2axcodes(pet.affine) == ("L", "P", "S")
    assert mri.shape == pet.shape and np.array_equal(mri.affine, pet.affine)
    others = [nib.as_closest_canonical(nib.load(path)).get_fdata() for path in (walked / "made_up/data/whole_Abeta").iterdir()]
    x_hat = nib.as_closest_canonical(pet).get_fdata()
    inside = np.mean(others, axis=0) > 0.1
    assert np.corrcoef(x_hat[inside], np.mean(others, axis=0)[inside])[0, 1] > 0.5           # short as the training was
    assert [path.suffix for path in sorted((walked / "made_up/synthetic").iterdir()) if path.suffix == ".png"]
    assert len(pd.read_csv(walked / "made_up/synthetic/synthesized.csv")) == 1
