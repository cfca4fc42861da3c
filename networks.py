"""The networks of an experiment: built from its settings, restored from its best checkpoints, ready to sample."""
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from checkpoints import check_settings, load_checkpoint, restore
from classifier import LabelClassifier, label_of_draws
from config import Config
from diffusion import Diffusion, Draws, LatentScale, Synthesizer
from model import AAE, Discriminator, UNet, recompute_activations
from predictor import NetworkClassifier, RidgeClassifier
from regions import Regions
from utils import InputError, NotFiniteError, autocast, draw_noise, has_bf16, pick_precision, weights_key
from volumes import Crop

Predictor = LabelClassifier | RidgeClassifier | NetworkClassifier                            # of the label, from the MRI
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
                      cfg.unet_norm_groups, cfg.unet_attention_levels, cfg.downscale, cfg.image_conditioning,
                      cfg.conditioning == "multiscale", cfg.deviations_of), cfg, device)


def build_image_regression(cfg: Config, device: torch.device) -> UNet:
    """The denoiser's architecture from MRI to PET: the MRI stands in the place of z_t, and there is no Extractor and no latent."""
    groups = math.gcd(cfg.unet_norm_groups, cfg.regression_channels)
    return place(UNet(1, cfg.regression_channels, cfg.unet_mults, res_blocks=1, time_dim=cfg.time_dim, num_classes=cfg.num_classes,
                      norm_groups=groups, downscale=1, deviations_of=cfg.deviations_of, regression=True), cfg, device)


def place(network: Network, cfg: Config, device: torch.device) -> Network:
    """The network on its device, in the memory layout of the settings, which its activations follow."""
    if cfg.recompute:
        recompute_activations(network)
    channels_last = cfg.channels_last == "on" or (cfg.channels_last == "auto" and device.type == "cpu")
    return network.to(device=device, memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)


def build_diffusion(cfg: Config, device: torch.device) -> Diffusion:
    """The diffusion process."""
    return Diffusion(cfg.timesteps, cfg.beta_first, cfg.beta_last, cfg.prediction, cfg.zero_terminal_snr).to(device)


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
        return self.cfg.result_dir.parent / (self.cfg.lent_by(stage) or self.cfg.exp)

    def best_aae(self) -> AAE:
        """The autoencoder of the best epoch, frozen."""
        aae = build_aae(self.cfg, self.device).eval().requires_grad_(False)
        restore(aae, self.best_checkpoint("aae")["state"].get("aae"), self.best_path("aae"))
        return aae

    def synthesizer(self, aae: AAE, unet: UNet, facts: dict) -> tuple[Synthesizer, Predictor | None]:
        """The sampling of a trained denoiser, and the classifier that predicts its label. Raises InputError if that one is missing."""
        synthesizer = Synthesizer(aae.decoder, unet, build_diffusion(self.cfg, self.device), LatentScale.of(facts),
                                  self.cfg.sampling_batch, self.cast, self.cfg.guidance)
        if not self.cfg.predicts_label:
            return synthesizer, None
        if facts["classifier"] is None:
            raise InputError("this denoiser was trained with --label_at_sampling none and holds no label classifier; "
                             "sample it with --label_at_sampling none")
        return synthesizer, self.predictor(facts["classifier"])

    def predictor(self, state: dict) -> Predictor:
        """What predicts the label of an MRI, from its state."""
        if "networks" in state:
            return NetworkClassifier.from_state(state, self.device)
        return (RidgeClassifier if "ridge" in state else LabelClassifier).from_state(state)

    def best_synthesizer(self) -> tuple[Synthesizer, Predictor | None, AAE]:
        """The best checkpoints of both stages, ready to sample. Raises InputError if they do not belong together."""
        aae, saved = self.best_aae(), self.best_checkpoint("ldm")
        check_settings(self.best_path("ldm"), saved, {"autoencoder": weights_key(aae)})
        if not {"latent_mean", "latent_std", "classifier"} <= saved["facts"].keys():
            raise InputError(f"{self.best_path('ldm')} does not say how its latents were scaled; restore it, or train stage 2 anew")
        unet = build_unet(self.cfg, self.device).eval().requires_grad_(False)
        restore(unet, saved["state"].get("ema"), self.best_path("ldm"))
        return *self.synthesizer(aae, unet, saved["facts"]), aae

    def draw(self, synthesizer: Synthesizer, classifier: Predictor | None, sampler: str, steps: int,
             draws: range, match: bool = False) -> Callable[[dict], Draws]:
        """A function: batch of MRIs -> draws. The noise of a draw depends on seed, ID and its number alone, or on seed and number if it is
        shared; with label_at_sampling weighted, the draws of the K labels share theirs. match: draw again, with the same noise and with
        label weights corrected by what the SUVR of the first synthetic PET lacks. Raises InputError if the denoiser is too old for that."""
        cfg = self.cfg
        shape = (cfg.latent_channels, *cfg.latent_size)
        labels_a_noise = cfg.num_classes if classifier and cfg.label_at_sampling == "weighted" else 1
        if match and classifier.levels is None:
            raise InputError("this denoiser does not hold the SUVRs that label_at_sampling matched needs: an older version trained it; "
                             "train stage 2 anew, or sample it with --label_at_sampling mixed")

        def latents(batch: dict) -> Draws:
            """Batch of MRIs -> their draws."""
            if not classifier:
                return with_weights(batch, None)
            predicted = classifier.probabilities(batch["mri"])
            weights = classifier.weights(batch["mri"]) if cfg.label_in_training == "suvr" else predicted
            drawn = with_weights(batch, weights)
            if match:
                pets = synthesizer.decode(drawn.mean())[:, 0].cpu().numpy()
                suvr = torch.tensor([self.regions.measure(pet)["SUVR"] for pet in pets])
                drawn = with_weights(batch, classifier.corrected(weights, suvr))
            return drawn._replace(label=predicted)

        def with_weights(batch: dict, weights: Tensor | None) -> Draws:
            """Draws with these weights of the label embeddings [B, K]. Raises NotFiniteError that names the subjects."""
            label, weight = None, torch.ones(len(batch["id"]), len(draws))
            if weights is not None:
                label, weight = label_of_draws(weights, draws, cfg.label_at_sampling)
            noise = [[draw_noise(cfg.seed, "all scans" if cfg.shared_noise else subject, k // labels_a_noise, shape) for k in draws]
                     for subject in batch["id"]]
            z_0 = synthesizer.draw(batch["mri"].to(self.device), label, noise, sampler, steps)
            if bad := [subject for subject, draws_of in zip(batch["id"], z_0, strict=True) if not torch.isfinite(draws_of).all()]:
                raise NotFiniteError(f"the latents sampled by {sampler} for {', '.join(bad)} are not finite")
            return Draws(z_0, weight.to(z_0.device))
        return latents
