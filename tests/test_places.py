"""Places that people have: cohorts that cannot be written to, folders of their own for latents, names that are
not UTF-8, little shared memory, and a result folder that somebody spoilt."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, arguments

import main
from experiment import session
from imaging import cache
from imaging.volumes import Crop
from runtime import files
from runtime.files import can_write, check_place, readable

ROOT = Path(__file__).parents[1]
SHORT = {**TINY, "aae_epochs": 1, "ldm_epochs": 1, "validation_every": 1}
TRAIN = ["check", "aae", "encode", "ldm"]


def run(*words: str, stages=TRAIN) -> int:
    return main.main([*arguments(SHORT), "--stages", *stages, *words])


def read_only(monkeypatch, *folders: str) -> None:
    """Let folders look as on a read-only share: root may write anywhere, so a mount is what it would take."""
    def refuse(folder: Path) -> None:
        """check_place, which knows these folders as read-only."""
        for name in folders:
            if folder.resolve().is_relative_to(Path(name).resolve()):
                raise files.WriteError(30, f"{folder}: cannot be written to: Read-only file system")
        check_place(folder)

    for module in (files, session):
        monkeypatch.setattr(module, "check_place", refuse)


# ---------------------------------------------------------------- latents

def latents_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*.nii.gz"))


def test_a_cohort_that_cannot_be_written_to_is_trained_on_and_latents_lie_in_result(root, monkeypatch, capsys):
    read_only(monkeypatch, "data", "data_info")
    before = {path: path.stat().st_mtime_ns for path in Path("data").rglob("*")}
    assert run("--exp", "a") == 0
    assert {path: path.stat().st_mtime_ns for path in Path("data").rglob("*")} == before
    [folder] = Path("result/latents").iterdir()
    assert len(latents_in(folder)) == 8 and len(list(folder.glob("survey-*.npz"))) == 1
    shown = capsys.readouterr().out
    assert f"data cannot be written to: latents are kept in {folder} (setting latent_dir)" in shown
    assert run("--exp", "a", "--ldm_epochs", "2", stages=["check", "encode", "ldm"]) == 0
    assert "0 of 8 latents are to be made" in capsys.readouterr().out


def test_two_read_only_cohorts_have_folders_of_their_own(root, monkeypatch):
    shutil.copytree("data", "other")
    read_only(monkeypatch, "data", "other")
    assert run("--exp", "a", stages=["check", "aae", "encode"]) == 0
    assert run("--exp", "b", "--data_dir", "other", stages=["check", "aae", "encode"]) == 0
    assert len(list(Path("result/latents").iterdir())) == 2


def test_latents_go_where_the_setting_says_and_a_resumed_run_makes_them_again_elsewhere(root, capsys):
    assert run("--exp", "a", "--latent_dir", "mine/latents") == 0
    assert len(latents_in("mine/latents")) == 8 and not Path("data/latent_Abeta").exists()
    capsys.readouterr()
    assert run("--exp", "a", "--latent_dir", "elsewhere", "--ldm_epochs", "2") == 0
    assert latents_in("elsewhere") == latents_in("mine/latents")
    assert "latent_dir: mine/latents -> elsewhere" in capsys.readouterr().out.replace("'", "").replace('"', "")
    assert run("--exp", "a", "--latent_dir", "nowhere", "--ldm_epochs", "3", stages=["ldm"]) == 2
    assert "nowhere" in (shown := capsys.readouterr().err) and "run --stages encode" in shown


def test_a_latent_dir_that_cannot_be_written_to_is_named_before_a_volume_is_read(root, monkeypatch, capsys):
    read_only(monkeypatch, "share")
    monkeypatch.setattr(session, "check_cohort", None)     # would be a fault of the program
    assert run("--latent_dir", "share/latents") == 5
    assert "error: latent_dir share/latents: cannot be written to: Read-only file system; --latent_dir takes" in (
        capsys.readouterr().err)
    Path("file").touch()
    assert run("--latent_dir", "file/latents") == 5
    assert "file is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["data", "data/whole_MRI", "data/whole_Abeta", "data/truth", "data_info"])
def test_latents_never_lie_among_the_inputs(root, capsys, folder):
    with pytest.raises(SystemExit) as stop:
        run("--latent_dir", folder)
    assert stop.value.code == 2
    assert f"latent_dir {folder} is a folder of the cohort" in capsys.readouterr().err


def test_a_result_folder_that_cannot_be_written_to_is_found_before_a_volume_is_read(root, monkeypatch, capsys):
    read_only(monkeypatch, "result")
    monkeypatch.setattr(session, "check_cohort", None)
    assert run() == 5
    assert "result/default: cannot be written to" in capsys.readouterr().err


def test_cache_file_without_a_temporary_folder_is_refused_before_a_volume_is_read(root, monkeypatch, capsys):
    def no_folder(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(session, "check_cohort", None)
    monkeypatch.setattr(cache.tempfile, "TemporaryFile",
                        lambda dir=None: no_folder() if dir is None else open("/dev/null", "wb"))
    assert run("--cache", "file") == 2
    assert "no folder for temporary files can be written to (No usable temporary" in capsys.readouterr().err


def test_cache_auto_without_a_temporary_folder_keeps_nothing(root, monkeypatch):
    def no_folder():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(cache, "free_memory", lambda: 0)
    monkeypatch.setattr(cache.tempfile, "gettempdir", no_folder)
    volumes = sorted(Path("data/whole_MRI").iterdir())
    assert cache.VolumeCache(volumes, Crop((3, 2, 3), (16, 24, 16))).place == "off"


def test_a_phantom_that_is_there_needs_no_writing_and_one_that_is_not_is_refused_at_once(root, monkeypatch, capsys):
    words = ["--preset", "demo", "--exp", "p", "--phantom_subjects", "2", "2", "2", "--stages", "check",
             "--phantom_voxel", "8", "--image_size", "22", "27", "22", "--crop_start", "3", "2", "3",
             "--volume_size", "16", "24", "16", "--aae_batch_size", "1", "--ldm_batch_size", "1", "--data_dir"]
    assert main.main([*words, "share/ph", "--label_at_sampling", "none", "--label_in_training", "none"]) == 0
    read_only(monkeypatch, "share")
    assert main.main([*words, "share/ph", "--label_at_sampling", "none", "--label_in_training", "none"]) == 0
    capsys.readouterr()
    assert main.main([*words, "share/other"]) == 5
    assert "error: share/other: cannot be written to: Read-only file system" in capsys.readouterr().err


def can_mount() -> bool:
    """Whether this process may make a mount of its own."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True) if shutil.which("unshare") else None
    return bool(done) and done.returncode == 0


def test_a_folder_on_a_read_only_mount_is_found_to_be_one(tmp_path):
    """Through a mount where this may be made; elsewhere by the rights of the folder, which root ignores."""
    share, code = tmp_path / "share", "import sys; from pathlib import Path; from runtime.files import can_write; "
    share.mkdir()
    code += "sys.exit(can_write(Path(sys.argv[1]) / 'new' / 'folder'))"
    command = [sys.executable, "-c", code, str(share)]
    if can_mount():
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", script, str(share), *command]
    else:
        share.chmod(0o500)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 or (os.geteuid() == 0 and not can_mount()), done.stderr
    assert can_write(tmp_path / "new" / "folder") and not (tmp_path / "new").exists()
