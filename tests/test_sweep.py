"""The sweep over samplers, steps and numbers of samples: what it measures, continues and refuses."""
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY, arguments, write_cohort
from test_main import masks, written

import main
from config import Config
from evaluation import figures
from experiment.experiment import Experiment
from experiment.networks import LatentSampler
from experiment.saved import read_settings
from experiment.session import check
from studies import sweep

DRAWS = False                                              # but the figure of the sweep
TABLE = Path("result/a/sweep/sampling_sweep.csv")


def run_sweep(exp: str = "a", **settings) -> int:
    """Exit code of a sweep of an experiment, with its own settings but for those that are given."""
    try:
        return main.main(["sweep", *arguments({"exp": exp} | settings)])
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A project folder in which the tiny cohort went through both stages and a sweep, as experiment `a`."""
    root = tmp_path_factory.mktemp("swept")
    write_cohort(root)
    before = os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        trained = arguments(TINY | {"exp": "a", "aae_epochs": 1, "ldm_epochs": 1})
        assert main.main([*trained, "--stages", "aae", "encode", "ldm"]) == 0
        assert run_sweep() == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(swept, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the working directory; a sweep draws no picture."""
    shutil.copytree(swept, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(figures, "plot_sampling", do_nothing)
    return tmp_path / "project"


def do_nothing(*_) -> None:
    """Stand in for a picture."""


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, int]]:
    """Sampler and steps of every row that a sweep measures from now on, once for all numbers of samples."""
    rows, score = [], sweep._score

    def note(exp, synthesizer, predictor, sampler, steps, *others):
        rows.append((sampler, steps))
        return score(exp, synthesizer, predictor, sampler, steps, *others)
    monkeypatch.setattr(sweep, "_score", note)
    return rows


# ---------------------------------------------------------------- what it measures

def test_it_covers_all_samplers_and_the_setting_of_the_experiment(swept):
    table = pd.read_csv(swept / TABLE)
    found = {sampler: sorted(set(rows["NFE"])) for sampler, rows in table.groupby("sampler")}
    # 3: the setting; T is 20: steps of dpm meet
    assert found == {"ddim": [1, 2, 3, 5, 10], "dpm": [1, 2, 5, 9], "ddpm": [19]}
    samples = table.groupby(["sampler", "steps"])["samples"].agg(list).to_dict()
    assert sorted(samples.pop(("ddim", 3))) == [1, 2, 4, 16]  # those of the setting too
    assert all(sorted(counts) == [1, 4, 16] for counts in samples.values())
    assert set(table["n"]) == {2} and table["measured_on"].nunique() == 1
    files = {path.name for path in (swept / TABLE).parent.iterdir()}
    assert files == {"sampling_sweep.csv", "sampling_sweep.png", "sampling_sweep.pdf"}


@pytest.mark.parametrize(("sampler", "steps", "samples"), [("ddim", 3, 2), ("dpm", 5, 4)])
def test_a_row_is_what_a_run_with_these_settings_scores(project, sampler, steps, samples):
    cfg = Config(**read_settings("a"))
    exp = Experiment(cfg, check(cfg), torch.device("cpu"))
    synthesizer, predictor = exp.networks.best_synthesizer()
    run = LatentSampler(cfg, synthesizer, predictor, exp.measurement, sampler, steps, range(samples))
    rows = []
    for batch in exp.batches(exp.cohort.validation, "mri", "pet", batch=1):
        x_hat = run.synthesize(batch)[0, 0]
        rows.append(exp.measurement.image_scores(x_hat, {"pet": batch["pet"][0, 0]}))
    scores = pd.DataFrame(rows)
    table = pd.read_csv(TABLE).set_index(["sampler", "steps", "samples"])
    row = table.loc[(sampler, steps, samples), scores.columns]
    assert row.to_dict() == pytest.approx(scores.mean().to_dict(), rel=1e-5)


def test_a_ddpm_setting_has_its_number_of_samples_too(project, monkeypatch):
    monkeypatch.setattr(sweep, "STEPS", ())
    TABLE.unlink()
    assert run_sweep(sampler="ddpm") == 0
    table = pd.read_csv(TABLE)
    assert table[["sampler", "steps", "samples"]].values.tolist() == [["ddpm", 19, m] for m in (1, 2, 4, 16)]


def test_with_regions_it_says_how_synthetic_and_real_suvr_go_together(project, monkeypatch, measured):
    monkeypatch.setattr(sweep, "STEPS", (1,))
    monkeypatch.setattr(sweep, "SAMPLES", (1,))
    assert "SUVR_r" not in pd.read_csv(TABLE)
    assert run_sweep(**masks(project), sampling_steps=1, samples_per_scan=1) == 0
    table = pd.read_csv(TABLE)
    # nothing that was measured without regions stays
    assert measured == [("dpm", 1), ("ddim", 1), ("ddpm", 19)]
    assert table["SUVR_r"].abs().tolist() == pytest.approx([1.0] * 3)                        # of two subjects


# ---------------------------------------------------------------- what it continues

def test_rows_that_are_missing_or_of_other_networks_are_measured_again(project, measured):
    whole, table = TABLE.read_bytes(), pd.read_csv(TABLE, dtype={"measured_on": str})
    table = table[~((table["sampler"] == "ddim") & (table["samples"] == 4))]  # as an interruption leaves it
    table.loc[table["sampler"] == "dpm", "measured_on"] = "0" * 16
    table.to_csv(TABLE, index=False)
    assert run_sweep() == 0
    assert TABLE.read_bytes() == whole
    assert set(measured) == {(sampler, steps) for sampler in ("ddim", "dpm") for steps in (1, 2, 5, 10)} | {
        ("ddim", 3)}
    measured.clear()
    assert run_sweep() == 0
    assert TABLE.read_bytes() == whole and measured == []


def test_another_setting_adds_its_row_and_loses_none(project, measured):
    before = pd.read_csv(TABLE)
    assert run_sweep(samples_per_scan=3, sampling_steps=10) == 0
    assert measured == [("ddim", 10)]
    keys = ["sampler", "steps", "samples"]
    both = pd.read_csv(TABLE).merge(before, how="outer", on=keys, indicator=True)["_merge"]
    assert both.value_counts().to_dict() == {"both": len(before), "left_only": 1, "right_only": 0}


# ---------------------------------------------------------------- what it refuses

@pytest.mark.parametrize(("settings", "words"), [
    ({"exp": "typo"},
     "result/typo/config.json is not there or damaged: a trained experiment is needed; trained here: a"),
    ({"exp": "begun"}, "result/begun/CHECKPOINT_Unet.pth.tar is not there; run --stages encode ldm first"),
    ({"exp": ""}, "sweep needs --exp"),
    ({"seed": 1}, "unknown setting --seed"),
    ({"sampling_steps": 20}, "sampling_steps 20 must be at most timesteps - 1 = 19")])
def test_what_cannot_be_swept_is_refused_before_anything_is_written(project, capsys, settings, words):
    shutil.copytree("result/a", "result/begun", ignore=shutil.ignore_patterns("CHECKPOINT_Unet*", "sweep"))
    before = written()
    assert run_sweep(**settings) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert written() == before
