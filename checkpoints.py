"""Checkpoints: reading, writing, and the training of a stage that continues from them."""
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import torch
import torch.nn as nn
from torch.optim import Optimizer

from files import atomic, write_csv
from utils import InputError


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's content, on the CPU. Raises InputError if it is missing, damaged, or holds code instead of weights."""
    if not path.is_file():
        raise InputError(f"{path} is not there; run the stage that writes it first")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be used as a checkpoint; only plain weights are read, never code: {reason}") from error
    if not isinstance(saved, dict) or not {"settings", "state", "facts", "epoch"} <= saved.keys():
        raise InputError(f"{path} is no checkpoint of this project; one of the published code is loaded by model.load_published")
    return saved


def selection_score(psnr: float, ssim: float) -> float:
    """What picks the best checkpoint: mean PSNR in dB + 10 x mean SSIM, both on the whole box (paper)."""
    return psnr + 10 * ssim


def restore(part: nn.Module | Optimizer, state: dict) -> None:
    """Load a saved state in place; an optimizer's moments take the memory layout of its weights, which fused updates rely on."""
    part.load_state_dict(state)
    if isinstance(part, Optimizer):
        for weight, moments in part.state.items():
            for name, value in moments.items():
                if value.shape == weight.shape:
                    moments[name] = torch.empty_like(weight).copy_(value)


class StageRun:
    """The training of one stage: its checkpoints, its history, its CSV rows; continues where an earlier run stopped.

    parts: name -> module or optimizer, restored and saved. settings: what a checkpoint is bound to.
    .facts: plain values (numbers, strings, tensors) that are stored with the weights; empty before the first checkpoint.
    Files in `folder`: <file>.pth.tar is the best epoch's checkpoint, <file>_last.pth.tar the last epoch's.
    Raises InputError if the saved settings differ.
    """

    def __init__(self, folder: Path, stage: str, file: str, parts: dict, settings: dict):
        self.folder, self.stage, self.parts, self.settings, self.facts = folder, stage, parts, settings, {}
        self.best_path, self.last_path = folder / f"{file}.pth.tar", folder / f"{file}_last.pth.tar"
        self.epoch, self.step, self.losses, self.validations = 0, 0, [], []
        if self.last_path.exists():
            self._resume()

    def _resume(self) -> None:
        saved = load_checkpoint(self.last_path)
        check_settings(self.last_path, saved, self.settings)
        for name, part in self.parts.items():
            restore(part, saved["state"][name])
        self.epoch, self.step, self.facts = saved["epoch"], saved["step"], saved["facts"]
        self.losses, self.validations = saved["losses"], saved["validations"]
        self._publish()                                    # a kill may have come between the checkpoint and its CSV rows

    def epochs_left(self, epochs: int) -> range:
        """The epochs, counted from 1, that are still to be trained."""
        return range(self.epoch + 1, epochs + 1)

    def finish_epoch(self, epoch: int, losses: dict[str, float], scores: pd.DataFrame | None) -> None:
        """Record the epoch's mean losses and, if it was validated, its scores; save; publish the best checkpoint."""
        self.epoch = epoch
        self.losses.append({"stage": self.stage, "epoch": epoch, **losses})
        if scores is not None:
            psnr, ssim = float(scores["PSNR"].mean()), float(scores["SSIM"].mean())
            self.validations.append({"stage": self.stage, "epoch": epoch, "PSNR": psnr, "SSIM": ssim,
                                     "score": selection_score(psnr, ssim)})
        checkpoint = {"stage": self.stage, "epoch": epoch, "step": self.step, "settings": self.settings,
                      "facts": self.facts, "losses": self.losses, "validations": self.validations,
                      "state": {name: part.state_dict() for name, part in self.parts.items()}}
        with atomic(self.last_path) as partial:
            torch.save(checkpoint, partial)
        self._publish()

    def _publish(self) -> None:
        best = max(self.validations, key=lambda row: row["score"], default=None)
        if best and best["epoch"] == self.epoch:
            with atomic(self.best_path) as partial:        # a second name for the same file: no second copy of gigabytes
                try:
                    os.link(self.last_path, partial)
                except OSError:                            # a file system without hard links
                    shutil.copyfile(self.last_path, partial)
        write_stage_rows(self.folder / "loss_curve.csv", self.stage, self.losses)
        write_stage_rows(self.folder / "validation.csv", self.stage,
                         [{**row, "best": row is best} for row in self.validations])


def check_settings(path: Path, saved: dict, settings: dict) -> None:
    """Raise InputError with a table `setting: saved -> now` if a checkpoint is bound to others than these settings."""
    differences = [f"{name}: {json.dumps(saved['settings'].get(name))} -> {json.dumps(value)}"
                   for name, value in settings.items() if saved["settings"].get(name) != value]
    if differences:
        raise InputError(f"{path} was trained with other settings (saved -> now); give the saved ones, or another --exp:\n  "
                         + "\n  ".join(differences))


def write_stage_rows(path: Path, stage: str, rows: list[dict]) -> None:
    """Put the rows of one stage into a CSV that holds several stages, in place of those that it has of this stage."""
    if not rows:                                           # not validated yet
        return
    new = pd.DataFrame(rows)
    if path.exists():
        old = pd.read_csv(path)
        others = old[old["stage"] != stage]
        new = pd.concat([others, new]) if len(others) else new
    write_csv(path, new.sort_values("stage", kind="stable"))
