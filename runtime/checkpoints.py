"""Checkpoints: verified when they are read, whole when they are written, and the training of a stage that continues from them."""
import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
import torch.nn as nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from runtime.failures import is_out_of_memory
from runtime.files import atomic, file_status, read_own_table, write_csv
from runtime.logs import LOG
from runtime.ranks import check_equal, is_rank_0, ranks, wait_for_save
from runtime.signals import Stopped, acknowledge_stop, defer_signals
from utils import InputError, NotFiniteError, weights_key

CONTENT = {"stage": str, "epoch": int, "step": int, "settings": dict, "free_settings": dict, "metadata": dict, "losses": list,
           "validations": list, "progress": dict, "state": dict}


# ---------------------------------------------------------------- reading

def load_checkpoint(path: Path) -> dict:
    """A checkpoint's content, on the CPU. Raises InputError if it is missing, damaged, or holds code instead of weights.

    torch does not look at the checksums of the archive that a checkpoint is: one flipped bit would be another weight. They are verified.
    """
    if not path.exists():
        raise InputError(f"{path} is not there; run the stage that writes it first")
    file_status(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its parts are compressed, which torch.save never does")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be used as a checkpoint, it is damaged or none; only plain weights are read, never code: "
                         f"{reason}") from error
    if not isinstance(saved, dict) or not _is_checkpoint(saved):
        raise InputError(f"{path} is no checkpoint of this project; one of the published code is loaded by model.load_published")
    return saved


def _is_checkpoint(saved: dict) -> bool:
    """Whether the content has the form in which StageRun saves it."""
    if any(not isinstance(saved.get(name), kind) for name, kind in CONTENT.items()):
        return False
    rows, progress = [*saved["losses"], *saved["validations"]], saved["progress"]
    return (min(saved["epoch"], saved["step"]) >= 0 and progress.keys() == vars(Progress()).keys()
            and isinstance(progress["losses"], list) and isinstance(progress["items"], int) and isinstance(progress["random"], dict)
            and all(isinstance(row, dict) for row in rows + progress["losses"])
            and all(isinstance(row.get("epoch"), int) for row in rows) and all("score" in row for row in saved["validations"])
            and all(torch.is_tensor(value) and value.dtype == torch.uint8 for value in progress["random"].values()))


def restore(part: nn.Module | Optimizer, state: dict, path: Path) -> None:
    """Load a saved state in place, all of it and nothing else; an optimizer's moments take the memory layout of its weights, which
    fused updates rely on. path: for messages. Raises InputError if the state is another network's or optimizer's."""
    try:
        part.load_state_dict(state)
        if isinstance(part, Optimizer):
            for weight, moments in part.state.items():
                for name, value in moments.items():
                    if value.dim() and value.shape != weight.shape:                          # all but the count of steps
                        raise ValueError(f"{name} has the shape {tuple(value.shape)}, its weight {tuple(weight.shape)}")
                    if value.dim():
                        moments[name] = torch.empty_like(weight).copy_(value)
        if not is_finite(part.state_dict()):
            raise ValueError("it holds numbers that are not finite")
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} does not fit the {type(part).__name__} of these settings: {reason}") from error


def check_settings(path: Path, saved: dict, settings: dict) -> None:
    """Raise InputError with a table `setting: saved -> now` if a checkpoint is bound to others than these settings."""
    differences = _differences(saved["settings"], settings)
    if differences:
        raise InputError(f"{path} was trained with other settings (saved -> now); give the saved ones, or another --exp:\n  "
                         + "\n  ".join(differences))


def _differences(saved: dict, now: dict) -> list[str]:
    return [f"{name}: {json.dumps(saved.get(name))} -> {json.dumps(value)}" for name, value in now.items() if saved.get(name) != value]


# ---------------------------------------------------------------- how far an epoch has come

class Progress:
    """The steps that the present epoch has taken: their losses, how many items of its order they have seen, on all ranks, and the state
    of torch's random generators behind the last, which is the same on all ranks."""

    def __init__(self, losses: list[dict] | None = None, items: int = 0, random: dict | None = None):
        self.losses, self.items, self.random = losses or [], items, random or {}

    def add(self, losses: dict[str, float], items: int) -> None:
        """Note a step that was taken, on so many items."""
        self.losses.append(losses)
        self.items += items
        self.random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})

    def restore_random(self) -> None:
        """Bring the generators to where they were; those of a device that is not here have no part in what follows."""
        if "cpu" in self.random:
            torch.set_rng_state(self.random["cpu"])
        if "cuda" in self.random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.random["cuda"])


# ---------------------------------------------------------------- the training of a stage

def selection_score(psnr: float, ssim: float) -> float:
    """What picks the best checkpoint: mean PSNR in dB + 10 x mean SSIM, both on the whole box (paper)."""
    return psnr + 10 * ssim


class StageRun:
    """The training of one stage: its checkpoints, its history, its CSV rows; continues where an earlier run stopped.

    parts: name -> module or optimizer, restored and saved. settings: what a checkpoint is bound to; free_settings: what may
    change, which is said in .remarks as `setting: saved -> now`.
    .metadata: plain values (numbers, strings, tensors) that are stored with the weights; empty before the first checkpoint.
    .progress: the steps of the epoch behind .epoch.
    Files in `folder`: <file>.pth.tar is the best epoch's checkpoint, <file>_last.pth.tar the last one's. Of several ranks, which all hold
    the same, rank 0 writes them.
    Raises InputError if the saved settings differ, or if only the best checkpoint is left, from which no run can continue.
    """

    def __init__(self, folder: Path, stage: str, file: str, parts: dict, settings: dict, free_settings: dict):
        self.folder, self.stage, self.parts, self.settings, self.free_settings = folder, stage, parts, settings, free_settings
        self.best_path, self.last_path = folder / f"{file}.pth.tar", folder / f"{file}_last.pth.tar"
        self.epoch, self.step, self.losses, self.validations = 0, 0, [], []
        self.metadata, self.progress, self.remarks, self.saved_steps = {}, Progress(), [], 0
        if self.last_path.exists():
            self._resume()
        elif self.best_path.exists():
            raise InputError(f"{self.best_path} is there, but not {self.last_path.name}, from which its training would continue; bring it "
                             "back, or give another --exp, or remove the first to start anew")

    def _resume(self) -> None:
        saved = load_checkpoint(self.last_path)
        check_settings(self.last_path, saved, self.settings)
        for name, part in self.parts.items():
            restore(part, saved["state"].get(name), self.last_path)
        self.epoch, self.step, self.metadata = saved["epoch"], saved["step"], saved["metadata"]
        self.losses, self.validations, self.progress = saved["losses"], saved["validations"], Progress(**saved["progress"])
        self.saved_steps = len(self.progress.losses)
        self.remarks = _differences(saved["free_settings"], self.free_settings)
        self._publish()                                    # a kill may have come between the checkpoint and its CSV rows

    def epochs_left(self, epochs: int) -> range:
        """The epochs, counted from 1, that are still to be trained."""
        return range(self.epoch + 1, epochs + 1)

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """A block of training after which, if a signal ends it, the steps that it has taken are saved."""
        try:
            yield
        except Stopped:
            acknowledge_stop()
            if len(self.progress.losses) > self.saved_steps:
                self._save()
            wait_for_save()
            raise

    def finish_epoch(self, epoch: int, losses: dict[str, float], scores: pd.DataFrame | None) -> None:
        """Record the epoch's mean losses and, if it was validated, its scores; save; publish the best checkpoint."""
        with defer_signals():
            self._compare_ranks(epoch)
            self.epoch, self.progress, self.saved_steps = epoch, Progress(), 0
            self.losses.append({"stage": self.stage, "epoch": epoch, **losses})
            if scores is not None:
                psnr, ssim = float(scores["PSNR"].mean()), float(scores["SSIM"].mean())
                self.validations.append({"stage": self.stage, "epoch": epoch, "PSNR": psnr, "SSIM": ssim,
                                         "score": selection_score(psnr, ssim)})
            self._save()
            self._publish()

    def _compare_ranks(self, epoch: int) -> None:
        """Raise RuntimeError if the ranks do not hold the same networks; without an error they would train each its own."""
        if ranks() > 1:
            networks = [part for part in self.parts.values() if isinstance(part, nn.Module)]
            key = weights_key(*networks)
            check_equal(key, f"the weights of {self.stage} epoch {epoch}")
            LOG.debug("%s epoch %s: weights %s on all %s ranks", self.stage, epoch, key, ranks())

    def _save(self) -> None:
        if not is_rank_0():
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        for name, values in state.items():
            if not is_finite(values):
                raise NotFiniteError(f"{self.stage} epoch {self.epoch}: the weights of {name} are not finite and were not saved; "
                                     "the checkpoint before is kept")
        content = {"stage": self.stage, "epoch": self.epoch, "step": self.step, "settings": self.settings,
                   "free_settings": self.free_settings, "metadata": self.metadata, "losses": self.losses, "validations": self.validations,
                   "progress": vars(self.progress), "state": state}
        with atomic(self.last_path, tensor_bytes(state)) as partial, partial.open("wb") as file:
            torch.save(content, file)

    def _publish(self) -> None:
        if not is_rank_0():
            return
        best = max(self.validations, key=lambda row: row["score"], default=None)
        if best and best["epoch"] == self.epoch and not self.progress.losses:
            with atomic(self.best_path, self.last_path.stat().st_size) as partial:
                try:
                    os.link(self.last_path, partial)       # a second name for the same file: no second copy of gigabytes
                except OSError:                            # a file system without hard links
                    shutil.copyfile(self.last_path, partial)
        write_stage_rows(self.folder / "loss_curve.csv", self.stage, self.losses)
        write_stage_rows(self.folder / "validation.csv", self.stage,
                         [{**row, "best": row is best} for row in self.validations])


def is_finite(state) -> bool:
    """Whether all tensors in nested lists and dictionaries hold finite numbers."""
    return all(bool(torch.isfinite(value).all()) for value in tree_leaves(state) if torch.is_tensor(value))


def tensor_bytes(state) -> int:
    """Bytes of all tensors in nested lists and dictionaries."""
    return sum(value.nbytes for value in tree_leaves(state) if torch.is_tensor(value))


def read_history(path: Path) -> pd.DataFrame:
    """loss_curve.csv or validation.csv. Raises InputError if it is not there or damaged."""
    columns = ["stage", "epoch", "best"] if path.name == "validation.csv" else ["stage", "epoch"]
    return read_own_table(path, columns, "remove it if it is damaged; --stages aae ldm writes it again and trains nothing anew")


def write_stage_rows(path: Path, stage: str, rows: list[dict]) -> None:
    """Put the rows of one stage into a CSV that holds several stages, in place of those that it has of this stage."""
    if not rows:                                           # not validated yet
        return
    new = pd.DataFrame(rows)
    if path.exists():
        old = read_history(path)
        others = old[old["stage"] != stage]
        new = pd.concat([others, new]) if len(others) else new
    write_csv(path, new.sort_values("stage", kind="stable"))
