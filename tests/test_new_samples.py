"""Samples of new scans: PETs that a person might have, beside the written mean."""
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_synthesize
import torch
from bids_validator import validate
from test_synthesize import pet_path, sidecar_path, synthesize_new

from utils import draw_uniform

trained, project = test_synthesize.trained, test_synthesize.project        # fixtures
DRAWS = False
TABLE = Path("out/samples.csv")


def sample_path(number: int, folder: str = "out") -> Path:
    """The sample of that number of the new MRI."""
    return Path(str(pet_path(folder)).replace("Synthetic_pet", f"SyntheticSample{number:02d}_pet"))


def contents(folder: str = "out") -> dict[str, bytes]:
    """Name -> bytes of every file of the mean PET in a folder."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and "ample" not in path.name]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_samples_are_written_beside_the_mean_which_stays_what_it_is(project, capsys):
    assert synthesize_new(out="plain") == 0
    before = contents("plain")
    capsys.readouterr()
    assert synthesize_new(samples=3) == 0
    said = capsys.readouterr().out                         # 12 evaluations of the mean, 3 x 3 x 2 of samples
    assert "3 samples beside the mean, 30 network evaluations a scan" in said
    after = contents()
    for name in before.keys() - {".bidsignore", ".lock"}:
        assert after[name] == before[name], name
    assert after[".bidsignore"].decode() == before[".bidsignore"].decode() + "/samples.csv\n"
    volumes = [nib.load(sample_path(k)).get_fdata() for k in (1, 2, 3)]
    mean = nib.load(pet_path("out"))
    for k, volume in enumerate(volumes, start=1):
        assert np.array_equal(nib.load(sample_path(k)).affine, mean.affine) and volume.shape == mean.shape
        assert volume.min() >= 0 and volume.max() <= 1
    assert np.abs(volumes[0] - volumes[1]).max() > 1e-3
    assert not sample_path(4).exists()


def test_the_table_and_the_sidecar_of_a_sample_say_what_was_drawn(project):
    assert synthesize_new(samples=3) == 0
    table = pd.read_csv(TABLE).set_index("sample")
    assert table.index.tolist() == [1, 2, 3] and set(table["ID"]) == {"scan"}
    state = torch.load("result/a/CHECKPOINT_Unet.pth.tar", weights_only=True)["metadata"]["label_predictor"]
    negative, positive = state["levels"].tolist()
    seen = negative + (positive - negative) * state["left_out"][1].numpy()
    u = [draw_uniform(0, "scan", k) for k in range(3)]
    drawn = table["drawn_SUVR"].to_numpy()[np.argsort(u)]  # the place of a draw is its number's alone
    assert (np.diff(drawn) >= 0).all()
    assert table["drawn_SUVR"].between(seen.min() - 1e-6, seen.max() + 1e-6).all()
    assert table["p_or_more"].between(0, 1).all()
    for k, row in table.iterrows():
        sidecar = json.loads(Path(str(sample_path(k)).replace(".nii.gz", ".json")).read_text())
        assert sidecar["Results"]["SUVR"] == pytest.approx(row["SUVR"])
        assert sidecar["SampleOf"] == pet_path("out").name and "might have" in sidecar["Description"]
        assert sidecar["Sampling"]["Label"] == "sampled" and sidecar["Sampling"]["NetworkEvaluations"] == 6
        assert Path("out", row["pet"]).samefile(sample_path(k))
        assert "research only" in sidecar["Notice"]
    assert not validate(Path("out"))["error"]


def test_a_sample_is_the_same_however_many_there_are_and_none_is_made_twice(project, monkeypatch):
    assert synthesize_new(samples=3) == 0
    first = {k: nib.load(sample_path(k)).get_fdata() for k in (1, 2, 3)}
    times = {k: sample_path(k).stat().st_mtime_ns for k in (1, 2, 3)}
    assert synthesize_new(samples=2) == 0                  # all are there
    assert {k: sample_path(k).stat().st_mtime_ns for k in (1, 2, 3)} == times
    sample_path(2).unlink()
    assert synthesize_new(samples=4) == 0
    assert sample_path(4).exists() and len(pd.read_csv(TABLE)) == 4
    for k, volume in first.items():                        # to rounding, in batches of another size
        np.testing.assert_allclose(nib.load(sample_path(k)).get_fdata(), volume, atol=1e-5)


def test_no_sample_of_other_settings_stays_beside_a_new_pet(project):
    assert synthesize_new(samples=3) == 0
    assert synthesize_new(samples=1, sampling_steps=2, overwrite="true") == 0
    assert sample_path(1).exists() and not sample_path(2).exists() and not sample_path(3).exists()
    assert len(pd.read_csv(TABLE)) == 1
    assert synthesize_new(sampling_steps=3, overwrite="true") == 0
    assert not sample_path(1).exists() and not TABLE.exists()


def test_an_experiment_of_an_earlier_version_is_refused_before_anything_is_written(project, capsys):
    path = project / "result/a/CHECKPOINT_Unet.pth.tar"
    saved = torch.load(path, weights_only=True)
    del saved["metadata"]["label_predictor"]["left_out"]
    path.unlink()
    torch.save(saved, path)
    assert synthesize_new() == 0
    capsys.readouterr()
    assert synthesize_new(out="other", samples=2) == 2
    assert "train stage 2 again under another --exp" in capsys.readouterr().err
    assert not sidecar_path("other").exists()


def test_the_written_pet_is_the_mean_of_drawn_samples_where_the_settings_say_so(project):
    assert synthesize_new(samples=2) == 0
    assert synthesize_new(out="mean", label_at_sampling="sampled") == 0      # two latent samples as well
    sidecar = json.loads(sidecar_path("mean").read_text())
    assert sidecar["Sampling"]["Label"] == "sampled" and sidecar["Sampling"]["NetworkEvaluations"] == 12
    ends = pd.read_csv("mean/synthesized.csv").loc[0, ["SUVR_samples_min", "SUVR_samples_max"]].to_list()
    np.testing.assert_allclose(sorted(pd.read_csv(TABLE)["SUVR"]), ends, atol=1e-5)
