"""Image regression: a plain 3D UNet from the MRI to the PET, without latents."""
import torch
from torch import Tensor

from baselines.regression import Regression
from model import UNet


class ImageRegression(Regression):
    """The denoiser's architecture on the grid of the volumes."""

    def target(self, batch: dict) -> Tensor:
        """The PETs of the batch, [B, 1, D, H, W]."""
        return batch["pet"]

    def output(self, network: UNet, mri: Tensor, label: Tensor) -> Tensor:
        """mri [B, 1, D, H, W], label [B, K] -> PET of that shape."""
        t = torch.zeros(len(mri), dtype=torch.int64, device=mri.device)
        return network(mri[:, :0], mri, t, label)

    def to_pet(self, output: Tensor) -> Tensor:
        """The output, which is the PET."""
        return output
