"""The training loop: updates, learning rates, random numbers of all ranks, and epochs that are cut and go
on."""
import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from runtime import fit as fit_module
from runtime.checkpoints import Progress, StageRun, load_checkpoint
from runtime.fit import draw_rows, fit, set_cosine_rate, train_epoch, update
from runtime.signals import Stopped, handle_signals
from utils import NotFiniteError, derived_seed


class Batches:
    """Batches of IDs as a loader gives them, those after its sampler's first."""
    batch_size = 2

    def __init__(self, *ids: str):
        self.ids, self.sampler = ids, SimpleNamespace(seed=None, first=0, step_items=2)

    def __len__(self):
        return len(self.ids) - self.sampler.first // self.batch_size

    def __iter__(self):
        return iter([{"id": list(names)} for names in self.ids[self.sampler.first // self.batch_size:]])


def new_run(folder: Path, network: nn.Module | None = None, lr: float = 0.1) -> StageRun:
    """The training of a network, by default of one weight, by gradient descent with momentum."""
    network = network or nn.Linear(1, 1, bias=False)
    opt = torch.optim.SGD(network.parameters(), lr, momentum=0.9)
    return StageRun(folder, "aae", "NET", {"network": network, "opt": opt}, {}, {})


# ---------------------------------------------------------------- the update

def test_an_update_on_one_rank_is_the_step_down_the_gradient_of_its_own_loss_alone():
    """Nothing is averaged, what an earlier loss left behind is dropped, and no other network gets a
    gradient."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    unused, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    weight.grad = torch.full((2,), 100.0)
    opt = torch.optim.SGD([weight, unused], 0.1)
    assert update(opt, (other * weight ** 2).sum(), {"mse": torch.tensor(5.0)}) == {"mse": 5.0}
    torch.testing.assert_close(weight.data, torch.tensor([0.8, 1.6]))
    assert unused.item() == 1 and unused.grad is None
    assert other.item() == 1 and other.grad is None


@pytest.mark.parametrize("losses", [{"rec": float("nan")}, {"rec": 1.0, "adv": float("inf")}])
def test_a_loss_that_is_not_finite_stops_before_the_step(losses):
    weight = nn.Parameter(torch.ones(3))
    opt = torch.optim.SGD([weight], 0.1, momentum=0.9)
    with pytest.raises(NotFiniteError, match="norm of the gradient"):
        update(opt, weight.sum(), {name: torch.tensor(value) for name, value in losses.items()})
    assert torch.equal(weight.data, torch.ones(3))
    assert not opt.state                                   # nor is there a momentum


def test_a_gradient_that_is_not_finite_stops_even_where_the_loss_is():
    weight = nn.Parameter(torch.zeros(1))
    loss = weight.sqrt().sum()                             # 0, with an infinite slope
    with pytest.raises(NotFiniteError, match=r"loss {'mse': 0.0}, norm of the gradient inf"):
        update(torch.optim.SGD([weight], 0.1), loss, {"mse": loss})
    assert weight.item() == 0


def test_a_cosine_of_learning_rates_falls_from_all_to_almost_nothing():
    opt, second = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0) for _ in range(2))
    rates = []
    for epoch in range(1, 11):
        set_cosine_rate([opt, second], 0.4, True, epoch, 10)
        rates.append(opt.param_groups[0]["lr"])
        assert second.param_groups[0]["lr"] == rates[-1]
    assert rates[0] == pytest.approx(0.4) and rates[5] == pytest.approx(0.2) and 0 < rates[-1] < 0.011
    assert np.all(np.diff(rates) < 0)
    set_cosine_rate([opt], 0.4, False, 10, 10)
    assert opt.param_groups[0]["lr"] == 0.4


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_gets_its_rows_of_one_draw(monkeypatch, ranks):
    """Together they have what one rank draws for all items, and afterwards all are at one place of the
    stream."""
    torch.manual_seed(0)
    alone, after = torch.randn(2 * ranks, 3, dtype=torch.float64), torch.rand(1)
    found = []
    for rank in range(ranks):
        monkeypatch.setattr(fit_module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(fit_module, "world_size", lambda: ranks)
        torch.manual_seed(0)
        found.append(draw_rows(torch.randn, 2, 3, dtype=torch.float64))
        assert torch.equal(torch.rand(1), after)
    assert all(rows.shape == (2, 3) for rows in found)
    assert torch.equal(torch.cat(found), alone)


# ---------------------------------------------------------------- an epoch

def test_a_loss_that_is_not_finite_names_step_and_subjects(tmp_path):
    run = new_run(tmp_path)
    network, opt = run.parts["network"], run.parts["opt"]
    before = network.weight.item()

    def step(batch):
        loss = (network.weight * (float("nan") if "c" in batch["id"] else 1.0)).sum()
        return update(opt, loss, {"rec": loss})
    message = ("aae epoch 3, step 2: loss {'rec': nan}, norm of the gradient nan on b, c; "
               "the last checkpoint is kept")
    with pytest.raises(NotFiniteError, match=message):
        train_epoch(run, Batches("a", "bc", "d"), step, 0, "aae epoch 3", 3)
    assert network.weight.item() == pytest.approx(before - 0.1)  # the first step alone


def test_an_epoch_that_is_continued_equals_an_uncut_one(tmp_path):
    def steps(progress: Progress, stop_after: int = 99) -> tuple[list, dict | None]:
        """What is drawn in the steps of an epoch, which ends in the step after stop_after, and the mean
        losses."""
        run, drawn = new_run(tmp_path), []
        run.progress = progress

        def step(batch):
            if len(drawn) == stop_after:
                raise Stopped(signal.SIGTERM)
            drawn.append((*batch["id"], torch.rand(1).item()))
            return {"rec": drawn[-1][-1]}
        with suppress(Stopped):
            return drawn, train_epoch(run, Batches("ab", "cd", "ef", "gh"), step, 5, "t", 1)[0]
        return drawn, None
    uncut, mean = steps(Progress())
    assert len(uncut) == 4
    for cut in range(5):
        progress = Progress()
        first, _ = steps(progress, cut)
        torch.manual_seed(99)
        second, found = steps(Progress(**vars(progress)))
        assert first + second == uncut
        assert found == mean == {"rec": pytest.approx(np.mean([row[-1] for row in uncut]))}


@pytest.mark.parametrize("pause", [0.0, 3.0])
def test_the_share_of_time_spent_waiting_for_data_is_measured(tmp_path, monkeypatch, pause):
    clock = [0.0]
    monkeypatch.setattr(fit_module.time, "perf_counter", lambda: clock[0])

    class Slow(Batches):
        def __iter__(self):
            for batch in super().__iter__():
                clock[0] += pause
                yield batch

    def step(batch):
        clock[0] += 1.0
        return {"rec": 0.0}
    waiting = train_epoch(new_run(tmp_path), Slow("a", "b"), step, 0, "t", 1)[1]
    assert waiting == pytest.approx(pause / (pause + 1))


# ---------------------------------------------------------------- a whole training

def scores_of(value: float) -> pd.DataFrame:
    """Scores of a validation list of two."""
    return pd.DataFrame({"PSNR": [value, value + 2], "SSIM": [0.5, 0.7]})


class Training:
    """A tiny training whose steps draw random numbers, and what was seen in it."""

    def __init__(self, folder: Path, stop_after: int = 0):
        self.run = new_run(folder, nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
        self.batches, self.stop_after, self.steps = Batches("ab", "cd", "ef"), stop_after, 0
        self.modes, self.rates, self.titles = [], [], []

    def step(self, batch: dict) -> dict[str, float]:
        """Update the network on random numbers; after so many steps of this process, a signal comes."""
        network, opt = self.run.parts["network"], self.run.parts["opt"]
        self.modes.append(network.training)
        self.rates.append(opt.param_groups[0]["lr"])
        loss = (network(torch.randn(4, 2)) - 1).square().mean()
        losses = update(opt, loss, {"rec": loss})
        self.steps += 1
        if self.steps == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    def validate(self, title: str) -> tuple[dict[str, float], pd.DataFrame]:
        """A further loss, and scores that get worse after the second epoch."""
        assert not self.run.parts["network"].training
        self.titles.append(title)
        return {"further": 7.0}, scores_of({2: 30.0}.get(self.run.epoch + 1, 20.0))

    def fit(self, epochs: int, every: int = 1, decay: bool = False) -> None:
        """Take the epochs that are left."""
        fit(
            self.run,
            self.batches,
            self.step,
            epochs=epochs,
            seed=3,
            validate=self.validate,
            validate_every=every,
            begin_epoch=partial(set_cosine_rate, self.run.optimizers, 0.01, decay),
        )


def test_an_epoch_is_trained_in_training_mode_at_its_rate_and_validated_in_the_other(tmp_path):
    training = Training(tmp_path)
    training.fit(4, every=2, decay=True)
    assert training.modes == [True] * 12
    rates = [0.01 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]
    np.testing.assert_allclose(training.rates, np.repeat(rates, 3))
    assert training.titles == ["aae epoch 2, validation", "aae epoch 4, validation"]
    assert not training.run.parts["network"].training
    losses = pd.read_csv(tmp_path / "loss_curve.csv")
    assert losses["epoch"].tolist() == [1, 2, 3, 4] and losses["rec"].notna().all()
    np.testing.assert_equal(losses["further"].tolist(), [np.nan, 7.0, np.nan, 7.0])
    validation = pd.read_csv(tmp_path / "validation.csv")
    assert validation["epoch"].tolist() == [2, 4] and validation["best"].tolist() == [True, False]
    assert validation["PSNR"].tolist() == [31.0, 21.0]
    assert load_checkpoint(tmp_path / "NET.pth.tar")["epoch"] == 2


def test_every_epoch_has_an_order_of_its_own_that_follows_from_seed_stage_and_number(tmp_path):
    training, seeds = Training(tmp_path), []
    plain = training.step

    def step(batch):
        seeds.append(training.batches.sampler.seed)
        return plain(batch)
    training.step = step
    training.fit(3)
    expected = []
    for epoch in (1, 2, 3):
        expected += [derived_seed(3, "aae", epoch)] * 3
    assert seeds == expected
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("cut", [1, 3, 5, 8])
def test_a_training_that_a_signal_cuts_goes_on_bit_for_bit(tmp_path, cut):
    """After the first step of an epoch, in the middle and after its last one; the step in which the signal
    came is done and saved."""
    states = []
    for name in ("uncut", "cut"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        training = Training(tmp_path / name, stop_after=cut if name == "cut" else 0)
        with handle_signals():
            if name == "cut":
                with pytest.raises(Stopped):
                    training.fit(3)
                assert training.steps == cut
                torch.manual_seed(99)
                training = Training(tmp_path / name)       # of another process, from the checkpoint
                assert training.run.step == cut
            training.fit(3)
        states.append(load_checkpoint(tmp_path / name / "NET_last.pth.tar"))
    uncut, continued = states
    assert uncut["losses"] == continued["losses"] and uncut["step"] == continued["step"] == 9
    for name, weight in uncut["state"]["network"].items():
        assert torch.equal(weight, continued["state"]["network"][name])
    moments = [saved["state"]["opt"]["state"] for saved in states]
    for weight, moment in moments[0].items():
        assert torch.equal(moment["momentum_buffer"], moments[1][weight]["momentum_buffer"])


def test_a_training_that_is_done_takes_no_step(tmp_path):
    Training(tmp_path).fit(2)
    again = Training(tmp_path)
    again.fit(2)
    assert again.steps == 0 and not again.titles
    again.fit(3)
    assert again.steps == 3


def test_of_a_training_that_diverges_the_last_whole_epoch_is_kept(tmp_path):
    training = Training(tmp_path)
    training.fit(1)
    weights = load_checkpoint(tmp_path / "NET_last.pth.tar")["state"]["network"]
    plain = training.step

    def step(batch):
        if "c" in batch["id"]:
            training.run.parts["network"][0].weight.data.fill_(float("nan"))
        return plain(batch)
    training.step = step
    with pytest.raises(NotFiniteError, match="aae epoch 2, step 2: .* on c, d; the last checkpoint is kept"):
        training.fit(2)
    saved = load_checkpoint(tmp_path / "NET_last.pth.tar")
    assert saved["epoch"] == 1
    assert all(torch.equal(weight, weights[name]) for name, weight in saved["state"]["network"].items())


def test_seconds_of_all_steps_are_counted_over_interruptions(tmp_path, monkeypatch):
    """By a clock that moves on by 1 whenever it is read."""
    clock = iter(range(10_000))
    monkeypatch.setattr(fit_module.time, "perf_counter", lambda: float(next(clock)))
    (tmp_path / "whole").mkdir()
    whole = Training(tmp_path / "whole")
    whole.fit(2)
    steps = whole.run.step
    assert whole.run.seconds == 2 * steps > 0            # read at the start of a step, after data, at its end
    assert load_checkpoint(whole.run.last_path)["seconds"] == whole.run.seconds
    again = Training(tmp_path / "whole")
    again.fit(3)
    assert again.run.seconds == 2 * again.run.step == 3 * steps


def test_the_time_that_is_left_counts_the_steps_of_epochs_before(tmp_path, monkeypatch):
    """A step takes 2 of the clock; the twentieth falls into the seventh epoch of three steps."""
    clock, lines = iter(range(10_000)), []
    monkeypatch.setattr(fit_module.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(fit_module, "say", lambda stage, text: lines.append(text))
    training = Training(tmp_path)
    training.fit(9)
    [said] = [line for line in lines if "a step" in line]
    assert "7 steps (2 s a step)" in said
