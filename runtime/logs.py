"""The run's log: lines on the screen, and with the time in a file of the experiment."""
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

from runtime.ranks import is_rank_0, rank, ranks

LOG = logging.getLogger("il_cldm")
EARLY_LINES = 10_000                                       # kept in memory until the log has its file


class _Silent:
    """A handler that says nothing of a full disk or of a screen that is gone: what matters the run says itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Screen(_Silent, logging.StreamHandler):
    pass


class _File(_Silent, logging.FileHandler):
    pass


@contextmanager
def logging_run() -> Iterator[None]:
    """A block whose lines go to the screen (errors to stderr), and are kept for the file that keep_log names.

    Of several ranks all tell their errors, but only rank 0 the rest.
    """
    screen, errors = _Screen(sys.stdout), _Screen(sys.stderr)
    early = MemoryHandler(EARLY_LINES, flushLevel=logging.CRITICAL + 1)
    screen.addFilter(lambda record: record.levelno == logging.INFO and is_rank_0())
    errors.addFilter(lambda record: record.levelno == logging.ERROR)
    if ranks() > 1:
        errors.setFormatter(logging.Formatter(f"rank {rank()}: %(message)s"))
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False
    before, LOG.handlers = LOG.handlers, [screen, errors, early]
    try:
        yield
    finally:
        for handler in LOG.handlers:
            if handler not in (screen, errors):
                with suppress(OSError):
                    handler.close()
        LOG.handlers = before


def keep_log(path: Path) -> None:
    """Append the log to a file, with the lines that came before this call. Raises OSError if it cannot be written to."""
    file = _File(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    early = next(handler for handler in LOG.handlers if isinstance(handler, MemoryHandler))
    early.setTarget(file)
    early.flush()
    LOG.handlers = [handler for handler in LOG.handlers if handler is not early] + [file]


def progress_bar(iterable: Iterable | None = None, **options) -> tqdm:
    """A progress bar of rank 0 on a terminal, gone at its end; quiet elsewhere. Options as tqdm takes them."""
    return tqdm(iterable, leave=False, disable=None if is_rank_0() else True, **options)


def say(stage: str, text: str) -> None:
    """One line of the run's log."""
    LOG.info("%s", f"{stage:6} {text}")
