"""Several processes that train one model: which of them this is, how they share the work, and what they must agree on.

torchrun, SLURM with the variables of the README, or launch tells each process its rank and their number; a process that was started by
itself is the only one, and everything here then does nothing. Rank 0 speaks, and writes what is not a single subject's.
"""
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.utils.data import Sampler

from runtime.signals import CTRL_C, SIGNALS, Stopped, request_stop, stop_requested, defer_signals
from utils import InputError

T = TypeVar("T")
ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}             # what holds where the environment says nothing
PATIENCE = timedelta(hours=6)                              # rank 0 may read or simulate a whole cohort while the others wait
GONE = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "timed out", "Timeout", "remote process exited", "NCCL")
FAILED = 6                                                 # exit code: for want of another process
GRACE = 45                                                 # seconds, in which a checkpoint can be saved


class _Ties:
    """What holds the ranks together."""
    control = None                                         # a group of gloo, on the CPU: for all but gradients
    stopping = False                                       # a signal came to one of them, and all know


class LostRankError(RuntimeError):
    """Another process of this run failed or is gone: main says so, and exits with code 6."""


def rank() -> int:
    """The number of this process, 0 if it is the only one."""
    return _told("RANK")


def ranks() -> int:
    """How many processes work on this run."""
    return _told("WORLD_SIZE")


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return _told("LOCAL_RANK")


def local_ranks() -> int:
    """How many processes of the run work on this machine."""
    return _told("LOCAL_WORLD_SIZE")


def is_rank_0() -> bool:
    """Whether this process is the one that speaks and writes."""
    return rank() == 0


def _told(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else ALONE[name]


# ---------------------------------------------------------------- the beginning and the end

def check_environment(gpus: int, device: str) -> None:
    """Raise InputError if there are fewer GPUs than asked for, or if the environment speaks of several processes not as torchrun does."""
    said = {name: os.environ.get(name, "") for name in (*ALONE, "MASTER_ADDR", "MASTER_PORT")}
    if not all(said[name].isdecimal() or not said[name] for name in ALONE) or not rank() < ranks() or not local_rank() < local_ranks() or \
            (ranks() > 1 and not (said["MASTER_ADDR"] and said["MASTER_PORT"])):
        raise InputError("the environment speaks of several processes, but not as torchrun does: "
                         + ", ".join(f"{name}={value}" for name, value in said.items()) + "; set all of them (README), or none")
    here = torch.cuda.device_count()
    if "WORLD_SIZE" in os.environ and gpus not in (0, local_ranks()):
        raise InputError(f"gpus {gpus}, but {local_ranks()} processes were started on this machine; leave --gpus out")
    if gpus and (device == "cpu" or gpus > here):
        found = "device is cpu" if device == "cpu" else f"torch finds {here} GPUs here"
        raise InputError(f"gpus {gpus}, but {found}; processes on CPUs are started with torchrun (README)")
    if here and device != "cpu" and local_ranks() > here:
        raise InputError(f"{local_ranks()} processes on this machine, but torch finds {here} GPUs; start at most that many, or give "
                         "--device cpu")


def launch(count: int, argv: list[str]) -> int:
    """Run so many processes of this program on this machine; the exit code of one that failed by itself, 0 if none did.

    Signals are passed on. When one has failed the others end too, or are ended after GRACE seconds.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "localhost",
                  "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, str(Path(__file__).parents[1] / "main.py"), *argv]
    children = [subprocess.Popen(command, env=os.environ | common | {"RANK": str(number), "LOCAL_RANK": str(number)},
                                 start_new_session=True) for number in range(count)]         # Ctrl-C reaches them through us alone

    def pass_on(number: int, _frame) -> None:
        for child in children:
            child.send_signal(number)
    for number in SIGNALS:
        signal.signal(number, pass_on)
    failed_at = None
    while any(child.poll() is None for child in children):
        time.sleep(0.1)
        if failed_at is None and any(child.returncode for child in children):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + GRACE:
            for child in children:
                child.kill()
    codes = [{-signal.SIGINT: CTRL_C}.get(child.returncode, child.returncode if child.returncode >= 0 else FAILED) for child in children]
    return next((code for code in codes if code not in (0, FAILED)), max(codes))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """A block in which the processes of the run know each other. Raises LostRankError in place of what is raised if one is gone."""
    _Ties.stopping = False
    if ranks() == 1:
        yield
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        _Ties.control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:            # torch has no class of its own for it
        if isinstance(error, InputError) or not any(words in str(error) for words in GONE):
            raise
        if stop_requested():                                        # the others were asked too, and were faster
            raise Stopped(stop_requested()) from error
        raise LostRankError(f"another process of this run failed or is gone ({str(error).strip().splitlines()[0][:200]})") from error
    finally:
        _Ties.control = None


# ---------------------------------------------------------------- what all must agree on

def from_rank_0(function: Callable[[], T]) -> T:
    """What rank 0 gets from the function, on all ranks, while the others wait. Where it raises an error they leave without a word."""
    if ranks() == 1:
        return function()
    outcome = [None, False]
    if is_rank_0():
        try:
            outcome = [function(), True]
        except BaseException:
            with suppress(RuntimeError):                   # nobody may be there any more to hear of it
                dist.broadcast_object_list(outcome, src=0, group=_Ties.control)
            raise
    dist.broadcast_object_list(outcome, src=0, group=_Ties.control)
    if not outcome[1]:
        raise SystemExit(FAILED)
    return outcome[0]


def mean_over_ranks(losses: dict[str, float]) -> tuple[dict[str, float], bool]:
    """The mean of each loss over the ranks, and whether all must stop here, because a signal came to one of them."""
    if ranks() == 1:
        return losses, False                               # a single process stops where the signal comes
    everyone = _exchange(losses)
    return {name: sum(values[name] for values in everyone) / ranks() for name in losses}, _Ties.stopping


def _exchange(own: T) -> list[T]:
    """What each rank brings, in their order. A signal that came to one of them has then come to all."""
    everyone = [None] * ranks()
    dist.all_gather_object(everyone, (stop_requested(), own), group=_Ties.control)
    if signal := max(number for number, _ in everyone):
        _Ties.stopping = True
        request_stop(signal)
    return [brought for _, brought in everyone]


@contextmanager
def stop_together(shared: bool = True) -> Iterator[None]:
    """A block of shared work that no signal cuts: it ends with an exchange, behind which Stopped is raised on all ranks."""
    with defer_signals() if shared and ranks() > 1 else nullcontext():
        yield


def wait_for_save() -> None:
    """Do not leave before rank 0 has saved what all stopped behind: whoever started them may end it when the first one leaves."""
    if _Ties.stopping:
        barrier()


def barrier() -> None:
    """Go on when all ranks have come here, so that what one wrote the others find."""
    if ranks() > 1:
        dist.barrier(group=_Ties.control)


def check_equal(key: str, what: str) -> None:
    """Raise RuntimeError, for it is a fault of this program, if the ranks do not hold the same."""
    if ranks() > 1:
        keys = [None] * ranks()
        dist.all_gather_object(keys, key, group=_Ties.control)
        if len(set(keys)) > 1:
            raise RuntimeError(f"{what} differ between ranks: {', '.join(keys)}")


# ---------------------------------------------------------------- networks

@torch.no_grad()
def all_reduce_mean(tensors: list[torch.Tensor]) -> None:
    """Give each tensor its mean over the ranks, in place."""
    if ranks() > 1:
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()
        torch._foreach_div_(tensors, ranks())


@torch.no_grad()
def average_statistics(networks: list[nn.Module]) -> None:
    """Give the running statistics of the batch norms, which every rank gathers from its own batches, the mean over the ranks."""
    all_reduce_mean([buffer for network in networks for name, buffer in network.named_buffers() if "running_" in name])


# ---------------------------------------------------------------- subjects

class Share(Sampler[list[int]]):
    """Batches of the indices 0 .. length - 1 in order; if divided among ranks, each gets every so-manieth batch.

    The batches are the same for any number of ranks, so that rounding does not depend on it, and none is filled up.
    """

    def __init__(self, length: int, batch: int, divided: bool):
        self.divided = divided and ranks() > 1
        batches = [list(range(first, min(first + batch, length))) for first in range(0, length, batch)]
        self.batches = batches[rank()::ranks()] if self.divided else batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def is_shared(loader: Iterable) -> bool:
    """Whether the batches of a loader are shared out among ranks."""
    return getattr(getattr(loader, "batch_sampler", None), "divided", False)


def gather_batches(own: list[T], loader: Iterable) -> list[T]:
    """What all ranks made of their batches of a loader, one entry a batch, in the order of the batches; on every rank."""
    if not is_shared(loader):
        return own
    rows = itertools.zip_longest(*_exchange(own))          # the first batch of each rank, then the second; the last ranks may have one less
    return [made for row in rows for made in row if made is not None]
