"""Amyloid status: thresholds from the validation list, nothing from the labels of the test list."""
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from evaluation.statistics import area_under_roc, bootstrap, interval
from evaluation.status import (
    CLASSIFIERS,
    choose_threshold,
    fit_status_classifiers,
    load_status_classifiers,
    mean_level,
    read_status,
    save_status_classifiers,
)
from labels.linear import pool_volume
from phantom.cohort import build_phantom
from utils import InputError

BRAIN = np.ones((6, 6, 6), bool)


def subjects(n: int, seed: int, effect: float = 1.0, **columns) -> pd.DataFrame:
    """A list whose PET and SUVR carry the label, whose MRI carries a little of it."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    pet, mri = rng.normal(0, 1, (2, n, 3, 3, 3))
    pet[:, 0] += effect * 2 * label[:, None, None]
    mri[:, 0] += effect * 0.5 * label[:, None, None]
    suvr = 1.1 + 0.3 * effect * label + rng.normal(0, 0.05, n)
    table = pd.DataFrame({"ID": [f"s{seed}{i:03d}" for i in range(n)], "label": label, "mri": list(mri),
                          "pet": list(pet), "SUVR": suvr})
    return table.assign(**columns)


@pytest.fixture(scope="module")
def classifiers():
    """Status classifiers of a list of 60 subjects."""
    return fit_status_classifiers(subjects(60, 1), subjects(20, 2), BRAIN, 2, seed=0)


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_has_the_best_balanced_accuracy_of_the_validation_list(seed):
    rng = np.random.default_rng(seed)
    label = np.arange(15) % 2
    score = (rng.normal(0, 1, 15) + 0.8 * label).round(1)
    threshold = choose_threshold(label, score, otherwise=9.0)
    found = balanced_accuracy_score(label, score >= threshold)
    best = max(balanced_accuracy_score(label, score >= other) for other in np.unique(score)[1:])
    assert found == pytest.approx(best)
    assert threshold not in score                          # midway: no subject lies on it


def test_the_threshold_lies_between_two_groups_and_is_the_default_where_nothing_can_be_chosen():
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9]), 0.5) == pytest.approx(0.4)
    assert choose_threshold(np.array([1, 1]), np.array([0.1, 0.2]), 0.5) == 0.5
    assert choose_threshold(np.array([0, 1]), np.array([0.3, 0.3]), 0.7) == 0.7


def test_real_pet_is_read_and_one_picture_for_everybody_is_exactly_chance(classifiers):
    test = subjects(40, 3)
    mean = test.assign(pet=[np.full((3, 3, 3), 0.3)] * 40, SUVR=1.2)
    read = read_status(classifiers, {"real": test, "mean_pet": mean})
    area = {}
    for key, rows in read.groupby(["classifier", "method"]):
        area[key] = roc_auc_score(rows["label"], rows["score"])
    assert area["pet", "real"] > 0.95
    assert area["suvr", "real"] > 0.95
    assert area["mri_pet", "real"] > 0.95
    assert 0.55 < area["mri", "none"] < 0.95
    assert area["pet", "mean_pet"] == area["suvr", "mean_pet"] == area["majority", "none"] == 0.5
    for _, rows in read.groupby(["classifier", "method"]):
        assert rows["ID"].tolist() == test["ID"].tolist()
        assert (rows["positive"] == (rows["score"] >= rows["threshold"])).all()


@pytest.mark.parametrize("n", [5, 7, 11, 21, 37])
def test_the_same_picture_gets_the_same_score_in_a_list_of_any_length(classifiers, n):
    picture = np.random.default_rng(0).normal(0.3, 0.1, (3, 3, 3))
    read = read_status(classifiers, {"mean_pet": subjects(n, 3).assign(pet=[picture] * n)})
    assert read.loc[read["classifier"] == "pet", "score"].nunique() == 1


def test_labels_of_the_test_list_change_no_score_and_no_decision(classifiers):
    test = subjects(20, 4)
    shuffled = test.assign(label=np.random.default_rng(0).permutation(test["label"]))
    one, other = (read_status(classifiers, {"real": table}) for table in (test, shuffled))
    pd.testing.assert_frame_equal(one.drop(columns="label"), other.drop(columns="label"))


def test_without_an_effect_nothing_is_read():
    """A leak of any label into a classifier would show here: fitted and tested on pure noise, many times."""
    areas = []
    for seed in range(3):
        train, validation = subjects(20, 10 + seed, effect=0.0), subjects(10, 30 + seed, effect=0.0)
        classifiers = fit_status_classifiers(train, validation, BRAIN, 2, seed)
        read = read_status(classifiers, {"real": subjects(100, 50 + seed, effect=0.0)})
        for name, rows in read.groupby("classifier"):
            if name != "majority":
                areas.append(roc_auc_score(rows["label"], rows["score"]))
    assert abs(np.mean(areas) - 0.5) < 0.06


def read_pooled(path) -> np.ndarray:
    """A volume, averaged over blocks of 2 voxels along each axis."""
    return pool_volume(torch.from_numpy(nib.load(path).get_fdata())[None, None], 2)[0, 0].numpy()


@pytest.fixture(scope="module")
def phantom_lists(tmp_path_factory):
    """link -> training, validation and test list of a phantom at 8 mm, read as a cohort's real PETs are."""
    found = {}
    for link in (0.0, 0.9):
        root = tmp_path_factory.mktemp("phantom") / "cohort"
        build_phantom(root, (60, 20, 60), 8, link, seed=1)
        labels = pd.read_csv(root / "data_info" / "data_info.csv").set_index("ID")["label"]
        lists = []
        for split in ("train", "validation", "test"):
            names = (root / "data_info" / f"{split}.txt").read_text().split()
            table = pd.DataFrame({"ID": names, "label": labels[names].to_numpy()})
            for kind, folder in (("mri", "whole_MRI"), ("pet", "whole_Abeta")):
                table[kind] = [read_pooled(root / folder / f"{name}.nii.gz") for name in names]
            lists.append(table)
        found[link] = lists
    return found


@pytest.mark.parametrize("link", [0.0, 0.9])
def test_on_a_phantom_real_pet_is_read_and_the_mri_only_if_it_is_linked(phantom_lists, link):
    train, validation, test = phantom_lists[link]
    classifiers = fit_status_classifiers(train, validation, np.ones((22, 27, 22), bool), 2, seed=0)
    mean_pet = np.stack(train["pet"]).mean(axis=0)
    read = read_status(classifiers, {"real": test, "mean_pet": test.assign(pet=[mean_pet] * len(test))})
    parts = {}
    for key, rows in read.groupby(["classifier", "method"]):
        parts[key] = rows["label"].to_numpy(), rows["score"].to_numpy()
    assert roc_auc_score(*parts["pet", "real"]) >= 0.95
    assert roc_auc_score(*parts["pet", "mean_pet"]) == 0.5
    label, score = parts["mri", "none"]
    replicates = bootstrap(lambda index: area_under_roc(label[index], score[index]), len(label), 1000, seed=0)
    low, high = interval(replicates)
    assert (low > 0.5) if link else (low < 0.5 < high)


def test_age_and_sex_are_read_where_they_are_known(classifiers):
    assert "age_sex" not in classifiers
    lists = []
    for seed in (1, 2, 3):
        table = subjects(40, seed)
        lists.append(table.assign(age=70.0 + 10 * table["label"] + np.arange(40) % 7, sex=["F", "M"] * 20))
    train, validation, test = lists
    test.loc[0, "sex"] = "unknown"                         # a category that the training list does not have
    read = read_status(fit_status_classifiers(train, validation, BRAIN, 2, seed=0), {"real": test})
    rows = read[read["classifier"] == "age_sex"]
    assert roc_auc_score(rows["label"], rows["score"]) > 0.9
    assert rows["method"].unique().tolist() == ["none"]


def test_a_ratio_without_a_threshold_gives_no_decision():
    one_label = subjects(10, 2).assign(label=1)
    classifiers = fit_status_classifiers(subjects(40, 1), one_label, BRAIN, 2, seed=0)
    read = read_status(classifiers, {"real": subjects(6, 3)})
    assert read.loc[read["classifier"] == "suvr", "positive"].isna().all()
    assert read.loc[read["classifier"] == "pet", "threshold"].unique().tolist() == [0.5]


# ---------------------------------------------------------------- the file

BOUND = {"mri": "networks a", "mri_pet": "networks a", "pet": "networks a", "suvr": "networks a, masks b"}


def test_saved_classifiers_read_the_same_status_and_only_for_what_they_were_fitted_for(classifiers, tmp_path):
    path, test = tmp_path / "status_classifiers.npz", subjects(20, 5)
    save_status_classifiers(path, classifiers, BOUND)
    found = load_status_classifiers(path, BOUND)
    assert set(found) == set(BOUND)
    expected = read_status({name: classifiers[name] for name in found}, {"real": test})
    pd.testing.assert_frame_equal(read_status(found, {"real": test}), expected)
    assert [one.level for one in found.values()] == [classifiers[name].level for name in found]
    found = load_status_classifiers(path, BOUND | {"pet": "networks c", "new": "x"})
    assert set(found) == {"mri", "mri_pet", "suvr"}


def test_the_level_is_that_of_the_darkest_and_of_the_brightest_of_the_training_list(classifiers):
    train = subjects(60, 1)
    for name, modalities in CLASSIFIERS.items():
        volumes = np.stack([np.stack(train[modality].to_list()) for modality in modalities], axis=1)
        levels = volumes.mean(axis=(1, 2, 3, 4))           # all voxels are brain here
        assert classifiers[name].level == pytest.approx((levels.min(), levels.max()))
        assert mean_level(volumes[0], classifiers[name].classifier) == pytest.approx(levels[0])


def test_a_damaged_file_of_classifiers_is_refused(classifiers, tmp_path):
    path = tmp_path / "status_classifiers.npz"
    save_status_classifiers(path, classifiers, BOUND)
    content = path.read_bytes()
    middle = content.index(b"fortran_order", len(content) // 2) + 200         # among the numbers of an array
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]
    for spoilt in (b"", content[:-100], flipped):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match="npz: damaged .* --stages test writes it again"):
            load_status_classifiers(path, BOUND)
