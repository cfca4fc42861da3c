"""What ends a run before its end: the exit code of each cause, and the one message that a user gets."""
from concurrent.futures.process import BrokenProcessPool

import torch

from runtime.files import BusyError
from runtime.ranks import LostRankError
from runtime.signals import CTRL_C
from utils import InputError, NotFiniteError

INPUT, NOT_FINITE, MEMORY, FILE, WORKER, BUSY = 2, 3, 4, 5, 6, 7
CONTINUES = "the same command continues after what was saved last"
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
TRAINING_WITH_LESS = ("--recompute true takes less; so does --{0}_batch_size 1, as long as this stage has no checkpoint, which is bound "
                      "to it")
BASELINES_WITH_LESS = "--recompute true takes less; so does a smaller --regression_channels in image_regression"
SAMPLING_WITH_LESS = "--sampling_batch 1 and --cache off take less"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, a GPU, or torch's allocator on a CPU raises when memory is short."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def _is_lost_worker(error: BaseException) -> bool:
    """Whether a process that reads or simulates was killed."""
    return isinstance(error, BrokenProcessPool) or (isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error))


def _told(error: BaseException) -> str:
    """The error's own words; one from a process that reads comes wrapped in its traceback."""
    text, name = str(error), type(error).__name__
    return text.rsplit(f"{name}: ")[-1].strip() if "Original Traceback" in text else text.strip()


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an error, in which its notes name the stage; None for what is a fault of this program."""
    notes = getattr(error, "__notes__", [])
    stage = "".join(f" (stage {note})" for note in notes)
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "exit_code", CTRL_C), f"stopped by {error or 'Ctrl-C'}{stage}; {CONTINUES}"
    code, message = _cause(error, stage, notes)
    return (code, f"error: {message}") if code else None


def _cause(error: BaseException, stage: str, notes: list[str]) -> tuple[int, str]:
    """Exit code and message of an error, 0 for what is a fault of this program."""
    if isinstance(error, InputError):
        return INPUT, _told(error)
    if isinstance(error, NotFiniteError):
        return NOT_FINITE, f"{error}{stage}"
    if is_out_of_memory(error):
        training = next((note for note in notes if note in ("aae", "ldm")), None)
        advice = TRAINING_WITH_LESS.format(training) if training else BASELINES_WITH_LESS if "baselines" in notes else SAMPLING_WITH_LESS
        return MEMORY, f"out of memory{stage}; {advice}; what was saved is kept"
    if _is_lost_worker(error):
        return WORKER, (f"a process that was to read or simulate volumes was killed{stage}, as systems do when memory is short; "
                        f"--num_workers 0 reads without such processes; {CONTINUES}")
    if isinstance(error, LostRankError):
        return WORKER, f"{error}{stage}; {CONTINUES}"
    if isinstance(error, BusyError):
        return BUSY, str(error)
    if isinstance(error, OSError):
        return FILE, f"{_told(error)}{stage}"
    return 0, ""
