"""Scores of a list of subjects: one row a subject, and their summary."""
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from evaluation.spectrum import SPECTRAL
from runtime.logs import progress_bar
from runtime.ranks import gather_batches, is_shared, stop_together
from runtime.signals import stop_if_requested, stop_requested
from utils import METRICS, NotFiniteError


class Prediction(NamedTuple):
    """Predicted PETs [B, 1, D, H, W] of a batch, and further columns of their rows, name -> [B]."""
    x_hat: Tensor
    columns: dict[str, list] = {}


Predict = Callable[[dict], Tensor | Prediction]            # batch -> x_hat, or x_hat and further columns
Measure = Callable[[Tensor, dict], dict]      # x_hat [D, H, W] and the volumes of a scan -> values of its row
SHOWN_SUBJECTS = 2                           # of each label, first in the test list, in pictures and viewer


@torch.no_grad()
def evaluate(predict: Predict, loader: Iterable[dict], measure: Measure, title: str) -> pd.DataFrame:
    """One row a subject: ID, label and what is measured, in the loader's order, of all ranks if it is shared
    out among them.

    loader: gives batches {id, label, and volumes by name, each [B, 1, D, H, W]}. measure runs in threads
    beside the prediction of what follows. Raises NotFiniteError that names the subjects whose PET is not
    finite.
    """
    with stop_together(is_shared(loader)):
        batches = gather_batches(_measure_batches(predict, loader, measure, title), loader)
    return pd.DataFrame([row for rows in batches for row in rows])


def _measure_batches(predict: Predict, loader: Iterable[dict], measure: Measure,
                     title: str) -> list[list[dict]]:
    """The rows of each batch of this rank, of fewer of them if a signal came; arguments as in evaluate."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    batches, waiting, workers = [], deque(), min(8, cores)
    total = sum(map(len, loader.batch_sampler)) if isinstance(loader, DataLoader) else None
    with ThreadPoolExecutor(workers) as pool, progress_bar(desc=title, unit="scan", total=total) as bar:
        for batch in loader:
            stop_if_requested()
            if is_shared(loader) and stop_requested():     # the others learn of it when the rows are gathered
                break
            prediction = predict(batch)
            if not isinstance(prediction, Prediction):
                prediction = Prediction(prediction)
            _refuse_not_finite(prediction.x_hat, batch["id"], title)
            batches.append([])
            for i, subject in enumerate(batch["id"]):
                volumes = {name: batch[name][i, 0] for name in ("mri", "pet") if name in batch}
                row = {"ID": subject, "label": int(batch["label"][i])}
                row |= {name: values[i] for name, values in prediction.columns.items()}
                batches[-1].append(row)
                waiting.append((row, pool.submit(measure, prediction.x_hat[i, 0], volumes)))
            on_cpu = prediction.x_hat.device.type == "cpu"
            while len(waiting) > (2 * workers if on_cpu else 0):  # no more volumes than keep the threads busy
                row, values = waiting.popleft()
                row |= values.result()
            bar.update(len(batch["id"]))
        for row, values in waiting:
            row |= values.result()
    return batches


def _refuse_not_finite(x_hat: Tensor, subjects: list[str], title: str) -> None:
    bad = [name for name, volume in zip(subjects, x_hat, strict=True) if not torch.isfinite(volume).all()]
    if bad:
        raise NotFiniteError(f"{title}: the volume of {', '.join(bad)} is not finite")


def best_median_worst(errors: Sequence[float]) -> list[int]:
    """Places in a list of errors of the two best, the four around the median and the two worst, from best to
    worst; of all, where there are eight or fewer. Equal errors keep the order of the list."""
    order = sorted(range(len(errors)), key=lambda place: errors[place])
    if len(order) <= 8:
        return order
    middle = (len(order) - 4) // 2
    return order[:2] + order[middle:middle + 4] + order[-2:]


def mean_over_scans(value_of: Callable[[dict], float], loader: DataLoader) -> float:
    """Mean over the scans of the loader, of all ranks, of what is the mean of each of its batches."""
    totals = [value_of(batch) * len(batch["id"]) for batch in loader]
    return sum(gather_batches(totals, loader)) / len(loader.dataset)


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (n - 1) and n over subjects, a row a method and metric, in the order of the
    scores. Those that an earlier version did not measure are left out."""
    metrics = [*METRICS, *(name for name in SPECTRAL if name in scores)]
    table = scores.groupby("method", sort=False)[metrics].agg(["mean", "std", "count"])
    table = table.stack(level=0, future_stack=True)
    return table.rename(columns={"count": "n"}).rename_axis(["method", "metric"]).reset_index()
