"""Precision, the moving average, noise, files and checkpoints."""
import os
import stat

import pandas as pd
import pytest
import torch
from torch import nn

from utils import (EMA, InputError, StageRun, atomic, autocast, check_settings, draw_noise, load_checkpoint, pick_device, pick_precision,
                   restore, weights_key, write_stage_rows)


def test_noise_of_a_draw_depends_on_seed_subject_and_number_alone():
    shape = (1, 2, 2, 2)
    first = next(draw_noise(0, "s1", 0, shape))
    assert torch.equal(next(draw_noise(0, "s1", 0, shape)), first)
    assert not any(torch.equal(next(draw_noise(*other, shape)), first) for other in ((1, "s1", 0), (0, "s2", 0), (0, "s1", 1)))
    stream = draw_noise(0, "s1", 0, shape)
    assert torch.equal(next(stream), first)
    assert not torch.equal(next(stream), first)
    many = torch.cat([next(stream) for _ in range(1500)])
    assert abs(many.mean().item()) < 0.03
    assert many.std().item() == pytest.approx(1, abs=0.03)


def test_precision_decides_what_networks_compute_in():
    cpu, network, x = torch.device("cpu"), nn.Conv3d(1, 1, 3), torch.rand(1, 1, 4, 4, 4)
    found = {}
    for name in ("fp32", "bf16"):
        with autocast(cpu, pick_precision(name, cpu)):
            found[name] = network(x)
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        assert tf32 == (name == "bf16",) * 2               # never where all is to be float32
    assert {name: y.dtype for name, y in found.items()} == {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert torch.equal(found["fp32"], network(x))
    torch.testing.assert_close(found["bf16"].float(), found["fp32"], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_the_cpu_has_it(monkeypatch, instructions, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert pick_precision("auto", torch.device("cpu")) == dtype


def test_an_optimizer_saved_in_another_memory_layout_goes_on_as_if_in_this_one():
    """A fused update walks weight, gradient and moments as they lie in memory."""
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
        restore(part, state)
    resumed, _ = train(*parts, 3)
    torch.testing.assert_close(resumed.weight, uncut.weight, atol=1e-4, rtol=1e-4)


def test_moving_average_copies_first_and_follows_its_recursion_then():
    module = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(module, decay=0.9, start=2), None
    for step in range(1, 6):
        with torch.no_grad():
            module.weight.fill_(step ** 2)
        ema.update(module, step)
        expected = float(step ** 2) if step <= 2 else 0.9 * expected + 0.1 * step ** 2
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert not ema.module.weight.requires_grad
    assert not ema.module.training


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "a.txt"
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


def test_weights_key_tells_weights_apart():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    assert weights_key(a) != weights_key(b)
    b.load_state_dict(a.state_dict())
    assert weights_key(a) == weights_key(b)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_without_one_is_an_input_error():
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="no CUDA GPU"):
        pick_device("cuda")
