"""What is lost at a site that training has not seen: leave-one-site-out on the phantom (docs/study_sites.md).

    python main.py study sites              all of it; the same command goes on after an interruption
    python main.py study sites --quick      seed 0 alone
    python main.py study sites --tables     runs nothing; the table of what is finished

A phantom of as many subjects as the benchmark's, of four sites. Each site is left out once: it is the test
list of networks that are trained and chosen on the three others. The control is trained and tested on lists
of the same numbers that are drawn over all sites. Writes result/study/sites.csv and sites.md.
"""
import argparse
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

from config import PRESETS, Config
from phantom.cohort import build_phantom
from phantom.sites import SITES, assign
from runtime.commandline import parse
from runtime.files import make_folder, write_csv, write_text
from runtime.logs import say
from studies.running import FIRST_COHORT, FOLDER, SEEDS, Failed, load_finished, run_stages, run_study
from studies.sites_table import score_run, to_markdown

PRESET = PRESETS["benchmark"]
SUBJECTS, TRAINING = sum(PRESET["phantom_subjects"]), PRESET["phantom_subjects"][0]
NUMBER_OF_SITES = 4
CONTROL = "control"
ROWS = (CONTROL, *(site.name for site in SITES[:NUMBER_OF_SITES]))          # the site that is left out
STAGES = [["check", "aae", "encode", "ldm"], ["test"]]


# ---------------------------------------------------------------- cohort and lists

def root_of(seed: int) -> Path:
    """Folder of the phantom of a seed."""
    return Path("data") / f"sites{seed}"


def build(seed: int) -> None:
    """Simulate the phantom of a seed, if it is not there. All its subjects are in its own test list, so that
    all have an oracle. Raises Failed if its folder holds something else."""
    try:
        build_phantom(root_of(seed), (0, 0, SUBJECTS), PRESET["phantom_voxel"], 0.6, FIRST_COHORT + seed,
                      sites=NUMBER_OF_SITES)
    except ValueError as error:
        raise Failed(2, str(error)) from error


def people_of(seed: int) -> pd.DataFrame:
    """ID, label and site of every subject of a seed's phantom, known without reading it."""
    members = assign({"train": 0, "validation": 0, "test": SUBJECTS}, FIRST_COHORT + seed, NUMBER_OF_SITES)
    return pd.DataFrame([{"ID": one.id, "label": one.label, "site": one.site.name} for one in members])


def draw_lists(people: pd.DataFrame, row: str, seed: int) -> dict[str, list[str]]:
    """The IDs of training, validation and test of a row.

    What is drawn is drawn within each site and label. The test list of the control is as long as a site.
    """
    def divide(some: pd.DataFrame, first: int) -> list[pd.DataFrame]:
        """So many of them at random, and the rest, both in the order of the cohort."""
        parts = train_test_split(some, train_size=first, random_state=seed, stratify=some[["site", "label"]])
        return [part.sort_index() for part in parts]

    if row == CONTROL:
        test, others = divide(people, len(people) // NUMBER_OF_SITES)
    else:
        test, others = people[people["site"] == row], people[people["site"] != row]
    training, validation = divide(others, TRAINING)
    return {"train": list(training["ID"]), "validation": list(validation["ID"]), "test": list(test["ID"])}


def info_dir(row: str, seed: int) -> Path:
    """Folder of the lists of a row."""
    return root_of(seed) / "lists" / row


def write_lists(row: str, seed: int) -> None:
    """Write the lists of a row, and the phantom's labels and covariates beside them, as a user's own cohort
    has them."""
    folder = info_dir(row, seed)
    make_folder(folder)
    write_text(folder / "data_info.csv", (root_of(seed) / "data_info" / "data_info.csv").read_text())
    for split, names in draw_lists(people_of(seed), row, seed).items():
        write_text(folder / f"{split}.txt", "".join(f"{name}\n" for name in names))


# ---------------------------------------------------------------- experiments

def experiment_name(row: str, seed: int) -> str:
    """Name of the experiment of a row and seed."""
    return f"sites{seed}_{row}"


def words(row: str, seed: int) -> list[str]:
    """The command line of an experiment, without its stages: the phantom is read as a user's own cohort."""
    truth = root_of(seed) / "truth"
    return ["--preset", "benchmark", "--exp", experiment_name(row, seed), "--seed", str(seed),
            "--data_dir", str(root_of(seed)), "--info_dir", str(info_dir(row, seed)),
            "--phantom_subjects", "0", "0", "0", "--cortex_mask", str(truth / "cortex.nii.gz"),
            "--reference_mask", str(truth / "cerebellum.nii.gz")]


def settings_of(row: str, seed: int) -> Config:
    """The settings of an experiment."""
    return parse(Config, words(row, seed), "main.py", "", PRESETS)


def run_row(row: str, seed: int) -> None:
    """Train and score an experiment that is not finished. Raises Failed if a command fails."""
    if load_finished(settings_of(row, seed)):
        return
    say("study", f"{row}{'' if row == CONTROL else ' left out'}, seed {seed}")
    build(seed)
    write_lists(row, seed)
    run_stages(f"{row}, seed {seed}", experiment_name(row, seed), words(row, seed), STAGES)


def write_table(seeds: list[int]) -> None:
    """Write sites.csv and sites.md of the experiments that are finished. Raises Failed if there are none."""
    scores = []
    for row in ROWS:
        for seed in seeds:
            run = load_finished(settings_of(row, seed))
            if run:
                sites = people_of(seed).set_index("ID")["site"]
                scores += score_run(run, row, seed, sites if row == CONTROL else None)
    if not scores:
        raise Failed(2, "no experiment of the sites is finished; python main.py study sites runs them")
    table = pd.DataFrame(scores)
    write_csv(FOLDER / "sites.csv", table)
    write_text(FOLDER / "sites.md", to_markdown(table))
    say("study", f"wrote {FOLDER}/sites.csv and sites.md")


def main(argv: list[str]) -> int:
    """Run the study of sites. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="main.py study sites", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seed 0 alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS,
                        help="seeds to run")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS),
                        help="the site that is left out, or the control")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing, write the table of what is finished")
    arguments = parser.parse_args(argv)
    seeds = [0] if arguments.quick else arguments.seeds

    def work() -> None:
        """Run what is not finished, and write the table."""
        for seed in () if arguments.tables else seeds:
            for row in arguments.rows:
                run_row(row, seed)
        write_table(seeds)
    return run_study(work)
