"""Shared memory, through which the processes that read hand over their batches: containers have little of
it."""
import shutil
from pathlib import Path

from runtime.ranks import local_world_size

FOLDER = Path("/dev/shm")
AHEAD = 2                                                  # batches that a process reads ahead, as torch does


def free_shared_memory() -> int | None:
    """Bytes of shared memory that are free; None where the system keeps it elsewhere (not Linux)."""
    try:
        return shutil.disk_usage(FOLDER).free
    except OSError:
        return None


def readers_that_fit(num_workers: int, batches: list[int], free: int | None) -> tuple[int, str]:
    """Number of processes that read in each loader, and a remark if it is not the one that was asked for: all
    or none, if their batches would not fit.

    batches: bytes of a batch of each loader that lives at one time. free: bytes of shared memory.
    """
    if not num_workers or free is None:
        return num_workers, ""
    needed = (num_workers * AHEAD + 1) * sum(batches) * local_world_size()
    if needed <= free:
        return num_workers, ""
    mib = 2 ** 20
    return 0, (f"num_workers {num_workers} needs up to {needed / mib:,.0f} MiB of shared memory, {FOLDER} "
               f"has {free / mib:,.0f} MiB free: volumes are read in the main process, as with num_workers 0 "
               "(a container has more with docker run --shm-size or --ipc=host)")
