"""The study on disturbed MRIs: its table against independent computations, and the whole of it on a tiny
trained phantom."""
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from conftest import TINY, arguments
from sklearn.metrics import roc_auc_score
from test_main import written

import main
from config import Config
from evaluation import figures
from evaluation.statistics import agreement
from evaluation.uncertainty import Calibration
from experiment.experiment import Experiment
from experiment.saved import read_settings
from experiment.session import check
from studies import robustness
from studies.robustness_table import Frozen, judge, line, make_table, to_markdown
from utils import derived_seed

DRAWS = False                                              # but the figure of the study
PHANTOM = {"regions": "auto", "data_dir": "data/phantom", "phantom_subjects": (6, 10, 4), "phantom_voxel": 8,
           "aae_epochs": 1, "ldm_epochs": 1, "exp": "a"}
NAMES = ["undisturbed", "bias_20", "bias_40", "noise_3", "noise_9", "gamma_0.7", "gamma_1.5", "slices",
         "mask_eroded", "mask_dilated", "shifted", "turned_x", "turned_y", "turned_z", "pet_turned"]
TABLE, SUBJECTS = Path("result/a/robustness.csv"), Path("result/a/robustness_subjects.csv")
# a study of two rows beside those that cannot be left out
FEW = {"bias": (), "noise": (), "gamma": (0.7,)}


# ---------------------------------------------------------------- the table

def made_up(n: int = 12, disturbances: tuple[str, ...] = ("undisturbed", "bad")) -> pd.DataFrame:
    """What would be measured: each disturbance adds its own errors to the scores of the same subjects."""
    rng = np.random.default_rng(0)
    real = rng.normal(1.3, 0.2, n)
    tables = []
    for i, name in enumerate(disturbances):
        tables.append(pd.DataFrame({
            "disturbance": name, "ID": [f"s{j:02d}" for j in range(n)], "label": np.arange(n) % 2,
            "PSNR_brain": rng.normal(28 - i, 2, n), "SSIM_brain": rng.uniform(0.8, 0.9, n),
            "MAE_brain": rng.uniform(0.02, 0.04, n), "SUVR": 0.6 * real + 0.5 + rng.normal(0.1 * i, 0.1, n),
            "SUVR_sd": rng.uniform(0.02, 0.1, n), "SUVR_real": real, "measured_on": "0" * 16}))
    return pd.concat(tables, ignore_index=True)


def frozen() -> Frozen:
    """A calibration from ten validation subjects, and a threshold that some of `made_up` reach."""
    return Frozen(Calibration(np.linspace(0.01, 0.2, 10), np.full(10, 0.05)), 1.3)


def table_of(measured: pd.DataFrame, resamples: int = 200) -> pd.DataFrame:
    """The table of the study, by disturbance."""
    texts = {name: f"text of {name}" for name in measured["disturbance"].unique()}
    return make_table(judge(measured, frozen()), texts, resamples, seed=0).set_index("disturbance")


def test_every_score_is_what_other_libraries_give():
    measured = made_up()
    table = table_of(measured)
    for name, own in measured.groupby("disturbance"):
        row, found = table.loc[name], scipy.stats.linregress(own["SUVR_real"], own["SUVR"])
        assert row["n"] == 12
        assert row["PSNR_brain"] == pytest.approx(np.mean(own["PSNR_brain"]))
        assert row["SUVR_bias"] == pytest.approx(np.mean(own["SUVR"] - own["SUVR_real"]))
        assert (row["SUVR_r"], row["SUVR_slope"]) == pytest.approx((found.rvalue, found.slope))
        assert row["AUC"] == pytest.approx(roc_auc_score(own["label"], own["SUVR"]))
        scores = np.sort(np.linspace(0.01, 0.2, 10) / (0.05 + 0.105))
        half = scores[9] * (own["SUVR_sd"] + 0.105)        # ceil(0.9 * 11) = 10: the largest of ten
        assert row["coverage"] == pytest.approx(np.mean(abs(own["SUVR"] - own["SUVR_real"]) <= half))
    suvr = measured.pivot(index="ID", columns="disturbance", values="SUVR")
    assert table.loc["bad", "SUVR_abs_change"] == pytest.approx(
        np.mean(abs(suvr["bad"] - suvr["undisturbed"]))
    )
    same = (suvr["bad"] >= 1.3) == (suvr["undisturbed"] >= 1.3)
    assert 0 < same.mean() < 1 and table.loc["bad", "same_status"] == pytest.approx(same.mean())


def test_the_interval_of_a_change_is_that_of_the_paired_differences():
    measured = made_up()
    row = table_of(measured).loc["bad"]
    wide = measured.pivot(index="ID", columns="disturbance")
    for score, column in (("PSNR_brain", "PSNR_brain"), ("MAE_brain", "MAE_brain"), ("SUVR_bias", "SUVR")):
        difference = (wide[column]["bad"] - wide[column]["undisturbed"]).to_numpy()
        expected = scipy.stats.bootstrap((difference,), np.mean, n_resamples=200, method="percentile",
                                         rng=np.random.default_rng(derived_seed("robustness", 0)), batch=500)
        assert row[f"{score}_change"] == pytest.approx(difference.mean())
        assert (row[f"{score}_change_low"], row[f"{score}_change_high"]) == pytest.approx(
            tuple(expected.confidence_interval), abs=1e-9)


def test_the_interval_of_a_changed_slope_and_auc_by_a_plain_loop():
    measured = made_up()
    row = table_of(measured).loc["bad"]
    index = []
    scipy.stats.bootstrap((np.arange(12),), lambda sample, axis: index.append(sample) or sample.mean(-1),
                          n_resamples=200, method="percentile", batch=500,
                          rng=np.random.default_rng(derived_seed("robustness", 0)))
    drawn = next(some for some in index if some.shape == (200, 12))
    before, bad = (own.reset_index() for _, own in sorted(measured.groupby("disturbance"), reverse=True))
    slopes, aucs = [], []
    for chosen in drawn:
        one, other = bad.iloc[chosen], before.iloc[chosen]
        fits = [np.polyfit(own["SUVR_real"], own["SUVR"], 1)[0] for own in (one, other)]
        areas = [roc_auc_score(own["label"], own["SUVR"]) for own in (one, other)]
        slopes.append(fits[0] - fits[1])
        aucs.append(areas[0] - areas[1])
    for score, changes in (("SUVR_slope", slopes), ("AUC", aucs)):
        low, high = np.percentile(changes, [2.5, 97.5])
        assert (row[f"{score}_change_low"], row[f"{score}_change_high"]) == pytest.approx((low, high))


def test_the_undisturbed_row_has_no_change():
    row = table_of(made_up()).loc["undisturbed"]
    for name in row.index[row.index.str.contains("_change")]:
        assert row[name] == 0, name
    assert row["same_status"] == 1


def test_the_line_is_that_of_agreement_also_of_many_lists_at_once():
    rng = np.random.default_rng(0)
    real, suvr = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    r, slope = line(real, suvr)
    for i in range(5):
        found = agreement(real[i], suvr[i])
        assert (r[i], slope[i]) == pytest.approx((found["Pearson"], found["slope"]))


@pytest.mark.parametrize(("change", "undefined"), [
    ({"SUVR": 1.2}, {"SUVR_r"}),                           # one PET for everybody: slope 0
    ({"SUVR_real": 1.2}, {"SUVR_r", "SUVR_slope"}), ({"label": 1}, {"AUC"}), ({"label": 2}, {"AUC"}),
    ({"SUVR": np.nan}, {"SUVR_bias", "SUVR_r", "SUVR_slope", "AUC", "coverage", "same_status",
                        "SUVR_abs_change"})])
def test_what_is_not_defined_is_nan_and_a_dash(change, undefined):
    measured = made_up().assign(**change)
    table = table_of(measured)
    scores = ["PSNR_brain", "SUVR_bias", "SUVR_r", "SUVR_slope", "AUC", "coverage", "same_status",
              "SUVR_abs_change"]
    assert {name for name in scores if np.isnan(table.loc["bad", name])} == undefined
    assert "nan" not in to_markdown(table.reset_index(), "note")


def test_no_interval_and_no_threshold_leave_the_rest():
    few = Frozen(Calibration(np.linspace(0.01, 0.2, 3), np.full(3, 0.05)), float("nan"))
    table = make_table(judge(made_up(), few), {"undisturbed": "", "bad": ""}, 50, 0).set_index("disturbance")
    assert table[["coverage", "same_status"]].isna().all(axis=None)
    assert table["SUVR_r"].notna().all()


def test_a_single_subject_has_scores_and_no_interval():
    row = table_of(made_up(n=1)).loc["bad"]
    assert row["n"] == 1 and np.isfinite(row["PSNR_brain_change"]) and np.isnan(row["PSNR_brain_change_low"])


# ---------------------------------------------------------------- the whole study

def run_study(**settings) -> int:
    """Exit code of a study of experiment `a`, with its own settings but for those that are given."""
    try:
        return main.main(["study", "robustness", *arguments({"exp": "a"} | settings)])
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """A project folder in which a tiny phantom went through training, test and study, as experiment `a`."""
    root = tmp_path_factory.mktemp("studied")
    before = os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        words = [*arguments(TINY | PHANTOM), "--stages", "aae", "encode", "ldm", "test"]
        assert main.main(words) == 0
        assert run_study() == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(studied, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the working directory; a study draws no picture."""
    shutil.copytree(studied, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(figures, "plot_robustness", do_nothing)
    return tmp_path / "project"


def do_nothing(*_) -> None:
    """Stand in for a picture."""


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The disturbances that a study measures from now on."""
    names, measure = [], robustness.measure

    def note(exp, sampler, disturbance):
        names.append(disturbance.name)
        return measure(exp, sampler, disturbance)
    monkeypatch.setattr(robustness, "measure", note)
    return names


def test_it_writes_a_row_a_disturbance_and_a_row_a_subject(studied):
    table, subjects = pd.read_csv(studied / TABLE), pd.read_csv(studied / SUBJECTS)
    assert table["disturbance"].tolist() == NAMES and set(table["n"]) == {4}
    assert subjects["disturbance"].value_counts().to_dict() == dict.fromkeys(NAMES, 4)
    scores = ["PSNR_brain", "SUVR_bias", "SUVR_slope", "AUC", "coverage", "same_status", "SUVR_abs_change"]
    assert table[[*scores, "PSNR_brain_change_low", "SUVR_bias_change_high"]].notna().all(axis=None)
    text = (studied / "result/a/robustness.md").read_text()
    assert (
        "digital phantom, not patient data" in text and "slices of 16 mm" in text and "8 mm tighter" in text
    )
    files = {path.name for path in (studied / TABLE).parent.glob("robustness*")}
    assert files == {"robustness.csv", "robustness.md", "robustness.pdf", "robustness.png",
                     "robustness_subjects.csv"}


def test_the_undisturbed_row_is_what_the_test_stage_found(studied):
    folder = studied / "result/a"
    own = pd.read_csv(studied / SUBJECTS).query("disturbance == 'undisturbed'").set_index("ID")
    images = pd.read_csv(folder / "test.csv").query("method == 'il_cldm'").set_index("ID")
    uncertainty = pd.read_csv(folder / "uncertainty.csv").set_index("ID")
    status = pd.read_csv(folder / "predictions.csv").query("classifier == 'suvr' and method == 'il_cldm'")
    for name in ("PSNR_brain", "SSIM_brain", "MAE_brain"):
        assert own[name].to_dict() == pytest.approx(images[name].to_dict(), rel=1e-5)
    for name in ("SUVR", "SUVR_sd", "SUVR_real", "low", "high", "covered"):
        assert own[name].to_dict() == pytest.approx(uncertainty[name].to_dict(), rel=1e-4), name
    assert own["positive"].to_dict() == status.set_index("ID")["positive"].to_dict()


def test_a_disturbed_row_is_what_the_frozen_sampler_makes_of_such_mris(project):
    cfg = Config(**read_settings("a"))
    exp = Experiment(cfg, check(cfg), torch.device("cpu"))
    sampler = exp.latent_sampler(*exp.networks.best_synthesizer())
    own = pd.read_csv(SUBJECTS).query("disturbance == 'gamma_0.7'").set_index("ID")
    for batch in exp.batches(exp.cohort.test, "mri", "pet", batch=1):
        x_hat = sampler.synthesize(batch | {"mri": batch["mri"] ** 0.7})[0, 0]
        row = own.loc[batch["id"][0]]
        expected = exp.measurement.image_scores(x_hat, {"pet": batch["pet"][0, 0]})["PSNR_brain"]
        assert row["PSNR_brain"] == pytest.approx(expected, rel=1e-4)
        assert row["SUVR"] == pytest.approx(exp.measurement.uptake(x_hat)["SUVR"], rel=1e-4)


def test_the_pet_of_a_turned_mri_is_scored_in_the_place_of_the_real_one(project, monkeypatch):
    """Networks that return the MRI as its PET: turned and brought back it must be near the MRI."""
    cfg = Config(**read_settings("a"))
    exp = Experiment(cfg, check(cfg), torch.device("cpu"))
    sampler = exp.latent_sampler(*exp.networks.best_synthesizer())
    settings = robustness.RobustnessSettings(exp="a")
    plan = {one.name: one for one in robustness.planned(settings, exp.cohort.affine)}
    batch = next(iter(exp.batches(exp.cohort.test, "mri", batch=1)))

    def decoded(synthesis, latents: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(synthesis.mri(batch["id"][0]))[None, None].expand(
            len(latents), -1, -1, -1, -1
        )

    for name in ("turned_x", "turned_y", "turned_z", "shifted"):
        synthesis = robustness.DisturbedSynthesis(exp, sampler, plan[name])
        monkeypatch.setattr(sampler.synthesizer, "decode", partial(decoded, synthesis))
        moved, back = synthesis.mri(batch["id"][0]), synthesis(batch).x_hat[0, 0].numpy()
        inside, still = exp.measurement.brain, batch["mri"][0, 0].numpy()
        away, near = (np.abs(volume - still)[inside].mean() for volume in (moved, back))
        assert near < 0.8 * away, name                     # at 8 mm, interpolation itself costs much


def test_the_same_command_goes_on_and_gives_the_same_bytes(project, measured):
    files = {path: path.read_bytes() for path in (TABLE, SUBJECTS, TABLE.with_suffix(".md"))}
    assert run_study() == 0
    assert measured == [] and all(path.read_bytes() == content for path, content in files.items())
    subjects = pd.read_csv(SUBJECTS, dtype=str)
    subjects = subjects[subjects["disturbance"] != "noise_9"].drop(columns=["covered", "SUVR_change"])
    subjects.drop(index=subjects.index[-1]).to_csv(SUBJECTS, index=False)      # as an interruption leaves it
    assert run_study() == 0
    assert measured == ["noise_9", "pet_turned"]
    assert all(path.read_bytes() == content for path, content in files.items())


def test_other_strengths_are_measured_beside_and_other_networks_again(project, measured):
    assert run_study(**(FEW | {"gamma": (0.7, 2)})) == 0
    assert measured == ["gamma_2"]
    assert pd.read_csv(TABLE)["disturbance"].tolist() == ["undisturbed", "gamma_0.7", "gamma_2", *NAMES[7:]]
    measured.clear()
    subjects = pd.read_csv(SUBJECTS, dtype=str)
    subjects.assign(measured_on="0" * 16).to_csv(SUBJECTS, index=False)
    assert run_study(**FEW) == 0
    assert measured == ["undisturbed", "gamma_0.7", *NAMES[7:]]


@pytest.mark.parametrize("repeated", [(20, 20), (20, 20.0, 20)])
def test_a_strength_that_is_given_twice_is_one_row(repeated):
    settings = robustness.RobustnessSettings(exp="a", bias=repeated)
    names = [one.name for one in robustness.planned(settings, np.diag([8, 8, 8, 1]))]
    assert names.count("bias_20") == 1 and len(set(names)) == len(names)


def test_without_regions_there_are_image_scores_alone(project, capsys):
    without = TINY | PHANTOM | {"exp": "b", "regions": "none"}
    assert main.main([*arguments(without), "--aae_from", "a", "--stages", "ldm"]) == 0    # never tested
    assert run_study(**FEW, exp="b") == 0
    table = pd.read_csv("result/b/robustness.csv")
    assert not [name for name in table if "SUVR" in name or name in ("AUC", "coverage", "same_status")]
    assert table["PSNR_brain_change_low"].notna().all()
    assert "no SUVR is measured" in capsys.readouterr().out


# ---------------------------------------------------------------- what it refuses

def no_test_stage() -> None:
    """Take the calibration away."""
    Path("result/a/calibration.npz").unlink()


def damaged_calibration() -> None:
    """Cut the calibration short."""
    path = Path("result/a/calibration.npz")
    path.write_bytes(path.read_bytes()[:100])


def damaged_subjects() -> None:
    """Something else in the place of the subjects."""
    SUBJECTS.write_bytes(b"\xff\xfe\x00 no table")


def no_denoiser() -> None:
    """Stage 2 is not trained."""
    for path in Path("result/a").glob("CHECKPOINT_Unet*"):
        path.unlink()


@pytest.mark.parametrize(("settings", "fault", "words"), [
    ({"exp": "typo"}, None,
     "result/typo/config.json is not there or damaged: a trained experiment is needed; trained here: a"),
    ({}, no_denoiser, "result/a/CHECKPOINT_Unet.pth.tar is not there; run --stages encode ldm first"),
    ({}, no_test_stage, "calibration.npz: not calibrated; --stages test does it"),
    ({}, damaged_calibration, "result/a/calibration.npz: damaged"),
    ({}, damaged_subjects, "robustness_subjects.csv: damaged"),
    ({"samples_per_scan": 3}, None, "calibrated for others (saved -> now): samples_per_scan: 2 -> 3"),
    ({"sampling_steps": 2}, None, "sampling_steps: 3 -> 2"),
    ({"exp": ""}, None, "study robustness needs --exp"),
    ({"bias": (-5,)}, None, "bias"), ({"noise": (101,)}, None, "noise"), ({"gamma": (0,)}, None, "gamma"),
    ({"turn": 181}, None, "turn"), ({"shift": "far"}, None, "shift"), ({"slices": -1}, None, "slices"),
    ({"strength": 3}, None, "unknown setting --strength"), ({"seed": 1}, None, "unknown setting --seed")])
def test_what_cannot_be_studied_is_refused_before_anything_is_written(
    project, capsys, settings, fault, words
):
    if fault:
        fault()
    before = written()
    assert run_study(**settings) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert written() == before
