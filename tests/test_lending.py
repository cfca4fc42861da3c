"""Experiments that use the trained stages of another one, and the levers of stage 2 through every stage."""
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from test_main import finished, project, run, same_csvs, synthesized  # noqa: F401  two of them are fixtures

from config import Config
from runtime.checkpoints import load_checkpoint


def test_a_lent_stage_1_is_neither_trained_nor_encoded_again(project, capsys):  # noqa: F811
    latents = {path: path.stat().st_mtime_ns for path in (project / "data" / "latent_Abeta").rglob("*.pt*")}
    aae = (project / "result" / "a" / "CHECKPOINT_AAE.pth.tar").read_bytes()
    assert run(exp="b", aae_from="a") == 0
    assert "not trained here: result/a/CHECKPOINT_AAE.pth.tar is used" in capsys.readouterr().out
    assert not list((project / "result" / "b").glob("CHECKPOINT_AAE*"))
    assert (project / "result" / "a" / "CHECKPOINT_AAE.pth.tar").read_bytes() == aae
    assert {path: path.stat().st_mtime_ns for path in (project / "data" / "latent_Abeta").rglob("*.pt*")} == latents
    for name in ("test.csv", "predictions.csv"):           # the same seed and settings: the same networks
        assert (project / "result" / "a" / name).read_bytes() == (project / "result" / "b" / name).read_bytes()
    assert run("--stages", "report", exp="b", aae_from="a") == 0
    assert (project / "result" / "b" / "report.html").is_file()


def test_a_lent_stage_2_is_sampled_otherwise(project):  # noqa: F811
    assert run("--stages", "check", "ldm", "test", exp="same", ldm_from="a") == 0
    assert not list((project / "result" / "same").glob("CHECKPOINT*"))
    assert (project / "result" / "a" / "test.csv").read_bytes() == (project / "result" / "same" / "test.csv").read_bytes()
    assert run("--stages", "test", "report", exp="other", ldm_from="a", label_at_sampling="weighted") == 0
    one, other = (synthesized(project / "result" / name) for name in ("same", "other"))
    assert not np.array_equal(one["s09.nii.gz"], other["s09.nii.gz"])


@pytest.mark.parametrize(("settings", "message"), [
    ({"aae_from": "nowhere"}, "result/nowhere/CHECKPOINT_AAE.pth.tar is not there; train --exp nowhere first"),
    ({"ldm_from": "nowhere"}, "result/nowhere/CHECKPOINT_AAE.pth.tar is not there"),
    ({"aae_from": "a", "aae_lr": 1e-4}, "aae_lr: 0.001 -> 0.0001"),
    ({"ldm_from": "a", "prediction": "x0"}, 'prediction: "v" -> "x0"'),
])
def test_a_stage_that_is_not_there_or_of_other_settings_is_refused_before_anything_is_written(project, capsys, settings, message):  # noqa: F811
    assert run(exp="b", **settings) == 2
    assert message in capsys.readouterr().err
    assert not (project / "result" / "b" / "config.json").exists()


def test_seeds_that_lend_to_their_own_experiments_are_one_row(project):  # noqa: F811
    for seed in (1, 2):
        assert run("--stages", "check", "aae", "encode", "ldm", "test", exp=f"d{seed}", seed=seed) == 0
        assert run("--stages", "check", "ldm", "test", exp=f"x{seed}", seed=seed, aae_from=f"d{seed}", prediction="x0") == 0
    assert run("--stages", "tables", exp="a") == 0
    table = pd.read_csv(project / "result" / "tables" / "image_quality.csv")
    x = table[(table["experiment"] == "x") & (table["method"] == "il_cldm")]
    assert len(x) > 0 and (x["seeds"] == 2).all()


def test_a_denoiser_on_a_lent_stage_1_is_lent_on_with_it(project, capsys):  # noqa: F811
    assert run("--stages", "ldm", exp="b", aae_from="a", prediction="x0") == 0
    assert run("--stages", "test", exp="c", ldm_from="b", aae_from="a", prediction="x0") == 0
    assert not list((project / "result" / "c").glob("*.tar"))
    assert run("--stages", "test", exp="d", ldm_from="b", prediction="x0") == 2
    assert "result/b/CHECKPOINT_AAE.pth.tar is not there" in capsys.readouterr().err


# every lever at once, as far as they go together: two runs that cover all of them
LEVERS = [
    {"image_loss": 0.0, "prediction": "x0", "zero_terminal_snr": "true", "min_snr": 5.0, "time_shift": 3.0, "conditioning": "multiscale",
     "label_in_training": "predicted", "label_at_sampling": "split", "ldm_lr_decay": "true", "aae_lr_decay": "true", "latent_channels": 2,
     "latent_mean": "voxel", "mri_deviations": "true"},
    {"image_loss": 1.0, "cortex_loss": 1.0, "image_loss_over_time": "signal", "label_predictor": "network", "shuffle_labels": "true",
     "label_at_sampling": "weighted", "guidance": 2.0, "label_dropout": 0.1, "shared_noise": "true", "ldm_accumulation": 2,
     "save_std": "true"},
    {"label_in_training": "suvr", "label_at_sampling": "matched", "label_predictor": "ridge", "cortex_loss": 0.5, "latent_mean": "voxel",
     "mri_deviations": "true"},
]


@pytest.mark.parametrize("levers", LEVERS)
def test_levers_go_through_every_stage_and_a_run_in_pieces_equals_an_uncut_one(project, levers):  # noqa: F811
    masks = {}
    if "cortex_loss" in levers:
        for number, name in enumerate(("reference_mask", "cortex_mask")):  # amyloid is at the front
            mri = nib.load(project / "data" / "whole_MRI" / "s01.nii.gz")
            mask = np.zeros(mri.shape, np.uint8)
            mask[6:14, 8 + 6 * number:13 + 6 * number, 6:14] = 1
            nib.save(nib.Nifti1Image(mask, mri.affine), project / f"{name}.nii.gz")
            masks[name] = str(project / f"{name}.nii.gz")
    settings = levers | masks
    assert run(exp="whole", **settings) == 0
    assert run("--stages", "check", "aae", "encode", "ldm", exp="pieces", **settings | {"ldm_epochs": 1}) == 0
    assert run(exp="pieces", **settings) == 0
    if "ldm_lr_decay" not in levers:                       # whose rates follow from the number of epochs that was asked for
        assert same_csvs(project / "result" / "whole", project / "result" / "pieces")
    losses = pd.read_csv(project / "result" / "whole" / "loss_curve.csv").query("stage == 'ldm'")
    assert losses["mse"].notna().all() and ("image" in losses) == (levers.get("image_loss") != 0)


def test_cross_fitted_labels_are_kept_with_the_weights_and_are_no_certainties(project):  # noqa: F811
    assert run("--stages", "ldm", exp="a2", aae_from="a", label_in_training="predicted") == 0
    weights = load_checkpoint(project / "result" / "a2" / "CHECKPOINT_Unet.pth.tar")["metadata"]["label_weights"]
    assert weights.shape == (8, 2)                         # training list, then validation list
    assert ((weights[:6] > 0) & (weights[:6] < 1)).all() and np.allclose(weights.sum(1), 1, atol=1e-6)
    assert weights[6:].argmax(1).tolist() == [0, 1] and set(weights[6:].flatten().tolist()) == {0.0, 1.0}
    weights = load_checkpoint(project / "result" / "a" / "CHECKPOINT_Unet.pth.tar")["metadata"]["label_weights"]
    assert weights.argmax(1).tolist() == [0, 1, 0, 1, 0, 1, 0, 1] and set(weights.flatten().tolist()) == {0.0, 1.0}


def test_a_synthesis_with_shared_noise_is_the_same_for_the_same_mri(project):  # noqa: F811
    for name in ("whole_MRI",):
        shutil.copyfile(project / "data" / name / "s09.nii.gz", project / "data" / name / "s10.nii.gz")
    assert run("--stages", "test", exp="own", ldm_from="a") == 0
    assert run("--stages", "test", exp="shared", ldm_from="a", shared_noise="true") == 0
    own, shared = (synthesized(project / "result" / name) for name in ("own", "shared"))
    assert np.array_equal(shared["s09.nii.gz"], shared["s10.nii.gz"])
    assert not np.array_equal(own["s09.nii.gz"], own["s10.nii.gz"])


def test_weighted_synthesis_lies_between_those_of_the_labels(project):  # noqa: F811
    from experiment.networks import Networks, torch
    cfg = Config(**TINY | {"exp": "a", "label_at_sampling": "weighted", "samples_per_scan": 4})
    networks = Networks(cfg, torch.device("cpu"))
    synthesizer, classifier, _ = networks.best_synthesizer()
    batch = {"id": ["s09"], "mri": torch.rand(1, 1, *cfg.volume_size)}
    drawn = networks.draw(synthesizer, classifier, "ddim", 2, range(4))(batch)
    p = classifier.probabilities(batch["mri"])[0]
    z_0 = drawn.z_0[0]                                     # labels 0, 1, 0, 1 from two noises
    torch.testing.assert_close(drawn.mean()[0], p[0] * (z_0[0] + z_0[2]) / 2 + p[1] * (z_0[1] + z_0[3]) / 2)
    assert not torch.equal(z_0[0], z_0[1]) and not torch.equal(z_0[0], z_0[2])
