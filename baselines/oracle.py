"""The oracle of a phantom: the PET expected from a subject's anatomy and atrophy alone, an upper bound for
what an MRI can tell."""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imaging.grids import Crop
from imaging.volumes import read_volume

NAME = "oracle"


def oracle_file(data_dir: Path, subject: str) -> Path:
    """Where a phantom keeps the oracle of a subject."""
    return data_dir / "truth" / "oracle" / f"{subject}.nii.gz"


def read_oracle(data_dir: Path, crop: Crop) -> Callable[[dict], Tensor]:
    """A predict function for evaluate that reads the oracles of the phantom in data_dir."""
    def predict(batch: dict) -> Tensor:
        """The oracles of a batch, [B, 1, D, H, W]."""
        volumes = []
        for subject in batch["id"]:
            voxels, _ = read_volume(oracle_file(data_dir, subject))
            volumes.append(voxels[crop.slices()])
        return torch.from_numpy(np.stack(volumes))[:, None]
    return predict
