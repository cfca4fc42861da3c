"""Labels drawn at random, one for each latent sample: what a scan might have, as likely as it is."""
from typing import NamedTuple

import torch
from torch import Tensor

WIDTH = 0.35       # of the neighbourhood, in standard deviations of the predictions; docs/samples.md says why


class Draws(NamedTuple):
    """Drawn labels of the m latent samples of B scans.

    label: [B, m, K] float32. value: [B, m], the amount of amyloid, 0 at the mean of label 0 and 1 at that of
    label 1, or the label itself. or_more: [B, m], the chance that a draw for this scan is as high or higher.
    """
    label: Tensor
    value: Tensor
    or_more: Tensor


def draw_amounts(prediction: Tensor, left_out: Tensor, u: Tensor) -> Draws:
    """Draw amounts of amyloid for scans of whom prediction [B] is predicted.

    left_out: [2, n], predictions of n subjects by fits that did not see them, and their amounts. u: [B, m],
    uniform in [0, 1). An amount is the prediction and the residual of a subject, within the amounts of them
    all. A residual counts the more the nearer its prediction (Gaussian kernel; the conditional distribution
    of Nadaraya and Watson, of residuals, Hall, Wolff and Yao 1999, JASA): all of them alike would be too wide
    where little amyloid is predicted, and too narrow where much is.
    """
    predicted, amount = left_out.double()
    residual, order = (amount - predicted).sort()
    width = WIDTH * predicted.std().clamp(min=1e-12)
    distance = (prediction.double()[:, None] - predicted[order]) / width                     # [B, n]
    amounts = (prediction.double()[:, None] + residual).clamp(amount.min(), amount.max())
    value, or_more = _draw(amounts, (-distance ** 2 / 2).softmax(dim=1), u)
    return Draws(torch.stack([1 - value, value], dim=-1).float(), value, or_more)


def draw_labels(probabilities: Tensor, u: Tensor) -> Draws:
    """Draw labels by their probabilities [B, K], of sum 1. u: [B, m], uniform in [0, 1)."""
    batch, classes = probabilities.shape
    value, or_more = _draw(torch.arange(classes).expand(batch, -1).double(), probabilities.double(), u)
    return Draws(torch.eye(classes)[value.long()], value, or_more)


def _draw(values: Tensor, chances: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B, m] at the places u of the distribution of each scan, and the chance of each or a higher one.

    values: [B, n], ascending; chances: [B, n], of sum 1.
    """
    place = torch.searchsorted(chances.cumsum(dim=1), u.double().contiguous(), right=True)
    value = values.gather(1, place.clamp(max=values.shape[1] - 1))                           # [B, m]
    is_as_high = values[:, None] >= value[..., None]                                         # [B, m, n]
    return value, (chances[:, None] * is_as_high).sum(dim=-1)
