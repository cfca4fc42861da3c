"""Files: what others wrote is read within bounds; ours appear whole or not at all; the room for them, and the lock of a folder."""
import errno
import io
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from runtime.logs import say
from runtime.signals import defer_signals
from utils import InputError

PARTIAL = ".partial-"                                      # begins the name of a folder in which a file is being written
HOST = PROCESSES = socket.gethostname()                    # the latter: within which a process is known by its number
with suppress(OSError):                                    # containers of one host name count their processes each for itself
    PROCESSES += "." + os.readlink("/proc/self/ns/pid").strip("pid:[]")
DAY = 24 * 3600
MAX_TEXT = 2 ** 26                                         # bytes of a list or table, a thousand for each of 60000 scans


class WriteError(OSError):
    """A file could not be written: main prints the message and exits with code 5."""

    def __str__(self) -> str:
        return self.strerror


class BusyError(RuntimeError):
    """Another run works in the folder: main prints which, and exits with code 7."""


# ---------------------------------------------------------------- files that others wrote

def brief(content: object) -> str:
    """What others wrote, short enough for a line of a message."""
    text = str(content)
    return text if len(text) <= 80 else f"{text[:77]}..."


def file_status(path: Path) -> os.stat_result:
    """Status of a file. Raises InputError for what must not be opened: a folder, and a pipe or a device, which might never end."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: cannot be read: it is no file but a folder, a pipe or a device")
    return status


def read_text(path: Path) -> str:
    """A file of UTF-8 text, with or without byte order mark. Raises InputError if it is none, or larger than any list or table."""
    size = file_status(path).st_size
    if size > MAX_TEXT:
        raise InputError(f"{path}: has {size} bytes; expected a text of at most {MAX_TEXT}")
    try:
        with path.open("rb") as file:
            return file.read(size).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text in UTF-8: {brief(error)}") from error


def read_table(path: Path, *columns: str) -> pd.DataFrame:
    """A CSV file as strings, empty where a row is short, without its empty rows. The index n stands for row n + 2 of a spreadsheet.

    Raises InputError if a column is missing or stands twice, or if rows are longer than the header.
    """
    text = read_text(path)
    try:
        table = pd.read_csv(io.StringIO(text.lstrip("\r\n")), dtype=str, keep_default_na=False, skipinitialspace=True,
                            skip_blank_lines=False).fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: cannot be read as a table: {brief(error)}") from error
    if not isinstance(table.index, pd.RangeIndex):         # pandas takes the surplus for row names, and every column shifts
        raise InputError(f"{path}: its rows have more fields than its header has columns; is a comma missing there, or one too much below?")
    table = table[(table != "").any(axis=1)]
    if missing := set(columns) - set(table.columns):
        raise InputError(f"{path}: column(s) {', '.join(sorted(missing))} missing, found {brief(', '.join(table.columns))}")
    if twice := [name for name in columns if f"{name}.1" in table.columns]:                  # so pandas names the second
        raise InputError(f"{path}: column(s) {', '.join(twice)} stand twice; keep one")
    return table


def read_own_table(path: Path, columns: list[str], again: str, **kinds: type) -> pd.DataFrame:
    """A CSV of ours with its numbers, without half rows; kinds: of columns that might be taken for numbers.

    Raises InputError if it is not there, damaged, or without these columns; again: what makes it.
    """
    try:
        return pd.read_csv(path, dtype=kinds).dropna(subset=columns)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not there or damaged; {again}") from error


# ---------------------------------------------------------------- files that appear whole or not at all

def _readable(size: int) -> str:
    return f"{size / 2 ** 30:.2f} GiB" if size > 2 ** 27 else f"{size / 2 ** 20:.2f} MiB"


def _room(folder: Path) -> int:
    """Free bytes on the disk of a folder, or of its nearest parent that is there."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free


@contextmanager
def atomic(path: Path, size: int = 0) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path`, safe on the disk, when the block ends without an error.

    The folder of `path` must be there. size: bytes that will be written, for the message. Signals wait for the end of the block.
    Raises WriteError that says what stands in the way; what was at `path` before is then still there.
    """
    partial = None
    with defer_signals():
        try:
            partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{PROCESSES}-{os.getpid()}-", dir=path.parent)) / path.name
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        except Exception as error:
            cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), None)   # torch.save follows it by another
            if cause is None:
                raise
            raise _explained(cause, path, partial, size) from error
        finally:
            if partial:
                shutil.rmtree(partial.parent, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    with suppress(OSError) if folder else nullcontext():   # not every file system has that for folders
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explained(error: OSError, path: Path, partial: Path | None, size: int) -> WriteError:
    """The error with what a user needs to know of it."""
    if isinstance(error, WriteError):
        return error
    reason = error.strerror or str(error)
    if not path.parent.is_dir():
        return WriteError(error.errno, f"{path}: cannot be written, its folder is gone")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        written = partial.stat().st_size if partial and partial.is_file() else 0
        needed = f"{_readable(size)} are needed" if size else f"more than {_readable(written)} are needed"
        reason += f"; {needed}, {_readable(_room(path.parent))} are free"
    before = "; the file that was there before is intact" if path.is_file() else ""
    return WriteError(error.errno, f"{path}: cannot be written: {reason}{before}")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table with full float precision."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_together(folder: Path, texts: dict[str, str]) -> None:
    """Write files of one folder, name -> text, which belong together: all are safe on the disk before the first takes its place.

    Those that were there before go first, so that not even a killed run leaves old ones among the new. Signals wait meanwhile.
    """
    make_folder(folder)
    with defer_signals(), atomic(folder / next(iter(texts))) as first:
        for name, text in texts.items():
            (first.parent / name).write_text(text, encoding="utf-8")
            sync(first.parent / name)
        for name in texts:
            (folder / name).unlink(missing_ok=True)
        for name in texts:
            if name != first.name:
                os.replace(first.parent / name, folder / name)


def make_folder(folder: Path) -> None:
    """Make a folder, with those that it lies in, and see that files can be written to it. Raises WriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"can it be written to?")
    except OSError as error:
        raise WriteError(error.errno, f"{folder}: cannot be written to: {error.strerror or error}") from error


def check_place(folder: Path) -> None:
    """Raise WriteError if a folder is not there and cannot be made either, or cannot be written to."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise WriteError(errno.EACCES, f"{folder}: cannot be written to: {place} is {'not writable' if place.is_dir() else 'no folder'}")


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise WriteError if the disk of the folder has not so many bytes left."""
    if (free := _room(folder)) < needed:
        raise WriteError(errno.ENOSPC, f"{folder}: {what} need {_readable(needed)}, {_readable(free)} are free on its disk")


def remove_leftovers(root: Path, everyones: bool = False) -> None:
    """Remove, in all folders under root, what killed runs were writing: of dead processes of this machine, of others after a day.

    everyones: without that caution, because nobody else writes here.
    """
    found = [Path(place) / name for place, folders, _ in os.walk(root) for name in folders if name.startswith(PARTIAL)]
    for folder in found:                                   # os.walk, because another run's may vanish meanwhile
        host, _, pid = folder.name.removeprefix(PARTIAL).rpartition("-")[0].rpartition("-")
        with suppress(OSError, ValueError):                # gone meanwhile, or not named by this program
            if everyones or folder.stat().st_mtime < time.time() - DAY or (host == PROCESSES and not _is_alive(pid)):
                shutil.rmtree(folder)


def _is_alive(pid: str | int) -> bool:
    """Whether another process of this machine has that number."""
    if int(pid) == os.getpid():
        return False
    if os.name == "nt":                                    # there the question itself would end the process
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# ---------------------------------------------------------------- one run a folder

class FolderLock:
    """Keeps a second run out of a folder. The system frees it with the process, so that none is left behind by a killed run.

    While it is held, running.json in the folder says by whom.
    """

    def __init__(self, folder: Path):
        self.folder, self.note, self.lock = folder, folder / "running.json", FileLock(folder / ".lock")
        self.left_by = ""                                  # whose killed run left it behind

    def __enter__(self) -> "FolderLock":
        if self.folder.is_dir():                           # otherwise nobody works there; it is made when there is something to write
            self.acquire()
        return self

    def __exit__(self, *_) -> None:
        if self.lock.is_locked:
            with suppress(OSError):
                self.note.unlink(missing_ok=True)
            self.lock.release()

    def acquire(self) -> None:
        """Take the lock, if this run does not hold it yet. Raises BusyError with who holds it."""
        if self.lock.is_locked:
            return
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(f"{self.folder}: another run works here ({self._describe(self._owner())}); wait for it, stop it, or work in "
                            "another folder") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):                          # a disk without locks
                raise WriteError(error.errno, f"{self.folder}: cannot be locked: {error.strerror or error}") from error
            say("check", f"{self.folder}: its disk has no locks; see to it that no second run works there")
            return
        self.left_by = self._describe(self._owner()) if self.note.is_file() else ""
        write_text(self.note, json.dumps({"host": HOST, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))

    def _owner(self) -> dict:
        try:
            owner = json.loads(self.note.read_text())
            return {"host": str(owner["host"]), "pid": int(owner["pid"]), "since": str(owner["since"])}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return {}

    @staticmethod
    def _describe(owner: dict) -> str:
        return "process {pid} on {host}, since {since}".format(**owner) if owner else "it has not said which"
