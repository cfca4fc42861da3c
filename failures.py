"""What ends a run before its end: the exit code of each cause, and the one message that a user gets."""
from concurrent.futures.process import BrokenProcessPool

import torch

from files import BusyError, WriteError
from stopping import CTRL_C
from utils import InputError, NotFiniteError

INPUT, NOT_FINITE, MEMORY, FILE, WORKER, BUSY = 2, 3, 4, 5, 6, 7
CONTINUES = "the same command continues behind what was saved last"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, a GPU, or torch's allocator on a CPU raises when memory is short."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _is_lost_worker(error: BaseException) -> bool:
    """Whether a process that reads or simulates was killed."""
    return isinstance(error, BrokenProcessPool) or (isinstance(error, RuntimeError) and "DataLoader worker" in str(error))


def _told(error: BaseException) -> str:
    """The error's own words; one from a process that reads comes wrapped in its traceback."""
    text, name = str(error), type(error).__name__
    return text.rsplit(f"{name}: ")[-1].strip() if "Original Traceback" in text else text.strip()


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an error, in which its notes name the stage; None for what is a fault of this program."""
    stage = "".join(f" (stage {note})" for note in getattr(error, "__notes__", []))
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "exit_code", CTRL_C), f"stopped by {error or 'Ctrl-C'}{stage}; {CONTINUES}"
    code, message = _cause(error, stage)
    return (code, f"error: {message}") if code else None


def _cause(error: BaseException, stage: str) -> tuple[int, str]:
    """Exit code and message of an error, 0 for what is a fault of this program."""
    if isinstance(error, InputError):
        return INPUT, _told(error)
    if isinstance(error, NotFiniteError):
        return NOT_FINITE, f"{error}{stage}"
    if is_out_of_memory(error):
        return MEMORY, (f"out of memory{stage}; less is taken by --recompute true, --sampling_batch 1, and in training by "
                        f"--aae_batch_size 1 --aae_accumulation 2 and --ldm_batch_size 1 --ldm_accumulation 2; {CONTINUES}")
    if _is_lost_worker(error):
        return WORKER, (f"a process that was to read or simulate volumes was killed{stage}, as systems do when memory is short; "
                        f"--num_workers 0 reads without such processes; {CONTINUES}")
    if isinstance(error, BusyError):
        return BUSY, str(error)
    if isinstance(error, WriteError | OSError):
        return FILE, f"{_told(error)}{stage}; {CONTINUES}"
    return 0, ""
