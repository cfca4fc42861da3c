"""Several processes that train one model: the rank of this one, their shares of the work, and what they
exchange.

torchrun, SLURM with the variables of docs/running.md, or launch tells each process its rank and the world
size; a process that was started alone has rank 0 of 1, and nothing here does anything. Rank 0 prints, and
writes every file that is not of a single subject.
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

from runtime.signals import CTRL_C, SIGNALS, Stopped, defer_signals, request_stop, stop_requested
from utils import InputError

T = TypeVar("T")
ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # the defaults
TIMEOUT = timedelta(hours=6)  # rank 0 may read or simulate a whole cohort while the others wait
CONNECTION_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "timed out",
                   "Timeout", "remote process exited", "NCCL")  # in messages of torch
ON_CPUS = "processes on CPUs are started with torchrun (docs/running.md)"
FAILED = 6  # exit code of a process that ends because another one failed
GRACE = 45  # seconds in which a process can save its checkpoint before it is killed


class _Group:
    """The connection between the ranks."""
    control = None  # a process group of gloo, on the CPU: for all but tensors
    stopping = False  # whether all ranks know that a signal came to one of them


class LostRankError(RuntimeError):
    """Another process of this run failed or is gone: main prints it and exits with code 6."""


def rank() -> int:
    """Number of this process among all of the run, from 0."""
    return _from_environment("RANK")


def world_size() -> int:
    """Number of processes of the run."""
    return _from_environment("WORLD_SIZE")


def local_rank() -> int:
    """Number of this process among those of its machine, from 0."""
    return _from_environment("LOCAL_RANK")


def local_world_size() -> int:
    """Number of processes of the run on this machine."""
    return _from_environment("LOCAL_WORLD_SIZE")


def is_rank_0() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def _from_environment(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else ALONE[name]


# ---------------------------------------------------------------- start and end

def check_environment(gpus: int, device: str) -> None:
    """Raise InputError for variables of several processes other than torchrun's, and for fewer GPUs than are
    asked for.

    gpus: how many to train on, 0 for not said. device: auto, cpu or cuda.
    """
    _check_variables()
    found = torch.cuda.device_count()
    if "WORLD_SIZE" in os.environ and gpus not in (0, local_world_size()):
        raise InputError(f"gpus {gpus}, but {local_world_size()} processes were started on this machine; "
                         "leave --gpus out")
    if gpus and device == "cpu":
        raise InputError(f"gpus {gpus}, but device is cpu; {ON_CPUS}")
    if gpus > found:
        raise InputError(f"gpus {gpus}, but torch finds {found} GPUs here; {ON_CPUS}")
    if found and device != "cpu" and local_world_size() > found:
        raise InputError(f"{local_world_size()} processes on this machine, but torch finds {found} GPUs; "
                         "start at most that many, or give --device cpu")


def _check_variables() -> None:
    values = {name: os.environ.get(name, "") for name in (*ALONE, "MASTER_ADDR", "MASTER_PORT")}
    numbers = all(values[name].isdecimal() or not values[name] for name in ALONE)
    in_range = rank() < world_size() and local_rank() < local_world_size()
    reachable = world_size() == 1 or (values["MASTER_ADDR"] and values["MASTER_PORT"])
    if not (numbers and in_range and reachable):
        listed = ", ".join(f"{name}={value}" for name, value in values.items())
        raise InputError(f"the environment speaks of several processes, but not as torchrun does: {listed}; "
                         "set all of them (docs/running.md), or none")


def launch(count: int, argv: list[str]) -> int:
    """Run so many processes of main.py on this machine; returns the exit code of one that failed by itself, 0
    if none did.

    Signals are passed on. When one process has failed, the others end too, or are killed after GRACE seconds.
    """
    children = _start(count, argv)

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
    codes = [_exit_code(child.returncode) for child in children]
    return next((code for code in codes if code not in (0, FAILED)), max(codes))


def _start(count: int, argv: list[str]) -> list[subprocess.Popen]:
    """So many processes of main.py with the variables of torchrun, in sessions of their own: Ctrl-C reaches
    them through launch."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "localhost",
              "MASTER_PORT": str(port)}
    command = [sys.executable, str(Path(__file__).parents[1] / "main.py"), *argv]
    children = []
    for number in range(count):
        environment = os.environ | common | {"RANK": str(number), "LOCAL_RANK": str(number)}
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))
    return children


def _exit_code(returncode: int) -> int:
    """Exit code of an ended process; a negative returncode is the signal that killed it."""
    if returncode == -signal.SIGINT:
        return CTRL_C
    return returncode if returncode >= 0 else FAILED


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """A block in which the ranks can exchange data. Raises LostRankError in place of torch's error if another
    rank is gone."""
    _Group.stopping = False
    if world_size() == 1:
        yield
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        _Group.control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:  # torch has no class of its own for a lost connection
        if isinstance(error, InputError) or not any(words in str(error) for words in CONNECTION_LOST):
            raise
        if stop_requested():  # the others were asked to stop too, and left earlier
            raise Stopped(stop_requested()) from error
        reason = str(error).strip().splitlines()[0][:200]
        raise LostRankError(f"another process of this run failed or is gone ({reason})") from error
    finally:
        _Group.control = None


# ---------------------------------------------------------------- Python objects

def from_rank_0(function: Callable[..., T], *args) -> T:
    """The result of function(*args), which rank 0 calls, on all ranks. If it raises there, the other ranks
    exit with FAILED."""
    if world_size() == 1:
        return function(*args)
    outcome = [None, False]                                # the result, and whether there is one
    if is_rank_0():
        try:
            outcome = [function(*args), True]
        except BaseException:
            with suppress(RuntimeError):                   # the others may be gone already
                dist.broadcast_object_list(outcome, src=0, group=_Group.control)
            raise
    dist.broadcast_object_list(outcome, src=0, group=_Group.control)
    if not outcome[1]:
        raise SystemExit(FAILED)
    return outcome[0]


def mean_over_ranks(losses: dict[str, float]) -> tuple[dict[str, float], bool]:
    """Mean of each loss over the ranks, and whether all must stop here because a signal came to one of
    them."""
    if world_size() == 1:
        return losses, False                               # a single process stops where the signal comes
    everyone = _all_gather(losses)
    means = {name: sum(values[name] for values in everyone) / world_size() for name in losses}
    return means, _Group.stopping


def _all_gather(own: T) -> list[T]:
    """The objects of all ranks, in order of rank. A signal that came to one of them has then come to all."""
    everyone = [None] * world_size()
    dist.all_gather_object(everyone, (stop_requested(), own), group=_Group.control)
    signal_number = max(number for number, _ in everyone)
    if signal_number:
        _Group.stopping = True
        request_stop(signal_number)
    return [given for _, given in everyone]


@contextmanager
def stop_together(shared: bool = True) -> Iterator[None]:
    """A block of shared work that no signal interrupts: it ends with an exchange, after which Stopped is
    raised on all ranks."""
    with defer_signals() if shared and world_size() > 1 else nullcontext():
        yield


def wait_for_save() -> None:
    """After a common stop, wait until rank 0 has saved: the launcher may kill it when the first process
    leaves."""
    if _Group.stopping:
        barrier()


def barrier() -> None:
    """Wait until all ranks have come here: what one wrote, the others find."""
    if world_size() > 1:
        dist.barrier(group=_Group.control)


def check_equal(key: str, what: str) -> None:
    """Raise RuntimeError, because it is a fault of this program, if the ranks do not have the same key."""
    if world_size() > 1:
        keys = [None] * world_size()
        dist.all_gather_object(keys, key, group=_Group.control)
        if len(set(keys)) > 1:
            raise RuntimeError(f"{what} differ between ranks: {', '.join(keys)}")


# ---------------------------------------------------------------- tensors

@torch.no_grad()
def all_reduce_mean(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place."""
    if world_size() > 1 and tensors:
        pending = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in pending:
            work.wait()
        torch._foreach_div_(tensors, world_size())


@torch.no_grad()
def average_statistics(networks: list[nn.Module]) -> None:
    """Replace the running statistics of batch norms, which each rank updates from its own batches, by their
    mean over the ranks."""
    statistics = []
    for network in networks:
        statistics += [buffer for name, buffer in network.named_buffers() if "running_" in name]
    all_reduce_mean(statistics)


# ---------------------------------------------------------------- batches of subjects

class DistributedBatches(Sampler[list[int]]):
    """Batches of the indices 0 .. length - 1 in order; if shared among the ranks, each gets every n-th batch,
    n the world size.

    The batches are the same for every world size, so that rounding does not depend on it. No index is
    repeated to fill a batch.
    """

    def __init__(self, length: int, batch: int, shared: bool):
        self.shared = shared and world_size() > 1
        batches = [list(range(first, min(first + batch, length))) for first in range(0, length, batch)]
        self.batches = batches[rank()::world_size()] if self.shared else batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def is_shared(loader: Iterable) -> bool:
    """Whether the batches of a loader are shared among the ranks."""
    return getattr(getattr(loader, "batch_sampler", None), "shared", False)


def gather_batches(own: list[T], loader: Iterable) -> list[T]:
    """The results of all ranks, one for each of their batches of the loader, in the order of the batches; on
    every rank."""
    if not is_shared(loader):
        return own
    gathered = []
    for row in itertools.zip_longest(*_all_gather(own)):   # their n-th batches; the last row may be short
        gathered += [result for result in row if result is not None]
    return gathered
