"""Soft labels: weights of the label embeddings, which the denoiser is trained with. They give the amount of
amyloid (suvr_soft_labels) or the class (one_hot)."""
import numpy as np
import torch
from torch import Tensor

from utils import InputError, derived_seed


def label_order(n: int, seed: int, shuffled: bool) -> np.ndarray:
    """Whose label each of n subjects of the training list has, [n]: their own, or in the null control that of
    another subject."""
    own = np.arange(n)
    return np.random.default_rng(derived_seed(seed, "shuffled labels")).permutation(own) if shuffled else own


def one_hot(labels: np.ndarray, num_classes: int) -> Tensor:
    """A weight of 1 for the label of each subject: labels [n] in 0 .. K - 1 -> [n, K] float32."""
    return torch.eye(num_classes)[torch.from_numpy(labels)]


def suvr_levels(suvr: np.ndarray, labels: np.ndarray) -> Tensor:
    """Mean SUVR of the training list with label 0 and with label 1, [2]. suvr, labels: [n].

    Raises InputError if the second is not above the first.
    """
    negative, positive = suvr[labels == 0].mean(), suvr[labels == 1].mean()
    if not negative < positive:
        raise InputError(f"label_in_training suvr: the mean SUVR of the training list is {negative:.3f} with "
                         f"label 0 and {positive:.3f} with label 1, but amyloid raises it; look at the "
                         "labels, and at cortex_mask and reference_mask")
    return torch.tensor([negative, positive])


def suvr_soft_labels(suvr: np.ndarray, levels: Tensor) -> Tensor:
    """Soft labels [n, 2] that say how much amyloid there is: the mean SUVR of a label has a weight of 1 for
    that label, in between they are mixed, and beyond one of them is negative. suvr: [n]; levels: as
    suvr_levels gives."""
    negative, positive = levels.tolist()
    share = (suvr - negative) / (positive - negative)
    return torch.from_numpy(np.stack([1 - share, share], axis=1)).float()
