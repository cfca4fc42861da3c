"""The study: its plan, its tables, and that it goes on where it was interrupted."""
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, arguments
from presets import PRESETS
from scipy.special import expit
from scipy.stats import norm

import main
from config import Config
from runtime.commandline import parse_args
from studies import repairs as study
from studies.repairs import BY_NAME, ROWS, SEEDS, Row
from studies.repairs_table import make_bars, make_table, mean_squared_error, read_gains, stacked, to_markdown

GROUP = {field.name: field.metadata["group"] for field in dataclasses.fields(Config)}


def differences(one: Config, other: Config) -> set[str]:
    return {field.name for field in dataclasses.fields(Config) if getattr(one, field.name) != getattr(other, field.name)}


def settings_of(row: Row, seed: int = 0) -> Config:
    return parse_args(study.words(row, seed))


def test_every_row_is_a_run_of_its_own_whose_lender_has_what_it_needs():
    names = {(settings_of(row, seed).exp) for row in ROWS for seed in SEEDS}
    assert len(names) == len(ROWS) * len(SEEDS) and len(BY_NAME) == len(ROWS)
    trains = {study.experiment(0, row.name): row.trains for row in ROWS}
    for row in ROWS:
        cfg, of = settings_of(row), BY_NAME[row.of or "default"]
        lender = settings_of(of)
        changed = {GROUP[name] for name in differences(cfg, lender)} - {"run"}
        allowed = {"nothing": {"sampling"}, "ldm": {"sampling", "ldm"}, "aae": {"sampling", "ldm", "aae", "data", "phantom", "run"}}
        assert changed <= allowed[row.trains], row.name
        assert (cfg.ldm_from, cfg.lent_by("aae")) == {"nothing": (lender.exp, lender.lent_by("aae") or lender.exp), "aae": ("", ""),
                                                      "ldm": ("", lender.lent_by("aae") or lender.exp)}[row.trains], row.name
        assert not cfg.lent_by("aae") or trains[cfg.lent_by("aae")] == "aae"                 # a stage is lent by who trained it
        assert not cfg.lent_by("ldm") or trains[cfg.lent_by("ldm")] != "nothing"
        assert (cfg == lender) == (row.name == "default")
        assert ROWS.index(of) <= ROWS.index(row)           # a lender is trained first
        assert row.trains != "nothing" or of.trains != "nothing"


def test_published_is_published_but_for_its_sampler():
    cfg, published = settings_of(BY_NAME["published"]), parse_args(["--preset", "demo", "published"])
    groups = {GROUP[name]: name for name in differences(cfg, published)}
    changed = differences(cfg, published) - {"exp"}
    assert changed == {"sampler", "sampling_steps", "phantom_subjects", "phantom_seed", "data_dir", "ldm_epochs"}, groups


def test_every_row_is_run_with_the_first_seed_and_controls_with_all():
    plan = [(row.name, seed) for row, seed in study.planned([0, 1, 2], None)]
    assert [name for name, seed in plan if seed == 0] == [row.name for row in ROWS]
    controls = ["default", "earlier", "image_loss", "intensities", "no_dropout", "shuffled", "link_0", "link_0_shuffled",
                "voxel_mean", "block_norm"]
    assert [name for name, seed in plan if seed == 1] == [name for name, seed in plan if seed == 2] == controls
    assert [(row.name, seed) for row, seed in study.planned([1, 2], ["x0"])] == [("x0", 1), ("x0", 2)]


def test_seeds_have_cohorts_of_their_own_and_link_0_too():
    seen = {(settings_of(row, seed).data_dir, settings_of(row, seed).phantom_seed, settings_of(row, seed).phantom_link)
            for row in ROWS for seed in SEEDS}
    assert len(seen) == 6 and len({data for data, _, _ in seen}) == 6
    assert all(seed != PRESETS["demo"].get("phantom_seed", 0) for _, seed, _ in seen)


# ---------------------------------------------------------------- tables

def made_up(**changes) -> pd.DataFrame:
    """Scores of three seeds in which every bar is reached, but for the changes: column -> value of the default."""
    default = {"PSNR_brain": 27.0, "SSIM_brain": 0.9, "way": 0.8, "AUC": 0.78, "AUC_MRI_PET": 0.8, "r": 0.6, "slope": 0.3,
               "coverage": 0.9, "Brier": 0.2, "Brier_base": 0.25, "validation_PSNR_brain": 28.0} | changes
    rows = []
    for seed in range(3):
        rows += [{"row": "default", "seed": seed, **default, "PSNR_brain": default["PSNR_brain"] + 0.1 * (seed - 1)},
                 {"row": "latent_regression", "seed": seed, "PSNR_brain": 27.05}, {"row": "MRI classifier", "seed": seed, "AUC": 0.79},
                 {"row": "oracle", "seed": seed, "r": 0.7, "slope": 0.45},
                 {"row": "link_0", "seed": seed, "AUC": 0.55, "AUC_low": 0.4, "AUC_high": 0.7, "validation_PSNR_brain": 27.8}]
    return pd.DataFrame(rows)


def test_bars_are_reached_if_and_only_if_the_numbers_say_so():
    bars = make_bars(made_up())
    assert bars["reached"].all() and len(bars) == 11
    for column, value, named in [("PSNR_brain", 26.9, "PSNR in brain"), ("way", 0.69, "way"), ("AUC", 0.76, "AUC of the SUVR"),
                                 ("AUC_MRI_PET", 0.78, "MRI and synthetic"), ("r", 0.59, "r of the SUVR"), ("slope", 0.26, "slope"),
                                 ("coverage", 0.84, "coverage"), ("coverage", 0.96, "coverage"), ("Brier", 0.26, "Brier")]:
        missed = make_bars(made_up(**{column: value})).query("not reached")["bar"].tolist()
        assert len(missed) == 1 and missed[0].find(named) >= 0, (column, missed)
    scores = made_up()
    scores.loc[(scores["row"] == "link_0") & (scores["seed"] == 2), "AUC_low"] = 0.51
    assert make_bars(scores).query("not reached")["bar"].tolist() == ["link_0: AUC, seed 2"]
    assert make_bars(scores[scores["row"] != "default"]).empty


def test_the_table_has_means_and_deviations_over_the_seeds():
    gains = pd.DataFrame({"gain": [-0.2], "gain_low": [-0.3], "gain_high": [0.1]}, index=["link_0"])
    table = make_table(made_up(), gains, {"default": ("", ""), "link_0": ("--phantom_link 0", "control")}).set_index("row")
    assert (table.loc["default", "n"], table.loc["default", "PSNR_brain"]) == (3, pytest.approx(27.0))
    assert table.loc["default", "PSNR_brain_sd"] == pytest.approx(0.1)
    assert table.loc["link_0", "change"] == "--phantom_link 0" and np.isnan(table.loc["oracle", "AUC"])
    text = to_markdown(table.reset_index(), make_bars(made_up()))
    assert "27.00 ± 0.10" in text and "-0.20 [-0.30, +0.10]" in text and "nan" not in text


def test_gains_are_those_of_the_same_subjects_over_all_seeds(tmp_path):
    rng = np.random.default_rng(0)

    def listed(name: str, psnr: np.ndarray, suvr: np.ndarray) -> Path:
        (tmp_path / name).mkdir()
        pd.DataFrame({"PSNR_brain": psnr, "SUVR_real": suvr}).to_csv(tmp_path / name / "validation_list.csv", index=False)
        return tmp_path / name
    pairs, suvr = [], rng.normal(1.2, 0.2, (2, 60))
    for seed in range(2):                                  # subjects differ by 3 dB, the methods by 0.2 with much less noise
        psnr = rng.normal(27, 3, 60)
        pairs.append((listed(f"row{seed}", psnr + 0.2 + rng.normal(0, 0.3, 60), suvr[seed]), listed(f"default{seed}", psnr, suvr[seed])))
    other = listed("other_cohort", rng.normal(30, 3, 60), rng.normal(1.2, 0.2, 60))
    gains = read_gains({(row, seed): folder for seed, pair in enumerate(pairs)
                        for row, folder in zip(("row", "default"), pair, strict=True)} | {("link_0", 0): other, ("row", 2): other},
                       {"row": "default", "link_0": "default", "default": "default"})
    assert gains.index.tolist() == ["row"]
    gain, low, high = gains.loc["row"]
    assert gain == pytest.approx(0.2, abs=0.1) and 0 < low < gain < high
    assert high - low == pytest.approx(2 * 1.96 * 0.3 / np.sqrt(120), rel=0.3)


def test_mri_and_synthetic_pet_are_weighed_by_what_each_tells_in_the_validation_list():
    rng = np.random.default_rng(1)

    def subjects(n: int, by_mri: float, by_pet: float) -> pd.DataFrame:
        label = rng.permutation(np.arange(n) % 2)
        return pd.DataFrame({"label": label, "score_mri": expit(by_mri * label + rng.normal(size=n)),
                             "SUVR": 1.2 + 0.1 * (by_pet * label + rng.normal(size=n))})

    def expected(distance: float) -> float:
        return norm.cdf(distance / np.sqrt(2))             # AUC of two normal distributions of SD 1 with means so far apart
    for by_mri, by_pet in [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, -1.0)]:
        found = stacked(subjects(4000, by_mri, by_pet), subjects(4000, by_mri, by_pet))
        assert found == pytest.approx(expected(np.hypot(by_mri, by_pet)), abs=0.02), (by_mri, by_pet)
    validation, test = subjects(60, 1, 1), subjects(80, 1, 1)
    assert stacked(validation, test.assign(label=1 - test["label"])) == pytest.approx(1 - stacked(validation, test))
    sure = test.assign(score_mri=test["label"].astype(float))                                # log odds of 0 and 1 are infinite
    assert stacked(sure, sure) == 1
    assert np.isnan(stacked(validation.assign(label=0), test)) and np.isnan(stacked(validation, test.assign(SUVR=np.nan)))


def test_squared_error_comes_back_from_psnr():
    error = np.array([1e-3, 4e-3])
    assert mean_squared_error(pd.DataFrame({"PSNR_brain": -10 * np.log10(error)})) == pytest.approx(2.5e-3)


# ---------------------------------------------------------------- the run

@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study on phantoms at 8 mm: the default and a row that samples it otherwise; main in this process."""
    phantom = {"phantom_voxel": 8, "phantom_subjects": (6, 10, 4),
               "image_size": (22, 27, 22), "aae_epochs": 1, "ldm_epochs": 1, "validation_every": 1}
    monkeypatch.chdir(tmp_path)
    rows = (Row("default", "", trains="aae", of=""), Row("draws_4", "--samples_per_scan 4", "", "nothing", "default"))
    monkeypatch.setattr(study, "ROWS", rows)
    monkeypatch.setattr(study, "BY_NAME", {row.name: row for row in rows})
    plain, commands = study.words, []
    monkeypatch.setattr(study, "words", lambda row, seed: [*plain(row, seed), *arguments(
        {name: value for name, value in (TINY | phantom).items() if f"--{name}" not in row.change.split()})])

    def call(command):
        commands.append(command[2:])
        return main.main(command[2:])
    monkeypatch.setattr(study, "call", call)
    return tmp_path, commands


def test_the_study_scores_its_rows_and_goes_on_where_it_was_interrupted(small, monkeypatch, capsys):
    root, commands = small
    assert study.main(["--seeds", "0", "--rows", "default"]) == 0
    assert [command[-1] for command in commands] == ["controls", "test"]
    assert study.main(["--quick"]) == 0
    assert len(commands) == 2 + 1                          # the first is not run again
    table = pd.read_csv(root / "result" / "study" / "study.csv").set_index("row")
    assert table.loc["default", "n"] == 1 == table.loc["draws_4", "n"]
    assert {"mean_pet", "latent_regression", "image_regression", "oracle", "MRI classifier", "label predictor"} < set(table.index)
    assert table.loc["mean_pet", "way"] == 0 and table.loc["oracle", "way"] == pytest.approx(1)
    scores = pd.read_csv(root / "result" / "study" / "scores.csv")
    default = scores.query("row == 'default' and seed == 0").iloc[0]
    test = pd.read_csv(root / "result" / "study0_default" / "test.csv").query("method == 'il_cldm'")
    assert default["PSNR_brain"] == pytest.approx(test["PSNR_brain"].mean())
    listed = pd.read_csv(root / "result" / "study0_default" / "validation_list.csv")
    assert default["validation_r"] == pytest.approx(listed["SUVR"].corr(listed["SUVR_real"]))
    assert 0 <= default["AUC_stacked"] <= 1
    assert default["s_train"] > 0 and np.isnan(scores.query("row == 'mean_pet'")["s_train"]).all()
    commands.clear()
    assert study.main(["--quick"]) == 0 and not commands
    (root / "result" / "study0_draws_4" / "test.csv").write_text("spoilt")
    assert study.main(["--quick"]) == 0 and len(commands) == 1


def test_tables_of_nothing_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert study.main(["--tables"]) == 2
    assert "no row of seeds 0, 1, 2 is finished" in capsys.readouterr().err


def test_a_row_that_fails_ends_the_study_with_its_command(small, monkeypatch, capsys):
    monkeypatch.setattr(study, "call", lambda command: 3)
    assert study.main(["--quick"]) == 3
    assert "row default, seed 0: exit code 3 of" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_row_the_time_to_save(number):
    """SIGINT goes to both, as a terminal sends it; SIGTERM to the study alone, which passes it on."""
    child = ("import signal, sys, time\n"
             "def answer(*_):\n    time.sleep(1)\n    sys.exit(7)\n"                        # saving takes its time
             "signal.signal(signal.SIGINT, answer)\nsignal.signal(signal.SIGTERM, answer)\nprint('ready', flush=True)\ntime.sleep(60)")
    parent = f"import sys, study\nsys.exit(study.call([sys.executable, '-c', {child!r}]))"
    with subprocess.Popen([sys.executable, "-c", parent], cwd=Path(study.__file__).parent, stdout=subprocess.PIPE,
                          start_new_session=True) as process:
        assert process.stdout.readline() == b"ready\n"
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        assert process.wait(timeout=30) == 7
