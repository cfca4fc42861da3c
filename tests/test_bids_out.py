"""Synthetic PETs as a BIDS derivative dataset that the official validator passes: names, sidecars, links."""
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_synthesize
import torch
from bids_validator import validate
from conftest import write_volume
from test_synthesize import NEW, synthesize_new

from cohort.derivative import (bids_uri, derived_entities, home_of, refuse_foreign, relative, resolution,
                               shared_keys, subjects_dataset, write_dataset)
from cohort.tracers import tracer_label
from config import VERSION
from evaluation import volume_figures
from utils import InputError

trained, project = test_synthesize.trained, test_synthesize.project        # fixtures
IN_MNI = "space-MNI152NLin2009aSym_res-8mm_desc-ilcldmSynthetic"
EXPLAINED = {"TOO_FEW_AUTHORS", "SIDECAR_KEY_RECOMMENDED SpatialReference"}    # in docs/new_scans.md


def note_tracer(exp: Path, tracer: str) -> None:
    """Write into the checkpoint of stage 2 that its training list had this tracer."""
    path = exp / "CHECKPOINT_Unet.pth.tar"
    saved = torch.load(path, weights_only=True)
    saved["metadata"]["tracer"] = tracer
    path.unlink()                                          # a second name of the last checkpoint
    torch.save(saved, path)


def describe_dataset(folder: Path, **keys) -> None:
    """Make a folder a BIDS dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"Name": "of somebody else", "BIDSVersion": "1.10.0"} | keys
    (folder / "dataset_description.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def out(trained, tmp_path_factory) -> Path:
    """A dataset of the synthetic PETs of MRIs of two BIDS datasets, one with sessions, and of MRIs with plain
    names; four runs, the last with nothing to do, into a folder with files of an earlier version."""
    root, before = tmp_path_factory.mktemp("bids_out"), os.getcwd()
    shutil.copytree(trained, root, dirs_exist_ok=True)
    note_tracer(root / "result/a", "FBP")
    image = nib.load(next((root / "data/phantom/whole_MRI").iterdir()))
    voxels = image.get_fdata(dtype=np.float32)
    raw, prepared = root / "study/bids", root / "study/derivatives/prepared"
    describe_dataset(raw)
    describe_dataset(prepared, DatasetType="derivative", GeneratedBy=[{"Name": "of somebody else"}])
    for name in ("raw/sub-01/ses-2/anat/sub-01_ses-2_T1w",
                 "raw/sub-01/ses-2/anat/sub-01_ses-2_acq-mp_run-1_T1w",
                 "prepared/sub-02/anat/sub-02_space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w",
                 "plain/037_S_6046", "plain/ein Scan (2)", "plain/sub-05_space-MNI152_T1w"):
        place, _, rest = name.partition("/")
        home = {"raw": raw, "prepared": prepared, "plain": root / "plain"}[place]
        write_volume(home / f"{rest}.nii.gz", voxels, image.affine)
    flat = image.affine @ np.diag([1, 1, 0.5, 1])
    flat[2, 3] -= 2
    write_volume(root / "plain/flat.nii", voxels.repeat(2, axis=2), flat)
    (root / "out").mkdir()
    for suffix in (".json", ".nii.gz", ".png"):
        (root / f"out/sub-old_space-MNI152_desc-ilcldm_pet{suffix}").write_bytes(b"old")
    os.chdir(root)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(volume_figures, "plot_overlay", lambda path, *_: path.touch())
            for mri in (raw / "sub-01/ses-2/anat", prepared / "sub-02/anat", root / "plain", root / "plain"):
                assert synthesize_new(str(mri)) == 0
    finally:
        os.chdir(before)
    return root / "out"


def sidecar(out: Path, pet: str) -> dict:
    """The sidecar of a PET of the dataset."""
    return json.loads((out / f"{pet}.json").read_text())


FIRST = f"sub-01/ses-2/pet/sub-01_ses-2_trc-18FAV45_{IN_MNI}_pet"
PREPARED = ("sub-02/pet/sub-02_trc-18FAV45_space-MNI152NLin2009cAsym_res-2_desc-ilcldmSynthetic_pet")
UNKNOWN_SPACE = "sub-05/pet/sub-05_trc-18FAV45_space-MNI152_res-8mm_desc-ilcldmSynthetic_pet"


# ---------------------------------------------------------------- the dataset of several runs

def test_the_validator_finds_no_error_and_only_warnings_that_are_explained(out):
    found = validate(out)
    assert found["error"] == []
    assert {code for code, _ in found["warning"]} == EXPLAINED


def test_the_validator_would_find_a_name_or_a_key_that_is_wrong(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    shutil.copy(out / f"{FIRST}.nii.gz",
                (tmp_path / "out" / FIRST).with_name("sub-01_ses-2_acq-x_desc-ilcldmSynthetic_pet.nii.gz"))
    path = tmp_path / "out" / f"{UNKNOWN_SPACE}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"SpatialReference": None}))
    assert len({file for _, file in validate(tmp_path / "out")["error"]}) == 2


def test_every_pet_has_its_name_by_its_mri_its_grid_and_the_tracer(out):
    pets = {relative(path, out).removesuffix(".nii.gz") for path in out.glob("sub-*/**/*.nii.gz")}
    thin = "sub-flat/pet/sub-flat_trc-18FAV45_space-MNI152NLin2009aSym_res-8x8x4mm_desc-ilcldmSynthetic_pet"
    means = {
        FIRST, PREPARED, UNKNOWN_SPACE, thin,
        f"sub-01/ses-2/pet/sub-01_ses-2_trc-18FAV45_run-1_{IN_MNI}Acqmp_pet",
        f"sub-037S6046/pet/sub-037S6046_trc-18FAV45_{IN_MNI}_pet",
        f"sub-einScan2/pet/sub-einScan2_trc-18FAV45_{IN_MNI}_pet"}
    assert pets == means
    assert pd.read_csv(out / "synthesized.csv")["pet"].tolist() == sorted(f"{name}.nii.gz" for name in means)


def test_sidecars_say_synthetic_and_what_the_standard_asks_for(out):
    for path in out.glob("sub-*/**/*_pet.json"):
        content = json.loads(path.read_text())
        assert "ilcldmSynthetic" in path.name and "synthetic" in content["Description"].lower()
        assert content["SkullStripped"] is True and "not for clinical use" in content["Notice"]
        assert path.with_suffix("").with_suffix(".nii.gz").exists()
    assert sidecar(out, FIRST)["Resolution"] == "8 mm isotropic"
    assert sidecar(out, FIRST)["Sources"] == ["bids:raw:sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"]
    assert "SpatialReference" not in sidecar(out, FIRST)


def test_mris_of_another_dataset_and_of_none(out):
    source = "bids:raw2:sub-02/anat/sub-02_space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w.nii.gz"
    assert sidecar(out, PREPARED)["Sources"] == [source]
    plain = sidecar(out, UNKNOWN_SPACE)
    assert "Sources" not in plain
    assert plain["MRI"]["File"] == plain["SpatialReference"] == "../plain/sub-05_space-MNI152_T1w.nii.gz"


def test_the_description_names_maker_and_sources_of_all_runs(out):
    content = json.loads((out / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative" and content["GeneratedBy"][0]["Name"] == "il_cldm"
    assert content["DatasetLinks"] == {"raw": "../study/bids", "raw2": "../study/derivatives/prepared"}
    assert "License" not in content
    for link in content["DatasetLinks"].values():
        assert (out / link / "dataset_description.json").is_file()


def test_files_of_an_earlier_version_stay(out):
    old = sorted(out.glob("sub-*_pet.*"))
    assert len(old) == 3 and all(path.read_bytes() == b"old" for path in old)


def test_files_of_an_earlier_version_are_spoken_of(project, capsys):
    (project / "out").mkdir()
    (project / "out/sub-scan_space-MNI152_desc-ilcldm_pet.json").write_text("{}")
    assert synthesize_new() == 0
    assert "1 PET(s) of an earlier version lie in the folder itself" in capsys.readouterr().out
    assert pd.read_csv(project / "out/synthesized.csv")["ID"].tolist() == ["scan"]


def test_packed_volumes_say_neither_when_nor_under_which_name_they_were_packed(out):
    for path in out.glob("sub-*/**/*.nii.gz"):
        header = path.read_bytes()[:8]
        assert header[3] == 0 and header[4:] == bytes(4), path


# ---------------------------------------------------------------- places and descriptions of others

def test_a_dataset_of_somebody_else_is_not_written_into(project, capsys):
    describe_dataset(project / "bids")
    assert synthesize_new(out="bids") == 2
    assert "BIDS dataset that il_cldm has not made" in capsys.readouterr().err
    assert [path.name for path in (project / "bids").iterdir()] == ["dataset_description.json"]


def test_a_folder_of_its_own_in_the_derivatives_of_a_dataset_is_taken(project):
    describe_dataset(project / "bids")
    home = project / "bids/sub-1/anat"
    home.mkdir(parents=True)
    shutil.copy(project / NEW, home / "sub-1_T1w.nii.gz")
    assert synthesize_new(str(home), "bids/derivatives/il_cldm", samples_per_scan=1) == 0
    out = project / "bids/derivatives/il_cldm"
    [path] = out.glob("sub-1/pet/*_pet.json")
    assert json.loads(path.read_text())["Sources"] == ["bids:raw:sub-1/anat/sub-1_T1w.nii.gz"]
    assert json.loads((out / "dataset_description.json").read_text())["DatasetLinks"] == {"raw": "../.."}
    assert validate(out)["error"] == []


def test_names_that_become_one_with_their_voxel_size_are_refused(project, capsys):
    for name in ("sub-1_T1w", "sub-1_res-2mm_T1w"):
        write_volume(project / f"two/{name}.nii.gz", nib.load(NEW).get_fdata(dtype=np.float32),
                     nib.load(NEW).affine)
    assert synthesize_new("two") == 2
    error = capsys.readouterr().err
    assert "sub-1_T1w.nii.gz, sub-1_res-2mm_T1w.nii.gz would all be written as sub-1_space" in error
    assert not (project / "out").exists()


@pytest.mark.parametrize(("content", "problem"), [
    ("{", "cannot be read as JSON"), ("[]", "has not made"), ("{}", "has not made"),
    ('{"GeneratedBy": {"Name": "il_cldm"}}', "has not made"),
    ('{"GeneratedBy": ["il_cldm"]}', "has not made"),
    ('{"GeneratedBy": [{"Name": "fMRIPrep"}]}', "has not made"),
    ('{"GeneratedBy": [{"Name": "fMRIPrep"}, {"Name": "il_cldm"}]}', ""),
    ('{"GeneratedBy": [{"Name": "il_cldm", "Version": "0.1"}], "DatasetLinks": 3}', "")])
def test_only_our_own_datasets_are_continued(tmp_path, content, problem):
    (tmp_path / "dataset_description.json").write_text(content)
    if problem:
        with pytest.raises(InputError, match=problem):
            refuse_foreign(tmp_path)
    else:
        refuse_foreign(tmp_path)
        write_dataset(tmp_path, "title", "text", [])
        assert json.loads((tmp_path / "dataset_description.json").read_text())["Name"] == "title"


def test_what_users_add_to_a_dataset_stays(tmp_path):
    write_dataset(tmp_path, "title", "text", [])
    path = tmp_path / "dataset_description.json"
    added = {"License": "CC0", "Authors": ["A", "B"], "Name": "mine", "DatasetLinks": {"raw2": "elsewhere"},
             "GeneratedBy": [{"Name": "il_cldm", "Version": "0.0"}, {"Name": "a script"}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | added))
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / ".bidsignore").write_text("notes/\n*.png\n")
    for name in ("one", "two"):
        describe_dataset(tmp_path / name)
    files = [tmp_path / f"{name}/sub-1/anat/sub-1_T1w.nii" for name in ("two", "one", "two")]
    write_dataset(tmp_path, "title", "text", files)
    content = json.loads(path.read_text())
    assert content["DatasetLinks"] == {"raw2": "elsewhere", "raw": "one", "raw3": "two"}
    assert {key: content[key] for key in ("License", "Authors", "Name")} == {
        key: added[key] for key in ("License", "Authors", "Name")}
    assert content["GeneratedBy"] == [{"Name": "il_cldm", "Version": VERSION}, {"Name": "a script"}]
    assert (tmp_path / "README.md").read_text() == "mine"
    ignored = (tmp_path / ".bidsignore").read_text().splitlines()
    assert ignored[:2] == ["notes/", "*.png"] and ignored.count("*.png") == 1
    assert "/synthesized.csv" in ignored
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    write_dataset(tmp_path, "title", "text", files)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}


# ---------------------------------------------------------------- names, labels, links

@pytest.mark.parametrize(("sizes", "label", "text"), [
    ((1, 1, 1), "1mm", "1 mm isotropic"), ((2.0, 2.0, 2.0), "2mm", "2 mm isotropic"),
    ((0.8, 0.8, 0.8), "0p8mm", "0.8 mm isotropic"), ((1, 1, 1.2), "1x1x1p2mm", "1 x 1 x 1.2 mm"),
    ((0.9999999, 1.0000001, 1), "1mm", "1 mm isotropic"),
    ((10, 1.25, 3.333), "10x1p25x3p33mm", "10 x 1.25 x 3.33 mm")])
def test_the_voxel_size_has_a_label_of_letters_and_digits(sizes, label, text):
    assert resolution(sizes) == (label, text)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("FBP", "18FAV45"),
        ("fbp", "18FAV45"),
        ("AV45", "18FAV45"),
        ("AV-45", "18FAV45"),
        ("18FAV45", "18FAV45"),
        ("[18F]florbetapir", "18FAV45"),
        ("FBB", "18FFBB"),
        ("Florbetaben", "18FFBB"),
        ("PiB", "11CPIB"),
        ("[11C]PIB", "11CPIB"),
        ("flutemetamol", "18FFMM"),
        ("", ""),
        ("FTP", ""),
        ("FDG", ""),
        ("NAV4694", "18FNAV4694"),
        ("unknown", ""),
    ],
)
def test_a_tracer_has_its_label_only_if_it_is_an_amyloid_tracer_that_is_known(name, label):
    assert tracer_label(name) == label


@pytest.mark.parametrize(("kind", "stem", "expected"), [
    ("anat", "sub-1_ses-2_acq-mp", {"sub": "1", "ses": "2", "acq": "mp", "desc": "x"}),
    ("pet", "sub-1_ses-2_acq-mp", {"sub": "1", "ses": "2", "desc": "xAcqmp"}),
    ("pet", "sub-1_task-rest_echo-1", {"sub": "1", "desc": "xTaskrestEcho1"}),
    ("anat", "037_S_0001_2015-03-02", {"sub": "037S000120150302", "desc": "x"}),
    ("anat", "sub-ADNI011S6303_ses-M000", {"sub": "ADNI011S6303", "ses": "M000", "desc": "x"}),
    ("pet", "é_", {"sub": "", "desc": "x"})])
def test_entities_that_a_file_may_not_have_go_into_its_description(kind, stem, expected):
    found = derived_entities(stem, kind, "x")
    assert found == {"space": "MNI152NLin2009aSym"} | expected


def test_a_session_has_a_folder_of_its_own(tmp_path):
    assert home_of(tmp_path, {"sub": "1"}, "pet") == tmp_path / "sub-1/pet"
    assert home_of(tmp_path, {"sub": "1", "ses": "b"}, "anat") == tmp_path / "sub-1/ses-b/anat"


def test_only_files_of_a_subject_in_a_linked_dataset_have_an_uri(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    describe_dataset(raw)
    out.mkdir()
    t1 = raw / "sub-1/anat/sub-1_T1w.nii"
    assert subjects_dataset(t1) == raw and subjects_dataset(raw / "whole_MRI/a.nii") is None
    assert bids_uri(t1, out) == ""
    write_dataset(out, "title", "text", [t1, raw / "whole_MRI/a.nii"])
    assert bids_uri(t1, out) == "bids:raw:sub-1/anat/sub-1_T1w.nii"
    assert bids_uri(raw / "whole_MRI/a.nii", out) == ""
    keys = shared_keys({"space": "native"}, (1, 1, 1), [t1], out)
    assert keys["SpatialReference"] == keys["Sources"][0] == bids_uri(t1, out)
    assert "SpatialReference" not in shared_keys({"space": "MNI152NLin6Asym"}, (1, 1, 1), [t1], out)


def test_a_relative_path_leads_from_the_folder_to_the_file(tmp_path):
    path, folder = tmp_path / "a" / "b.nii", tmp_path / "c" / "d"
    assert relative(path, folder) == "../../a/b.nii"
    assert (folder / relative(path, folder)).resolve() == path.resolve()
