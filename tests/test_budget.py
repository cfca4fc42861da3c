"""The study of budgets: what it runs with which settings, that it goes on, that a longer training may begin
from a shorter one, and its tables against hand computation."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from test_main import do_nothing

import main
from config import PRESETS, REGRESSIONS, Config
from experiment import baselines
from runtime.checkpoints import load_checkpoint
from runtime.logs import logging_run
from studies import budget, budget_measure, budget_plan, repairs, running
from studies.budget_plan import BUDGETS, BY_NAME, METHODS, REPAIRS, Experiment, planned, settings_of
from studies.budget_table import (SeedScores, best_budgets, coverage_range, make_best, make_criteria,
                                  make_curves, make_repairs, make_table, to_markdown)
from studies.comparison import MethodCost
from studies.repairs_rows import BY_NAME as ROWS
from studies.running import SEEDS, Failed

BASE = Config(**PRESETS["benchmark"])
PHANTOM = {"phantom_subjects": (8, 4, 4), "phantom_voxel": 8, "regions": "auto", "aae_epochs": 1,
           "samples_per_scan": 1, "sampling_steps": 2, "timesteps": 12}
SMALL = ("--budgets", "1", "--seeds", "0", "--samples", "2", "--methods", "default", "latent_regression",
         "published_average")


def run(*argv: str) -> int:
    """Exit code of the study with these words."""
    try:
        return main.main(["study", "budget", *argv])
    except SystemExit as stop:
        return stop.code


# ---------------------------------------------------------------- what is run

@pytest.mark.parametrize("method", [one.name for one in METHODS if one.name not in REGRESSIONS])
def test_updates_grow_with_the_budget_and_the_number_of_validations_stays(method):
    for number in BY_NAME[method].runs:
        cfg = settings_of(Experiment(method, number, 1))
        assert cfg.ldm_epochs * cfg.phantom_subjects[0] // cfg.ldm_batch_size == 960 * number
        assert cfg.ldm_epochs / cfg.validation_every == 3
        assert (cfg.exp, cfg.seed, cfg.phantom_seed) == (f"budget1_{method}_{number}", 1, 1001)
        assert cfg.aae_epochs == (16 if method == "long_stage_1" else 1) * BASE.aae_epochs


def test_the_scaled_average_has_the_same_share_of_all_updates_at_every_budget():
    """Time constant 1 / (1 - decay): 100 of 960 updates, and as many before the average begins."""
    for number in BUDGETS:
        cfg = settings_of(Experiment("published", number, 0))
        assert 1 / (1 - cfg.ema_decay) / (960 * number) == pytest.approx(100 / 960, rel=1e-4)
        assert cfg.ema_start / (960 * number) == pytest.approx(100 / 960)
        as_published = settings_of(Experiment("published_average", number, 0))
        assert (as_published.ema_decay, as_published.ema_start) == (0.9999, 2000)
    first = settings_of(Experiment("default", 1, 0))
    assert (first.ema_decay, first.ema_start) == (BASE.ema_decay, BASE.ema_start)     # as in the other study


def test_methods_differ_in_what_they_name_alone():
    default, names = settings_of(Experiment("default", 16, 0)), BASE.__dataclass_fields__
    long = settings_of(Experiment("long_stage_1", 16, 0))
    found = {name for name in names if getattr(long, name) != getattr(default, name)}
    assert found == {"exp", "aae_from", "aae_epochs"}
    one, other = (settings_of(Experiment(name, 16, 0)) for name in ("published", "published_average"))
    found = {name for name in names if getattr(one, name) != getattr(other, name)}
    assert found == {"exp", "ema_decay", "ema_start"} and one.aae_from == "budget0_published_stage_1"


def test_the_plan_is_what_the_page_says():
    plan = planned([method.name for method in METHODS], list(BUDGETS), list(SEEDS))
    assert len({settings_of(one).exp for one in plan}) == len(plan) == 3 * 9 + 2 + 2
    assert [one.budget for one in plan] == sorted(one.budget for one in plan)
    assert {(one.method, one.seed) for one in plan if one.budget == 64} == {("default", 0), ("published", 0)}
    of_default = {(one.budget, one.seed): one.regressions for one in plan if one.method == "default"}
    assert set(of_default[4, 0]) == set(REGRESSIONS) and of_default[64, 0] == ()
    assert of_default[4, 1] == ("latent_regression", "image_regression")
    assert planned(["image_regression"], [1], [2]) == [Experiment("default", 1, 2, ("image_regression",))]
    with pytest.raises(Failed, match="has no long_stage_1 at budget 4 with seed 0"):
        planned(["long_stage_1"], [4], [0])


def test_a_repair_differs_from_the_default_of_the_same_budget_as_its_row_of_the_other_study_does():
    """Each uses the default's stage 1, but those that change it; mixed samples the default's stage 2."""
    names = BASE.__dataclass_fields__
    for method in REPAIRS:
        own, default = (settings_of(Experiment(name, 16, 0)) for name in (method.name, "default"))
        found = {name for name in names if getattr(own, name) != getattr(default, name)}
        row, other = (repairs.settings_of(ROWS[name], 0) for name in (method.name, "default"))
        expected = {name for name in names if getattr(row, name) != getattr(other, name)}
        assert found - {"aae_from"} == expected - {"aae_from"}, method.name
        stage_1 = method.name if ROWS[method.name].trains == "aae" else "default"
        assert own.aae_from == f"budget0_{stage_1}_stage_1"
    assert settings_of(Experiment("mixed", 16, 0)).ldm_from == "budget0_default_16"
    plan = planned([method.name for method in REPAIRS], [16], list(SEEDS))
    assert [one.method for one in plan] == [method.name for method in REPAIRS]   # the first seed


@pytest.mark.parametrize("words", [("--budgets", "3"), ("--methods", "ddpm"), ("--samples", "1"),
                                   ("--seeds", "9"), ("--rows", "x")])
def test_wrong_words_are_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert "main.py study budget: error" in capsys.readouterr().err


def test_tables_of_nothing_and_a_plan_of_nothing_end_with_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--tables") == 2
    assert "no experiment of the budgets is finished" in capsys.readouterr().err
    assert run("--repairs") == 2
    assert run("--methods", "long_stage_1", "--seeds", "1") == 2
    assert "docs/study_budget.md lists" in capsys.readouterr().err


# ---------------------------------------------------------------- a run of it, on a tiny phantom

@pytest.fixture(scope="module")
def tiny():
    """Sizes of a tiny experiment, budget 1 with one epoch of stage 2; commands are run in this process."""
    patch = pytest.MonkeyPatch()
    own_words, commands = budget_plan.words, []

    def words(method: str, number: int, seed: int) -> list[str]:
        """The command line with tiny sizes; of words that stand twice the last counts."""
        kept = TINY | PHANTOM | {"ldm_epochs": number, "validation_every": number}
        kept = {name: value for name, value in kept.items() if name not in ("ema_decay", "ema_start")}
        return [*own_words(method, number, seed), *arguments(kept)]

    def run_command(command: list[str]) -> int:
        """Run it here, and note it."""
        commands.append(command[2:])
        return main.main(command[2:])

    def timed(cfg: Config) -> tuple:
        """Seconds that nobody measured: an hour a step, and a second a network evaluation."""
        return MethodCost({"aae": 3600.0, "ldm": 3600.0}, 0.0, 0.0), dict.fromkeys(REGRESSIONS, 3600.0), 1.0

    patch.setattr(budget_plan, "words", words)
    patch.setattr(budget_plan, "FRESH", (4, 4, 6))
    patch.setattr(budget, "_timed", timed)
    patch.setattr(budget_measure, "STEPS", (1, 2))
    patch.setattr(running, "run_command", run_command)
    for name in ("plot_history", "plot_shown_scans", "plot_comparison"):
        patch.setattr(main, name, do_nothing)
    patch.setattr(baselines, "plot_history", do_nothing)
    torch.set_num_threads(1)
    yield commands
    patch.undo()


@pytest.fixture(scope="module")
def project(tiny, tmp_path_factory):
    """A folder in which the default, with a regression, and the published method with its own average were
    run at budget 1."""
    root, patch = tmp_path_factory.mktemp("budget"), pytest.MonkeyPatch()
    patch.chdir(root)
    assert run(*SMALL) == 0
    patch.setattr(budget, "plot_budget", do_nothing)       # drawn once
    yield root
    patch.undo()


def refuse(*_) -> None:
    """A measurement or command that should not be made."""
    raise AssertionError("made again")


def test_stage_1_is_trained_once_and_every_sampling_has_rows_of_both_lists(project, tiny):
    stages = [words[words.index("--stages") + 1:] for words in tiny]
    assert stages == [["check", "aae", "encode"], ["check", "ldm", "baselines"], ["test"],
                      ["check", "aae", "encode"], ["check", "ldm"], ["test"]]
    own = pd.read_csv(project / "result/budget0_default_1/budget.csv")
    found = own.groupby(["method", "list", "sampler", "steps", "samples"]).size()
    expected = {("latent_regression", "validation", "none", 1, 1)}
    for name in ("validation", "test"):
        expected |= {("il_cldm", name, "ddim", steps, samples) for steps in (1, 2) for samples in (1, 2)}
    expected.add(("il_cldm", "test", "ddpm", 11, 1))       # one ancestral sample
    assert set(found.index) == expected and set(found) == {4}


def test_a_sampling_is_what_the_test_stage_makes_with_these_settings(project):
    """The published method samples without a label in one pass, as the sampling does."""
    own = pd.read_csv(project / "result/budget0_published_average_1/budget.csv")
    own = own.query("sampler == 'ddim' and steps == 2 and samples == 1").set_index("ID")
    validation = pd.read_csv(project / "result/budget0_published_average_1/validation_list.csv")
    test = pd.read_csv(project / "result/budget0_published_average_1/test.csv").query("method == 'il_cldm'")
    expected = pd.concat([validation, test]).set_index("ID")
    for name in ("PSNR_brain", "SSIM_brain"):
        found = own.loc[expected.index, name].to_list()
        assert found == pytest.approx(expected[name].to_list(), rel=1e-5)


def test_the_tables_have_the_rows_of_what_is_finished(project):
    table = pd.read_csv(project / "result/study/budget.csv")
    assert list(table["method"].unique()) == ["default", "published_average", "latent_regression", "mean_pet",
                                              "oracle"]
    setting = table[table["is_setting"]].set_index("method")
    test = pd.read_csv(project / "result/budget0_default_1/test.csv")
    for method, name in (("default", "il_cldm"), ("latent_regression", "latent_regression")):
        expected = test.loc[test["method"] == name, "PSNR_brain"].mean()
        assert setting.loc[method, "PSNR_brain"] == pytest.approx(expected)
    listed = pd.read_csv(project / "result/budget0_default_1/validation_list.csv")
    expected = listed["SUVR"].corr(listed["SUVR_real"])
    assert setting.loc["default", "validation_r"] == pytest.approx(expected)
    assert setting.loc["default", ["updates", "NFE", "n", "subjects"]].tolist() == [4, 4, 1, 4]      # matched
    assert setting.loc["published_average", "NFE"] == 2
    costs = pd.read_csv(project / "result/budget0_default_1/cost.csv").set_index("method")
    assert setting.loc["default", "training_s"] == costs.loc["il_cldm", "training_s"]
    assert "torch" in setting.loc["default", "machine"]
    assert setting.loc[["mean_pet", "oracle"], "gap_share"].tolist() == pytest.approx([0, 1])
    text = (project / "result/study/budget.md").read_text()
    assert "share of the gap from mean_pet" in text and "nan" not in text
    assert (project / "result/study/budget.png").is_file() and (project / "result/study/budget.pdf").is_file()


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(project, tiny, monkeypatch, capsys):
    table, own = project / "result/study/budget.csv", project / "result/budget0_default_1/budget.csv"
    before, rows = table.read_bytes(), pd.read_csv(own)
    tiny.clear()
    with monkeypatch.context() as patch:
        patch.setattr(budget_measure, "_of_sampling", refuse)
        assert run(*SMALL) == 0 and not tiny
    assert table.read_bytes() == before
    rows[~((rows["sampler"] == "ddim") & (rows["steps"] == 2))].to_csv(own, index=False)
    assert run(*SMALL) == 0 and not tiny
    assert table.read_bytes() == before                    # the rows that an interruption had cost
    whole = own.read_bytes()
    own.write_text("spoilt")
    assert run("--tables") == 2
    assert "budget.csv: not there or damaged; remove result/budget0_default_1" in capsys.readouterr().err
    own.write_bytes(whole)


def test_a_command_that_fails_ends_the_study_with_its_words(project, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_command", lambda command: 3)
    assert run("--budgets", "4", "--seeds", "0", "--methods", "published_average") == 3
    assert "published_average, budget 4, seed 0, stage 1: exit code 3 of" in capsys.readouterr().err


def test_the_hours_are_those_of_what_is_left(tiny, capsys):
    """4 steps of an hour each for stage 1, stage 2 and regression; 8 scans with 2 samples of 1 and 2
    evaluations, 4 of them with one of 11, a second each."""
    with logging_run():
        budget.say_hours([Experiment("default", 1, 0, ("latent_regression",))], 2)
    said = " ".join(capsys.readouterr().out.split())
    assert f"experiments left: 1, with {8 * 2 * (1 + 2) + 4 * 11} network evaluations" in said
    assert "stage 1 4.0, training and test 8.0, sampling 0.0" in said and "about 12.0 hours here" in said


def test_fresh_phantoms_are_scored_as_an_external_cohort_by_the_best_budget(project, tiny):
    tiny.clear()
    assert run("--fresh") == 0
    assert [words[0] if words[0] == "external" else words[-1] for words in tiny] == ["check", "external"]
    found = budget.fresh_run(settings_of(Experiment("default", 1, 0)))
    tiny.clear()
    assert run("--fresh") == 0 and not tiny
    known = pd.read_csv(project / "data/benchmark0/truth/truth.csv")
    fresh = pd.read_csv(project / "data/fresh0/truth/truth.csv")
    assert len(found.test.query("method == 'il_cldm'")) == 6 and len(fresh) == 14
    assert not set(known["load"]) & set(fresh["load"])     # other people


def test_repairs_are_tried_at_the_best_budget_of_the_default(project, tiny, monkeypatch):
    """One trains, one samples the default's networks in another way; a second time nothing is run."""
    chosen = tuple(method for method in REPAIRS if method.name in ("no_image_loss", "mixed"))
    monkeypatch.setattr(budget, "REPAIRS", chosen)
    tiny.clear()
    assert run("--repairs") == 0
    stages, stage_1 = [words[words.index("--stages") + 1:] for words in tiny], ["check", "aae", "encode"]
    assert stages == [stage_1, ["check", "ldm"], ["test"], stage_1, ["test"]]            # stage 1 is there
    lists = {name: pd.read_csv(project / f"result/budget0_{name}_1/validation_list.csv")
             for name in ("default", "no_image_loss")}
    gain = (lists["no_image_loss"]["PSNR_brain"] - lists["default"]["PSNR_brain"]).mean()
    text = (project / "result/study/budget.md").read_text()
    part = text[text.index("taken back"):]
    assert f"{gain:+.2f} [" in next(line for line in part.splitlines() if "no_image_loss" in line)
    assert "no_image_loss" not in text[:text.index("taken back")]
    tiny.clear()
    assert run("--repairs") == 0 and not tiny


# ---------------------------------------------------------------- a longer training from a shorter one

def test_a_training_that_begins_from_a_smaller_budget_is_the_same_to_the_last_bit(project):
    experiment = Experiment("published_average", 4, 0)
    words = [*budget_plan.words_of(experiment), "--stages", "check", "ldm"]
    assert main.main([*words, "--exp", "from_the_start"]) == 0
    budget.begin_from_smaller(experiment)
    name = "CHECKPOINT_Unet_last.pth.tar"
    assert load_checkpoint(settings_of(experiment).result_dir / name)["epoch"] == 1
    assert main.main(words) == 0
    for file in (name, "CHECKPOINT_Unet.pth.tar"):
        one, other = (load_checkpoint(project / "result" / exp / file)
                      for exp in ("from_the_start", settings_of(experiment).exp))
        assert (one["epoch"], one["losses"], one["validations"]) == (4, other["losses"], other["validations"])
        for part, state in one["state"].items():
            torch.testing.assert_close(state, other["state"][part], rtol=0, atol=0)
        assert one["settings"] == other["settings"]


@pytest.mark.parametrize("method", ["default", "published"])
def test_a_training_whose_average_is_scaled_begins_anew(project, method):
    experiment = Experiment(method, 4, 0)
    budget.begin_from_smaller(experiment)
    assert not settings_of(experiment).result_dir.exists()


# ---------------------------------------------------------------- tables of made-up scores

def made_up(method: str, number: int, seed: int, gain: float, **sampling) -> pd.DataFrame:
    """Subjects of both lists whose PSNR is `gain` above 25 dB on validation, and as much below on test."""
    rng, tables = np.random.default_rng([seed, 7]), []
    for name, n, sign in (("validation", 30, 1), ("test", 40, -1)):
        label = np.arange(n) % 2
        real, noise = 1.1 + 0.3 * label + 0.05 * rng.standard_normal(n), rng.standard_normal(n)
        tables.append(pd.DataFrame({
            "list": name, "ID": [f"{name}{i:02d}" for i in range(n)], "label": label, "SUVR_real": real,
            "SUVR": 0.5 * real + 0.1 * noise, "PSNR_brain": 25 + sign * gain + noise, "SSIM_brain": 0.9}))
    about = {"sampler": "ddim", "steps": 2, "samples": 4, "passes": 2, "is_setting": True} | sampling
    return pd.concat(tables).assign(
        method=method, budget=number, seed=seed, exp=f"{method}{number}_{seed}", updates=960 * number,
        NFE=about["steps"] * about["samples"], training_s=100.0 * number, machine="a machine", **about)


@pytest.fixture(scope="module")
def scores() -> SeedScores:
    """Default at budgets 1 (three seeds), 4 (three) and 16 (one), a regression at 1 and 4, both bounds."""
    gains = {1: 0.0, 4: 1.0, 16: 0.5}
    parts = [made_up("default", number, seed, gain) for number, gain in gains.items()
             for seed in (SEEDS if number < 16 else (0,))]
    one = {"is_setting": False, "steps": 20, "passes": 1}
    parts += [made_up("default", 4, seed, 2.0, samples=8, **one) for seed in SEEDS]
    parts += [made_up("default", 4, 0, 9.0, samples=1, **one)]                 # of one seed alone
    none = {"sampler": "none", "steps": 1, "samples": 1, "passes": 1}
    parts += [made_up("latent_regression", 4, seed, -0.5, **none) for seed in SEEDS]
    parts += [made_up(name, 0, seed, gain, **none) for name, gain in (("mean_pet", 3.0), ("oracle", -4.0))
              for seed in SEEDS]
    return SeedScores(pd.concat(parts))


def test_scores_are_those_of_scikit_learn_and_numpy_over_the_seeds(scores):
    table = make_table(scores, list(BY_NAME))
    row = table.query("method == 'default' and budget == 4 and is_setting").iloc[0]
    found = {}
    for seed in SEEDS:
        one = made_up("default", 4, seed, 1.0).query("list == 'test'")
        found[seed] = (one["PSNR_brain"].mean(), one["SUVR"].corr(one["SUVR_real"]),
                       np.polyfit(one["SUVR_real"], one["SUVR"], 1)[0],
                       roc_auc_score(one["label"], one["SUVR"]))
    columns = ["PSNR_brain", "r", "slope", "AUC"]
    assert row[columns].tolist() == pytest.approx(np.mean(list(found.values()), axis=0).tolist())
    sd = np.std(list(found.values()), axis=0, ddof=1)
    assert row[[f"{name}_sd" for name in columns]].tolist() == pytest.approx(sd.tolist())
    assert (row["n"], row["subjects"], row["updates"], row["training_s"]) == (3, 120, 3840, 400)


def test_intervals_of_a_mean_are_those_of_its_standard_error(scores):
    """The mean over three lists of 40: its standard error is the root of the summed variances over 3."""
    table = make_table(scores, list(BY_NAME))
    row = table.query("method == 'default' and budget == 4 and is_setting").iloc[0]
    variance = 0.0
    for seed in SEEDS:
        one = made_up("default", 4, seed, 1.0).query("list == 'test'")
        variance += one["PSNR_brain"].var(ddof=0) / len(one) / 9
    half = 1.96 * np.sqrt(variance)
    assert row["PSNR_brain_high"] - row["PSNR_brain"] == pytest.approx(half, rel=0.1)
    assert row["PSNR_brain"] - row["PSNR_brain_low"] == pytest.approx(half, rel=0.1)
    assert row["slope_low"] < row["slope"] < row["slope_high"] and row["AUC_low"] < row["AUC"]


def test_intervals_of_r_and_slope_are_those_of_a_bootstrap_of_its_own(scores):
    row = make_table(scores, list(BY_NAME)).query("method == 'default' and budget == 16").iloc[0]
    one, rng = made_up("default", 16, 0, 0.5).query("list == 'test'"), np.random.default_rng(5)
    found, values = [], one[["SUVR_real", "SUVR"]].to_numpy()
    for _ in range(2000):
        real, synthetic = values[rng.integers(len(one), size=len(one))].T
        found.append((np.corrcoef(real, synthetic)[0, 1], np.polyfit(real, synthetic, 1)[0]))
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    assert row[["r_low", "slope_low"]].tolist() == pytest.approx(low.tolist(), abs=0.04)
    assert row[["r_high", "slope_high"]].tolist() == pytest.approx(high.tolist(), abs=0.04)


def test_budgets_and_samplings_are_chosen_on_validation_and_on_the_same_seeds(scores):
    """The best on validation is the worst on test here; a sampling of one seed alone is no choice."""
    assert best_budgets(scores.table) == {"default": 4, "latent_regression": 4}
    best = make_best(scores, make_table(scores, list(BY_NAME)))
    rows = best[["method", "budget", "steps", "samples"]].to_numpy().tolist()
    assert rows == [["default", 4, 2, 4], ["default", 4, 20, 8], ["latent_regression", 4, 1, 1],
                    ["mean_pet", 0, 1, 1], ["oracle", 0, 1, 1]]
    assert np.isnan(best.loc[0, "gain"]) and best.loc[1, "gain"] == pytest.approx(-1.0)
    assert best.loc[2, ["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([1.5] * 3)  # all alike
    assert best.loc[[3, 4], "gap_share"].tolist() == pytest.approx([0, 1])
    text = to_markdown(best, make_table(scores, list(BY_NAME)), pd.DataFrame(), pd.DataFrame())
    assert "+1.50 [+1.50, +1.50]" in text and "ddim 2, 2 passes" in text and "nan" not in text


def test_the_gain_of_a_repair_is_paired_by_the_subjects_of_the_validation_list(scores):
    """Against the default of the same budget, not of its best one."""
    parts = [made_up("default", 4, 0, 1.0), made_up("default", 16, 0, 0.5), made_up("even_times", 4, 0, 1.3)]
    table = make_table(SeedScores(pd.concat([*parts, *(
        made_up(name, 0, 0, gain, sampler="none") for name, gain in (("mean_pet", 3.0), ("oracle", -4.0)))])),
        list(BY_NAME))
    lists = {(part["method"].iloc[0], part["budget"].iloc[0], 0): part.query("list == 'validation'")
             for part in parts}
    found = make_repairs(table[table["method"] == "even_times"], table, lists)
    assert found[["method", "budget"]].to_numpy().tolist() == [["default", 4], ["even_times", 4]]
    assert found[["gain", "gain_low", "gain_high"]].iloc[1].tolist() == pytest.approx([0.3] * 3)
    assert found["gain"].isna().tolist() == [True, False]


def test_a_curve_is_a_method_as_its_settings_say_or_the_mean_of_its_samples(scores):
    curves = make_curves(make_table(scores, list(BY_NAME)))
    assert {name: rows["budget"].tolist() for name, rows in curves.items()} == {
        "default": [1, 4, 16], "latent_regression": [4], "default, mean of 8": [4]}


def test_the_range_of_the_coverage_is_that_of_a_simulation():
    """Uniform errors: the interval is the quantile of the calibration's that the conformal rank names."""
    rng = np.random.default_rng(0)
    share = np.sort(rng.random((20_000, 60)), axis=1)[:, 55 - 1]               # 55 = ceil(61 x 0.9)
    covered = binom.rvs(80, share, random_state=rng) / 80
    low, high = coverage_range(60, 80)
    assert (covered < low).mean() <= 0.03 and (covered > high).mean() <= 0.03
    assert ((low <= covered) & (covered <= high)).mean() == pytest.approx(0.95, abs=0.03)
    assert [low, high] == pytest.approx(np.percentile(covered, [2.5, 97.5]).tolist(), abs=1.5 / 80)


def test_criteria_are_reached_if_and_only_if_the_numbers_say_so(scores):
    uncertainty = pd.DataFrame({"label": [0, 1] * 40, "p_mri": [0.2, 0.7] * 40, "covered": 1})
    uncertainty.loc[:7, "covered"] = 0
    run = SimpleNamespace(uncertainty=uncertainty, validation_list=pd.DataFrame({"ID": range(60)}))
    known = scores.table[scores.table["is_setting"] & scores.table["budget"].isin([0, 4])]
    criteria = make_criteria(known, {0: run}, {})
    assert criteria["reached"].tolist() == [False, False, True, True]      # the label predictor is perfect
    assert criteria["found"].iloc[-1] == "0.900"
    reached = known.assign(gap_share=0.9, AUC=0.995)
    assert make_criteria(reached, {0: run}, {})["reached"].all()
    run.uncertainty = uncertainty.assign(covered=0)
    assert not make_criteria(reached, {0: run}, {})["reached"].iloc[-1]
    fresh = SimpleNamespace(uncertainty=uncertainty.assign(covered=1))
    last = make_criteria(reached, {0: run}, {0: fresh}).iloc[-1]
    assert last["found"] == "1.000" and last["criterion"].endswith("seed 0, 80 fresh phantoms")
    short = SimpleNamespace(uncertainty=uncertainty, validation_list=pd.DataFrame({"ID": range(4)}))
    assert len(make_criteria(reached, {0: short}, {})) == 3    # no interval with so few
