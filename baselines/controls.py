"""What the synthetic PET is scored beside: the mean PET for everybody, and a phantom's oracle."""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from experiment.experiment import Experiment
from imaging.volumes import read_volume

CONTROLS = ("mean_pet", "latent_regression", "image_regression", "oracle")                 # methods beside il_cldm


def mean_volume(loader: DataLoader) -> Tensor:
    """The mean PET of the loader's scans, [1, 1, D, H, W]: what a method scores that shows everybody the same picture."""
    total = sum(batch["pet"].double().sum(dim=0, keepdim=True) for batch in loader)
    return (total / len(loader.dataset)).float()


def std_of_voxels(loader: DataLoader) -> float:
    """Standard deviation of the PETs of the loader's scans, over all voxels of all of them."""
    count, total, squares = 0, 0.0, 0.0
    for batch in loader:
        pet = batch["pet"].double()
        count, total, squares = count + pet.numel(), total + pet.sum().item(), squares + (pet ** 2).sum().item()
    return max(squares / count - (total / count) ** 2, 0.0) ** 0.5


def oracle_file(exp: Experiment, subject: str) -> Path:
    """Where a phantom keeps the oracle of a subject."""
    return Path(exp.cfg.data_dir) / "truth" / "oracle" / f"{subject}.nii.gz"


def read_oracle(exp: Experiment) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: the PET that the phantom expects from a subject's anatomy and atrophy alone."""
    def predict(batch: dict) -> Tensor:
        volumes = [read_volume(oracle_file(exp, subject))[0][exp.crop.slices()] for subject in batch["id"]]
        return torch.from_numpy(np.stack(volumes))[:, None]                                  # [B, 1, D, H, W]
    return predict
