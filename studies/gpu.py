"""What a CUDA GPU does with the method at paper size: is it right there, how fast, how much memory.

    python main.py benchmark --device cuda --minutes 5 [--dry_run] [--field value]

The most important comes first, and every row is written as soon as it is measured. What does not fit the
minutes, or failed, is left to the next call, which goes on where this one ended, on the same card with the
same versions; after a change of the code remove gpu.json. Seconds are medians after a warm-up, synchronised.
--dry_run: all of it in tiny sizes, on any machine. Writes result/benchmark/gpu.json and gpu.md.
"""
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from config import DEMO, VERSION, Config
from dataset import EpochOrder, Scan, VolumeDataset, volume_loader
from experiment.networks import build_aae, build_unet
from imaging.cache import VolumeCache
from imaging.grids import Crop
from runtime import gpu
from runtime.failures import is_out_of_memory
from runtime.files import make_folder, write_text
from studies.parts import (AS_TORCH, PARTS, SCAN, SUBJECTS, Setup, Way, run_hours, stage_1_update,
                           stage_2_update)
from utils import pick_device, pick_precision, size_text

FOLDER = Path("result") / "benchmark"
SECONDS, REPEATS, WARM_UPS = 2.0, 10, 2                    # of a row: at most so long, and so often
LOADED_STEPS = 40                                          # with which waiting for data is measured
CARDS = (11, 16, 24, 48, 80)                               # GiB of common cards
TINY = {"volume_size": (16, 24, 16), "image_size": (22, 27, 22), "crop_start": (3, 2, 3), "crop_jitter": 1,
        "aae_channels": (8, 16, 32), "aae_norm_groups": 8, "disc_channels": (8, 16), "unet_channels": 16,
        "unet_mults": (1, 2), "unet_res_blocks": 1, "unet_norm_groups": 8}

PLAIN = {"precision": "fp32", "deterministic": True, **AS_TORCH._asdict()}     # torch's defaults
SWITCHES = {"deterministic": {"deterministic": True}, "no CUDA graph": {"graphed": False},
            "no channels added": {"padded": False}, "torch's GroupNorm": {"fused_norm": False},
            "optimizer not fused": {"fused_optimizer": False}, "activations recomputed": {"recompute": True},
            "contiguous memory": {"channels_last": False}}
STAGE_2_ALONE = ("no CUDA graph", "torch's GroupNorm")     # stage 1 has neither with the default settings


@dataclass(frozen=True)
class Row:
    """A measurement: its name, the table it belongs to, and what gives its values."""
    table: str
    name: str
    measure: Callable[[], dict]


# ---------------------------------------------------------------- seconds and memory

def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    """Give back what earlier rows took: a network whose passes were captured refers to itself, so that Python
    frees it only when it looks for circles. The peak is counted anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seconds_and_memory(action: Callable[[], object], units: int = 1) -> dict:
    """Median seconds of a unit of work after a warm-up, and the peak of the memory that torch took from the
    card."""
    for _ in range(WARM_UPS if torch.cuda.is_available() else 0):
        action()
    taken: list[float] = []
    while sum(taken) < SECONDS and len(taken) < (REPEATS if torch.cuda.is_available() else 1):
        synchronize()
        start = time.perf_counter()
        action()
        synchronize()
        taken.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_reserved() / gpu.GIB if torch.cuda.is_available() else float("nan")
    return {"seconds": statistics.median(taken) / units, "GiB": memory, "repeats": len(taken)}


def setup_of(cfg: Config, precision: str = "bf16", batch: int = 2, deterministic: bool = False,
             recompute: bool = False, **switches) -> Setup:
    """The setup of a measurement. precision: fp32, tf32 or bf16; batch: volumes, or latent samples of a scan;
    switches: those of Way."""
    in_bf16 = precision == "bf16" and cfg.device == "cuda"                     # most CPUs imitate it slowly
    changes = {"precision": "bf16" if in_bf16 else "fp32", "deterministic": deterministic,
               "recompute": recompute, "aae_batch_size": batch, "ldm_batch_size": batch,
               "samples_per_scan": batch, "sampling_batch": batch ** 2}
    setup = Setup(dataclasses.replace(cfg, **changes), published=False, way=Way(**switches))
    if precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return setup


def part(cfg: Config, name: str, **how) -> dict:
    """Seconds and memory of a part of the method. how: as in setup_of."""
    free_memory()
    action, units = PARTS[name](setup_of(cfg, **how))
    return seconds_and_memory(action, units)


# ---------------------------------------------------------------- is it right

def guard(cfg: Config) -> dict:
    """The start of a run on a GPU: its name and versions, and one convolution in both precisions."""
    device = pick_device(cfg.device)
    error = gpu.convolution_error(device, torch.bfloat16, cfg.aae_batch_size, max(cfg.aae_channels[:2]),
                                  cfg.volume_size)
    faults = gpu.known_faults(torch.__version__, torch.backends.cudnn.version() or 0)
    return {"largest error of a bf16 convolution, in standard deviations": error,
            "allowed": gpu.LARGEST_ERROR, "known faults": "; ".join(faults) or "none"}


def parity(cfg: Config, precision: str) -> dict:
    """Networks of the demo's size on this device and on the CPU: relative difference of what they give."""
    device, found = pick_device(cfg.device), {}
    cfg = dataclasses.replace(cfg, **{name: DEMO[name] for name in TINY})
    dtype = pick_precision(precision if device.type == "cuda" else "fp32", device)   # as in setup_of
    networks = {"autoencoder": (build_aae, _aae_inputs), "denoiser": (build_unet, _unet_inputs)}
    for name, (build, inputs) in networks.items():
        torch.manual_seed(0)
        on_cpu = build(cfg, torch.device("cpu")).eval()
        there = build(cfg, device).eval()
        there.load_state_dict(on_cpu.state_dict())
        given = inputs(cfg)
        with torch.no_grad():
            expected = on_cpu(*given)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = there(*[value.to(device) for value in given]).float().cpu()
        found[name] = ((y - expected).norm() / expected.norm()).item()
    return found


def _aae_inputs(cfg: Config) -> list[torch.Tensor]:
    return [torch.rand(2, 1, *cfg.volume_size)]


def _unet_inputs(cfg: Config) -> list[torch.Tensor]:
    z_t = torch.randn(2, cfg.latent_channels, *cfg.latent_size)
    return [z_t, torch.rand(2, 1, *cfg.volume_size), torch.tensor([3, 900]), torch.tensor([0, 1])]


def gpu_tests() -> dict:
    """tests/test_gpu.py, in a process of its own."""
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=",
                            "tests/test_gpu.py"], cwd=root, capture_output=True, text=True)
    lines = ended.stdout.strip().splitlines()
    write_text(FOLDER / "test_gpu.txt", ended.stdout + ended.stderr)
    return {"result": lines[-1].strip("= ") if lines else ended.stderr[-200:]}


# ---------------------------------------------------------------- data, memory of smaller cards, kernels

def loading(cfg: Config, stage: str, steps: int) -> dict:
    """Share of the time that a step waits for the volumes of its batch, which come from memory by the
    project's own loader."""
    free_memory()
    setup = setup_of(cfg)
    folder, modalities = Path(setup.folder.name), ("pet",) if stage == "stage 1" else ("mri", "pet")
    scans, rng = [], np.random.default_rng(0)
    for i in range(4):
        path = folder / f"s{i}.nii.gz"
        nib.save(nib.Nifti1Image(rng.random(cfg.image_size, dtype=np.float32), np.eye(4)), path)
        scans += [Scan(f"s{i}_{k}", 0, path, path) for k in range(steps // 2)]
    cache = VolumeCache([scan.pet for scan in scans], Crop(cfg.crop_start, cfg.volume_size), cfg.crop_jitter,
                        "ram")
    order = EpochOrder(len(scans), cfg.aae_batch_size, jitter=stage == "stage 1")
    loader = volume_loader(VolumeDataset(scans, cache, modalities), order, cfg.num_workers,
                           setup.device.type == "cuda")
    step = (stage_1_update if stage == "stage 1" else stage_2_update)(setup)
    waited, started, n = 0.0, 0.0, 0
    batches = iter(loader)
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        if n == 4:                                         # the first steps start the processes
            waited, started = 0.0, began
        waited += time.perf_counter() - began
        step(*[batch[name].to(setup.device, non_blocking=True) for name in modalities])
        n += 1
    synchronize()
    seconds = time.perf_counter() - started
    return {"waiting for data": waited / seconds, "seconds a step": seconds / (n - 4)}


def fits(cfg: Config, gib: int) -> dict:
    """Which steps a card of so much memory has room for, emulated here by a limit on torch's memory."""
    total = torch.cuda.get_device_properties(0).total_memory / gpu.GIB if torch.cuda.is_available() else gib
    if gib * 0.94 > total:                                 # a card's own programs take some
        return {"not emulated": f"this card has {total:.0f} GiB"}
    found = {}
    for stage in ("stage 1 training step", "stage 2 training step"):
        found[stage] = "nothing"
        for batch, recompute in ((2, False), (1, False), (2, True), (1, True)):
            if _fits(cfg, stage, gib * 0.94 / total, batch=batch, recompute=recompute):
                found[stage] = f"batch {batch}" + (", recompute" if recompute else "")
                break
    found[SCAN] = "yes" if _fits(cfg, SCAN, gib * 0.94 / total, batch=4) else "no"
    return found


def _fits(cfg: Config, name: str, fraction: float, **how) -> bool:
    """Whether a part runs within a share of the card's memory, with kernels that need not be tried."""
    if not torch.cuda.is_available():
        return True
    free_memory()
    torch.cuda.set_per_process_memory_fraction(min(fraction, 1.0))
    try:
        action, _ = PARTS[name](setup_of(cfg, deterministic=True, **how))
        action()
        action()
        synchronize()
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def kernels(cfg: Config, name: str) -> dict:
    """The ten kernels of a part that take longest, and their share of the GPU's time."""
    from torch.profiler import ProfilerActivity, profile
    free_memory()
    action, _ = PARTS[name](setup_of(cfg))
    for _ in range(WARM_UPS):
        action()
    synchronize()
    activities = [ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        action()
        synchronize()
    events = []
    for event in profiler.key_averages():                  # the calls that start kernels take the CPU's time
        time_of = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        events.append((time_of, event.key, event.count))
    total = sum(time for time, *_ in events) or 1
    longest = sorted(events, reverse=True)[:10]
    return {f"{key[:90]} ({count} times)": time / total for time, key, count in longest}


# ---------------------------------------------------------------- the rows, most important first

def rows(cfg: Config) -> Iterator[Row]:
    """Everything that is measured."""
    stages = ("stage 1 training step", "stage 2 training step")
    yield Row("check", "guard", partial(guard, cfg))
    for precision in ("fp32", "bf16"):
        yield Row("check", f"difference from the CPU, {precision}", partial(parity, cfg, precision))
    for name in stages:
        yield Row("steps", f"{name}, batch 2, bf16", partial(part, cfg, name))
    yield Row("parts", f"{SCAN}, bf16", partial(part, cfg, SCAN, batch=4))
    for name in stages:
        yield Row("steps", f"{name}, batch 2, torch's defaults in fp32", partial(part, cfg, name, **PLAIN))
    yield Row("check", "tests/test_gpu.py", gpu_tests)
    for switch, how in SWITCHES.items():
        for name in stages:
            if not (name == stages[0] and switch in STAGE_2_ALONE):
                yield Row("switches", f"{name}, batch 2, {switch}", partial(part, cfg, name, **how))
    for batch in (4, 1, 8):
        for name in ("encode", "decode", "network evaluation"):
            yield Row("parts", f"{name}, batch {batch}, bf16", partial(part, cfg, name, batch=batch))
    yield Row("parts", "scores of a volume", partial(part, cfg, "scores of a volume"))
    yield Row("parts", "scores of a volume by scikit-image", partial(published_scores, cfg))
    for name in stages:
        yield Row("kernels", name, partial(kernels, cfg, name))
    for stage in ("stage 2", "stage 1"):
        yield Row("data", f"{stage}, loader", partial(loading, cfg, stage, LOADED_STEPS))
    for gib in CARDS:
        yield Row("memory", f"{gib} GB", partial(fits, cfg, gib))
    for precision in ("bf16", "tf32", "fp32"):
        for batch in (2, 1, 4):
            for name in stages:
                if (precision, batch) != ("bf16", 2):
                    measured = partial(part, cfg, name, precision=precision, batch=batch)
                    yield Row("steps", f"{name}, batch {batch}, {precision}", measured)
    for name in stages:
        measured = partial(part, cfg, name, fused_norm=False, graphed=False, compiled=True)
        yield Row("switches", f"{name}, batch 2, torch's GroupNorm, blocks compiled", measured)


def published_scores(cfg: Config) -> dict:
    """PSNR, SSIM and MAE of a volume by scikit-image."""
    free_memory()
    action, units = PARTS["scores of a volume"](Setup(cfg, published=True))
    return seconds_and_memory(action, units)


# ---------------------------------------------------------------- the command

def measure(cfg: Config, minutes: float, dry_run: bool) -> None:
    """Measure what is not there yet, until the minutes are over; print and write every row."""
    device = pick_device("cpu" if dry_run and not torch.cuda.is_available() else "cuda")
    cfg = dataclasses.replace(cfg, device=device.type, **(TINY if dry_run else {}))
    machine = gpu.describe(device) if device.type == "cuda" else "dry run on a CPU"
    about = {"version": VERSION, "machine": machine, "size": size_text(cfg.volume_size)}
    make_folder(FOLDER)
    file = FOLDER / "gpu.json"
    found = _measured_before(file, about)
    until = time.monotonic() + 60 * minutes
    print(f"{about['machine']}; {about['size']} voxels; {len(found)} rows are there already", flush=True)
    for row in rows(cfg):
        key = f"{row.table}: {row.name}"
        if key in found:
            continue
        if time.monotonic() > until:
            print(f"{minutes:g} minutes are over; the same command goes on here")
            break
        start = time.monotonic()
        try:
            found[key] = row.measure()
        except Exception as error:                         # one row that fails must not cost the others
            traceback.print_exc()
            found[key] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        print(f"{time.monotonic() - start:6.1f} s  {key}: {_shown(found[key])}", flush=True)
        write_text(file, json.dumps({"about": about, "rows": found}, indent=1) + "\n")
        write_text(FOLDER / "gpu.md", markdown(cfg, about, found))
    print(f"written to {FOLDER}/gpu.json and gpu.md")


def _measured_before(file: Path, about: dict) -> dict[str, dict]:
    """The rows of an earlier call on the same card, with the same versions and size, but for those that
    failed."""
    try:
        before = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if before.get("about") != about:
        return {}
    return {name: values for name, values in before["rows"].items() if "failed" not in values}


def _shown(values: dict) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items())


def markdown(cfg: Config, about: dict, found: dict[str, dict]) -> str:
    """All rows as a table, and what a run at paper scale would take, computed from them."""
    lines = [f"{about['machine']}; {about['size']} voxels", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_shown(values)} |" for name, values in found.items()]
    hours = hours_of(cfg, found)
    if hours:
        subjects = " + ".join(map(str, SUBJECTS.values()))
        shown = ", ".join(f"{name} {value:.1f}" for name, value in hours.items())
        epochs = f"{cfg.aae_epochs} + {cfg.ldm_epochs}"
        lines += [
            "",
            f"Computed from these, not measured: hours of {epochs} epochs with {subjects} subjects: {shown}",
        ]
    return "\n".join(lines) + "\n"


def hours_of(cfg: Config, found: dict[str, dict]) -> dict[str, float]:
    """Hours of a run at paper scale, computed from the rows; empty while one is missing."""
    rows_of = {"stage 1 training step": "steps: stage 1 training step, batch 2, bf16",
               "stage 2 training step": "steps: stage 2 training step, batch 2, bf16",
               "encode": "parts: encode, batch 4, bf16", "decode": "parts: decode, batch 4, bf16",
               SCAN: f"parts: {SCAN}, bf16", "scores of a volume": "parts: scores of a volume",
               "network evaluation": "parts: network evaluation, batch 8, bf16"}
    seconds = pd.Series({name: found.get(row, {}).get("seconds", np.nan) for name, row in rows_of.items()})
    if seconds.isna().any():
        return {}
    validation_scan = cfg.validation_steps * seconds["network evaluation"] + seconds["decode"]
    hours = run_hours(cfg, seconds, validation_scan, cfg.validation_every)
    return {**hours, "all": hours.sum()}
