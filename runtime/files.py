"""Files: reading those of others within bounds, writing ours whole or not at all, free disk space, and the
lock of a folder."""
import errno
import json
import os
import shutil
import socket
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from runtime.logs import say
from runtime.signals import defer_signals
from utils import InputError

PARTIAL = ".partial-"  # prefix of a folder in which a file is being written
HOST = PROCESSES = socket.gethostname()  # PROCESSES: the place in which a process ID means one process
with suppress(OSError):  # containers with one host name have process IDs of their own
    PROCESSES += "." + os.readlink("/proc/self/ns/pid").strip("pid:[]")
DAY = 24 * 3600                                            # seconds
MAX_TEXT = 2 ** 26  # bytes of a list or table: a thousand for each of 60,000 scans


class WriteError(OSError):
    """A file could not be written: main prints the message and exits with code 5."""

    def __str__(self) -> str:
        """The message alone, without the number of the error."""
        return self.strerror


class BusyError(RuntimeError):
    """Another run works in the folder: main prints which one, and exits with code 7."""


# ---------------------------------------------------------------- reading the files of others

def brief(content: object) -> str:
    """Content of a foreign file, shortened to 80 characters for a message."""
    text = str(content)
    return text if len(text) <= 80 else f"{text[:77]}..."


def file_status(path: Path) -> os.stat_result:
    """Status of a regular file, to which links may lead. Raises InputError for all others: reading a pipe or
    a device might never end."""
    try:
        status = path.stat()
    except OSError as error:
        reason = link_problem(path) or f"{path}: cannot be read: {error.strerror}"
        raise InputError(reason) from error
    if not stat.S_ISREG(status.st_mode):
        link = f" (a link to {os.path.realpath(path)})" if path.is_symlink() else ""
        raise InputError(f"{path}: cannot be read: it is not a file but a folder, a pipe or a device{link}")
    return status


def link_problem(path: Path) -> str:
    """Describe the first link on the way to a file that leads nowhere, and what to do; empty if there is
    none."""
    for place in (*reversed(path.parents), path):
        try:
            if os.path.islink(place):
                place.stat()
        except OSError as error:
            target = os.path.realpath(place)
            if error.errno == errno.ELOOP:
                return f"{place}: is a link that leads in a circle; let it lead to the file"
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return f"{place}: is a link to {target}, which cannot be read: {error.strerror}"
            if ".git/annex/objects" in Path(target).as_posix():
                return f"{place}: its content is not here; run `datalad get {place}`"
            return f"{place}: is a link to {target}, which is not there; mend the link or bring the file back"
    return ""


def read_bytes(path: Path) -> bytes:
    """Content of a list or table. Raises InputError if it cannot be read, or is over MAX_TEXT bytes."""
    size = file_status(path).st_size
    if size > MAX_TEXT:
        raise InputError(f"{path}: has {size} bytes; expected a text of at most {MAX_TEXT}")
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, with or without byte order mark. Raises InputError if it is not such a text,
    or over MAX_TEXT bytes."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text in UTF-8: {brief(error)}") from error


def read_own_table(path: Path, columns: list[str], again: str, **kinds: type) -> pd.DataFrame:
    """A CSV that this project wrote, without incomplete rows. kinds: types of columns that might be taken for
    numbers.

    Raises InputError if the file is missing or damaged, or lacks one of the columns. again: for the message,
    how to make it again.
    """
    try:
        return pd.read_csv(path, dtype=kinds).dropna(subset=columns)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not there or damaged; {again}") from error


def read_own_arrays(path: Path, again: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz that this project wrote, with the checksums of its archive verified: numpy itself
    looks at those of what it reads to the end alone.

    Raises InputError if the file is missing or damaged. again: for the message, how to make it again.
    """
    file_status(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise ValueError("a checksum does not fit")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({brief(error)}); {again}") from error


# ---------------------------------------------------------------- writing whole files

def _readable(size: int) -> str:
    return f"{size / 2 ** 30:.2f} GiB" if size > 2 ** 27 else f"{size / 2 ** 20:.2f} MiB"


def _free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, or of its nearest existing parent."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(nearest).free


@contextmanager
def atomic(path: Path, size: int = 0) -> Iterator[Path]:
    """A block that writes to a temporary path beside `path`, which replaces `path` when the block ends
    without an error.

    The folder of `path` must exist. size: bytes that will be written, for the message. Signals are deferred
    to the end of the block, and the file is then on the disk. Raises WriteError with the reason; the file
    that was at `path` before is then unchanged.
    """
    partial = None
    with defer_signals():
        try:
            prefix = f"{PARTIAL}{PROCESSES}-{os.getpid()}-"
            partial = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent)) / path.name
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        except Exception as error:
            cause = error if isinstance(error, OSError) else error.__context__  # torch.save raises another
            if not isinstance(cause, OSError):
                raise
            raise _explained(cause, path, partial, size) from error
        finally:
            if partial:
                shutil.rmtree(partial.parent, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    is_folder = path.is_dir()
    with suppress(OSError) if is_folder else nullcontext():  # not every file system can sync folders
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explained(error: OSError, path: Path, partial: Path | None, size: int) -> WriteError:
    """A WriteError with what the user needs to know."""
    if isinstance(error, WriteError):
        return error
    reason = error.strerror or str(error)
    if not path.parent.is_dir():
        return WriteError(error.errno, f"{path}: cannot be written, its folder is gone")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        written = partial.stat().st_size if partial and partial.is_file() else 0
        needed = f"{_readable(size)} are needed" if size else f"more than {_readable(written)} are needed"
        reason += f"; {needed}, {_readable(_free_bytes(path.parent))} are free"
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
    """Write files of one folder that belong together, name -> text. All are on the disk before the first
    replaces an old one.

    The old files are removed first, so that not even a killed run leaves old ones among the new. Signals are
    deferred meanwhile.
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
    """Make a folder and its parents, and write a file there as a test. Raises WriteError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"can it be written to?")
    except OSError as error:
        reason = link_problem(folder) or error.strerror or error
        raise WriteError(error.errno, f"{folder}: cannot be written to: {reason}") from error


def check_place(folder: Path) -> None:
    """Raise WriteError if a folder cannot be written to, or does not exist and cannot be made. Nothing is
    made; a file without a name is written in the nearest folder that there is."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        if reason := link_problem(folder):
            raise WriteError(errno.ENOENT, f"{folder}: cannot be written to: {reason}")
        raise WriteError(errno.EACCES, f"{folder}: cannot be written to: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise WriteError(errno.EACCES, f"{folder}: cannot be written to: {nearest} is not writable")
    try:                                                   # a share may promise what it then refuses
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"can it be written to?")
    except OSError as error:
        raise WriteError(error.errno, f"{folder}: cannot be written to: {error.strerror or error}") from error


def can_write(folder: Path) -> bool:
    """Whether a folder can be written to, or can be made."""
    try:
        check_place(folder)
    except WriteError:
        return False
    return True


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise WriteError if the disk of the folder has fewer free bytes than needed."""
    free = _free_bytes(folder)
    if free < needed:
        raise WriteError(errno.ENOSPC,
                         f"{folder}: {what} need {_readable(needed)}, {_readable(free)} are free on its disk")


def remove_leftovers(root: Path, everyones: bool = False) -> None:
    """Remove the half-written files of killed runs in all folders under root: those of dead processes here,
    and any after a day.

    everyones: remove all of them, because nobody else writes here.
    """
    found = []
    for place, folders, _ in os.walk(root):                # rglob fails if a folder of another run vanishes
        found += [Path(place) / name for name in folders if name.startswith(PARTIAL)]
    for folder in found:
        host, _, pid = folder.name.removeprefix(PARTIAL).rpartition("-")[0].rpartition("-")
        with suppress(OSError, ValueError):                # gone meanwhile, or not named by this program
            is_old = folder.stat().st_mtime < time.time() - DAY
            if everyones or is_old or (host == PROCESSES and not _is_alive(pid)):
                shutil.rmtree(folder)


def _is_alive(pid: str | int) -> bool:
    """Whether another process of this machine has that ID."""
    if int(pid) == os.getpid():
        return False
    if os.name == "nt":                                    # on Windows os.kill would end the process
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# ---------------------------------------------------------------- one run in a folder

class FolderLock:
    """A lock that keeps a second run out of a folder. The system frees it when the process ends, even if that
    is killed.

    While it is held, running.json in the folder says by whom.
    """

    def __init__(self, folder: Path):
        self.folder, self.note, self.lock = folder, folder / "running.json", FileLock(folder / ".lock")
        self.left_by = ""                                  # the killed run, if one left its note behind

    def __enter__(self) -> "FolderLock":
        if self.folder.is_dir():  # else nobody works there; acquire is called once it is made
            self.acquire()
        return self

    def __exit__(self, *_) -> None:
        if self.lock.is_locked:
            with suppress(OSError):
                self.note.unlink(missing_ok=True)
            self.lock.release()

    def acquire(self) -> None:
        """Take the lock, unless this run holds it already. Raises BusyError that names the holder."""
        if self.lock.is_locked:
            return
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(f"{self.folder}: another run works here ({_describe(self._owner())}); wait for "
                            "it, stop it, or work in another folder") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # a disk without locks
                reason = error.strerror or error
                raise WriteError(error.errno, f"{self.folder}: cannot be locked: {reason}") from error
            say("check", f"{self.folder}: its disk has no locks; make sure that no second run works there")
            return
        self.left_by = _describe(self._owner()) if self.note.is_file() else ""
        owner = {"host": HOST, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_text(self.note, json.dumps(owner))

    def _owner(self) -> dict:
        """The content of running.json, empty if it cannot be read."""
        try:
            owner = json.loads(self.note.read_text())
            return {"host": str(owner["host"]), "pid": int(owner["pid"]), "since": str(owner["since"])}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return {}


def _describe(owner: dict) -> str:
    return "process {pid} on {host}, since {since}".format(**owner) if owner else "it has not said which"
