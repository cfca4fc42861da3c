"""The log of a run: lines on the screen, and with the time in a file of the experiment."""
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

from runtime.ranks import is_rank_0, rank, world_size

LOG = logging.getLogger("il_cldm")
EARLY_LINES = 10_000                                       # kept in memory until the log has its file


def readable(name: str) -> str:
    """A name for messages and files: bytes that are no UTF-8, which a path may hold, as \\xfc."""
    return re.sub("[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xff:02x}", name)


class _Silent:
    """A handler that ignores a full disk and a closed screen: errors that matter are reported by the run
    itself."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, which any screen and file can take."""
        return readable(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing."""


class _Screen(_Silent, logging.StreamHandler):
    """Lines on the screen."""


class _File(_Silent, logging.FileHandler):
    """Lines in a file."""


def _is_shown(record: logging.LogRecord) -> bool:
    return record.levelno == logging.INFO and is_rank_0()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno == logging.ERROR


@contextmanager
def logging_run() -> Iterator[None]:
    """A block whose lines go to the screen (errors to stderr), and are kept in memory for the file that
    keep_log names.

    Every rank reports its errors, but only rank 0 the other lines.
    """
    screen, errors = _Screen(sys.stdout), _Screen(sys.stderr)
    early = MemoryHandler(EARLY_LINES, flushLevel=logging.CRITICAL + 1)
    screen.addFilter(_is_shown)
    errors.addFilter(_is_error)
    if world_size() > 1:
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
    """Append the log to a file, beginning with the lines before this call. Raises OSError if the file cannot
    be written."""
    file = _File(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    early = next(handler for handler in LOG.handlers if isinstance(handler, MemoryHandler))
    early.setTarget(file)
    early.flush()
    LOG.handlers = [handler for handler in LOG.handlers if handler is not early] + [file]


def progress_bar(iterable: Iterable | None = None, **options) -> tqdm:
    """A progress bar of rank 0 on a terminal, removed at its end; invisible elsewhere. Options as tqdm takes
    them."""
    return tqdm(iterable, leave=False, disable=None if is_rank_0() else True, **options)


def say(stage: str, text: str) -> None:
    """Write one line to the log of the run."""
    LOG.info("%s", f"{stage:6} {text}")


def time_left(seconds_per_step: float, steps: int) -> str:
    """A sentence on how long so many steps will take, such as "about 3 h 20 min left for 26,667 steps (0.45 s
    a step)"."""
    duration = _duration(seconds_per_step * steps)
    pace = f"{seconds_per_step:.2g}" if seconds_per_step < 99.5 else f"{seconds_per_step:.0f}"
    return f"about {duration} left for {steps:,} steps ({pace} s a step)"


def _duration(seconds: float) -> str:
    """Seconds in the two largest units that say something: 40 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
