"""The survey: what is known of the volumes of training and validation list, from one pass over them, kept
beside the latents."""
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dataset import Scan
from evaluation.measurement import Measurement
from labels.linear import pool_volume, pool_width
from labels.ridge import INPUT_MM
from runtime.files import atomic, read_own_arrays
from runtime.logs import progress_bar
from utils import InputError, derived_seed

FORMAT = 1                                             # raise it when what a survey holds changes its meaning


@dataclass(frozen=True)
class Survey:
    """What training and scores need to know of the real volumes.

    mean_pet: [1, 1, D, H, W], mean PET of the training list. pet_std: standard deviation of its PETs over all
    voxels of all of them. mri: [n, 1, d, h, w] float32, MRIs of the training list pooled to about 4 mm, for
    the predictor of the label. table: a row a scan, of the training list and then of the validation list: ID,
    and what Measurement.status_inputs gives of the real PET (its MRI and PET are pooled to about 8 mm).
    """
    mean_pet: Tensor
    pet_std: float
    mri: Tensor
    table: pd.DataFrame

    def of(self, scans: list[Scan]) -> pd.DataFrame:
        """The rows of these scans, with their labels."""
        rows = self.table.set_index("ID").loc[[scan.id for scan in scans]].reset_index()
        rows.insert(1, "label", [scan.label for scan in scans])
        return rows


def make_survey(training: Iterable[dict], validation: Iterable[dict], measurement: Measurement) -> Survey:
    """Read the batches {id, mri, pet} of both lists once."""
    total, count, summed, squares, pooled, rows = 0.0, 0, 0.0, 0.0, [], []
    pool = pool_width(measurement.voxel_mm, INPUT_MM)
    for batch in progress_bar(training, desc="survey of the training list", unit="batch"):
        pet = batch["pet"].double()
        total = total + pet.sum(dim=0, keepdim=True)
        count, summed, squares = (count + pet.numel(), summed + pet.sum().item(),
                                  squares + (pet**2).sum().item())
        pooled.append(pool_volume(batch["mri"], pool))
        rows += _rows(batch, measurement)
    n = len(rows)
    for batch in progress_bar(validation, desc="survey of the validation list", unit="batch"):
        rows += _rows(batch, measurement)
    pet_std = max(squares / count - (summed / count) ** 2, 0.0) ** 0.5
    return Survey((total / n).float(), pet_std, torch.cat(pooled), pd.DataFrame(rows))


def _rows(batch: dict, measurement: Measurement) -> list[dict]:
    rows = []
    for name, mri, pet in zip(batch["id"], batch["mri"], batch["pet"], strict=True):
        rows.append({"ID": name, **measurement.status_inputs(pet[0], {"mri": mri[0]})})
    return rows


def survey_key(*bound_to) -> str:
    """16 hexadecimal digits that identify what a survey was made from: lists, crop and masks."""
    return f"{derived_seed(FORMAT, *bound_to):016x}"


def save_survey(path: Path, survey: Survey) -> None:
    """Write a survey as plain arrays."""
    table = survey.table
    names = table.columns.drop(["ID", "mri", "pet"])
    columns = {f"column {name}": table[name].to_numpy(np.float64) for name in names}
    volumes = {f"pooled {name}": np.stack(table[name].to_list()) for name in ("mri", "pet")}
    with atomic(path) as partial, partial.open("wb") as file:
        np.savez(file, mean_pet=survey.mean_pet.numpy(), pet_std=survey.pet_std, fine_mri=survey.mri.numpy(),
                 ID=table["ID"].to_numpy(str), names=names.to_numpy(str), **volumes, **columns)


def load_survey(path: Path) -> Survey | None:
    """A survey that was saved, or None if there is none that can be read to its end."""
    try:
        arrays = read_own_arrays(path, "it is made again")
        table = pd.DataFrame({"ID": arrays["ID"].tolist()})
        for name in ("mri", "pet"):
            table[name] = list(arrays[f"pooled {name}"])
        for name in arrays["names"].tolist():              # all of them: a damaged archive may hide some
            table[name] = arrays[f"column {name}"]
        return Survey(torch.from_numpy(arrays["mean_pet"]), float(arrays["pet_std"]),
                      torch.from_numpy(arrays["fine_mri"]), table)
    except (InputError, ValueError, KeyError):
        return None
