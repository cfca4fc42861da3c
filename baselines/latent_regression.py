"""Latent regression: the denoiser's network, evaluated once, from the MRI to the latent of the PET.

Whatever the diffusion is better at than the labelled one, diffusion adds.
"""
import torch
from torch import Tensor

from baselines.regression import Labels, Regression, Training
from model import LatentSpace, UNet


class LatentRegression(Regression):
    """The denoiser's network with z_t = 0 at t = T - 1 for everyone.

    latents: ID -> z_0 [C, d, h, w] of the training list; empty for a trained one. space: of these latents.
    """

    def __init__(self, network: UNet, space: LatentSpace, latents: dict[str, Tensor], timesteps: int,
                 num_classes: int, latent_shape: tuple[int, ...], training: Training,
                 labels: Labels | None = None):
        super().__init__(network, num_classes, training, labels)
        self.space, self.latents = space, latents
        self.timesteps, self.latent_shape = timesteps, latent_shape
        with_image = labels is not None and labels.image_loss > 0
        self.modalities = ("mri", "pet") if with_image else ("mri",)

    def target(self, batch: dict) -> Tensor:
        """z_0 of the batch, [B, C, d, h, w]."""
        return torch.stack([self.latents[name] for name in batch["id"]])

    def output(self, network: UNet, mri: Tensor, label: Tensor) -> Tensor:
        """mri [B, 1, D, H, W], label [B, K] -> the estimate of z_0 [B, C, d, h, w]."""
        z_t = mri.new_zeros(len(mri), *self.latent_shape)
        t = torch.full((len(mri),), self.timesteps - 1, device=mri.device)
        return network(z_t, mri, t, label)

    def to_pet(self, output: Tensor) -> Tensor:
        """The decoded estimate of z_0."""
        return self.space.decode(output.float())
