"""Errors that end a run early: the exit code of each cause, and the one message that the user gets."""
from concurrent.futures.process import BrokenProcessPool

import torch

from runtime.environment import OPTIONAL, PACKAGES
from runtime.files import BusyError
from runtime.ranks import LostRankError
from runtime.signals import CTRL_C
from utils import InputError, NotFiniteError

INPUT, NOT_FINITE, MEMORY, FILE, WORKER, BUSY = 2, 3, 4, 5, 6, 7
CONTINUES = "the same command continues after what was saved last"
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED",
             "CUBLAS_STATUS_ALLOC_FAILED")         # in the messages of errors that have no class of their own
TRAINING_WITH_LESS = ("--recompute true takes less; so does --{0}_batch_size 1, as long as this stage has no "
                      "checkpoint, which is bound to it")
BASELINES_WITH_LESS = ("--recompute true takes less; so does a smaller --image_regression.channels in "
                       "regressions on images")
SAMPLING_WITH_LESS = "--sampling_batch 1 and --cache off take less"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a GPU, or torch's allocator on a CPU raised this because memory is short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in NO_MEMORY)


def _is_lost_worker(error: BaseException) -> bool:
    """Whether a process that reads or simulates was killed."""
    if isinstance(error, BrokenProcessPool):
        return True
    of_torch = ("DataLoader worker (pid", "</torch_")      # the latter: no room for a batch in /dev/shm
    return isinstance(error, RuntimeError) and any(words in str(error) for words in of_torch)


def _own_message(error: BaseException) -> str:
    """The message of an error; that of a worker process is wrapped in its traceback."""
    text, name = str(error), type(error).__name__
    return text.rsplit(f"{name}: ")[-1].strip() if "Original Traceback" in text else text.strip()


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an error, whose notes name the stage; None for a fault of this program."""
    notes = getattr(error, "__notes__", [])
    stage = "".join(f" (stage {note})" for note in notes)
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "exit_code", CTRL_C), f"stopped by {error or 'Ctrl-C'}{stage}; {CONTINUES}"
    code, message = _cause(error, stage, notes)
    return (code, f"error: {message}") if code else None


def _cause(error: BaseException, stage: str, notes: list[str]) -> tuple[int, str]:
    """Exit code and message of an error; code 0 for a fault of this program."""
    if isinstance(error, InputError):
        return INPUT, _own_message(error)
    if isinstance(error, NotFiniteError):
        return NOT_FINITE, f"{error}{stage}"
    if is_out_of_memory(error):
        return MEMORY, f"out of memory{stage}; {_less_memory(notes)}; what was saved is kept"
    if isinstance(error, ImportError) and (message := _explain_import(error)):
        return INPUT, f"{message}{stage}"
    if _is_lost_worker(error):
        return WORKER, (f"a process that was to read or simulate volumes was killed{stage}, as systems do "
                        f"when memory, or shared memory, is short; --num_workers 0 reads without such "
                        f"processes; {CONTINUES}")
    if isinstance(error, LostRankError):
        return WORKER, f"{error}{stage}; {CONTINUES}"
    if isinstance(error, BusyError):
        return BUSY, str(error)
    if isinstance(error, OSError):
        return FILE, f"{_own_message(error)}{stage}"
    return 0, ""


def _less_memory(notes: list[str]) -> str:
    """Settings with which the stage that the notes name takes less memory."""
    for stage in ("aae", "ldm"):
        if stage in notes:
            return TRAINING_WITH_LESS.format(stage)
    return BASELINES_WITH_LESS if "baselines" in notes else SAMPLING_WITH_LESS


def _explain_import(error: ImportError) -> str:
    """Message for a package that is missing or cannot be imported; empty if it is none of those that the
    project asks for.

    pandas raises an error without a name, after the one that names the module.
    """
    names = [getattr(found, "name", None) for found in (error, error.__cause__, error.__context__)]
    module = next((name.split(".")[0] for name in names if name), "")
    for known, (package, use, listed_in) in OPTIONAL.items():
        if module in (known, package):                     # importlib.metadata names the package
            return _say_missing(error, package, f", which is needed for {use}", listed_in)
    if module in PACKAGES or module in PACKAGES.values():
        return _say_missing(error, PACKAGES.get(module, module), "", "requirements.txt")
    return ""


def _say_missing(error: ImportError, package: str, use: str, listed_in: str) -> str:
    is_missing = isinstance(error, ModuleNotFoundError) or error.name is None
    found = "is missing" if is_missing else f"cannot be imported ({error})"
    return f"the package {package}{use}, {found}; pip install -r {listed_in} brings it"
