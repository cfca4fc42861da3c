"""Files: read within bounds, written whole or not at all; free disk space; the lock of a folder."""
import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import files
from runtime.files import (BusyError, FolderLock, WriteError, atomic, check_room, make_folder,
                           remove_leftovers, write_text, write_together)
from runtime.signals import Stopped, handle_signals

ROOT = Path(__file__).parents[1]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with atomic(path) as partial:
        partial.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as partial:
        partial.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_file_and_its_name_are_on_the_disk_before_the_block_ends(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def noted_sync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def noted_replace(*paths):
        events.append(("rename", None))
        replace(*paths)
    monkeypatch.setattr(files.os, "fsync", noted_sync)
    monkeypatch.setattr(files.os, "replace", noted_replace)
    write_text(tmp_path / "a.txt", "text")
    assert events == [("sync", (tmp_path / "a.txt").stat().st_ino), ("rename", None),
                      ("sync", tmp_path.stat().st_ino)]


def test_a_signal_does_not_cut_the_writing_of_a_file(tmp_path):
    with handle_signals(), pytest.raises(Stopped), atomic(tmp_path / "a.txt") as partial:
        os.kill(os.getpid(), signal.SIGTERM)
        partial.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_full_disk_is_reported_with_the_free_space_and_harms_nothing(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(WriteError) as error, atomic(path, size=3 * 2 ** 30) as partial:
        partial.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    free = shutil.disk_usage(tmp_path).free / 2 ** 30
    reported = re.search(r"No space left on device; 3.00 GiB are needed, ([\d.]+) GiB are free",
                         str(error.value))
    assert str(error.value).startswith(f"{path}: cannot be written: ")
    assert float(reported[1]) == pytest.approx(free, rel=0.1)  # others may write meanwhile
    assert "the file that was there before is intact" in str(error.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(WriteError, match="its folder is gone"):
        write_text(tmp_path / "gone" / "a.txt", "text")
    assert not (tmp_path / "gone").exists()


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(WriteError, match="a/b: cannot be written to: "):
        make_folder(tmp_path / "a" / "b")


def test_too_little_room_is_found_before_anything_is_written(tmp_path):
    check_room(tmp_path, 1, "the checkpoints")
    with pytest.raises(WriteError,
                       match=r"the checkpoints need 1048576\.00 GiB, [\d.]+ GiB are free on its disk"):
        check_room(tmp_path / "not" / "yet", 2 ** 50, "the checkpoints")


def test_what_dead_processes_were_writing_is_removed_and_what_others_write_is_not(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    names = {"dead": f".partial-{files.PROCESSES}-{process.pid}-x",
             "alive": f".partial-{files.PROCESSES}-{os.getppid()}-x", "elsewhere": ".partial-other-host-1-x",
             "old": ".partial-other-host-2-x"}
    for name in names.values():
        (tmp_path / "sub" / name).mkdir(parents=True)
    os.utime(tmp_path / "sub" / names["old"], (0, 0))
    remove_leftovers(tmp_path)
    assert {path.name for path in (tmp_path / "sub").iterdir()} == {names["alive"], names["elsewhere"]}
    remove_leftovers(tmp_path, everyones=True)
    assert not list((tmp_path / "sub").iterdir())


def test_a_second_run_in_a_folder_is_refused_with_the_name_of_the_first(tmp_path):
    with FolderLock(tmp_path):
        code = ("from pathlib import Path\nfrom runtime.files import FolderLock\n"
                f"FolderLock(Path({str(tmp_path)!r})).acquire()")
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                               cwd=ROOT)
        assert (
            f"BusyError: {tmp_path}: another run works here (process {os.getpid()} on {files.HOST}, since 2"
            in other.stderr
        )
        with pytest.raises(BusyError):
            FolderLock(tmp_path).acquire()
    with FolderLock(tmp_path) as lock:
        assert lock.left_by == ""
    assert not (tmp_path / "running.json").exists()


def test_the_lock_of_a_killed_run_is_recognised(tmp_path):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom runtime.files import FolderLock\nlock = "
        f"FolderLock(Path({str(tmp_path)!r}))\nlock.acquire()\n"
        # as a reading process, which outlives it
        "if os.fork() == 0:\n    import time; time.sleep(2); os._exit(0)\nos.kill(os.getpid(), "
        "signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], timeout=60, stdout=subprocess.DEVNULL, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    owner = json.loads((tmp_path / "running.json").read_text())
    with FolderLock(tmp_path) as lock:
        assert f"process {owner['pid']} on {files.HOST}" in lock.left_by
    for odd in ("half a fi", '{"host": "h", "pid": 1e400, "since": ""}', "[" * 100_000):
        (tmp_path / "running.json").write_text(odd)
        with FolderLock(tmp_path) as lock:
            assert lock.left_by == "it has not said which"


def test_a_disk_that_cannot_sync_folders_or_lock_files_will_do(tmp_path, monkeypatch, capsys):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)
    monkeypatch.setattr(files.os, "fsync", refuse_folders)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"

    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(files.FileLock, "acquire", no_locks)
    with FolderLock(tmp_path) as lock:
        assert not lock.lock.is_locked


def test_files_that_belong_together_are_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "lists"
    write_together(folder, {"a.txt": "old", "b.txt": "old"})
    (folder / "mine.txt").write_text("mine")

    def full(path: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch, pytest.raises(WriteError):
        patch.setattr(files, "sync", full)
        write_together(folder, {"a.txt": "new", "b.txt": "new"})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "old", "b.txt": "old",
                                                                          "mine.txt": "mine"}
    write_together(folder, {"a.txt": "new", "b.txt": "new"})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "new", "b.txt": "new",
                                                                          "mine.txt": "mine"}


def test_a_run_killed_between_files_that_belong_together_leaves_no_old_one_among_new(tmp_path, monkeypatch):
    write_together(tmp_path, {"a.txt": "old", "b.txt": "old", "c.txt": "old"})
    replaced, replace = [], os.replace

    def killed(*paths: object) -> None:
        if replaced:
            raise SystemExit                               # as a kill: no line after it is run
        replaced.append(replace(*paths))
    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(SystemExit):
        write_together(tmp_path, {"a.txt": "new", "b.txt": "new", "c.txt": "new"})
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"new"}
