"""What brings the diagnosis back: every repair of the method in its own row, beside its controls, on the benchmark phantom.

The default, its controls and what one seed did not decide are run with three seeds, each with a cohort of its own; the published
settings, and every other repair in turn, added or taken away, with the first. python study.py runs and scores all of it and writes
result/study/; --quick takes the first seed alone. What is finished stays, so the same command goes on where it was interrupted.
"""
from runtime import environment  # noqa: F401, I001  first: it says what is missing before the imports below fail
import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from runtime.commandline import parse_args
from config import Config
from runtime.files import make_folder, write_csv, write_text
from runtime.logs import LOG, logging_run, say
from evaluation.results import load_run
from runtime.settings import plain
from studies.repairs_table import make_bars, make_table, read_gains, read_scores, to_markdown
from utils import InputError

SEEDS = (0, 1, 2)
FOLDER = Path("result") / "study"
FIRST_COHORT = 1000                                        # phantom_seed of seed 0; the demo's is 0


class Row(NamedTuple):
    """A row of the study. change: the settings that differ from those of the row `of`; source: whose idea it is.

    trains: what it trains anew, 'aae' both stages, 'ldm' the second, 'nothing' where it only samples that row's networks otherwise.
    """
    name: str
    change: str
    source: str = ""
    trains: str = "ldm"
    of: str = "default"
    always: bool = False                                   # with every seed; the others with the first, unless asked for by name


EARLIER = "earlier"                                        # the default before its last three choices, beside which the rest was tried
ROWS = (
    Row("default", "", trains="aae", of="", always=True),
    Row("published", "--preset benchmark published --sampler ddim --sampling_steps 50", "Ou et al. 2025", "aae", ""),
    Row("earlier", "--image_loss 0 --mri_deviations true --label_dropout 0.1", "before the last choices", always=True),
    Row("image_loss", "--image_loss 1", "CoCoLIT 2025", of=EARLIER, always=True),
    Row("intensities", "--mri_deviations false", "Ou et al. 2025", of=EARLIER, always=True),
    Row("no_dropout", "--label_dropout 0", "Ou et al. 2025", of=EARLIER, always=True),
    Row("shuffled", "--shuffle_labels", "control", always=True),
    # nothing to be known
    Row("link_0", "--phantom_link 0", "control", "aae", "", always=True),
    Row("link_0_shuffled", "--shuffle_labels", "control", of="link_0", always=True),
    # the loss
    Row("eps", "--prediction eps --validation_steps 20 --sampling_steps 20", "Ho et al. 2020", of=EARLIER),
    Row("x0", "--prediction x0", "Salimans and Ho 2022", of=EARLIER),
    Row("even_times", "--time_shift 1", "Ou et al. 2025", of=EARLIER),
    Row("min_snr", "--min_snr 5", "Hang et al. 2023", of=EARLIER),
    Row("zero_snr", "--zero_terminal_snr", "Lin et al. 2024", of=EARLIER),
    Row("image_signal", "--image_loss_over_time signal", "CoCoLIT 2025"),
    Row("cortex_loss", "--cortex_loss 1", "CoCoLIT 2025, inside the cortex", of=EARLIER),
    Row("falling_rate", "--ldm_lr_decay", of=EARLIER),
    # the MRI
    Row("one_channel", "--conditioning input", "Ou et al. 2025", of=EARLIER),
    Row("no_mri", "--image_conditioning false", "ablation", of=EARLIER),
    # the label
    Row("no_label", "--label_conditioning false --label_in_training true --label_at_sampling none", "ablation", of=EARLIER),
    Row("cross_fitted", "--label_in_training predicted --label_at_sampling mixed", "as uncertain as in sampling", of=EARLIER),
    Row("linear", "--label_in_training predicted --label_predictor linear --label_at_sampling mixed", "PCA, logistic", of=EARLIER),
    Row("network", "--label_in_training predicted --label_predictor network --label_at_sampling mixed", "small 3D networks", of=EARLIER),
    Row("mixed", "--label_at_sampling mixed", "", "nothing"),
    Row("true_label", "--label_in_training true --label_at_sampling mixed", "Ou et al. 2025", of=EARLIER),
    Row("true_none", "--label_at_sampling none", "Ou et al. 2025", "nothing", "true_label"),
    Row("true_class", "--label_at_sampling class", "", "nothing", "true_label"),
    Row("true_split", "--label_at_sampling split", "", "nothing", "true_label"),
    Row("true_weighted", "--label_at_sampling weighted", "", "nothing", "true_label"),
    Row("dropout_half", "--label_dropout 0.5", "Ho and Salimans 2022", of=EARLIER),
    Row("guided", "--guidance 2", "Ho and Salimans 2022", "nothing", EARLIER),
    # the latents
    Row("voxel_mean", "--latent_mean voxel --zero_terminal_snr", "Lin et al. 2024, on what differs from the mean", of=EARLIER, always=True),
    Row("latents_1", "--latent_channels 1", "Ou et al. 2025", "aae", EARLIER),
    Row("block_norm", "--aae_block_norm true", "Ou et al. 2025", "aae", EARLIER, always=True),
    Row("aae_constant_rate", "--aae_lr_decay false", "Ou et al. 2025", "aae", EARLIER),
    # sampling
    Row("shared_noise", "--shared_noise", "common random numbers", "nothing"),
    Row("draws_1", "--samples_per_scan 1", "", "nothing"),
    Row("draws_16", "--samples_per_scan 16", "", "nothing"),
    Row("calls_1", "--sampling_steps 1", "", "nothing"),
    Row("calls_5", "--sampling_steps 5", "", "nothing"),
    Row("calls_20", "--sampling_steps 20", "", "nothing"),
)
BY_NAME = {row.name: row for row in ROWS}


def experiment(seed: int, row: str) -> str:
    """Name of the experiment of a row and seed."""
    return f"study{seed}_{row}"


def change_of(row: Row) -> list[str]:
    """The settings that differ from those of the preset, as words of a command line."""
    return [*(change_of(BY_NAME[row.of]) if row.of else []), *row.change.split()]


def words(row: Row, seed: int) -> list[str]:
    """The command line of a row's experiment, without its stages."""
    change = change_of(row)
    preset = [] if "--preset" in change else ["--preset", "benchmark"]
    cohort = f"data/benchmark{seed}{'_link0' if '--phantom_link' in change else ''}"
    own = ["--exp", experiment(seed, row.name), "--seed", str(seed), "--phantom_seed", str(FIRST_COHORT + seed), "--data_dir", cohort]
    return [*preset, *own, *lent_to(row, seed), *change]


def lent_to(row: Row, seed: int) -> list[str]:
    """The settings that say whose trained stages a row uses, as words of a command line."""
    if row.trains == "aae":
        return []
    if row.trains == "ldm":
        return ["--aae_from", experiment(seed, with_stage_1(BY_NAME[row.of]).name)]
    return ["--ldm_from", experiment(seed, row.of), *lent_to(BY_NAME[row.of], seed)]


def with_stage_1(row: Row) -> Row:
    """The row that trained the stage 1 of this one."""
    return row if row.trains == "aae" else with_stage_1(BY_NAME[row.of])


def stages(row: Row) -> list[list[str]]:
    """The stages of a row: those that train, then those that score. The regressions are trained beside the default."""
    train = {"aae": ["check", "aae", "encode", "ldm"], "ldm": ["check", "ldm"], "nothing": []}[row.trains]
    return [part for part in (train + (["controls"] if row.name == "default" else []), ["test"]) if part]


def planned(seeds: list[int], names: list[str] | None) -> list[tuple[Row, int]]:
    """What is to be run, in order: the rows of these names with every seed, or all that belong to the study."""
    return [(row, seed) for seed in seeds for row in ROWS if (row.name in names if names else row.always or seed == SEEDS[0])]


def is_done(cfg: Config) -> bool:
    """Whether the experiment has scores of these very settings."""
    try:
        there = load_run(cfg.result_dir).metadata["settings"]
    except InputError:
        return False
    return all(there[name] == plain(getattr(cfg, name)) for name in there if name not in ("stages", "precision", "device"))


def run_row(row: Row, seed: int) -> None:
    """Train and score a row, and note its seconds. Raises Failed if a command fails."""
    for part in stages(row):
        command = [sys.executable, "main.py", *words(row, seed), "--stages", *part]
        started = time.perf_counter()
        code = call(command)
        note_seconds(experiment(seed, row.name), "test" if part == ["test"] else "train", time.perf_counter() - started)
        if code:
            raise Failed(code, f"row {row.name}, seed {seed}: exit code {code} of\n  {shlex.join(command)}\nThe same command goes on here")


class Failed(Exception):
    """A row whose command gave an exit code other than 0: (code, message)."""


def call(command: list[str]) -> int:
    """The exit code of a command. It answers signals itself, and saves what it has: Ctrl-C reaches it from the terminal, SIGTERM from
    here."""
    child = subprocess.Popen(command)
    before = {number: signal.signal(number, answer) for number, answer in (
        (signal.SIGINT, lambda *_: None), (signal.SIGTERM, lambda number, _: child.send_signal(number)))}
    try:
        return child.wait()
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


def note_seconds(name: str, part: str, seconds: float) -> None:
    """Add to seconds.csv what a part of an experiment took; a training in several pieces has several rows."""
    path = FOLDER / "seconds.csv"
    old = pd.read_csv(path) if path.is_file() else None
    new = pd.DataFrame([{"experiment": name, "part": part, "seconds": round(seconds, 1)}])
    write_csv(path, new if old is None else pd.concat([old, new]))


def write_study(seeds: list[int]) -> None:
    """study.csv, bars.csv and study.md of the rows that are finished."""
    seconds = pd.read_csv(FOLDER / "seconds.csv").groupby(["experiment", "part"])["seconds"].sum() if (FOLDER / "seconds.csv").is_file() \
        else pd.Series(dtype=float)
    runs = {(row.name, seed): parse_args(words(row, seed)) for row in ROWS for seed in seeds}
    folders = {run: cfg.result_dir for run, cfg in runs.items() if is_done(cfg)}
    if not folders:
        raise Failed(2, f"no row of seeds {', '.join(map(str, seeds))} is finished; python study.py runs them")
    scores = pd.concat([read_scores(folder, row, seed, seconds) for (row, seed), folder in folders.items()])
    about = {row.name: (f"{row.of} {row.change}".strip(), row.source) for row in ROWS}
    table, bars = make_table(scores, read_gains(folders, {row.name: row.of or "default" for row in ROWS}), about), make_bars(scores)
    write_csv(FOLDER / "scores.csv", scores)
    write_csv(FOLDER / "study.csv", table)
    write_csv(FOLDER / "bars.csv", bars)
    write_text(FOLDER / "study.md", to_markdown(table, bars))
    say("study", f"wrote {FOLDER}/study.md, study.csv, bars.csv and scores.csv (every seed)")


def main(argv: list[str] | None = None) -> int:
    """Run the study. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seed 0 alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS, help="seeds to run")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="rows to run; those that others build on first")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables of what is finished")
    arguments = parser.parse_args(argv)
    seeds = [0] if arguments.quick else arguments.seeds
    make_folder(FOLDER)
    plan = [] if arguments.tables else planned(seeds, arguments.rows)
    with logging_run():
        try:
            for number, (row, seed) in enumerate(plan, start=1):
                if not is_done(parse_args(words(row, seed))):
                    say("study", f"{number} of {len(plan)}: {row.name}, seed {seed}   {row.change}")
                    run_row(row, seed)
            write_study(seeds)
        except Failed as failure:
            code, message = failure.args
            LOG.error("%s", message)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
