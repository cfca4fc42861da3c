"""Runs that are interrupted over and over, beside one that is not: `python tests/interrupt.py kills --count
100`.

kills: a run of the tiny cohort is killed, or asked to stop, at random moments and given again until it
finishes, over and over; then all its final outputs must equal those of an uncut run. cycles: one process
trains, is asked to stop, and continues; its memory, open files, threads and child processes must not grow.
Each prints its counts and ends with code 1 if something was not as it must be.
"""
import argparse
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from runtime import environment  # noqa: E402, F401, I001
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch.utils._pytree import tree_flatten_with_path  # noqa: E402

from runtime import files  # noqa: E402
import main  # noqa: E402
from runtime.checkpoints import load_checkpoint  # noqa: E402
from conftest import TINY, arguments, import_beforehand, sketch, write_cohort  # noqa: E402
from runtime.signals import AGAIN, CTRL_C, exit_on_signal  # noqa: E402

STAGES = ["--stages", "check", "aae", "encode", "ldm", "test"]
ENDS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: AGAIN, signal.SIGUSR1: AGAIN, signal.SIGINT: CTRL_C}
SECONDS = 60  # within which a run that is asked to stop must have ended
WRITING = 0.02  # seconds that each file takes longer to write, as on a slow disk


def start(project: Path, **settings) -> int:
    """A run of the tiny cohort in the folder, in a process of its own; returns its number."""
    if child := os.fork():
        return child
    os.chdir(project)
    exit_on_signal()                                      # as the program does before it listens
    with open("screen.txt", "a") as screen:
        os.dup2(screen.fileno(), 1)
        os.dup2(screen.fileno(), 2)
    sync = files.sync

    def slow_sync(path: Path) -> None:
        time.sleep(WRITING)
        sync(path)
    files.sync = slow_sync                                 # so that many kills meet a half-written file
    Figure.savefig = sketch
    os._exit(main.main(arguments(TINY | settings) + STAGES))


def wait(child: int, seconds: float) -> int | None:
    """The exit code of a process, negative for the signal that killed it, or None if it still runs after so
    many seconds."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def stage_of(project: Path) -> str:
    """What a run that was just killed was at: its stage, and whether a file was half written."""
    log = project / "result" / "a" / "run.log"
    words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    stages = [line[2] for line in words if len(line) > 2 and line[0].startswith("20")]  # behind date and time
    writing = ", writing" if any(project.rglob(f"{files.PARTIAL}*")) else ""
    return next((stage for stage in reversed(stages) if stage in STAGES), "check") + writing


def outputs(project: Path) -> dict[str, object]:
    """Every final output of a run, to be compared bit for bit."""
    found, paths = {}, []
    for folder in ("result", "data/latent_Abeta"):
        paths += [path for path in (project / folder).rglob("*") if path.is_file()]
    for path in sorted(paths):
        name = str(path.relative_to(project))
        if path.suffix == ".tar":
            saved = load_checkpoint(path)
            saved.pop("free_settings")                     # how many processes read, which varies here
            saved.pop("seconds")                           # that the training took
            for keys, leaf in tree_flatten_with_path(saved)[0]:
                found[f"{name} {keys}"] = leaf.numpy().tobytes() if torch.is_tensor(leaf) else leaf
        # the last two name the processes that read, cost.csv has seconds
        elif path.name not in (".lock", "run.log", "cost.csv", "config.json", "scores.json"):
            found[name] = path.read_bytes()
    return found


class Faults:
    """Counts of the interruptions, and what was not as it must be."""

    def __init__(self):
        self.signals, self.stages, self.slowest, self.finished, self.found = Counter(), Counter(), 0.0, 0, []

    def note_end(self, code: int, where: str, project: Path) -> None:
        """Note a wrong exit code with the end of the screen."""
        screen = (project / "screen.txt").read_text()[-500:]
        self.found.append(f"{where} ended with {code}: {screen}")


def interrupt(child: int, draw: random.Random, project: Path, faults: Faults) -> int:
    """Kill a run, or ask it to stop, and wait for its end. Returns its exit code."""
    number = draw.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    os.kill(child, number)
    asked = time.monotonic()
    code = wait(child, SECONDS)
    faults.slowest = max(faults.slowest, time.monotonic() - asked)
    if code is None:
        os.kill(child, signal.SIGKILL)
        faults.found.append(f"still ran {SECONDS} s after {number.name}")
        return wait(child, SECONDS)
    if code != 0:                                          # it may have come to its end in that moment
        faults.signals[number] += 1
        faults.stages[stage_of(project)] += number == signal.SIGKILL
        if code != ENDS[number]:
            faults.note_end(code, f"a run that got {number.name}", project)
    return code


def run_with_interruptions(project: Path, longest: float, draw: random.Random, faults: Faults) -> None:
    """Interrupt a run at random moments of its first `longest` seconds, and give it again, until it
    finishes."""
    shutil.rmtree(project, ignore_errors=True)
    write_cohort(project)
    while True:
        child = start(project, exp="a", num_workers=draw.choice([0] * 9 + [1]))
        code = wait(child, draw.uniform(0, longest))
        longest *= 1.02                             # so that a run finishes even if the machine became slower
        if code is None:
            if interrupt(child, draw, project, faults) == 0:
                break
        elif code == 0:
            break
        else:
            faults.note_end(code, "a run that was not interrupted", project)
            break
    faults.finished += 1


def kills(count: int, seed: int, root: Path) -> bool:
    """Whether `count` kills, and half as many polite signals, left no trace in the final outputs."""
    import_beforehand()
    draw, faults = random.Random(seed), Faults()
    uncut, cut = root / "uncut", root / "cut"
    write_cohort(uncut)
    began = time.monotonic()
    if (code := wait(start(uncut, exp="a"), 600)) != 0:
        print((uncut / "screen.txt").read_text(), f"the uncut run ended with {code}")
        return False
    duration, expected = time.monotonic() - began, outputs(uncut)
    while faults.signals[signal.SIGKILL] < count or faults.finished == 0:
        run_with_interruptions(cut, 0.6 * duration, draw, faults)
        found = outputs(cut)
        for name in expected.keys() | found.keys():
            if expected.get(name) != found.get(name):
                faults.found.append(f"{name} differs")
        faults.found += [f"{path} was left behind" for path in cut.rglob(f"{files.PARTIAL}*")]
    killed = faults.signals[signal.SIGKILL]
    print(f"{killed} kills, {faults.signals.total() - killed} polite signals, {faults.finished} runs "
          f"finished; {len(expected)} final outputs compared each; killed in "
          f"{dict(faults.stages.most_common())}; slowest end {faults.slowest:.1f} s; {len(faults.found)} "
          "faults")
    print("\n".join(faults.found[:20]))
    return not faults.found


def state() -> dict[str, int]:
    """What a process must not pile up."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"MiB": resident // 2**20, "open files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "processes": len(list(Path("/proc/self/task").glob("*/children"))[0].read_text().split())}


def cycles(count: int, steps: int, seed: int, root: Path) -> bool:
    """Whether training so many steps, stopped and continued so many times, leaves the process as small as it
    was."""
    draw = random.Random(seed)
    write_cohort(root,
                 {"train": [f"t{i:03}" for i in range(40)], "validation": ["v1", "v2"], "test": ["x1", "x2"]})
    os.chdir(root)
    epochs = max(1, steps // 2 // 20)                      # 20 steps an epoch, two stages
    stages = ["--stages", "aae", "encode", "ldm"]
    argv = arguments(TINY | {"exp": "a", "aae_epochs": epochs, "ldm_epochs": epochs}) + stages
    signal.signal(signal.SIGTERM, signal.SIG_IGN)          # one that comes behind the end of a run
    states, stops, trained, code, began = [], 0, 0, AGAIN, time.monotonic()
    with open("screen.txt", "w") as screen:
        sys.stdout = sys.stderr = screen
        # what is made once, such as fonts
        main.main(arguments(TINY | {"exp": "first", "aae_epochs": 1, "ldm_epochs": 1}) + stages)
        while code == AGAIN or (code == 0 and stops < count):
            if code == 0:
                shutil.rmtree("result/a")
            stopper = threading.Timer(draw.uniform(0.5, 2) if stops < count else 3600, os.kill,
                                      (os.getpid(), signal.SIGTERM))
            stopper.start()
            code = main.main(argv)
            stopper.cancel()
            stopper.join()
            stops += code == AGAIN
            trained += code == 0
            states.append(state())
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    early, late = (
        {name: int(np.median([s[name] for s in part])) for name in states[0]}
        for part in (states[:6], states[-6:])
    )
    print(f"{trained * 2 * epochs * 20} training steps, {stops} stops, exit code {code}, "
          f"{time.monotonic() - began:.0f} s; early {early}, late {late} (medians of 6 cycles)")
    return (
        code == 0
        and stops >= count
        and late["MiB"] <= 1.05 * early["MiB"]
        and all(late[n] <= early[n] for n in early if n != "MiB")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kills", "cycles"))
    parser.add_argument("--count", type=int, default=100, help="kills, or stops")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of the cycles")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "kills":
            good = kills(args.count, args.seed, Path(folder))
        else:
            good = cycles(args.count, args.steps, args.seed, Path(folder))
        os.chdir("/")
    sys.exit(not good)
