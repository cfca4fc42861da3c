"""Places that people have: cohorts that cannot be written to, folders of their own for latents, names that
are not UTF-8, little shared memory, and a result folder that somebody spoilt."""
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
from imaging.grids import Crop
from runtime import files
from runtime.files import can_write, check_place
from runtime.logs import LOG, logging_run, readable, say
from runtime.shared_memory import free_shared_memory, readers_that_fit

ROOT = Path(__file__).parents[1]
DRAWS = False
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


def test_a_cohort_that_cannot_be_written_to_is_trained_on_and_latents_lie_in_result(
    root, monkeypatch, capsys
):
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
    assert "latent_dir: mine/latents -> elsewhere" in capsys.readouterr().out.replace("'", "").replace(
        '"', ""
    )
    assert run("--exp", "a", "--latent_dir", "nowhere", "--ldm_epochs", "3", stages=["ldm"]) == 2
    assert "nowhere" in (shown := capsys.readouterr().err) and "run --stages encode" in shown


def test_a_latent_dir_that_cannot_be_written_to_is_named_before_a_volume_is_read(root, monkeypatch, capsys):
    read_only(monkeypatch, "share")
    monkeypatch.setattr(session, "check_cohort", None)     # would be a fault of the program
    assert run("--latent_dir", "share/latents") == 5
    assert (
        "error: latent_dir share/latents: cannot be written to: Read-only file system; --latent_dir takes"
        in (capsys.readouterr().err)
    )
    Path("file").touch()
    assert run("--latent_dir", "file/latents") == 5
    assert "file is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["data", "data/whole_MRI", "data/whole_Abeta", "data/truth", "data_info"])
def test_latents_never_lie_among_the_inputs(root, capsys, folder):
    with pytest.raises(SystemExit) as stop:
        run("--latent_dir", folder)
    assert stop.value.code == 2
    assert f"latent_dir {folder} is a folder of the cohort" in capsys.readouterr().err


def test_a_result_folder_that_cannot_be_written_to_is_found_before_a_volume_is_read(
    root, monkeypatch, capsys
):
    read_only(monkeypatch, "result")
    monkeypatch.setattr(session, "check_cohort", None)
    assert run() == 5
    assert "result/default: cannot be written to" in capsys.readouterr().err


def test_cache_file_without_a_temporary_folder_is_refused_before_a_volume_is_read(root, monkeypatch, capsys):
    make = cache.tempfile.TemporaryFile

    def only_in_a_named_folder(dir=None):
        """TemporaryFile of a system without a folder for temporary files."""
        if dir is None:
            raise FileNotFoundError(2, "No usable temporary directory found")
        return make(dir=dir)

    monkeypatch.setattr(session, "check_cohort", None)
    monkeypatch.setattr(cache.tempfile, "TemporaryFile", only_in_a_named_folder)
    assert run("--cache", "file") == 2
    assert "no folder for temporary files can be written to (No usable temporary" in capsys.readouterr().err


def test_cache_auto_without_a_temporary_folder_keeps_nothing(root, monkeypatch):
    def no_folder():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(cache, "free_memory", lambda: 0)
    monkeypatch.setattr(cache.tempfile, "gettempdir", no_folder)
    volumes = sorted(Path("data/whole_MRI").iterdir())
    assert cache.VolumeCache(volumes, Crop((3, 2, 3), (16, 24, 16))).place == "off"


def test_a_phantom_that_is_there_needs_no_writing_and_one_that_is_not_is_refused_at_once(
    root, monkeypatch, capsys
):
    words = [
        "--preset",
        "demo",
        "--exp",
        "p",
        "--phantom_subjects",
        "2",
        "2",
        "2",
        "--stages",
        "check",
        "--phantom_voxel",
        "8",
        "--image_size",
        "22",
        "27",
        "22",
        "--crop_start",
        "3",
        "2",
        "3",
        "--volume_size",
        "16",
        "24",
        "16",
        "--aae_batch_size",
        "1",
        "--ldm_batch_size",
        "1",
        "--data_dir",
    ]
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
    share, code = (
        tmp_path / "share",
        "import sys; from pathlib import Path; from runtime.files import can_write; ",
    )
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


# ---------------------------------------------------------------- links that lead nowhere

def test_latents_lie_in_result_if_their_place_is_a_link_that_leads_nowhere(root, capsys):
    Path("data/latent_Abeta").symlink_to("/purged/scratch")
    assert run("--exp", "a", stages=["check", "aae", "encode"]) == 0
    [folder] = Path("result/latents").iterdir()
    assert len(latents_in(folder)) == 8
    assert ("data/latent_Abeta: is a link to /purged/scratch, which is not there; mend the link or bring the "
            f"file back: latents are kept in {folder} (setting latent_dir)") in capsys.readouterr().out


@pytest.mark.parametrize(("place", "words"), [
    ("mine", ["--latent_dir", "mine"]), ("mine", ["--latent_dir", "mine/latents/a"]),
    ("result/a", ["--exp", "a"]), ("result", ["--exp", "a"])])
def test_a_link_that_leads_nowhere_is_named_before_a_volume_is_read(root, monkeypatch, capsys, place, words):
    shutil.rmtree("result", ignore_errors=True)
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).symlink_to("/purged/scratch")
    monkeypatch.setattr(session, "check_cohort", None)     # would be a fault of the program
    assert run(*words) == 5
    assert f"{place}: is a link to /purged/scratch, which is not there" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "expected"), [
    ("/purged/scratch", "which is not there"), ("link", "leads in a circle"), ("file", "is not a folder")])
@pytest.mark.parametrize("below", ["", "new/folder"])
def test_no_folder_can_be_made_through_a_link_that_leads_to_none(tmp_path, target, expected, below):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(target)
    for refuse in (check_place, files.make_folder) if target != "file" else (check_place,):
        with pytest.raises(files.WriteError, match=f"link.*{expected}"):
            refuse(tmp_path / "link" / below)
    assert not can_write(tmp_path / "link" / below)


def test_a_folder_can_be_made_through_a_link_to_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert can_write(tmp_path / "link") and can_write(tmp_path / "link" / "new")


# ---------------------------------------------------------------- shared memory

@pytest.mark.parametrize(("workers", "batches", "free", "expected"), [
    (4, [100, 200], 2700, 4),                              # (4 processes x 2 batches ahead + 1) x 300 bytes
    (4, [100, 200], 2699, 0), (1, [1000], 3000, 1), (1, [1000], 2999, 0), (2, [1], 0, 0),
    (0, [10 ** 12], 0, 0), (4, [10 ** 12], None, 4)])
def test_readers_are_used_if_their_batches_fit_into_shared_memory(workers, batches, free, expected):
    number, remark = readers_that_fit(workers, batches, free)
    assert number == expected and bool(remark) == (expected != workers)
    if remark:
        assert f"num_workers {workers} needs up to" in remark and "as with num_workers 0" in remark


def test_free_shared_memory_is_none_where_there_is_no_such_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.shared_memory.FOLDER", tmp_path / "not there")
    assert free_shared_memory() is None
    monkeypatch.setattr("runtime.shared_memory.FOLDER", tmp_path)
    assert free_shared_memory() == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


def test_a_run_with_little_shared_memory_reads_in_its_main_process_and_says_so(root):
    """On a true /dev/shm of 256 KiB where it may be mounted; elsewhere the run is told that there is so
    much."""
    words = [*arguments({**SHORT, "num_workers": 4}), "--stages", "check", "aae"]
    lines = ["import sys", "from runtime import shared_memory", "import main"]
    script = 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"'
    before = ["unshare", "-m", "sh", "-c", script, "sh"]
    if not can_mount():
        before = []
        lines.insert(2, "shared_memory.free_shared_memory = lambda: 2 ** 18")
    command = [
        *before,
        sys.executable,
        "-c",
        "\n".join([*lines, "sys.exit(main.main(sys.argv[1:]))"]),
        *words,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert "num_workers 4 needs up to" in done.stdout and "has 0 MiB free" in done.stdout
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- names that are not UTF-8

ODD = os.fsdecode(b"M\xfcller")


@pytest.mark.parametrize(("name", "expected"), [
    (ODD, "M\\xfcller"), ("Müller", "Müller"), ("plain", "plain"), (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
    ("\ud800", "\\x00"), ("脳", "脳"), ("", "")])
def test_a_name_is_shown_with_its_odd_bytes(name, expected):
    assert readable(name) == expected
    readable(name).encode()


@pytest.mark.parametrize("setting", ["data_dir", "info_dir", "latent_dir", "brain_mask", "cortex_mask"])
def test_a_setting_that_is_not_utf_8_is_refused_at_once(root, capsys, setting):
    shutil.copytree("data", ODD)
    with pytest.raises(SystemExit) as stop:
        run(f"--{setting}", ODD)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert f"{setting} M\\xfcller is not a name in UTF-8" in message and "give a link to it" in message


@pytest.mark.parametrize("words", [
    ["prepare", "--table", ODD], ["prepare", "--table", "t.csv", "--info_dir", ODD],
    ["preprocess", "--raw", ODD], ["prepare", "--table", "t.csv", "--demographics", f"{ODD}/a.csv"]])
def test_every_word_refuses_such_a_setting(root, capsys, words):
    with pytest.raises(SystemExit) as stop:
        main.main(words)
    assert stop.value.code == 2
    assert "M\\xfcller" in capsys.readouterr().err


def test_a_link_with_a_plain_name_is_the_way_out(root):
    Path("data").rename(ODD)
    Path("plain").symlink_to(ODD)
    assert run("--data_dir", "plain", "--latent_dir", "latents", stages=["check", "aae", "encode"]) == 0


def test_a_file_of_such_a_name_in_no_list_stops_nothing(root, capsys):
    for folder in ("whole_MRI", "whole_Abeta"):
        (Path("data") / folder / f"{ODD}.nii.gz").write_bytes(b"broken")
    (Path("data/whole_MRI") / "broken.nii.gz").write_bytes(b"broken")
    assert run(stages=["check"]) == 0
    rows = "".join(f"s{i:02d},{i % 2}\n" for i in range(1, 11))
    Path("t.csv").write_text(f"ID,label\n{rows}")
    assert main.main(["prepare", "--table", "t.csv", "--overwrite"]) == 0
    assert "M\\xfcller,file name is no ID" in Path("data_info/left_out.csv").read_text()


def test_a_line_with_such_a_name_is_written_to_screen_and_log(tmp_path, capsys):
    from runtime.logs import keep_log
    with logging_run():
        keep_log(tmp_path / "run.log")
        say("check", ODD)
        LOG.error("%s", ODD)
    assert "check  M\\xfcller" in (tmp_path / "run.log").read_text()
    assert "M\\xfcller" in capsys.readouterr().err
