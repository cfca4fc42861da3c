"""Several processes on one run, on a CPU with gloo: they are forked here and get the variables that torchrun
sets."""
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHAPE, TINY, arguments, import_beforehand, write_cohort, write_volume
from interrupt import wait

import main
from dataset import EpochOrder
from experiment import session
from runtime import fit, ranks
from runtime.checkpoints import StageRun, load_checkpoint
from runtime.ranks import FAILED
from runtime.signals import Stopped, handle_signals
from utils import InputError

ROOT = Path(main.__file__).parent
DRAWS = False
LISTS = {"train": [f"s{i:02}" for i in range(1, 9)], "validation": ["s09", "s10", "s11", "s12", "s13"],
         "test": ["s14", "s15", "s16"]}
# a discriminator without batch norm
ONE_LAYER = TINY | {"disc_channels": (8,), "aae_epochs": 1, "ldm_epochs": 1}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    import_beforehand()
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, LISTS)
    return folder


@pytest.fixture
def project(cohort, tmp_path, monkeypatch) -> Path:
    """A project folder of its own, with the volumes and lists of one cohort."""
    (tmp_path / "data").mkdir()
    for name in ("data/whole_MRI", "data/whole_Abeta", "data_info"):
        (tmp_path / name).symlink_to(cohort / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_ranks(count: int, function: Callable[[], object], limit: float = 120) -> list:
    """Results of the function in so many forked processes with the variables of torchrun; an exception in
    place of its result."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    children, pipes = [], []
    for number in range(count):
        read, write = os.pipe()
        if child := os.fork():
            os.close(write)
            children.append(child)
            pipes.append(read)
            continue
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count),
                       "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        signal.alarm(int(limit))                           # ends a process that hangs
        try:
            result = function()
        except BaseException as error:
            traceback.print_exc()
            result = error
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    results = []
    for child, read in zip(children, pipes, strict=True):
        with os.fdopen(read, "rb") as pipe:
            content = pipe.read()
        _, status = os.waitpid(child, 0)
        assert content, f"ended by {status}"
        results.append(pickle.loads(content))
    return results


def in_process_group(count: int, function: Callable[[], object]) -> list:
    """Results of the function in so many processes that can exchange data."""
    def run() -> object:
        with ranks.process_group(torch.device("cpu")):
            return function()
    return in_ranks(count, run)


def run_main(count: int, *words: str, **settings) -> list[int]:
    """The exit codes of a run by so many processes."""
    return in_ranks(count, lambda: main.main([*arguments(settings), *words]))


def weights(exp: str, file: str = "CHECKPOINT_Unet_last") -> dict:
    """The state of all networks and optimizers in a checkpoint."""
    return load_checkpoint(Path(f"result/{exp}/{file}.pth.tar"))["state"]


# ---------------------------------------------------------------- what is computed

def test_two_ranks_with_one_subject_each_take_the_steps_of_one_with_two(project):
    """By plain gradient descent, because Adam's first steps have the size of the learning rate however small
    the gradient is."""
    settings = ONE_LAYER | {"lambda_rec": 1.0}

    def plain_descent(parameters, lr, **_) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr)

    def descend(**more) -> int:
        main.Adam = main.AdamW = plain_descent
        return main.main([*arguments(settings | more), "--stages", "aae", "encode", "ldm"])
    assert in_ranks(2, lambda: descend(exp="two", aae_batch_size=1, ldm_batch_size=1)) == [0, 0]
    assert in_ranks(1, lambda: descend(exp="one")) == [0]
    for file, name in (("CHECKPOINT_AAE_last", "aae"), ("CHECKPOINT_AAE_last", "disc"),
                       ("CHECKPOINT_Unet_last", "unet")):
        one, two = weights("one", file)[name], weights("two", file)[name]
        assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-5
    one, two = (pd.read_csv(f"result/{exp}/loss_curve.csv") for exp in ("one", "two"))
    np.testing.assert_allclose(one.drop(columns="stage"), two.drop(columns="stage"), atol=1e-5)


def test_every_rank_holds_the_same_weights_after_every_epoch_and_says_which(project):
    assert run_main(2, "--stages", "aae", "encode", "ldm", **TINY | {"exp": "a"}) == [0, 0]
    said = re.findall(r"(aae|ldm) epoch (\d): weights [0-9a-f]{16} on all 2 ranks",
                      Path("result/a/run.log").read_text())
    assert said == [("aae", "1"), ("aae", "2"), ("ldm", "1"), ("ldm", "2")]


def test_ranks_that_drift_apart_are_noticed(project):
    def drift() -> int:
        step = main.aae_step

        def stray(aae, *rest):
            losses = step(aae, *rest)
            if ranks.rank() == 1:
                next(aae.parameters()).data.add_(1e-3)
            return losses
        main.aae_step = stray
        return main.main([*arguments(TINY | {"exp": "a"}), "--stages", "aae"])
    errors = in_ranks(2, drift)
    assert all(
        isinstance(error, RuntimeError) and "the weights of aae epoch 1 differ between ranks" in str(error)
        for error in errors
    )
    assert not list(Path("result/a").glob("*.pth.tar"))


def test_scores_latents_and_volumes_do_not_depend_on_the_number_of_ranks(project):
    for mask, rows in (("cortex", slice(16, 22)), ("cerebellum", slice(5, 11))):
        voxels = np.zeros(SHAPE, np.uint8)
        voxels[8:14, rows, 8:14] = 1
        write_volume(Path(f"{mask}.nii.gz"), voxels)
    settings = TINY | {"exp": "a", "regions": "auto", "cortex_mask": "cortex.nii.gz",
                       "reference_mask": "cerebellum.nii.gz", "aae_epochs": 1, "ldm_epochs": 1}
    assert run_main(1, "--stages", "aae", "encode", "ldm", "test", **settings) == [0]
    results = Path("result/a")
    names = [
        *(f"{name}.csv" for name in ("test", "predictions", "summary", "validation_list", "uncertainty")),
        "calibration.npz",
        *(f"synthesized/{name}.nii.gz" for name in LISTS["test"]),
    ]
    alone = {name: (results / name).read_bytes() for name in names}
    latents = {path.name: nib.load(path).get_fdata() for path in Path("data/latent_Abeta").glob("*/*.nii.gz")}
    assert len(latents) == 13
    for count in (2, 3):
        for path in Path("data/latent_Abeta").glob("*/*.nii.gz"):
            path.unlink()
        assert run_main(count, "--stages", "encode", "test", **settings) == [0] * count
        assert {name: (results / name).read_bytes() for name in names} == alone
        again = {
            path.name: nib.load(path).get_fdata() for path in Path("data/latent_Abeta").glob("*/*.nii.gz")
        }
        assert again.keys() == latents.keys() and all(
            np.array_equal(again[name], latents[name]) for name in latents
        )


def test_validation_scores_and_loss_do_not_depend_on_the_number_of_ranks(project):
    """A learning rate too small to move a weight, so that all validate the same networks."""
    still = TINY | {"aae_lr": 1e-8, "ldm_lr": 1e-8, "label_at_sampling": "none", "aae_epochs": 1,
                    "ldm_epochs": 1}
    csvs = []

    def freeze() -> int:
        torch.optim.Adam.step = torch.optim.AdamW.step = lambda *_: None
        return main.main(
            [*arguments(still | {"exp": f"of_{ranks.world_size()}"}), "--stages", "aae", "encode", "ldm"]
        )
    for count in (1, 2, 3):
        assert in_ranks(count, freeze) == [0] * count
        losses = pd.read_csv(f"result/of_{count}/loss_curve.csv")["mse_validation"].dropna().tolist()
        csvs.append((Path(f"result/of_{count}/validation.csv").read_text(), losses))
    assert csvs[0] == csvs[1] == csvs[2]
    assert len(csvs[0][0].splitlines()) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_ranks_share_out_every_step_of_an_epoch_and_nothing_twice(count):
    def own() -> list:
        order = EpochOrder(23, batch=2, jitter=False)
        order.seed, order.first = 7, 3
        return [list(order), len(order)]
    shares = in_ranks(count, own)
    [[alone, _]] = in_ranks(1, own)
    steps = 20 // (2 * count)
    assert [(len(share), length) for share, length in shares] == [(2 * steps, 2 * steps)] * count
    together = []
    for step in range(steps):
        for share, _ in shares:
            together += share[2 * step:2 * step + 2]
    assert together == alone[:2 * steps * count]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_gathered_stands_in_the_order_of_the_batches(count):
    def collect() -> list:
        loader = torch.utils.data.DataLoader(range(7),
                                             batch_sampler=ranks.DistributedBatches(7, 2, shared=True))
        return ranks.gather_batches([batch.tolist() for batch in loader], loader)
    assert in_process_group(count, collect) == [[[0, 1], [2, 3], [4, 5], [6]]] * count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_not_shared_every_rank_has_whole(count):
    def collect() -> list:
        loader = torch.utils.data.DataLoader(range(7),
                                             batch_sampler=ranks.DistributedBatches(7, 3, shared=False))
        assert not ranks.is_shared(loader)
        return ranks.gather_batches([batch.tolist() for batch in loader], loader)
    assert in_process_group(count, collect) == [[[0, 1, 2], [3, 4, 5], [6]]] * count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rank_0_alone_calls_a_function_and_all_get_its_result(count):
    def call() -> tuple[object, object]:
        return ranks.from_rank_0(divmod, 10 * (ranks.rank() + 1), 4), ranks.from_rank_0(lambda: ranks.rank())
    assert in_process_group(count, call) == [((2, 2), 0)] * count


def test_an_error_on_rank_0_is_raised_there_and_ends_the_others():
    def fail() -> None:
        ranks.from_rank_0(int, "no number")
    first, second = in_process_group(2, fail)
    assert isinstance(first, ValueError)
    assert isinstance(second, SystemExit) and second.code == ranks.FAILED


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_averaged_over_the_ranks_in_the_update(count):
    """Of the weight that has one; a weight that the loss does not reach keeps none, and other networks get
    none."""
    def step() -> tuple[float, float, bool]:
        used, unused, other = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))
        opt = torch.optim.SGD([used, unused], lr=1.0)
        fit.update(opt, (used * other * (ranks.rank() + 1)).sum(), {})
        return used.item(), unused.item(), other.grad is None
    assert in_process_group(count, step) == [(1 - (count + 1) / 2, 1.0, True)] * count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_running_statistics_of_batch_norms_are_averaged_and_nothing_else(count):
    def average() -> tuple[list[float], list[float], int, list[float]]:
        norm = torch.nn.BatchNorm3d(1)
        norm.running_mean.fill_(ranks.rank())
        norm.running_var.fill_(1 + ranks.rank())
        norm.num_batches_tracked.fill_(5)
        norm.weight.data.fill_(ranks.rank())
        ranks.average_statistics([torch.nn.Sequential(norm), torch.nn.Linear(1, 1)])
        return (norm.running_mean.tolist(), norm.running_var.tolist(), norm.num_batches_tracked.item(),
                norm.weight.tolist())
    middle = (count - 1) / 2
    assert in_process_group(count, average) == [
        ([middle], [1 + middle], 5, [float(rank)]) for rank in range(count)
    ]


def test_losses_are_averaged_and_a_signal_to_one_rank_is_known_to_all():
    def exchange() -> tuple:
        with handle_signals():
            before = ranks.mean_over_ranks({"a": float(ranks.rank())})
            with pytest.raises(Stopped), ranks.stop_together():
                if ranks.rank() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                after = ranks.mean_over_ranks({"a": 2.0})
            return before, after
    assert in_process_group(3, exchange) == [(({"a": 1.0}, False), ({"a": 2.0}, True))] * 3


# ---------------------------------------------------------------- interruption and failure

def test_a_signal_to_one_rank_ends_all_after_the_same_step_and_any_number_of_them_goes_on(project):
    settings = TINY | {"exp": "cut", "aae_batch_size": 1, "ldm_batch_size": 1, "aae_epochs": 1,
                       "ldm_epochs": 1}

    def signalled() -> tuple[int, int, float]:
        step, save, taken = main.aae_step, StageRun._save, []

        def stepping(*args):
            taken.append(1)
            if len(taken) == 2 and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*args)

        def slow_save(run):
            if ranks.is_rank_0():
                time.sleep(3)
            save(run)
        main.aae_step, StageRun._save = stepping, slow_save
        return (main.main([*arguments(settings), "--stages", "aae", "encode", "ldm"]), len(taken),
                time.monotonic())
    (*ended, saved_at), (*other, left_at) = in_ranks(2, signalled)
    assert ended == other == [75, 2]
    assert left_at > saved_at - 1  # not before rank 0 has saved, which takes it three seconds
    saved = load_checkpoint(Path("result/cut/CHECKPOINT_AAE_last.pth.tar"))
    assert (saved["epoch"], saved["progress"]["items"]) == (0, 4)

    words = ("--stages", "aae", "encode", "ldm")
    assert run_main(2, *words, **settings) == [0, 0]
    assert run_main(2, *words, **settings | {"exp": "uncut"}) == [0, 0]
    for file in ("CHECKPOINT_AAE_last", "CHECKPOINT_Unet_last"):
        cut, uncut = weights("cut", file), weights("uncut", file)
        for name in {"aae", "disc", "unet", "ema"} & cut.keys():
            assert all(torch.equal(cut[name][key], uncut[name][key]) for key in uncut[name]), name

    more = settings | {"ldm_epochs": 2}
    assert run_main(1, "--stages", "ldm", **more) == [0]
    assert "processes: 2 -> 1" in Path("result/cut/run.log").read_text()
    assert pd.read_csv("result/cut/loss_curve.csv").query("stage == 'ldm'")["epoch"].tolist() == [1, 2]


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_during_the_validation_keeps_the_steps_of_the_epoch(project, number):
    settings = TINY | {"exp": "a", "aae_epochs": 1, "aae_batch_size": 1}

    def signalled() -> int:
        def reconstruct(*_):
            """The second batch of a rank is not reached: the first gets the signal."""
            def predict(batch):
                if ranks.rank() == number:
                    os.kill(os.getpid(), signal.SIGUSR1)
                return batch["pet"]
            return predict
        main.reconstruct = reconstruct
        return main.main([*arguments(settings), "--stages", "aae"])
    assert in_ranks(2, signalled) == [75, 75]
    saved = load_checkpoint(Path("result/a/CHECKPOINT_AAE_last.pth.tar"))
    assert (saved["epoch"], saved["progress"]["items"]) == (0, 8)


def test_what_is_left_of_an_epoch_is_taken_by_another_number_of_ranks(project):
    seen = []
    settings = TINY | {"exp": "a", "aae_batch_size": 1, "aae_epochs": 1}

    def recorded(stop_after: int) -> list:
        take_step, batches = fit._take_step, []

        def recording(run, batch, *rest):
            batches.extend(batch["id"])
            if len(batches) == stop_after and ranks.rank() == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return take_step(run, batch, *rest)
        fit._take_step = recording
        main.main([*arguments(settings), "--stages", "aae"])
        return batches
    for count, stop_after in ((2, 1), (3, -1)):
        seen += [
            name
            for batches in in_ranks(count, lambda stop_after=stop_after: recorded(stop_after))
            for name in batches
        ]
    assert len(seen) == len(set(seen)) == 2 + 6


def test_bad_data_is_said_once_and_ends_all(project, capfd):
    Path("data_info").unlink()
    began = time.monotonic()
    assert [getattr(code, "code", code) for code in run_main(3, **TINY | {"exp": "a"})] == [2, ranks.FAILED,
                                                                                            ranks.FAILED]
    assert time.monotonic() - began < 30
    assert capfd.readouterr().err.count("error:") == 1


def test_a_step_that_fails_on_one_rank_names_its_subjects_and_ends_all(project, capfd):
    def diverge() -> int:
        step = main.aae_step

        def poisoned(aae, disc, opt_g, opt_d, x, *rest):
            return step(aae, disc, opt_g, opt_d, x * float("nan") if ranks.rank() == 1 else x, *rest)
        main.aae_step = poisoned
        return main.main([*arguments(TINY | {"exp": "a"}), "--stages", "aae"])
    assert in_ranks(2, diverge) == [3, 3]
    assert re.search(r"rank 1: error: aae epoch 1, step 1: loss {'rec': nan.* on s\d\d, s\d\d",
                     capfd.readouterr().err)


def test_a_rank_that_fails_alone_takes_the_others_with_it(project, capfd):
    def raise_error(*_) -> None:
        raise InputError("one.nii.gz: truncated")

    def fail() -> int:
        if ranks.rank() == 1:
            main.aae_step = raise_error
        return main.main([*arguments(TINY | {"exp": "a"}), "--stages", "aae"])
    assert in_ranks(2, fail) == [6, 2]
    said = capfd.readouterr().err
    assert (
        "rank 1: error: one.nii.gz: truncated" in said
        and "rank 0: error: another process of this run failed or is gone" in said
    )


def test_torchrun_ends_within_a_minute_when_a_rank_is_killed_and_another_number_of_ranks_goes_on(project):
    settings = TINY | {"exp": "a", "aae_epochs": 300}
    words = [str(ROOT / "main.py"), *arguments(settings), "--stages", "aae"]
    run = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    last = project / "result/a/CHECKPOINT_AAE_last.pth.tar"
    while not last.exists() and run.poll() is None:
        time.sleep(0.1)
    os.kill(child_of(run.pid, rank=1), signal.SIGKILL)
    began = time.monotonic()
    output, _ = run.communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert run.returncode != 0
    # by torchrun
    assert re.search("rank 0: (error: another process of this run failed or is gone|stopped by SIGTERM)",
                     output), output
    epochs = load_checkpoint(last)["epoch"]
    assert main.main([*arguments(settings | {"aae_epochs": epochs + 1}), "--stages", "aae"]) == 0
    assert load_checkpoint(last)["epoch"] == epochs + 1


# ---------------------------------------------------------------- settings

@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        ({}, {"gpus": 2}, "gpus 2, but torch finds 0 GPUs here"),
        ({}, {"gpus": 2, "device": "cpu"}, "gpus 2, but device is cpu"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
             "MASTER_PORT": "29500"},
            {"gpus": 3},
            "gpus 3, but 2 processes were started",
        ),
        ({"RANK": "x", "WORLD_SIZE": "2"}, {}, "RANK=x, WORLD_SIZE=2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, {}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {},
         "LOCAL_RANK=, LOCAL_WORLD_SIZE=, MASTER_ADDR=, MASTER_PORT=; set all of them"),
    ],
)
def test_processes_that_cannot_be_are_refused(project, monkeypatch, capsys, environment, settings, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main.main(arguments(TINY | {"device": "auto"} | settings)) == 2
    assert message in capsys.readouterr().err
    assert not Path("result").exists()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks.check_environment(2, "auto")
    for name, value in zip((*ranks.ALONE, "MASTER_ADDR", "MASTER_PORT"),
                           ("0", "3", "0", "3", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="3 processes on this machine, but torch finds 2 GPUs"):
        ranks.check_environment(0, "auto")


def test_gpus_starts_as_many_processes(project, monkeypatch):
    started = []

    def note(*arguments: object) -> int:
        started.append(arguments)
        return 75
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(session, "launch", note)
    assert main.main(["--gpus", "3", "--exp", "a"]) == 75
    assert started == [(3, ["--gpus", "3", "--exp", "a"])]


# What each of two processes without torch, which start at once, does, and the exit code of both together.
ENDS = {
    "both finish": ("pass", "pass", None, 0),
    "one fails and the other ends because of it": ("sys.exit(2)", f"time.sleep(1); sys.exit({FAILED})", None,
                                                   2),
    "Ctrl-C reaches both": ("time.sleep(60)", "time.sleep(60)", signal.SIGINT, 130),
    "one fails and the other hangs": ("sys.exit(2)", "time.sleep(60)", None, 2),
}


@pytest.mark.parametrize("case", ENDS)
def test_launched_processes_have_one_exit_code(case, monkeypatch):
    one, other, number, code = ENDS[case]

    def start(count: int, argv: list[str]) -> list[subprocess.Popen]:
        return [subprocess.Popen([sys.executable, "-c", f"import sys, time; {what}"],
                                 stderr=subprocess.DEVNULL) for what in (one, other)]
    handlers = {number: signal.getsignal(number) for number in ranks.SIGNALS}
    monkeypatch.setattr(ranks, "_start", start)
    monkeypatch.setattr(ranks, "GRACE", 2)
    if number:
        monkeypatch.setattr(ranks.time, "sleep", lambda _: signal.raise_signal(number))
    try:
        assert ranks.launch(2, []) == code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, 6)])
def test_launched_processes_end_together_with_their_exit_code(project, number, code):
    words = [*arguments(TINY | {"exp": "a", "aae_epochs": 300}), "--stages", "aae"]
    screen = project / "screen.txt"
    if not (run := os.fork()):
        with screen.open("w") as file:
            os.dup2(file.fileno(), 2)
        try:
            os._exit(ranks.launch(2, words))
        finally:
            os._exit(1)
    last = project / "result/a/CHECKPOINT_AAE_last.pth.tar"
    while not last.exists():
        assert wait(run, 0.1) is None, screen.read_text()
    os.kill(child_of(run, rank=1) if number == signal.SIGKILL else run, number)
    ended = wait(run, 60)
    said = screen.read_text()
    assert ended == code, said
    assert "Traceback" not in said
    assert number != signal.SIGKILL or "rank 0: error: another process of this run failed or is gone" in said


def child_of(pid: int, rank: int) -> int:
    """ID of the process with that rank among the children of another."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return next(
        child
        for child in children
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes()
    )


def test_the_global_batch_is_said_and_must_be_filled(project, capfd):
    assert run_main(3, "--stages", "aae", **TINY | {"exp": "a", "aae_epochs": 1}) == [0, 0, 0]
    assert "8 subjects, 6 a step of 3 processes together" in capfd.readouterr().out
    assert json.loads(Path("result/a/config.json").read_text())["settings"]["aae_batch_size"] == 2
    codes = run_main(3, "--stages", "aae", **TINY | {"exp": "b", "aae_batch_size": 3})
    assert codes[0] == 2 and "8 usable subjects do not fill the 9 of one step" in capfd.readouterr().err
