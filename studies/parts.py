"""The parts of the method, ready to be timed: each an action, on a batch of the settings' size, that computes
in a way that can be chosen."""
import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import nibabel as nib
import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from skimage.transform import resize
from torch import Tensor

from config import Config
from dataset import Scan, VolumeDataset
from evaluation.scores import evaluate
from experiment.networks import build_aae, build_diffusion, build_discriminator, build_unet
from imaging.cache import VolumeCache
from imaging.grids import Crop
from main import LatentBatch, Stage2, aae_step, ldm_step
from model import LatentSpace, RecomputedBlock, Synthesizer
from runtime import gpu
from utils import EMA, autocast, draw_noise, pick_device, pick_precision, score_volume, seed_everything

Network = TypeVar("Network", bound=nn.Module)

SUBJECTS = {"train": 408, "validation": 51, "test": 51}    # of a run at paper scale
AS_PUBLISHED = {"precision": "fp32", "cache": "off", "recompute": False, "image_loss": 0.0}
PET_STD = 0.2                                              # scales the image loss, and changes no time


class Way(NamedTuple):
    """How networks and optimizers compute: everything that runtime/gpu.py knows, and fused optimizers."""
    channels_last: bool = True
    fused_norm: bool = True
    padded: bool = True
    graphed: bool = True
    fused_optimizer: bool = True
    compiled: bool = False                                 # residual blocks by torch.compile


AS_TORCH = Way(*[False] * 6)                               # as torch does it without a word


class Setup:
    """The settings of a measurement, with what its parts need: device, precision, volumes, networks.

    published: measure as the published code does it. way: another one than the settings' or the published.
    """

    def __init__(self, cfg: Config, published: bool, way: Way | None = None):
        self.cfg, self.published = dataclasses.replace(cfg, **AS_PUBLISHED) if published else cfg, published
        self.device = pick_device(cfg.device)
        self.dtype = pick_precision(self.cfg.precision, self.device)
        self.way = way or (AS_TORCH if published else Way())
        self.folder = tempfile.TemporaryDirectory()        # of files that are read; it goes with the setup
        gpu.set_up(self.cfg.deterministic)
        seed_everything(0)

    def cast(self) -> torch.autocast:
        """The context in which networks compute in the precision of the settings."""
        return autocast(self.device, self.dtype)

    def build(self, builder: Callable[[Config, torch.device], Network]) -> Network:
        """A network of the settings on the device, which computes in this way."""
        way = self.way
        network = gpu.prepare(builder(self.cfg, self.device), self.device, way.channels_last, way.fused_norm,
                              way.padded)
        if way.compiled:
            torch._dynamo.config.recompile_limit = 100     # all blocks of a class share one function
            backend = "inductor" if self.device.type == "cuda" else "eager"
            for block in network.modules():
                if isinstance(block, RecomputedBlock):
                    block.compute = torch.compile(block.compute, dynamic=False, backend=backend)
        return network

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
    return partial(stage_1_update(setup), setup.volumes(setup.cfg.aae_batch_size)), 1


def stage_1_update(setup: Setup) -> Callable[[Tensor], object]:
    """The update of stage 1 on x [B, 1, D, H, W]."""
    cfg, fused = setup.cfg, setup.way.fused_optimizer
    aae, disc = setup.build(build_aae), setup.build(build_discriminator)
    opt_g = torch.optim.Adam(aae.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=fused)
    opt_d = torch.optim.Adam(disc.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=fused)
    return lambda x: aae_step(aae, disc, opt_g, opt_d, x, cfg.lambda_rec, setup.cast)


def stage_2_step(setup: Setup) -> Part:
    """One update of the denoiser and its moving average on a batch."""
    n = setup.cfg.ldm_batch_size
    pet = setup.volumes(n) if setup.cfg.image_loss else None
    return partial(stage_2_update(setup), setup.volumes(n), pet), 1


def stage_2_update(setup: Setup) -> Callable[[Tensor, Tensor | None], object]:
    """The update of stage 2 on an MRI [B, 1, D, H, W] and, for the image loss, its PET."""
    cfg, n = setup.cfg, setup.cfg.ldm_batch_size
    unet, space = setup.build(build_unet), LatentSpace(setup.frozen(build_aae))
    opt = torch.optim.AdamW(unet.parameters(), cfg.ldm_lr, fused=setup.way.fused_optimizer)
    diffusion, ema = build_diffusion(cfg, setup.device), EMA(unet, cfg.ema_decay, 0)
    stage_2 = Stage2(diffusion, space, PET_STD, cfg.image_loss, cfg.time_shift)
    z_0, label = setup.latents(n), torch.rand(n, cfg.num_classes, device=setup.device).softmax(dim=1)
    if setup.way.graphed and not cfg.recompute:
        gpu.capture_training(unet, setup.dtype, z_0, setup.volumes(n), diffusion.draw_times(n), label)

    def update(mri: Tensor, pet: Tensor | None) -> None:
        """Update both."""
        ldm_step(unet, opt, stage_2, LatentBatch(z_0, mri, label, pet), setup.cast)
        ema.update(unet, 1)
    return update


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


# ---------------------------------------------------------------- the cost of a run

def run_hours(cfg: Config, seconds: pd.Series, validation_scan: float, validation_every: int) -> pd.Series:
    """Hours of each part of a run of 408 + 51 + 51 subjects.

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
