"""The training loop: the epochs of one training, whatever it trains, with resume, ranks, signals, saving and
one line an epoch."""
import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from runtime.checkpoints import StageRun
from runtime.logs import progress_bar, say, time_left
from runtime.ranks import (all_reduce_mean, average_statistics, mean_over_ranks, rank, stop_together,
                           world_size)
from runtime.signals import defer_signals
from utils import NotFiniteError, derived_seed, seed_everything

ENOUGH_STEPS = 20                                          # after which a run says how long it will take


def fit(run: StageRun, batches: DataLoader, step: Callable[[dict], dict[str, float]], *, epochs: int,
        seed: int, validate: Callable[[str], tuple[dict[str, float], pd.DataFrame]], validate_every: int = 1,
        begin_epoch: Callable[[int, int], None] | None = None) -> None:
    """Take the epochs of a training that are left.

    step: updates on a batch, and returns its losses. validate: takes a title, and returns further losses of
    the epoch and the scores of the validation list, a row a subject with the columns PSNR and SSIM; asked
    every validate_every epochs, and after the last. begin_epoch(epoch, epochs): sets learning rates, and
    whatever else changes from epoch to epoch, of which the first is 1; None: nothing does.
    All that is random in an epoch follows from seed, stage and its number alone. Raises NotFiniteError with
    epoch, step and subjects, and Stopped after a signal, when what was done is saved.
    """
    with run.saved_when_stopped():
        for epoch in run.epochs_left(epochs):
            title = f"{run.stage} epoch {epoch}"
            for network in run.networks:
                network.train()
            if begin_epoch:
                begin_epoch(epoch, epochs)
            losses, waiting = train_epoch(run, batches, step, derived_seed(seed, run.stage, epoch), title,
                                          epochs)
            for network in run.networks:
                network.eval()
            scores = None
            if epoch % validate_every == 0 or epoch == epochs:
                further, scores = validate(f"{title}, validation")
                losses |= further
            run.finish_epoch(epoch, losses, scores)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            validated = ""
            if scores is not None:
                validated = (f"  validation PSNR {scores['PSNR'].mean():.2f} dB, "
                             f"SSIM {scores['SSIM'].mean():.4f}")
            say(run.stage, f"epoch {epoch}/{epochs}  {shown}  waiting for data {waiting:.1%}{validated}")


def train_epoch(run: StageRun, batches: DataLoader, step: Callable[[dict], dict[str, float]], seed: int,
                title: str, epochs: int) -> tuple[dict[str, float], float]:
    """Take the steps of an epoch that are left; a signal waits for the end of the present one, and then ends
    all ranks.

    seed: from which the epoch's order, crops, times and noise follow. Returns the mean of each loss over all
    steps of the epoch, those of before an interruption too, and the share of the time that was spent waiting
    for data.
    """
    progress = run.progress
    seed_everything(seed)
    progress.restore_random()
    batches.sampler.seed, batches.sampler.first = seed, progress.items
    waited, started, total = 0.0, time.perf_counter(), len(progress.losses) + len(batches)
    epochs_after = len(run.epochs_left(epochs)) - 1
    bar = iter(progress_bar(batches, desc=title, unit="step", initial=len(progress.losses), total=total))
    with stop_together():
        stop = False
        while not stop:
            began = time.perf_counter()
            batch = next(bar, None)
            waited += time.perf_counter() - began
            if batch is None:
                break
            with defer_signals():
                stop = _take_step(run, batch, step, batches.sampler.step_items, title)
            run.steps_now += 1
            seconds = time.perf_counter() - began
            run.seconds, run.seconds_now = run.seconds + seconds, run.seconds_now + seconds
            if run.steps_now == ENOUGH_STEPS:
                left = total - len(progress.losses) + epochs_after * total
                say(run.stage, time_left(run.seconds_now / run.steps_now, left))
        mean_over_ranks({})
    means = {name: float(np.mean([row[name] for row in progress.losses])) for name in progress.losses[0]}
    return means, waited / (time.perf_counter() - started)


def _take_step(run: StageRun, batch: dict, step: Callable[[dict], dict[str, float]], items: int,
               title: str) -> bool:
    """Take one step and note it. Returns whether all ranks must stop after it."""
    run.step += 1
    try:
        losses, stop = mean_over_ranks(step(batch))
    except NotFiniteError as error:
        raise NotFiniteError(f"{title}, step {len(run.progress.losses) + 1}: {error} on "
                             f"{', '.join(batch['id'])}; the last checkpoint is kept") from error
    average_statistics(run.networks)
    run.progress.add(losses, items)
    return stop


def update(opt: Optimizer, loss: Tensor, terms: dict[str, Tensor]) -> dict[str, float]:
    """Take the optimizer's step down the loss, with gradients that are averaged over the ranks. Returns the
    values of its terms.

    Weights of other networks that the loss goes through get no gradient. Raises NotFiniteError before the
    step if a term or the norm of the gradient is not finite.
    """
    weights = [weight for group in opt.param_groups for weight in group["params"]]
    opt.zero_grad(set_to_none=True)
    loss.backward(inputs=weights)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    all_reduce_mean(gradients)
    norm = torch.nn.utils.get_total_norm(gradients)
    # together, because a GPU is waited for each time
    *values, norm = torch.stack([*terms.values(), norm.to(loss.device)]).tolist()
    values = dict(zip(terms, values, strict=True))
    if not np.isfinite([norm, *values.values()]).all():
        raise NotFiniteError(f"loss {values}, norm of the gradient {norm}")
    opt.step()
    return values


def set_rate(optimizers: list[Optimizer], rate: float) -> None:
    """Give the optimizers a learning rate."""
    for opt in optimizers:
        for group in opt.param_groups:
            group["lr"] = rate


def set_cosine_rate(optimizers: list[Optimizer], rate: float, decay: bool, epoch: int, epochs: int) -> None:
    """Give the optimizers the learning rate of an epoch, counted from 1: the same for all, or with decay half
    a cosine that would reach 0 after the last of them."""
    factor = (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2 if decay else 1.0
    set_rate(optimizers, rate * factor)


def linear_decay(epoch: int, epochs: int, constant_share: float) -> float:
    """What the learning rate of an epoch, counted from 1, is multiplied by: 1 for a share of the epochs, then
    down a line that would reach 0 after the last."""
    constant = math.ceil(constant_share * epochs)
    return 1 - max(0, epoch - constant) / (epochs - constant + 1)


def draw_rows(draw: Callable[..., Tensor], n: int, *arguments, **options) -> Tensor:
    """n rows of draw(n, ...) that do not depend on the number of ranks: each rank draws the rows of all, and
    takes its own, so that two ranks with batches of 1 see what one rank with a batch of 2 sees."""
    return draw(n * world_size(), *arguments, **options)[rank() * n:(rank() + 1) * n]
