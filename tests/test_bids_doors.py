"""A BIDS dataset on its way through preprocess, prepare, training and synthesize."""
import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import AFFINE, SHAPE, TINY, arguments, write_volume

import main
from cohort import registration, subject
from cohort.places import remove_old
from imaging.volumes import read_volume
from newscans.scans import find_scans, read_mri
from tests.made_up_bids import write_bids
from utils import InputError

DRAWS = False
NEW = "sub-NEW01_ses-1_space-MNI152NLin2009aSym"


def run(word: str, **settings) -> int:
    """Exit code of a command."""
    try:
        return main.main([word, *arguments(settings)])
    except SystemExit as stop:
        return stop.code


def go(raw: Path | str, **settings) -> int:
    """Exit code of preprocess on this grid, in one process."""
    usual = {"raw": raw, "image_size": SHAPE, "reference_mask": "cerebellum.nii.gz", "num_workers": 0}
    return run("preprocess", **usual | settings)


def digest(root: Path) -> dict[str, str]:
    """Every path under a folder, with the digest of a file or the target of a link."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder"
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The made-up dataset at 8 mm."""
    folder = tmp_path_factory.mktemp("made")
    write_bids(folder, 8)
    return folder


@pytest.fixture(scope="module")
def walked(made) -> dict:
    """The dataset preprocessed and prepared, without ANTs and without pages: exit codes, and digests of the
    dataset before and after."""
    before, there = digest(made / "bids"), os.getcwd()
    patch = pytest.MonkeyPatch()
    patch.setattr(importlib.util, "find_spec", lambda name: None)
    patch.setattr(subject, "draw_page", lambda *_: None)
    for path in (made / "bids").rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o555)
    os.chdir(made)
    try:
        done = go("bids")
        patch.undo()
        prepared = run("prepare", table="amyloid_table.csv")
    finally:
        os.chdir(there)
        for path in (made / "bids").rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
    return {"codes": (done, prepared), "before": before, "after": digest(made / "bids")}


def measures(folder: Path) -> pd.DataFrame:
    """measures.csv by the number of the subject."""
    table = pd.read_csv(folder / "data/preprocess/measures.csv", keep_default_na=False)
    return table.set_index(table["ID"].str[12:16].astype(int) - 6000)


def test_the_dataset_goes_through_both_commands_and_stays_as_it_was(walked):
    assert walked["codes"] == (0, 0)
    assert walked["after"] == walked["before"]


def test_what_is_left_out_is_listed_with_its_reason(made, walked):
    left = pd.read_csv(made / "data/preprocess/left_out.csv").set_index("ID")["reason"]
    assert left.to_dict() == {"sub-ADNI002S6010_ses-M000": "broken link",
                              "sub-ADNI004S6007_ses-M000": "no amyloid PET",
                              "sub-ADNI005S6008_ses-M000": "no T1"}


def test_every_pet_is_that_of_the_phantom_whatever_its_frames(made, walked):
    """The frames in each tracer's window have the phantom's PET as their mean; the early ones are flat."""
    table = measures(made)
    assert (table["problem"] == "").all()
    assert table.loc[[0, 1, 2, 3], "pet_frames"].astype(float).tolist() == [4, 4, 4, 1]
    reference, _ = read_volume(made / "cerebellum.nii.gz")
    for number in (0, 1, 2, 3, 6, 9):
        name = table.loc[number, "ID"]
        mri, _ = read_volume(made / f"data/whole_MRI/{name}.nii.gz")
        pet, affine = read_volume(made / f"data/whole_Abeta/{name}.nii.gz")
        pets = (made / "bids" / name[:16]).glob("ses-M000/pet/*.nii.gz")
        [source] = [path for path in pets if "FDG" not in path.name]
        voxels = nib.load(source).get_fdata()
        expected = voxels[..., -4:].mean(-1) if voxels.ndim == 4 else voxels
        expected = expected / expected[(reference > 0) & (mri > 0)].mean() / 4
        assert np.allclose(affine, AFFINE)
        np.testing.assert_allclose(pet[mri > 0], expected[mri > 0], atol=2e-6)


def test_tracer_interval_and_notes_stand_in_measures_and_records(made, walked):
    table = measures(made)
    assert table.loc[[1, 6], "tracer"].tolist() == ["18FFBB", "11CPIB"]
    assert float(table.loc[5, "t1_pet_days"]) == -70       # the T1 came later
    assert "70 days away" in table.loc[5, "note"] and "plain mean of 4" in table.loc[2, "note"]
    assert (table["space"] == "MNI152NLin2009aSym").all()
    record = json.loads((made / f"data/preprocess/{table.loc[5, 'ID']}.json").read_text())
    assert record["t1_pet_days"] == -70 and record["tracer"] == "18FAV45"


def test_dates_ages_sexes_and_tracers_reach_the_labels(made, walked):
    info = pd.read_csv(made / "data_info/data_info.csv").set_index("ID")
    people = pd.read_csv(made / "bids/participants.tsv", sep="\t").set_index("participant_id")
    for name, row in info.iterrows():
        assert (row["age"], row["sex"]) == tuple(people.loc[name.split("_")[0], ["age", "sex"]])
    assert (info["matched"] == "nearest row").all() and (info["days"] == 0).all()
    assert info["tracer"].value_counts().to_dict() == {"18FAV45": 16, "18FFBB": 1, "11CPIB": 1}


def test_tables_that_are_given_come_before_what_preprocess_found(made, walked, tmp_path, capsys):
    names = pd.read_csv(made / "data/preprocess/scans.csv")["ID"]
    pd.DataFrame({"ID": names, "age": 50, "sex": "F"}).to_csv(tmp_path / "people.csv", index=False)
    assert run("prepare", table=made / "amyloid_table.csv", data_dir=made / "data",
               info_dir=tmp_path / "info", demographics=tmp_path / "people.csv") == 0
    info = pd.read_csv(tmp_path / "info/data_info.csv")
    assert (info["age"] == 50).all() and (info["sex"] == "F").all()
    assert "dates, tracer from" in capsys.readouterr().out


def test_a_second_run_does_nothing_again(made, walked, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setattr(subject, "make_volumes", lambda *_: pytest.fail("done again"))
    assert go("bids") == 0


def test_another_window_of_frames_is_another_volume(made, walked, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert go("bids", pet_frames=(1, 1)) == 2
    assert "is there already" in capsys.readouterr().err


# ---------------------------------------------------------------- to the synthesis

@pytest.fixture(scope="module")
def trained(made, walked) -> Path:
    """The folder with an experiment trained on the dataset."""
    before = os.getcwd()
    os.chdir(made)
    torch.set_num_threads(1)
    settings = TINY | {"exp": "bids", "regions": "auto", "cortex_mask": "cortex.nii.gz",
                       "reference_mask": "cerebellum.nii.gz"}
    try:
        assert main.main([*arguments(settings), "--stages", "check", "aae", "encode", "ldm"]) == 0
    finally:
        os.chdir(before)
    return made


def test_a_derivative_is_synthesized_with_its_brain_mask(trained, monkeypatch):
    monkeypatch.chdir(trained)
    before = digest(trained / "new")
    assert run("synthesize", exp="bids", mri="new", out="synthetic", mri_percentile=99.5) == 0
    [row] = pd.read_csv("synthetic/synthesized.csv").to_dict("records")
    assert row["ID"] == "sub-NEW01_ses-1"
    assert digest(trained / "new") == before
    [pet] = Path("synthetic").rglob("*_pet.nii.gz")
    assert nib.load(pet).shape == SHAPE


def test_a_raw_dataset_is_told_how_to_come_into_mni_space(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    write_volume(Path("raw/sub-01/anat/sub-01_T1w.nii.gz"), np.ones(SHAPE, np.float32))
    assert run("synthesize", exp="bids", mri="raw", out="other") == 2
    told = capsys.readouterr().err
    assert "python main.py preprocess --raw raw --mri_only" in told and "MNI space" in told
    for mri in ("new", next(Path("new").rglob("*_T1w.nii.gz")).parent):
        assert run("synthesize", exp="bids", mri=mri, out="new/synthetic") == 2
        assert "lies in the BIDS dataset" in capsys.readouterr().err


def test_the_mask_cuts_out_the_brain(made):
    [scan] = find_scans(made / "new")
    voxels, _, top = read_mri(scan.mri, 99.5, scan.mask)
    brain = read_volume(scan.mask)[0] > 0
    head, _ = read_volume(scan.mri)
    assert (head[~brain] > 0).any() and (voxels[~brain] == 0).all() and (voxels[brain] > 0).all()
    assert top == pytest.approx(np.percentile(head[brain], 99.5), rel=1e-5)
    assert scan.id == "sub-NEW01_ses-1" and scan.name.startswith(NEW)


def test_several_t1s_of_a_visit_are_chosen_among_for_a_synthesis_too(made, tmp_path):
    shutil.copytree(made / "new", tmp_path / "new")
    [path] = (tmp_path / "new").rglob("*_T1w.nii.gz")
    for n in (1, 2):
        shutil.copy(path, path.with_name(path.name.replace("_space", f"_run-{n}_space")))
    path.unlink()
    with pytest.raises(InputError, match="--bids_run N"):
        find_scans(tmp_path / "new")


# ---------------------------------------------------------------- without registration to look at

def identity(folder: Path) -> list[str]:
    """Transforms that move nothing, written to the folder."""
    import ants

    path = str(folder / "identity.mat")
    ants.write_transform(ants.create_ants_transform(transform_type="AffineTransform", dimension=3), path)
    return [path]


@pytest.fixture
def in_place(monkeypatch) -> None:
    """A registration that finds at once that everything lies in MNI space."""
    pytest.importorskip("ants")

    def head(image, voxel_mm, nonlinear, folder) -> registration.Head:
        """The head as it lies."""
        return registration.Head(image, registration.like(image, image.numpy() > 0), identity(folder))

    def pet(frames, head, folder) -> tuple[list[list[str]], float]:
        """The frames as they lie, without motion."""
        return [identity(folder)] * len(frames), 0.0

    monkeypatch.setattr(registration, "register_head", head)
    monkeypatch.setattr(registration, "register_pet", pet)
    monkeypatch.setattr(subject, "draw_page", lambda *_: None)


@pytest.fixture
def raw(made, tmp_path, monkeypatch, in_place) -> Path:
    """A raw dataset of one visit: a T1 and a dynamic PET of five frames, of which the last two differ."""
    monkeypatch.chdir(tmp_path)
    [t1] = (made / "bids/sub-ADNI005S6003").rglob("*_T1w.nii.gz")
    [pet] = (made / "bids/sub-ADNI005S6003").rglob("*trc-18FAV45*_pet.nii.gz")
    voxels = nib.load(pet).get_fdata()
    other = np.roll(voxels, 1, axis=0)
    home = tmp_path / "raw/sub-01/ses-1"
    write_volume(home / "anat/sub-01_ses-1_T1w.nii.gz", nib.load(t1).get_fdata().astype(np.float32))
    frames = np.stack([voxels[::-1]] * 3 + [voxels, other], axis=-1).astype(np.float32)
    write_volume(home / "pet/sub-01_ses-1_trc-18FAV45_pet.nii.gz", frames)
    (home / "pet/sub-01_ses-1_trc-18FAV45_pet.json").write_text(json.dumps(
        {"FrameTimesStart": [0, 600, 1800, 3000, 3300], "FrameDuration": [600, 1200, 1200, 300, 900],
         "InjectionStart": 0}))
    shutil.copy(made / "cerebellum.nii.gz", tmp_path)
    return tmp_path / "raw"


def test_a_registered_dynamic_pet_is_the_weighted_mean_by_hand(raw):
    assert go(raw) == 0
    frames = nib.load(next(raw.rglob("*_pet.nii.gz"))).get_fdata()
    mean = (300 * frames[..., 3] + 900 * frames[..., 4]) / 1200
    mri, _ = read_volume(Path("data/whole_MRI/sub-01_ses-1.nii.gz"))
    reference = (read_volume(Path("cerebellum.nii.gz"))[0] > 0) & (mri > 0)
    pet, _ = read_volume(Path("data/whole_Abeta/sub-01_ses-1.nii.gz"))
    np.testing.assert_allclose(pet[mri > 0], (mean / mean[reference].mean() / 4)[mri > 0], atol=2e-6)


@pytest.mark.parametrize("change, words", [
    ({"FrameDuration": [600, 1200]}, "FrameTimesStart has 5 entries, FrameDuration 2"),
    ({"FrameTimesStart": [0, 60, 120, 180, 240]}, "cover 0 of the 20 min from 50 to 70"),
    ({"FrameDuration": [600] * 4, "FrameTimesStart": [0, 600, 1200, 1800]},
     "has 5 frames, but its sidecar the times of 4"),
    ({"InjectionStart": float("nan")}, "InjectionStart holds nan"),
])
def test_frames_that_cannot_be_averaged_are_named_before_anything_is_registered(raw, change, words, capsys):
    path = next(raw.rglob("*_pet.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert go(raw) == 2
    told = capsys.readouterr()
    assert words in told.err and "1 PETs cannot be used, the others go on" in told.out
    assert go(raw, pet_frames=(4, 5)) == 0


def rename_tracer(raw: Path, old: str, new: str) -> None:
    """Another tracer in the names of the raw PET."""
    for path in list(raw.rglob(f"*_trc-{old}_*")):
        path.rename(path.with_name(path.name.replace(old, new)))


def pets_of_dataset() -> list[str]:
    """Tracers in the names of PETs and sidecars of the dataset that preprocess wrote."""
    names = [
        path.name.split("_trc-")[1].split("_")[0] + path.suffix
        for path in Path("data").glob("sub-*/**/*_pet.*")
    ]
    return sorted(names)


@pytest.mark.parametrize("tracer, settings", [
    ("18FNAV4694", {}),                                    # of the same window: found done
    ("18FFBB", {"pet_frames": (4, 5), "overwrite": True}), ("11CPIB", {"pet_fwhm": 8.0, "overwrite": True})])
def test_a_corrected_tracer_leaves_one_pet_in_the_dataset(raw, tracer, settings):
    assert go(raw) == 0
    assert pets_of_dataset() == ["18FAV45.gz", "18FAV45.json"]
    rename_tracer(raw, "18FAV45", tracer)
    for _ in range(2):
        assert go(raw, **settings) == 0
        assert pets_of_dataset() == [f"{tracer}.gz", f"{tracer}.json"]
    assert Path("data/whole_Abeta/sub-01_ses-1.nii.gz").is_file()


def test_an_interrupted_run_with_another_tracer_still_knows_the_old_name(raw, monkeypatch):
    assert go(raw) == 0
    rename_tracer(raw, "18FAV45", "18FNAV4694")

    def stop(*_):
        """Ctrl-C."""
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subject, "draw_page", stop)
        assert go(raw, pet_fwhm=8.0, overwrite=True) == 130
    assert go(raw, pet_fwhm=8.0) == 0
    assert pets_of_dataset() == ["18FNAV4694.gz", "18FNAV4694.json"]


def test_a_record_without_places_takes_nothing_away(raw):
    assert go(raw) == 0
    path = Path("data/preprocess/sub-01_ses-1.json")
    record = json.loads(path.read_text())
    del record["places"]
    path.write_text(json.dumps(record))
    rename_tracer(raw, "18FAV45", "18FNAV4694")
    assert go(raw) == 0
    assert pets_of_dataset() == ["18FAV45.gz", "18FAV45.json", "18FNAV4694.gz", "18FNAV4694.json"]


def test_a_record_names_no_file_outside_of_the_cohort(tmp_path):
    for name in ("other.nii.gz", "data/old.nii.gz", "data/old.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    old = {"pet": ["../other.nii.gz", "old.nii.gz", "gone.nii.gz"], "mri": ["kept.nii.gz"]}
    remove_old(tmp_path / "data", old, {"pet": ["new.nii.gz"]})
    assert [path.name for path in tmp_path.rglob("*.*")] == ["other.nii.gz"]


def test_a_static_pet_with_a_broken_sidecar_is_taken_with_a_note(raw):
    path = next(raw.rglob("*_pet.nii.gz"))
    write_volume(path, nib.load(path).get_fdata()[..., 3].astype(np.float32))
    next(raw.rglob("*_pet.json")).write_text("{")
    assert go(raw) == 0
    assert "cannot be read as JSON" in pd.read_csv("data/preprocess/measures.csv").loc[0, "note"]


def test_a_dynamic_pet_without_sidecar_is_refused_and_others_go_on(raw, capsys):
    frames = nib.load(next(raw.rglob("*_pet.nii.gz"))).get_fdata()
    home = raw / "sub-02/ses-1"
    shutil.copytree(raw / "sub-01/ses-1", home)
    for path in list(home.rglob("*.*")):
        path.rename(path.with_name(path.name.replace("sub-01", "sub-02")))
    next(home.rglob("*_pet.json")).unlink()
    write_volume(next(home.rglob("*_pet.nii.gz")), np.concatenate([frames, frames], -1).astype(np.float32))
    assert go(raw) == 2
    assert "has 10 frames and no sidecar" in capsys.readouterr().err
    assert [path.name for path in Path("data/whole_Abeta").glob("*.nii.gz")] == ["sub-01_ses-1.nii.gz"]
    assert go(raw, pet_frames=(4, 5), data_dir="other") == 0


def test_names_of_pet_bids_in_plain_folders_are_pairs(raw):
    for home, suffix in (("T1", "T1w"), ("PET", "pet")):
        Path("plain", home).mkdir(parents=True)
        shutil.copy(next(raw.rglob(f"*_{suffix}.nii.gz")), Path("plain", home))
    shutil.copy(next(raw.rglob("*_pet.json")), "plain/PET")
    assert go(Path("plain")) == 0
    row = pd.read_csv("data/preprocess/measures.csv").iloc[0]
    assert row["ID"] == "sub-01_ses-1" and row["pet_frames"] == 2 and row["tracer"] == "18FAV45"
    assert pd.read_csv("data/preprocess/scans.csv")["tracer"].tolist() == ["18FAV45"]


def test_mris_alone_need_no_reference_region(raw):
    assert go(raw, reference_mask="", mri_only=True) == 0
    assert not Path("data/whole_Abeta").exists()


def test_pets_without_reference_region_are_divided_by_the_cerebellum_of_the_template(raw, capsys):
    assert run("preprocess", raw=raw, image_size=SHAPE) == 0
    assert "the whole cerebellum of plain regions of the MNI152 template" in capsys.readouterr().out


def test_data_dir_within_the_dataset_is_refused_and_below_derivatives_is_not(raw, capsys):
    assert go(raw, data_dir=raw / "data") == 2
    assert "derivatives/NAME" in capsys.readouterr().err
    assert go(raw / "sub-01/ses-1/anat", data_dir=raw / "data") == 2
    assert "derivatives/NAME" in capsys.readouterr().err and not (raw / "data").exists()
    assert go(raw, data_dir=raw / "derivatives/il_cldm") == 0
    assert go(raw, data_dir="again") == 0                  # what was written there is no subject


@pytest.mark.parametrize("settings, words", [
    ({"tracer": "FDG"}, "shows no amyloid"), ({"bids_choose": ("acq",)}, "must be an entity"),
    ({"pet_window": (70.0, 50.0)}, "must begin before its end"),
    ({"pet_frames": (5, 2)}, "the first and the last"),
    ({"pet_frames": (0, 2)}, "counted from 1"),
    ({"pet_frames": (1, 2), "pet_window": (50.0, 70.0)}, "give one of"),
    ({"bids_run": -1}, "at least 0"),
])
def test_settings_that_do_not_fit_are_told(settings, words, capsys):
    assert run("preprocess", **settings) == 2
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------- as it lies

def test_a_cropped_finer_grid_in_another_orientation_comes_to_the_same_place(made, tmp_path, monkeypatch):
    """A volume that is linear in space stays so, and the template's brain is taken where there is no mask."""
    monkeypatch.setattr(subject, "draw_page", lambda *_: None)
    shape, affine = (80, 100, 90), np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = (80, -114, -66)
    places = np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    slope = (1000 + 2 * places[0] + 3 * places[1] - places[2]).astype(np.float32)
    stem = "sub-01_space-MNI152NLin2009cAsym"
    write_volume(tmp_path / f"bids/sub-01/anat/{stem}_T1w.nii.gz", slope, affine)
    assert run("preprocess", raw=tmp_path / "bids", data_dir=tmp_path / "data", image_size=SHAPE,
               num_workers=0) == 0
    found, grid = read_volume(tmp_path / "data/whole_MRI/sub-01.nii.gz")
    inside = found > 0
    template = registration.template_voxels(8, "brain_mask")
    assert np.allclose(grid, AFFINE) and (inside <= template).all() and inside.sum() > 0.95 * template.sum()
    index = np.argwhere(inside & (found < 1))
    x, y, z = (index @ grid[:3, :3].T + grid[:3, 3]).T
    expected = 1000 + 2 * x + 3 * y - z
    ratio = found[tuple(index.T)] / expected
    whole = np.abs(ratio / np.median(ratio) - 1) < 1e-4    # all but voxels at the border of the crop
    assert whole.mean() > 0.97


def test_a_mask_without_a_brain_is_refused(made, tmp_path, capsys):
    shutil.copytree(made / "new", tmp_path / "new")
    [mask] = (tmp_path / "new").rglob("*_mask.nii.gz")
    small = np.zeros(SHAPE, np.uint8)
    small[10:12, 10:12, 10:12] = 1
    write_volume(mask, small)
    assert go(tmp_path / "new", data_dir=tmp_path / "data", reference_mask="") == 2
    assert "a brain of 4 ml was found" in capsys.readouterr().err
