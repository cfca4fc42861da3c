"""Settings that are none any more because they gained nothing: what was made with the value that changes
nothing is read and goes on as before; what was made with another one is refused in a sentence that says which
version reads it."""
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_main import finished, no_pictures, project, run, same_states  # noqa: F401  fixtures, by their names
from test_tables import make_run

from config import Config
from evaluation.results import load_run, load_runs, save_run
from experiment.saved import read_settings
from runtime import settings
from runtime.checkpoints import StageRun, check_settings, load_checkpoint
from utils import InputError

# A removed setting, its value that changes nothing, another one; the first never was one.
REMOVED = [("made_up", 0.0, 5.0), ("zero_terminal_snr", False, True), ("min_snr", 0.0, 5.0),
           ("ldm_lr_decay", False, True)]
CASES = [*REMOVED, ("prediction", "v", "x0")]              # the last a choice of a setting that stays
READS_IT = "git checkout acd10f2 gives the version that reads it"


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    """The removed setting that never was one."""
    monkeypatch.setitem(settings.REMOVED, "made_up", 0.0)


def checkpoint_with(folder: Path, name: str, value) -> Path:
    """The last checkpoint of a stage 2 of one epoch, trained with this setting beside another one."""
    StageRun(folder, "ldm", "C", {}, {"lr": 1, name: value}, {}).finish_epoch(1, {}, None)
    return folder / "C_last.pth.tar"


@pytest.mark.parametrize(("name", "off", "on"), CASES)
def test_a_checkpoint_is_read_if_the_setting_changed_nothing_and_else_refused(tmp_path, name, off, on):
    path = checkpoint_with(tmp_path, name, off)
    check_settings(path, load_checkpoint(path), {"lr": 1})
    assert StageRun(tmp_path, "ldm", "C", {}, {"lr": 1}, {}).epoch == 1
    path.unlink()
    path = checkpoint_with(tmp_path, name, on)
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    assert str(error.value) == (f"{path} was made with {name} {json.dumps(on)}, which gained nothing and is "
                                f"gone (docs/study.md); {READS_IT}")
    with pytest.raises(InputError, match=READS_IT):
        StageRun(tmp_path, "ldm", "C", {}, {"lr": 1}, {})


@pytest.mark.parametrize(("name", "off", "on"), CASES)
def test_tools_use_an_experiment_if_the_setting_changed_nothing(tmp_path, monkeypatch, capsys, name, off, on):
    monkeypatch.chdir(tmp_path)
    path, cfg = tmp_path / "result" / "a" / "config.json", Config(**TINY | {"exp": "a"})
    path.parent.mkdir(parents=True)
    saved = json.loads(cfg.to_json())
    saved["settings"] |= {name: off}
    path.write_text(json.dumps(saved))
    assert Config(**read_settings("a")) == cfg
    saved["settings"] |= {name: on}
    path.write_text(json.dumps(saved))
    with pytest.raises(SystemExit) as stop:
        read_settings("a")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and f"result/a/config.json was made with {name} {json.dumps(on)}" in message
    assert READS_IT in message


@pytest.mark.parametrize(("name", "off", "on"), CASES)
def test_scores_stand_in_the_tables_if_the_setting_changed_nothing(tmp_path, name, off, on):
    before = {}
    for exp, value in (("a", off), ("b", on)):
        make_run(tmp_path, exp)
        run = load_run(tmp_path / "result" / exp)
        before = before or run.metadata["settings"]        # of the first
        metadata = run.metadata | {"settings": run.metadata["settings"] | {name: value}}
        for key in ("format", "files"):
            del metadata[key]
        frames = {"test": run.test, "uptake": run.uptake, "predictions": run.predictions}
        save_run(tmp_path / "result" / exp, metadata, frames)
    runs, left_out = load_runs(tmp_path / "result")
    assert [run.name for run in runs] == ["a"] and runs[0].metadata["settings"] == before
    assert left_out.keys() == {"b"} and READS_IT in left_out["b"]
    assert f"scores.json was made with {name} {json.dumps(on)}" in left_out["b"]


@pytest.mark.parametrize(("name", "off", "on"), REMOVED)
def test_who_gives_a_removed_setting_is_told_so(capsys, name, off, on):
    assert run(f"--{name}", str(on)) == 2
    message = capsys.readouterr().err
    assert f"unknown setting --{name}, which gained nothing and is gone (docs/study.md)" in message
    assert "git checkout acd10f2 gives the version that has it" in message


def test_who_gives_a_choice_that_is_gone_is_told_so(capsys):
    assert run("--prediction", "x0") == 2
    message = capsys.readouterr().err
    assert "prediction x0 gained nothing and is gone (docs/study.md)" in message
    assert "git checkout acd10f2 gives the version that has it" in message


def add_to_checkpoints(folder: Path, more: dict) -> None:
    """Note further settings in the checkpoints of a stage 2, which may be one file."""
    for name in ("CHECKPOINT_Unet.pth.tar", "CHECKPOINT_Unet_last.pth.tar"):
        saved = torch.load(folder / name, weights_only=True)
        saved["settings"] |= more
        (folder / name).unlink()
        torch.save(saved, folder / name)


def test_a_training_of_an_earlier_version_goes_on_bit_for_bit(project, capsys):  # noqa: F811
    """With every removed setting at the value that changes nothing."""
    whole, cut = (project / "result" / exp for exp in "ab")
    assert run("--stages", "check", "ldm", exp="b", aae_from="a", ldm_epochs=1) == 0
    add_to_checkpoints(cut, settings.REMOVED)
    assert run("--stages", "check", "ldm", exp="b", aae_from="a") == 0
    assert same_states(whole / "CHECKPOINT_Unet_last.pth.tar", cut / "CHECKPOINT_Unet_last.pth.tar")
    add_to_checkpoints(cut, {"made_up": 5.0})
    before = (cut / "config.json").read_bytes()
    assert run("--stages", "check", "ldm", exp="b", aae_from="a", ldm_epochs=3) == 2
    assert "CHECKPOINT_Unet_last.pth.tar was made with made_up 5.0, which gained" in capsys.readouterr().err
    assert (cut / "config.json").read_bytes() == before
