"""Experiments of a study, run one after another as commands of their own, and the seconds that they took."""
import dataclasses
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from config import Config
from evaluation.results import Run, load_run
from runtime.files import make_folder, write_csv
from runtime.logs import LOG, logging_run
from runtime.settings import is_group, plain
from utils import InputError

MAIN = Path(__file__).parents[1] / "main.py"
FOLDER = Path("result") / "study"
SEEDS = (0, 1, 2)
FIRST_COHORT = 1000                                        # phantom_seed of seed 0; the demo's is 0


class Failed(Exception):
    """A study cannot go on: (exit code, message)."""


def run_study(work: Callable[[], None]) -> int:
    """Do the work of a study in its folder, with its log. Returns the exit code; says why it cannot go on."""
    make_folder(FOLDER)
    with logging_run():
        try:
            work()
        except Failed as failure:
            code, message = failure.args
            LOG.error("%s", message)
            return code
        except InputError as error:                        # such as a damaged table of an earlier run
            LOG.error("%s", error)
            return 2
    return 0


def benchmark_cohort(seed: int, link_0: bool) -> str:
    """Folder of the benchmark phantom of a seed; link_0: of the one whose MRIs know nothing of amyloid."""
    return f"data/benchmark{seed}{'_link0' if link_0 else ''}"


def cohort_words(name: str, seed: int, data_dir: str) -> list[str]:
    """Name, seed and cohort of an experiment, as words of a command line: each seed has its own cohort."""
    return ["--exp", name, "--seed", str(seed), "--phantom_seed", str(FIRST_COHORT + seed),
            "--data_dir", data_dir]


def load_finished(cfg: Config, *results: str) -> Run | None:
    """The results of the experiment, or None if it has none, or has some of other settings: those of both
    stages, sampling and scores, and of the baselines among `results`."""
    try:
        run = load_run(cfg.result_dir)
    except InputError:
        return None
    bound = cfg.settings_of("aae", "ldm", *results, "synthesis", "scores")
    wanted = {name: value for name, value in bound.items() if "." not in name}
    for field in filter(is_group, dataclasses.fields(cfg)):
        if set(field.metadata["affects"]) & set(results):
            wanted[field.name] = plain(getattr(cfg, field.name))
    wanted |= {"aae_epochs": cfg.aae_epochs, "ldm_epochs": cfg.ldm_epochs}
    found = run.metadata["settings"]
    return run if all(found[name] == value for name, value in wanted.items()) else None


def is_trained(cfg: Config, regressions: tuple[str, ...]) -> bool:
    """Whether an experiment is trained and tested, with these regressions beside it."""
    run = load_finished(cfg, *regressions)
    return run is not None and set(regressions) <= set(run.test["method"])


def run_stages(title: str, name: str, words: list[str], parts: list[list[str]]) -> None:
    """Run the stages of an experiment, part by part, and note their seconds: the last part under "test", all
    others under "train". Raises Failed if a command fails.

    title: of the experiment, for a message. words: its command line without stages.
    """
    for part in parts:
        started = time.perf_counter()
        try:
            run_or_fail(title, [*words, "--stages", *part])
        finally:
            note_seconds(name, "test" if part == ["test"] else "train", time.perf_counter() - started)


def run_or_fail(title: str, words: list[str]) -> None:
    """Run main.py with these words. Raises Failed if it fails. title: for a message."""
    command = [sys.executable, str(MAIN), *words]
    if code := run_command(command):
        raise Failed(code, f"{title}: exit code {code} of\n  {shlex.join(command)}\n"
                           "The same command goes on here")


def run_command(command: list[str]) -> int:
    """Run a command, and return its exit code.

    It handles signals itself, and saves what it has: Ctrl-C reaches it from the terminal, SIGTERM from here.
    """
    child = subprocess.Popen(command)

    def pass_on(number: int, _frame) -> None:
        """Send SIGTERM on; the terminal has sent SIGINT to both."""
        if number == signal.SIGTERM:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note_seconds(name: str, part: str, seconds: float) -> None:
    """Add the seconds of a part of an experiment to seconds.csv; a training in pieces has several rows."""
    path = FOLDER / "seconds.csv"
    table = pd.DataFrame([{"experiment": name, "part": part, "seconds": round(seconds, 1)}])
    if path.is_file():
        table = pd.concat([pd.read_csv(path), table])
    write_csv(path, table)


def read_seconds() -> pd.Series:
    """Seconds of every part of every experiment, indexed by (experiment, part)."""
    path = FOLDER / "seconds.csv"
    if not path.is_file():
        return pd.Series(dtype=float)
    return pd.read_csv(path).groupby(["experiment", "part"])["seconds"].sum()
