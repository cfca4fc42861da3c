"""Image scores: PSNR, SSIM and MAE as scikit-image defines them, on CPU and GPU, and their tables over subjects."""
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.utils.data import DataLoader

from runtime.logs import progress_bar
from runtime.ranks import gather_batches, is_shared, stop_together
from runtime.signals import stop_requested, stop_if_requested
from utils import NotFiniteError

METRICS = ("PSNR", "SSIM", "MAE", "PSNR_brain", "SSIM_brain", "MAE_brain")
WINDOW = 7                                                 # voxels of SSIM's uniform window


def score_volume(x_hat: Tensor, x: Tensor, brain: np.ndarray) -> dict[str, float]:
    """PSNR (dB), SSIM and MAE of one volume on the whole box and inside the brain; data range 1, SSIM window 7, uniform.

    x_hat, x: [D, H, W] float32 in [0, 1]; brain: [D, H, W] bool. Inside the brain: errors over its voxels only, and the mean of
    the SSIM map over them. Computed where x_hat is: by scikit-image on a CPU, by torch on a GPU.
    """
    if x_hat.device.type != "cpu":
        return score_on_device(x_hat, x.to(x_hat.device), brain)
    x_hat, x = x_hat.numpy(), x.numpy()
    ssim, ssim_map = structural_similarity(x, x_hat, win_size=WINDOW, data_range=1.0, full=True)
    inside, inside_hat = x[brain], x_hat[brain]
    return {"PSNR": peak_signal_noise_ratio(x, x_hat, data_range=1.0), "SSIM": float(ssim),
            "MAE": float(np.abs(x - x_hat).mean()),
            "PSNR_brain": peak_signal_noise_ratio(inside, inside_hat, data_range=1.0),
            "SSIM_brain": float(ssim_map[brain].mean()), "MAE_brain": float(np.abs(inside - inside_hat).mean())}


def score_on_device(x_hat: Tensor, x: Tensor, brain: np.ndarray) -> dict[str, float]:
    """score_volume in torch, in float64, on the device of both volumes."""
    x_hat, x, brain = x_hat.double(), x.double(), torch.from_numpy(brain).to(x.device)
    error, ssim_map, rim = (x - x_hat).abs(), _ssim_map(x, x_hat), WINDOW // 2

    def psnr(errors: Tensor) -> Tensor:
        return -10 * errors.square().mean().log10()
    scores = torch.stack([psnr(error), ssim_map[rim:-rim, rim:-rim, rim:-rim].mean(), error.mean(),
                          psnr(error[brain]), ssim_map[brain].mean(), error[brain].mean()])
    return dict(zip(METRICS, scores.tolist(), strict=True))


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of every voxel of [D, H, W] (Wang et al. 2004), the volumes mirrored at their faces, as scikit-image's full map."""
    fields = torch.stack([x, y, x * x, y * y, x * y])[:, None]                               # [5, 1, D, H, W]
    for axis in range(3):                                  # a uniform window is separable
        n, rim = x.shape[axis], WINDOW // 2
        mirrored = [*reversed(range(rim)), *range(n), *reversed(range(n - rim, n))]
        kernel = tuple(WINDOW if i == axis else 1 for i in range(3))
        fields = F.avg_pool3d(fields.index_select(axis + 2, torch.tensor(mirrored, device=x.device)), kernel, stride=1)
    mean_x, mean_y, xx, yy, xy = fields[:, 0]
    unbiased = WINDOW ** 3 / (WINDOW ** 3 - 1)
    variances = unbiased * (xx - mean_x ** 2 + yy - mean_y ** 2)
    covariance = unbiased * (xy - mean_x * mean_y)
    c_1, c_2 = 0.01 ** 2, 0.03 ** 2
    return (2 * mean_x * mean_y + c_1) * (2 * covariance + c_2) / ((mean_x ** 2 + mean_y ** 2 + c_1) * (variances + c_2))


@torch.no_grad()
def evaluate(predict: Callable[[dict], Tensor], loader: Iterable[dict], measure: Callable[[Tensor, dict], dict],
             title: str) -> pd.DataFrame:
    """One row a subject: ID, label and what is measured, in the loader's order, of all ranks if it is divided among them.

    loader gives batches {id, label, and volumes by name, each [B, 1, D, H, W]}; predict turns one into x_hat of that shape, and may leave
    further values of the rows in its `noted`, name -> [B]; measure(x_hat, volumes), each volume [D, H, W], gives the values of a row. It
    runs in threads beside the prediction of what follows.
    """
    with stop_together(is_shared(loader)):
        batches = gather_batches(_measure_batches(predict, loader, measure, title), loader)
    return pd.DataFrame([row for rows in batches for row in rows])


def _measure_batches(predict: Callable[[dict], Tensor], loader: Iterable[dict], measure: Callable[[Tensor, dict], dict],
                     title: str) -> list[list[dict]]:
    """The rows of each batch of this rank, of fewer of them if a signal came; arguments as in evaluate."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    batches, waiting, workers = [], deque(), min(8, cores)
    total = sum(map(len, loader.batch_sampler)) if isinstance(loader, DataLoader) else None
    with ThreadPoolExecutor(workers) as pool, progress_bar(desc=title, unit="scan", total=total) as bar:
        for batch in loader:
            stop_if_requested()
            if is_shared(loader) and stop_requested():             # the others learn of it when the rows are gathered
                break
            x_hat = predict(batch)
            if bad := [name for name, volume in zip(batch["id"], x_hat, strict=True) if not torch.isfinite(volume).all()]:
                raise NotFiniteError(f"{title}: the volume of {', '.join(bad)} is not finite")
            batches.append([])
            for i, subject in enumerate(batch["id"]):
                volumes = {name: batch[name][i, 0] for name in ("mri", "pet") if name in batch}
                row = {"ID": subject, "label": int(batch["label"][i]), **{name: of[i] for name, of in batch.get("noted", {}).items()}}
                batches[-1].append(row)
                waiting.append((row, pool.submit(measure, x_hat[i, 0], volumes)))
            while len(waiting) > (2 * workers if x_hat.device.type == "cpu" else 0):         # no more volumes than keep the threads busy
                row, values = waiting.popleft()
                row |= values.result()
            bar.update(len(batch["id"]))
        for row, values in waiting:
            row |= values.result()
    return batches


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (n - 1) and n over subjects, a row a method and metric, in the order of the scores."""
    table = scores.groupby("method", sort=False)[list(METRICS)].agg(["mean", "std", "count"]).stack(level=0, future_stack=True)
    return table.rename(columns={"count": "n"}).rename_axis(["method", "metric"]).reset_index()


def describe(scores: pd.DataFrame) -> str:
    """Mean scores in a line."""
    return f"PSNR {scores['PSNR'].mean():.2f} dB, SSIM {scores['SSIM'].mean():.4f}, in the brain {scores['PSNR_brain'].mean():.2f} dB"
