"""Disks that are full, read-only or gone: what was there before is unharmed, and the same command goes on
when there is room."""
import errno
import os
import re
import shutil
import subprocess
from collections import Counter

import pytest
import torch
from conftest import TINY, arguments, write_cohort
from interrupt import outputs

import main
from experiment import session
from runtime import files
from runtime.checkpoints import StageRun

STAGES = ["--stages", "check", "aae", "encode", "ldm", "test", "report", "tables"]


def run(stages=STAGES, **settings) -> int:
    """The exit code of these stages on the tiny cohort."""
    return main.main(arguments(TINY | {"exp": "a"} | settings) + stages)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict:
    """The outputs of a run that nothing disturbed."""
    root, before = tmp_path_factory.mktemp("expected"), os.getcwd()
    write_cohort(root)
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert run() == 0
    finally:
        os.chdir(before)
    return outputs(root)


def contents(root) -> dict[str, bytes]:
    """Every file that a run is to keep whole, with its bytes."""
    return {str(path): path.read_bytes() for path in root.rglob("*")
            if path.is_file() and path.name not in ("run.log", "running.json", ".lock")}


def test_every_single_write_may_fail_for_want_of_room(root, expected, monkeypatch, capsys, count,
                                                      record_property):
    """The disk fills up at one write after the other; each time the message names the file, and no file is
    half there."""
    sync, failed, step = files.sync, Counter(), count(9, 1)

    def full_at(number):
        calls = iter(range(10 ** 6))

        def fails(path):
            if path.is_file() and next(calls) == number:
                failed[path.suffix] += 1
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            sync(path)
        return fails
    for number in range(0, 10 ** 6, step):
        for folder in ("result", "data/latent_Abeta"):
            shutil.rmtree(root / folder, ignore_errors=True)
        monkeypatch.setattr(files, "sync", full_at(number))
        code = run()
        if code == 0:
            break
        assert code == 5
        err = capsys.readouterr().err
        assert re.search(
            r"cannot be written: No space left on device; (more than )?[\d.]+ [MG]iB are needed, [\d.]+ "
             "[MG]iB are free",
            err,
        )
        assert "Traceback" not in err
        assert not list(root.rglob(f"{files.PARTIAL}*"))
        before = {name: content for name,
                  content in contents(root).items() if name.endswith((".tar", ".nii.gz"))}
        monkeypatch.setattr(files, "sync", sync)
        if number % (5 * step) == 0:                       # to go on takes as long as all the rest
            assert run() == 0
            assert outputs(root) == expected
            after = contents(root)
            assert all(after[name] == content for name, content in before.items() if "latent" in name)
    assert outputs(root) == expected
    kinds = {".tar", ".gz", ".csv", ".png", ".pdf", ".json", ".html", ".md", ".tex"}
    assert failed.keys() == kinds if step == 1 else len(failed.keys() & kinds) > 4
    record_property("trust", f"disk full at {sum(failed.values())} writes ({dict(failed)})")


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts, or changes, a disk in memory with these options; a folder on it that holds the
    tiny cohort."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True,
                       capture_output=True)
    try:
        mount("size=64m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a disk; the test before this one needs none")
    write_cohort(disk)
    yield disk, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_run_on_a_disk_that_fills_up_goes_on_when_there_is_room(small_disk, expected, monkeypatch, capfd,
                                                                  count, record_property):
    disk, remount = small_disk
    monkeypatch.chdir(disk)
    monkeypatch.setattr(session, "check_room", lambda *_: None)  # it would refuse at once
    used, ends = shutil.disk_usage(disk).used // 1024, []
    for room in [*range(40, 4000, count(640, 160)), 60_000]:                                 # KiB
        remount(f"size={used + room}k")
        before = contents(disk)
        ends.append(run())
        err = capfd.readouterr().err
        assert "Traceback" not in err
        if ends[-1] == 0:
            break
        assert ends[-1] == 5
        assert "No space left on device" in err
        after = contents(disk)
        assert before.keys() - after.keys() <= {
            str(disk / "result/a" / name)
            for name in ("scores.json", "test.csv", "summary.csv", "predictions.csv", "validation_list.csv")
        }   # of synthetic PETs that are made anew
        assert not list(disk.rglob(f"{files.PARTIAL}*"))
    assert outputs(disk) == expected
    assert len(ends) > 4
    record_property("trust", f"a full disk met {len(ends) - 1} times on the way to the same outputs")


def test_a_read_only_disk_is_named_before_the_first_epoch(small_disk, monkeypatch, capsys):
    disk, remount = small_disk
    monkeypatch.chdir(disk)
    remount("ro")
    assert run() == 5
    assert re.search(r"result/a: cannot be written to: .* is not writable", capsys.readouterr().err)
    remount("rw")
    assert run(["--stages", "aae"]) == 0
    before = contents(disk)
    remount("ro")
    assert run(["--stages", "aae"], aae_epochs=3) == 5
    assert re.search(r"result/a: cannot be written to: .* is not writable", capsys.readouterr().err)
    assert contents(disk) == before
    remount("rw")


def test_a_disk_without_room_for_the_checkpoints_is_named_before_the_first_epoch(small_disk, monkeypatch,
                                                                                 capsys):
    disk, remount = small_disk
    monkeypatch.chdir(disk)
    used = shutil.disk_usage(disk).used // 1024
    remount(f"size={used + 800}k")
    assert run() == 5
    captured = capsys.readouterr()
    assert (
        "result/a: the checkpoints (the best, the last, and the next while it is written) need "
        in captured.err
    )
    assert "aae " not in captured.out


def test_an_experiment_folder_that_vanishes_ends_the_run_and_is_not_made_again(root, monkeypatch, capsys):
    finish = StageRun.finish_epoch

    def vanish(self, epoch, *args):
        if epoch == 2:
            shutil.rmtree(root / "result")
        finish(self, epoch, *args)
    monkeypatch.setattr(StageRun, "finish_epoch", vanish)
    assert run() == 5
    assert (
        "CHECKPOINT_AAE_last.pth.tar: cannot be written, its folder is gone (stage aae)"
        in capsys.readouterr().err
    )
    assert not (root / "result").exists()
