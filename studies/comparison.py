"""The paper's comparison on the benchmark phantom: IL-CLDM, five systems, controls (docs/comparison.md).

    python main.py study comparison             all of it, hours first; the same command goes on
    python main.py study comparison --quick     seed 0 alone, a quarter of the training, no search of rates
    python main.py study comparison --tables    runs nothing; the tables of what is finished

Every method sees as many training volumes, first stages and earlier phases among them. Before that, three
learning rates of every method are tried on the validation list of seed 0. Writes result/study/comparison.*
"""
import argparse
import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from config import BASELINES, PRESETS, SECOND_ROWS, SEEING_LABELS, SYSTEMS, Config, with_later_settings
from experiment.networks import checkpoint_name
from runtime.checkpoints import read_history
from runtime.commandline import parse
from runtime.files import make_folder, write_csv, write_text
from runtime.logs import say
from studies import systems
from studies.comparison_table import make_table, to_markdown
from studies.parts import Part, Setup, scan_pass, stage_1_step, stage_2_step
from studies.running import (FOLDER, SEEDS, Failed, benchmark_cohort, cohort_words, load_finished,
                             run_stages, run_study)

# Epochs of stage 1 and 2; a system gets their sum. FULL: four times the updates of the other study.
SHORT = ["--aae_epochs", "20", "--ldm_epochs", "12"]
FULL = ["--aae_epochs", "80", "--ldm_epochs", "48", "--validation_every", "8"]
FACTORS = (1 / 3, 1.0, 3.0)                                # of the preset's learning rates, that are tried
RATES = {"ldm": ("ldm_lr",), "pix2pix": ("pix2pix.lr",), "tpa_gan": ("tpa_gan.g_lr", "tpa_gan.d_lr"),
         "fgan": ("fgan.lr",), "resvit": ("resvit.lr_1", "resvit.lr_2"), "ddpm": ("ddpm.lr",)}


class Row(NamedTuple):
    """An experiment of the comparison.

    change: the settings that differ from those of the main experiment. baselines: that are trained in it.
    trains: what it trains itself, 'aae' both stages, 'ldm' the second, 'nothing' where it uses the networks
    of the main experiment, and those of its baselines. seeds: it is run with. methods: its methods that the
    table shows -> the name of their row.
    """
    name: str
    change: str
    baselines: tuple[str, ...]
    trains: str
    seeds: tuple[int, ...]
    methods: dict[str, str]
    of: str = "main"


IN_MAIN = ("il_cldm", *BASELINES, *SECOND_ROWS, "mean_pet", "oracle")
AT_LINK_0 = {name: f"{name}_link_0" for name in ("il_cldm", *SYSTEMS)}
SHUFFLED = {name: f"{name}_link_0_shuffled" for name in ("il_cldm", *SEEING_LABELS)}
ROWS = (
    Row("main", "--ddpm.samples 8", BASELINES, "aae", SEEDS,
        {name: name for name in IN_MAIN}),
    Row("published", "--preset benchmark published --sampler ddim --sampling_steps 50", (), "aae", SEEDS,
        {"il_cldm": "published"}),
    Row("fgan_published", "--fgan.output_norm true", ("fgan",), "nothing", (0,), {"fgan": "fgan_published"}),
    Row("ddpm_ancestral", "--ddpm.sampler ddpm", ("ddpm",), "nothing", (0,), {"ddpm": "ddpm_ancestral"}),
    # null controls: the MRI knows nothing of amyloid
    Row("link_0", "--phantom_link 0", SYSTEMS, "aae", SEEDS, AT_LINK_0),
    Row("link_0_shuffled", "--phantom_link 0 --shuffle_labels", SEEING_LABELS, "ldm", SEEDS, SHUFFLED,
        "link_0"),
)
BY_NAME = {row.name: row for row in ROWS}


# ---------------------------------------------------------------- the settings of an experiment

def experiment_name(row: str, seed: int, quick: bool) -> str:
    """Name of the experiment of a row and seed."""
    return f"{'quick' if quick else 'comparison'}{seed}_{row}"


def words(row: Row, seed: int, quick: bool, rates: list[str]) -> list[str]:
    """The command line of an experiment, without its stages. rates: the chosen learning rates, as words."""
    name = experiment_name(row.name, seed, quick)
    change = row.change.split()
    preset = [] if "--preset" in change else ["--preset", "benchmark"]
    source = experiment_name(row.of, seed, quick)
    pretrained = {"aae": [], "ldm": ["--aae_from", source], "nothing": ["--ldm_from", source]}[row.trains]
    baselines = ["--baselines", *row.baselines] if row.baselines else []
    own_rates = [] if row.name == "published" else rates
    return [*preset, *cohort_words(name, seed, benchmark_cohort(seed, "--phantom_link" in change)), *change,
            *(SHORT if quick else FULL), *pretrained, *baselines, *own_rates]


def settings_of(row: Row, seed: int, quick: bool, rates: list[str]) -> Config:
    """The settings of an experiment."""
    return parse(Config, words(row, seed, quick, rates), "main.py", "", PRESETS)


def stages(row: Row) -> list[list[str]]:
    """The stages of an experiment: those that train, then the test."""
    own = {"aae": ["aae", "encode", "ldm"], "ldm": ["ldm"], "nothing": []}[row.trains]
    return [["check", *own, *(["baselines"] if row.baselines else [])], ["test"]]


# ---------------------------------------------------------------- the search of learning rates

def rate_words(method: str, factor: float) -> list[str]:
    """The learning rates of a method times the factor, as words of a command line."""
    cfg, found = Config(**PRESETS["benchmark"]), []
    for name in RATES[method]:
        group, _, inner = name.partition(".")
        rate = getattr(getattr(cfg, group), inner) if inner else getattr(cfg, group)
        found += [f"--{name}", f"{rate * factor:.3g}"]
    return found


def search_words(number: int) -> list[str]:
    """The command line of the experiment that tries FACTORS[number] for every method, without its stages."""
    first = "rates0_0"                                     # which trains the stage 1 of all
    pretrained = ["--aae_from", first] if number else []
    rates = [word for method in RATES for word in rate_words(method, FACTORS[number])]
    own = cohort_words(f"rates0_{number}", 0, benchmark_cohort(0, False))
    return ["--preset", "benchmark", *own, *SHORT, *pretrained, "--baselines", *SYSTEMS, *rates]


def search_rates() -> None:
    """Train every method with each of the FACTORS, and write comparison_rates.csv; nothing is tested."""
    rows = []
    for number, factor in enumerate(FACTORS):
        cfg = parse(Config, search_words(number), "main.py", "", PRESETS)
        if _validated(cfg) < set(RATES):
            say("study", f"learning rates times {factor:.2g}, seed 0, validation list")
            stage_1 = [] if number else ["aae", "encode"]
            run_stages(f"learning rates times {factor:.2g}", cfg.exp, search_words(number),
                       [["check", *stage_1, "ldm", "baselines"]])
        validation = read_history(cfg.result_dir / "validation.csv")
        best = validation.groupby("stage")["score"].max()
        rows += [{"method": method, "factor": factor, "score": best[method]} for method in RATES]
    table = pd.DataFrame(rows)
    table["chosen"] = table["score"] == table.groupby("method")["score"].transform("max")
    write_csv(FOLDER / "comparison_rates.csv", table.sort_values("method", kind="stable"))


def _validated(cfg: Config) -> set[str]:
    """The methods whose training with these settings is finished, by their validations."""
    path, saved = cfg.result_dir / "validation.csv", cfg.result_dir / "config.json"
    if not (path.is_file() and saved.is_file()):
        return set()
    if _settings_in(saved.read_text()) != _settings_in(cfg.to_json()):
        return set()
    last = read_history(path).groupby("stage")["epoch"].max()
    return {method for method in RATES if last.get(method, 0) >= cfg.epochs_of(method)}


def _settings_in(text: str) -> dict:
    """The settings of a config.json, without the stages that were run."""
    settings = with_later_settings(json.loads(text)["settings"])
    return {name: value for name, value in settings.items() if name != "stages"}


def chosen_rates() -> list[str]:
    """The learning rates that the validation list chose, as words of a command line."""
    table = pd.read_csv(FOLDER / "comparison_rates.csv")
    chosen = table[table["chosen"]].drop_duplicates("method").set_index("method")["factor"]
    return [word for method, factor in chosen.items() for word in rate_words(method, factor)]


# ---------------------------------------------------------------- hours

def expected_hours(cfg: Config, quick: bool) -> dict[str, float]:
    """Hours of each method in all that is planned, from one training step and one scan of each that are timed
    here; il_cldm with both stages. The regressions are not counted."""
    short, hours = parse(Config, ["--preset", "benchmark", *SHORT], "main.py", "", PRESETS), {}
    for method in ("il_cldm", *SYSTEMS):
        cost = MethodCost.timed(method, cfg)
        rows = [row for row in ROWS if row.name != "ddpm_ancestral" and
                (row.trains != "nothing" if method == "il_cldm" else method in row.baselines)]
        hours[method] = cost.hours(cfg)
        if not quick:
            hours[method] *= sum(len(row.seeds) for row in rows)
            hours[method] += len(FACTORS) * cost.hours(short, tested=False)
        if method == "ddpm" and not quick:                 # one sample of T - 1 evaluations
            evaluations = cfg.ddpm.sampling_steps * (1 + cfg.ddpm.samples)
            hours[method] += cfg.phantom_subjects[2] * (cfg.ddpm.T - 1) * cost.scan / evaluations / 3600
    return hours


class MethodCost(NamedTuple):
    """Seconds of a method's training step (of the costliest phase), by stage, and of a scan's synthesis in
    validation and test."""
    steps: dict[str, float]
    validation_scan: float
    scan: float

    @classmethod
    def timed(cls, method: str, cfg: Config) -> "MethodCost":
        """The cost of il_cldm or a system, from one action of each kind after a warm-up."""
        setup = Setup(cfg, published=False)
        if method == "il_cldm":
            scan = seconds_of(scan_pass(setup))
            return cls({"aae": seconds_of(stage_1_step(setup)), "ldm": seconds_of(stage_2_step(setup))},
                       scan / cfg.samples_per_scan, 2 * scan)               # matched: two passes
        step = {method: seconds_of(systems.training_step(method, setup))}
        scan = seconds_of(systems.scan(method, setup))
        if method != "ddpm":
            return cls(step, scan, scan)
        # for one sample, and for the mean of several
        evaluation, one = scan / systems.FEW_STEPS, cfg.ddpm.sampling_steps
        return cls(step, evaluation * cfg.ddpm.validation_steps, evaluation * one * (1 + cfg.ddpm.samples))

    def hours(self, cfg: Config, tested: bool = True) -> float:
        """Hours of a training with its validations, and of the test if that is taken."""
        n_train, n_validation, n_test = cfg.phantom_subjects
        seconds = tested * n_test * self.scan
        for stage, step in self.steps.items():
            epochs, size = cfg.epochs_of(stage), cfg.aae_batch_size if stage == "aae" else cfg.ldm_batch_size
            validations = epochs // cfg.validation_every * n_validation * self.validation_scan
            seconds += epochs * n_train // size * step + validations
        return seconds / 3600


def seconds_of(part: Part) -> float:
    """Seconds of a unit of work of a part; a first one warms up."""
    action, units = part
    action()
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) / units


# ---------------------------------------------------------------- the run

def run_row(row: Row, seed: int, quick: bool, rates: list[str]) -> None:
    """Train and score an experiment that is not finished. Raises Failed if a command fails."""
    cfg = settings_of(row, seed, quick, rates)
    run = load_finished(cfg, *row.baselines)
    if run and set(row.methods) - {"oracle"} <= set(run.test["method"]):
        return
    say("study", f"{row.name}, seed {seed}   {row.change}")
    if row.name == "ddpm_ancestral":                       # samples the network of the main experiment
        make_folder(cfg.result_dir)
        source = settings_of(BY_NAME["main"], seed, quick, rates).result_dir
        if not (source / f"{checkpoint_name('ddpm')}_last.pth.tar").is_file():
            raise Failed(2, f"ddpm_ancestral, seed {seed}: {source} has no trained ddpm; run the row main "
                            "first")
        for last in ("", "_last"):
            name = f"{checkpoint_name('ddpm')}{last}.pth.tar"
            shutil.copyfile(source / name, cfg.result_dir / name)
    run_stages(f"{row.name}, seed {seed}", cfg.exp, words(row, seed, quick, rates), stages(row))


# ---------------------------------------------------------------- the tables

def write_tables(seeds: list[int], quick: bool, rates: list[str]) -> None:
    """Write comparison.csv and .md of the experiments that are finished, and copy the picture of the first.
    Raises Failed if there are none."""
    runs, costs, stem = {}, {}, FOLDER / ("comparison_quick" if quick else "comparison")
    for row in ROWS:
        for seed in seeds:
            cfg = settings_of(row, seed, quick, rates)
            run = load_finished(cfg, *row.baselines) if seed in row.seeds else None
            if run:
                runs[row.name, seed] = run
                costs[row.name, seed] = pd.read_csv(cfg.result_dir / "cost.csv")
    if not runs:
        raise Failed(2, "no experiment of the comparison is finished; python main.py study comparison runs "
                        "them")
    table = make_table(runs, costs, {row.name: row.methods for row in ROWS})
    write_csv(stem.with_suffix(".csv"), table)
    write_text(stem.with_suffix(".md"), to_markdown(table))
    first = next(iter(runs.values()))
    picture = Path("result") / first.name / "comparison.png"
    if picture.is_file():
        shutil.copyfile(picture, stem.with_suffix(".png"))
    say("study", f"wrote {stem}.csv and .md, {len(runs)} experiments")


def main(argv: list[str]) -> int:
    """Run the comparison. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="main.py study comparison", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="the main experiment of seed 0 alone, a quarter of the training, no search of "
                             "rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS,
                        help="seeds to run")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS],
                        default=[row.name for row in ROWS], help="experiments to run; main first")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing, write the tables of what is finished")
    arguments = parser.parse_args(argv)
    quick, seeds = arguments.quick, [0] if arguments.quick else arguments.seeds
    names = ["main"] if quick else arguments.rows

    def work() -> None:
        """Search the rates, run what is not finished, and write the tables."""
        if not arguments.tables:
            _say_hours(quick)
            if not quick:
                search_rates()
        searched = not quick and (FOLDER / "comparison_rates.csv").is_file()
        rates = chosen_rates() if searched else []
        for row in () if arguments.tables else [BY_NAME[name] for name in names]:
            for seed in [seed for seed in seeds if seed in row.seeds]:
                run_row(row, seed, quick, rates)
        write_tables(seeds, quick, rates)
    return run_study(work)


def _say_hours(quick: bool) -> None:
    """Say what the comparison will take."""
    hours = expected_hours(settings_of(BY_NAME["main"], 0, quick, []), quick)
    shown = ", ".join(f"{method} {value:.1f}" for method, value in hours.items())
    say("study", f"about {sum(hours.values()):.0f} hours on this machine, from a step and a scan of each "
                 f"({shown}), the regressions not counted; what is finished is not run again")
