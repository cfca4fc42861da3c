"""Seconds and peak memory of every part of the method, as published and with the settings.

    python main.py benchmark [--quick] [--preset demo] [--field value]
    python main.py benchmark --systems [--quick] [--preset demo]    the systems of the paper's comparison
    python main.py benchmark --device cuda --minutes 5    what a GPU does (studies/gpu.py)

Every part is measured twice, each time in a process of its own. As published means: float32 without TF32, the
default memory layout, plain optimizers, one scan and one latent sample at a time, the Extractor in every
network evaluation, T - 1 evaluations a scan, and files that are decoded at every reading. The other column
has the settings. Without --preset at paper size and at the demo's. Writes result/benchmark/.

Of the systems (all, or those that --baselines names) a training step and one scan are measured with the
settings alone, each in a process of its own too.
"""
import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from config import PRESETS, Config
from experiment.networks import build_diffusion
from runtime.commandline import parse
from runtime.failures import is_out_of_memory
from runtime.files import make_folder, write_csv
from runtime.program import exit_code
from runtime.signals import abandoned_on_error, serve_parent
from studies import gpu, systems
from studies.parts import PARTS, SCAN, SUBJECTS, Setup, run_hours
from utils import pick_device, pick_precision, size_text

REPEATS = 5                                                # repetitions after the warm-up
ENOUGH_SECONDS, ENOUGH_SECONDS_QUICK = 20.0, 1.0           # of a part in all, after which it is not repeated


# ---------------------------------------------------------------- measurement

def measure(part: str, cfg: Config, published: bool, quick: bool) -> tuple[float, float]:
    """Median seconds of a unit of work of a part, of the method or of a system, after a warm-up, and the peak
    memory in GiB: of the GPU if there is one, else of this process.

    A first repetition that takes longer than enough is not repeated.
    """
    setup = Setup(cfg, published)
    action, units = (PARTS | systems.PARTS)[part](setup)
    on_gpu = setup.device.type == "cuda"
    enough = ENOUGH_SECONDS_QUICK if quick else ENOUGH_SECONDS
    seconds: list[float] = []
    if on_gpu:
        torch.cuda.synchronize()                           # so that all is there before the clock starts
    while sum(seconds) <= enough and len(seconds) <= REPEATS:
        start = time.perf_counter()
        action()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory_of_this_process()
    return statistics.median(seconds[1:] or seconds) / units, memory / 2 ** 30


def _peak_memory_of_this_process() -> int:
    """Bytes. Linux says it in /proc; what getrusage has, in KiB, starts at the peak of the parent process."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_apart(part: str, cfg: Config, published: bool, quick: bool) -> tuple[float, float]:
    """measure in a process of its own, so that its memory is its own; NaN if memory does not suffice."""
    context = multiprocessing.get_context("spawn")
    with abandoned_on_error(ProcessPoolExecutor(1, context, initializer=serve_parent)) as pool:
        try:
            return pool.submit(measure, part, cfg, published, quick).result()
        except Exception as error:
            if not (is_out_of_memory(error) or isinstance(error, BrokenProcessPool)):        # or killed
                raise
            print(f"  {part}: not measured, probably for want of memory ({type(error).__name__})")
            return float("nan"), float("nan")


def measure_all(size: str, cfg: Config, quick: bool) -> pd.DataFrame:
    """A row a part: seconds and memory as published and with the settings, and the ratio of the seconds.

    A scan as published is extrapolated from its network evaluations, because it takes 87 minutes and more on
    a CPU; one with the settings is a pass that was measured, times the passes.
    """
    rows: dict[str, dict] = {}
    for part in PARTS:
        seconds, gib = measure_apart(part, cfg, False, quick)
        if part == SCAN:
            seconds *= passes(cfg)
            published_s = (published_nfe(cfg) * rows["network evaluation"]["published_s"]
                           + rows["decode"]["published_s"])
            published_gib = rows["network evaluation"]["published_GiB"]
        else:
            published_s, published_gib = measure_apart(part, cfg, True, quick)
        rows[part] = {"size": size, "part": part, "published_s": published_s, "seconds": seconds,
                      "ratio": published_s / seconds, "published_GiB": published_gib, "GiB": gib}
        remark = "   (as published: extrapolated)" if part == SCAN else ""
        print(f"  {part:24}{published_s:12.4f} s{seconds:12.4f} s{published_s / seconds:9.1f} x"
              f"{published_gib:9.2f}{gib:9.2f} GiB{remark}", flush=True)
    return pd.DataFrame(rows.values())


def measure_system(name: str, part: str, cfg: Config, quick: bool) -> dict:
    """The row of a part of a system: what is known of it, seconds and memory.

    The seconds are those measured, times the network evaluations that a shortened scan left out.
    """
    row = {"system": name, "part": part} | systems.metadata_of(name, part, cfg)
    seconds, gib = measure_apart(systems.part_name(name, part), cfg, False, quick)
    return row | {"measured_seconds": seconds, "seconds": seconds * row["multiplied_by"], "GiB": gib}


# ---------------------------------------------------------------- network evaluations, and the cost of a run

def passes(cfg: Config) -> int:
    """How often the latent samples of a scan are drawn: twice where their SUVR is matched."""
    return 2 if cfg.matches_suvr else 1


def sample_nfe(cfg: Config, sampler: str, steps: int) -> int:
    """Network evaluations (NFE) of one latent sample."""
    return build_diffusion(cfg, torch.device("cpu")).evaluations(sampler, steps)


def scan_nfe(cfg: Config) -> int:
    """Network evaluations (NFE) of a scan with the settings: of all its latent samples, in all passes."""
    return cfg.samples_per_scan * sample_nfe(cfg, cfg.sampler, cfg.sampling_steps) * passes(cfg)


def published_nfe(cfg: Config) -> int:
    """Network evaluations (NFE) of a scan as published: one latent sample by DDPM."""
    return cfg.timesteps - 1


def run_cost(cfg: Config, table: pd.DataFrame) -> pd.DataFrame:
    """Hours of a run of 408 + 51 + 51 subjects, computed from the measured parts: columns published_h, hours,
    ratio.

    Left out: reading, which goes on beside the training, files that are written, the validation loss, and in
    the test the baselines and the uptake of single latent samples.
    """
    by_part = table.set_index("part")
    published = run_hours(cfg, by_part["published_s"], by_part.loc[SCAN, "published_s"], 1)
    decoding = by_part.loc["decode", "seconds"]
    sampling = by_part.loc[SCAN, "seconds"] / passes(cfg) - decoding                         # one pass
    share = sample_nfe(cfg, cfg.validation_sampler, cfg.validation_steps) / (scan_nfe(cfg) / passes(cfg))
    validation_scan = share * sampling + decoding          # one latent sample, one pass
    ours = run_hours(cfg, by_part["seconds"], validation_scan, cfg.validation_every)
    hours = pd.DataFrame({"published_h": published, "hours": ours})
    hours.loc["all"] = hours.sum()
    hours["ratio"] = hours["published_h"] / hours["hours"]
    return hours.rename_axis("of a computed run").reset_index()


# ---------------------------------------------------------------- the command

def machine(device: torch.device) -> str:
    """The processor that the table was measured on, and the version of torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":")[1].strip() if models else name
    return f"{torch.get_num_threads()} threads on {name}, torch {torch.__version__}"


def describe(size: str, cfg: Config, dtype: str, device: torch.device) -> str:
    """The lines above the table of a size: what was measured on which machine, and the headings."""
    voxels = size_text(cfg.volume_size)
    steps = sample_nfe(cfg, cfg.sampler, cfg.sampling_steps)
    lines = [f"{size} size: {voxels} voxels, batches of {cfg.aae_batch_size} and {cfg.ldm_batch_size}, "
             f"{dtype}; {machine(device)}",
             f"one scan: {cfg.samples_per_scan} latent samples x {steps} of {cfg.sampler} x passes "
             f"{passes(cfg)} = {scan_nfe(cfg)} network evaluations; as published {published_nfe(cfg)}"]
    if passes(cfg) > 1:
        lines.append("its seconds here are twice those of one pass: label_at_sampling "
                     f"{cfg.label_at_sampling} takes two")
    lines.append(f"  {'':24}{'as published':>14}{'here':>14}{'ratio':>11}{'memory as published, here':>27}")
    return "\n".join(lines)


def benchmark(settings: dict[str, Config], quick: bool) -> None:
    """Print the tables of each size, part by part, and write them.

    Raises InputError for a device that is not there.
    """
    folder = Path("result") / "benchmark"
    make_folder(folder)
    tables = []
    for size, cfg in settings.items():
        device = pick_device(cfg.device)
        dtype = str(pick_precision(cfg.precision, device)).removeprefix("torch.")
        print(describe(size, cfg, dtype, device), flush=True)
        table = measure_all(size, cfg, quick)
        about = {"precision": dtype, "machine": machine(device), "published_scan_NFE": published_nfe(cfg),
                 "scan_NFE": scan_nfe(cfg)}
        tables.append(table.assign(**about))
        cost = run_cost(cfg, table)
        subjects, hours = " + ".join(map(str, SUBJECTS.values())), "{:.1f}".format
        print(f"computed from these, not measured: hours of a run with {subjects} subjects, "
              f"{cfg.aae_epochs} + {cfg.ldm_epochs} epochs")
        print(cost.to_string(index=False, float_format=hours), flush=True)
        write_csv(folder / f"run_cost_{size}.csv", cost)
        write_csv(folder / "benchmark.csv", pd.concat(tables))
    print(f"written to {folder}")


def benchmark_systems(settings: dict[str, Config], quick: bool) -> None:
    """Print a line for a training step and for one scan of every system of each size, and write the table
    after each of them.

    Raises InputError for a device that is not there, or a system that does not fit the volumes.
    """
    folder, rows = Path("result") / "benchmark", []
    make_folder(folder)
    for size, cfg in settings.items():
        device = pick_device(cfg.device)
        dtype = str(pick_precision(cfg.precision, device)).removeprefix("torch.")
        print(f"{size} size: {size_text(cfg.volume_size)} voxels, {dtype}; {machine(device)}\n"
              f"  {'':26}{'parameters':>14}{'seconds':>14}{'memory':>11}", flush=True)
        for name in systems.chosen(cfg):
            for part in (systems.STEP, systems.SCAN):
                row = {"size": size} | measure_system(name, part, cfg, quick)
                rows.append(row | {"precision": dtype, "machine": machine(device)})
                print(f"  {systems.part_name(name, part):26}{row['parameters']:14,}{row['seconds']:12.4f} s"
                      f"{row['GiB']:7.2f} GiB{systems.remark_on(row)}", flush=True)
                write_csv(folder / "systems.csv", pd.DataFrame(rows).astype({"network_evaluations": "Int64"}))
    print(f"written to {folder / 'systems.csv'}")


def main(argv: list[str]) -> int:
    """Run the benchmark. Returns the exit code."""
    about = ("Measure seconds and memory of every part of the method. --quick: fewer repetitions. "
             "--systems: of the systems of the paper's comparison instead. "
             "--minutes N: what a GPU does, within so many minutes. --dry_run: the same in tiny sizes, on "
             "any machine.")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--systems", action="store_true")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--dry_run", action="store_true")
    own, words = parser.parse_known_args(argv)
    if own.minutes or own.dry_run:
        cfg = parse(Config, words, "main.py benchmark", about, PRESETS)
        return exit_code(partial(gpu.measure, cfg, own.minutes or 60.0, own.dry_run))
    sizes = {"paper": words, "demo": ["--preset", "demo", *words]}
    if any(word.startswith("--preset") for word in words):
        sizes = {"given": words}
    settings = {}
    for size, given in sizes.items():
        settings[size] = parse(Config, given, "main.py benchmark", about, PRESETS)
    return exit_code(partial(benchmark_systems if own.systems else benchmark, settings, own.quick))
