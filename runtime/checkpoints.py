"""Checkpoints: read with every check, written whole or not at all, and the training of a stage that continues
from them."""
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
from runtime.ranks import check_equal, is_rank_0, wait_for_save, world_size
from runtime.settings import ADDED, why_refused, with_present_names
from runtime.signals import Stopped, acknowledge_stop, defer_signals
from utils import InputError, NotFiniteError, weights_key

FORMAT = 2  # of a checkpoint's content and meaning; raised when either changes
CONTENT = {"format": int, "stage": str, "epoch": int, "step": int, "settings": dict, "free_settings": dict,
           "metadata": dict, "losses": list, "validations": list, "progress": dict, "state": dict}


# ---------------------------------------------------------------- reading

def load_checkpoint(path: Path) -> dict:
    """Content of a checkpoint, on the CPU.

    Raises InputError if the file is missing or damaged, holds code instead of weights, was written in another
    format, or made with a setting that is gone. torch does not verify the checksums of the zip archive that a
    checkpoint is, and would take a flipped bit for another weight: they are verified here.
    """
    if not path.exists():
        raise InputError(f"{path} is not there; run the stage that writes it first")
    file_status(path)
    try:
        _verify_archive(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                             # torch raises whatever the damage leads to
        is_of_the_disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if is_out_of_memory(error) or is_of_the_disk:
            raise
        lines = str(error).strip().splitlines()
        reason = lines[0][:300] if lines else type(error).__name__
        raise InputError(f"{path} cannot be used as a checkpoint: it is damaged, or not a checkpoint; only "
                         f"plain weights are read, never code: {reason}") from error
    _check_format(path, saved)
    if not _is_checkpoint(saved):
        raise InputError(f"{path} is not a checkpoint of this project; one of the published code is loaded "
                         "by model.load_published")
    if why := why_refused(saved["settings"]):
        raise InputError(f"{path} {why}")
    saved["settings"] = with_present_names(saved["settings"])
    return saved


def _verify_archive(path: Path) -> None:
    """Raise ValueError if a part of the zip archive is compressed, which may fill the memory, or fails its
    checksum."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch.save never does")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")


def _check_format(path: Path, saved: object) -> None:
    """Raise InputError for a checkpoint of this project that has another format number, or none."""
    if not isinstance(saved, dict) or not {"stage", "settings", "state"} <= saved.keys():
        return
    found = saved.get("format")
    if type(found) is int and found == FORMAT:
        return
    number = f"format {found}" if type(found) is int else "no format number"
    raise InputError(f"{path} was written by another version of this project ({number}, expected format "
                     f"{FORMAT}); train under another --exp, or use the version that wrote it")


def _is_checkpoint(saved: object) -> bool:
    """Whether the content has the form in which StageRun saves it."""
    if not isinstance(saved, dict):
        return False
    if not all(isinstance(saved.get(name), kind) for name, kind in CONTENT.items()):
        return False
    rows = saved["losses"] + saved["validations"]
    if not all(isinstance(row, dict) and isinstance(row.get("epoch"), int) for row in rows):
        return False
    if not all("score" in row for row in saved["validations"]):
        return False
    return min(saved["epoch"], saved["step"]) >= 0 and _is_progress(saved["progress"])


def _is_progress(progress: dict) -> bool:
    """Whether these are the attributes of a Progress."""
    if progress.keys() != vars(Progress()).keys():
        return False
    losses, items, random = progress["losses"], progress["items"], progress["random"]
    if not (isinstance(losses, list) and isinstance(items, int) and isinstance(random, dict)):
        return False
    if not all(isinstance(row, dict) for row in losses):
        return False
    return all(torch.is_tensor(state) and state.dtype == torch.uint8 for state in random.values())


def restore(part: nn.Module | Optimizer, state: dict, path: Path) -> None:
    """Load a saved state in place. path: for messages. Raises InputError if it does not fit, or is not
    finite.

    The moments of an optimizer get the memory layout of its weights, because fused updates rely on it.
    """
    try:
        part.load_state_dict(state)
        if isinstance(part, Optimizer):
            _match_layout(part)
        if not is_finite(part.state_dict()):
            raise ValueError("it holds numbers that are not finite")
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        kind = type(part).__name__
        raise InputError(f"{path} does not fit the {kind} of these settings: {reason}") from error


def _match_layout(optimizer: Optimizer) -> None:
    """Copy the moments into tensors with the memory layout of their weights. Raises ValueError if a shape is
    another."""
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if not value.dim():                            # the number of steps
                continue
            if value.shape != weight.shape:
                shapes = tuple(value.shape), tuple(weight.shape)
                raise ValueError(f"{name} has the shape {shapes[0]}, its weight {shapes[1]}")
            moments[name] = torch.empty_like(weight).copy_(value)


def check_settings(path: Path, saved: dict, settings: dict) -> None:
    """Raise InputError with lines `setting: saved -> now` if a checkpoint was trained with other settings
    than these."""
    differences = _differences(saved["settings"], settings)
    if differences:
        raise InputError(f"{path} was trained with other settings (saved -> now); give the saved ones, or "
                         "another --exp:\n  " + "\n  ".join(differences))


def _differences(saved: dict, now: dict) -> list[str]:
    """Lines `setting: saved -> now` for the present settings that differ from the saved ones."""
    saved = ADDED | saved
    changed = [name for name, value in now.items() if saved.get(name) != value]
    return [f"{name}: {json.dumps(saved.get(name))} -> {json.dumps(now[name])}" for name in changed]


# ---------------------------------------------------------------- progress within an epoch

class Progress:
    """The steps taken in the present epoch: their losses, the number of items of the epoch's order that all
    ranks have seen, and the state of torch's random generators after the last step, which is the same on all
    ranks."""

    def __init__(self, losses: list[dict] | None = None, items: int = 0, random: dict | None = None):
        self.losses, self.items, self.random = losses or [], items, random or {}

    def add(self, losses: dict[str, float], items: int) -> None:
        """Note a step that was taken, on so many items."""
        self.losses.append(losses)
        self.items += items
        self.random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            self.random["cuda"] = torch.cuda.get_rng_state()

    def restore_random(self) -> None:
        """Set the random generators to the saved state; that of a GPU is ignored where there is none."""
        if "cpu" in self.random:
            torch.set_rng_state(self.random["cpu"])
        if "cuda" in self.random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.random["cuda"])


# ---------------------------------------------------------------- the training of a stage

def selection_score(psnr: float, ssim: float) -> float:
    """Score by which the best checkpoint is chosen: mean PSNR in dB + 10 x mean SSIM, both on the whole box
    (paper)."""
    return psnr + 10 * ssim


class StageRun:
    """The training of one stage: its checkpoints, its history and its CSV rows. It continues where an earlier
    run stopped.

    parts: name -> module or optimizer, saved and restored. settings: those that a checkpoint is bound to.
    free_settings: those that may change; .remarks lists the changed ones as `setting: saved -> now`.
    .metadata: plain values (numbers, strings, tensors) that are saved with the weights; empty before the
    first checkpoint.
    .epoch: the epochs that are finished. .progress: the steps taken after them.
    Files in `folder`: <file>.pth.tar is the best epoch's checkpoint, <file>_last.pth.tar the last one's. All
    ranks hold the same weights, and rank 0 writes them.
    Raises InputError if the saved settings differ, or if only the best checkpoint is left, from which no run
    can continue.
    """

    def __init__(self, folder: Path, stage: str, file: str, parts: dict, settings: dict, free_settings: dict):
        self.folder, self.stage, self.parts = folder, stage, parts
        self.settings, self.free_settings = settings, free_settings
        self.best_path, self.last_path = folder / f"{file}.pth.tar", folder / f"{file}_last.pth.tar"
        self.epoch, self.step, self.losses, self.validations = 0, 0, [], []
        self.metadata, self.progress, self.remarks, self.saved_steps = {}, Progress(), [], 0
        self.steps_now, self.seconds_now = 0, 0.0          # taken by this process
        self.seconds = 0.0                                 # of all steps, those of earlier processes too
        if self.last_path.exists():
            self._resume()
        elif self.best_path.exists():
            raise InputError(f"{self.best_path} is there, but not {self.last_path.name}, from which its "
                             "training would continue; bring it back, or give another --exp, or remove the "
                             "first to start again")

    def _resume(self) -> None:
        """Restore everything from the last checkpoint."""
        saved = load_checkpoint(self.last_path)
        check_settings(self.last_path, saved, self.settings)
        for name, part in self.parts.items():
            restore(part, saved["state"].get(name), self.last_path)
        self.epoch, self.step, self.metadata = saved["epoch"], saved["step"], saved["metadata"]
        self.losses, self.validations = saved["losses"], saved["validations"]
        self.seconds = saved.get("seconds", float("nan"))  # unknown of a training that began before
        self.progress = Progress(**saved["progress"])
        self.saved_steps = len(self.progress.losses)
        self.remarks = _differences(saved["free_settings"], self.free_settings)
        self._publish()  # an earlier run may have been killed before it wrote the CSV rows

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that are trained; a moving average is not."""
        modules = [part for part in self.parts.values() if isinstance(part, nn.Module)]
        return [module for module in modules if any(weight.requires_grad for weight in module.parameters())]

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of these networks."""
        return [part for part in self.parts.values() if isinstance(part, Optimizer)]

    def epochs_left(self, epochs: int) -> range:
        """The epochs, counted from 1, that are still to be trained."""
        return range(self.epoch + 1, epochs + 1)

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """A block of training whose steps are saved if a signal ends it."""
        try:
            yield
        except Stopped:
            acknowledge_stop()
            if len(self.progress.losses) > self.saved_steps:
                self._save()
            wait_for_save()
            raise

    def finish_epoch(self, epoch: int, losses: dict[str, float], scores: pd.DataFrame | None) -> None:
        """Record the epoch's mean losses and, if it was validated, its scores; save; publish the best
        checkpoint.

        scores: a row a subject, with the columns PSNR (dB) and SSIM. Raises NotFiniteError if a weight is not
        finite.
        """
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
        """Raise RuntimeError if the ranks hold different weights: without an error each would train a network
        of its own."""
        if world_size() > 1:
            networks = [part for part in self.parts.values() if isinstance(part, nn.Module)]
            key = weights_key(*networks)
            check_equal(key, f"the weights of {self.stage} epoch {epoch}")
            LOG.debug("%s epoch %s: weights %s on all %s ranks", self.stage, epoch, key, world_size())

    def _save(self) -> None:
        """Write the last checkpoint. Raises NotFiniteError if a weight is not finite; the checkpoint before
        is then kept."""
        if not is_rank_0():
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        for name, values in state.items():
            if not is_finite(values):
                raise NotFiniteError(f"{self.stage} epoch {self.epoch}: the weights of {name} are not finite "
                                     "and were not saved; the checkpoint before is kept")
        content = {"format": FORMAT, "stage": self.stage, "epoch": self.epoch, "step": self.step,
                   "settings": self.settings, "free_settings": self.free_settings, "metadata": self.metadata,
                   "losses": self.losses, "validations": self.validations, "progress": vars(self.progress),
                   "seconds": self.seconds, "state": state}
        with atomic(self.last_path, tensor_bytes(state)) as partial, partial.open("wb") as file:
            torch.save(content, file)

    def _publish(self) -> None:
        """Write the CSV rows, and the best checkpoint if the epoch that was just finished is the best."""
        if not is_rank_0():
            return
        best = max(self.validations, key=lambda row: row["score"], default=None)
        if best and best["epoch"] == self.epoch and not self.progress.losses:
            with atomic(self.best_path, self.last_path.stat().st_size) as partial:
                try:                                       # a second name instead of a second file
                    os.link(self.last_path, partial)
                except OSError:                            # a file system without hard links
                    shutil.copyfile(self.last_path, partial)
        write_stage_rows(self.folder / "loss_curve.csv", self.stage, self.losses)
        validations = [{**row, "best": row is best} for row in self.validations]
        write_stage_rows(self.folder / "validation.csv", self.stage, validations)


def is_finite(state) -> bool:
    """Whether all tensors in nested lists and dictionaries hold finite numbers."""
    return all(bool(torch.isfinite(value).all()) for value in tree_leaves(state) if torch.is_tensor(value))


def tensor_bytes(state) -> int:
    """Bytes of all tensors in nested lists and dictionaries."""
    return sum(value.nbytes for value in tree_leaves(state) if torch.is_tensor(value))


def read_history(path: Path) -> pd.DataFrame:
    """Rows of loss_curve.csv or validation.csv. Raises InputError if the file is missing or damaged."""
    columns = ["stage", "epoch", "best"] if path.name == "validation.csv" else ["stage", "epoch"]
    return read_own_table(path, columns, "remove it if it is damaged; --stages aae ldm writes it again and "
                                         "trains nothing")


def write_stage_rows(path: Path, stage: str, rows: list[dict]) -> None:
    """Replace the rows of one stage in a CSV that holds the rows of several stages."""
    if not rows:                                           # not validated yet
        return
    new = pd.DataFrame(rows)
    if path.exists():
        old = read_history(path)
        others = old[old["stage"] != stage]
        new = pd.concat([others, new]) if len(others) else new
    write_csv(path, new.sort_values("stage", kind="stable"))
