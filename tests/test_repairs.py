"""The study: its rows, its tables, and that it goes on where it was interrupted."""
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
from scipy.special import expit
from scipy.stats import norm

import main
from config import ALL, PRESETS, PUBLISHED, Config
from runtime.commandline import parse
from studies import repairs as study
from studies import running
from studies.repairs import SEEDS, settings_of
from studies.repairs_rows import BY_NAME, ROWS, Row
from studies.repairs_table import (
    gains_of,
    make_criteria,
    make_table,
    mean_squared_error,
    stacked_auc,
    to_markdown,
)

ROOT = Path(study.__file__).parents[1]
DRAWS = False
AFFECTS = {field.name: set(field.metadata["affects"]) for field in dataclasses.fields(Config)}
PLACES = {"exp", "aae_from", "ldm_from"}                   # in which a row differs because it is another one
# Settings that follow from the one that a row names.
FOLLOWING = {"no_label": {"label_at_sampling"},            # a UNet without labels is sampled without one
             "link_0": {"data_dir"}}                       # another cohort lies in another folder


def differences(one: Config, other: Config) -> set[str]:
    """Names of the settings in which two configurations differ."""
    names = [field.name for field in dataclasses.fields(Config)]
    return {name for name in names if getattr(one, name) != getattr(other, name)}


def named_settings(change: str) -> set[str]:
    """The settings that a command line names."""
    return {word.removeprefix("--") for word in change.split() if word.startswith("--")}


# ---------------------------------------------------------------- the rows

@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_row_is_a_configuration_of_its_own_name_and_seed(row, seed):
    cfg = settings_of(row, seed)
    assert isinstance(cfg, Config) and cfg.is_phantom
    assert (cfg.exp, cfg.seed) == (f"study{seed}_{row.name}", seed)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "published"], ids=lambda row: row.name)
def test_a_row_differs_from_its_own_one_in_exactly_the_settings_that_it_names(row):
    of = BY_NAME[row.of or "default"]
    found = differences(settings_of(row, 0), settings_of(of, 0)) - PLACES
    assert found == named_settings(row.change) | FOLLOWING.get(row.name, set())


def test_published_is_published_but_for_its_sampler():
    published = parse(Config, ["--preset", "benchmark", "published"], "main.py", "", PRESETS)
    found = differences(settings_of(BY_NAME["published"], 0), published)
    assert found == {"exp", "data_dir", "sampler"}         # the preset has 50 steps for it
    from_default = differences(settings_of(BY_NAME["published"], 0), settings_of(BY_NAME["default"], 0))
    assert from_default - PLACES == PUBLISHED.keys() - {"sampler"}


def test_a_row_trains_whatever_its_settings_affect():
    trained_by = {"nothing": set(), "ldm": set(ALL) - {"aae"}, "aae": set(ALL)}
    for row in ROWS:
        if not row.of:
            assert row.trains == "aae", row.name           # nothing is there to build on
            continue
        changed = differences(settings_of(row, 0), settings_of(BY_NAME[row.of], 0)) - PLACES
        for name in changed:
            assert AFFECTS[name] & set(ALL) <= trained_by[row.trains], (row.name, name)


@pytest.mark.parametrize("seed", SEEDS)
def test_pretrained_stages_are_those_of_rows_that_are_run_before(seed):
    plan = study.planned(list(SEEDS), None)
    of_this_seed = [row for row, own in plan if own == seed]
    before: dict[str, Row] = {}
    for row in of_this_seed:
        cfg = settings_of(row, seed)
        aae_from, ldm_from = cfg.pretrained_from("aae"), cfg.pretrained_from("ldm")
        assert bool(aae_from) == (row.trains != "aae"), row.name
        assert bool(ldm_from) == (row.trains == "nothing"), row.name
        assert not aae_from or before[aae_from].trains == "aae", row.name      # who trained it, no borrower
        assert not ldm_from or before[ldm_from].trains != "nothing", row.name
        assert not row.of or study.experiment_name(seed, row.of) in before, row.name
        before[cfg.exp] = row


def test_rows_and_seeds_have_names_of_their_own():
    names = {settings_of(row, seed).exp for row in ROWS for seed in SEEDS}
    assert len(names) == len(ROWS) * len(SEEDS) and len(BY_NAME) == len(ROWS)


def test_every_row_is_run_with_the_first_seed_and_null_controls_with_all():
    plan = [(row.name, seed) for row, seed in study.planned([0, 1, 2], None)]
    assert [name for name, seed in plan if seed == 0] == [row.name for row in ROWS]
    controls = ["default", "shuffled", "link_0", "link_0_shuffled"]
    for later in (1, 2):
        assert [name for name, seed in plan if seed == later] == controls
    assert [(row.name, seed) for row, seed in study.planned([1, 2], ["eps"])] == [("eps", 1), ("eps", 2)]


def test_seeds_have_cohorts_of_their_own_and_link_0_too():
    seen = set()
    for row in ROWS:
        for seed in SEEDS:
            cfg = settings_of(row, seed)
            seen.add((cfg.data_dir, cfg.phantom_seed, cfg.phantom_link))
    assert len(seen) == 6 and len({data_dir for data_dir, _, _ in seen}) == 6
    assert all(seed != PRESETS["demo"].get("phantom_seed", 0) for _, seed, _ in seen)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_page_of_the_study_names_every_row_and_its_settings(row):
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    section = page.split("## The rows")[1].split("## Results")[0]
    table = [line.split("|") for line in section.splitlines() if line.startswith("|")]
    [cells] = [cells for cells in table if f"`{row.name}`" in cells[1]]
    for word in row.change.split():
        assert word in cells[3]


# ---------------------------------------------------------------- tables

def made_up(**changes) -> pd.DataFrame:
    """Scores of three seeds that reach every criterion, but for changes of the default: column -> value."""
    default = {"PSNR_brain": 27.0, "SSIM_brain": 0.9, "gap_share": 0.8, "AUC": 0.78, "AUC_MRI_PET": 0.8,
               "r": 0.6, "slope": 0.3, "coverage": 0.9, "Brier": 0.2, "Brier_base": 0.25,
               "validation_PSNR_brain": 28.0} | changes
    rows = []
    for seed in range(3):
        psnr = default["PSNR_brain"] + 0.1 * (seed - 1)
        rows += [{"row": "default", "seed": seed, **default, "PSNR_brain": psnr},
                 {"row": "latent_regression", "seed": seed, "PSNR_brain": 27.05},
                 {"row": "MRI classifier", "seed": seed, "AUC": 0.79},
                 {"row": "oracle", "seed": seed, "r": 0.7, "slope": 0.45},
                 {"row": "link_0", "seed": seed, "AUC": 0.55, "AUC_low": 0.4, "AUC_high": 0.7,
                  "validation_PSNR_brain": 27.8}]
    return pd.DataFrame(rows)


def missed(scores: pd.DataFrame) -> list[str]:
    """The criteria that are not reached."""
    return make_criteria(scores).query("not reached")["criterion"].tolist()


@pytest.mark.parametrize("column, value, named", [
    ("PSNR_brain", 26.9, "PSNR in brain"), ("gap_share", 0.69, "share of the gap"),
    ("AUC", 0.76, "AUC of the SUVR"), ("AUC_MRI_PET", 0.78, "MRI and synthetic"),
    ("r", 0.59, "r of the SUVR"), ("slope", 0.26, "slope"),
    ("coverage", 0.84, "coverage"), ("coverage", 0.96, "coverage"), ("Brier", 0.26, "Brier")])
def test_a_criterion_is_reached_if_and_only_if_the_numbers_say_so(column, value, named):
    assert make_criteria(made_up())["reached"].all() and len(make_criteria(made_up())) == 11
    [criterion] = missed(made_up(**{column: value}))
    assert named in criterion


def test_criteria_are_those_of_each_seed_at_chance_and_need_the_default():
    scores = made_up()
    scores.loc[(scores["row"] == "link_0") & (scores["seed"] == 2), "AUC_low"] = 0.51
    assert missed(scores) == ["link_0: AUC, seed 2"]
    assert make_criteria(scores[scores["row"] != "default"]).empty
    without_oracle = make_criteria(made_up().query("row != 'oracle'"))
    assert len(without_oracle) == 9 and without_oracle["reached"].all()


def test_the_table_has_means_and_standard_deviations_over_the_seeds():
    gains = pd.DataFrame({"gain": [-0.2], "gain_low": [-0.3], "gain_high": [0.1]}, index=["link_0"])
    about = {"default": ("", ""), "link_0": ("--phantom_link 0", "control")}
    table = make_table(made_up(), gains, about).set_index("row")
    assert (table.loc["default", "n"], table.loc["default", "PSNR_brain"]) == (3, pytest.approx(27.0))
    assert table.loc["default", "PSNR_brain_sd"] == pytest.approx(0.1)
    assert table.loc["link_0", "change"] == "--phantom_link 0" and table.loc["link_0", "source"] == "control"
    assert table.loc["oracle", "source"] == "baseline" and np.isnan(table.loc["oracle", "AUC"])
    text = to_markdown(table.reset_index(), make_criteria(made_up()))
    assert "27.00 ± 0.10" in text and "-0.20 [-0.30, +0.10]" in text and "nan" not in text
    assert "share of the gap" in text and "gap_share" not in text


def test_gains_are_those_of_the_same_subjects_over_all_seeds():
    rng = np.random.default_rng(0)
    lists, suvr = {}, rng.normal(1.2, 0.2, (3, 60))
    for seed in range(2):                                  # subjects differ by 3 dB, the rows by 0.2
        psnr = rng.normal(27, 3, 60)
        better = psnr + 0.2 + rng.normal(0, 0.3, 60)
        lists["row", seed] = pd.DataFrame({"PSNR_brain": better, "SUVR_real": suvr[seed]})
        lists["default", seed] = pd.DataFrame({"PSNR_brain": psnr, "SUVR_real": suvr[seed]})
    other_cohort = pd.DataFrame({"PSNR_brain": rng.normal(30, 3, 60), "SUVR_real": suvr[2]})
    lists |= {("link_0", 0): other_cohort, ("row", 2): other_cohort}
    gains = gains_of(lists, {"row": "default", "link_0": "default", "default": "default"})
    assert gains.index.tolist() == ["row"]
    gain, low, high = gains.loc["row"]
    assert gain == pytest.approx(0.2, abs=0.1) and 0 < low < gain < high
    assert high - low == pytest.approx(2 * 1.96 * 0.3 / np.sqrt(120), rel=0.3)


def subjects(rng: np.random.Generator, n: int, by_mri: float, by_pet: float) -> pd.DataFrame:
    """Subjects whose MRI and PET tell the status by so many standard deviations."""
    label = rng.permutation(np.arange(n) % 2)
    return pd.DataFrame({"label": label, "score_mri": expit(by_mri * label + rng.normal(size=n)),
                         "SUVR": 1.2 + 0.1 * (by_pet * label + rng.normal(size=n))})


@pytest.mark.parametrize("by_mri, by_pet", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, -1.0)])
def test_mri_and_synthetic_pet_are_weighed_by_what_each_tells_in_the_validation_list(by_mri, by_pet):
    rng = np.random.default_rng(1)
    found = stacked_auc(subjects(rng, 4000, by_mri, by_pet), subjects(rng, 4000, by_mri, by_pet))
    distance = np.hypot(by_mri, by_pet)                    # of two normal distributions of SD 1
    assert found == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.02)


def test_stacking_learns_nothing_from_the_test_list_and_bears_extremes():
    rng = np.random.default_rng(2)
    validation, test = subjects(rng, 60, 1, 1), subjects(rng, 80, 1, 1)
    flipped = test.assign(label=1 - test["label"])
    assert stacked_auc(validation, flipped) == pytest.approx(1 - stacked_auc(validation, test))
    sure = test.assign(score_mri=test["label"].astype(float))                  # infinite log odds
    assert stacked_auc(sure, sure) == 1
    assert np.isnan(stacked_auc(validation.assign(label=0), test))
    assert np.isnan(stacked_auc(validation, test.assign(SUVR=np.nan)))


def test_squared_error_comes_back_from_psnr():
    error = np.array([1e-3, 4e-3])
    assert mean_squared_error(pd.DataFrame({"PSNR_brain": -10 * np.log10(error)})) == pytest.approx(2.5e-3)


# ---------------------------------------------------------------- the run

PHANTOM = {
    "regions": "auto",
    "phantom_voxel": 8,
    "phantom_subjects": (6, 10, 4),
    "image_size": (22, 27, 22),
    "aae_epochs": 1,
    "ldm_epochs": 1,
    "validation_every": 1,
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study on phantoms at 8 mm: the default and a row that samples it otherwise; main in this process."""
    monkeypatch.chdir(tmp_path)
    rows = (Row("default", "", trains="aae", of=""),
            Row("samples_4", "--samples_per_scan 4", "", "nothing", "default"))
    monkeypatch.setattr(study, "ROWS", rows)
    monkeypatch.setattr(study, "BY_NAME", {row.name: row for row in rows})
    whole, commands = study.words, []

    def words(row: Row, seed: int) -> list[str]:
        """The command line of a row, with the settings of a tiny experiment."""
        kept = named_settings(row.change)
        tiny = {name: value for name, value in (TINY | PHANTOM).items() if name not in kept}
        return [*whole(row, seed), *arguments(tiny)]

    def run_command(command: list[str]) -> int:
        """Run it here, and note it."""
        commands.append(command[2:])
        return main.main(command[2:])
    monkeypatch.setattr(study, "words", words)
    monkeypatch.setattr(running, "run_command", run_command)
    return tmp_path, commands


def test_the_study_scores_its_rows_and_goes_on_where_it_was_interrupted(small):
    root, commands = small
    assert study.main(["--seeds", "0", "--rows", "default"]) == 0
    assert [command[-1] for command in commands] == ["baselines", "test"]
    assert study.main(["--quick"]) == 0
    assert len(commands) == 2 + 1                          # the first is not run again
    table = pd.read_csv(root / "result" / "study" / "study.csv").set_index("row")
    assert table.loc["default", "n"] == 1 == table.loc["samples_4", "n"]
    assert {"mean_pet", "latent_regression", "image_regression", "oracle", "MRI classifier",
            "label predictor"} < set(table.index)
    assert table.loc["mean_pet", "gap_share"] == 0 and table.loc["oracle", "gap_share"] == pytest.approx(1)
    low, gain, high = table.loc["samples_4", ["gain_low", "gain", "gain_high"]]
    assert low <= gain <= high and np.isnan(table.loc["default", "gain"])

    scores = pd.read_csv(root / "result" / "study" / "scores.csv")
    default = scores.query("row == 'default' and seed == 0").iloc[0]
    test = pd.read_csv(root / "result" / "study0_default" / "test.csv").query("method == 'il_cldm'")
    assert default["PSNR_brain"] == pytest.approx(test["PSNR_brain"].mean())
    listed = pd.read_csv(root / "result" / "study0_default" / "validation_list.csv")
    assert default["validation_r"] == pytest.approx(listed["SUVR"].corr(listed["SUVR_real"]))
    predictions = pd.read_csv(root / "result" / "study0_default" / "predictions.csv", keep_default_na=False)
    mri = predictions.query("classifier == 'mri' and method == 'none'")
    squared = (mri["score"].astype(float) - mri["label"]) ** 2
    assert table.loc["MRI classifier", "Brier"] == pytest.approx(squared.mean())
    assert 0 <= default["AUC_stacked"] <= 1
    assert 0 <= default["coverage"] <= 1                   # the interval needs 9 validation subjects
    assert default["s_train"] > 0 and np.isnan(scores.query("row == 'mean_pet'")["s_train"]).all()

    commands.clear()
    assert study.main(["--quick"]) == 0 and not commands
    (root / "result" / "study0_samples_4" / "test.csv").write_text("spoilt")
    assert study.main(["--quick"]) == 0 and len(commands) == 1


def test_tables_of_nothing_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert study.main(["--tables"]) == 2
    assert "no row of seeds 0, 1, 2 is finished" in capsys.readouterr().err


def test_a_row_that_fails_ends_the_study_with_its_command(small, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_command", lambda command: 3)
    assert study.main(["--quick"]) == 3
    assert "row default, seed 0: exit code 3 of" in capsys.readouterr().err


CHILD = """import signal, sys, time

def save(*_):
    time.sleep(1)
    sys.exit(7)

signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_row_the_time_to_save(number):
    """SIGINT goes to both, as a terminal sends it; SIGTERM to the study alone, which passes it on."""
    parent = ("import sys\nfrom studies import running\n"
              f"sys.exit(running.run_command([sys.executable, '-c', {CHILD!r}]))")
    with subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE,
                          start_new_session=True) as process:
        assert process.stdout.readline() == b"ready\n"
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        assert process.wait(timeout=30) == 7
