"""Whether the default leads on other truths than the one it was chosen on: the study's main rows on four
kinds of the phantom (docs/study_phantoms.md).

    python main.py study phantoms             seed 0, hours first; the same command goes on
    python main.py study phantoms --quick     a quarter of the training of stage 2
    python main.py study phantoms --tables    runs nothing; the tables of what is finished

Budget 4, four times the updates of stage 2 of the preset benchmark: 3,840. Writes result/study/phantoms.csv,
phantoms_leads.csv and phantoms.md.
"""
import argparse
from functools import partial
from typing import NamedTuple

import pandas as pd

from config import PRESETS, Config
from phantom.kinds import KINDS, PLAIN
from runtime.commandline import parse
from runtime.files import write_csv, write_text
from runtime.logs import say
from runtime.program import exit_code
from studies.budget_measure import is_measured, measure, subjects_of
from studies.budget_plan import average_words, length_words
from studies.comparison import MethodCost, seconds_of
from studies.parts import Setup
from studies.phantoms_table import make_leads, make_table, score_lists, to_markdown
from studies.repairs_rows import BY_NAME as ROWS
from studies.running import (FOLDER, SEEDS, Failed, benchmark_cohort, cohort_words, is_trained, load_finished,
                             run_stages, run_study)
from studies.systems import training_step

BUDGETS = (1, 4)                                           # times the epochs of stage 2
CHANGES = {name: ROWS[name].change for name in ("default", "fallback", "published")}
BESIDE = ("latent_regression", "labelled_latent_regression", "image_regression")      # beside the default
LINK = {"rare": "0.3"}                                     # the other kinds have the default's


class Experiment(NamedTuple):
    """An experiment of the study: kind of phantom, seed, row (a key of CHANGES) and budget."""
    kind: str
    seed: int
    row: str
    budget: int

    @property
    def regressions(self) -> tuple[str, ...]:
        """The regressions that are trained in it."""
        return BESIDE if self.row == "default" else ()

    @property
    def title(self) -> str:
        """The experiment, for a message."""
        return f"{self.kind}, {self.row}, budget {self.budget}, seed {self.seed}"


# ---------------------------------------------------------------- the settings of an experiment

def cohort_of(kind: str, seed: int) -> str:
    """Folder of the phantom of a kind and seed; the plain one is the benchmark's."""
    return benchmark_cohort(seed, False) if kind == PLAIN.name else f"data/phantoms{seed}_{kind}"


def stage_1_name(one: Experiment) -> str:
    """Name of the experiment that trains the stage 1 of this one; default and fallback share theirs."""
    whose = "published_" if one.row == "published" else ""
    return f"phantoms{one.seed}_{one.kind}_{whose}stage_1"


def words(one: Experiment) -> list[str]:
    """The command line of an experiment, without its stages, regressions and the name of its stage 1."""
    kind, seed, row, budget = one
    change = CHANGES[row].split()
    preset = [] if "--preset" in change else ["--preset", "benchmark"]
    own = cohort_words(f"phantoms{seed}_{kind}_{row}_{budget}", seed, cohort_of(kind, seed))
    link = ["--phantom_link", LINK[kind]] if kind in LINK else []
    return [*preset, *own, "--phantom_kind", kind, *link, *change, *average_words(budget),
            *length_words(budget)]


def words_of(one: Experiment) -> list[str]:
    """The command line of an experiment, without its stages."""
    beside = ["--baselines", *one.regressions] if one.regressions else []
    return [*words(one), "--aae_from", stage_1_name(one), *beside]


def stage_1_words(one: Experiment) -> list[str]:
    """The command line of the experiment that trains the stage 1 of this one, without its stages."""
    row = "published" if one.row == "published" else "default"
    return [*words(one._replace(row=row, budget=1)), "--exp", stage_1_name(one)]


def settings_of(one: Experiment) -> Config:
    """The settings of an experiment."""
    return parse(Config, words_of(one), "main.py", "", PRESETS)


# ---------------------------------------------------------------- the run

def planned(kinds: list[str], seeds: list[int], budgets: list[int]) -> list[Experiment]:
    """The experiments of these kinds, seeds and budgets: all kinds with the first seed first."""
    return [Experiment(kind, seed, row, budget)
            for budget in budgets for seed in seeds for kind in kinds for row in CHANGES]


def is_finished(one: Experiment) -> bool:
    """Whether nothing of an experiment is left to be run."""
    cfg = settings_of(one)
    return is_trained(cfg, one.regressions) and is_measured(cfg, one.regressions, 0)


def expected_hours(plan: list[Experiment]) -> float:
    """Hours that these experiments take here, from a training step and a scan of each kind that are timed
    here. A regression on latents takes the step of stage 2."""
    hours, costs, stages_1, on_images = 0.0, {}, set(), None
    for one in plan:
        cfg, is_published = settings_of(one), one.row == "published"
        if is_published not in costs:
            costs[is_published] = MethodCost.timed("il_cldm", cfg)
        cost = costs[is_published]
        hours += cost._replace(steps={"ldm": cost.steps["ldm"]}).hours(cfg)
        steps = {}
        if cfg.aae_from not in stages_1:
            stages_1.add(cfg.aae_from)
            steps["aae"] = cost.steps["aae"]
        if one.regressions:
            on_images = on_images or seconds_of(training_step("image_regression", Setup(cfg, False)))
            steps |= dict.fromkeys(one.regressions, cost.steps["ldm"]) | {"image_regression": on_images}
        hours += cost._replace(steps=steps, validation_scan=0.0).hours(cfg, tested=False)
    return hours


def run_experiment(one: Experiment) -> None:
    """Train and test an experiment, and score its regressions on the validation list. Raises Failed if a
    command fails."""
    cfg = settings_of(one)
    if not is_trained(cfg, one.regressions):
        say("study", f"{one.title}   {CHANGES[one.row]}")
        run_stages(f"{one.title}, stage 1", cfg.aae_from, stage_1_words(one), [["check", "aae", "encode"]])
        training = ["check", "ldm", *(["baselines"] if one.regressions else [])]
        run_stages(one.title, cfg.exp, words_of(one), [training, ["test"]])
    if code := exit_code(partial(measure, cfg, one.regressions, 0)):
        raise Failed(code, f"{one.title}: exit code {code} of its regressions on the validation list; the "
                           "same command goes on here")


# ---------------------------------------------------------------- the tables

def finished_subjects() -> pd.DataFrame:
    """Scores of all subjects of the finished experiments, a row a kind, budget, seed, method, list and
    subject. Raises Failed if there are none."""
    tables = []
    for one in planned(list(KINDS), list(SEEDS), list(BUDGETS)):
        if is_finished(one):
            cfg = settings_of(one)
            table = subjects_of(cfg, load_finished(cfg, *one.regressions))
            table = table[table["is_setting"]].replace({"method": {"il_cldm": one.row}})
            tables.append(table.assign(kind=one.kind, budget=one.budget))
    if not tables:
        raise Failed(2, "no experiment of the phantoms is finished; python main.py study phantoms runs them")
    key = ["kind", "budget", "seed", "method", "list", "ID"]   # mean PET and oracle are in every experiment
    return pd.concat(tables).drop_duplicates(key)


def write_tables() -> None:
    """Write phantoms.csv, phantoms_leads.csv and phantoms.md of what is finished. Raises Failed if there is
    nothing."""
    scored = score_lists(finished_subjects())
    table, leads = make_table(scored), make_leads(scored)
    write_csv(FOLDER / "phantoms.csv", table)
    write_csv(FOLDER / "phantoms_leads.csv", leads)
    write_text(FOLDER / "phantoms.md", to_markdown(table, leads))
    say("study", f"wrote {FOLDER}/phantoms.md, phantoms.csv and phantoms_leads.csv")


def main(argv: list[str]) -> int:
    """Run the study of phantoms. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="main.py study phantoms", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="budget 1")
    parser.add_argument("--budget", type=int, default=4, choices=BUDGETS,
                        help="in multiples of 960 updates of stage 2; 4")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS[:1]), choices=SEEDS,
                        help="seeds to run; 0")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS),
                        help="kinds of phantom to run; all")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing, write the tables of what is finished")
    arguments = parser.parse_args(argv)
    budget = 1 if arguments.quick else arguments.budget

    def work() -> None:
        """Run what is not finished, and write the tables."""
        plan = [] if arguments.tables else planned(arguments.kinds, arguments.seeds, [budget])
        left = [one for one in plan if not is_finished(one)]
        if left:
            say("study", f"experiments left: {len(left)}; about {expected_hours(left):.1f} hours here, from "
                         "a few steps")
        for one in left:
            run_experiment(one)
        write_tables()
    return run_study(work)
