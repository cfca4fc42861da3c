"""Experiments that use trained stages of another one, and the settings of stage 2 through every stage."""
import numpy as np
import pandas as pd
import pytest
from test_main import (  # noqa: F401  the fixtures are used by their names
    ONE_EPOCH,
    finished,
    masks,
    no_pictures,
    project,
    real_suvr,
    run,
    same_csvs,
    synthesized,
)

from runtime.checkpoints import load_checkpoint


def test_a_stage_1_of_another_experiment_is_neither_trained_nor_encoded_again(project, capsys):  # noqa: F811
    aae = project / "result" / "a" / "CHECKPOINT_AAE.pth.tar"
    used = [aae, *(project / "data" / "latent_Abeta").rglob("*.nii.gz")]
    assert len(used) == 1 + 8
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in used]
    assert run(exp="b", aae_from="a") == 0
    assert "not trained here: result/a/CHECKPOINT_AAE.pth.tar is used" in capsys.readouterr().out
    assert not list((project / "result" / "b").glob("CHECKPOINT_AAE*"))
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in used] == before
    assert len(list((project / "data" / "latent_Abeta").rglob("*.nii.gz"))) == 8
    for name in ("test.csv", "predictions.csv"):           # the same seed and settings: the same networks
        one, other = (project / "result" / exp / name for exp in "ab")
        assert one.read_bytes() == other.read_bytes()
    assert run("--stages", "report", exp="b", aae_from="a") == 0
    assert (project / "result" / "b" / "report.html").is_file()


def test_a_stage_2_of_another_experiment_is_sampled_otherwise(project):  # noqa: F811
    assert run("--stages", "check", "ldm", "test", exp="same", ldm_from="a") == 0
    assert not list((project / "result" / "same").glob("CHECKPOINT*"))
    one, other = (project / "result" / exp / "test.csv" for exp in ("a", "same"))
    assert one.read_bytes() == other.read_bytes()
    assert run("--stages", "test", "report", exp="other", ldm_from="a", label_at_sampling="none") == 0
    one, other = (synthesized(project / "result" / exp) for exp in ("same", "other"))
    assert not np.array_equal(one["s09.nii.gz"], other["s09.nii.gz"])


@pytest.mark.parametrize(("settings", "message"), [
    ({"aae_from": "nowhere"},
     "result/nowhere/CHECKPOINT_AAE.pth.tar is not there; train --exp nowhere first"),
    ({"ldm_from": "nowhere"}, "result/nowhere/CHECKPOINT_AAE.pth.tar is not there"),
    ({"aae_from": "a", "aae_lr": 1e-4}, "aae_lr: 0.001 -> 0.0001"),
    ({"ldm_from": "a", "prediction": "eps"}, 'prediction: "v" -> "eps"'),
])
def test_a_stage_that_does_not_fit_is_refused_first(project, capsys, settings, message):  # noqa: F811
    assert run(exp="b", **settings) == 2
    assert message in capsys.readouterr().err
    assert not (project / "result" / "b" / "config.json").exists()


def test_seeds_that_use_stages_of_their_own_experiments_are_one_row(project):  # noqa: F811
    for seed in (1, 2):
        settings = {"seed": seed} | ONE_EPOCH
        assert run("--stages", "aae", "encode", exp=f"d{seed}", **settings) == 0
        settings |= {"aae_from": f"d{seed}", "prediction": "eps"}
        assert run("--stages", "check", "ldm", "test", exp=f"x{seed}", **settings) == 0
    assert run("--stages", "tables", exp="a") == 0
    table = pd.read_csv(project / "result" / "tables" / "image_quality.csv")
    x = table[(table["experiment"] == "x") & (table["method"] == "il_cldm")]
    assert len(x) > 0 and (x["seeds"] == 2).all()


def test_a_stage_2_on_a_stage_1_of_another_experiment_is_used_with_it(project, capsys):  # noqa: F811
    assert run("--stages", "ldm", exp="b", aae_from="a", prediction="eps", ldm_epochs=1) == 0
    assert run("--stages", "test", exp="c", ldm_from="b", aae_from="a", prediction="eps", ldm_epochs=1) == 0
    assert not list((project / "result" / "c").glob("*.tar"))
    assert run("--stages", "test", exp="d", ldm_from="b", prediction="eps", ldm_epochs=1) == 2
    assert "result/b/CHECKPOINT_AAE.pth.tar is not there" in capsys.readouterr().err


# Two runs in which every choice of the method is another one than by default, as far as they go together.
OTHERS = [
    {"image_loss": 0.0, "prediction": "eps", "time_shift": 3.0, "conditioning": "input",
     "label_in_training": "true", "label_at_sampling": "mixed", "aae_lr_decay": False, "latent_channels": 2,
     "shuffle_labels": True},
    {"image_loss": 0.5, "conditioning": "none", "latent_scaling": False, "label_in_training": "suvr",
     "label_at_sampling": "matched", "aae_norms": ("output", "blocks"), "sampler": "dpm",
     "validation_sampler": "dpm"},
]


@pytest.mark.parametrize("others", OTHERS)
def test_in_pieces_with_other_settings_equals_uncut(project, others):  # noqa: F811
    settings = others | (masks(project) if others["label_in_training"] == "suvr" else {})
    assert run(exp="whole", **settings) == 0
    assert run("--stages", "aae", exp="pieces", **settings | {"aae_epochs": 1}) == 0
    assert run("--stages", "aae", "encode", "ldm", exp="pieces", **settings | {"ldm_epochs": 1}) == 0
    assert run(exp="pieces", **settings) == 0              # a decay begins after the first epoch
    assert same_csvs(project / "result" / "whole", project / "result" / "pieces")
    losses = pd.read_csv(project / "result" / "whole" / "loss_curve.csv").query("stage == 'ldm'")
    assert losses["mse"].notna().all() and ("image" in losses) == (others["image_loss"] != 0)


def test_soft_labels_are_kept_with_the_weights_and_shuffled_ones_are_those_of_others(project):  # noqa: F811
    settings = masks(project)
    labels = {}
    for exp, shuffle in (("suvr", False), ("shuffled", True)):
        stage_2 = {"exp": exp, "aae_from": "a", "ldm_epochs": 1, "shuffle_labels": shuffle}
        assert run("--stages", "ldm", **stage_2 | settings) == 0
        saved = load_checkpoint(project / "result" / exp / "CHECKPOINT_Unet.pth.tar")
        labels[exp] = saved["metadata"]["soft_labels"]
    assert labels["suvr"].shape == (8, 2)                  # training list, then validation list
    np.testing.assert_allclose(labels["suvr"].sum(dim=1).numpy(), 1, atol=1e-6)
    suvr = [real_suvr(project, f"s0{number}") for number in range(1, 9)]
    assert np.array_equal(np.argsort(labels["suvr"][:, 1].numpy()), np.argsort(suvr))
    own, others = labels["suvr"][:6, 1].tolist(), labels["shuffled"][:6, 1].tolist()
    assert own != others and sorted(own) == sorted(others)
