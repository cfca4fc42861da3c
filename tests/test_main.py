"""The whole method on a tiny cohort: what a run writes, repeats, continues and refuses."""
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import AFFINE, LISTS, SHAPE, TINY, arguments, reorient, write_cohort, write_volume
from test_dataset import BAD
from torch.utils.checkpoint import checkpoint

import main
import model
from config import PRESETS, STAGES, Config
from evaluation.results import load_run
from experiment import experiment
from experiment.networks import build_aae, build_unet
from runtime.checkpoints import load_checkpoint
from runtime.commandline import parse

CSVS = ("loss_curve.csv", "validation.csv", "test.csv", "predictions.csv", "summary.csv",
        "validation_list.csv")
CHECKPOINTS = ("CHECKPOINT_AAE", "CHECKPOINT_AAE_last", "CHECKPOINT_Unet", "CHECKPOINT_Unet_last")
ONE_EPOCH = {"aae_epochs": 1, "ldm_epochs": 1}              # of each stage, where more say no more
COLUMNS = ["method", "ID", "label", "PSNR", "SSIM", "MAE", "PSNR_brain", "SSIM_brain", "MAE_brain",
           "spectrum_brain", "nyquist", "nyquist_real"]


def run(*argv: str, **settings) -> int:
    """Exit code of a run, up to the CSVs unless stages are given."""
    stages = [] if "--stages" in argv else ["--stages", "check", "aae", "encode", "ldm", "test"]
    try:
        return main.main(arguments(TINY | settings) + stages + list(argv))
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project folder in which the tiny cohort has gone through every stage, as experiment `a`."""
    root = tmp_path_factory.mktemp("finished")
    write_cohort(root)
    before = os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert run("--stages", *STAGES, exp="a") == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of the finished project, as the working directory."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Leave out the pictures of a run; that of `finished` sketches them."""
    monkeypatch.setattr(main, "plot_history", do_nothing)
    monkeypatch.setattr(main, "plot_shown_scans", do_nothing)
    monkeypatch.setattr(main, "plot_comparison", do_nothing)


@pytest.fixture
def no_status(monkeypatch):
    """Leave out the status classifiers, which take most of a test stage, where only volumes are looked at."""
    monkeypatch.setattr(main, "fit_status", no_classifiers)


def do_nothing(*_) -> None:
    """Stand in for a picture."""


def no_classifiers(*_) -> dict:
    """Stand in for the fit of status classifiers."""
    return {}


def same_csvs(one, other) -> bool:
    """Whether two folders hold the same scores and losses, byte for byte."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in CSVS)


def same_states(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same state of networks and optimizers, bit for bit."""
    states = [load_checkpoint(path)["state"] for path in (one, other)]
    assert states[0].keys() == states[1].keys()
    leaves = [torch.utils._pytree.tree_leaves(state) for state in states]
    pairs = zip(*leaves, strict=True)
    return all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in pairs)


def test_a_run_writes_every_output(finished):
    folder = finished / "result" / "a"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.pth.tar" for name in CHECKPOINTS), *CSVS, "config.json", "status_classifiers.npz",
        "scores.json", "synthesized", "one_sample", "loss_curve.png", "synthesized.png", "figures",
        "report.html", "people.csv", "table_1.csv", "failure_cases.csv", "methods.txt",
        "run.log", ".lock", "cost.csv"}
    tables = {path.stem for path in (finished / "result" / "tables").iterdir()}
    assert tables == {"image_quality", "amyloid_status", "calibration", "subgroups", "comparisons"}
    names = ("test.csv", "validation.csv", "loss_curve.csv")
    test, validation, losses = (pd.read_csv(folder / name) for name in names)
    assert test.columns.tolist() == COLUMNS
    assert [(m, i) for m, i in zip(test["method"], test["ID"], strict=True)] == [
        (method, scan_id) for method in ("aae", "il_cldm", "mean_pet") for scan_id in LISTS["test"]]
    assert np.isfinite(test[COLUMNS[3:]].values).all()
    assert validation.columns.tolist() == ["stage", "epoch", "PSNR", "SSIM", "score", "best"]
    assert validation.groupby("stage")["best"].sum().tolist() == [1, 1]
    for _, rows in validation.groupby("stage"):
        assert rows.loc[rows["best"], "score"].item() == rows["score"].max()
    np.testing.assert_allclose(validation["score"], validation["PSNR"] + 10 * validation["SSIM"])
    assert losses[["stage", "epoch"]].values.tolist() == [["aae", 1], ["aae", 2], ["ldm", 1], ["ldm", 2]]
    settings = json.loads((folder / "config.json").read_text())
    assert settings["settings"]["aae_channels"] == [8, 16]
    assert settings["versions"]["torch"] == torch.__version__


def test_the_checkpoint_holds_what_the_test_stage_needs_as_plain_values(finished):
    saved = torch.load(finished / "result" / "a" / "CHECKPOINT_Unet.pth.tar", weights_only=True)
    assert {"unet", "ema", "opt"} == saved["state"].keys()
    assert saved["metadata"].keys() == {"latent_mean", "latent_std", "soft_labels", "label_predictor",
                                        "affine", "phantom", "tracer"}
    assert saved["metadata"]["label_predictor"]["coef"].dim() == 2
    folder = finished / "data" / "latent_Abeta"
    paths = [next(folder.rglob(f"{scan_id}.nii.gz")) for scan_id in LISTS["train"]]
    latents = np.stack([nib.load(path).get_fdata() for path in paths])
    assert saved["metadata"]["latent_mean"] == pytest.approx(latents.mean(), rel=1e-4)
    assert saved["metadata"]["latent_std"] == pytest.approx(latents.std(), rel=1e-3)
    np.testing.assert_allclose(saved["metadata"]["affine"].numpy(), AFFINE)
    assert saved["metadata"]["phantom"] is False
    assert saved["metadata"]["tracer"] == ""               # data_info.csv has no such column


def test_the_command_and_the_losses_of_every_epoch_stand_in_the_log(finished):
    folder = finished / "result" / "a"
    log = (folder / "run.log").read_text()
    command = json.loads((folder / "scores.json").read_text())["command"]
    assert command.startswith("python main.py --image_size 22 27 22 ")
    assert "--exp a --stages check aae" in command
    assert f"  {command}\n" in log
    assert log.count("6 subjects, 2 a step, 0 of 2 epochs done") == 2  # both stages say it alike
    losses = pd.read_csv(folder / "loss_curve.csv").set_index(["stage", "epoch"])
    lines = re.findall(r"(aae|ldm) +epoch (\d)/2  (.*?)  waiting for data", log)
    assert len(lines) == len(losses) == 4
    for stage, epoch, text in lines:
        shown = {name: float(value) for name, value in (part.split() for part in text.split("  "))}
        expected = losses.loc[(stage, int(epoch))].dropna()
        assert shown.keys() == set(expected.index)
        assert shown == pytest.approx(expected.to_dict(), abs=1e-4)
    assert {"rec", "adv", "disc", "mse", "image", "mse_validation"} <= set(losses.columns)


def test_without_regions_the_unet_learns_the_true_label_and_gets_the_predicted_one(finished):
    settings = json.loads((finished / "result" / "a" / "config.json").read_text())["settings"]
    assert (settings["label_in_training"], settings["label_at_sampling"]) == ("true", "mixed")
    said = ("the settings name no regions (cortex_mask, reference_mask): the UNet is trained with "
            "label_in_training true")
    assert (finished / "result" / "a" / "run.log").read_text().count(said) == 1
    labels = load_checkpoint(finished / "result" / "a" / "CHECKPOINT_Unet.pth.tar")["metadata"]["soft_labels"]
    assert labels.tolist() == [[1, 0], [0, 1]] * 4         # of the training list, then of the validation list


def test_with_regions_alone_the_unet_learns_the_suvr_and_samples_are_matched(project, capsys):
    settings = masks(project)
    assert run(exp="r", **settings | ONE_EPOCH) == 0
    said = capsys.readouterr().out
    assert "the settings name no regions" not in said
    assert "2 latent samples by ddim, 12 network evaluations a scan" in said  # 2 samples of 3 steps, twice
    saved = json.loads((project / "result" / "r" / "config.json").read_text())["settings"]
    assert (saved["label_in_training"], saved["label_at_sampling"]) == ("suvr", "matched")
    suvr = np.array([real_suvr(project, scan_id) for scan_id in LISTS["train"] + LISTS["validation"]])
    negative, positive = suvr[:6:2].mean(), suvr[1:6:2].mean()
    share = (suvr - negative) / (positive - negative)
    labels = load_checkpoint(project / "result" / "r" / "CHECKPOINT_Unet.pth.tar")["metadata"]["soft_labels"]
    np.testing.assert_allclose(labels, np.stack([1 - share, share], axis=1), atol=1e-4)
    matched = synthesized(project / "result" / "r")
    write_volume(project / "other.nii.gz", np.pad(np.ones((4, 4, 4), np.uint8), ((9, 9), (17, 6), (9, 9))))
    capsys.readouterr()
    assert run("--stages", "test", exp="r", **settings | ONE_EPOCH | {"cortex_mask": "other.nii.gz"}) == 2
    assert "trained with the SUVR of other regions" in capsys.readouterr().err
    for name, volume in synthesized(project / "result" / "r").items():
        np.testing.assert_array_equal(volume, matched[name])
    assert run("--stages", "test", exp="r", **settings | ONE_EPOCH, label_at_sampling="mixed") == 0
    assert not np.array_equal(matched["s09.nii.gz"], synthesized(project / "result" / "r")["s09.nii.gz"])


def real_suvr(root, scan_id: str) -> float:
    """SUVR of a real PET in the regions of masks()."""
    pet = nib.load(root / "data" / "whole_Abeta" / f"{scan_id}.nii").get_fdata()
    return pet[8:14, 16:22, 8:14].mean() / pet[8:14, 5:11, 8:14].mean()


def test_synthesized_volumes_overlay_their_mri_and_are_what_was_scored(finished):
    test = pd.read_csv(finished / "result" / "a" / "test.csv")
    for scan_id in LISTS["test"]:
        image = nib.load(finished / "result" / "a" / "synthesized" / f"{scan_id}.nii.gz")
        assert image.shape == SHAPE
        np.testing.assert_allclose(image.affine, AFFINE)
        voxels = image.get_fdata()
        crop = np.zeros(SHAPE, bool)
        crop[3:19, 2:26, 3:19] = True
        assert (voxels[~crop] == 0).all()
        assert 0 <= voxels.min() < voxels.max() <= 1
        pet = nib.load(finished / "data" / "whole_Abeta" / f"{scan_id}.nii").get_fdata()
        psnr = -10 * np.log10(((voxels - pet)[crop] ** 2).mean())
        found = test.query("method == 'il_cldm' and ID == @scan_id")["PSNR"].item()
        assert found == pytest.approx(psnr, rel=1e-4)


def test_mean_pet_is_the_mean_of_the_training_list(finished):
    def crop_of(scan_id: str) -> np.ndarray:
        return nib.load(finished / "data" / "whole_Abeta" / f"{scan_id}.nii").get_fdata()[3:19, 2:26, 3:19]
    mean = np.mean([crop_of(scan_id) for scan_id in LISTS["train"]], axis=0)
    test = pd.read_csv(finished / "result" / "a" / "test.csv")
    found = test.query("method == 'mean_pet' and ID == 's09'")["MAE"].item()
    assert found == pytest.approx(np.abs(mean - crop_of("s09")).mean(), rel=1e-5)


def test_the_same_seed_gives_the_same_csvs_and_another_does_not(project):
    assert run(exp="b") == 0
    assert same_csvs(project / "result" / "a", project / "result" / "b")
    assert run("--stages", "aae", exp="c", seed=1, aae_epochs=1) == 0
    for name, column in (("loss_curve.csv", "rec"), ("validation.csv", "PSNR")):
        one, other = (pd.read_csv(project / "result" / exp / name) for exp in "ac")
        first = "stage == 'aae' and epoch == 1"
        assert one.query(first)[column].item() != other.query(first)[column].item()


def test_reading_in_worker_processes_changes_nothing(project):
    assert run("--stages", "aae", exp="b", num_workers=2) == 0
    paths = [project / "result" / exp / "CHECKPOINT_AAE_last.pth.tar" for exp in "ab"]
    one, other = (load_checkpoint(path)["state"]["aae"] for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_in_pieces_equals_an_uncut_one_bit_for_bit(project):
    assert run("--stages", "aae", exp="b", aae_epochs=1) == 0
    assert run("--stages", "aae", "encode", "ldm", exp="b", ldm_epochs=1) == 0
    assert run(exp="b") == 0
    assert same_csvs(project / "result" / "a", project / "result" / "b")
    for file in CHECKPOINTS:
        one, other = (project / "result" / exp / f"{file}.pth.tar" for exp in "ab")
        assert same_states(one, other), file


def test_a_finished_run_trains_nothing_again(project, capsys):
    times = {path: path.stat().st_mtime_ns for path in (project / "result" / "a").glob("*_last.pth.tar")}
    assert run(exp="a") == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    out = capsys.readouterr().out
    assert out.count("6 subjects, 2 a step, 2 of 2 epochs done") == 2
    assert "0 of 8 latents are to be made" in out


def test_recomputed_activations_and_the_place_of_the_cache_change_nothing(project, monkeypatch, capsys):
    recomputed = []

    def count(*arguments, **options):
        recomputed.append(1)
        return checkpoint(*arguments, **options)
    monkeypatch.setattr(model, "checkpoint", count)
    assert run(exp="b", recompute=True, cache="file") == 0
    assert len(recomputed) > 50
    assert "kept in a file" in capsys.readouterr().out
    assert same_csvs(project / "result" / "a", project / "result" / "b")


def test_a_latent_that_was_lost_comes_back_the_same(project):
    path = next((project / "data" / "latent_Abeta").rglob("s02.nii.gz"))
    before = nib.load(path).get_fdata()
    path.unlink()
    assert run("--stages", "encode", exp="a") == 0
    np.testing.assert_array_equal(nib.load(path).get_fdata(), before)


def test_the_survey_is_made_once_and_again_only_where_it_is_lost(project, monkeypatch):
    before, made, make = project / "before", [], experiment.make_survey
    shutil.copytree(project / "result" / "a", before)
    [path] = (project / "data" / "latent_Abeta").glob("survey-*.npz")
    content = path.read_bytes()

    def count(*lists):
        made.append(1)
        return make(*lists)
    monkeypatch.setattr(experiment, "make_survey", count)
    assert run(exp="a", ldm_epochs=2) == 0                 # training and test find it
    assert not made and path.read_bytes() == content
    for n, spoil in enumerate((path.unlink, lambda: path.write_bytes(content[:-200])), start=1):
        spoil()
        assert run("--stages", "test", exp="a") == 0       # a test alone makes it too
        assert len(made) == n and path.read_bytes() == content
        assert same_csvs(project / "result" / "a", before)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_a_synthetic_pet_does_not_depend_on_the_batch_that_it_was_sampled_in(project, no_status, batch):
    before = synthesized(project / "result" / "a")
    assert run("--stages", "test", exp="a", sampling_batch=batch) == 0
    for scan_id, volume in synthesized(project / "result" / "a").items():
        np.testing.assert_allclose(volume, before[scan_id], rtol=0, atol=1e-5)


def test_bfloat16_goes_through_every_stage(project, capsys):
    assert run(exp="b", precision="bf16", **ONE_EPOCH) == 0
    log = capsys.readouterr().out
    assert "networks compute in bf16 on cpu" in log
    assert log.count("waiting for data") == 2              # a line an epoch
    saved = json.loads((project / "result" / "b" / "scores.json").read_text())
    assert saved["settings"]["precision"] == "bf16"
    tables = [pd.read_csv(project / "result" / exp / "validation.csv") for exp in "ba"]
    one, other = (table.query("stage == 'aae' and epoch == 1")["PSNR"].item() for table in tables)
    assert one != other and one == pytest.approx(other, abs=1)


def test_the_std_of_an_earlier_version_does_not_stay_beside_new_pets(project, no_status):
    (project / "result" / "a" / "std").mkdir()
    (project / "result" / "a" / "std" / "s09.nii.gz").touch()
    assert run("--stages", "test", exp="a") == 0
    assert not (project / "result" / "a" / "std").exists()


def test_every_stage_works_as_published(project):
    assert run("--preset", "published", exp="p", **ONE_EPOCH) == 0
    test = pd.read_csv(project / "result" / "p" / "test.csv")
    assert set(test["method"]) == {"aae", "il_cldm", "mean_pet"}
    metadata = load_checkpoint(project / "result" / "p" / "CHECKPOINT_Unet.pth.tar")["metadata"]
    assert (metadata["latent_mean"], metadata["latent_std"], metadata["label_predictor"]) == (0.0, 1.0, None)


def test_storage_orientation_changes_no_score(project):
    for folder in ("whole_MRI", "whole_Abeta"):
        for path in (project / "data" / folder).iterdir():
            reorient(path, "LAS")
    assert run(exp="b") == 0
    for name in ("test.csv", "validation.csv"):
        one, other = (pd.read_csv(project / "result" / exp / name) for exp in "ab")
        pd.testing.assert_frame_equal(one, other)
    pet = nib.load(project / "result" / "b" / "synthesized" / "s09.nii.gz")
    assert nib.aff2axcodes(pet.affine) == ("L", "A", "S")


def test_with_both_conditions_ablated_nothing_of_the_subject_enters(project, no_status):
    ablated = {"conditioning": "none", "label_in_training": "none"} | ONE_EPOCH
    assert run(exp="i", **ablated) == 0
    unet = load_checkpoint(project / "result" / "i" / "CHECKPOINT_Unet.pth.tar")
    assert unet["metadata"]["label_predictor"] is None and not unet["metadata"]["soft_labels"].any()
    assert not any(name.startswith("extractor") for name in unet["state"]["ema"])
    before = synthesized(project / "result" / "i")
    path = project / "data" / "whole_MRI" / "s09.nii.gz"
    voxels = nib.load(path).get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels[::-1] * np.float32(0.5), AFFINE), path)
    assert run("--stages", "test", exp="i", **ablated) == 0
    after = synthesized(project / "result" / "i")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def synthesized(folder) -> dict[str, np.ndarray]:
    """File name -> voxels of every synthetic PET of an experiment."""
    paths = sorted((folder / "synthesized").glob("*.nii.gz"))
    return {path.name: nib.load(path).get_fdata() for path in paths}


def swap_test_labels(path: Path) -> None:
    """Give each subject of the test list the other label."""
    path.write_text(path.read_text().replace("s09,0", "s09,1").replace("s10,1", "s10,0"))


def test_a_synthesis_depends_neither_on_the_other_subjects_nor_on_any_test_label(project, no_status):
    before = synthesized(project / "result" / "a")
    info = project / "data_info"
    (info / "test.txt").write_text("s10\ns09\n")
    swap_test_labels(info / "data_info.csv")
    assert run("--stages", "test", exp="a") == 0           # a new test list needs no new training
    after = synthesized(project / "result" / "a")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_sampling_settings_may_change_after_training(project, no_status):
    before = synthesized(project / "result" / "a")
    assert run("--stages", "test", exp="a", sampler="ddpm") == 0
    after = synthesized(project / "result" / "a")
    assert not np.array_equal(before["s09.nii.gz"], after["s09.nii.gz"])
    assert run("--stages", "test", exp="a", label_at_sampling="none") == 0
    assert not np.array_equal(before["s09.nii.gz"], synthesized(project / "result" / "a")["s09.nii.gz"])


def test_a_new_autoencoder_gets_latents_of_its_own(project):
    assert run("--stages", "aae", "encode", exp="b", lambda_rec=10.0, aae_epochs=1) == 0
    assert len([p for p in (project / "data" / "latent_Abeta").iterdir() if p.is_dir()]) == 2


def masks(root) -> dict[str, str]:
    """Settings of two region masks, one of them in another orientation; amyloid is at the front."""
    write_volume(root / "cortex.nii.gz", np.pad(np.ones((6, 6, 6), np.uint8), ((8, 8), (16, 5), (8, 8))))
    write_volume(root / "cerebellum.nii.gz", np.pad(np.ones((6, 6, 6), np.uint8), ((8, 8), (5, 16), (8, 8))))
    reorient(root / "cerebellum.nii.gz", "LPS")
    return {"regions": "auto", "cortex_mask": "cortex.nii.gz", "reference_mask": "cerebellum.nii.gz"}


TRUE_LABEL = {"label_in_training": "true"}                 # of `finished`, which knows no regions


def test_uptake_is_measured_in_the_masks_that_are_given(project):
    region = np.pad(np.full((4, 4, 4), 5, np.uint8), ((9, 9), (17, 6), (9, 9)))
    write_volume(project / "labels.nii.gz", region)
    (project / "labels.csv").write_text("index,name\n5,precuneus\n")
    further = {"atlas": ("labels.nii.gz", "labels.csv"), "centiloid": (188.22, -189.16)}
    settings = masks(project) | TRUE_LABEL | further | {"exp": "a"}
    assert run("--stages", "test", "tables", **settings) == 0
    uptake = pd.read_csv(project / "result" / "a" / "uptake.csv")
    assert uptake.columns.tolist() == ["method", "ID", "label", "SUVR", "CL", "SUVR_precuneus"]
    pet = nib.load(project / "data" / "whole_Abeta" / "s10.nii").get_fdata()
    level = pet[8:14, 5:11, 8:14].mean()
    found = uptake.query("method == 'real' and ID == 's10'").iloc[0]
    assert found["SUVR"] == pytest.approx(real_suvr(project, "s10"), rel=1e-5)
    assert found["CL"] == pytest.approx(188.22 * found["SUVR"] - 189.16)
    assert found["SUVR_precuneus"] == pytest.approx(pet[9:13, 17:21, 9:13].mean() / level, rel=1e-5)
    synthetic = nib.load(project / "result" / "a" / "synthesized" / "s10.nii.gz").get_fdata()
    found = uptake.query("method == 'il_cldm' and ID == 's10'").iloc[0]
    expected = synthetic[8:14, 16:22, 8:14].mean() / synthetic[8:14, 5:11, 8:14].mean()
    assert found["SUVR"] == pytest.approx(expected, rel=1e-5)
    table = pd.read_csv(project / "result" / "tables" / "quantification.csv")
    assert set(table["measure"]) == {"SUVR", "CL", "SUVR_precuneus"}
    assert run("--stages", "test", exp="a") == 0  # without masks again: nothing of the earlier uptake stays
    for name in ("uptake.csv", "uncertainty.csv", "calibration.npz"):
        assert not (project / "result" / "a" / name).exists()


def test_without_masks_the_log_says_how_to_get_uptake(finished):
    log = (finished / "result" / "a" / "run.log").read_text()
    assert log.count("no SUVR: give --cortex_mask FILE and --reference_mask FILE") == 1


def test_problems_of_all_masks_are_named_at_once_before_anything_is_written(root, capsys):
    (root / "table.csv").write_text("index,name\n")
    (root / "bad.nii.gz").write_bytes(b"no NIfTI")
    message = refused(capsys, regions="auto", brain_mask="bad.nii.gz", cortex_mask="nowhere.nii",
                      reference_mask="bad.nii.gz", atlas=("nowhere.nii", "table.csv"))
    for part in ("bad.nii.gz: cannot be read as NIfTI", "cortex_mask nowhere.nii: not there",
                 "atlas image nowhere.nii: not there"):
        assert part in message


@pytest.mark.parametrize(("settings", "expected"), [
    ({"centiloid": (188.22, -189.16)}, "need the regions of the SUVR: give cortex_mask and reference_mask"),
    ({"regions": "auto", "cortex_mask": "cortex.nii.gz", "reference_mask": "cortex.nii.gz"},
     "are the same region, so every SUVR would be 1"),
    ({"regions": "auto", "cortex_mask": "cortex.nii.gz"}, "cortex_mask and reference_mask go together"),
    ({"centiloid": (0.0, 5.0)}, "centiloid (0.0, 5.0) needs a slope above 0 as its first number")])
def test_settings_of_the_uptake_that_mean_nothing_are_refused(root, capsys, settings, expected):
    masks(root)
    assert expected in refused(capsys, **settings)


def test_a_report_of_another_test_list_is_refused_and_so_is_a_missing_volume(project, capsys):
    path = project / "result" / "a" / "synthesized" / "s09.nii.gz"
    path.rename(project / "moved.nii.gz")
    assert run("--stages", "report", exp="a") == 2
    assert "synthesized has no synthetic PET of s09; run --stages test" in capsys.readouterr().err
    (project / "data_info" / "test.txt").write_text("s10\n")
    assert "its scores are those of another test list" in refused(capsys, "--stages", "report", exp="a")


def test_a_lost_loss_curve_comes_back_without_training(project, capsys):
    path = project / "result" / "a" / "loss_curve.csv"
    before = path.read_bytes()
    for spoil in (path.unlink, lambda: path.write_text("stage,epoch\naae,")):
        spoil()
        assert run("--stages", "test", exp="a") == 2
        assert "--stages aae ldm writes it again and trains nothing" in capsys.readouterr().err
        assert run("--stages", "aae", "ldm", exp="a") == 0
        assert path.read_bytes() == before


def test_scores_name_the_epochs_that_were_trained_and_end_with_further_training(project, capsys):
    assert run("--stages", "test", exp="a", ldm_epochs=7) == 0
    assert "ldm_epochs is 7, but 2 are trained" in capsys.readouterr().out
    assert json.loads((project / "result" / "a" / "scores.json").read_text())["settings"]["ldm_epochs"] == 2
    assert run("--stages", "ldm", exp="a", ldm_epochs=3) == 0
    assert not (project / "result" / "a" / "scores.json").exists()


@pytest.mark.parametrize(("age", "sex", "expected"), [
    ("70", "F", ""), ("-4", "F", "no age from 1 to 120 years (s09)"), ("abc", "F", "(s09)"),
    ("70", "", "(s09)"), ("1e308", "M", "(s09)")])
def test_age_and_sex_are_read_if_all_are_known(project, capsys, age, sex, expected):
    path = project / "data_info" / "data_info.csv"
    rows = ["ID,label,Age,SEX"]
    for i, line in enumerate(path.read_text().splitlines()[1:]):
        rows.append(f"{line},{age},{sex}" if line.startswith("s09") else f"{line},{60 + i},{'mF'[i % 2]}")
    path.write_text("\n".join(rows))
    assert run("--stages", "test", exp="a") == 0
    found = "age_sex" in set(pd.read_csv(project / "result" / "a" / "predictions.csv")["classifier"])
    assert found == (not expected)
    assert expected in capsys.readouterr().out


def test_three_labels_are_scored_without_a_status(project):
    path = project / "data_info" / "data_info.csv"
    rows = path.read_text()
    for old, new in (("s03,0", "s03,2"), ("s04,1", "s04,2"), ("s10,1", "s10,2")):
        rows = rows.replace(old, new)
    path.write_text(rows)
    assert run("--stages", *STAGES, exp="three", num_classes=3, **ONE_EPOCH) == 0
    assert not (project / "result" / "three" / "predictions.csv").exists()
    assert "label 2" in (project / "result" / "three" / "report.html").read_text()


def test_a_pet_without_uptake_in_the_reference_is_named(project, capsys):
    settings = masks(project) | TRUE_LABEL
    path = project / "data" / "whole_Abeta" / "s09.nii"
    image = nib.load(path, mmap=False)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[8:14, 5:11, 8:14] = 0
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    assert run("--stages", "test", exp="a", **settings) == 2
    assert "reference_mask cerebellum.nii.gz: no uptake in it in the PET of s09" in capsys.readouterr().err


def test_labels_of_the_test_list_change_no_score(project):
    settings = masks(project) | TRUE_LABEL | {"exp": "a"}
    assert run("--stages", "test", **settings) == 0
    folder, names = project / "result" / "a", ("test", "uptake", "predictions")
    one = {name: pd.read_csv(folder / f"{name}.csv") for name in names}
    swap_test_labels(project / "data_info" / "data_info.csv")
    assert run("--stages", "test", **settings) == 0
    for name, table in one.items():
        other = pd.read_csv(folder / f"{name}.csv")
        assert (other["label"] != table["label"]).all()
        pd.testing.assert_frame_equal(other.drop(columns="label"), table.drop(columns="label"))


def test_tables_come_back_byte_for_byte_without_the_cohort(project):
    folder = project / "result" / "tables"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    shutil.rmtree(project / "data")
    assert run("--stages", "tables") == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_spoilt_results_of_another_experiment_are_named_and_left_out(project, capsys):
    shutil.copytree(project / "result" / "a", project / "result" / "b")
    path = project / "result" / "b" / "test.csv"
    path.write_text(path.read_text().replace("s09", "s08"))
    assert "b/test.csv: not as it was written" in refused(capsys, "--stages", "tables", exp="b")
    assert run("--stages", "tables", exp="a") == 0
    assert "b is left out: its results cannot be used: result/b/test.csv: not as" in capsys.readouterr().out
    assert run("--stages", "test", "tables", exp="b") == 0  # its own test stage makes them again


def test_tables_and_report_without_scores_say_what_makes_them(root, capsys):
    message = refused(capsys, "--stages", "tables")
    assert "holds no experiment with scores; --stages test writes them" in message
    assert "scores.json: not there" in refused(capsys, "--stages", "report", exp="z")


def refused(capsys, *argv: str, code: int = 2, **settings) -> str:
    """The message of a run that must end with this code, and no traceback."""
    before = written()
    assert run(*argv, **settings) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert written() == before
    return err


def written() -> dict[Path, int]:
    """Every file of the project, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_ends_the_run_before_anything_is_written(root, capsys, case):
    spoil, expected = BAD[case]
    spoil(root)
    message = refused(capsys)
    for part in expected:
        assert part in message


@pytest.mark.parametrize(("argv", "expected"), [
    (["--epochs", "3"], "unknown setting --epochs"),
    (["--volume_size", "17", "24", "16"], "must be divisible by 2")])
def test_wrong_settings_end_the_run_before_anything_is_written(root, capsys, argv, expected):
    assert expected in refused(capsys, *argv)


def test_no_data_at_all_names_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "python main.py --preset demo" in refused(capsys)


def test_stages_without_what_they_build_on_say_which_to_run(root, capsys):
    message = refused(capsys, "--stages", "encode", exp="z")
    assert "CHECKPOINT_AAE.pth.tar is not there; run --stages aae first" in message
    assert run("--stages", "aae", exp="z") == 0
    capsys.readouterr()
    message = refused(capsys, "--stages", "test", exp="z")
    assert "CHECKPOINT_Unet.pth.tar is not there; run --stages encode ldm first" in message


@pytest.mark.parametrize(("settings", "expected"), [
    ({"lambda_rec": 1.0}, "lambda_rec: 100.0 -> 1.0"), ({"seed": 5}, "seed: 0 -> 5"),
    ({"ldm_lr": 0.5}, "ldm_lr: 0.001 -> 0.5"),
    # of the validations that chose the best epoch
    ({"label_at_sampling": "none"}, 'label_at_sampling: "mixed" -> "none"')])
def test_a_checkpoint_of_other_settings_is_refused(project, capsys, settings, expected):
    assert expected in refused(capsys, exp="a", **settings)


def test_changed_voxels_of_a_training_scan_are_refused_and_another_storage_is_not(project, capsys):
    path = project / "data" / "whole_Abeta" / "s01.nii"
    image = nib.load(path, mmap=False)
    reorient(path, "LAS")
    assert run(exp="a") == 0
    capsys.readouterr()
    nib.save(nib.Nifti1Image(0.9 * image.get_fdata(dtype=np.float32), image.affine), path)
    assert "training and validation list: " in refused(capsys, exp="a")


def test_more_epochs_of_stage_1_after_a_trained_stage_2_are_refused(project, capsys):
    assert "aae_epochs: 2 -> 3" in refused(capsys, exp="a", aae_epochs=3)


def test_a_changed_training_list_is_refused(project, capsys):
    path = project / "data_info" / "train.txt"
    path.write_text(path.read_text().replace("s06\n", ""))
    assert "training and validation list: " in refused(capsys, exp="a")


def test_latents_that_are_missing_name_the_stage_that_makes_them(project, capsys):
    next((project / "data" / "latent_Abeta").rglob("s02.nii.gz")).unlink()
    assert run("--stages", "ldm", exp="a", ldm_epochs=3) == 2
    assert "(s02 ...) made from the present PET files; run --stages encode" in capsys.readouterr().err


class Bomb:
    """Something whose unpickling makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_is_refused(project, capsys):
    saved = {"settings": {}, "metadata": {}, "epoch": 1, "state": Bomb()}
    torch.save(saved, "result/a/CHECKPOINT_AAE.pth.tar")
    assert "never code" in refused(capsys, exp="a")
    assert not (project / "exploded").exists()


def test_a_diverging_training_stops_with_code_3_and_keeps_the_last_checkpoint(project, monkeypatch, capsys):
    assert run("--stages", "aae", exp="b", aae_epochs=1) == 0
    before = (project / "result" / "b" / "CHECKPOINT_AAE_last.pth.tar").read_bytes()
    capsys.readouterr()
    step = main.aae_step

    def diverge(aae, *args):
        aae.encoder[0].bias.data[:] = float("nan")
        return step(aae, *args)
    monkeypatch.setattr(main, "aae_step", diverge)
    assert run("--stages", "aae", exp="b") == 3
    assert "aae epoch 2, step 1: loss {'rec': nan" in capsys.readouterr().err
    assert (project / "result" / "b" / "CHECKPOINT_AAE_last.pth.tar").read_bytes() == before


def test_the_phantom_goes_through_every_stage_beside_its_oracle(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    phantom = {"phantom_subjects": (4, 2, 4), "phantom_voxel": 8, "regions": "auto", "data_dir": "data/ph"}
    settings = {"exp": "ph"} | phantom | ONE_EPOCH
    assert run(**settings) == 0
    assert "digital phantom, not patient data" in capsys.readouterr().out
    test, summary = (pd.read_csv(tmp_path / "result" / "ph" / name) for name in ("test.csv", "summary.csv"))
    rows = test.groupby("method", sort=False).size()
    assert rows.to_dict() == {"aae": 4, "il_cldm": 4, "mean_pet": 4, "oracle": 4}
    assert set(summary["data"]) == {"digital phantom, not patient data"}
    means = test.groupby("method")["MAE_brain"].mean()
    assert means["oracle"] < means["mean_pet"]
    assert "phantom_link: 0.6 -> 0.1" in refused(capsys, **settings, phantom_link=0.1)


@pytest.mark.parametrize("presets", [[], ["demo"], ["benchmark"], ["published"], ["demo", "published"]])
def test_presets_describe_networks_that_fit(presets):
    cfg = parse(Config, ["--preset", *presets] if presets else [], "main.py", "", PRESETS)
    assert isinstance(cfg, Config)
    meta = torch.device("meta")
    with meta:
        aae, unet = build_aae(cfg, meta), build_unet(cfg, meta)
        x = torch.rand(1, 1, *cfg.volume_size)
        z_0 = aae.encoder(x)
        assert z_0.shape == (1, cfg.latent_channels, *cfg.latent_size)
        assert aae.decoder(z_0).shape == x.shape
        label = torch.rand(1, cfg.num_classes)
        assert unet(z_0, x, torch.ones(1, dtype=torch.long), label).shape == z_0.shape


# ---------------------------------------------------------------- people of the test list

def add_columns(project) -> None:
    """Give data_info.csv an age, a site and a score for everybody."""
    path = project / "data_info" / "data_info.csv"
    table = pd.read_csv(path, dtype=str)
    numbers = range(len(table))
    table.assign(age=[60 + i for i in numbers], sex="F", Site=[f"{i % 2:03d}" for i in numbers],
                 MMSE=[20 + i for i in numbers]).to_csv(path, index=False)


def test_a_wrong_column_stops_a_run_before_training_without_a_traceback(root, capsys):
    add_columns(root)
    assert run("--subgroups", "mmse", "aeg") == 2
    shown = capsys.readouterr()
    assert "has no column 'aeg', which the setting subgroups names; did you mean age?" in shown.err
    assert "Traceback" not in shown.err + shown.out
    assert not list((root / "result").glob("*/CHECKPOINT*"))


def test_the_test_stage_writes_people_and_changes_no_other_file(project, capsys):
    settings = masks(project) | {"label_in_training": "true", "exp": "a"}
    assert run("--stages", "test", **settings) == 0
    folder = project / "result" / "a"
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv") if path.name != "cost.csv"}
    assert pd.read_csv(folder / "people.csv").columns.tolist() == ["ID", "label"]
    assert (
        "with 1 positive and 1 negative test subjects the 95 % interval of an AUC" in capsys.readouterr().out
    )
    add_columns(project)
    assert run("--stages", "test", "tables", "--subgroups", "mmse", **settings) == 0
    after = {path.name: path.read_bytes() for path in folder.glob("*.csv") if path.name != "cost.csv"}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"people.csv", "predictions.csv"}    # the second has the new classifier of age and sex
    people = load_run(folder).people
    assert people.columns.tolist() == ["ID", "label", "age", "sex", "site", "MMSE"]
    assert people.loc[0, "site"] in ("000", "001")         # not read as a number
    assert json.loads((folder / "config.json").read_text())["settings"]["subgroups"] == ["mmse"]
    shown = capsys.readouterr().out
    assert "continues under settings" not in shown
    assert "no grey zone of 10 to 30 CL is left out for a: no Centiloids" in shown
    tables = project / "result" / "tables"
    written = {path.name: path.read_bytes() for path in tables.iterdir()}
    assert {"subgroups.csv", "subgroups.md", "subgroups.tex", "calibration.csv"} <= written.keys()
    assert run("--stages", "tables") == 0
    assert {path.name: path.read_bytes() for path in tables.iterdir()} == written
    assert pd.read_csv(tables / "subgroups.csv")["n"].max() == 2
