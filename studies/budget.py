"""A budget axis: every method of the study trained longer, from today's updates to 64 times as many
(docs/study_budget.md).

    python main.py study budget             all of it, hours first; the same command goes on
    python main.py study budget --quick     seed 0, today's updates and four times as many
    python main.py study budget --repairs   the choices of the default taken back, at its best budget
    python main.py study budget --fresh     200 fresh phantoms a seed, by the default at its best budget
    python main.py study budget --tables    runs nothing; the tables of what is finished

On the benchmark phantom. Budget 1 is 960 updates of stage 2 (12 epochs of 80 steps). The finished diffusions
are sampled again with few and many network evaluations. Writes result/study/budget*
"""
import argparse
import dataclasses
from functools import partial

import pandas as pd
import torch

from config import REGRESSIONS, Config
from evaluation.external_results import load_externals
from evaluation.figures import plot_budget
from evaluation.results import Run
from experiment.networks import checkpoint_name
from experiment.scoring import frozen_digests
from runtime.checkpoints import load_checkpoint, tensor_bytes
from runtime.files import atomic, make_folder, write_csv, write_text
from runtime.logs import say
from runtime.program import exit_code
from studies.budget_measure import evaluations_of, is_measured, measure, subjects_of
from studies.budget_plan import (BUDGETS, BY_NAME, FRESH_NAME, METHODS, REPAIRS, Experiment, fresh_name,
                                 fresh_words, planned, settings_of, stage_1_words, words_of)
from studies.budget_table import (KEY, REFERENCES, SeedScores, best_budgets, make_best, make_criteria,
                                  make_curves, make_repairs, make_table, to_markdown)
from studies.comparison import MethodCost, seconds_of
from studies.parts import Setup, network_evaluation, stage_2_step
from studies.running import (FOLDER, SEEDS, Failed, is_trained, load_finished, run_or_fail, run_stages,
                             run_study)
from studies.systems import training_step


# ---------------------------------------------------------------- what is left to be run

def is_finished(experiment: Experiment, samples: int) -> bool:
    """Whether nothing of an experiment is left to be run."""
    cfg, regressions = settings_of(experiment), experiment.regressions
    return is_trained(cfg, regressions) and is_measured(cfg, regressions, samples)


# ---------------------------------------------------------------- hours

def say_hours(plan: list[Experiment], samples: int) -> None:
    """Say what is left to be run, and what it will take on this machine, from a few steps that are timed
    here."""
    hours, evaluations, costs = {"stage 1": 0.0, "training and test": 0.0, "sampling": 0.0}, 0, {}
    trained = set()                                        # stages 1
    for experiment in plan:
        cfg, is_published = settings_of(experiment), BY_NAME[experiment.method].stage_1 == "published"
        if is_published not in costs:
            costs[is_published] = _timed(cfg)
        cost, regressions, evaluation = costs[is_published]
        evaluations += evaluations_of(cfg, samples)
        hours["sampling"] += evaluations_of(cfg, samples) * evaluation / 3600
        stage_2 = cost._replace(steps={"ldm": cost.steps["ldm"]})
        beside = {name: seconds for name, seconds in regressions.items() if name in experiment.regressions}
        hours["training and test"] += stage_2.hours(cfg) + cost._replace(steps=beside).hours(cfg, False)
        if cfg.aae_from not in trained:
            trained.add(cfg.aae_from)
            updates = cfg.aae_epochs * (cfg.phantom_subjects[0] // cfg.aae_batch_size)
            hours["stage 1"] += updates * cost.steps["aae"] / 3600
    shown = ", ".join(f"{name} {value:.1f}" for name, value in hours.items())
    say("study", f"experiments left: {len(plan)}, with {evaluations:,} network evaluations of their "
                 f"samplings; about {sum(hours.values()):.1f} hours here ({shown}), from a few steps")


def _timed(cfg: Config) -> tuple[MethodCost, dict[str, float], float]:
    """The cost of a diffusion, seconds of a step of each regression, and of a network evaluation of one
    sample among as many as go through the denoiser at once. A regression on latents is a step of stage 2,
    without label also without image loss."""
    setup, cost = Setup(cfg, published=False), MethodCost.timed("il_cldm", cfg)
    without = Setup(dataclasses.replace(cfg, image_loss=0.0), published=False)
    on_images = seconds_of(training_step("image_regression", setup))
    regressions = {"latent_regression": seconds_of(stage_2_step(without)),
                   "labelled_latent_regression": cost.steps["ldm"],
                   "image_regression": on_images, "labelled_image_regression": on_images}
    full = Setup(dataclasses.replace(cfg, samples_per_scan=cfg.sampling_batch), published=False)
    return cost, regressions, seconds_of(network_evaluation(full))


# ---------------------------------------------------------------- the run

def begin_from_smaller(experiment: Experiment) -> None:
    """Let the stage 2 of an experiment go on from that of a smaller budget, as if it had trained so far
    itself: to the last bit the same, because neither validations nor the epochs to come change an update.

    Only where both differ in epochs and validations alone, so not where the moving average is scaled. The
    validations of the smaller budget are left out: it chose its best epoch among others.
    """
    cfg = settings_of(experiment)
    last = cfg.result_dir / f"{checkpoint_name('ldm')}_last.pth.tar"
    if last.is_file() or cfg.ldm_from:
        return
    for budget in sorted((budget for budget in BUDGETS if budget < experiment.budget), reverse=True):
        smaller = settings_of(Experiment(experiment.method, budget, experiment.seed))
        is_same = _without_validations(cfg) == _without_validations(smaller)
        if is_same and smaller.ldm_epochs < cfg.validation_every and load_finished(smaller):
            saved = load_checkpoint(smaller.result_dir / last.name)
            saved["settings"]["validation_every"], saved["validations"] = cfg.validation_every, []
            for losses in saved["losses"]:
                losses.pop("mse_validation", None)
            make_folder(cfg.result_dir)
            with atomic(last, tensor_bytes(saved["state"])) as partial_path:
                torch.save(saved, partial_path)
            say("study", f"goes on from {smaller.exp} after epoch {smaller.ldm_epochs}")
            return


def _without_validations(cfg: Config) -> dict:
    """The settings that the updates of stage 2 depend on."""
    return cfg.settings_of("ldm") | {"validation_every": None}


def train(experiment: Experiment) -> None:
    """Train and test an experiment, if that is not done, and score its regressions on the validation list.
    Raises Failed if a command fails."""
    cfg, title = settings_of(experiment), title_of(experiment)
    if not is_trained(cfg, experiment.regressions):
        say("study", title)
        run_stages(f"{title}, stage 1", cfg.aae_from, stage_1_words(experiment), [["check", "aae", "encode"]])
        begin_from_smaller(experiment)
        training = ["check", "ldm", *(["baselines"] if experiment.regressions else [])]
        parts = [["test"]] if cfg.ldm_from else [training, ["test"]]
        run_stages(title, cfg.exp, words_of(experiment), parts)
    sample(experiment, 0)


def sample(experiment: Experiment, samples: int) -> None:
    """Sample a trained diffusion in every way that is missing. Raises Failed if that fails."""
    work = partial(measure, settings_of(experiment), experiment.regressions, samples)
    if code := exit_code(work):
        raise Failed(code, f"{title_of(experiment)}: exit code {code} of its samplings; the same command "
                           "goes on here")


def title_of(experiment: Experiment) -> str:
    """An experiment, for a message."""
    return f"{experiment.method}, budget {experiment.budget}, seed {experiment.seed}"


def score_fresh(experiment: Experiment) -> None:
    """Score fresh phantoms by an experiment, as external ones with its own calibration, if that is not done.
    Raises Failed if a command fails."""
    name, cfg = fresh_name(experiment.seed), settings_of(experiment)
    if fresh_run(cfg):
        return
    title = f"fresh phantoms, seed {experiment.seed}"
    run_stages(title, name, fresh_words(experiment), [["check"]])
    run_or_fail(title, ["external", "--exp", cfg.exp, "--test_data", f"data/{name}", "--name", FRESH_NAME,
                        "--namesakes", "true"])


def fresh_run(cfg: Config) -> Run | None:
    """The results of an experiment on fresh phantoms, if it has some that are its own."""
    runs, _ = load_externals(cfg.result_dir, frozen_digests(cfg.result_dir))
    own = [run for run in runs if run.metadata["external"]["name"] == FRESH_NAME]
    return own[0] if own and own[0].uncertainty is not None else None


# ---------------------------------------------------------------- the tables

def finished() -> tuple[pd.DataFrame, dict[tuple[str, int, int], Run]]:
    """The scores of all subjects of the experiments that are finished, a row for each method, budget, seed,
    sampling, list and subject; and (method, budget, seed) -> results of the diffusions. Raises Failed if
    there are none."""
    subjects, runs = [], {}
    for method in BY_NAME.values():
        for budget, seeds in method.runs.items():
            for seed in () if method.name in REGRESSIONS else seeds:
                cfg = settings_of(Experiment(method.name, budget, seed))
                if run := load_finished(cfg):
                    runs[method.name, budget, seed] = run
                    subjects.append(subjects_of(cfg, run).assign(budget=budget).replace(
                        {"method": {"il_cldm": method.name}}))
    if not runs:
        raise Failed(2, "no experiment of the budgets is finished; python main.py study budget runs them")
    table = pd.concat(subjects)
    table.loc[table["method"].isin(REFERENCES), "budget"] = 0                  # the same in every experiment
    return table.drop_duplicates([*KEY, "seed", "list", "ID"]), runs


def write_tables() -> list[Experiment]:
    """Write budget.csv, budget_subjects.csv, budget.md, .png and .pdf of what is finished. Returns the
    experiments of the default at its best budget. Raises Failed if nothing is finished."""
    subjects, runs = finished()
    scores = SeedScores(subjects)
    table, budget = make_table(scores, list(BY_NAME)), best_budgets(scores.table).get("default")
    best = [Experiment(*key) for key in runs if key[:2] == ("default", budget)]
    own, fresh = {}, {}                                    # seed -> results of the default at its best budget
    for experiment in best:
        own[experiment.seed] = runs[experiment[:3]]
        if run := fresh_run(settings_of(experiment)):
            fresh[experiment.seed] = run
    at_best = scores.table[scores.table["is_setting"] & scores.table["budget"].isin([0, budget])
                           & scores.table["seed"].isin(own)]
    criteria = make_criteria(at_best, own, fresh) if own else pd.DataFrame()
    is_repair = table["method"].isin([method.name for method in REPAIRS])
    repairs = make_repairs(table[is_repair], table, {key: run.validation_list for key, run in runs.items()})
    ladder = table[~is_repair]
    write_csv(FOLDER / "budget_subjects.csv", subjects)
    write_csv(FOLDER / "budget.csv", table)
    write_text(FOLDER / "budget.md", to_markdown(make_best(scores, ladder), ladder, criteria, repairs))
    note = f"digital phantom, not patient data; test lists, {len(runs)} experiments"
    plot_budget(make_curves(ladder), table[table["method"].isin(REFERENCES)], FOLDER / "budget", note)
    say("study", f"wrote {FOLDER}/budget.md, budget.csv, budget_subjects.csv (every subject), budget.png and "
                 ".pdf")
    return best


def run_plan(plan: list[Experiment], samples: int) -> list[Experiment]:
    """Run what is not finished of a plan, and write the tables. Returns the experiments of the default at its
    best budget. Raises Failed if a command fails, or if nothing is finished."""
    left = [experiment for experiment in plan if not is_finished(experiment, samples)]
    if left:
        say_hours(left, samples)
    for experiment in left:
        train(experiment)
    best = write_tables()                                  # before the samplings, which take long
    for experiment in left:
        sample(experiment, samples)
    return write_tables() if left and samples else best


def main(argv: list[str]) -> int:
    """Run the study. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="main.py study budget", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seed 0, budgets 1 and 4")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS,
                        help="seeds to run")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), choices=BUDGETS,
                        help="budgets to run, in multiples of 960 updates of stage 2")
    parser.add_argument("--methods", nargs="+", default=[method.name for method in METHODS],
                        choices=list(BY_NAME), help="methods to run; regressions are trained beside the "
                        "default; rows of the study of repairs only where they are named")
    parser.add_argument("--samples", type=int, default=8, choices=(0, *range(2, 65)), metavar="M",
                        help="latent samples whose mean stands beside one sample; 8; 0: no further samplings")
    parser.add_argument("--repairs", action="store_true",
                        help="run nothing else: the rows of the study of repairs at the best budget of the "
                             "default, seed 0")
    parser.add_argument("--fresh", action="store_true",
                        help="run nothing else: score 200 fresh phantoms a seed by the default at its best "
                             "budget")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing, write the tables of what is finished")
    arguments = parser.parse_args(argv)
    seeds, budgets = ([0], [1, 4]) if arguments.quick else (arguments.seeds, arguments.budgets)

    def work() -> None:
        """Run what is not finished, and write the tables."""
        nothing = arguments.tables or arguments.fresh or arguments.repairs
        best = run_plan([] if nothing else planned(arguments.methods, budgets, seeds), arguments.samples)
        if (arguments.repairs or arguments.fresh) and not best:
            raise Failed(2, "the default is not finished at any budget; python main.py study budget runs it")
        if arguments.repairs:
            repairs = [method.name for method in REPAIRS]
            run_plan(planned(repairs, [best[0].budget], list(SEEDS[:1])), 0)
        if arguments.fresh:
            for experiment in best:
                score_fresh(experiment)
            write_tables()
    return run_study(work)
