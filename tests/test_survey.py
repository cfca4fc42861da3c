"""The survey of the real volumes: what it holds, its file, and which lists and masks it belongs to."""
import random
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import AFFINE, LISTS, SHAPE, TINY, write_volume

from config import Config
from dataset import Scan, check_cohort
from evaluation.measurement import MaskFiles, Measurement
from experiment import experiment as experiment_module
from experiment.experiment import Experiment
from experiment.survey import Survey, load_survey, make_survey, save_survey
from imaging.regions import Regions

BOX = np.s_[3:19, 2:26, 3:19]                              # the crop of these settings
CORTEX, CEREBELLUM = np.s_[8:14, 16:22, 8:14], np.s_[8:14, 5:11, 8:14]


# ---------------------------------------------------------------- batches that are made up

def made_up_batches(ids: list[str], size: int, seed: int) -> list[dict]:
    """Batches of random MRIs and PETs of 10 x 8 x 12 voxels."""
    generator, batches = torch.Generator().manual_seed(seed), []
    for first in range(0, len(ids), size):
        names = ids[first:first + size]
        shape = (len(names), 1, 10, 8, 12)
        mri, pet = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        batches.append({"id": names, "mri": mri, "pet": pet})
    return batches


def measurement_of(voxel_mm: float, with_regions: bool = True) -> Measurement:
    """Masks on the made-up volumes, with a further region and Centiloids."""
    cortex, reference, named = np.zeros((3, 10, 8, 12), bool)
    cortex[2:5], reference[6:9, 2:6], named[:, :, 7] = True, True, True
    regions = Regions(cortex, reference, {"precuneus": named}, (100.0, -95.0)) if with_regions else None
    return Measurement(np.ones((10, 8, 12), bool), regions, voxel_mm, MaskFiles("", {}))


def made_up_survey(train: list[str], voxel_mm: float, with_regions: bool = True) -> Survey:
    """The survey of made-up volumes of these training subjects and of one validation subject, v."""
    batches = made_up_batches(train, 2, 1), made_up_batches(["v"], 2, 2)
    return make_survey(*batches, measurement_of(voxel_mm, with_regions))


def stacked(batches: list[dict], name: str) -> np.ndarray:
    """The volumes of all batches, [n, D, H, W]."""
    return torch.cat([batch[name] for batch in batches])[:, 0].numpy()


def blocks(volume: np.ndarray, width: int) -> np.ndarray:
    """Means of blocks of width^3 voxels of a volume [D, H, W], without the voxels after the last whole
    block."""
    d, h, w = (n // width for n in volume.shape)
    whole = volume[:d * width, :h * width, :w * width].astype(np.float64)
    return whole.reshape(d, width, h, width, w, width).mean(axis=(1, 3, 5))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_survey_equals_what_numpy_computes_of_the_same_volumes(size):
    """At 2 mm: the MRI of the label predictor in blocks of 2, and the MRI and PET of the status classifiers
    in blocks of 4."""
    train, validation = [f"t{i}" for i in range(5)], ["v0", "v1", "v2"]
    batches = made_up_batches(train, size, 1), made_up_batches(validation, size, 2)
    survey, measurement = make_survey(*batches, measurement_of(2.0)), measurement_of(2.0)
    mri, pet = stacked(batches[0], "mri"), stacked(batches[0], "pet")
    assert survey.mean_pet.shape == (1, 1, 10, 8, 12) and survey.mean_pet.dtype == torch.float32
    np.testing.assert_allclose(survey.mean_pet[0, 0], pet.mean(axis=0), rtol=1e-6)
    assert survey.pet_std == pytest.approx(pet.std(dtype=np.float64), rel=1e-9)
    assert survey.mri.shape == (5, 1, 5, 4, 6) and survey.mri.dtype == torch.float32
    for i in range(5):
        np.testing.assert_allclose(survey.mri[i, 0], blocks(mri[i], 2), rtol=1e-5)

    assert survey.table["ID"].tolist() == train + validation
    assert set(survey.table.columns) == {"ID", "mri", "pet", "SUVR", "CL", "SUVR_precuneus"}
    regions = measurement.regions
    mri = np.concatenate([mri, stacked(batches[1], "mri")])
    pet = np.concatenate([pet, stacked(batches[1], "pet")])
    for i, (one_mri, one_pet) in enumerate(zip(mri, pet, strict=True)):
        row = survey.table.iloc[i]
        np.testing.assert_allclose(row["mri"], blocks(one_mri, 4), rtol=1e-5)
        np.testing.assert_allclose(row["pet"], blocks(one_pet, 4), rtol=1e-5)
        reference = one_pet[regions.reference].mean(dtype=np.float64)
        suvr = one_pet[regions.cortex].mean(dtype=np.float64) / reference
        assert row["SUVR"] == pytest.approx(suvr, rel=1e-6)
        assert row["CL"] == pytest.approx(100 * suvr - 95, rel=1e-6)
        named = one_pet[regions.named["precuneus"]].mean(dtype=np.float64) / reference
        assert row["SUVR_precuneus"] == pytest.approx(named, rel=1e-6)


def test_mean_and_standard_deviation_are_those_of_the_training_list_alone():
    training, measurement = made_up_batches(["a", "b", "c"], 2, 1), measurement_of(2.0)
    one = make_survey(training, made_up_batches(["v", "w"], 2, 2), measurement)
    [bright] = made_up_batches(["v"], 2, 3)
    bright["pet"] *= 100
    other = make_survey(training, [bright], measurement)
    assert torch.equal(one.mean_pet, other.mean_pet) and one.pet_std == other.pet_std
    assert torch.equal(one.mri, other.mri)
    pd.testing.assert_frame_equal(one.table.iloc[:3], other.table.iloc[:3])
    for batch in training:
        batch["pet"] *= 2
    changed = make_survey(training, [bright], measurement)
    assert torch.equal(changed.mean_pet, 2 * one.mean_pet)
    assert changed.pet_std == pytest.approx(2 * one.pet_std, rel=1e-12)


def test_volumes_that_are_all_alike_have_no_standard_deviation():
    flat = torch.full((2, 1, 10, 8, 12), 0.1)
    batch = {"id": ["a", "b"], "mri": flat, "pet": flat}
    survey = make_survey([batch], [batch], measurement_of(2.0, with_regions=False))
    assert 0 <= survey.pet_std < 1e-6  # whatever rounding leaves, and never the root of a negative number
    assert set(survey.table.columns) == {"ID", "mri", "pet"}


def test_the_rows_of_scans_come_in_their_order_with_their_labels():
    survey = made_up_survey(["a", "b", "c"], 2.0)
    scans = [Scan(name, label, Path(), Path()) for name, label in (("v", 1), ("b", 0), ("a", 1))]
    rows = survey.of(scans)
    assert rows["ID"].tolist() == ["v", "b", "a"] and rows["label"].tolist() == [1, 0, 1]
    by_id = survey.table.set_index("ID")["SUVR"]
    assert rows["SUVR"].tolist() == [by_id["v"], by_id["b"], by_id["a"]]
    assert "label" not in survey.table.columns


# ---------------------------------------------------------------- its file

def assert_same(one: Survey, other: Survey) -> None:
    """The same to the last bit."""
    assert torch.equal(one.mean_pet, other.mean_pet) and one.mean_pet.dtype == other.mean_pet.dtype
    assert torch.equal(one.mri, other.mri) and one.mri.dtype == other.mri.dtype
    assert one.pet_std == other.pet_std
    assert one.table.columns.tolist() == other.table.columns.tolist() and len(one.table) == len(other.table)
    for name in one.table:
        for value, again in zip(one.table[name], other.table[name], strict=True):
            assert type(value) is type(again) and np.array_equal(value, again), name
            assert getattr(value, "dtype", None) == getattr(again, "dtype", None), name


@pytest.mark.parametrize("with_regions", [True, False])
def test_a_saved_survey_is_read_as_it_was_to_the_last_bit(tmp_path, with_regions):
    survey = made_up_survey(["a", "long-name_01"], 2.0, with_regions)
    save_survey(tmp_path / "s.npz", survey)
    assert_same(load_survey(tmp_path / "s.npz"), survey)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_an_suvr_that_is_not_known_stays_so(tmp_path):
    batches = made_up_batches(["a", "b"], 2, 1)
    batches[0]["pet"][1, 0, 6:9, 2:6] = 0                  # the reference region
    survey = make_survey(batches, made_up_batches(["v"], 2, 2), measurement_of(2.0))
    save_survey(tmp_path / "s.npz", survey)
    suvr = load_survey(tmp_path / "s.npz").table["SUVR"]
    assert np.isnan(suvr[1]) and np.isfinite([suvr[0], suvr[2]]).all()


def damaged(whole: bytes, case: int, rng: random.Random) -> bytes:
    """A file that is cut, or in which a bit is flipped: somewhere, or in the list of parts at its end, or in
    the header of a part."""
    content = bytearray(whole)
    if case % 4 == 0:
        return bytes(content[:rng.randrange(len(whole))])
    if case % 4 == 1:
        position = rng.randrange(len(whole))
    elif case % 4 == 2:
        position = rng.randrange(whole.index(b"PK\x01\x02"), len(whole))
    else:
        parts = [found.start() for found in re.finditer(b"PK\x03\x04", whole)]
        # the zip's own header, then numpy's with type and shape
        position = rng.choice(parts) + rng.randrange(200)
    content[position] ^= 1 << rng.randrange(8)
    return bytes(content)


def test_a_damaged_survey_counts_as_not_there(tmp_path, count, record_property):
    """Cut anywhere, or with any bit flipped, it is none, or it is what it was: never another one, and never
    an error."""
    survey = made_up_survey(["a", "b"], 4.0)
    path, rng, refused, cases = tmp_path / "s.npz", random.Random(0), 0, count(600, 20_000)
    assert load_survey(path) is None
    save_survey(path, survey)
    whole = path.read_bytes()
    for case in range(cases):
        path.write_bytes(damaged(whole, case, rng))
        found = load_survey(path)
        if found is None:
            refused += 1
        else:                                              # damage of a date, for instance
            assert_same(found, survey)
    record_property("trust", f"damaged surveys: {refused} of {cases} counted as not there, the others were "
                             "unharmed")
    assert refused > 0.6 * cases
    for content in (b"", b"text"):
        path.write_bytes(content)
        assert load_survey(path) is None
    path.unlink()
    path.mkdir()
    assert load_survey(path) is None


OF_THE_MRIS = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 10, 8, 12)"


@pytest.mark.parametrize(("right", "wrong"), [(b"<f4", b"<f2"), (b"10", b" 1"), (b"(2", b"(0"),
                                              (b"'shape'", b"[shape'")])
def test_a_survey_whose_mris_claim_another_shape_or_type_counts_as_not_there(tmp_path, right, wrong):
    """numpy alone would read fewer bytes than there are, and then compare no checksum."""
    save_survey(tmp_path / "s.npz", made_up_survey(["a", "b"], 4.0))
    whole = (tmp_path / "s.npz").read_bytes()
    assert whole.count(OF_THE_MRIS) == 1
    (tmp_path / "s.npz").write_bytes(whole.replace(OF_THE_MRIS, OF_THE_MRIS.replace(right, wrong)))
    assert load_survey(tmp_path / "s.npz") is None


@pytest.mark.parametrize("lost", ["mean_pet", "pet_std", "fine_mri", "ID", "pooled pet", "column SUVR",
                                  "column CL"])
def test_a_survey_that_lacks_a_part_counts_as_not_there(tmp_path, lost):
    survey = made_up_survey(["a", "b"], 4.0)
    save_survey(tmp_path / "s.npz", survey)
    with np.load(tmp_path / "s.npz") as file:
        arrays = {name: file[name] for name in file.files if name != lost}
        assert len(arrays) == len(file.files) - 1
    np.savez(tmp_path / "s.npz", **arrays)
    assert load_survey(tmp_path / "s.npz") is None


# ---------------------------------------------------------------- of an experiment

@pytest.fixture
def masks(root) -> dict:
    """Settings that name a cortex and a reference region."""
    paths = {"regions": "auto"}
    for name, box in (("cortex_mask", CORTEX), ("reference_mask", CEREBELLUM)):
        voxels = np.zeros(SHAPE, np.uint8)
        voxels[box] = 1
        write_volume(root / f"{name}.nii.gz", voxels)
        paths[name] = f"{name}.nii.gz"
    return paths


def experiment(**settings) -> Experiment:
    """An experiment of the cohort in the working directory, as it lies there now."""
    cfg = Config(**TINY | settings)
    cohort = check_cohort(Path("data"), Path("data_info"), cfg.image_size, cfg.num_classes,
                          cfg.subject_pattern)
    return Experiment(cfg, cohort, torch.device("cpu"))


def surveys() -> set[str]:
    """Names of the surveys that are kept."""
    return {path.name for path in Path("data/latent_Abeta").glob("survey-*.npz")}


def read_volumes(root: Path, folder: str, ids: list[str]) -> np.ndarray:
    """The crops of these scans, as nibabel reads them, [n, D, H, W]."""
    volumes = []
    for name in ids:
        [path] = (root / "data" / folder).glob(f"{name}.nii*")
        volumes.append(nib.load(path).get_fdata(dtype=np.float32)[BOX])
    return np.stack(volumes)


def test_the_survey_of_a_cohort_equals_what_its_files_hold(root, masks):
    survey = experiment(**masks).survey()
    mri, pet = (read_volumes(root, folder, LISTS["train"]) for folder in ("whole_MRI", "whole_Abeta"))
    np.testing.assert_allclose(survey.mean_pet[0, 0], pet.mean(axis=0), rtol=1e-6)
    assert survey.pet_std == pytest.approx(pet.std(dtype=np.float64), rel=1e-9)
    np.testing.assert_array_equal(survey.mri[:, 0], mri)   # at 8 mm there is nothing to pool
    assert survey.table["ID"].tolist() == LISTS["train"] + LISTS["validation"]
    for i, name in enumerate(survey.table["ID"]):
        [path] = (root / "data" / "whole_Abeta").glob(f"{name}.nii*")
        voxels = nib.load(path).get_fdata()
        suvr = voxels[CORTEX].mean() / voxels[CEREBELLUM].mean()
        assert survey.table["SUVR"][i] == pytest.approx(suvr, rel=1e-5)
    assert survey.of(experiment(**masks).cohort.validation)["label"].tolist() == [0, 1]


def test_a_survey_is_made_once_and_then_read(root, masks, monkeypatch):
    first = experiment(**masks)
    made = first.survey()
    assert first.survey() is made
    assert len(surveys()) == 1
    monkeypatch.setattr(experiment_module, "make_survey", None)  # cannot be called
    assert_same(experiment(**masks).survey(), made)
    # of which it knows nothing
    assert_same(experiment(**masks, exp="other", aae_lr=1e-4, ldm_lr=1e-4, seed=3).survey(), made)


def test_a_damaged_survey_of_an_experiment_is_made_again(root, masks):
    made = experiment(**masks).survey()
    [path] = Path("data/latent_Abeta").glob("survey-*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    assert_same(experiment(**masks).survey(), made)
    assert_same(load_survey(path), made)


def move_cortex(root: Path) -> None:
    """Put a voxel more into the cortical region."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[CORTEX] = 1
    voxels[7, 16, 8] = 1
    write_volume(root / "cortex_mask.nii.gz", voxels)


def swap_labels(root: Path) -> None:
    """Give s01 the other label."""
    path = root / "data_info" / "data_info.csv"
    path.write_text(path.read_text().replace("s01,0", "s01,1"))


def drop_last(name: str):
    """A change that takes the last ID out of a list."""
    def change(root: Path) -> None:
        path = root / "data_info" / f"{name}.txt"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return change


def change_voxel(folder: str):
    """A change of one voxel of s02 by little."""
    def change(root: Path) -> None:
        [path] = (root / "data" / folder).glob("s02.nii*")
        voxels = nib.load(path, mmap=False).get_fdata(dtype=np.float32)
        voxels[11, 13, 11] *= 0.99
        write_volume(path, voxels)
    return change


def write_label_image(root: Path) -> None:
    """Write a label image of two regions, and the table of one of them."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[8:11, 10:14, 8:14], voxels[11:14, 10:14, 8:14] = 1, 2
    write_volume(root / "labels.nii.gz", voxels, AFFINE)
    (root / "labels.csv").write_text("index,name\n1,left\n")


CHANGES = {"masks": move_cortex, "training list": drop_last("train"),
           "validation list": drop_last("validation"), "MRI": change_voxel("whole_MRI"),
           "PET": change_voxel("whole_Abeta"), "labels": swap_labels}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_survey_is_not_taken_for_that_of_other_masks_lists_or_volumes(root, masks, change):
    before = experiment(**masks).survey()
    [name] = surveys()
    change(root)
    after = experiment(**masks).survey()
    assert len(surveys()) == 2 and name in surveys()
    contents = []
    for survey in (before, after):
        table = survey.table
        contents.append((table["ID"].tolist(), table["SUVR"].tolist(), survey.pet_std, survey.mri.tolist()))
    assert contents[0] != contents[1] or change is swap_labels         # which do not stand in it


@pytest.mark.parametrize("settings", [{"centiloid": (100.0, 0.0)}, {"centiloid": (100.0, -10.0)},
                                      {"atlas": ("labels.nii.gz", "labels.csv")},
                                      {"crop_start": (2, 2, 3)}, {"brain_mask": "cortex_mask.nii.gz"}])
def test_a_survey_is_not_taken_for_that_of_another_crop_or_other_measures(root, masks, settings):
    write_label_image(root)
    before = experiment(**masks).survey()
    after = experiment(**masks, **settings).survey()
    assert len(surveys()) == 2
    expected = {"centiloid": {"CL"}, "atlas": {"SUVR_left"}}.get(next(iter(settings)), set())
    assert set(after.table.columns) - set(before.table.columns) == expected


def test_regions_that_differ_in_their_names_or_in_their_voxels_have_surveys_of_their_own(root, masks):
    write_label_image(root)
    further = {"atlas": ("labels.nii.gz", "labels.csv")}
    experiment(**masks, **further).survey()
    for table in ("index,name\n2,left\n", "index,name\n1,right\n", "index,name\n1,left\n2,right\n"):
        Path("labels.csv").write_text(table)
        before = len(surveys())
        experiment(**masks, **further).survey()
        assert len(surveys()) == before + 1


def test_the_test_list_has_no_part_in_a_survey(root, masks):
    made = experiment(**masks).survey()
    drop_last("test")(root)
    assert_same(experiment(**masks).survey(), made)
    assert len(surveys()) == 1
