"""The systems of the paper's comparison on a tiny cohort: trained, cut and resumed, scored and refused like
every other method. What is their own, networks and losses, has tests of its own for each."""
import dataclasses
import json
import os
import shutil
import signal

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LISTS, TINY, TINY_SYSTEMS, arguments
from test_baselines import crop_of, finish, methods, same_states
from test_main import ONE_EPOCH, do_nothing, masks, no_pictures  # noqa: F401  the last one is a fixture
from test_ranks import in_ranks

import main
from baselines import ddpm, fgan, pix2pix
from baselines.baseline import Baseline
from config import BASELINES, SECOND_ROWS, SEEING_LABELS, SYSTEMS, Config
from evaluation import figures, volume_figures
from evaluation.report import write_figures
from evaluation.results import load_run
from evaluation.scores import best_median_worst
from experiment import baselines, session
from experiment.experiment import Experiment
from experiment.networks import build_baseline
from experiment.saved import read_settings
from experiment.session import check
from labels.soft_labels import label_order
from runtime.checkpoints import load_checkpoint
from runtime.settings import merged

SMALL = (
    TINY
    | TINY_SYSTEMS
    | {
        "exp": "a",
        "baselines": SYSTEMS,
        "regions": "auto",
        "cortex_mask": "cortex.nii.gz",
        "reference_mask": "cerebellum.nii.gz",
        "ddpm.samples": 2,
    }
)
METHODS = [*SYSTEMS, *SECOND_ROWS]
FILES = [f"CHECKPOINT_{name}{last}.pth.tar" for name in SYSTEMS for last in ("", "_last")]
STEPS = 12                                                 # of a training: 4 epochs of 6 subjects, 2 a step


def run(*stages: str, **settings) -> int:
    """Exit code of a run of these stages, of experiment `a` if no other is named."""
    return main.main([*arguments(SMALL | settings), "--stages", *stages])


def config(**settings) -> Config:
    """The settings of the experiment."""
    return Config(**merged(Config, {}, SMALL | settings))


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


def refused(project, capsys, *stages: str, **settings) -> str:
    """The message of a run that must end with code 2 and write nothing."""
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(*stages, **settings) == 2
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()} == before
    return capsys.readouterr().err


# ---------------------------------------------------------------- what is written

def test_every_table_has_a_row_of_every_system(finished):
    folder = finished / "result" / "a"
    expected = ["aae", "il_cldm", *METHODS, "mean_pet"]
    assert methods(finished) == methods(finished, name="summary") == expected
    assert set(methods(finished, name="uptake")) == {"real", *expected}
    predictions = pd.read_csv(folder / "predictions.csv")
    for name in METHODS:
        own = predictions[predictions["method"] == name]
        assert set(own["classifier"]) == {"pet", "mri_pet", "suvr"}
        assert own[own["classifier"] == "pet"]["ID"].tolist() == LISTS["test"]
    quality = pd.read_csv(finished / "result" / "tables" / "image_quality.csv")
    expected = ["mean_pet", *METHODS, "il_cldm"]
    assert quality["method"].tolist()[:len(expected)] == expected
    comparisons = pd.read_csv(finished / "result" / "tables" / "comparisons.csv")
    pairs = set(zip(comparisons["a"], comparisons["b"], strict=True))
    assert {(name, "il_cldm (a)") for name in METHODS} <= pairs
    report = (folder / "report.html").read_text()
    assert all(name in report for name in METHODS)


def test_scores_are_those_of_the_best_epoch(finished, monkeypatch):
    monkeypatch.chdir(finished)
    folder, test = finished / "result" / "a", pd.read_csv(finished / "result" / "a" / "test.csv")
    validation = pd.read_csv(folder / "validation.csv")
    for name in SYSTEMS:
        own = validation[validation["stage"] == name]
        assert own["epoch"].tolist() == [1, 2, 3, 4] and own["best"].sum() == 1
        best = own.loc[(own["PSNR"] + 10 * own["SSIM"]).idxmax(), "epoch"]
        saved = load_checkpoint(folder / f"CHECKPOINT_{name}.pth.tar")
        assert saved["epoch"] == best
        system = build_baseline(name, config(), torch.device("cpu"), None)
        for part, network in system.networks.items():
            network.load_state_dict(saved["state"][part])
            network.eval()
        for method, (predict, _) in system.methods().items():
            for subject in LISTS["test"]:
                pet = predict(crop_of(finished, "whole_MRI", subject), ids=[subject])
                error = (pet - crop_of(finished, "whole_Abeta", subject)).square().mean().item()
                found = test.query("method == @method and ID == @subject")["PSNR"].item()
                assert found == pytest.approx(-10 * np.log10(error), rel=1e-4), method


def test_the_losses_of_every_phase_are_drawn(finished, monkeypatch):
    folder, titles, lines = finished / "result" / "a", [], {}
    losses = pd.read_csv(folder / "loss_curve.csv").set_index("stage")
    assert losses.loc["tpa_gan", ["classifier", "l1", "adv", "task"]].notna().to_numpy().tolist() == [
        [True, False, False, False], [False, True, False, False], [False, True, True, False],
        [False, True, False, True]]

    def note(figure, *_):
        for axis in figure.axes:
            titles.append(axis.get_title())
            lines[axis.get_title()] = len(axis.lines)
    monkeypatch.setattr(figures, "save_figure", note)
    figures.plot_curves(folder, folder / "curves", "")
    curves = [figures.CURVES[name] for name in SYSTEMS]
    assert titles[4::2] == [title for title, _ in curves]
    assert [lines[title] for title, _ in curves] == [len(terms) for _, terms in curves]


def test_costs_stand_beside_every_trained_method(finished, monkeypatch):
    monkeypatch.chdir(finished)
    cost = pd.read_csv(finished / "result" / "a" / "cost.csv").set_index("method")
    assert cost.index.tolist() == ["aae", "il_cldm", *METHODS]
    for name in SYSTEMS:
        system = build_baseline(name, config(), torch.device("cpu"), None)
        networks = [network for part, network in system.networks.items() if part != "ema"]
        weights = sum(weight.numel() for network in networks for weight in network.parameters())
        assert cost.loc[name, "weights"] == weights, name
    assert cost.loc["ddpm_mean", "weights"] == cost.loc["ddpm", "weights"]
    assert cost["volumes_seen"].to_dict() == dict.fromkeys(cost.index, 24) | {"aae": 12}     # of 6 subjects
    # 2 samples by 3 steps of ddim; matched takes two passes
    assert cost["NFE"].to_dict() == {"aae": 1, "il_cldm": 12, **dict.fromkeys(SYSTEMS, 1), "resvit": 16,
                                     "ddpm": 3, "ddpm_mean": 6}                      # ResViT: one a slice
    last = load_checkpoint(finished / "result" / "a" / "CHECKPOINT_fgan_last.pth.tar")
    assert cost.loc["fgan", "training_s"] == pytest.approx(last["seconds"], abs=0.06)
    assert (cost[["training_s", "scan_s"]] > 0).all(axis=None)


class Noted(dict):
    """A batch that knows what was read of it."""

    def __init__(self, batch: dict):
        super().__init__(batch)
        self.read = set()

    def __getitem__(self, key: str):
        self.read.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_whose_training_reads_labels_is_bound_to_their_order(name):
    """config.SEEING_LABELS, from which shuffle_labels has its mark, against what a training reads."""
    system, size = build_baseline(name, config(), torch.device("cpu"), None), (2, 1, *TINY["volume_size"])
    batch = Noted({"id": ["s01", "s02"], "label": torch.tensor([0, 1]), "mri": torch.rand(size),
                   "pet": torch.rand(size)})
    for epoch in (1, 2, 3, 4):                             # every phase
        system.begin_epoch(epoch, 4)
        system.step(batch, epoch)
    assert batch.read >= {"pet"} and ("label" in batch.read) == (name in SEEING_LABELS)


def test_with_shuffled_labels_training_sees_those_of_others(project, monkeypatch):
    """As in stage 2; validation and test keep their own."""
    seen = {}

    def note(system: Baseline, batch: dict, *_) -> dict[str, float]:
        seen.update(zip(batch["id"], batch["label"].tolist(), strict=True))
        return {"l1": 0.0}
    monkeypatch.setattr(fgan.FGAN, "step", note)
    assert run("aae", "encode", "baselines", exp="own", baselines=("fgan",)) == 0
    cohort = check(config())
    assert seen == {scan.id: scan.label for scan in cohort.train}
    assert run("aae", "encode", "baselines", exp="other", baselines=("fgan",), shuffle_labels=True) == 0
    order = label_order(6, config().seed, shuffled=True)
    given = [cohort.train[place].label for place in order]
    assert seen == dict(zip([scan.id for scan in cohort.train], given, strict=True))
    assert seen != {scan.id: scan.label for scan in cohort.train}


# ---------------------------------------------------------------- pictures

def test_two_best_four_around_the_median_and_two_worst_are_chosen():
    errors = np.random.default_rng(0).permutation(21)      # of 0 .. 20, whose median is 10
    chosen = best_median_worst(errors.tolist())
    assert errors[chosen].tolist() == [0, 1, 8, 9, 10, 11, 19, 20]
    assert best_median_worst([1.0] * 12) == [0, 1, 4, 5, 6, 7, 10, 11]    # ties: the order of the list
    for n in range(30):
        chosen = best_median_worst(np.random.default_rng(n).integers(0, 5, n).tolist())
        assert len(chosen) == len(set(chosen)) == min(n, 8)
    assert best_median_worst([0.3, 0.1, 0.2]) == [1, 2, 0]


def test_every_scored_method_has_a_title_and_every_system_a_line_of_its_own(finished):
    scored = {*methods(finished), *BASELINES, *SECOND_ROWS, "real", "oracle"}
    assert figures.METHOD_TITLES.keys() == scored - {"aae"}
    assert figures.CURVES.keys() == {"aae", "ldm", *BASELINES}
    assert list(figures.SYSTEM_TITLES) == METHODS
    assert list(figures.SYSTEM_LINES) == ["real", "il_cldm", *METHODS]
    assert len({colour for colour, _ in figures.SYSTEM_LINES.values()}) == len(figures.SYSTEM_LINES)


def test_the_comparison_shows_the_pets_that_were_scored(project, monkeypatch):
    shown = {}

    def note(path, titles, slices, where, notice):
        shown.update(slices, titles=titles, where=where, path=path)
    picture = project / "result" / "a" / "comparison.png"
    drawn = picture.read_text()                            # a sketch
    assert all(f"{figures.METHOD_TITLES[name]!r}: " in drawn
               for name in ("real", "il_cldm", *METHODS, "mean_pet"))
    monkeypatch.setattr(volume_figures, "plot_methods", note)
    monkeypatch.setattr(main, "plot_comparison", session.plot_comparison)
    assert run("test") == 0
    assert not picture.exists()                            # an old one is no picture of the new scores
    own = pd.read_csv(project / "result/a/test.csv").query("method == 'il_cldm'").sort_values("MAE_brain")
    assert [title.split("\n")[0] for title in shown.pop("titles")] == own["ID"].tolist()
    assert shown.pop("path").resolve() == picture.resolve()
    assert shown.pop("where") == "axial slices at z = 20 mm"
    assert shown.keys() == {"real", "il_cldm", *METHODS, "mean_pet"}
    level = 8                                              # of the crop, which begins at z = -68.5 + 3 * 8 mm
    box = (slice(3, 19), slice(2, 26), 3 + level)
    for row, name in enumerate(own["ID"]):
        for method, folder in (("real", "data/whole_Abeta"), ("il_cldm", "result/a/synthesized")):
            [path] = (project / folder).glob(f"{name}.nii*")
            np.testing.assert_allclose(shown[method][row], nib.load(path).get_fdata()[box], atol=1e-6)
        system = build_baseline("fgan", config(), torch.device("cpu"), None)
        saved = load_checkpoint(project / "result" / "a" / "CHECKPOINT_fgan.pth.tar")["state"]
        for part, network in system.networks.items():
            network.load_state_dict(saved[part])
            network.eval()
        pet = system.predict(crop_of(project, "whole_MRI", name), ids=[name])
        np.testing.assert_allclose(shown["fgan"][row], pet[0, 0, :, :, level], atol=1e-5)


def test_without_trained_methods_or_matplotlib_there_is_no_comparison(project, monkeypatch, caplog):
    folder, cfg = project / "result" / "a", config()
    exp = Experiment(cfg, check(cfg), torch.device("cpu"))
    scores = pd.read_csv(folder / "test.csv").query("method == 'il_cldm'")
    (folder / "comparison.png").unlink()

    def predict(batch):
        return batch["pet"]
    session.plot_comparison(exp, {"aae": predict, "il_cldm": predict, "mean_pet": predict}, scores)
    with monkeypatch.context() as hidden:
        hidden.setattr(session.importlib.util, "find_spec", do_nothing)
        session.plot_comparison(exp, {"il_cldm": predict, "fgan": predict}, scores)
    assert "no picture of the compared methods: it needs the package matplotlib" in caplog.text
    assert not (folder / "comparison.png").exists()
    session.plot_comparison(exp, {"il_cldm": predict, "latent_regression": predict}, scores)
    assert (folder / "comparison.png").exists()


def test_figures_of_systems_are_drawn_where_they_are_scored(finished, tmp_path, monkeypatch):
    result, lines = load_run(finished / "result" / "a"), {}
    assert (finished / "result" / "a" / "figures" / "bland_altman_systems.pdf").stat().st_size > 0
    assert figures_of(finished).count("Bland-Altman plots") == 2               # its text and its caption

    def note(figure, stem, *_):
        lines[stem.name] = [[line.get_label() for line in axis.lines] for axis in figure.axes]
        figures.pyplot().close(figure)
    monkeypatch.setattr(figures, "save_figure", note)
    monkeypatch.setattr("evaluation.report.plot_volumes", do_nothing)
    monkeypatch.setattr("evaluation.report.plot_curves", do_nothing)
    write_figures(tmp_path, result, [], [], "")
    left, right = lines["roc"]
    names = [label.split(":")[0] for label in right[1:]]
    assert names == ["real PET", "IL-CLDM", *figures.SYSTEM_TITLES.values()]
    known = result.uptake.groupby("method")["SUVR"].count()                    # black PETs have no SUVR
    assert len(lines["bland_altman_systems"]) == (known[["il_cldm", *METHODS]] > 1).sum() > 3
    lines.clear()
    uptake = result.uptake[~result.uptake["method"].isin(METHODS)]
    predictions = result.predictions[~result.predictions["method"].isin(METHODS)]
    drawn = write_figures(
        tmp_path, dataclasses.replace(result, uptake=uptake, predictions=predictions), [], [], ""
    )
    assert "bland_altman_systems" not in drawn
    assert lines["roc"] == [left]


def figures_of(project) -> str:
    """The HTML of the report."""
    return (project / "result" / "a" / "report.html").read_text()


def test_all_names_every_baseline():
    assert config(baselines=("all",)).baselines == config(baselines=("all", "fgan")).baselines == BASELINES


# ---------------------------------------------------------------- going on

def test_a_run_in_pieces_equals_an_uncut_one_bit_for_bit(project, monkeypatch):
    one, other = project / "result" / "a", project / "result" / "b"
    shutil.copytree(one, other, ignore=shutil.ignore_patterns(*FILES))
    taken = []

    def signalled(step):
        def take(system: Baseline, *rest):
            losses = step(system, *rest)
            taken.append(system.name)
            if len(taken) in (5, 14, 22, 31, 43, 58):      # within an epoch, and at the end of one
                os.kill(os.getpid(), signal.SIGTERM)
            return losses
        return take
    for kind in Baseline.__subclasses__():
        if "name" in vars(kind):                           # a system, which has one name
            monkeypatch.setattr(kind, "step", signalled(kind.step))
    assert [run("baselines", exp="b") for _ in range(7)] == [75] * 6 + [0]
    assert taken == [name for name in SYSTEMS for _ in range(STEPS)]
    for file in FILES:
        assert same_states(one / file, other / file), file
    for name in ("loss_curve.csv", "validation.csv"):
        assert (other / name).read_bytes() == (one / name).read_bytes()


def test_finished_ones_are_left_alone(project, capsys):
    folder = project / "result" / "a"
    times = {name: (folder / name).stat().st_mtime_ns for name in [*FILES, "scores.json"]}
    assert run("baselines") == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert capsys.readouterr().out.count("6 subjects, 2 a step, 4 of 4 epochs done") == len(SYSTEMS)


def test_two_processes_with_one_subject_each_take_the_steps_of_one_with_two(project):
    """By plain gradient descent, because Adam's first steps have the size of the learning rate however small
    the gradient is. TPA-GAN and ResViT have batch norms, which see the volumes of one process."""
    names = ("pix2pix", "fgan", "ddpm")
    for file in [*FILES, "CHECKPOINT_Unet.pth.tar", "CHECKPOINT_Unet_last.pth.tar"]:
        (project / "result" / "a" / file).unlink()
    shutil.copytree("result/a", "result/b")

    def plain_descent(parameters, lr, **_) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, 1e-3 * lr)

    def descend(**settings) -> int:
        pix2pix.Adam = fgan.Adam = fgan.SGD = ddpm.AdamW = plain_descent           # in a process of its own
        return run("baselines", baselines=names, **ONE_EPOCH | settings)
    assert in_ranks(2, lambda: descend(exp="b", ldm_batch_size=1)) == [0, 0]
    assert in_ranks(1, lambda: descend(exp="a")) == [0]
    for name in names:
        paths = [project / f"result/{exp}/CHECKPOINT_{name}_last.pth.tar" for exp in "ab"]
        one, other = (load_checkpoint(path)["state"] for path in paths)
        for part in one:
            if not part.startswith("opt"):
                for key, weight in one[part].items():
                    torch.testing.assert_close(weight, other[part][key], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- what is refused, and what may change

@pytest.mark.parametrize("setting", ["pix2pix.lambda_l1", "tpa_gan.task_weight", "fgan.lambda_voxel",
                                     "resvit.lr_2", "ddpm.time_shift", "crop_jitter"])
def test_a_changed_setting_is_refused_by_its_name(project, capsys, setting):
    value = 0 if setting == "crop_jitter" else 0.5
    message = refused(project, capsys, "baselines", **{setting: value})
    assert f"{setting}: " in message and "_last.pth.tar was trained with other settings" in message


def test_other_epochs_are_refused_where_the_schedule_follows_from_them(project, capsys):
    message = refused(project, capsys, "baselines", ldm_epochs=3)
    assert "CHECKPOINT_pix2pix_last.pth.tar" in message and "epochs: 4 -> 5" in message
    assert run("baselines", baselines=("ddpm",), ldm_epochs=3) == 0
    assert run("test", ldm_epochs=3) == 0
    said = capsys.readouterr().out
    assert "ddpm is trained for 5 epochs, IL-CLDM for 4; --stages baselines goes on" in said
    assert methods(project) == ["aae", "il_cldm", "ddpm", "ddpm_mean", "mean_pet"]
    for name in SYSTEMS[:-1]:
        assert f"{name} is left out: " in said


def test_how_the_ddpm_samples_may_change_after_its_training(project):
    before = pd.read_csv(project / "result" / "a" / "test.csv")
    assert run("baselines", "test", **{"ddpm.samples": 1}) == 0
    assert methods(project) == ["aae", "il_cldm", *SYSTEMS, "mean_pet"]
    assert run("test", **{"ddpm.sampler": "ddpm"}) == 0
    after = pd.read_csv(project / "result" / "a" / "test.csv")
    others = [name for name in before["method"].unique() if not name.startswith("ddpm")]
    pd.testing.assert_frame_equal(*(frame[frame["method"].isin(others)] for frame in (before, after)))
    scores = [frame.loc[frame["method"] == "ddpm", "PSNR"].tolist() for frame in (before, after)]
    assert scores[0] != scores[1]


def test_systems_are_trained_without_a_first_stage_but_not_tested(project, capsys):
    message = refused(project, capsys, "baselines", "test", exp="alone", baselines=("resvit",))
    assert "CHECKPOINT_AAE.pth.tar is not there; run --stages aae first" in message
    assert run("baselines", exp="alone", baselines=("resvit",)) == 0
    one, other = (project / "result" / exp / "CHECKPOINT_resvit_last.pth.tar" for exp in ("a", "alone"))
    assert same_states(one, other)
    message = refused(project, capsys, "baselines", exp="alone", baselines=("resvit", "latent_regression"))
    assert "run --stages aae first" in message


def test_costs_of_a_training_whose_last_checkpoint_is_gone_are_left_empty(project, capsys):
    (project / "result" / "a" / "CHECKPOINT_fgan_last.pth.tar").unlink()
    assert run("test") == 0
    cost = pd.read_csv(project / "result" / "a" / "cost.csv").set_index("method")
    assert cost.loc["fgan", ["volumes_seen", "training_s"]].isna().all()
    assert cost["volumes_seen"].notna().sum() == len(cost) - 1
    assert "fgan is trained for" not in capsys.readouterr().out


def test_a_training_ends_the_costs_and_the_picture_of_earlier_networks(project):
    folder = project / "result" / "a"
    (folder / "CHECKPOINT_resvit.pth.tar").unlink()
    (folder / "CHECKPOINT_resvit_last.pth.tar").unlink()
    assert run("baselines", baselines=("resvit",)) == 0
    assert not any((folder / name).exists() for name in ("scores.json", "cost.csv", "comparison.png"))


def test_sizes_that_do_not_fit_are_all_named_before_anything_is_written(project, capsys):
    message = refused(
        project,
        capsys,
        "aae",
        "encode",
        "ldm",
        "baselines",
        exp="new",
        **{
            "pix2pix.downs": 5,
            "fgan.classifier_pools": 2,
            "fgan.classifier_channels": (4, 4, 4),
            "resvit.slices_per_volume": 40,
            "tpa_gan.ssim_window": 17,
        },
    )
    for part in ("pix2pix: the generator of Pix2Pix halves the grid 5 times",
                 "tpa_gan: tpa_gan.ssim_window is 17, but slices have 16x24 voxels",
                 "resvit: slices_per_volume is 40, but a volume has 16 axial slices"):
        assert part in message


def test_a_damaged_checkpoint_leaves_its_own_row_out_alone(project, capsys):
    (project / "result/a/CHECKPOINT_resvit.pth.tar").write_bytes(b"damaged")
    assert run("test") == 0
    assert "resvit is left out: " in capsys.readouterr().out
    assert methods(project) == ["aae", "il_cldm", *(name for name in METHODS if name != "resvit"), "mean_pet"]


def test_room_is_asked_for_what_the_checkpoints_take(project):
    sizes = [(project / "result" / "a" / file).stat().st_size for file in FILES[1::2]]
    cfg = config(stages=("baselines",), exp="fresh")
    fresh = Experiment(cfg, check(cfg), torch.device("cpu"))
    assert fresh.checkpoint_room() == pytest.approx(3 * sum(sizes), rel=0.3)


def test_an_experiment_from_before_the_systems_is_still_read(project):
    """Its files say nothing of them; their defaults do."""
    path = project / "result" / "a" / "config.json"
    saved = json.loads(path.read_text())
    for name in SYSTEMS:
        del saved["settings"][name]
    path.write_text(json.dumps(saved))
    assert Config(**read_settings("a")).pix2pix == Config().pix2pix
    metadata = load_run(project / "result" / "a").metadata["settings"]
    assert metadata["pix2pix"]["downs"] == 2
