"""The comparison as a study: what it runs with which settings, what its table says of made-up results, and a
run of it on a tiny phantom."""
import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, TINY_SYSTEMS
from scipy.stats import norm
from test_main import do_nothing

import main
from config import ALL, BASELINES, PRESETS, SYSTEMS, Config, ImageRegressionSettings
from evaluation.statistics import holm
from experiment import baselines
from runtime.files import write_csv
from runtime.settings import merged, plain
from studies import comparison, running
from studies.comparison import BY_NAME, FACTORS, RATES, ROWS, settings_of
from studies.comparison_table import NAMES, make_table, to_markdown
from studies.running import SEEDS
from utils import METRICS

PHANTOM = {"regions": "auto", "phantom_voxel": 8, "phantom_subjects": (6, 4, 4), "image_size": (22, 27, 22),
           "timesteps": 60, "validation_every": 1, "image_regression.channels": 4} | TINY_SYSTEMS
SHORT = ["--aae_epochs", "1", "--ldm_epochs", "1"]


# ---------------------------------------------------------------- what is run

def test_every_method_sees_as_many_volumes():
    for row in ROWS:
        cfg = settings_of(row, 0, False, [])
        assert (cfg.aae_epochs, cfg.ldm_epochs) == (80, 48)
        for name in row.baselines:
            with_stage_1 = cfg.epochs_of(name) + (cfg.aae_epochs if name.endswith("latent_regression") else 0)
            assert with_stage_1 == 128
    study = Config(**PRESETS["benchmark"])
    assert 4 * (study.aae_epochs + study.ldm_epochs) == (80 + 48)                 # four times the other study


def test_experiments_share_cohort_and_data_settings_seed_by_seed():
    """So that their rows stand in one table; only at link 0 the cohort is another."""
    names = set()
    for seed in SEEDS:
        of_main = settings_of(BY_NAME["main"], seed, False, [])
        assert (of_main.seed, of_main.phantom_seed) == (seed, 1000 + seed)
        assert of_main.phantom_subjects == (160, 60, 80)
        assert of_main.baselines == BASELINES and of_main.ddpm.samples == 8
        for row in ROWS:
            cfg = settings_of(row, seed, False, [])
            assert cfg.exp not in names
            names.add(cfg.exp)
            same = cfg.settings_of("comparison") == of_main.settings_of("comparison")
            assert same == ("link_0" not in row.name), row.name
            assert cfg.shuffle_labels == (row.name == "link_0_shuffled")
    published = settings_of(BY_NAME["published"], 0, False, ["--ldm_lr", "0.5"])
    assert (published.prediction, published.sampler, published.sampling_steps) == ("eps", "ddim", 50)
    assert published.ldm_lr != 0.5                         # keeps its own rate


def test_what_a_row_trains_is_what_differs_from_the_main_experiment():
    """A row that takes networks from another may not differ from it in what they are bound to."""
    of_main = settings_of(BY_NAME["main"], 0, False, [])
    for row in ROWS:
        cfg, source = settings_of(row, 0, False, []), settings_of(BY_NAME[row.of], 0, False, [])
        if row.trains != "aae":
            assert cfg.pretrained_from("aae") == source.exp
            shared = ("aae",) if row.trains == "ldm" else ("aae", "ldm")
            assert cfg.settings_of(*shared) == source.settings_of(*shared)
        if row.name == "ddpm_ancestral":                   # uses its checkpoint
            assert cfg.settings_of("ddpm") == of_main.settings_of("ddpm") and cfg.ddpm.sampler == "ddpm"
    changed = settings_of(BY_NAME["fgan_published"], 0, False, [])
    assert changed.fgan.output_norm and not of_main.fgan.output_norm


@pytest.mark.parametrize("number", range(len(FACTORS)))
def test_the_search_tries_every_rate_of_every_method_on_validation_alone(number):
    preset = Config(**comparison.PRESETS["benchmark"])
    found = comparison.parse(Config, comparison.search_words(number), "main.py", "", comparison.PRESETS)
    for names in RATES.values():
        for name in names:
            group, _, inner = name.partition(".")
            one, other = (getattr(getattr(cfg, group), inner) if inner else getattr(cfg, group)
                          for cfg in (found, preset))
            assert one == pytest.approx(other * FACTORS[number], rel=1e-2)
    assert (found.seed, found.baselines, found.exp) == (0, SYSTEMS, f"rates0_{number}")
    assert bool(found.aae_from) == (number > 0)


# ---------------------------------------------------------------- the table, of made-up results

def made_up_run(seed: int, gains: dict[str, float]) -> SimpleNamespace:
    """Results of 60 subjects: methods with a PSNR of so many dB above 27, and an SUVR that follows the real
    one more closely with it."""
    rng = np.random.default_rng(seed)
    label = np.arange(60) % 2
    real = 1.2 + 0.3 * label + rng.normal(0, 0.05, 60)
    ids, test, uptake = [f"s{i}" for i in range(60)], [], [("real", real)]
    noise, error = rng.normal(0, 1, 60), rng.normal(0, 0.3, 60)
    for method, gain in gains.items():
        scores = {name: 0.5 + 0.01 * gain + 0.01 * noise for name in METRICS}
        scores["PSNR_brain"] = 27 + gain + noise
        test.append(pd.DataFrame({"ID": ids, "method": method, **scores}))
        uptake.append((method, real + error / (1 + gain)))
    tables = []
    for method, suvr in uptake:
        tables.append(pd.DataFrame({"ID": ids, "label": label, "method": method, "SUVR": suvr}))
    return SimpleNamespace(name=f"run{seed}", test=pd.concat(test), uptake=pd.concat(tables),
                           metadata={"command": f"python main.py --seed {seed}"})


def made_up_cost(gains: dict[str, float]) -> pd.DataFrame:
    """cost.csv of these methods."""
    return pd.DataFrame(
        {
            "method": list(gains),
            "weights": 1000,
            "volumes_seen": 64,
            "training_s": 2.0,
            "NFE": 1,
            "scan_s": 0.5,
        }
    )


SHOWN = {row.name: row.methods for row in ROWS}
GAINS = {"il_cldm": 1.0, "pix2pix": 0.0, "fgan": 1.0, "mean_pet": 0.0}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The table of three seeds, and of one at link 0."""
    runs = {("main", seed): made_up_run(seed, GAINS) for seed in SEEDS}
    runs["link_0", 0] = made_up_run(7, {"il_cldm": 0.0, "fgan": 0.0})
    return make_table(runs, dict.fromkeys(runs, made_up_cost(GAINS)), SHOWN).set_index("method")


def test_scores_are_means_over_seeds_with_their_sd(table):
    assert table.index.tolist() == ["il_cldm", "pix2pix", "fgan", "mean_pet", "il_cldm_link_0", "fgan_link_0"]
    runs = [made_up_run(seed, GAINS) for seed in SEEDS]
    psnr = [run.test.query("method == 'pix2pix'")["PSNR_brain"].mean() for run in runs]
    assert table.loc["pix2pix", "PSNR_brain"] == pytest.approx(np.mean(psnr))
    assert table.loc["pix2pix", "PSNR_brain_sd"] == pytest.approx(np.std(psnr, ddof=1))
    pairs = [run.uptake.pivot(index="ID", columns="method", values="SUVR") for run in runs]
    for score, value in (("r", lambda pair: pair["real"].corr(pair["fgan"])),
                         ("bias", lambda pair: (pair["fgan"] - pair["real"]).mean()),
                         ("slope", lambda pair: pair["real"].cov(pair["fgan"]) / pair["real"].var())):
        assert table.loc["fgan", score] == pytest.approx(np.mean([value(pair) for pair in pairs])), score
    assert table.loc["fgan", ["n", "subjects", "volumes_seen"]].tolist() == [3, 180, 64]
    assert (table["AUC_low"] <= table["AUC"]).all() and (table["AUC"] <= table["AUC_high"]).all()


def test_p_values_are_paired_and_adjusted_together(table):
    assert np.isnan(table.loc["il_cldm", ["p_PSNR_brain", "p_AUC"]].astype(float)).all()
    assert table.loc["pix2pix", "p_PSNR_brain"] < 0.05      # 1 dB below with the same subjects and noise
    assert table.loc["fgan", "p_PSNR_brain"] == 1           # the same numbers
    assert np.isnan(table.loc["fgan_link_0", "p_PSNR_brain"]) and table.loc["fgan_link_0", "p_AUC"] < 0.05
    given = table[["p_PSNR_brain", "p_AUC"]].to_numpy(float).ravel()
    assert np.isfinite(given).sum() == 8                    # of three rows both, of two at link 0 one each
    assert np.nanmin(given) == pytest.approx(8 * 2 / 2001)  # Holm: the smallest p times 8
    assert (holm(given) >= given - 1e-12)[np.isfinite(given)].all()


def test_the_interval_of_the_auc_is_that_of_resampled_subjects():
    """Against the formula of Hanley and McNeil for one seed."""
    run = made_up_run(0, {"il_cldm": 0.0})
    row = make_table({("main", 0): run}, {("main", 0): made_up_cost({"il_cldm": 0})}, SHOWN).iloc[0]
    auc, n = row["AUC"], 30
    q_1, q_2 = auc / (2 - auc), 2 * auc ** 2 / (1 + auc)
    se = np.sqrt((auc * (1 - auc) + (n - 1) * (q_1 - auc ** 2) + (n - 1) * (q_2 - auc ** 2)) / n ** 2)
    assert row["AUC_high"] - row["AUC_low"] == pytest.approx(2 * norm.ppf(0.975) * se, rel=0.25)


def test_the_page_marks_what_differs_and_shows_null_controls_and_costs_apart(table):
    page = to_markdown(table.reset_index())
    scores, nulls, costs = page.strip().split("\n\n")
    [pix2pix] = [line for line in scores.splitlines() if line.startswith("| Pix2Pix")]
    [fgan] = [line for line in scores.splitlines() if line.startswith("| FGAN")]
    assert "*" in pix2pix and "*" not in fgan and "±" in fgan
    assert nulls.count("\n") == 3 and "IL-CLDM (default)" in nulls and "own" in nulls
    assert "1,000" in costs and "64" in costs
    assert "link_0" not in page


# ---------------------------------------------------------------- the run

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The comparison on phantoms at 8 mm; main in this process. Gives the commands that were run."""
    monkeypatch.chdir(tmp_path)
    for name in ("SHORT", "FULL"):
        monkeypatch.setattr(comparison, name, SHORT)
    preset = merged(Config, PRESETS["benchmark"], TINY | PHANTOM)
    monkeypatch.setitem(comparison.PRESETS, "benchmark", preset)
    for name in ("plot_comparison", "plot_history", "plot_shown_scans"):
        monkeypatch.setattr(main, name, do_nothing)
    monkeypatch.setattr(baselines, "plot_history", do_nothing)
    commands = []

    def run_command(command: list[str]) -> int:
        """Run it here, and note it."""
        commands.append(command[2:])
        return main.main(command[2:])
    monkeypatch.setattr(running, "run_command", run_command)
    return commands


def noted_rates() -> None:
    """A search of learning rates in which those of the preset were best, but for one method."""
    rows = [{"method": method, "factor": 3.0 if method == "resvit" else 1.0, "score": 40.0, "chosen": True}
            for method in RATES]
    write_csv(running.FOLDER / "comparison_rates.csv", pd.DataFrame(rows))


def test_it_prints_hours_runs_what_is_missing_and_writes_the_table(tiny, tmp_path, monkeypatch, capsys):
    kept = tuple(BY_NAME[name] for name in ("main", "fgan_published", "ddpm_ancestral"))
    monkeypatch.setattr(comparison, "ROWS", kept)
    monkeypatch.setattr(comparison, "search_rates", noted_rates)
    assert comparison.main(["--seeds", "0"]) == 0
    assert [command[-1] for command in tiny] == ["baselines", "test"] * 3
    said = capsys.readouterr().out
    assert "hours on this machine" in said
    assert all(re.search(rf"{name} \d+\.\d[,)]", said) for name in ("il_cldm", *SYSTEMS))
    folder = tmp_path / "result"
    table = pd.read_csv(folder / "study" / "comparison.csv").set_index("method")
    assert set(table.index) == {*BY_NAME["main"].methods.values(), "fgan_published", "ddpm_ancestral"}
    for row, exp, method in (("tpa_gan", "main", "tpa_gan"), ("fgan_published", "fgan_published", "fgan"),
                             ("ddpm_ancestral", "ddpm_ancestral", "ddpm")):
        test = pd.read_csv(folder / f"comparison0_{exp}" / "test.csv").set_index("method")
        assert table.loc[row, "PSNR_brain"] == pytest.approx(test.loc[method, "PSNR_brain"].mean())
    assert table.loc[["fgan", "fgan_published", *SYSTEMS], "volumes_seen"].eq(2 * 6).all()
    assert table.loc[["ddpm", "ddpm_mean", "ddpm_ancestral"], "NFE"].tolist() == [3, 24, 19]
    assert float(tiny[0][tiny[0].index("--resvit.lr_2") + 1]) == pytest.approx(3e-3)
    assert (folder / "study" / "comparison.md").read_text().count("\n| ") > 2 * len(SYSTEMS)
    tiny.clear()
    assert comparison.main(["--seeds", "0"]) == 0 and not tiny


def test_rates_are_searched_on_validation_before_anything_is_tested(tiny, tmp_path, monkeypatch):
    """The whole comparison, with commands that train nothing."""
    commands = []

    def run_command(command: list[str]) -> int:
        """Note it; of a search write validations, by which the rates of a third win, of a training the
        DDPM."""
        words = command[2:]
        commands.append(words)
        exp = words[words.index("--exp") + 1]
        (tmp_path / "result" / exp).mkdir(parents=True, exist_ok=True)
        (tmp_path / "result" / exp / "CHECKPOINT_ddpm_last.pth.tar").touch()
        if exp.startswith("rates"):
            rows = [{"stage": method, "epoch": epoch, "best": True, "score": 50.0 - int(exp[-1]) - epoch}
                    for method in ("aae", *RATES) for epoch in (1, 3, 4)]
            write_csv(tmp_path / "result" / exp / "validation.csv", pd.DataFrame(rows))
        return 0
    monkeypatch.setattr(running, "run_command", run_command)
    monkeypatch.setattr(comparison, "expected_hours", lambda cfg, quick: {"il_cldm": 0.0})
    monkeypatch.setattr(comparison.shutil, "copyfile", lambda source, target: None)
    assert comparison.main([]) == 2                         # nothing is there for a table
    stages = [words[words.index("--stages") + 1:] for words in commands]
    assert stages[:3] == [
        ["check", "aae", "encode", "ldm", "baselines"],
        *[["check", "ldm", "baselines"]] * 2,
    ]
    assert [stage[-1] for stage in stages].index("test") > 3
    runs = [(row, seed) for row in ROWS for seed in row.seeds]
    assert len(commands) == 3 + 2 * len(runs)
    rates = pd.read_csv(tmp_path / "result" / "study" / "comparison_rates.csv")
    assert rates[rates["chosen"]]["factor"].tolist() == pytest.approx([1 / 3] * len(RATES), abs=1e-9)
    for words, stage in zip(commands[3:], stages[3:], strict=True):
        is_published = "published" in words
        assert ("--tpa_gan.d_lr" in words) == ("--fgan.lr" in words) == (not is_published)
        if not is_published:
            assert float(words[words.index("--tpa_gan.d_lr") + 1]) == pytest.approx(4e-4 / 3, rel=1e-2)
        assert stage == ["test"] or "test" not in stage
    tested = [words[words.index("--exp") + 1] for words, stage in zip(commands, stages, strict=True)
              if stage == ["test"]]
    assert tested == [f"comparison{seed}_{row.name}" for row, seed in runs]


def test_tables_of_nothing_and_a_failed_command_end_with_a_sentence(tiny, tmp_path, monkeypatch, capsys):
    assert comparison.main(["--tables"]) == 2
    assert "no experiment of the comparison is finished" in capsys.readouterr().err
    monkeypatch.setattr(running, "run_command", lambda command: 3)
    monkeypatch.setattr(comparison, "expected_hours", lambda cfg, quick: {"il_cldm": 0.0})
    assert comparison.main(["--quick"]) == 3
    assert "main, seed 0: exit code 3 of" in capsys.readouterr().err


def test_the_settings_of_the_search_bind_what_they_name():
    """A learning rate that no training is bound to would change nothing."""
    bound = Config().settings_of(*ALL).keys()
    assert {name for names in RATES.values() for name in names} <= bound


def test_every_system_has_a_name_and_rates_to_search():
    assert set(SYSTEMS) | {"ldm"} == set(RATES)
    assert {*SYSTEMS, *BASELINES, "il_cldm"} <= set(NAMES)
    for row in ROWS:
        null = {*comparison.AT_LINK_0.values(), *comparison.SHUFFLED.values()}
        assert set(row.methods.values()) <= null | {*NAMES}


def test_results_of_other_settings_of_a_system_are_not_taken_for_its_own(monkeypatch):
    """Those of its predictions among them, which no training is bound to."""
    cfg = Config(baselines=("ddpm",))
    saved = {name: plain(getattr(cfg, name)) for name in cfg.__dataclass_fields__}
    monkeypatch.setattr(running, "load_run", lambda folder: SimpleNamespace(metadata={"settings": saved}))
    assert running.load_finished(cfg, "ddpm") and running.load_finished(cfg)
    for changed in ({"samples": 8}, {"lr": 0.5}):
        other = dataclasses.replace(cfg, ddpm=dataclasses.replace(cfg.ddpm, **changed))
        assert running.load_finished(other, "ddpm") is None
        assert running.load_finished(other, "resvit")       # which did not change
    other = dataclasses.replace(cfg, image_regression=ImageRegressionSettings(channels=4))
    assert running.load_finished(other, "labelled_image_regression") is None
    assert running.load_finished(other, "latent_regression")


def test_the_ancestral_row_without_the_main_one_is_refused(tiny, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "expected_hours", lambda cfg, quick: {"il_cldm": 0.0})
    monkeypatch.setattr(comparison, "search_rates", noted_rates)
    assert comparison.main(["--seeds", "0", "--rows", "ddpm_ancestral"]) == 2
    assert "has no trained ddpm; run the row main first" in capsys.readouterr().err
