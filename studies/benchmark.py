"""Seconds, peak memory and gain of every part of the method: `python benchmark.py [--quick] [--preset demo] [--field value]`.

Every part is measured twice, each time in a process of its own: as published (float32 without TF32, default memory layout, plain
optimizer, one scan and one draw at a time, the Extractor in every call, T - 1 calls a scan, files decoded at every reading), which this
project's own switches reproduce, and with the settings. Without --preset at paper size and at the demo's. --quick: fewer calls.
"""
import argparse
import dataclasses
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from skimage.transform import resize

from config import Config
from dataset import Scan
from diffusion import Synthesizer
from evaluation.metrics import evaluate, score_volume
from experiment.networks import build_aae, build_diffusion, build_discriminator, build_unet
from imaging.loading import VolumeCache, VolumeDataset
from imaging.volumes import Crop
from runtime.commandline import parse_args
from runtime.files import make_folder, write_csv
from runtime.training import ImageLoss, Objective, Sample, aae_step, ldm_step
from utils import EMA, InputError, autocast, draw_noise, pick_device, pick_precision, seed_everything

REPEATS = 5                                                # calls after the warm-up
ENOUGH = {False: 20.0, True: 1.0}                          # seconds in all after which there is no further call; if it is to be quick
SUBJECTS = {"train": 408, "validation": 51, "test": 51}    # of a run at paper scale
AS_PUBLISHED = {"channels_last": "off", "precision": "fp32", "cache": "off", "recompute": False, "image_loss": 0.0}


class Setup:
    """The settings, with what the parts need: device, context of the precision, volumes. published: as the published code does it."""

    def __init__(self, cfg: Config, published: bool):
        self.cfg, self.published = dataclasses.replace(cfg, **AS_PUBLISHED) if published else cfg, published
        self.device = pick_device(cfg.device)
        self.dtype = pick_precision(self.cfg.precision, self.device)
        seed_everything(0)                                 # as a run does, which asks for deterministic kernels too

    def cast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)

    def volumes(self, count: int) -> torch.Tensor:
        """Random volumes [count, 1, D, H, W] on the device."""
        return torch.rand(count, 1, *self.cfg.volume_size, device=self.device)

    def latents(self, count: int) -> torch.Tensor:
        """Random latents [count, C, d, h, w] on the device."""
        return torch.randn(count, self.cfg.latent_channels, *self.cfg.latent_size, device=self.device)

    def head(self) -> np.ndarray:
        """The MNI152 T1 with a little noise on the grid of a whole volume, float32 in [0, 1]."""
        from nilearn.datasets import load_mni152_template  # here, because importing it takes seconds
        t1 = load_mni152_template(resolution=2).get_fdata(dtype=np.float32)
        voxels = resize(t1 / t1.max(), self.cfg.image_size)
        return (voxels + (voxels > 0) * 0.02 * np.random.default_rng(0).random(voxels.shape)).clip(0, 1).astype(np.float32)


# A part is a function Setup -> (what is timed, how many units of work that does).
Part = tuple[Callable[[], object], int]


def stage_1_step(setup: Setup) -> Part:
    """One update of autoencoder and discriminator on a batch."""
    cfg, (aae, disc) = setup.cfg, (build(setup.cfg, setup.device) for build in (build_aae, build_discriminator))
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=not setup.published) for net in (aae, disc))
    x = setup.volumes(cfg.aae_batch_size)
    return lambda: aae_step(aae, disc, opt_g, opt_d, x, cfg.lambda_rec, cast=setup.cast), 1


def stage_2_step(setup: Setup) -> Part:
    """One update of the denoiser and its moving average on a batch."""
    cfg, unet, diffusion = setup.cfg, build_unet(setup.cfg, setup.device), build_diffusion(setup.cfg, setup.device)
    opt = torch.optim.AdamW(unet.parameters(), cfg.ldm_lr, fused=not setup.published)
    z_0, mri, pet = setup.latents(cfg.ldm_batch_size), setup.volumes(cfg.ldm_batch_size), setup.volumes(cfg.ldm_batch_size)
    label = torch.eye(cfg.num_classes, device=setup.device)[torch.arange(cfg.ldm_batch_size) % 2]
    ema, image = EMA(unet, cfg.ema_decay, 0), None
    if cfg.image_loss:
        decoder = build_aae(cfg, setup.device).decoder.eval().requires_grad_(False)
        image = ImageLoss(lambda z: decoder(z).float(), cfg.image_loss, 0.0, None, 1.0, cfg.image_loss_over_time)
    objective = Objective(diffusion, cfg.share_without_label, image=image)

    def step():
        ldm_step(unet, objective, opt, Sample(z_0, mri, label, pet), cast=setup.cast)
        ema.update(unet, 1)
    return step, 1


def denoiser_call(setup: Setup) -> Part:
    """One network call of one draw; as published with the Extractor."""
    unet, draws = build_unet(setup.cfg, setup.device).eval(), 1 if setup.published else setup.cfg.samples_per_scan
    z_t, mri, t = setup.latents(draws), setup.volumes(1), torch.full((draws,), setup.cfg.timesteps // 2, device=setup.device)
    condition = None if setup.published else [one.detach().expand(draws, -1, -1, -1, -1) for one in unet.condition(mri)]

    @torch.no_grad()
    def call():
        with setup.cast():
            return unet.denoise(z_t, unet.condition(mri) if condition is None else condition, t)
    return call, draws


def scan(setup: Setup) -> Part:
    """One scan with the sampler of the settings, decoded; as published it is extrapolated from denoiser_call and decode."""
    cfg, aae, unet = setup.cfg, build_aae(setup.cfg, setup.device).eval(), build_unet(setup.cfg, setup.device).eval()
    synthesizer = Synthesizer(aae.decoder, unet, build_diffusion(cfg, setup.device), batch=cfg.sampling_batch, cast=setup.cast)
    mri, shape = setup.volumes(1), (cfg.latent_channels, *cfg.latent_size)

    def synthesize():
        noise = [[draw_noise(cfg.seed, "s", k, shape) for k in range(cfg.samples_per_scan)]]
        return synthesizer.decode(synthesizer.draw(mri, None, noise, cfg.sampler, cfg.sampling_steps).mean(dim=1))
    return synthesize, 1


def encode(setup: Setup) -> Part:
    """One PET to its latent."""
    return _forward(setup, build_aae(setup.cfg, setup.device).encoder, setup.volumes(1 if setup.published else setup.cfg.aae_batch_size))


def decode(setup: Setup) -> Part:
    """One latent to its PET."""
    return _forward(setup, build_aae(setup.cfg, setup.device).decoder, setup.latents(1 if setup.published else setup.cfg.scans_at_once))


def _forward(setup: Setup, network: torch.nn.Module, x: torch.Tensor) -> Part:
    network.eval()

    @torch.no_grad()
    def run():
        with setup.cast():
            return network(x)
    return run, len(x)


def scores(setup: Setup) -> Part:
    """PSNR, SSIM and MAE of one volume, box and brain; as published by scikit-image, one volume after the other."""
    x = torch.from_numpy(setup.head()[Crop(setup.cfg.crop_start, setup.cfg.volume_size).slices()].copy())
    brain, count = x.numpy() > 0.3, 4
    x_hat = (x + 0.02 * torch.randn_like(x)).clamp(0, 1)
    if setup.published:
        return lambda: score_volume(x_hat, x, brain), 1
    pets, x_hats = (volume.expand(count, 1, *x.shape) for volume in (x, x_hat.to(setup.device)))
    batch = {"id": ["s"] * count, "label": [0] * count, "pet": pets}
    return lambda: evaluate(lambda _: x_hats, [batch], lambda y, volumes: score_volume(y, volumes["pet"], brain), "scores"), count


def reading(setup: Setup) -> Part:
    """The crop of one .nii.gz; as published it is decoded, here it comes from the cache."""
    setup.folder = tempfile.TemporaryDirectory()           # lives as long as the setup
    path = Path(setup.folder.name) / "s.nii.gz"
    nib.save(nib.Nifti1Image(setup.head(), np.eye(4)), path)
    cache = VolumeCache([path], Crop(setup.cfg.crop_start, setup.cfg.volume_size), setup.cfg.crop_jitter, setup.cfg.cache)
    dataset = VolumeDataset([Scan("s", 0, path, path)], cache, ("mri",))
    return lambda: (setup, dataset[0]), 1


PARTS = {"stage 1 training step": stage_1_step, "stage 2 training step": stage_2_step, "denoiser call": denoiser_call, "encode": encode,
         "decode": decode, "one scan": scan, "scores of a volume": scores, "read a .nii.gz": reading}


def measure(part: str, cfg: Config, published: bool, quick: bool) -> tuple[float, float]:
    """Median seconds of a unit of work after a warm-up, and the peak memory in GiB: of the GPU if there is one, else of this process.

    A first call of more than 20 s (quick: 1 s) is taken as it is.
    """
    setup = Setup(cfg, published)
    action, units = PARTS[part](setup)
    seconds = []
    while sum(seconds) <= ENOUGH[quick] and len(seconds) <= REPEATS:
        start = time.perf_counter()
        action()
        if setup.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() if setup.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.median(seconds[1:] or seconds) / units, memory / 2 ** 30


def measure_apart(*arguments) -> tuple[float, float]:
    """measure in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, *arguments).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError) as error:
            print(f"  {arguments[0]}: not measured, probably for want of memory ({type(error).__name__})")
            return float("nan"), float("nan")


def measure_all(size: str, cfg: Config, quick: bool) -> pd.DataFrame:
    """A row a part: seconds and memory as published and with the settings, and the ratio of the seconds."""
    rows = {}
    for part in PARTS:
        found = []
        for published in (True, False):
            if part == "one scan" and published:           # 87 minutes and more on a CPU
                seconds = rows["denoiser call"]["published_s"] * (cfg.timesteps - 1) + rows["decode"]["published_s"]
                found.append((seconds, rows["denoiser call"]["published_GiB"]))
                continue
            found.append(measure_apart(part, cfg, published, quick))
        (published_s, published_gib), (seconds, gib) = found
        rows[part] = {"size": size, "part": part, "published_s": published_s, "seconds": seconds, "ratio": published_s / seconds,
                      "published_GiB": published_gib, "GiB": gib}
        print(f"  {part:24}{published_s:12.4f} s{seconds:12.4f} s{published_s / seconds:9.1f} x{published_gib:9.2f}{gib:9.2f} GiB"
              + ("   (published: extrapolated)" if part == "one scan" else ""), flush=True)
    return pd.DataFrame(rows.values())


def run_cost(cfg: Config, table: pd.DataFrame) -> pd.DataFrame:
    """Hours of a run of 408 + 51 + 51 subjects, computed from the measured parts.

    Left out: reading, which goes on beside the training, files that are written, the validation loss, and the controls of the test.
    """
    rows = []
    for column in ("published_s", "seconds"):
        s, published = table.set_index("part")[column], column == "published_s"
        calls = cfg.validation_steps / (cfg.sampling_steps * cfg.samples_per_scan)           # of one draw, in those of a scan
        validation_scan = s["one scan"] if published else calls * (s["one scan"] - s["decode"]) + s["decode"]
        validations = cfg.ldm_epochs // (1 if published else cfg.validation_every)
        n = SUBJECTS["validation"]
        rows.append({
            "stage 1 training": cfg.aae_epochs * (SUBJECTS["train"] // cfg.aae_batch_size) * s["stage 1 training step"],
            "stage 1 validation": cfg.aae_epochs * n * (s["encode"] + s["decode"] + s["scores of a volume"]),
            "encoding": (SUBJECTS["train"] + n) * s["encode"],
            "stage 2 training": cfg.ldm_epochs * (SUBJECTS["train"] // cfg.ldm_batch_size) * s["stage 2 training step"],
            "stage 2 validation": validations * n * (validation_scan + s["scores of a volume"]),
            "test": SUBJECTS["test"] * (s["one scan"] + s["scores of a volume"])})
    hours = pd.DataFrame(rows, index=["published_h", "hours"]).T / 3600
    hours.loc["all"] = hours.sum()
    return hours.assign(ratio=hours["published_h"] / hours["hours"]).rename_axis("of a computed run").reset_index()


def machine(device: torch.device) -> str:
    """What the table was measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{torch.get_num_threads()} threads on {name}, torch {torch.__version__}"


def main(argv: list[str] | None = None) -> int:
    """Print the tables, part by part, and write them to result/benchmark/."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    own, rest = parser.parse_known_args(argv)
    sizes = {"given": rest} if any(word.startswith("--preset") for word in rest) else {"paper": rest, "demo": ["--preset", "demo", *rest]}
    folder = Path("result") / "benchmark"
    make_folder(folder)
    tables, settings = [], {size: parse_args(words) for size, words in sizes.items()}
    for size, cfg in settings.items():
        try:
            device = pick_device(cfg.device)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        dtype = str(pick_precision(cfg.precision, device)).removeprefix("torch.")
        print(f"{size} size: {'x'.join(map(str, cfg.volume_size))} voxels, batches of {cfg.aae_batch_size} and {cfg.ldm_batch_size}, "
              f"{cfg.samples_per_scan} draws of {cfg.sampling_steps} {cfg.sampler} calls, {dtype}; {machine(device)}\n"
              f"  {'':24}{'as published':>14}{'here':>14}{'ratio':>11}{'memory as published, here':>27}", flush=True)
        tables.append(measure_all(size, cfg, own.quick).assign(precision=dtype, machine=machine(device)))
        cost = run_cost(cfg, tables[-1])
        print(f"computed from these, not measured: hours of a run with {' + '.join(map(str, SUBJECTS.values()))} subjects, "
              f"{cfg.aae_epochs} + {cfg.ldm_epochs} epochs\n{cost.to_string(index=False, float_format='{:.1f}'.format)}", flush=True)
        write_csv(folder / f"run_cost_{size}.csv", cost)
        write_csv(folder / "benchmark.csv", pd.concat(tables))
    print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
