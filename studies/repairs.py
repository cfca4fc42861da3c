"""The study: each choice of the default taken back in a row of its own, beside null controls (docs/study.md).

    python main.py study                all of it; the same command goes on after an interruption
    python main.py study --quick        seed 0 alone
    python main.py study budget         another study: every method trained longer (studies/budget.py)
    python main.py study comparison     another one: the compared systems (studies/comparison.py)
    python main.py study disagree       another one: what an MRI cannot know (studies/disagree.py)
    python main.py study sites          another one: a site that training has not seen (studies/sites.py)
    python main.py study phantoms       another one: other truths of the phantom (studies/phantoms.py)
    python main.py study robustness     another one: disturbed MRIs (studies/robustness.py)
    python main.py study samples        another one: what latent samples are worth (studies/samples.py)
    python main.py study regions        another one: automatic regions of the SUVR (studies/regions.py)

On the benchmark phantom. The default and its null controls are run with three seeds, each with a cohort of
its own; all other rows with the first seed. Writes result/study/.
"""
import argparse

import pandas as pd

from config import PRESETS, REGRESSIONS, Config
from evaluation.results import Run
from runtime.commandline import parse
from runtime.files import write_csv, write_text
from runtime.logs import say
from studies import budget, comparison, disagree, phantoms, regions, robustness, samples, sites
from studies.repairs_rows import BY_NAME, ROWS, Row, change_of
from studies.repairs_table import gains_of, make_criteria, make_table, score_run, to_markdown
from studies.running import (FOLDER, SEEDS, Failed, benchmark_cohort, cohort_words, load_finished,
                             read_seconds, run_stages, run_study)

TRAINING_STAGES = {"aae": ["check", "aae", "encode", "ldm"], "ldm": ["check", "ldm"], "nothing": []}


# ---------------------------------------------------------------- the settings of a row

def experiment_name(seed: int, row: str) -> str:
    """Name of the experiment of a row and seed."""
    return f"study{seed}_{row}"


def words(row: Row, seed: int) -> list[str]:
    """The command line of a row's experiment, without its stages."""
    change = change_of(row)
    preset = [] if "--preset" in change else ["--preset", "benchmark"]
    own = cohort_words(experiment_name(seed, row.name), seed,
                       benchmark_cohort(seed, "--phantom_link" in change))
    return [*preset, *own, *pretrained(row, seed), *change]


def pretrained(row: Row, seed: int) -> list[str]:
    """The settings that say whose trained stages a row uses, as words of a command line."""
    if row.trains == "aae":
        return []
    if row.trains == "ldm":
        return ["--aae_from", experiment_name(seed, with_stage_1(BY_NAME[row.of]).name)]
    return ["--ldm_from", experiment_name(seed, row.of), *pretrained(BY_NAME[row.of], seed)]


def with_stage_1(row: Row) -> Row:
    """The row that trained the stage 1 of this one."""
    return row if row.trains == "aae" else with_stage_1(BY_NAME[row.of])


def settings_of(row: Row, seed: int) -> Config:
    """The settings of a row's experiment."""
    return parse(Config, words(row, seed), "main.py", "", PRESETS)


# ---------------------------------------------------------------- the run

def planned(seeds: list[int], names: list[str] | None) -> list[tuple[Row, int]]:
    """Rows and seeds in the order in which they are run: the rows of these names with every seed, or all that
    belong to the study."""
    plan = []
    for seed in seeds:
        for row in ROWS:
            is_wanted = row.name in names if names else row.always or seed == SEEDS[0]
            if is_wanted:
                plan.append((row, seed))
    return plan


def stages(row: Row) -> list[list[str]]:
    """The stages of a row: those that train, if any, then those that score. The baselines are trained beside
    the default."""
    training = TRAINING_STAGES[row.trains] + (["baselines"] if row.name == "default" else [])
    return [training, ["test"]] if training else [["test"]]


def run_row(row: Row, seed: int) -> None:
    """Train and score a row, and note its seconds. Raises Failed if a command fails."""
    run_stages(f"row {row.name}, seed {seed}", experiment_name(seed, row.name), words(row, seed), stages(row))


# ---------------------------------------------------------------- the tables

def finished_runs(seeds: list[int]) -> dict[tuple[str, int], Run]:
    """(row, seed) -> results of every experiment that is finished. Raises Failed if there is none."""
    runs = {}
    for row in ROWS:
        for seed in seeds:
            run = load_finished(settings_of(row, seed), *REGRESSIONS)
            if run:
                runs[row.name, seed] = run
    if not runs:
        numbers = ", ".join(map(str, seeds))
        raise Failed(2, f"no row of seeds {numbers} is finished; python main.py study runs them")
    return runs


def write_study(seeds: list[int]) -> None:
    """Write study.csv, criteria.csv, study.md and scores.csv of the rows that are finished.

    Raises Failed if there are none.
    """
    runs, seconds = finished_runs(seeds), read_seconds()
    scores = pd.concat([score_run(run, row, seed, seconds) for (row, seed), run in runs.items()])
    lists = {key: run.validation_list for key, run in runs.items()}
    gains = gains_of(lists, {row.name: row.of or "default" for row in ROWS})
    about = {row.name: (f"{row.of} {row.change}".strip(), row.source) for row in ROWS}
    table, criteria = make_table(scores, gains, about), make_criteria(scores)
    write_csv(FOLDER / "scores.csv", scores)
    write_csv(FOLDER / "study.csv", table)
    write_csv(FOLDER / "criteria.csv", criteria)
    write_text(FOLDER / "study.md", to_markdown(table, criteria))
    say("study", f"wrote {FOLDER}/study.md, study.csv, criteria.csv and scores.csv (every seed)")


def main(argv: list[str]) -> int:
    """Run the study, or the one that the first word names. Returns the exit code."""
    others = {"budget": budget.main, "comparison": comparison.main, "disagree": disagree.main,
              "phantoms": phantoms.main, "regions": regions.main, "robustness": robustness.main,
              "samples": samples.main, "sites": sites.main}
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(prog="main.py study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seed 0 alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS,
                        help="seeds to run")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS],
                        help="rows to run; those that others build on first")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing, write the tables of what is finished")
    arguments = parser.parse_args(argv)
    seeds = [0] if arguments.quick else arguments.seeds
    plan = [] if arguments.tables else planned(seeds, arguments.rows)

    def work() -> None:
        """Run what is not finished, and write the tables."""
        for number, (row, seed) in enumerate(plan, start=1):
            if not load_finished(settings_of(row, seed), *REGRESSIONS):
                say("study", f"{number} of {len(plan)}: {row.name}, seed {seed}   {row.change}")
                run_row(row, seed)
        write_study(seeds)
    return run_study(work)
