"""What both stages share: errors, device, precision, seeds, the moving average, files that appear whole, checkpoints."""
import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer


class InputError(ValueError):
    """Wrong data or settings of the user's: main prints the message without a traceback and exits with code 2."""


class NotFiniteError(RuntimeError):
    """A loss or a synthesized volume is NaN or infinite: main prints where, and exits with code 3."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is what Python, a GPU, or torch's allocator on a CPU raises when memory is short."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


# ---------------------------------------------------------------- device, precision and randomness

def pick_device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda' as a device. Raises InputError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch finds no CUDA GPU here; use --device auto or --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(getattr(torch.cpu, has, bool)() for has in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that networks compute in: bfloat16 for 'bf16', and for 'auto' where the device has instructions for it; else float32.

    Also lets a GPU use TF32 for what stays in float32 beside bfloat16, and forbids it otherwise. Raises InputError for a GPU without bf16.
    """
    native = has_bf16(device)
    if name == "bf16" and device.type == "cuda" and not native:
        raise InputError("precision bf16 was asked for, but this GPU has no bfloat16; use --precision auto or --precision fp32")
    dtype = torch.bfloat16 if name == "bf16" or (name == "auto" and native) else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == torch.bfloat16
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which networks compute in dtype; weights, optimizers and losses stay in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def derived_seed(*parts) -> int:
    """A seed in [0, 2^63) that depends on every part (numbers or strings) and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*parts) -> None:
    """Seed torch's global generators from the parts and ask for deterministic kernels."""
    torch.manual_seed(derived_seed(*parts))
    torch.backends.cudnn.deterministic = True


def draw_noise(seed: int, subject: str, draw: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Endless standard normal tensors of that shape, on the CPU; they depend on seed, subject and number of the draw alone."""
    generator = torch.Generator().manual_seed(derived_seed(seed, subject, draw))
    while True:
        yield torch.randn(shape, generator=generator)


class EMA:
    """Exponential moving average of a module's weights, in .module; a plain copy for the first `start` steps."""

    def __init__(self, module: nn.Module, decay: float, start: int):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.start = decay, start

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the module after its optimizer step number `step`, counted from 1."""
        weight = 1.0 if step <= self.start else 1 - self.decay
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), weight)


# ---------------------------------------------------------------- files that appear whole or not at all

@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=path.parent))
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table with full float precision."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


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


# ---------------------------------------------------------------- checkpoints

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


def weights_key(*modules: nn.Module) -> str:
    """16 hexadecimal digits that identify the weights of the modules."""
    digest = hashlib.blake2b(digest_size=8)
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
