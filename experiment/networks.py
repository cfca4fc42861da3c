"""The networks of an experiment: built from its settings, restored from its best checkpoints, ready to sample."""
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from config import Config
from diffusion import Diffusion, LatentSamples, LatentScale, Synthesizer
from imaging.regions import Regions
from imaging.volumes import Crop
from labels.ridge import RidgeClassifier
from model import AAE, Discriminator, UNet, recompute_activations
from runtime.checkpoints import check_settings, load_checkpoint, restore
from utils import InputError, NotFiniteError, autocast, draw_noise, has_bf16, pick_precision, weights_key

Network = TypeVar("Network", bound=nn.Module)

CHECKPOINT = {"aae": "CHECKPOINT_AAE", "ldm": "CHECKPOINT_Unet"}


def checkpoint_name(stage: str) -> str:
    """Name of the best checkpoint of a stage, or of a regression control, without its suffix."""
    return CHECKPOINT.get(stage, f"CHECKPOINT_{stage}")


# ---------------------------------------------------------------- the networks of the settings, untrained

def build_aae(cfg: Config, device: torch.device) -> AAE:
    """The autoencoder E, D."""
    return place(AAE(cfg.aae_channels, cfg.latent_channels, cfg.aae_output_norm, cfg.aae_norm_groups, cfg.aae_block_norm), cfg, device)


def build_discriminator(cfg: Config, device: torch.device) -> Discriminator:
    """What the autoencoder is trained against."""
    return place(Discriminator(cfg.disc_channels), cfg, device)


def build_unet(cfg: Config, device: torch.device) -> UNet:
    """The denoiser with its Extractor and Projector."""
    return place(UNet(cfg.latent_channels, cfg.unet_channels, cfg.unet_mults, cfg.unet_res_blocks, cfg.time_dim, cfg.num_classes,
                      cfg.unet_norm_groups, cfg.unet_attention_levels, cfg.downscale, cfg.conditioning != "none",
                      cfg.conditioning == "multiscale"), cfg, device)


def build_image_regression(cfg: Config, device: torch.device) -> UNet:
    """The denoiser's architecture from MRI to PET: the MRI stands in the place of z_t, and there is no Extractor and no latent."""
    groups = math.gcd(cfg.unet_norm_groups, cfg.regression_channels)
    return place(UNet(1, cfg.regression_channels, cfg.unet_mults, res_blocks=1, time_dim=cfg.time_dim, num_classes=cfg.num_classes,
                      norm_groups=groups, downscale=1, regression=True), cfg, device)


def place(network: Network, cfg: Config, device: torch.device) -> Network:
    """The network on its device; on a CPU channels last, which its activations follow: training is faster so."""
    if cfg.recompute:
        recompute_activations(network)
    return network.to(device=device, memory_format=torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format)


def build_diffusion(cfg: Config, device: torch.device) -> Diffusion:
    """The diffusion process."""
    return Diffusion(cfg.timesteps, cfg.beta, cfg.prediction, cfg.zero_terminal_snr).to(device)


# ---------------------------------------------------------------- trained

class Networks:
    """The settings, the device, and the networks of the best checkpoints."""
    regions: Regions | None = None                         # of the SUVR; an experiment has read them

    def __init__(self, cfg: Config, device: torch.device):
        self.cfg, self.device = cfg, device
        self.dtype = pick_precision(cfg.precision, device)
        self.crop = Crop(cfg.crop_start, cfg.volume_size)

    @property
    def precision(self) -> str:
        """What networks compute in here, as the setting names it."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def slow_precision(self) -> str:
        """A warning if the device only imitates what it computes in."""
        imitated = self.dtype == torch.bfloat16 and not has_bf16(self.device)
        return ", which has no instructions for it and imitates them slowly" if imitated else ""

    def cast(self) -> torch.autocast:
        """The context in which networks compute in the precision of the settings."""
        return autocast(self.device, self.dtype)

    def best_checkpoint(self, stage: str) -> dict:
        """The best checkpoint of a stage. Raises InputError if there is none."""
        return load_checkpoint(self.best_path(stage))

    def best_path(self, stage: str) -> Path:
        return self.folder_of(stage) / f"{checkpoint_name(stage)}.pth.tar"

    def last_path(self, stage: str) -> Path:
        return self.folder_of(stage) / f"{checkpoint_name(stage)}_last.pth.tar"

    def folder_of(self, stage: str) -> Path:
        """Where the checkpoints of a stage lie: in this experiment's folder, or in that of the one whose stage it uses."""
        return self.cfg.result_dir.parent / (self.cfg.pretrained_from(stage) or self.cfg.exp)

    def best_aae(self) -> AAE:
        """The autoencoder of the best epoch, frozen."""
        aae = build_aae(self.cfg, self.device).eval().requires_grad_(False)
        restore(aae, self.best_checkpoint("aae")["state"].get("aae"), self.best_path("aae"))
        return aae

    def synthesizer(self, aae: AAE, unet: UNet, facts: dict) -> tuple[Synthesizer, RidgeClassifier | None]:
        """The sampling of a trained denoiser, and the classifier that predicts its label. Raises InputError if that one is missing."""
        synthesizer = Synthesizer(aae.decoder, unet, build_diffusion(self.cfg, self.device), LatentScale.of(facts),
                                  self.cfg.sampling_batch, self.cast)
        if not self.cfg.predicts_label:
            return synthesizer, None
        if facts["classifier"] is None:
            raise InputError("this denoiser was trained with --label_at_sampling none and holds no label classifier; "
                             "sample it with --label_at_sampling none")
        return synthesizer, RidgeClassifier.from_state(facts["classifier"])

    def best_synthesizer(self) -> tuple[Synthesizer, RidgeClassifier | None, AAE]:
        """The best checkpoints of both stages, ready to sample. Raises InputError if they do not belong together."""
        aae, saved = self.best_aae(), self.best_checkpoint("ldm")
        check_settings(self.best_path("ldm"), saved, {"autoencoder": weights_key(aae)})
        if not {"latent_mean", "latent_std", "classifier"} <= saved["metadata"].keys():
            raise InputError(f"{self.best_path('ldm')} does not say how its latents were scaled; restore it, or train stage 2 anew")
        unet = build_unet(self.cfg, self.device).eval().requires_grad_(False)
        restore(unet, saved["state"].get("ema"), self.best_path("ldm"))
        return *self.synthesizer(aae, unet, saved["metadata"]), aae

    def sampler(self, synthesizer: Synthesizer, classifier: RidgeClassifier | None, sampler: str, steps: int,
                samples: range, match: bool = False) -> Callable[[dict], LatentSamples]:
        """A function: batch of MRIs -> latent samples. The noise of a sample depends on seed, ID and its number alone.

        match: sample again, with the same noise and with soft labels corrected by what the SUVR of the first synthetic PET lacks.
        """
        cfg = self.cfg

        def latents(batch: dict) -> LatentSamples:
            """Batch of MRIs -> their latent samples."""
            if not classifier:
                return LatentSamples(with_label(batch, None))
            probabilities = classifier.probabilities(batch["mri"])
            label = classifier.weights(batch["mri"]) if cfg.label_in_training == "suvr" else probabilities
            z_0 = with_label(batch, label)
            if match:
                pets = synthesizer.decode(z_0.mean(dim=1))[:, 0].cpu().numpy()
                suvr = torch.tensor([self.regions.measure(pet)["SUVR"] for pet in pets])
                z_0 = with_label(batch, classifier.corrected(label, suvr))
            return LatentSamples(z_0, probabilities)

        def with_label(batch: dict, label: Tensor | None) -> Tensor:
            """Samples [B, m, C, d, h, w] with this soft label [B, K]. Raises NotFiniteError that names the subjects."""
            shape = (cfg.latent_channels, *cfg.latent_size)
            noise = [[draw_noise(cfg.seed, subject, k, shape) for k in samples] for subject in batch["id"]]
            z_0 = synthesizer.sample(batch["mri"].to(self.device), label, noise, sampler, steps)
            if bad := [subject for subject, own in zip(batch["id"], z_0, strict=True) if not torch.isfinite(own).all()]:
                raise NotFiniteError(f"the latents sampled by {sampler} for {', '.join(bad)} are not finite")
            return z_0
        return latents
