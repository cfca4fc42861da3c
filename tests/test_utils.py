"""Metrics, the moving average, noise, files and checkpoints."""
import os
import stat

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from utils import (EMA, InputError, NotFiniteError, StageRun, atomic, check_settings, evaluate, load_checkpoint, pick_device, score_volume,
                   subject_noise, summarize, weights_key, write_stage_rows)


def test_scores_equal_their_definitions():
    rng = np.random.default_rng(0)
    x, x_hat = rng.random((2, 9, 10, 11)).astype(np.float32)
    brain = np.zeros(x.shape, bool)
    brain[3:6, 4:7, 2:9] = True
    scores = score_volume(x_hat, x, brain)
    assert scores["PSNR"] == pytest.approx(-10 * np.log10(np.mean((x - x_hat) ** 2)), rel=1e-5)
    assert scores["PSNR_brain"] == pytest.approx(-10 * np.log10(np.mean((x - x_hat)[brain] ** 2)), rel=1e-5)
    assert scores["MAE_brain"] == pytest.approx(np.abs(x - x_hat)[brain].mean(), rel=1e-5)

    def ssim_at(i, j, k):                                  # Wang et al. 2004, uniform 7^3 window, sample covariances, data range 1
        a, b = (v[i - 3:i + 4, j - 3:j + 4, k - 3:k + 4].astype(float).ravel() for v in (x, x_hat))
        covariance = np.cov(a, b)
        return ((2 * a.mean() * b.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
                / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)))
    inner = [ssim_at(i, j, k) for i in range(3, 6) for j in range(3, 7) for k in range(3, 8)]
    assert scores["SSIM"] == pytest.approx(np.mean(inner), abs=1e-5)
    inside = [ssim_at(i, j, k) for i in range(3, 6) for j in range(4, 7) for k in range(3, 8)]
    brain[:, :, [2, 8]] = False
    assert score_volume(x_hat, x, brain)["SSIM_brain"] == pytest.approx(np.mean(inside), abs=1e-5)


def test_a_perfect_volume_scores_perfectly():
    x = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    with np.errstate(divide="ignore"):                     # the PSNR is infinite
        scores = score_volume(x, x, x > 0.5)
    assert (scores["SSIM"], scores["MAE"], scores["SSIM_brain"]) == (pytest.approx(1), 0, pytest.approx(1))


def test_evaluate_gives_a_row_a_subject_whatever_the_batch_and_refuses_nan():
    x = torch.rand(3, 1, 8, 8, 8)
    brain = np.ones((8, 8, 8), bool)

    def score(x_hat, volumes):
        return score_volume(x_hat, volumes["pet"], brain)
    together = [{"id": ["a", "b", "c"], "label": torch.tensor([0, 1, 0]), "pet": x}]
    alone = [{"id": [name], "label": torch.tensor([label]), "pet": x[i:i + 1]}
             for i, name, label in ((0, "a", 0), (1, "b", 1), (2, "c", 0))]
    one, three = (evaluate(lambda batch: batch["pet"] * 0.9, loader, score, "t") for loader in (together, alone))
    pd.testing.assert_frame_equal(one, three)
    assert one["ID"].tolist() == ["a", "b", "c"]
    assert one["label"].tolist() == [0, 1, 0]
    with pytest.raises(NotFiniteError, match="a, b, c"):
        evaluate(lambda batch: batch["pet"] * float("nan"), together, score, "t")


def test_summary_has_mean_deviation_and_n_of_each_method():
    scores = pd.DataFrame({"method": ["b", "b", "a"], **{name: [1.0, 3.0, 5.0] for name in
                                                         ("PSNR", "SSIM", "MAE", "PSNR_brain", "SSIM_brain", "MAE_brain")}})
    table = summarize(scores)
    first = table.iloc[0]
    assert (first["method"], first["metric"], first["mean"], first["n"]) == ("b", "PSNR", 2.0, 2)
    assert first["std"] == pytest.approx(np.sqrt(2))
    assert len(table) == 12


def test_noise_of_a_subject_depends_on_nobody_else():
    first, second = next(subject_noise(0, "s1", 3, (1, 2, 2, 2))), next(subject_noise(0, "s2", 3, (1, 2, 2, 2)))
    torch.testing.assert_close(next(subject_noise(0, "s1", 1, (1, 2, 2, 2)))[0], first[0], rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(subject_noise(1, "s1", 3, (1, 2, 2, 2))))
    stream = subject_noise(0, "s1", 3, (1, 2, 2, 2))
    assert torch.equal(next(stream), first)
    assert not torch.equal(next(stream), first)
    many = torch.cat([next(stream) for _ in range(500)])
    assert abs(many.mean().item()) < 0.03
    assert many.std().item() == pytest.approx(1, abs=0.03)


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
