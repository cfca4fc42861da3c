"""External cohorts: scored with what the experiment has and nothing fitted, refused where they are not
external, and shown beside the experiment's own test list."""
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments
from sklearn.metrics import brier_score_loss, roc_auc_score
from test_synthesize import CHECKPOINTS, count_reads, run

from config import Config
from dataset import Scan
from evaluation.external_table import headline
from evaluation.results import load_run
from labels.covariates import CovariateCoder
from newscans import external_cohort
from newscans.external_cohort import (
    TrainingLists,
    choose_lists,
    covariates_of,
    info_folder,
    named_alike,
    refuse_known_pictures,
)
from newscans.kept_synthesis import KeptSynthesis
from utils import InputError

DRAWS = False
PHANTOM = {"data_dir": "data/phantom", "phantom_subjects": (6, 9, 3), "phantom_voxel": 8, "regions": "auto"}
OTHER = PHANTOM | {"data_dir": "data/other", "phantom_subjects": (4, 2, 3), "phantom_seed": 5, "exp": "other"}
SAVED = ("mri", "mri_pet", "pet", "suvr")               # status classifiers that the test stage leaves behind


def train(*stages: str, **settings) -> int:
    """Exit code of these stages of the phantom's experiment `a`."""
    return run(*arguments(TINY | PHANTOM | {"exp": "a"} | settings), "--stages", *stages)


def external(test_data: str = "data/other", **settings) -> int:
    """Exit code of the scoring of an external cohort by the experiment `a`."""
    return run("external", *arguments({"exp": "a", "test_data": test_data} | settings))


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A project folder with a tiny experiment that was trained and tested on a phantom, and has scored
    another phantom, which plays the external cohort."""
    root, before = tmp_path_factory.mktemp("external"), os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert train("check", "aae", "encode", "ldm", "test") == 0
        assert train("check", **OTHER) == 0
        assert external() == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(scored, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the working directory."""
    shutil.copytree(scored, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def result(name: str = "other") -> Path:
    """The folder of an external cohort of the experiment `a`."""
    return Path("result/a/external") / name


def table(path: Path | str) -> pd.DataFrame:
    """A CSV whose IDs are text."""
    return pd.read_csv(path, dtype={"ID": str})


def ids_of(name: str) -> list[str]:
    """The subjects of an external cohort that was scored."""
    return table(result(name) / "people.csv")["ID"].tolist()


def list_of(split: str, cohort: str = "other") -> list[str]:
    """The IDs of a phantom's list."""
    return Path(f"data/{cohort}/data_info/{split}.txt").read_text().split()


# ---------------------------------------------------------------- frozen means frozen

def test_the_experiments_own_test_list_gets_the_rows_of_the_test_stage(project):
    assert external("data/phantom") == 0
    own, found = Path("result/a"), result("phantom")
    for name in ("test.csv", "uptake.csv", "uncertainty.csv", "summary.csv"):
        assert (found / name).read_bytes() == (own / name).read_bytes(), name
    predictions = table(own / "predictions.csv")
    kept = predictions[predictions["classifier"].isin(SAVED)].reset_index(drop=True)
    pd.testing.assert_frame_equal(table(found / "predictions.csv"), kept, check_exact=True)
    for name in table(own / "test.csv")["ID"].unique():
        file = f"synthesized/{name}.nii.gz"
        assert (found / file).read_bytes() == (own / file).read_bytes()
    one, other = (json.loads((folder / "scores.json").read_text()) for folder in (own, found))
    for key in ("cohort", "training", "masks"):
        assert one[key] == other[key]


def test_a_subjects_scores_depend_neither_on_the_labels_nor_on_who_else_is_there(project):
    info = project / "data/other/data_info"
    labels = pd.read_csv(info / "data_info.csv")
    labels.assign(label=1 - labels["label"]).to_csv(info / "data_info.csv", index=False)
    first, _, last = list_of("test")
    (info / "test.txt").write_text(f"{last}\n{first}\n")
    assert external(name="fewer") == 0
    for name, key in (("test", ["method", "ID"]), ("uptake", ["method", "ID"]), ("uncertainty", ["ID"]),
                      ("predictions", ["classifier", "method", "ID"])):
        all_of_them, few = (table(result(of) / f"{name}.csv").set_index(key) for of in ("other", "fewer"))
        expected = all_of_them.loc[few.index]
        assert (few["label"] == 1 - expected["label"]).all()
        pd.testing.assert_frame_equal(few.drop(columns="label"), expected.drop(columns="label"), rtol=1e-4)
    assert ids_of("fewer") == [last, first]


def test_thresholds_and_intervals_are_those_of_the_experiment(project):
    own = table("result/a/predictions.csv").groupby("classifier")["threshold"].first()
    found = table(result() / "predictions.csv").groupby("classifier")["threshold"].first()
    pd.testing.assert_series_equal(found, own[list(SAVED)].sort_index(), check_exact=True)
    validation, here = table("result/a/validation_list.csv"), table(result() / "uncertainty.csv")
    error = (validation["SUVR_real"] - validation["SUVR"]).abs()
    # 9 validation subjects: the 90 % interval needs the ceil(0.9 * 10) = 9th, the largest error in its unit
    half = (error / (validation["SUVR_sd"] + error.mean())).max() * (here["SUVR_sd"] + error.mean())
    np.testing.assert_allclose(here["high"] - here["SUVR"], half, rtol=1e-6)
    inside = (here["SUVR_real"] >= here["low"]) & (here["SUVR_real"] <= here["high"])
    assert (here["covered"] == inside).all()


def test_the_floor_is_the_mean_of_the_training_pets(project):
    pets = [
        nib.load(f"data/phantom/whole_Abeta/{name}.nii.gz").get_fdata()
        for name in list_of("train", "phantom")
    ]
    mean = np.mean(pets, axis=0)
    box = tuple(slice(a, a + n) for a, n in zip(TINY["crop_start"], TINY["volume_size"], strict=True))
    scores = table(result() / "test.csv").set_index(["method", "ID"])["MAE"]
    assert scores.index.get_level_values("method").unique().tolist() == [
        "aae",
        "il_cldm",
        "mean_pet",
        "oracle",
    ]
    for name in list_of("test"):
        pet = nib.load(f"data/other/whole_Abeta/{name}.nii.gz").get_fdata()
        assert scores["mean_pet", name] == pytest.approx(np.abs(mean - pet)[box].mean(), rel=1e-4)


# ---------------------------------------------------------------- what is taken

@pytest.mark.parametrize(
    ("there", "asked", "taken", "words"),
    [
        (
            ("train", "validation", "test"),
            (),
            ("test",),
            "the list test alone; train and validation of info are as unseen",
        ),
        (("train", "test"), (), ("test",), "the list test alone; train of info"),
        (("test",), (), ("test",), "the list test"),
        ((), (), (), "every row of info/data_info.csv, as there is no test.txt"),
        (("train", "validation"), (), (), "every row of info/data_info.csv, as there is no test.txt"),
        (("train", "validation", "test"), ("test", "train"), ("test", "train"), "the lists test, train"),
        ((), ("test",), ("test",), "the lists test"),  # the reader names it as missing
    ],
)
def test_the_test_list_is_taken_unless_others_are_named_or_there_is_none(
    tmp_path, monkeypatch, there, asked, taken, words
):
    monkeypatch.chdir(tmp_path)
    Path("info").mkdir()
    for split in there:
        Path(f"info/{split}.txt").write_text("a\n")
    found, said = choose_lists(Path("info"), asked)
    assert found == taken and said.startswith(words)


def test_the_table_lies_in_data_info_or_beside_the_volumes_or_where_one_says(tmp_path):
    assert info_folder(tmp_path, "") == tmp_path / "data_info"
    (tmp_path / "data_info.csv").write_text("")
    assert info_folder(tmp_path, "") == tmp_path
    (tmp_path / "data_info").mkdir()
    assert info_folder(tmp_path, "") == tmp_path / "data_info"
    assert info_folder(tmp_path, "elsewhere") == Path("elsewhere")


def test_all_lists_of_another_phantom_are_taken_though_its_ids_are_those_of_the_training(project, capsys):
    assert external(name="all", lists=("train", "validation", "test")) == 0
    said = capsys.readouterr().out
    assert "taken: the lists train, validation, test" in said
    assert (
        "9 of 9 subjects have the ID of a training or validation subject, and are taken for other people "
        "(phantoms number their subjects alike)" in said
    )
    assert "no row oracle: 4 of 9 scans have none" in said
    assert ids_of("all") == [*list_of("train"), *list_of("validation"), *list_of("test")]
    assert table(result("all") / "test.csv")["method"].unique().tolist() == ["aae", "il_cldm", "mean_pet"]


def test_without_lists_every_row_is_taken_in_its_order(project, capsys):
    info = project / "data/other/data_info"
    rows = pd.read_csv(info / "data_info.csv").iloc[[8, 4, 0]]
    shutil.rmtree(info)
    rows.to_csv(project / "data/other/data_info.csv", index=False)
    assert external(name="rows") == 0
    assert "taken: every row of data/other/data_info.csv, as there is no test.txt" in capsys.readouterr().out
    people = table(result("rows") / "people.csv")
    assert people.columns.tolist() == ["ID", "label", "age", "sex", "site"]
    np.testing.assert_allclose(people["age"], rows["age"])
    assert people["ID"].tolist() == rows["ID"].tolist() and people["label"].tolist() == rows["label"].tolist()


# ---------------------------------------------------------------- what is refused

def refused(capsys, *words: str, **settings) -> str:
    """The message of a refusal, which comes before anything is written."""
    assert external(*words, name="none", **settings) == 2
    assert not result("none").exists()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_all_problems_of_the_cohort_are_reported_at_once(project, capsys):
    other, info = project / "data/other", project / "data/other/data_info"
    names = list_of("train")
    image = nib.load(other / f"whole_MRI/{names[0]}.nii.gz", mmap=False)
    nib.save(nib.Nifti1Image(image.get_fdata()[:-1], image.affine), other / f"whole_MRI/{names[0]}.nii.gz")
    image = nib.load(other / f"whole_Abeta/{names[1]}.nii.gz", mmap=False)
    nib.save(nib.Nifti1Image(3 * image.get_fdata(), image.affine), other / f"whole_Abeta/{names[1]}.nii.gz")
    (other / f"whole_MRI/{names[2]}.nii.gz").unlink()
    rows = pd.read_csv(info / "data_info.csv", dtype=str).set_index("ID")
    rows.loc[names[3], "label"] = "perhaps"
    rows.to_csv(info / "data_info.csv")
    (other / "phantom.json").unlink()                      # so that its IDs count
    said = refused(capsys, lists=("train",))
    assert "8 problem(s) in the data" in said
    assert f"{names[0]}.nii.gz: has 21x27x22 voxels (RAS); expected 22x27x22" in said
    assert f"{names[1]}.nii.gz: intensities from 0 to" in said
    assert f"{names[2]}.nii[.gz]: not there" in said
    assert f"{names[3]} has the label 'perhaps'" in said
    assert said.count("list of the experiment as") == 4    # with those whose files or labels are wrong


def test_volumes_that_all_lie_elsewhere_than_the_networks_expect_are_refused(project, capsys):
    for path in (project / "data/other").glob("whole_*/*.nii.gz"):
        image = nib.load(path, mmap=False)
        affine = image.affine.copy()
        affine[0, 3] += 4
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), affine), path)
    said = refused(capsys)
    assert said.count("the networks were trained on from (") == 6      # MRI and PET of the three
    assert "most of the cohort" not in said


@pytest.mark.parametrize(("settings", "message"), [
    ({"exp": ""}, "external needs --exp"),
    ({"test_data": ""}, "external needs --test_data"),
    ({"exp": "nobody"}, "a trained experiment is needed; trained here: a"),
    ({"test_data": "nowhere"}, "nowhere holds no cohort: no volume in whole_MRI and whole_Abeta"),
    ({"lists": ("all",)}, "lists 'all' must be one of train, validation, test"),
    ({"name": "../a"}, "must be a plain folder name"),
    ({"name": ".."}, "must be a plain folder name"),
    ({"test_data": "/"}, "must be a plain folder name"),
    ({"info_dir": "nowhere"}, "nowhere/data_info.csv"),
    ({"namesakes": "perhaps"}, "namesakes 'perhaps' must be true or false"),
    ({"aae_channels": (4, 8)}, "unknown setting --aae_channels"),      # the training's, which is over
])
def test_wrong_words_and_places_are_refused_in_a_line(project, capsys, settings, message):
    before = sorted(Path("result/a/external").iterdir())
    assert run("external", *arguments({"exp": "a", "test_data": "data/other"} | settings)) == 2
    assert message in capsys.readouterr().err
    assert sorted(Path("result/a/external").iterdir()) == before


def test_an_empty_list_and_one_that_is_not_there_are_refused_together(project, capsys):
    info = project / "data/other/data_info"
    (info / "train.txt").write_text("")
    (info / "validation.txt").unlink()
    said = refused(capsys, lists=("train", "validation"))
    assert "train.txt: holds no ID" in said and "validation.txt" in said


def test_a_table_without_rows_is_refused(project, capsys):
    info = project / "data/other/data_info"
    (info / "test.txt").unlink()
    (info / "data_info.csv").write_text("ID,label\n")
    assert "data_info.csv" in refused(capsys)


# ---------------------------------------------------------------- not external at all

def test_lists_of_the_experiment_are_refused_by_id_and_all_at_once(project, capsys):
    said = refused(capsys, test_data="data/phantom", lists=("train", "validation", "test"))
    for split, number in (("train", 6), ("validation", 9)):
        named = "training" if split == "train" else split
        for name in list_of(split, "phantom"):
            assert f"{name}: is in the {named} list of the experiment as {name}" in said
        assert said.count(f"is in the {named} list") == number
    assert said.count("--namesakes true") == 1


@pytest.mark.parametrize(
    ("known", "new", "is_one"),
    [
        ("037_S_6046", "037_S_6046", True),
        ("037_S_6046_bl", "037S6046_m24", True),
        ("sub-ADNI037S6046", "037_S_6046", True),
        ("sub-12_ses-1", "sub-12_ses-2", True),
        ("sub-12", "sub-12_ses-2", True),
        ("pat7_2012-01-03", "pat7_2014-01-03", True),
        ("pat7_m12", "pat7_v2", True),
        ("abc", "abc", True),
        ("abc", "ABC", False),
        ("sub-12", "sub-13", False),
        ("abc", "abcd", False),
        ("037_S_6046", "137_S_6046", False),
        ("sub-1", "sub-01", False),
    ],
)
def test_another_visit_of_a_training_subject_is_known_by_the_subject_in_its_id(known, new, is_one):
    problems = named_alike(
        ["somebody", new], {"else": "training", known: "validation"}, Config().subject_pattern
    )
    assert len(problems) == is_one
    if is_one:
        assert problems[0].startswith(f"{new}: is in the validation list of the experiment as {known}; leave "
                                      "such")


def test_namesakes_that_are_other_people_are_taken_if_one_says_so(project, capsys):
    Path("data/other/phantom.json").unlink()               # it is a phantom no more
    text = Path("data/other/data_info/test.txt").read_text()
    known = list_of("train", "phantom")[1]                 # of whom the other phantom has a namesake
    Path("data/other/data_info/test.txt").write_text(f"{text}{known}\n")
    assert f"{known}: is in the training list of the experiment as {known}" in refused(capsys)
    assert external(name="b", namesakes=True) == 0
    said = capsys.readouterr().out
    alike = len({*list_of("test")} & {*list_of("train", "phantom"), *list_of("validation", "phantom")})
    assert (
        f"{alike} of 4 subjects have the ID of a training or validation subject, and are taken for other "
        "people "
        "(--namesakes says so)" in said
    )


def test_a_training_scan_stored_otherwise_under_another_name_is_known_by_its_voxels(project, capsys):
    scan, other = list_of("train", "phantom")[2], project / "data/other"
    for folder in ("whole_MRI", "whole_Abeta"):
        image = nib.load(f"data/phantom/{folder}/{scan}.nii.gz", mmap=False)
        stored = nib.Nifti1Image(image.get_fdata(), image.affine).as_reoriented([[0, -1], [1, 1], [2, 1]])
        stored.set_data_dtype(np.int16)
        nib.save(stored, other / folder / "sub-new.nii.gz")
    rows = pd.read_csv(other / "data_info/data_info.csv", dtype=str)
    rows = pd.concat([rows, rows.iloc[:1].assign(ID="sub-new")])
    rows.to_csv(other / "data_info/data_info.csv", index=False)
    with (other / "data_info/test.txt").open("a") as file:
        file.write("sub-new\n")
    said = refused(capsys)
    for what in ("MRI", "PET"):
        assert f"sub-new: its {what} is that of {scan} in the training list of the experiment" in said
    assert "2 volume(s) were seen" in said


RNG = np.random.default_rng(0)
SEEN = {"mri": RNG.random((3, 4, 5, 4), dtype=np.float32), "pet": RNG.random((3, 4, 5, 4), dtype=np.float32)}
SURVEY = SimpleNamespace(
    table=pd.DataFrame({"ID": ["a", "b", "c"], "mri": list(SEEN["mri"]), "pet": list(SEEN["pet"])})
)


def one_voxel(volume: np.ndarray, by: float) -> np.ndarray:
    """The volume with one block that differs."""
    changed = volume.copy()
    changed[1, 2, 3] += by
    return changed


@pytest.mark.parametrize(
    ("mri", "pet", "said"),
    [
        (
            SEEN["mri"][0],
            SEEN["pet"][0],
            ["MRI is that of a in the training", "PET is that of a in the training"],
        ),
        (
            SEEN["mri"][2],
            SEEN["pet"][2],
            ["MRI is that of c in the validation", "PET is that of c in the validation"],
        ),
        (SEEN["mri"][1], 1 - SEEN["pet"][1], ["MRI is that of b in the training"]),
        (1 - SEEN["mri"][1], SEEN["pet"][1], ["PET is that of b in the training"]),
        (SEEN["mri"][0], SEEN["pet"][1], ["MRI is that of a", "PET is that of b"]),
        (SEEN["mri"][0] + 1e-4, 0 * SEEN["pet"][0], ["MRI is that of a"]),  # rounding of an integer type
        (SEEN["mri"][0] + 0.01, SEEN["pet"][0] * 0.9, []),
        (one_voxel(SEEN["mri"][0], 0.1), one_voxel(SEEN["pet"][0], 0.1), []),
        (SEEN["mri"][0][::-1], SEEN["pet"][0][:, ::-1], []),  # mirrored: another picture
        (SEEN["pet"][0], SEEN["mri"][0], []),  # not of the same kind
    ],
)
def test_a_picture_is_known_by_its_blocks(mri, pet, said):
    read = pd.DataFrame(
        {"ID": ["new", "x"], "mri": [RNG.random((4, 5, 4)), mri], "pet": [RNG.random((4, 5, 4)), pet]}
    )
    known = TrainingLists({"a": "training", "b": "training", "c": "validation"}, SURVEY)
    if not said:
        refuse_known_pictures(read, known)
        return
    with pytest.raises(InputError, match=rf"^{len(said)} volume\(s\)") as error:
        refuse_known_pictures(read, known)
    for part in said:
        assert f"x: its {part}" in str(error.value)


# ---------------------------------------------------------------- without the training cohort

def test_without_the_survey_the_floor_is_missing_and_the_overlap_by_voxels_unknown_which_is_said(
    project, capsys
):
    for path in Path("data/phantom").rglob("survey-*.npz"):
        path.unlink()
    assert external() == 0
    said = capsys.readouterr().out
    assert "no row mean_pet, the mean PET of the training list: " in said
    assert "whether a volume of the training or validation list is among them cannot be checked" in said
    assert table(result() / "test.csv")["method"].unique().tolist() == ["aae", "il_cldm", "oracle"]
    # by their IDs they are still known, from the lists
    assert "is in the training list of the experiment" in refused(
        capsys, test_data="data/phantom", lists=("train",)
    )


def test_at_another_site_checkpoints_settings_thresholds_and_masks_are_enough(project, monkeypatch, capsys):
    """What the page says that is to be sent: nothing of the training cohort but its masks is there."""
    site = project / "site"
    (site / "result/a").mkdir(parents=True)
    for name in ("CHECKPOINT_AAE.pth.tar", "CHECKPOINT_Unet.pth.tar", "config.json", "status_classifiers.npz",
                 "calibration.npz"):
        shutil.copy(project / "result/a" / name, site / "result/a")
    for name in ("cortex.nii.gz", "cerebellum.nii.gz"):
        shutil.copy(project / "data/phantom/truth" / name, site)
    shutil.copytree(project / "data/other", site / "data/other")
    monkeypatch.chdir(site)
    names = count_reads(monkeypatch)
    assert external(cortex_mask="cortex.nii.gz", reference_mask="cerebellum.nii.gz") == 0
    assert sorted(names) == CHECKPOINTS                    # each is read once
    said = capsys.readouterr().out
    assert "whether somebody of the training or validation list is among them cannot be checked" in said
    for name in ("uptake.csv", "predictions.csv", "uncertainty.csv"):
        here, there = (table(root / result() / name) for root in (site, project))
        if "method" in there:
            there = there[there["method"] != "mean_pet"].reset_index(drop=True)
        pd.testing.assert_frame_equal(here, there, check_exact=True)


# ---------------------------------------------------------------- again, and damage

def test_pets_that_are_there_stay_and_the_others_come_out_the_same(project, capsys):
    pets = sorted((result() / "synthesized").glob("*.nii.gz"))
    before = {path: path.read_bytes() for path in pets}
    csvs = {path.name: path.read_bytes() for path in result().glob("*.csv")}
    path = next((result() / "synthesized").glob("*.json"))
    note = json.loads(path.read_text())
    note["made_from"]["settings"]["save_std"] = False      # as an earlier version wrote it
    path.write_text(json.dumps(note))
    assert external() == 0
    assert "0 of 3 PETs are to be synthesized" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in result().glob("*.csv")} == csvs
    pets[0].unlink()
    assert external() == 0
    assert "1 of 3 PETs are to be synthesized" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in pets} == before
    assert {path.name: path.read_bytes() for path in result().glob("*.csv")} == csvs


def kept(**made_from) -> set[str]:
    """The IDs of the PETs of the other cohort that would stay."""
    names, made = list_of("test"), {}
    for name in names:
        path = result() / f"synthesized/{name}.json"
        made[name] = json.loads(path.read_text())["made_from"] if path.read_text() != "{" else {}
        made[name].pop("mri", None)
    scans = {name: Scan(name, 0, Path(f"data/other/whole_MRI/{name}.nii.gz"), Path()) for name in names}
    synthesis = SimpleNamespace(saved=scans, folder=result())
    return set(KeptSynthesis(synthesis, {name: made[name] | made_from for name in names}).columns)


def scaled(path: Path, factor: float) -> None:
    """Write a volume darker."""
    image = nib.load(path, mmap=False)
    nib.save(nib.Nifti1Image((factor * image.get_fdata()).astype(np.float32), image.affine), path)


def test_a_pet_stays_only_as_it_was_made(project):
    first, second, third = list_of("test")
    assert kept() == {first, second, third}
    assert (
        kept(seed=1) == kept(networks={}) == kept(precision="bf16") == kept(covariates={"age": "80"}) == set()
    )
    scaled(result() / f"synthesized/{first}.nii.gz", 0.5)
    assert kept() == {second, third}
    scaled(Path(f"data/other/whole_MRI/{second}.nii.gz"), 0.9)
    assert kept() == {third}
    (result() / f"synthesized/{third}.json").write_text("{")
    assert kept() == set()


def test_a_cohort_that_lies_elsewhere_needs_another_name(project, capsys):
    shutil.copytree("data/other", "more/other")
    before = (result() / "scores.json").read_bytes()
    assert external("more/other") == 2
    assert "give this one another name by --name" in capsys.readouterr().err
    assert (result() / "scores.json").read_bytes() == before
    assert external(str(project / "data/other")) == 2  # the index knows another folder
    assert external() == 0
    assert external(str(project / "data/other")) == 0      # the same folder, by its full name


def damage_value() -> None:
    """Change a score."""
    path = result() / "test.csv"
    path.write_text(path.read_text().replace("il_cldm", "il_cldm ", 1))


def damage_index() -> None:
    """Change what the index says."""
    path = result() / "scores.json"
    path.write_text(path.read_text().replace('"phantom": true', '"phantom": false'))


def damage_threshold() -> None:
    """The experiment has other thresholds by now."""
    path = Path("result/a/status_classifiers.npz")
    arrays = dict(np.load(path))
    arrays["pet/threshold"] = arrays["pet/threshold"] + 0.01
    np.savez(path, **arrays)


def test_the_tables_have_sections_of_the_external_cohort_and_it_beside_the_own_test_list(project):
    assert run("--stages", "tables") == 0
    quality = pd.read_csv("result/tables/image_quality.csv")
    assert quality["data"].nunique() == 2
    [section] = [text for text in quality["data"].unique() if "data/other" in text]
    assert "split: external cohort other" in section
    beside = pd.read_csv("result/tables/external.csv", keep_default_na=False, na_values=[""])
    assert list(zip(beside["cohort"], beside["method"], strict=True)) == [
        (cohort, method) for cohort in ("test list", "other")
        for method in ("none", "mean_pet", "il_cldm", "oracle", "real")]
    found = beside.set_index(["cohort", "method"])
    for cohort, folder in (("test list", Path("result/a")), ("other", result())):
        test, uptake = table(folder / "test.csv"), table(folder / "uptake.csv")
        own = test[test["method"] == "il_cldm"]
        assert found.loc[(cohort, "il_cldm"), "PSNR_brain"] == pytest.approx(own["PSNR_brain"].mean())
        suvr = uptake.pivot(index="ID", columns="method", values="SUVR")
        error = (suvr["il_cldm"] - suvr["real"]).mean()
        assert found.loc[(cohort, "il_cldm"), "bias"] == pytest.approx(error)
        uncertainty = table(folder / "uncertainty.csv")
        assert found.loc[(cohort, "il_cldm"), "coverage"] == pytest.approx(uncertainty["covered"].mean())
    text = Path("result/tables/external.md").read_text()
    assert "split: test, and external cohorts" in text and "python main.py external --exp a" in text
    before = {path: path.read_bytes() for path in Path("result/tables").glob("external.*")}
    for path in before:
        path.unlink()
    assert run("--stages", "tables") == 0
    assert {path: path.read_bytes() for path in Path("result/tables").glob("external.*")} == before
    shutil.rmtree(result())
    assert run("--stages", "tables") == 0
    assert not list(Path("result/tables").glob("external.*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_value, "test.csv: not as it was written"),
        (damage_index, "scores.json: not there, damaged or changed"),
        (lambda: (result() / "uptake.csv").unlink(), "uptake.csv: not there"),
        (lambda: (result() / "scores.json").write_text("{}"), "scores.json: not there, damaged or changed"),
        (
            damage_threshold,
            "was scored with other networks, thresholds or calibration than the experiment has now",
        ),
    ],
)
def test_damaged_results_are_left_out_by_name(project, capsys, damage, message):
    damage()
    assert run("--stages", "tables") == 0
    said = capsys.readouterr().out
    assert "a/external/other is left out" in said and message in said
    assert "run python main.py external --exp a --name other --test_data DIR again" in said
    assert not Path("result/tables/external.csv").exists()


def test_the_same_command_mends_damaged_results(project):
    before = (result() / "test.csv").read_bytes()
    damage_value()
    damage_index()
    assert external() == 0
    assert (result() / "test.csv").read_bytes() == before
    load_run(result())


def test_the_report_shows_the_external_cohort_beside_the_own_test_list(project):
    assert train("report") == 0
    page = Path("result/a/report.html").read_text()
    assert "The external cohort other was scored with the same" in Path("result/a/methods.txt").read_text()
    assert '<h2 id="external">External cohorts</h2>' in page
    part = page.split('<h2 id="external">')[1].split("<h2")[0]
    assert "<td>test list</td>" in part and "<td>other</td>" in part and "coverage" in part


# ---------------------------------------------------------------- numbers

def test_the_headline_numbers_are_those_of_other_libraries(project):
    found, folder = headline([load_run(result())], "il_cldm"), result()
    uncertainty, predictions = table(folder / "uncertainty.csv"), table(folder / "predictions.csv")
    own = predictions[(predictions["classifier"] == "pet") & (predictions["method"] == "il_cldm")]
    assert found["AUC"].value == pytest.approx(roc_auc_score(own["label"], own["score"]))
    positive, label = own["score"] >= own["threshold"], own["label"] == 1
    assert found["SEN"].value == pytest.approx((positive & label).sum() / label.sum())
    assert found["SPE"].value == pytest.approx((~positive & ~label).sum() / (~label).sum())
    assert found["Brier"].value == pytest.approx(
        brier_score_loss(uncertainty["label"], uncertainty["probability"])
    )
    assert found["calibration"].value == pytest.approx(
        uncertainty["probability"].mean() - uncertainty["label"].mean()
    )
    suvr = table(folder / "uptake.csv").pivot(index="ID", columns="method", values="SUVR")
    slope, _ = np.polyfit(suvr["real"], suvr["il_cldm"], 1)
    assert found["slope"].value == pytest.approx(slope)
    assert found["Pearson"].value == pytest.approx(suvr["real"].corr(suvr["il_cldm"]))


# ---------------------------------------------------------------- covariates

def covariates_there(**columns: list[str]) -> pd.DataFrame:
    """Covariates of three external subjects for a predictor that was fitted to a marker, MMSE and sex."""
    train = {"p_tau217": ["0", "0.3", "0.9"], "mmse": ["20", "30", "28"], "sex": ["F", "M", "F"]}
    coder = CovariateCoder.fit(pd.DataFrame(train))
    there = SimpleNamespace(people=pd.DataFrame({"ID": list("abc")} | columns), info_dir=Path("info"),
                            scans=[SimpleNamespace(id=name) for name in "abc"])
    return covariates_of(there, SimpleNamespace(covariates=coder.names, coder=coder))


def test_external_covariates_are_found_and_what_is_missing_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(external_cohort, "say", lambda _, text: said.append(text))
    found = covariates_there(**{"P-Tau 217": ["0.5", "-4", "0.1"], "SEX": ["m", "F", ""]})
    assert found.to_dict("list") == {"p_tau217": ["0.5", "", "0.1"], "mmse": ["", "", ""],
                                     "sex": ["m", "F", ""]}
    assert found.index.tolist() == list("abc")
    assert len(said) == 3 and "has no column mmse: the training list's mean" in said[0]
    assert "1 of 3 subjects have no p_tau217" in said[1] and "1 of 3 subjects have no sex" in said[2]
    assert covariates_of(SimpleNamespace(info_dir=Path("info")), None) is None


@pytest.mark.parametrize("column, texts, message", [
    ("sex", ["F", "X", "M"], "'X' in 1 row(s); expected one of f, m"),
    ("mmse", ["29", "good", ""], "'good' in 1 row(s); expected a number"),
    ("p_tau217", ["500", "300", "0.2"], "2 value(s) such as 500, but 0 to 0.9 in the training list")])
def test_external_covariates_that_the_training_list_has_nothing_like_are_refused(column, texts, message):
    with pytest.raises(InputError) as error:
        covariates_there(**{column: texts})
    assert message in str(error.value) and str(error.value).startswith("info/data_info.csv: ")
