"""The study of phantoms: what it runs with which settings, its tables against other libraries, and a run of
it on a tiny phantom."""
import numpy as np
import pandas as pd
import pytest
from conftest import TINY, arguments
from sklearn.metrics import roc_auc_score
from test_main import do_nothing

import main
from config import PRESETS, Config
from experiment import baselines
from phantom.kinds import KINDS
from runtime.commandline import parse
from studies import phantoms, running
from studies.comparison import MethodCost
from studies.phantoms import BESIDE, CHANGES, Experiment, planned, settings_of, stage_1_words
from studies.phantoms_table import make_leads, make_table, score_lists, to_markdown
from studies.running import SEEDS

BASE = Config(**PRESETS["benchmark"])
NAMES = BASE.__dataclass_fields__
DEFAULT = Experiment("plain", 0, "default", 4)


def run(*argv: str) -> int:
    """Exit code of the study with these words."""
    try:
        return main.main(["study", "phantoms", *argv])
    except SystemExit as stop:
        return stop.code


def changed(one: Experiment, other: Experiment) -> set[str]:
    """The settings in which two experiments differ."""
    first, second = settings_of(one), settings_of(other)
    return {name for name in NAMES if getattr(first, name) != getattr(second, name)}


# ---------------------------------------------------------------- what is run

def test_the_plan_has_every_kind_and_row_and_the_first_seed_first():
    plan = planned(list(KINDS), list(SEEDS), [4])
    assert len(set(plan)) == len(plan) == 3 * 4 * 3
    assert [one.seed for one in plan] == sorted(one.seed for one in plan)
    assert len({settings_of(one).exp for one in plan}) == len(plan)


@pytest.mark.parametrize("row", CHANGES)
def test_kinds_differ_in_the_phantom_alone(row):
    plain = Experiment("plain", 0, row, 4)
    for kind in ("white_matter", "other_regions", "rare"):
        differ = {"exp", "aae_from", "data_dir", "phantom_kind"}
        differ |= {"phantom_link"} if kind == "rare" else set()
        assert changed(plain, plain._replace(kind=kind)) == differ
        assert settings_of(plain._replace(kind=kind)).phantom_kind == kind
    assert settings_of(plain._replace(kind="rare")).phantom_link == 0.3
    assert settings_of(plain).data_dir == "data/benchmark0"


def test_rows_differ_in_what_they_name_alone():
    fallback = DEFAULT._replace(row="fallback")
    assert changed(DEFAULT, fallback) == {"exp", "label_in_training", "label_at_sampling", "baselines"}
    assert settings_of(DEFAULT).baselines == BESIDE and fallback.regressions == ()
    published = settings_of(DEFAULT._replace(row="published"))
    of_method = Config(**PRESETS["published"]).settings_of("ldm")
    same = ("conditioning", "label_in_training", "prediction", "time_shift", "image_loss", "latent_channels")
    assert {name: getattr(published, name) for name in same} == {name: of_method[name] for name in same}
    assert (published.sampler, published.sampling_steps) == ("ddim", 50)


@pytest.mark.parametrize("budget", [1, 4])
@pytest.mark.parametrize("row", CHANGES)
def test_updates_and_moving_average_grow_with_the_budget(row, budget):
    cfg = settings_of(Experiment("rare", 1, row, budget))
    updates = cfg.ldm_epochs * cfg.phantom_subjects[0] // cfg.ldm_batch_size
    assert updates == {1: 960, 4: 3840}[budget] and cfg.ldm_epochs / cfg.validation_every == 3
    assert 1 / (1 - cfg.ema_decay) / updates == pytest.approx(100 / 960, rel=1e-4)
    assert cfg.ema_start / updates == pytest.approx(100 / 960)
    assert (cfg.seed, cfg.phantom_seed, cfg.aae_epochs) == (1, 1001, BASE.aae_epochs)


def test_a_stage_1_is_that_of_default_and_fallback_at_every_budget():
    def stage_1(row: str, budget: int) -> list[str]:
        """The command line of the stage 1 of a row."""
        return stage_1_words(Experiment("rare", 2, row, budget))
    assert stage_1("default", 1) == stage_1("default", 4) == stage_1("fallback", 4) != stage_1("published", 4)
    for row in CHANGES:
        trained = parse(Config, stage_1(row, 4), "main.py", "", PRESETS)
        used = settings_of(Experiment("rare", 2, row, 4))
        assert trained.exp == used.aae_from and trained.data_dir == used.data_dir
        assert trained.settings_of("aae") == used.settings_of("aae")


def test_the_hours_count_a_stage_1_once_and_the_regressions_beside_the_default(monkeypatch):
    """A step of each stage takes an hour, one on images ten; nothing else takes time."""
    cost = MethodCost({"aae": 3600.0, "ldm": 3600.0}, 0.0, 0.0)
    monkeypatch.setattr(phantoms.MethodCost, "timed", lambda *_: cost)
    monkeypatch.setattr(phantoms, "training_step", do_nothing)
    monkeypatch.setattr(phantoms, "Setup", do_nothing)
    monkeypatch.setattr(phantoms, "seconds_of", lambda _: 36000.0)
    aae, ldm = 20 * 80, 48 * 80                            # steps, 160 subjects and batches of 2
    found = phantoms.expected_hours(planned(["plain"], [0], [4]))
    assert found == pytest.approx(2 * aae + 3 * ldm + 2 * ldm + 10 * (aae + ldm))


@pytest.mark.parametrize("words", [("--budget", "16"), ("--kinds", "real"), ("--seeds", "9"),
                                   ("--rows", "x")])
def test_wrong_words_are_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert "main.py study phantoms: error" in capsys.readouterr().err


# ---------------------------------------------------------------- tables of made-up scores

def made_up(method: str, gain: float, seed: int = 0, kind: str = "rare") -> pd.DataFrame:
    """Subjects of both lists; the PSNR is `gain` above 25 dB on validation and as much below on test."""
    rng, tables = np.random.default_rng([seed, 7]), []
    for name, n, sign in (("validation", 30, 1), ("test", 40, -1)):
        label = (np.arange(n) % 10 < 3).astype(int)
        real, noise = 1.1 + 0.3 * label + 0.05 * rng.standard_normal(n), rng.standard_normal(n)
        tables.append(pd.DataFrame({
            "list": name, "ID": [f"{name}{i:02d}" for i in range(n)], "label": label, "SUVR_real": real,
            "SUVR": 0.5 * real + 0.1 * noise, "PSNR_brain": 25 + sign * gain + noise, "SSIM_brain": 0.9}))
    return pd.concat(tables).assign(method=method, seed=seed, kind=kind, budget=4)


def bounds(seed: int = 0) -> pd.DataFrame:
    """Mean PET 3 dB below 25, oracle 4 above, on the test list alone."""
    both = pd.concat([made_up("mean_pet", 3.0, seed), made_up("oracle", -4.0, seed)])
    return both[both["list"] == "test"]


@pytest.fixture(scope="module")
def scored() -> dict:
    """Default with two seeds, and three others with the first alone."""
    noisy = made_up("fallback", 0.0)
    noisy["PSNR_brain"] += np.tile([1.0, -1.0], len(noisy) // 2)
    parts = [made_up("latent_regression", -0.5), noisy, made_up("published", 0.4), bounds(0), bounds(1)]
    return score_lists(pd.concat([*parts, made_up("default", 0.0), made_up("default", 0.0, seed=1)]))


def test_scores_are_those_of_scikit_learn_and_numpy_over_the_seeds(scored):
    table = make_table(scored)
    row = table.query("method == 'default' and list == 'test'").iloc[0]
    found, errors = [], {}
    for seed in (0, 1):
        one = made_up("default", 0.0, seed).query("list == 'test'")
        found.append((one["PSNR_brain"].mean(), one["SUVR"].corr(one["SUVR_real"]),
                      np.polyfit(one["SUVR_real"], one["SUVR"], 1)[0],
                      roc_auc_score(one["label"], one["SUVR"])))
        for name, gain in (("default", 0.0), ("mean_pet", -3.0), ("oracle", 4.0)):
            error = 10 ** (-(one["PSNR_brain"] + gain) / 10)
            errors.setdefault(name, []).append(error.mean())
    columns = ["PSNR_brain", "r", "slope", "AUC"]
    assert row[columns].tolist() == pytest.approx(np.mean(found, axis=0).tolist())
    sd = np.std(found, axis=0, ddof=1)
    assert row[[f"{name}_sd" for name in columns]].tolist() == pytest.approx(sd.tolist())
    worst, own, best = (np.array(errors[name]) for name in ("mean_pet", "default", "oracle"))
    assert row["gap_share"] == pytest.approx(np.mean((worst - own) / (worst - best)))
    assert row[["n", "subjects", "positive"]].tolist() == [2, 80, 24]
    assert row["PSNR_brain_low"] < row["PSNR_brain"] < row["PSNR_brain_high"]
    assert table.query("method == 'default' and list == 'validation'")["gap_share"].isna().all()


def test_rows_stand_in_the_order_of_the_methods_validation_beside_test(scored):
    table = make_table(scored)
    assert table[["method", "list"]].to_numpy().tolist() == [
        *([name, which] for name in ("default", "fallback", "published", "latent_regression")
          for which in ("validation", "test")), ["mean_pet", "test"], ["oracle", "test"]]


def test_the_default_leads_if_the_interval_of_its_gain_on_validation_lies_above_0(scored):
    """The regression is worse on validation and better on test by half a dB, the published the other way."""
    leads = make_leads(scored).set_index("against")
    assert leads["leads"].to_dict() == {"fallback": "close", "published": "no", "latent_regression": "yes"}
    gains = leads.loc["latent_regression", ["gain", "gain_low", "gain_high", "AUC_gain", "test_gain"]]
    assert gains.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.0, -0.5])         # paired: all alike
    fallback = leads.loc["fallback"]
    half = 1.96 * 1.0 / np.sqrt(30)                        # differences of 1 and -1 dB
    assert fallback["gain"] == pytest.approx(0.0, abs=1e-9)
    assert [fallback["gain_low"], fallback["gain_high"]] == pytest.approx([-half, half], rel=0.1)
    assert (leads["n"] == 1).all()                         # the seed that both have


def test_the_page_says_who_leads_and_what_is_close(scored):
    text = to_markdown(make_table(scored), make_leads(scored))
    assert "**rare**, 3,840 updates of stage 2" in text and "nan" not in text
    assert "| latent_regression | 1" in " ".join(text.split()) and "+0.50 [+0.50, +0.50]" in text
    assert "Close: fallback. Three seeds: `python main.py study phantoms --kinds rare --budget 4" in text


def test_without_a_default_there_is_nothing_to_lead():
    scored = score_lists(pd.concat([made_up("published", 0.4), bounds()]))
    leads = make_leads(scored)
    assert leads.empty and "Does the default" not in to_markdown(make_table(scored), leads)


# ---------------------------------------------------------------- a run of it, on a tiny phantom

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which the default of one kind was run, with one regression; and the commands of that."""
    root, patch, commands = tmp_path_factory.mktemp("phantoms"), pytest.MonkeyPatch(), []
    own_words = phantoms.words
    small = {"phantom_subjects": (8, 4, 4), "phantom_voxel": 8, "regions": "auto", "aae_epochs": 1,
             "ldm_epochs": 1, "validation_every": 1, "samples_per_scan": 1, "sampling_steps": 2}

    def run_command(command: list[str]) -> int:
        """Run it here, and note it."""
        commands.append(command[2:])
        return main.main(command[2:])

    patch.chdir(root)
    patch.setattr(phantoms, "words", lambda one: [*own_words(one), *arguments(TINY | small)])
    patch.setattr(phantoms, "CHANGES", {"default": ""})
    patch.setattr(phantoms, "BESIDE", ("latent_regression",))
    patch.setattr(phantoms, "expected_hours", lambda plan: 0.5)
    patch.setattr(running, "run_command", run_command)
    for name in ("plot_history", "plot_shown_scans", "plot_comparison"):
        patch.setattr(main, name, do_nothing)
    patch.setattr(baselines, "plot_history", do_nothing)
    assert run("--tables") == 2
    assert run("--quick", "--kinds", "other_regions") == 0
    yield root, commands
    patch.undo()


def test_the_default_is_trained_once_and_scored_on_both_lists(project):
    root, commands = project
    stages = [words[words.index("--stages") + 1:] for words in commands]
    assert stages == [["check", "aae", "encode"], ["check", "ldm", "baselines"], ["test"]]
    table = pd.read_csv(root / "result/study/phantoms.csv").set_index(["kind", "budget", "method", "list"])
    assert set(table.index.droplevel([0, 1])) == {
        ("default", "validation"), ("default", "test"), ("latent_regression", "validation"),
        ("latent_regression", "test"), ("mean_pet", "test"), ("oracle", "test")}
    folder = root / "result/phantoms0_other_regions_default_1"
    test, listed = (pd.read_csv(folder / f"{name}.csv") for name in ("test", "validation_list"))
    found = table.loc["other_regions", 1]
    for method, name in (("default", "il_cldm"), ("latent_regression", "latent_regression")):
        expected = test.loc[test["method"] == name, "PSNR_brain"].mean()
        assert found.loc[(method, "test"), "PSNR_brain"] == pytest.approx(expected)
    assert found.loc[("default", "validation"), "PSNR_brain"] == pytest.approx(listed["PSNR_brain"].mean())
    expected = listed["SUVR"].corr(listed["SUVR_real"])
    assert found.loc[("default", "validation"), "r"] == pytest.approx(expected)
    shares = found.loc[[("mean_pet", "test"), ("oracle", "test")], "gap_share"]
    assert shares.tolist() == pytest.approx([0, 1])
    own = pd.read_csv(folder / "budget.csv").query("method == 'latent_regression'")
    [lead] = pd.read_csv(root / "result/study/phantoms_leads.csv").to_dict("records")
    assert lead["gain"] == pytest.approx(listed["PSNR_brain"].mean() - own["PSNR_brain"].mean())
    assert "phantom_kind" in (root / "data/phantoms0_other_regions/phantom.json").read_text()


def test_what_is_finished_is_not_run_again(project):
    root, commands = project
    written = (root / "result/study/phantoms.csv").read_bytes()
    commands.clear()
    assert run("--quick", "--kinds", "other_regions") == 0 and run("--tables") == 0 and not commands
    assert (root / "result/study/phantoms.csv").read_bytes() == written


def test_a_command_that_fails_ends_the_study_with_its_words(project, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_command", lambda command: 3)
    assert run("--kinds", "rare") == 3
    said = capsys.readouterr()
    assert "rare, default, budget 4, seed 0, stage 1: exit code 3 of" in said.err
    assert "experiments left: 1; about 0.5 hours here" in " ".join(said.out.split())
