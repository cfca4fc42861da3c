"""The regressions that the diffusion is compared with, on a tiny cohort: what they learn, repeat and refuse,
and where their scores stand."""
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LISTS, TINY, arguments, write_cohort
from test_main import ONE_EPOCH, do_nothing, masks, no_pictures  # noqa: F401  the last one is a fixture
from test_ranks import in_ranks

import main
from baselines import regression
from baselines.regression import Regression
from config import IMAGE_REGRESSIONS, LABELLED, REGRESSIONS, Config
from evaluation import figures
from experiment import baselines
from experiment.experiment import Experiment
from experiment.networks import build_aae, build_baseline, build_unet
from experiment.session import check
from experiment.stage_2 import stage_2_metadata
from labels.ridge import LabelPredictor
from model import UNet
from runtime.checkpoints import load_checkpoint
from runtime.commandline import build
from runtime.failures import explain

PLAIN = tuple(name for name in REGRESSIONS if name not in LABELLED)
SMALL = TINY | {"exp": "a", "image_regression.channels": 4, "regions": "auto",
                "cortex_mask": "cortex.nii.gz", "reference_mask": "cerebellum.nii.gz"}
FILES = [f"CHECKPOINT_{name}{last}.pth.tar" for name in REGRESSIONS for last in ("", "_last")]
OF_THE_STAGES = [f"CHECKPOINT_{name}.pth.tar" for name in ("AAE", "AAE_last", "Unet", "Unet_last")]


def run(*stages: str, **settings) -> int:
    """Exit code of a run of these stages, of experiment `a` if no other is named."""
    return main.main([*arguments(SMALL | settings), "--stages", *stages])


def finish(root: Path, run: Callable[..., int]) -> Path:
    """The folder in which the tiny cohort, with regions, has gone through both stages and the baselines."""
    write_cohort(root)
    masks(root)
    before = os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert run("check", "aae", "encode", "ldm", "baselines", "test", "report", "tables") == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished project folder, its experiment `a`."""
    return finish(tmp_path_factory.mktemp("finished"), run)


@pytest.fixture(autouse=True)
def no_pictures_of_baselines(no_pictures, monkeypatch):  # noqa: F811
    """Leave out the pictures of a run, as in test_main; the run of `finished` sketches them."""
    monkeypatch.setattr(baselines, "plot_history", do_nothing)


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of the finished project, as the working directory."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def experiment(**settings) -> Experiment:
    """The experiment `a` with other settings than its own."""
    cfg = build(Config, SMALL | settings)
    return Experiment(cfg, check(cfg), torch.device("cpu"))


def untrained(name: str, exp: Experiment) -> Regression:
    """A baseline of the experiment whose training has not begun."""
    aae = exp.networks.best_aae()
    latents = exp.load_latents(aae)
    training = {scan.id: latents[scan.id] for scan in exp.cohort.train}
    metadata = stage_2_metadata(exp, latents, exp.survey())
    labels = baselines.labels_of(exp, name, metadata)
    return build_baseline(name, exp.cfg, exp.device, aae, training, labels, metadata)


def label_of(baseline: Regression, batch: dict) -> torch.Tensor:
    """What a baseline is given as the label of a training batch, [B, 2]."""
    if not baseline.labels:
        return torch.zeros(len(batch["id"]), 2)
    return torch.stack([baseline.labels.of[subject] for subject in batch["id"]])


def methods(project, exp: str = "a", name: str = "test") -> list[str]:
    """The methods of a CSV of an experiment, in its order."""
    return pd.read_csv(project / "result" / exp / f"{name}.csv")["method"].unique().tolist()


def remove(project, *names: str) -> None:
    """Take files away from the experiment."""
    for name in names:
        (project / "result" / "a" / name).unlink()


def leaves(path) -> list:
    """All numbers and tensors of a checkpoint's state."""
    return torch.utils._pytree.tree_leaves(load_checkpoint(path)["state"])


def same_states(one, other) -> bool:
    """Whether two checkpoints hold the same state, bit for bit."""
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in pairs)


# ---------------------------------------------------------------- what is learned

@pytest.mark.parametrize("name", REGRESSIONS)
def test_it_learns_what_the_mri_tells_of_each_subject(project, name):
    exp = experiment(image_loss=0.0)                       # which pulls elsewhere with an untrained decoder
    torch.manual_seed(0)
    baseline = untrained(name, exp)
    [batch] = exp.batches(exp.cohort.train[:4], "mri", "pet", batch=4)
    batch |= {modality: batch[modality][..., 4:12, 8:20, 4:12] for modality in ("mri", "pet")}
    if name not in IMAGE_REGRESSIONS:                              # a part of the box is enough, and faster
        baseline.latents = {subject: z_0[:, 2:6, 4:10, 2:6] for subject, z_0 in baseline.latents.items()}
        baseline.latent_shape = (exp.cfg.latent_channels, 4, 6, 4)
    target, network = baseline.target(batch), baseline.network
    for group in baseline.opt.param_groups:
        group["lr"] = 3e-3
    for number in range(1, 121):
        loss = baseline.step(batch, number)["mse"]
    of_the_mean = (target - target.mean(dim=0)).square().mean().item()  # what one answer for everybody leaves
    assert loss < 0.3 * of_the_mean
    with torch.no_grad():
        mri, label = batch["mri"].roll(1, dims=0), label_of(baseline, batch).roll(1, dims=0)
        others = baseline.output(network, mri, label)
    assert (others - target).square().mean() > (others - target.roll(1, dims=0)).square().mean()


@pytest.mark.parametrize("name", PLAIN)
def test_neither_label_nor_noise_enters(project, name):
    exp = experiment()
    baseline = untrained(name, exp)
    [batch] = exp.batches(exp.cohort.train, "mri", "pet", batch=6)
    before = torch.get_rng_state()
    network = baseline.ema.module                          # which predicts
    with torch.no_grad():
        once = baseline.predict(batch["mri"])
        network.projector.label.weight += 1
        if name == "latent_regression":
            network.down[0].weight[:, :exp.cfg.latent_channels] += 1  # of z_t, which is 0
        assert torch.equal(baseline.predict(batch["mri"]), once)
        assert not torch.equal(baseline.predict(batch["mri"].flip(0)), once)
    baseline.step(batch, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LABELLED)
def test_a_labelled_one_is_given_the_label_of_stage_2_and_predicts_it_from_the_mri(project, name):
    exp = experiment()
    baseline, saved = untrained(name, exp), exp.networks.best_checkpoint("ldm")["metadata"]
    scans = exp.cohort.train + exp.cohort.validation
    for scan, label in zip(scans, saved["soft_labels"], strict=True):
        assert torch.equal(baseline.labels.of[scan.id], label)
    [batch] = exp.batches(exp.cohort.test, "mri", "pet", batch=2)
    predictor = LabelPredictor.from_state(saved["label_predictor"])
    assert torch.equal(
        baseline.labels.predict(batch["mri"], batch["id"]), predictor.soft_labels(batch["mri"])
    )
    with torch.no_grad():
        once = baseline.predict(batch["mri"])
        baseline.ema.module.projector.label.weight[0] += 1
        assert not torch.equal(baseline.predict(batch["mri"]), once)


def test_the_loss_of_a_labelled_one_on_latents_has_the_image_loss_of_stage_2(project):
    exp = experiment(image_loss=2.0)
    baseline, plain = (untrained(name, exp) for name in ("labelled_latent_regression", "latent_regression"))
    [batch] = exp.batches(exp.cohort.train[:2], "mri", "pet", batch=2)
    z_0, label = baseline.target(batch), label_of(baseline, batch)
    with torch.no_grad():
        output = baseline.output(baseline.network, batch["mri"], label)
        x_hat = exp.networks.best_aae().decoder(output * baseline.space.std + baseline.space.mean)
    losses = baseline.step(batch, 1)
    assert losses["mse"] == pytest.approx((output - z_0).square().mean().item(), rel=1e-4)
    expected = 2 * (x_hat - batch["pet"]).abs().mean().item() / exp.survey().pet_std
    assert losses["image"] == pytest.approx(expected, rel=1e-4)
    assert plain.step(batch, 1).keys() == {"mse"}
    assert (baseline.modalities, plain.modalities) == (("mri", "pet"), ("mri",))


def test_without_a_label_in_sampling_the_labelled_ones_are_left_out(project, capsys):
    remove(project, *FILES, *OF_THE_STAGES[2:])
    assert run("baselines", label_at_sampling="none") == 0
    said = capsys.readouterr().out
    assert all(f"{name} is left out: with label_at_sampling none" in said for name in LABELLED)
    there = {path.name for path in (project / "result" / "a").glob("*regression.pth.tar")}
    assert there == {f"CHECKPOINT_{name}.pth.tar" for name in PLAIN}


def test_the_training_of_the_others_sees_no_label(project):
    path = project / "data_info" / "data_info.csv"
    path.write_text(path.read_text().replace(",0", ",x").replace(",1", ",0").replace(",x", ",1"))
    assert run("aae", "encode", "baselines", exp="b", baselines=PLAIN) == 0
    for file in [file for file in FILES if "labelled" not in file]:
        assert same_states(project / "result" / "a" / file, project / "result" / "b" / file), file


# ---------------------------------------------------------------- what is written

def test_the_baselines_are_scored_beside_the_diffusion(finished):
    expected = ["aae", "il_cldm", *REGRESSIONS, "mean_pet"]
    assert methods(finished) == methods(finished, name="summary") == expected
    assert set(methods(finished, name="uptake")) == {"real", *expected}
    predictions = pd.read_csv(finished / "result" / "a" / "predictions.csv")
    for name in REGRESSIONS:
        assert set(predictions.loc[predictions["method"] == name, "classifier"]) == {"pet", "mri_pet", "suvr"}
        assert predictions.query("method == @name and classifier == 'pet'")["ID"].tolist() == LISTS["test"]
    for name in ("image_quality", "quantification"):
        table = pd.read_csv(finished / "result" / "tables" / f"{name}.csv")
        rows = (table[table["measure"] == "SUVR"] if "measure" in table else table)["method"].tolist()
        assert rows[:6] == ["mean_pet", *REGRESSIONS, "il_cldm"]
    comparisons = pd.read_csv(finished / "result" / "tables" / "comparisons.csv")
    comparisons = comparisons.query("table == 'amyloid_status'")
    assert {("pet latent_regression", "pet il_cldm (a)"), ("pet image_regression", "pet il_cldm (a)")} <= set(
        zip(comparisons["a"], comparisons["b"], strict=True))
    assert "latent_regression" in (finished / "result" / "a" / "report.html").read_text()


def test_scores_are_those_of_the_best_epochs_moving_average(finished, monkeypatch):
    monkeypatch.chdir(finished)
    cfg, cpu, folder = build(Config, SMALL), torch.device("cpu"), finished / "result" / "a"
    names = ("AAE", "Unet", *REGRESSIONS)
    saved = {name: load_checkpoint(folder / f"CHECKPOINT_{name}.pth.tar") for name in names}
    aae = build_aae(cfg, cpu)
    aae.load_state_dict(saved["AAE"]["state"]["aae"])
    networks = {name: UNet(1, 4, (1, 2), 1, norm_groups=4, downscale=1, regression=True)
                if name in IMAGE_REGRESSIONS else build_unet(cfg, cpu) for name in REGRESSIONS}
    for name, network in networks.items():
        network.load_state_dict(saved[name]["state"]["ema"])
    scale = saved["latent_regression"]["metadata"]
    assert scale == {name: saved["Unet"]["metadata"][name] for name in ("latent_mean", "latent_std")}
    predictor = LabelPredictor.from_state(saved["Unet"]["metadata"]["label_predictor"])
    test = pd.read_csv(folder / "test.csv")
    for subject in LISTS["test"]:
        mri, pet = crop_of(finished, "whole_MRI", subject), crop_of(finished, "whole_Abeta", subject)
        with torch.no_grad():
            z_t = torch.zeros(1, cfg.latent_channels, 8, 12, 8)
            volumes = {}
            for name, network in networks.items():
                label = predictor.soft_labels(mri) if name in LABELLED else None
                if name in IMAGE_REGRESSIONS:
                    volumes[name] = network(mri[:, :0], mri, torch.tensor([0]), label)
                else:
                    z_0 = network(z_t, mri, torch.tensor([19]), label)
                    volumes[name] = aae.decoder(z_0 * scale["latent_std"] + scale["latent_mean"])
        found = test[test["ID"] == subject].set_index("method")["PSNR"]
        for name, volume in volumes.items():
            error = (volume.clamp(0, 1) - pet).square().mean().item()
            assert found[name] == pytest.approx(-10 * np.log10(error), rel=1e-4)


def crop_of(project, modality: str, subject: str) -> torch.Tensor:
    """The crop of a volume of the cohort, [1, 1, D, H, W]."""
    [path] = (project / "data" / modality).glob(f"{subject}.*")
    voxels = nib.load(path).get_fdata(dtype=np.float32)
    return torch.from_numpy(voxels)[None, None, 3:19, 2:26, 3:19]


def test_without_baselines_there_is_no_row_and_the_others_are_the_same(project):
    before = pd.read_csv(project / "result" / "a" / "test.csv")
    remove(project, *FILES)
    assert run("test") == 0
    after = pd.read_csv(project / "result" / "a" / "test.csv")
    assert after["method"].unique().tolist() == ["aae", "il_cldm", "mean_pet"]
    pd.testing.assert_frame_equal(after, before[~before["method"].isin(REGRESSIONS)].reset_index(drop=True))


def test_losses_and_validations_stand_beside_those_of_the_stages(finished, monkeypatch):
    folder = finished / "result" / "a"
    losses, validation = (pd.read_csv(folder / f"{name}.csv") for name in ("loss_curve", "validation"))
    stages = ("aae", "ldm", *REGRESSIONS)
    # those on images are trained for as many epochs as both stages
    expected = dict.fromkeys(stages, [1, 2]) | dict.fromkeys(IMAGE_REGRESSIONS, [1, 2, 3, 4])
    assert losses.groupby("stage")["epoch"].apply(list).to_dict() == expected
    assert losses[losses["stage"].isin(REGRESSIONS)]["mse"].notna().all()
    assert validation.groupby("stage")["best"].sum().to_dict() == dict.fromkeys(stages, 1)
    shown = []

    def note_titles(figure, *_):
        for axis in figure.axes:
            shown.append(axis.get_title())
    monkeypatch.setattr(figures, "save_figure", note_titles)
    figures.plot_curves(folder, folder / "curves", "")
    assert shown[::2] == ["Stage 1, autoencoder", "Stage 2, denoiser", "Baseline, latent regression",
                          "Baseline, latent regression with label", "Baseline, image regression",
                          "Baseline, image regression with label"]


# ---------------------------------------------------------------- going on

def test_a_run_in_pieces_equals_an_uncut_one_bit_for_bit(project, monkeypatch):
    one, other = project / "result" / "a", project / "result" / "b"
    shutil.copytree(one, other, ignore=shutil.ignore_patterns("*regression*"))
    taken, step = [], Regression.step

    def signalled(baseline, *arguments):
        losses = step(baseline, *arguments)
        taken.append({name: weight.detach().clone() for name, weight in baseline.network.named_parameters()})
        if len(taken) in (5, 9):  # in the second epoch of one baseline, in the first of the other
            os.kill(os.getpid(), signal.SIGTERM)
        return losses
    monkeypatch.setattr(Regression, "step", signalled)
    assert [run("baselines", exp="b") for _ in range(3)] == [75, 75, 0]
    assert len(taken) == 36
    for file in FILES:
        assert same_states(one / file, other / file), file
    for name in ("loss_curve.csv", "validation.csv"):
        assert (other / name).read_bytes() == (one / name).read_bytes()
    for file, first, last in zip(FILES[1::2], (0, 6, 12, 24), (6, 12, 24, 36), strict=True):
        weights = taken[first:last]
        ema = load_checkpoint(other / file)["state"]["ema"]
        average = dict(weights[1])                         # a copy for ema_start = 2 steps
        for after_step in weights[2:]:
            average = {name: average[name].lerp(weight, 0.5) for name, weight in after_step.items()}
        for name, weight in average.items():
            torch.testing.assert_close(ema[name], weight)


def test_finished_ones_are_left_alone_and_others_end_the_scores(project, capsys):
    folder = project / "result" / "a"
    times = {name: (folder / name).stat().st_mtime_ns for name in [*FILES, "scores.json"]}
    assert run("baselines") == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    said = capsys.readouterr().out
    assert [said.count(f"6 subjects, 2 a step, {n} of {n} epochs done") for n in (2, 4)] == [2, 2]
    assert run("baselines", ldm_epochs=3) == 0
    assert not (folder / "scores.json").exists()
    assert run("test") == 0
    said = capsys.readouterr().out
    for name, epochs in (("latent_regression", "3 epochs, IL-CLDM for 2"),
                         ("image_regression", "5 epochs, IL-CLDM for 4")):
        assert f"{name} is trained for {epochs}; --stages baselines goes on" in said
    assert {*REGRESSIONS} < set(methods(project))


def test_two_processes_with_one_subject_each_take_the_steps_of_one_with_two(project):
    """By plain gradient descent, because Adam's first steps have the size of the learning rate however small
    the gradient is."""
    remove(project, *FILES, *OF_THE_STAGES[2:])
    shutil.copytree("result/a", "result/b")

    def plain_descent(parameters, lr, **_) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr)

    def descend(**settings) -> int:
        regression.AdamW = plain_descent                   # in a process of its own
        return run("baselines", **ONE_EPOCH | settings)
    assert in_ranks(2, lambda: descend(exp="b", ldm_batch_size=1)) == [0, 0]
    assert in_ranks(1, lambda: descend(exp="a")) == [0]
    for name in REGRESSIONS:
        paths = [project / f"result/{exp}/CHECKPOINT_{name}_last.pth.tar" for exp in "ab"]
        one, other = (load_checkpoint(path)["state"]["ema"] for path in paths)
        for key, weight in one.items():
            torch.testing.assert_close(weight, other[key], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- what is refused

def refused(project, capsys, *stages: str, **settings) -> str:
    """The message of a run that must end with code 2 and write nothing."""
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(*stages, **settings) == 2
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()} == before
    return capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"image_regression.channels": 8}, {"ldm_lr": 0.5},
                                      {"unet_mults": (1, 1)}, {"seed": 1}])
def test_a_changed_setting_is_refused(project, capsys, settings):
    remove(project, *OF_THE_STAGES)
    message = refused(project, capsys, "aae", "baselines", **settings)
    assert "regression_last.pth.tar was trained with other settings" in message
    assert next(iter(settings)) in message


def test_what_a_baseline_does_not_use_may_change(project):
    remove(project, *OF_THE_STAGES[2:])
    times = {name: (project / "result" / "a" / name).stat().st_mtime_ns for name in FILES}
    others = {"prediction": "eps", "beta": (1e-4, 0.1), "image_loss": 0.0, "time_shift": 1.0,
              "label_in_training": "true"}
    assert run("baselines", baselines=PLAIN, **others) == 0
    assert {name: (project / "result" / "a" / name).stat().st_mtime_ns for name in FILES} == times
    cfg = build(Config, SMALL)
    latent, image = (cfg.settings_of(name) for name in PLAIN)
    assert {"image_loss", "label_in_training", *latent} <= cfg.settings_of(LABELLED[0]).keys()
    assert cfg.settings_of(LABELLED[1]).keys() - image == {"label_in_training", "shuffle_labels"}
    both = {"unet_mults", "unet_norm_groups", "ldm_lr", "ldm_batch_size", "ema_decay", "volume_size"}
    assert {"timesteps", "conditioning", "unet_channels", "latent_scaling", *both} <= latent.keys()
    assert {"image_regression.channels", *both} <= image.keys()
    assert not {"unet_channels", "conditioning", "lambda_rec", *others} & image.keys()
    assert not {"lambda_rec", *others} & latent.keys()


def test_another_autoencoder_is_refused_and_its_row_left_out(project, capsys):
    remove(project, *OF_THE_STAGES)
    other = {"lambda_rec": 1.0} | ONE_EPOCH
    assert run("aae", "encode", "ldm", **other) == 0
    capsys.readouterr()
    assert run("baselines", **other) == 2
    message = capsys.readouterr().err
    assert "latent_regression_last.pth.tar was trained with other settings (saved -> now)" in message
    assert "autoencoder: " in message
    assert run("test", **other) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out: " in line]
    assert [line.split()[1] for line in lines] == ["latent_regression", "labelled_latent_regression"]
    assert all("autoencoder: " in line for line in lines)
    assert methods(project) == ["aae", "il_cldm", *IMAGE_REGRESSIONS, "mean_pet"]


@pytest.mark.parametrize("name", REGRESSIONS)
def test_one_that_no_longer_fits_is_left_out_of_the_test(project, capsys, name):
    if name in IMAGE_REGRESSIONS:
        settings, left_out = {"image_regression.channels": 8}, IMAGE_REGRESSIONS
        why = "image_regression.channels: 4 -> 8"
    else:
        settings, why, left_out = {}, "cannot be used as a checkpoint", (name,)
        (project / f"result/a/CHECKPOINT_{name}.pth.tar").write_bytes(b"damaged")
    assert run("test", **settings) == 0
    assert f"{name} is left out: " in (out := capsys.readouterr().out)
    assert why in out
    others = [other for other in REGRESSIONS if other not in left_out]
    assert methods(project) == ["aae", "il_cldm", *others, "mean_pet"]


def test_more_epochs_of_stage_1_after_a_baseline_are_refused(project, capsys):
    remove(project, *OF_THE_STAGES[2:])
    assert "aae_epochs: 2 -> 3" in refused(project, capsys, "aae", "encode", "baselines", aae_epochs=3)


def test_without_an_autoencoder_nothing_is_begun(root, capsys):
    masks(root)
    assert "CHECKPOINT_AAE.pth.tar is not there; run --stages aae first" in refused(root, capsys, "baselines")
    assert not (root / "result").exists()


def test_resume_speaks_of_the_baselines_too(project, capsys):
    file = "CHECKPOINT_latent_regression_last.pth.tar"
    assert f"{file} is there" in refused(project, capsys, "baselines", resume="no")
    remove(project, *FILES)
    assert f"{file} is not there" in refused(project, capsys, "baselines", resume="yes")


def test_room_is_asked_for_what_the_checkpoints_take(project):
    sizes = [(project / "result" / "a" / file).stat().st_size for file in FILES[1::2]]
    fresh = experiment(stages=("baselines",), exp="fresh")
    assert fresh.checkpoint_room() == pytest.approx(3 * sum(sizes), rel=0.2)
    assert experiment(stages=("test",), exp="fresh").checkpoint_room() == 0
    trained = experiment(stages=("baselines",))
    trained.refuse_conflicts()
    assert trained.checkpoint_room() == 0


def test_out_of_memory_says_what_takes_less():
    error = MemoryError()
    error.add_note("baselines")
    assert "(stage baselines); --recompute true takes less" in explain(error)[1]
