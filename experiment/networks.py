"""The networks of the settings: untrained (build_unet and others) and those of an experiment's best
checkpoints (Networks), and what samples latents of MRIs with them (LatentSampler)."""
import math
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
import torch.nn as nn
from torch import Tensor

from baselines.baseline import Baseline
from baselines.ddpm import DDPM
from baselines.fgan import FGAN
from baselines.image_regression import ImageRegression
from baselines.latent_regression import LatentRegression
from baselines.pix2pix import Pix2Pix
from baselines.regression import Labels, Training
from baselines.resvit import Resvit
from baselines.tpa_gan import TPAGAN
from config import BASELINES, IMAGE_REGRESSIONS, REGRESSIONS, Config
from evaluation.measurement import Measurement
from imaging.grids import Crop
from labels.draws import Draws
from labels.ridge import LabelPredictor
from model import AAE, Diffusion, Discriminator, LatentSpace, Synthesizer, UNet, recompute_activations
from runtime import gpu
from runtime.checkpoints import check_settings, load_checkpoint, restore
from utils import (InputError, NotFiniteError, autocast, draw_noise, draw_uniform, has_bf16, pick_precision,
                   weights_key)

Network = TypeVar("Network", bound=nn.Module)

CHECKPOINT = {"aae": "CHECKPOINT_AAE", "ldm": "CHECKPOINT_Unet"}


def checkpoint_name(stage: str) -> str:
    """Name of the best checkpoint of a stage, or of a baseline, without its suffix."""
    return CHECKPOINT.get(stage, f"CHECKPOINT_{stage}")


# ---------------------------------------------------------------- the networks of the settings, untrained

def build_aae(cfg: Config, device: torch.device) -> AAE:
    """The autoencoder E, D."""
    aae = AAE(cfg.aae_channels, cfg.latent_channels, cfg.aae_norms, cfg.aae_norm_groups, cfg.upsampling)
    return place(aae, cfg, device)


def build_discriminator(cfg: Config, device: torch.device) -> Discriminator:
    """The discriminator that the autoencoder is trained against."""
    return place(Discriminator(cfg.disc_channels), cfg, device)


def build_unet(cfg: Config, device: torch.device) -> UNet:
    """The denoiser with its Extractor and Projector."""
    unet = UNet(cfg.latent_channels, cfg.unet_channels, cfg.unet_mults, cfg.unet_res_blocks, cfg.time_dim,
                cfg.num_classes, cfg.unet_norm_groups, cfg.unet_attention_levels, cfg.downscale,
                image_conditioning=cfg.conditioning != "none", multiscale=cfg.conditioning == "multiscale")
    return place(unet, cfg, device)


def build_baseline(name: str, cfg: Config, device: torch.device, aae: AAE | None,
                   latents: dict[str, Tensor] | None = None, labels: Labels | None = None,
                   metadata: dict | None = None) -> Baseline:
    """The baseline of this name (config.BASELINES), untrained.

    aae: for one on latents. latents: ID -> E(x) of the training list, for its training. labels: for one of
    config.LABELLED. metadata: plain values of its checkpoint, such as the scale of its latents. Raises
    InputError where a system does not fit the size of the volumes.
    """
    if name in IMAGE_REGRESSIONS:
        channels = cfg.image_regression.channels
        groups = math.gcd(cfg.unet_norm_groups, channels)
        unet = UNet(1, channels, cfg.unet_mults, res_blocks=1, time_dim=cfg.time_dim,
                    num_classes=cfg.num_classes, norm_groups=groups, downscale=1, regression=True)
        baseline = ImageRegression(place(unet, cfg, device), cfg.num_classes, regression_training(cfg),
                                   labels)
    elif name in REGRESSIONS:
        space = LatentSpace(aae, *latent_scale(cfg, latents, metadata))
        z_0 = {subject: space.scale(latent) for subject, latent in (latents or {}).items()}
        baseline = LatentRegression(build_unet(cfg, device), space, z_0, cfg.timesteps, cfg.num_classes,
                                    (cfg.latent_channels, *cfg.latent_size), regression_training(cfg), labels)
    else:
        baseline = _build_system(name, cfg, device)
        if cfg.recompute:
            for network in baseline.networks.values():
                recompute_activations(network)
    baseline.name = name
    return baseline


def _build_system(name: str, cfg: Config, device: torch.device) -> Baseline:
    """The system of the paper's comparison of this name (config.SYSTEMS), untrained."""
    size = cfg.volume_size
    match name:
        case "pix2pix":
            return Pix2Pix(cfg.pix2pix, size, device)
        case "tpa_gan":
            return TPAGAN(cfg.tpa_gan, size, device, cfg.num_classes)
        case "fgan":
            return FGAN(cfg.fgan, size, device, cfg.num_classes)
        case "resvit":
            return Resvit(cfg.resvit, size, device)
        case "ddpm":
            return DDPM(cfg.ddpm, size, device, cfg.seed, cfg.sampling_batch)
    raise ValueError(f"there is no baseline {name!r}; there are {', '.join(BASELINES)}")


def regression_training(cfg: Config) -> Training:
    """How a regression is trained: as stage 2 is."""
    return Training(cfg.ldm_lr, cfg.ema_decay, cfg.ema_start)


def latent_scale(cfg: Config, latents: dict[str, Tensor] | None,
                 metadata: dict | None) -> tuple[float, float]:
    """Mean and standard deviation of latents, one number each for all channels and voxels: those of a
    checkpoint, or of E(x) [C, d, h, w] of the training list, or 0 and 1 where the settings take latents as
    they come."""
    if metadata:
        return metadata["latent_mean"], metadata["latent_std"]
    if not cfg.latent_scaling or not latents:
        return 0.0, 1.0
    values = torch.stack(list(latents.values())).double()
    mean = values.mean()
    return mean.float().item(), (values - mean).square().mean().sqrt().item()


def place(network: Network, cfg: Config, device: torch.device) -> Network:
    """The network on its device, as it is fastest there."""
    if cfg.recompute:
        recompute_activations(network)
    return gpu.prepare(network, device)


def build_diffusion(cfg: Config, device: torch.device) -> Diffusion:
    """The diffusion process."""
    return Diffusion(cfg.timesteps, cfg.beta, cfg.prediction).to(device)


# ---------------------------------------------------------------- trained

class Networks:
    """The networks of an experiment: where their checkpoints lie, in which precision they compute, and the
    best of them restored."""

    def __init__(self, cfg: Config, device: torch.device):
        self.cfg, self.device = cfg, device
        self.dtype = pick_precision(cfg.precision, device)
        self.crop = Crop(cfg.crop_start, cfg.volume_size)
        gpu.set_up(cfg.deterministic)

    @property
    def precision(self) -> str:
        """The precision in which networks compute here, as the setting names it."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def slow_precision(self) -> str:
        """A warning if the device only imitates the precision."""
        imitated = self.dtype == torch.bfloat16 and not has_bf16(self.device)
        return ", which has no instructions for it and imitates them slowly" if imitated else ""

    def cast(self) -> torch.autocast:
        """The context in which networks compute in the precision of the settings."""
        return autocast(self.device, self.dtype)

    def check_device(self) -> None:
        """On a GPU: say which, and raise InputError if a convolution as large as the largest of this run is
        wrong there."""
        if self.device.type == "cuda":
            cfg = self.cfg
            gpu.check(self.device, self.dtype, cfg.aae_batch_size, max(cfg.aae_channels[:2]), cfg.volume_size)

    def best_checkpoint(self, stage: str) -> dict:
        """The best checkpoint of a stage. Raises InputError if there is none."""
        return load_checkpoint(self.best_path(stage))

    def best_path(self, stage: str) -> Path:
        """File of the best epoch's checkpoint."""
        return self.folder_of(stage) / f"{checkpoint_name(stage)}.pth.tar"

    def last_path(self, stage: str) -> Path:
        """File of the last epoch's checkpoint, from which a training continues."""
        return self.folder_of(stage) / f"{checkpoint_name(stage)}_last.pth.tar"

    def folder_of(self, stage: str) -> Path:
        """Where the checkpoints of a stage lie: in this experiment's folder, or in that of the one whose
        stage it uses."""
        return self.cfg.result_dir.parent / (self.cfg.pretrained_from(stage) or self.cfg.exp)

    def best_aae(self, saved: dict | None = None) -> AAE:
        """The autoencoder of the best epoch, frozen. saved: its checkpoint, where that was read before."""
        saved = saved or self.best_checkpoint("aae")
        aae = build_aae(self.cfg, self.device).eval().requires_grad_(False)
        restore(aae, saved["state"].get("aae"), self.best_path("aae"))
        return aae

    def synthesizer(self, space: LatentSpace, unet: UNet) -> Synthesizer:
        """The synthesis of a PET by a denoiser."""
        return Synthesizer(space, unet, build_diffusion(self.cfg, self.device), self.cfg.sampling_batch,
                           self.cast)

    def best_synthesizer(self, checkpoints: dict[str, dict] | None = None,
                         ) -> tuple[Synthesizer, LabelPredictor | None]:
        """The best checkpoints of both stages, ready to synthesize, and the predictor of the label if
        sampling has one.

        checkpoints: stage -> its best checkpoint, where they were read before. Raises InputError if they do
        not belong together, or if the denoiser holds no predictor.
        """
        checkpoints = checkpoints or {stage: self.best_checkpoint(stage) for stage in CHECKPOINT}
        aae, saved = self.best_aae(checkpoints["aae"]), checkpoints["ldm"]
        check_settings(self.best_path("ldm"), saved, {"autoencoder": weights_key(aae)})
        metadata = saved["metadata"]
        if not {"latent_mean", "latent_std", "label_predictor"} <= metadata.keys():
            raise InputError(f"{self.best_path('ldm')} does not say how its latents were scaled; restore it, "
                             "or train stage 2 again")
        unet = build_unet(self.cfg, self.device).eval().requires_grad_(False)
        restore(unet, saved["state"].get("ema"), self.best_path("ldm"))
        space = LatentSpace(aae, metadata["latent_mean"], metadata["latent_std"])
        return self.synthesizer(space, unet), self.label_predictor(metadata)

    def label_predictor(self, metadata: dict) -> LabelPredictor | None:
        """The predictor of the label that sampling is conditioned with, from the metadata of a denoiser; None
        if sampling has none.

        Raises InputError if the denoiser was trained without one.
        """
        if not self.cfg.predicts_label:
            return None
        if metadata["label_predictor"] is None:
            raise InputError("this denoiser was trained with --label_at_sampling none and holds no "
                             "predictor of the label; sample it with --label_at_sampling none")
        self.refuse_other_covariates(metadata)
        return LabelPredictor.from_state(metadata["label_predictor"])

    def refuse_other_covariates(self, metadata: dict) -> None:
        """Raise InputError if the predictor in a denoiser's metadata sees other covariates than the settings
        name."""
        state, names = metadata.get("label_predictor"), self.cfg.covariates
        there = LabelPredictor.from_state(state).covariates if state else names
        if there != names:
            raise InputError(f"{self.best_path('ldm')}: its label is predicted from the "
                             f"MRI{_and_named(there)}, not from the MRI{_and_named(names)}; give "
                             "--covariates as in its training, or train stage 2 under another --exp")


def _and_named(covariates: tuple[str, ...]) -> str:
    """The end of a list that begins with the MRI."""
    return f" and {', '.join(covariates)}" if covariates else " alone"


# ---------------------------------------------------------------- from a batch of MRIs to latent samples

def cells_of(people: pd.DataFrame | None, ids: list[str]) -> pd.DataFrame | None:
    """Covariates of these scans as text, a row a scan, empty where they are not known; None if there are
    none."""
    return None if people is None else people.reindex(ids, fill_value="")


class LatentSampler:
    """Latent samples of MRIs, with the label that the settings give them in sampling (setting
    label_at_sampling). The sampling itself is model.py:Synthesizer.sample.

    sampler, steps: 'ddpm', 'ddim' or 'dpm' and its network evaluations. samples: numbers of the samples of a
    scan; the noise of a sample depends on seed, ID and its number alone. matched: sample twice, the second
    time with what the SUVR of the first synthetic PET lacks. people: covariates of scans as text, indexed by
    ID; a scan or column that is not there counts as missing. drawn: each sample has a label of its own, drawn
    from what the MRI leaves open, and is matched by itself. last: t of ddim's last evaluation. Raises
    InputError if the predictor cannot.
    """

    def __init__(self, cfg: Config, synthesizer: Synthesizer, predictor: LabelPredictor | None,
                 measurement: Measurement, sampler: str, steps: int, samples: range, matched: bool = False,
                 people: pd.DataFrame | None = None, drawn: bool = False, last: int = 1):
        self.cfg, self.synthesizer, self.predictor, self.measurement = (cfg, synthesizer, predictor,
                                                                        measurement)
        self.sampler, self.steps, self.samples, self.matched = sampler, steps, samples, matched
        self.people, self.drawn, self.last = people, drawn, last
        if matched and predictor:
            self._refuse_other_regions()
        if drawn and predictor and predictor.why_no_draw:
            raise InputError("an amount of amyloid is to be drawn for each sample (label_at_sampling "
                             "sampled, synthesize --samples), but this denoiser "
                             f"cannot: {predictor.why_no_draw}")

    def _refuse_other_regions(self) -> None:
        """Raise InputError if an SUVR is to be corrected in other regions than the denoiser was trained
        with."""
        if self.predictor.regions and self.predictor.regions != self.measurement.region_key():
            raise InputError(f"label_at_sampling {self.cfg.label_at_sampling}: this denoiser was trained "
                             "with the SUVR of other regions than those of these settings; give the masks or "
                             "the --regions of its training, or --label_at_sampling mixed")

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) of a scan: those of all its samples, twice if they are matched."""
        one = self.synthesizer.diffusion.evaluations(self.sampler, self.steps)
        return one * len(self.samples) * (2 if self.matched else 1)

    def label_probabilities(self, batch: dict) -> Tensor | None:
        """Probabilities of the labels that are predicted for a batch {id, mri}, [B, K]; None if sampling goes
        without."""
        if not self.predictor:
            return None
        return self.predictor.probabilities(batch["mri"], cells_of(self.people, batch["id"]))

    def __call__(self, batch: dict, draws: Draws | None = None) -> Tensor:
        """z_0 of a batch {id, mri}: [B, m, C, d, h, w]. draws: its drawn labels, where they are known.

        Raises NotFiniteError that names the subjects.
        """
        if not self.predictor:
            return self._sample(batch, None)
        if self.drawn:
            label = (draws or self.draws(batch)).label                                       # [B, m, K]
        else:
            label = self.predictor.label(batch["mri"], cells_of(self.people, batch["id"]))   # [B, K]
        z_0 = self._sample(batch, label)
        return self._sample(batch, self._corrected(label, z_0)) if self.matched else z_0

    def draws(self, batch: dict) -> Draws:
        """The label that is drawn for each sample of a batch {id, mri}."""
        u = [[draw_uniform(self.cfg.seed, subject, k) for k in self.samples] for subject in batch["id"]]
        return self.predictor.draw(batch["mri"], torch.tensor(u, dtype=torch.float64),
                                   cells_of(self.people, batch["id"]))

    def _corrected(self, label: Tensor, z_0: Tensor) -> Tensor:
        """The labels with what the SUVR of the PETs lacks that were sampled with them: of scans [B, K], whose
        PET is that of the mean of their samples z_0 [B, m, ...], or of single samples [B, m, K]."""
        if not self.drawn:
            pets = self.synthesizer.decode(z_0.mean(dim=1))                                  # [B, 1, D, H, W]
            return self.predictor.corrected(label, self.measurement.suvr(pets).float())
        corrected = [self.predictor.corrected(own, self.measurement.suvr(self.synthesizer.decode(z)).float())
                     for own, z in zip(label, z_0, strict=True)]                             # B of [m, K]
        return torch.stack(corrected)

    def synthesize(self, batch: dict) -> Tensor:
        """A predict function for evaluate: MRI -> PET decoded from the mean of its samples, [B, 1, D, H, W]
        in [0, 1]."""
        return self.synthesizer.decode(self(batch).mean(dim=1))

    def _sample(self, batch: dict, label: Tensor | None) -> Tensor:
        """Samples with this soft label, [B, K] or of each sample [B, m, K]."""
        cfg, noise = self.cfg, []
        shape = (cfg.latent_channels, *cfg.latent_size)
        for subject in batch["id"]:
            noise.append([draw_noise(cfg.seed, subject, k, shape) for k in self.samples])
        mri = batch["mri"].to(next(self.synthesizer.unet.parameters()).device)
        z_0 = self.synthesizer.sample(mri, label, noise, self.sampler, self.steps, self.last)
        bad = [subject for subject, own in zip(batch["id"], z_0, strict=True)
               if not torch.isfinite(own).all()]
        if bad:
            raise NotFiniteError(f"the latents sampled by {self.sampler} for {', '.join(bad)} are not finite")
        return z_0
