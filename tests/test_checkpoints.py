"""Checkpoints, and runs that continue from them."""
import errno
import os
import signal
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from runtime.checkpoints import (FORMAT, Progress, StageRun, check_settings, load_checkpoint, restore,
                                 write_stage_rows)
from runtime.signals import Stopped
from utils import InputError, NotFiniteError


def test_rows_of_a_stage_replace_only_that_stage(tmp_path):
    path = tmp_path / "a.csv"
    write_stage_rows(path, "aae", [{"stage": "aae", "epoch": 1, "rec": 0.5}])
    write_stage_rows(path, "ldm", [{"stage": "ldm", "epoch": 1, "mse": 0.25}])
    write_stage_rows(path, "aae",
                     [{"stage": "aae", "epoch": 1, "rec": 0.5}, {"stage": "aae", "epoch": 2, "rec": 0.125}])
    table = pd.read_csv(path)
    assert table[["stage", "epoch"]].values.tolist() == [["aae", 1], ["aae", 2], ["ldm", 1]]
    assert table["rec"].tolist()[:2] == [0.5, 0.125]
    assert table["mse"].tolist()[2] == 0.25


class Bomb:
    """An object that makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Bomb()}, "bad.pth.tar")
    with pytest.raises(InputError, match="never code"):
        load_checkpoint(tmp_path / "bad.pth.tar")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("spoil",
                         [lambda content: b"", lambda content: content[:500], lambda content: b"text" * 50])
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


@pytest.mark.parametrize(
    ("number", "described"),
    [(None, "no format number"), (FORMAT - 1, f"format {FORMAT - 1}"), (FORMAT + 1, f"format {FORMAT + 1}"),
     (str(FORMAT), "no format number")],
)
def test_a_checkpoint_of_another_version_is_refused_with_what_to_do(tmp_path, number, described):
    stage_run(tmp_path, nn.Linear(1, 1)).finish_epoch(1, {"rec": 1.0}, scores(20.0))
    saved = load_checkpoint(tmp_path / "C_last.pth.tar")
    assert saved["format"] == FORMAT
    saved["format"] = number
    if number is None:  # as before checkpoints had a number: with another name of the metadata
        del saved["format"]
        saved["facts"] = saved.pop("metadata")
    for path in (tmp_path / "C.pth.tar", tmp_path / "C_last.pth.tar"):
        torch.save(saved, path)
        with pytest.raises(InputError) as error:
            load_checkpoint(path)
        assert str(error.value) == (f"{path} was written by another version of this project ({described}, "
                                    f"expected format {FORMAT}); train under another --exp, or use the "
                                    "version that wrote it")
    with pytest.raises(InputError, match="C_last.pth.tar was written by another version"):
        stage_run(tmp_path, nn.Linear(1, 1))


def test_other_settings_are_listed_as_saved_and_now(tmp_path):
    with pytest.raises(InputError) as error:
        check_settings(tmp_path, {"settings": {"a": 1, "b": [1, 2], "c": "x"}},
                       {"a": 1, "b": [1, 3], "d": None, "c": "y"})
    assert "b: [1, 2] -> [1, 3]" in str(error.value)
    assert 'c: "x" -> "y"' in str(error.value)
    assert " a:" not in str(error.value)


def test_the_settings_of_an_earlier_version_are_compared_under_their_present_names(tmp_path):
    StageRun(tmp_path, "r", "C", {}, {"regression_channels": 4, "lr": 1}, {}).finish_epoch(1, {}, None)
    path = tmp_path / "C_last.pth.tar"
    check_settings(path, load_checkpoint(path), {"image_regression.channels": 4, "lr": 1})
    with pytest.raises(InputError, match="image_regression.channels: 4 -> 8"):
        check_settings(path, load_checkpoint(path), {"image_regression.channels": 8, "lr": 1})


def test_a_checkpoint_of_an_earlier_version_has_its_norms_where_they_were(tmp_path):
    earlier = {"aae_output_norm": True, "aae_block_norm": False, "lr": 1}
    StageRun(tmp_path, "aae", "C", {}, earlier, {}).finish_epoch(1, {}, None)
    path = tmp_path / "C_last.pth.tar"
    check_settings(path, load_checkpoint(path), {"aae_norms": ["output"], "lr": 1})
    with pytest.raises(InputError, match=r'aae_norms: \["output"\] -> \["blocks"\]'):
        check_settings(path, load_checkpoint(path), {"aae_norms": ["blocks"], "lr": 1})


def test_a_checkpoint_without_a_setting_that_came_later_was_trained_with_what_there_was(tmp_path):
    check_settings(tmp_path, {"settings": {}}, {"upsampling": "transposed"})
    for saved, now in (({}, "blurred"), ({"upsampling": "blurred"}, "transposed")):
        before = saved.get("upsampling", "transposed")
        with pytest.raises(InputError, match=f'upsampling: "{before}" -> "{now}"'):
            check_settings(tmp_path, {"settings": saved}, {"upsampling": now})


def scores(psnr):
    """Scores of a validation list of one subject."""
    return pd.DataFrame({"PSNR": [psnr], "SSIM": [0.5]})


def test_a_run_keeps_the_best_epoch_and_continues_after_the_last(tmp_path):
    def new_run(workers=2):
        module = nn.Linear(1, 1)
        return module, StageRun(tmp_path, "aae", "C", {"m": module}, {"lr": 1}, {"num_workers": workers})
    module, run = new_run()
    assert list(run.epochs_left(4)) == [1, 2, 3, 4]
    run.metadata = {"fact": 3.0}
    for epoch, psnr in ((1, 20.0), (2, 25.0), (3, 22.0)):
        with torch.no_grad():
            module.weight.fill_(epoch)
        run.finish_epoch(epoch, {"rec": 1 / epoch}, scores(psnr))
    best, last = load_checkpoint(tmp_path / "C.pth.tar"), load_checkpoint(tmp_path / "C_last.pth.tar")
    assert (best["epoch"], best["state"]["m"]["weight"].item(), best["metadata"]) == (2, 2.0, {"fact": 3.0})
    assert (last["epoch"], last["state"]["m"]["weight"].item()) == (3, 3.0)
    validation = pd.read_csv(tmp_path / "validation.csv")
    assert validation["best"].tolist() == [False, True, False]
    assert validation["score"].tolist() == [25.0, 30.0, 27.0]

    # half a row, as a kill leaves it
    (tmp_path / "validation.csv").write_text("stage,epoch,PSNR,SSIM,score,best\naae,1,")
    module, run = new_run(workers=0)
    assert run.remarks == ["num_workers: 2 -> 0"]
    assert list(run.epochs_left(4)) == [4]
    assert (module.weight.item(), run.metadata) == (3.0, {"fact": 3.0})
    assert pd.read_csv(tmp_path / "validation.csv")["epoch"].tolist() == [1, 2, 3]
    run.finish_epoch(4, {"rec": 0.1}, None)
    assert load_checkpoint(tmp_path / "C.pth.tar")["epoch"] == 2
    with pytest.raises(InputError, match="lr: 1 -> 2"):
        StageRun(tmp_path, "aae", "C", {"m": module}, {"lr": 2}, {})


def test_a_run_may_start_with_epochs_that_are_not_validated(tmp_path):
    run = StageRun(tmp_path, "ldm", "C", {"m": nn.Linear(1, 1)}, {}, {})
    run.finish_epoch(1, {"mse": 0.5}, None)
    assert not (tmp_path / "validation.csv").exists()
    assert not (tmp_path / "C.pth.tar").exists()
    run.finish_epoch(2, {"mse": 0.4}, scores(20.0))
    assert pd.read_csv(tmp_path / "validation.csv")["epoch"].tolist() == [2]
    assert load_checkpoint(tmp_path / "C.pth.tar")["epoch"] == 2


def test_an_optimizer_saved_in_another_memory_layout_goes_on_as_if_in_this_one():
    """A fused update reads weight, gradient and moments in the order in which they lie in memory."""
    def train(network, opt, steps):
        for _ in range(steps):
            opt.zero_grad()
            network(x).square().mean().backward()
            opt.step()
        return network, opt

    def start(layout):
        torch.manual_seed(0)
        network = nn.Conv3d(2, 3, 3).to(memory_format=layout)
        return network, torch.optim.Adam(network.parameters(), 0.1, fused=True)
    x = torch.rand(1, 2, 6, 6, 6)
    uncut, _ = train(*start(torch.channels_last_3d), 6)
    saved = [part.state_dict() for part in train(*start(torch.contiguous_format), 3)]
    parts = start(torch.channels_last_3d)
    for part, state in zip(parts, saved, strict=True):
        restore(part, state, Path("a"))
    resumed, _ = train(*parts, 3)
    torch.testing.assert_close(resumed.weight, uncut.weight, atol=1e-4, rtol=1e-4)


def stage_run(folder, module):
    """The training of a module with Adam, new or continued."""
    return StageRun(folder, "aae", "C", {"m": module, "opt": torch.optim.Adam(module.parameters())}, {}, {})


def test_a_stopped_epoch_is_saved_with_its_steps_and_is_never_the_best(tmp_path):
    module = nn.Linear(1, 1)
    run = stage_run(tmp_path, module)
    run.finish_epoch(1, {"rec": 1.0}, scores(20.0))
    with torch.no_grad():
        module.weight.fill_(7)
    torch.manual_seed(3)
    with pytest.raises(Stopped), run.saved_when_stopped():
        run.progress.add({"rec": 0.5}, 2)
        expected = torch.rand(4)
        raise Stopped(signal.SIGTERM)
    resumed = stage_run(tmp_path, nn.Linear(1, 1))
    assert (resumed.epoch, resumed.progress.losses, resumed.parts["m"].weight.item()) == (1, [{"rec": 0.5}],
                                                                                          7)
    resumed.progress.restore_random()
    assert torch.equal(torch.rand(4), expected)
    assert load_checkpoint(tmp_path / "C.pth.tar")["state"]["m"]["weight"].item() != 7
    resumed.finish_epoch(2, {"rec": 0.4}, scores(30.0))
    assert load_checkpoint(tmp_path / "C.pth.tar")["state"]["m"]["weight"].item() == 7
    assert vars(stage_run(tmp_path, nn.Linear(1, 1)).progress) == vars(Progress())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    module = nn.Linear(1, 1)
    run = stage_run(tmp_path, module)
    run.finish_epoch(1, {"rec": 1.0}, scores(20.0))
    before = (tmp_path / "C_last.pth.tar").read_bytes()
    with torch.no_grad():
        module.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="the weights of m are not finite and were not saved"):
        run.finish_epoch(2, {"rec": 0.4}, scores(30.0))
    assert (tmp_path / "C_last.pth.tar").read_bytes() == before


def test_the_best_checkpoint_alone_is_no_reason_to_begin_again(tmp_path):
    stage_run(tmp_path, nn.Linear(1, 1)).finish_epoch(1, {"rec": 1.0}, scores(20.0))
    (tmp_path / "C_last.pth.tar").unlink()
    with pytest.raises(
        InputError, match="C.pth.tar is there, but not C_last.pth.tar, from which its training would continue"
    ):
        stage_run(tmp_path, nn.Linear(1, 1))


@pytest.mark.parametrize(
    "spoil",
    [lambda state: state.pop("m"), lambda state: state["m"].pop("bias"),
     lambda state: state["m"].update(more=1), lambda state: state["m"].update(bias=torch.ones(2)),
     lambda state: state.update(opt=None),
     lambda state: state["opt"]["state"][0].update(exp_avg=torch.ones(5)),
     lambda state: state["opt"]["state"][0].update(exp_avg="x")],
)
def test_a_state_of_another_network_or_optimizer_is_refused(tmp_path, spoil):
    module = nn.Linear(1, 1)
    run = stage_run(tmp_path, module)
    module(torch.ones(1, 1)).sum().backward()
    run.parts["opt"].step()
    run.finish_epoch(1, {"rec": 1.0}, scores(20.0))
    assert stage_run(tmp_path, nn.Linear(1, 1)).epoch == 1
    saved = load_checkpoint(tmp_path / "C_last.pth.tar")
    spoil(saved["state"])
    torch.save(saved, tmp_path / "C_last.pth.tar")
    with pytest.raises(InputError, match="C_last.pth.tar does not fit the (Linear|Adam) of these settings: "):
        stage_run(tmp_path, nn.Linear(1, 1))


def test_a_checkpoint_with_compressed_parts_is_refused_before_they_are_unpacked(tmp_path):
    stage_run(tmp_path, nn.Linear(1, 1)).finish_epoch(1, {"rec": 1.0}, None)
    plain = zipfile.ZipFile(tmp_path / "C_last.pth.tar")
    with plain, zipfile.ZipFile(tmp_path / "b.pth.tar", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(InputError, match="its parts are compressed"):
        load_checkpoint(tmp_path / "b.pth.tar")


def test_a_spoilt_csv_of_the_other_stage_is_named_and_not_overwritten(tmp_path):
    (tmp_path / "loss_curve.csv").write_bytes(b"\xff\x00 no table")
    with pytest.raises(InputError, match="loss_curve.csv: not there or damaged; remove it if"):
        write_stage_rows(tmp_path / "loss_curve.csv", "aae", [{"stage": "aae", "epoch": 1}])
    assert (tmp_path / "loss_curve.csv").read_bytes() == b"\xff\x00 no table"


@pytest.mark.parametrize("spoil", [
    lambda saved: saved.update(progress={"x": 1}), lambda saved: saved["progress"]["random"].update(cpu=3),
    lambda saved: saved.update(epoch=-3), lambda saved: saved.update(losses=[[1]]),
    lambda saved: saved.update(validations=[{"epoch": 1}]), lambda saved: saved.update(metadata=None),
    lambda saved: saved["state"]["m"].update(bias=torch.tensor([float("nan")]))])
def test_a_checkpoint_of_odd_content_is_refused(tmp_path, spoil):
    stage_run(tmp_path, nn.Linear(1, 1)).finish_epoch(1, {"rec": 1.0}, None)
    saved = load_checkpoint(tmp_path / "C_last.pth.tar")
    spoil(saved)
    torch.save(saved, tmp_path / "C_last.pth.tar")
    with pytest.raises(InputError, match="not a checkpoint of this project|not finite"):
        stage_run(tmp_path, nn.Linear(1, 1))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                                   OSError(errno.EIO, "Input/output error")])
def test_a_machine_that_cannot_load_a_checkpoint_is_not_told_that_it_is_damaged(tmp_path, monkeypatch, error):
    stage_run(tmp_path, nn.Linear(1, 1)).finish_epoch(1, {"rec": 1.0}, None)

    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as raised:
        load_checkpoint(tmp_path / "C_last.pth.tar")
    assert raised.value is error


def test_a_folder_in_place_of_a_checkpoint_is_named(tmp_path):
    (tmp_path / "C.pth.tar").mkdir()
    with pytest.raises(InputError, match="it is not a file but a folder"):
        load_checkpoint(tmp_path / "C.pth.tar")
