"""Seconds and peak memory of every part of the method: `python benchmark.py [--preset demo] [--field value]`.

Each part runs in a process of its own, on random volumes of the settings' size, so that its peak memory is its own.
"""
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from config import Config, parse_args
from dataset import read_volume
from experiment import build_aae, build_diffusion, build_unet
from model import Discriminator, Synthesizer
from training import aae_step, ldm_step
from utils import pick_device, score_volume, subject_noise, write_csv

SYNTHESIS_STEPS = 2
REPEATS = 3
LONG = 10.0                                                # seconds from which on the first call is taken as it is


def _volumes(cfg: Config, batch: int, device: torch.device) -> torch.Tensor:
    return torch.rand(batch, 1, *cfg.volume_size, device=device)


def stage_1_step(cfg: Config, device: torch.device) -> Callable[[], object]:
    """One update of autoencoder and discriminator on a batch."""
    aae, disc = build_aae(cfg, device), Discriminator(cfg.disc_channels).to(device)
    opt_g, opt_d = (torch.optim.Adam(module.parameters(), cfg.aae_lr, betas=cfg.aae_betas) for module in (aae, disc))
    x = _volumes(cfg, cfg.aae_batch_size, device)
    return lambda: aae_step(aae, disc, opt_g, opt_d, x, cfg.lambda_rec)


def stage_2_step(cfg: Config, device: torch.device) -> Callable[[], object]:
    """One update of the denoiser on a batch."""
    unet, diffusion = build_unet(cfg, device), build_diffusion(cfg, device)
    opt = torch.optim.AdamW(unet.parameters(), cfg.ldm_lr)
    batch = cfg.ldm_batch_size
    z_0, label = torch.randn(batch, cfg.latent_channels, *cfg.latent_size, device=device), torch.arange(batch, device=device) % 2
    mri = _volumes(cfg, batch, device)
    return lambda: ldm_step(unet, diffusion, opt, z_0, mri, label, cfg.share_without_label)


def encode(cfg: Config, device: torch.device) -> Callable[[], object]:
    """One PET to its latent."""
    aae, x = build_aae(cfg, device).eval(), _volumes(cfg, 1, device)
    return torch.no_grad()(lambda: aae.encoder(x))


def synthesis(cfg: Config, device: torch.device) -> Callable[[], object]:
    """One scan: the settings' draws with few DDIM calls, decoded once."""
    aae, unet = build_aae(cfg, device).eval(), build_unet(cfg, device).eval()
    synthesizer, mri = Synthesizer(aae.decoder, unet, build_diffusion(cfg, device)), _volumes(cfg, 1, device)
    shape = (cfg.latent_channels, *cfg.latent_size)
    return lambda: synthesizer(mri, None, subject_noise(0, "s", cfg.samples_per_scan, shape), "ddim", SYNTHESIS_STEPS)


def scores(cfg: Config, device: torch.device) -> Callable[[], object]:
    """PSNR, SSIM and MAE of one volume, box and brain."""
    x, x_hat = np.random.default_rng(0).random((2, *cfg.volume_size), np.float32)
    return lambda: score_volume(x_hat, x, x > 0.2)


def reading(cfg: Config, device: torch.device) -> Callable[[], object]:
    """One volume from a .nii.gz."""
    folder = Path("result") / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(cfg.image_size, np.float32), np.eye(4)), folder / "volume.nii.gz")
    return lambda: read_volume(folder / "volume.nii.gz")


PARTS = {"stage 1 training step": stage_1_step, "stage 2 training step": stage_2_step, "encode one PET": encode,
         f"synthesis, {SYNTHESIS_STEPS} DDIM calls": synthesis, "scores of one volume": scores, "read one .nii.gz": reading}


def measure(part: str, cfg: Config) -> dict:
    """Median seconds over the repeats after a warm-up, or of the only call if it is long; peak memory of this process and of the GPU."""
    device = pick_device(cfg.device)
    action, seconds = PARTS[part](cfg, device), []
    while not seconds or (len(seconds) <= REPEATS and seconds[0] < LONG):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    gpu = torch.cuda.max_memory_allocated() / 2 ** 30 if device.type == "cuda" else 0.0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
    return {"part": part, "seconds": statistics.median(seconds[1:] or seconds), "GiB": memory, "GPU GiB": gpu}


def main(argv: list[str] | None = None) -> int:
    """Print the table, part by part."""
    cfg = parse_args(argv)
    print(f"{'x'.join(map(str, cfg.volume_size))} voxels, AAE batch {cfg.aae_batch_size}, LDM batch {cfg.ldm_batch_size}, "
          f"{cfg.samples_per_scan} draws, {pick_device(cfg.device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = []
    for part in PARTS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (part, cfg)))
        print("  {part:28}{seconds:10.3f} s   peak {GiB:6.2f} GiB   GPU {GPU GiB:6.2f} GiB".format(**rows[-1]), flush=True)
    path = Path("result") / "benchmark" / f"{cfg.exp}.csv"
    write_csv(path, pd.DataFrame(rows))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
