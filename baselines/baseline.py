"""What every method that IL-CLDM is compared with has in common.

To add one: a subclass of Baseline in a file of its own here. Every further place to touch (settings,
construction, titles and colours, tests) is listed in docs/comparison.md, "Adding a baseline".
"""
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer


class Method(NamedTuple):
    """What is scored of a baseline: a function like Baseline.predict, and the evaluations of its networks
    that a scan takes (NFE)."""
    predict: Callable
    evaluations: int = 1


class Baseline:
    """A compared method: its networks, their updates on a batch, and the PET that they give.

    name: its stage, its checkpoint and its method in the tables.
    modalities: the volumes that its training needs, 'mri' and 'pet'. shifts_crop: whether its training shifts
    the crop at random, as stage 1 does.
    parts: name -> network or optimizer, everything that a checkpoint keeps, first the network that predicts;
    'ema' is a moving average of it.

    A batch is {id: list of B, label: [B] int64, mri and pet: [B, 1, D, H, W] float32 in [0, 1]}, on the CPU.
    Whoever reads its labels in training is in config.SEEING_LABELS; in prediction nobody has them.
    """

    name: str
    modalities: tuple[str, ...] = ("mri", "pet")
    shifts_crop = False

    def __init__(self, parts: dict[str, nn.Module | Optimizer]):
        self.parts = parts

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The parts that are networks."""
        return {name: part for name, part in self.parts.items() if isinstance(part, nn.Module)}

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) of one scan in prediction."""
        return 1

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the phase and the learning rates of an epoch, counted from 1, in a training of `epochs` epochs.
        Whatever is set here follows from these two numbers alone, so that an interrupted training continues
        as if it had not been."""
        raise NotImplementedError

    def step(self, batch: dict, number: int, cast: Callable = nullcontext) -> dict[str, float]:
        """Take the updates of a batch, the training's step of that number, counted from 1: the loss terms,
        under the same names in all steps of an epoch. cast: gives the context, such as autocast, of the
        forward passes."""
        raise NotImplementedError

    def predict(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """mri [B, 1, D, H, W] -> PET of that shape, float32 in [0, 1], by the networks as they are for
        prediction (a moving average, where there is one).

        ids: of the scans, list of B. A sampler's noise depends on seed, ID and number of the sample alone;
        methods that sample nothing ignore them."""
        raise NotImplementedError

    def methods(self) -> dict[str, Method]:
        """Name in the tables -> what is scored under it."""
        return {self.name: Method(self.predict, self.evaluations)}

    def predict_for_validation(self, mri: Tensor, cast: Callable = nullcontext,
                               ids: list[str] | None = None) -> Tensor:
        """What the best epoch is chosen by: the same, or where that takes long, a quicker form of it."""
        return self.predict(mri, cast, ids)
