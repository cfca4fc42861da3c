"""Checkpoints, and runs that continue from them."""
import os

import pandas as pd
import pytest
import torch
from torch import nn

from checkpoints import StageRun, check_settings, load_checkpoint, write_stage_rows
from utils import InputError


def test_rows_of_a_stage_replace_only_that_stage(tmp_path):
    path = tmp_path / "a.csv"
    write_stage_rows(path, "aae", [{"stage": "aae", "epoch": 1, "rec": 0.5}])
    write_stage_rows(path, "ldm", [{"stage": "ldm", "epoch": 1, "mse": 0.25}])
    write_stage_rows(path, "aae", [{"stage": "aae", "epoch": 1, "rec": 0.5}, {"stage": "aae", "epoch": 2, "rec": 0.125}])
    table = pd.read_csv(path)
    assert table[["stage", "epoch"]].values.tolist() == [["aae", 1], ["aae", 2], ["ldm", 1]]
    assert table["rec"].tolist()[:2] == [0.5, 0.125]
    assert table["mse"].tolist()[2] == 0.25


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Bomb()}, "bad.pth.tar")
    with pytest.raises(InputError, match="never code"):
        load_checkpoint(tmp_path / "bad.pth.tar")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("spoil", [lambda content: b"", lambda content: content[:500], lambda content: b"text" * 50])
def test_a_damaged_or_missing_checkpoint_is_an_input_error(tmp_path, spoil):
    path = tmp_path / "a.pth.tar"
    with pytest.raises(InputError, match="is not there"):
        load_checkpoint(path)
    torch.save({"a": torch.ones(100)}, path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match="cannot be used as a checkpoint"):
        load_checkpoint(path)


def test_a_published_checkpoint_in_its_place_is_named_as_such(tmp_path):
    torch.save({"state_dict": {}, "optimizer": {}}, tmp_path / "a.pth.tar")
    with pytest.raises(InputError, match="load_published"):
        load_checkpoint(tmp_path / "a.pth.tar")


def test_other_settings_are_listed_as_saved_and_now(tmp_path):
    with pytest.raises(InputError) as error:
        check_settings(tmp_path, {"settings": {"a": 1, "b": [1, 2], "c": "x"}}, {"a": 1, "b": [1, 3], "d": None, "c": "y"})
    assert "b: [1, 2] -> [1, 3]" in str(error.value)
    assert 'c: "x" -> "y"' in str(error.value)
    assert " a:" not in str(error.value)


def scores(psnr):
    return pd.DataFrame({"PSNR": [psnr], "SSIM": [0.5]})


def test_a_run_keeps_the_best_epoch_and_continues_behind_the_last(tmp_path):
    def new_run():
        module = nn.Linear(1, 1)
        return module, StageRun(tmp_path, "aae", "C", {"m": module}, {"lr": 1})
    module, run = new_run()
    assert list(run.epochs_left(4)) == [1, 2, 3, 4]
    run.facts = {"fact": 3.0}
    for epoch, psnr in ((1, 20.0), (2, 25.0), (3, 22.0)):
        with torch.no_grad():
            module.weight.fill_(epoch)
        run.finish_epoch(epoch, {"rec": 1 / epoch}, scores(psnr))
    best, last = load_checkpoint(tmp_path / "C.pth.tar"), load_checkpoint(tmp_path / "C_last.pth.tar")
    assert (best["epoch"], best["state"]["m"]["weight"].item(), best["facts"]) == (2, 2.0, {"fact": 3.0})
    assert (last["epoch"], last["state"]["m"]["weight"].item()) == (3, 3.0)
    validation = pd.read_csv(tmp_path / "validation.csv")
    assert validation["best"].tolist() == [False, True, False]
    assert validation["score"].tolist() == [25.0, 30.0, 27.0]

    (tmp_path / "validation.csv").write_text("stage,epoch,PSNR,SSIM,score,best\naae,1,")     # half a row, as a kill leaves it
    module, run = new_run()
    assert list(run.epochs_left(4)) == [4]
    assert (module.weight.item(), run.facts) == (3.0, {"fact": 3.0})
    assert pd.read_csv(tmp_path / "validation.csv")["epoch"].tolist() == [1, 2, 3]
    run.finish_epoch(4, {"rec": 0.1}, None)
    assert load_checkpoint(tmp_path / "C.pth.tar")["epoch"] == 2
    with pytest.raises(InputError, match="lr: 1 -> 2"):
        StageRun(tmp_path, "aae", "C", {"m": module}, {"lr": 2})


def test_a_run_may_start_with_epochs_that_are_not_validated(tmp_path):
    run = StageRun(tmp_path, "ldm", "C", {"m": nn.Linear(1, 1)}, {})
    run.finish_epoch(1, {"mse": 0.5}, None)
    assert not (tmp_path / "validation.csv").exists()
    assert not (tmp_path / "C.pth.tar").exists()
    run.finish_epoch(2, {"mse": 0.4}, scores(20.0))
    assert pd.read_csv(tmp_path / "validation.csv")["epoch"].tolist() == [2]
    assert load_checkpoint(tmp_path / "C.pth.tar")["epoch"] == 2
