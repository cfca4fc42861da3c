"""What the denoiser is trained on: the latents, labels and images of a batch, the objective, and its value on the validation list."""
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from baselines.controls import std_of_voxels
from diffusion import LatentScale, Synthesizer
from experiment.experiment import Experiment
from labels.soft_labels import label_facts, label_weights
from model import UNet
from runtime.logs import say
from runtime.ranks import gather_batches, from_rank_0
from runtime.training import ImageLoss, Objective, Sample
from utils import seed_everything


def training_facts(exp: Experiment, latents: dict[str, Tensor]) -> dict:
    """What training and sampling need to know of the training list: shift and scale of its latents, what predicts a label, its labels."""
    scale = exp.latent_scale(latents)
    say("ldm", f"latents are shifted by {scale.mean:.3f} and scaled by {scale.std:.3f}")
    return {**scale.metadata(), **label_facts(exp),
            "affine": torch.from_numpy(exp.cohort.affine), "phantom": exp.is_phantom}


def build_objective(exp: Experiment, synthesizer: Synthesizer) -> Objective:
    """What the settings have the denoiser lower."""
    cfg, image = exp.cfg, None
    if cfg.image_loss:
        scale = from_rank_0(lambda: std_of_voxels(exp.batches(exp.cohort.train, "pet")))
        image = ImageLoss(lambda z_0: synthesizer.decoder(synthesizer.scale.undo(z_0)).float(), cfg.image_loss, scale)
    return Objective(synthesizer.diffusion, cfg.time_shift, cfg.min_snr, image)


def sampling_from(exp: Experiment, latents: dict[str, Tensor], facts: dict) -> Callable[[dict], Sample]:
    """A function: batch -> what a step sees, on the device. Labels of the training list are those of the facts."""
    scale, weights = LatentScale.of(facts), label_weights(exp, facts)
    z_0 = {name: scale.apply(z) for name, z in latents.items()}

    def sample(batch: dict) -> Sample:
        z, label = (torch.stack([values[name] for name in batch["id"]]) for values in (z_0, weights))
        pet = batch.get("pet") if exp.cfg.image_loss else None
        return Sample(*(one if one is None else one.to(exp.device, non_blocking=True) for one in (z, batch["mri"], label, pet)))
    return sample


@torch.no_grad()
def validation_loss(exp: Experiment, unet: UNet, objective: Objective, sample: Callable[[dict], Sample], loader: DataLoader) -> float:
    """Denoising loss of the validation list at steps and noise that are the same in every epoch and for any number of ranks."""
    totals = []                                            # of each batch
    for batch in loader:
        seed_everything(exp.cfg.seed, "validation loss", *batch["id"])
        with exp.cast():
            totals.append(objective.losses(unet, sample(batch))["mse"].item() * len(batch["id"]))
    return sum(gather_batches(totals, loader)) / len(loader.dataset)
