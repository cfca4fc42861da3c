"""Seconds and peak memory of every part of the method, as published and with the settings.

    python main.py benchmark [--quick] [--preset demo] [--field value]

Every part is measured twice, each time in a process of its own. As published means: float32 without TF32, the
default memory layout, plain optimizers, one scan and one latent sample at a time, the Extractor in every
network evaluation, T - 1 evaluations a scan, and files that are decoded at every reading. The other column
has the settings. Without --preset at paper size and at the demo's. Writes result/benchmark/.
"""
import argparse
import dataclasses
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from skimage.transform import resize
from torch import Tensor

from config import PRESETS, Config
from dataset import Scan, VolumeDataset
from evaluation.scores import evaluate
from experiment.networks import build_aae, build_diffusion, build_discriminator, build_unet
from imaging.cache import VolumeCache
from imaging.volumes import Crop
from main import LatentBatch, Stage2, aae_step, ldm_step
from model import LatentSpace, Synthesizer
from runtime.commandline import parse
from runtime.failures import is_out_of_memory
from runtime.files import make_folder, write_csv
from runtime.program import exit_code
from runtime.signals import abandoned_on_error, serve_parent
from utils import EMA, autocast, draw_noise, pick_device, pick_precision, score_volume, seed_everything

Network = TypeVar("Network", bound=nn.Module)

REPEATS = 5                                                # repetitions after the warm-up
ENOUGH_SECONDS, ENOUGH_SECONDS_QUICK = 20.0, 1.0           # of a part in all, after which it is not repeated
SUBJECTS = {"train": 408, "validation": 51, "test": 51}    # of a run at paper scale
AS_PUBLISHED = {"precision": "fp32", "cache": "off", "recompute": False, "image_loss": 0.0}
PET_STD = 0.2                                              # scales the image loss, and changes no time


class Setup:
    """The settings of a measurement, with what its parts need: device, precision, volumes, networks.

    published: measure as the published code does it.
    """

    def __init__(self, cfg: Config, published: bool):
        self.cfg, self.published = dataclasses.replace(cfg, **AS_PUBLISHED) if published else cfg, published
        self.device = pick_device(cfg.device)
        self.dtype = pick_precision(self.cfg.precision, self.device)
        self.folder = tempfile.TemporaryDirectory()        # of files that are read; it goes with the setup
        seed_everything(0)                                 # and asks for deterministic kernels, as a run does

    def cast(self) -> torch.autocast:
        """The context in which networks compute in the precision of the settings."""
        return autocast(self.device, self.dtype)

    def build(self, builder: Callable[[Config, torch.device], Network]) -> Network:
        """A network of the settings on the device; as published in the default memory layout."""
        network = builder(self.cfg, self.device)
        return network.to(memory_format=torch.contiguous_format) if self.published else network

    def frozen(self, builder: Callable[[Config, torch.device], Network]) -> Network:
        """A network that is not trained."""
        return self.build(builder).eval().requires_grad_(False)

    def volumes(self, count: int) -> Tensor:
        """Random volumes [count, 1, D, H, W] in [0, 1) on the device."""
        return torch.rand(count, 1, *self.cfg.volume_size, device=self.device)

    def latents(self, count: int) -> Tensor:
        """Random latents [count, C, d, h, w] on the device."""
        return torch.randn(count, self.cfg.latent_channels, *self.cfg.latent_size, device=self.device)

    def head(self) -> np.ndarray:
        """The MNI152 T1 with a little noise on the grid of a whole volume, float32 in [0, 1]."""
        from nilearn.datasets import load_mni152_template  # here, because importing it takes seconds
        t1 = load_mni152_template(resolution=2).get_fdata(dtype=np.float32)
        voxels = resize(t1 / t1.max(), self.cfg.image_size)
        noise = 0.02 * np.random.default_rng(0).random(voxels.shape)
        return (voxels + (voxels > 0) * noise).clip(0, 1).astype(np.float32)


# ---------------------------------------------------------------- the parts
# Each is a function Setup -> (action that is timed, units of work that it does).

Part = tuple[Callable[[], object], int]


def stage_1_step(setup: Setup) -> Part:
    """One update of autoencoder and discriminator on a batch."""
    cfg, fused = setup.cfg, not setup.published
    aae, disc = setup.build(build_aae), setup.build(build_discriminator)
    opt_g = torch.optim.Adam(aae.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=fused)
    opt_d = torch.optim.Adam(disc.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=fused)
    x = setup.volumes(cfg.aae_batch_size)
    return partial(aae_step, aae, disc, opt_g, opt_d, x, cfg.lambda_rec, setup.cast), 1


def stage_2_step(setup: Setup) -> Part:
    """One update of the denoiser and its moving average on a batch."""
    cfg, n = setup.cfg, setup.cfg.ldm_batch_size
    unet, space = setup.build(build_unet), LatentSpace(setup.frozen(build_aae))
    opt = torch.optim.AdamW(unet.parameters(), cfg.ldm_lr, fused=not setup.published)
    diffusion, ema = build_diffusion(cfg, setup.device), EMA(unet, cfg.ema_decay, 0)
    stage_2 = Stage2(diffusion, space, PET_STD, cfg.image_loss, cfg.time_shift, cfg.min_snr)
    label = torch.rand(n, cfg.num_classes, device=setup.device).softmax(dim=1)               # [B, K]
    pet = setup.volumes(n) if cfg.image_loss else None
    batch = LatentBatch(setup.latents(n), setup.volumes(n), label, pet)

    def step() -> None:
        """Update both."""
        ldm_step(unet, opt, stage_2, batch, setup.cast)
        ema.update(unet, 1)
    return step, 1


def network_evaluation(setup: Setup) -> Part:
    """One evaluation of the denoiser for one latent sample; as published with the Extractor."""
    unet, samples = setup.frozen(build_unet), 1 if setup.published else setup.cfg.samples_per_scan
    mri, z_t = setup.volumes(1), setup.latents(samples)
    t = torch.full((samples,), setup.cfg.timesteps // 2, device=setup.device)

    def with_extractor() -> Tensor:
        """The denoiser's output for one sample."""
        with torch.no_grad(), setup.cast():
            return unet(z_t, mri, t)
    if setup.published:
        return with_extractor, 1
    with torch.no_grad(), setup.cast():
        condition = [one.float().repeat_interleave(samples, dim=0) for one in unet.condition(mri)]

    def without_extractor() -> Tensor:
        """The denoiser's output for all samples of a scan, whose MRI was seen before."""
        with torch.no_grad(), setup.cast():
            return unet.denoise(z_t, condition, t)
    return without_extractor, samples


def encode(setup: Setup) -> Part:
    """One PET to its latent."""
    x = setup.volumes(1 if setup.published else setup.cfg.aae_batch_size)
    return _forward(setup, setup.frozen(build_aae).encoder, x)


def decode(setup: Setup) -> Part:
    """One latent to its PET."""
    z = setup.latents(1 if setup.published else setup.cfg.scans_at_once)
    return _forward(setup, setup.frozen(build_aae).decoder, z)


def _forward(setup: Setup, network: nn.Module, x: Tensor) -> Part:
    """A network on a batch."""
    def forward() -> Tensor:
        """The network's output."""
        with torch.no_grad(), setup.cast():
            return network(x)
    return forward, len(x)


def scan_pass(setup: Setup) -> Part:
    """One scan: all latent samples by the sampler of the settings, without a label; their mean decoded."""
    cfg, space = setup.cfg, LatentSpace(setup.frozen(build_aae))
    diffusion = build_diffusion(cfg, setup.device)
    synthesizer = Synthesizer(space, setup.frozen(build_unet), diffusion, cfg.sampling_batch, setup.cast)
    mri, shape = setup.volumes(1), (cfg.latent_channels, *cfg.latent_size)

    def synthesize() -> Tensor:
        """The PET of the scan, [1, 1, D, H, W]."""
        noise = [[draw_noise(cfg.seed, "s", k, shape) for k in range(cfg.samples_per_scan)]]
        z_0 = synthesizer.sample(mri, None, noise, cfg.sampler, cfg.sampling_steps)
        return synthesizer.decode(z_0.mean(dim=1))
    return synthesize, 1


def scores(setup: Setup) -> Part:
    """PSNR, SSIM and MAE of a volume, box and brain; as published by scikit-image, one after another."""
    x = torch.from_numpy(setup.head()[Crop(setup.cfg.crop_start, setup.cfg.volume_size).slices()].copy())
    brain, count = x.numpy() > 0.3, 4
    x_hat = (x + 0.02 * torch.randn_like(x)).clamp(0, 1)
    if setup.published:
        return partial(score_volume, x_hat, x, brain), 1
    pets = x.expand(count, 1, *x.shape)
    x_hats = x_hat.to(setup.device).expand(count, 1, *x.shape)
    batch = {"id": ["s"] * count, "label": [0] * count, "pet": pets}

    def predict(_batch: dict) -> Tensor:
        """The PETs to be scored."""
        return x_hats

    def score(volume: Tensor, volumes: dict[str, Tensor]) -> dict[str, float]:
        """The scores of a volume [D, H, W]."""
        return score_volume(volume, volumes["pet"], brain)
    return partial(evaluate, predict, [batch], score, "scores"), count


def reading(setup: Setup) -> Part:
    """The crop of one .nii.gz; as published it is decoded, with the settings it comes from the cache."""
    cfg, path = setup.cfg, Path(setup.folder.name) / "s.nii.gz"
    nib.save(nib.Nifti1Image(setup.head(), np.eye(4)), path)
    cache = VolumeCache([path], Crop(cfg.crop_start, cfg.volume_size), cfg.crop_jitter, cfg.cache)
    dataset = VolumeDataset([Scan("s", 0, path, path)], cache, ("mri",))

    def read() -> dict:
        """The item of the scan."""
        return dataset[0]
    return read, 1


SCAN = "one scan"
PARTS = {"stage 1 training step": stage_1_step, "stage 2 training step": stage_2_step,
         "network evaluation": network_evaluation, "encode": encode, "decode": decode, SCAN: scan_pass,
         "scores of a volume": scores, "read a .nii.gz": reading}


# ---------------------------------------------------------------- measurement

def measure(part: str, cfg: Config, published: bool, quick: bool) -> tuple[float, float]:
    """Median seconds of a unit of work after a warm-up, and the peak memory in GiB: of the GPU if there is
    one, else of this process.

    A first repetition that takes longer than enough is not repeated.
    """
    setup = Setup(cfg, published)
    action, units = PARTS[part](setup)
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
    """Bytes; Linux counts them in KiB."""
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


# ---------------------------------------------------------------- network evaluations, and the cost of a run

def passes(cfg: Config) -> int:
    """How often the latent samples of a scan are drawn: label_at_sampling matched draws them twice."""
    return 2 if cfg.label_at_sampling == "matched" else 1


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
    published = _run_hours(cfg, by_part["published_s"], by_part.loc[SCAN, "published_s"], 1)
    decoding = by_part.loc["decode", "seconds"]
    sampling = by_part.loc[SCAN, "seconds"] / passes(cfg) - decoding                         # one pass
    share = sample_nfe(cfg, cfg.validation_sampler, cfg.validation_steps) / (scan_nfe(cfg) / passes(cfg))
    validation_scan = share * sampling + decoding          # one latent sample, one pass
    ours = _run_hours(cfg, by_part["seconds"], validation_scan, cfg.validation_every)
    hours = pd.DataFrame({"published_h": published, "hours": ours})
    hours.loc["all"] = hours.sum()
    hours["ratio"] = hours["published_h"] / hours["hours"]
    return hours.rename_axis("of a computed run").reset_index()


def _run_hours(cfg: Config, seconds: pd.Series, validation_scan: float, validation_every: int) -> pd.Series:
    """Hours of each part of a run.

    seconds: of the measured parts. validation_scan: seconds to synthesize a scan in the validation of stage
    2, which is taken every validation_every epochs.
    """
    n_train, n_validation, n_test = SUBJECTS.values()
    scoring = seconds["scores of a volume"]
    reconstruction = seconds["encode"] + seconds["decode"]
    steps_1, steps_2 = n_train // cfg.aae_batch_size, n_train // cfg.ldm_batch_size
    validations = cfg.ldm_epochs // validation_every
    return pd.Series({
        "stage 1 training": cfg.aae_epochs * steps_1 * seconds["stage 1 training step"],
        "stage 1 validation": cfg.aae_epochs * n_validation * (reconstruction + scoring),
        "encoding": (n_train + n_validation) * seconds["encode"],
        "stage 2 training": cfg.ldm_epochs * steps_2 * seconds["stage 2 training step"],
        "stage 2 validation": validations * n_validation * (validation_scan + scoring),
        "test": n_test * (seconds[SCAN] + scoring)}) / 3600


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
    voxels = "x".join(map(str, cfg.volume_size))
    steps = sample_nfe(cfg, cfg.sampler, cfg.sampling_steps)
    lines = [f"{size} size: {voxels} voxels, batches of {cfg.aae_batch_size} and {cfg.ldm_batch_size}, "
             f"{dtype}; {machine(device)}",
             f"one scan: {cfg.samples_per_scan} latent samples x {steps} of {cfg.sampler} x passes "
             f"{passes(cfg)} = {scan_nfe(cfg)} network evaluations; as published {published_nfe(cfg)}"]
    if passes(cfg) > 1:
        lines.append("its seconds here are twice those of one pass: label_at_sampling matched takes two")
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


def main(argv: list[str]) -> int:
    """Run the benchmark. Returns the exit code."""
    about = "Measure seconds and memory of every part of the method. --quick: fewer repetitions."
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    own, words = parser.parse_known_args(argv)
    sizes = {"paper": words, "demo": ["--preset", "demo", *words]}
    if any(word.startswith("--preset") for word in words):
        sizes = {"given": words}
    settings = {}
    for size, given in sizes.items():
        settings[size] = parse(Config, given, "main.py benchmark", about, PRESETS)
    return exit_code(partial(benchmark, settings, own.quick))
