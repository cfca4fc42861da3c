"""Runs that end early: one message and an exit code, never a traceback; and the packages that must be
there."""
import ast
import errno
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE, TINY, arguments, write_cohort, write_volume
from interrupt import wait

import main
from experiment import session
from runtime import environment
from runtime.checkpoints import load_checkpoint
from runtime.failures import explain
from runtime.files import FolderLock
from runtime.signals import leave
from utils import InputError, NotFiniteError

ROOT = Path(main.__file__).parent
DRAWS = False


def run(*stages: str, **settings) -> int:
    """The exit code of these stages on the tiny cohort."""
    return main.main(arguments(TINY | {"exp": "a"} | settings) + ["--stages", *stages])


def fails_with(monkeypatch, capsys, error: BaseException) -> tuple[int, str]:
    """Exit code and stderr of a run in which this happens."""
    def fail(*_) -> None:
        raise error
    monkeypatch.setattr(session, "check_environment", fail)
    return main.main(["--exp", "a"]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (InputError("a.nii.gz: damaged"), 2, "a.nii.gz: damaged"),
        (
            InputError(
                "Caught InputError in DataLoader worker process 0.\nOriginal Traceback "
                "...\nutils.InputError: a.nii: cut\n"
            ),
            2,
            "error: a.nii: cut",
        ),
        (NotFiniteError("aae epoch 3, step 2: loss nan on s01"), 3, "aae epoch 3, step 2: loss nan on s01"),
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "--sampling_batch 1"),
        (MemoryError(), 4, "--cache off"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            4,
            "what was saved is kept",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 4, "out of memory"),
        (OSError(errno.EIO, "Input/output error", "b.nii"), 5, "Input/output error: 'b.nii'"),
        (
            OSError(
                "Caught OSError in DataLoader worker process 1.\nOriginal Traceback ...\nOSError: "
                "[Errno 5] b.nii\n"
            ),
            5,
            "error: [Errno 5] b.nii\n",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 6, "--num_workers 0"),
        (BrokenProcessPool("a process was terminated abruptly"), 6, "as systems do when memory, or shared"),
        (
            RuntimeError("unable to write to file </torch_123_0>: No space left on device (28)"),
            6,
            "--num_workers 0",
        ),
    ],
)
def test_every_cause_has_its_exit_code_and_one_message(monkeypatch, capsys, error, code, expected):
    found, err = fails_with(monkeypatch, capsys, error)
    assert (found, err[:7], "Traceback" in err) == (code, "error: ", False)
    assert expected in err


@pytest.mark.parametrize("stage", ["aae", "ldm"])
def test_out_of_memory_in_a_training_names_its_stage_and_what_takes_less(stage):
    error = MemoryError()
    error.add_note(stage)
    message = explain(error)[1]
    assert message.startswith(f"error: out of memory (stage {stage}); --recompute true takes less; so does "
                              f"--{stage}_batch_size 1, ")


@pytest.mark.parametrize(
    "text",
    ["a fault of ours",
     "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\na fault of ours"],
)
def test_a_fault_of_the_program_is_not_hidden(monkeypatch, capsys, text):
    with pytest.raises(RuntimeError, match="a fault of ours"):
        fails_with(monkeypatch, capsys, RuntimeError(text))


@pytest.mark.parametrize(("number", "code"),
                         [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_training_after_its_step_and_the_same_command_goes_on(root, monkeypatch, capsys,
                                                                              number, code):
    assert run("aae", exp="uncut") == 0
    taken, step = [], main.aae_step

    def signalled(*args):
        taken.append(step(*args))
        if len(taken) == 5:                                # the second of three steps of the second epoch
            os.kill(os.getpid(), number)
        return taken[-1]
    monkeypatch.setattr(main, "aae_step", signalled)
    assert run("aae") == code
    assert f"stopped by {number.name} (stage aae); the same command continues" in capsys.readouterr().err
    assert len(taken) == 5
    assert run("aae") == 0
    assert len(taken) == 6
    assert "1 of 2 epochs and 2 steps done" in capsys.readouterr().out
    uncut, cut = (
        load_checkpoint(root / "result" / exp / "CHECKPOINT_AAE_last.pth.tar")["state"]
        for exp in ("uncut", "a")
    )
    for part, other in zip(*(torch.utils._pytree.tree_leaves(state) for state in (uncut, cut)), strict=True):
        assert torch.equal(part, other) if torch.is_tensor(part) else part == other
    assert (root / "result/uncut/loss_curve.csv").read_bytes() == (
        root / "result/a/loss_curve.csv"
    ).read_bytes()


def test_a_signal_in_the_validation_loses_no_step(root, monkeypatch, capsys):
    evaluate = main.evaluate

    def signalled(*args):
        monkeypatch.setattr(main, "evaluate", evaluate)
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)
    monkeypatch.setattr(main, "evaluate", signalled)
    assert run("aae") == 75
    assert len(load_checkpoint(root / "result/a/CHECKPOINT_AAE_last.pth.tar")["progress"]["losses"]) == 3
    monkeypatch.setattr(main, "aae_step", None)            # no step is left of the first epoch
    assert run("aae", aae_epochs=1) == 0


def test_resume_yes_needs_a_run_and_resume_no_needs_none(root, capsys):
    assert run("aae", resume="yes") == 2
    assert "CHECKPOINT_AAE_last.pth.tar is not there, so nothing can be continued" in capsys.readouterr().err
    assert not (root / "result").exists()
    assert run("aae", resume="no", aae_epochs=1) == 0
    assert run("aae", resume="no") == 2
    assert "is there, but --resume no begins anew" in capsys.readouterr().err
    assert run("aae", resume="yes") == 0
    assert run("aae", "ldm", resume="yes", exp="b") == 2


def test_settings_that_do_not_matter_may_change_and_are_noted(root, capsys):
    assert run("aae", aae_epochs=1) == 0
    shutil.move(root / "data", root / "moved")
    assert run("aae", data_dir="moved", cache="off") == 0
    out = capsys.readouterr().out
    assert "continues under settings that may change its numbers, but not the method (saved -> now)" in out
    for part in ('cache: "auto" -> "off"', 'data_dir: "data" -> "moved"', "aae_epochs: 1 -> 2"):
        assert part in out


def test_a_second_run_in_the_folder_ends_with_code_7(root, capsys):
    (root / "result" / "a").mkdir(parents=True)
    with FolderLock(root / "result" / "a"):
        assert run("aae") == 7
        assert f"another run works here (process {os.getpid()} on " in capsys.readouterr().err
        assert run("check") == 0                           # to look at the data disturbs nobody
    assert run("aae", aae_epochs=1) == 0


def test_a_killed_reading_process_is_told_with_the_stage(root, monkeypatch, capsys):
    def killed(cache, path):
        os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr("imaging.cache.VolumeCache.read", killed)
    assert run("aae", num_workers=1) == 6
    assert "a process that was to read or simulate volumes was killed (stage aae)" in capsys.readouterr().err


def test_the_log_has_every_line_with_its_time_and_the_error_that_ended_the_run(root, monkeypatch, capsys):
    assert run("aae", aae_epochs=1) == 0
    capsys.readouterr()
    monkeypatch.setattr(main, "plot_history", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("aae")
    screen, log = capsys.readouterr().out.splitlines(), (root / "result/a/run.log").read_text()
    second = log[log.index("1 of 2 epochs done"):]
    assert all(line in log for line in screen)
    assert re.search(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}  python main.py .*--stages aae$", log)
    assert "ZeroDivisionError" in second
    assert log.count("no problem found") == 2              # appended, never begun again


def test_what_a_killed_run_left_is_said_and_removed(root, capsys):
    assert run("aae", aae_epochs=1) == 0
    folder = root / "result" / "a"
    (folder / "synthesized" / ".partial-host-1-x").mkdir(parents=True)
    (folder / "running.json").write_text('{"host": "node7", "pid": 4711, "since": "yesterday"}')
    assert run("aae") == 0
    assert (
        "an earlier run here (process 4711 on node7, since yesterday) was killed" in capsys.readouterr().out
    )
    assert not list(folder.rglob(".partial-*"))
    assert not (folder / "running.json").exists()


# ---------------------------------------------------------------- packages

OPTIONAL = ["matplotlib", "jinja2", "tabulate", "nilearn", "ants"]


def hide(folder: Path, *modules: str) -> dict[str, str]:
    """An environment of a process that cannot find these modules; folder: for a file that hides them."""
    hidden = folder / "sitecustomize.py"                   # runs before the program
    hidden.write_text(f"""
import importlib.util, sys
hidden, find = {modules!r}, importlib.util.find_spec
def find_others(name, *rest):
    return None if name in hidden else find(name, *rest)
importlib.util.find_spec = find_others
class Nowhere:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    def find_distributions(self, context):
        return ()
sys.meta_path.insert(0, Nowhere())
""")
    return os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def start(*words: str, **options) -> subprocess.CompletedProcess:
    """A run of main.py in a process of its own."""
    return subprocess.run([sys.executable, str(ROOT / "main.py"), *words], capture_output=True, text=True,
                          timeout=300, **options)


def test_missing_packages_are_named_with_what_brings_them(tmp_path):
    ended = start(env=hide(tmp_path, "nibabel", "sklearn"))
    assert (ended.returncode, ended.stderr) == (
        2, "error: missing packages: nibabel, scikit-learn; pip install -r requirements.txt brings them\n")


def test_plain_training_and_testing_need_no_optional_package(root):
    """But nilearn, which brings the mask of the brain onto the grid. The report names what it lacks."""
    write_volume(root / "brain.nii.gz", np.ones(SHAPE, np.uint8))
    (root / "hidden").mkdir()
    env = hide(root / "hidden", *(module for module in OPTIONAL if module != "nilearn"))
    words = arguments(TINY | {"exp": "a", "brain_mask": "brain.nii.gz", "aae_epochs": 1, "ldm_epochs": 1})
    runs = [["check", "aae", "encode", "ldm", "test"], ["tables"], ["report"]]
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import main
print("codes", *[main.main([*{words!r}, "--stages", *stages]) for stages in {runs!r}])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300,
                           env=env)
    assert ended.returncode == 0 and ended.stdout.endswith("codes 0 2 2\n"), ended.stdout + ended.stderr
    assert (root / "result/a/summary.csv").is_file()
    assert "Traceback" not in ended.stderr
    for stage in ("tables", "report"):
        assert re.search(
            r"^error: the package (matplotlib|jinja2|tabulate), which is needed for [A-Za-z ]+, is missing; "
             "pip "
            rf"install -r requirements.txt brings it \(stage {stage}\)$",
            ended.stderr,
            re.MULTILINE,
        ), ended.stderr


@pytest.mark.parametrize("module", OPTIONAL)
def test_a_missing_optional_package_is_explained_where_it_is_imported(monkeypatch, module):
    package, use, listed_in = environment.OPTIONAL[module]
    monkeypatch.setitem(sys.modules, module, None)         # the import then fails as if it were not installed
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError) as missing:
        __import__(f"{module}.inside")
    missing.value.add_note("report")
    assert explain(missing.value) == (2, f"error: the package {package}, which is needed for {use}, is "
                                         f"missing; pip install -r {listed_in} brings it (stage report)")


def test_a_package_that_pandas_misses_is_explained(monkeypatch):
    import pandas as pd
    monkeypatch.setitem(sys.modules, "tabulate", None)
    with pytest.raises(ImportError) as missing:
        pd.DataFrame({"a": [1]}).to_markdown()
    assert missing.value.name is None
    assert explain(missing.value)[1].startswith("error: the package tabulate, which is needed for tables in "
                                                "Markdown, is missing; ")


def test_a_version_that_is_asked_for_of_a_missing_package_is_explained():
    with pytest.raises(ModuleNotFoundError) as missing:
        raise importlib.metadata.PackageNotFoundError("antspyx")
    assert explain(missing.value)[1].endswith("is missing; pip install -r requirements-preprocess.txt "
                                              "brings it")


def test_a_package_that_is_there_but_broken_is_explained_with_its_reason():
    code, message = explain(
        ImportError("libjpeg.so.9: cannot open shared object file", name="matplotlib._image")
    )
    assert code == 2
    assert (
        "matplotlib, which is needed for figures and the report, cannot be imported (libjpeg.so.9: cannot "
        "open"
        in message
    )
    assert explain(ImportError("libgfortran.so.5: cannot open", name="sklearn.utils"))[1].startswith(
        "error: the package scikit-learn, cannot be imported (libgfortran.so.5")


@pytest.mark.parametrize("name", ["runtime.nowhere", "experiment", "evaluation.figures", None])
def test_a_missing_module_of_our_own_is_a_fault_of_the_program(monkeypatch, capsys, name):
    error = ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert explain(error) is None
    with pytest.raises(ModuleNotFoundError):
        fails_with(monkeypatch, capsys, error)


def imported_packages(path: Path) -> set[str]:
    """First names of what a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_every_package_that_is_imported_is_asked_for():
    """In all rooms: a package that always has to be there is found before the first import, any other is
    explained."""
    paths = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "tests"]
    assert len(paths) > 40 and {path.parent.name for path in paths} >= {"runtime", "evaluation", "cohort",
                                                                        "studies"}
    own = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in paths}
    imported = set()
    for path in paths:
        imported |= imported_packages(path)
    brought = {"markupsafe", "triton"}                     # by jinja2 and torch
    known = environment.PACKAGES.keys() | environment.OPTIONAL.keys() | brought
    assert imported - own - set(sys.stdlib_module_names) <= known


def test_every_package_is_pinned_in_the_file_that_the_message_names():
    pinned = {}
    for name in ("requirements.txt", "requirements-preprocess.txt"):
        lines = (ROOT / name).read_text().splitlines()
        pinned[name] = {line.split("==")[0] for line in lines if not line.startswith("-r")}
    expected = {"requirements.txt": set(environment.PACKAGES.values()), "requirements-preprocess.txt": set()}
    for package, _, listed_in in environment.OPTIONAL.values():
        expected[listed_in].add(package)
    assert pinned == expected


# ---------------------------------------------------------------- outputs of earlier runs

@pytest.mark.parametrize(
    ("name", "content", "stages"),
    [("validation.csv", "", ("report",)), ("loss_curve.csv", "epoch\n1\n", ("report",)),
     ("loss_curve.csv", "\xff\0", ("test",)), ("validation.csv", "stage,epoch\nldm,1\n", ("aae",)),
     ("sweep/sampling_sweep.csv", "", ("sweep",)),
     ("sweep/sampling_sweep.csv", "sampler\nddim\n", ("sweep",)), ("CHECKPOINT_Unet.pth.tar", "", ("test",))],
)
def test_a_damaged_output_of_an_earlier_run_is_named(finished, tmp_path, monkeypatch, capsys, name, content,
                                                     stages):
    shutil.copytree(finished, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    path = tmp_path / "p" / "result" / "a" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="latin-1")
    assert (main.main(["sweep", "--exp", "a"]) if stages == ("sweep",) else run(*stages)) == 2
    assert f"result/a/{name}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project folder whose tiny cohort went through training, test and report."""
    root, before = tmp_path_factory.mktemp("finished"), os.getcwd()
    write_cohort(root)
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert run("aae", "encode", "ldm", "test", "report") == 0
    finally:
        os.chdir(before)
    return root


@pytest.mark.parametrize(("place", "words"), [("figures", ["--stages", "test", "report"]), ("sweep", [])])
def test_a_file_in_place_of_a_folder_is_found_before_the_first_sample(finished, tmp_path, monkeypatch, capsys,
                                                                      place, words):
    shutil.copytree(finished, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    shutil.rmtree(Path("result/a") / place, ignore_errors=True)
    (Path("result/a") / place).write_text("a file")
    monkeypatch.setattr("model.Synthesizer.sample", None)
    assert (
        main.main([*arguments(TINY | {"exp": "a"}), *words]) if words else main.main(["sweep", "--exp", "a"])
    ) == 5
    captured = capsys.readouterr()
    assert f"result/a/{place}: cannot be written to: File exists" in captured.err
    assert "\ntest " not in captured.out


def test_a_file_called_result_is_named_before_the_data_are_read(root, capsys):
    (root / "result").write_text("a file")
    assert run("aae") == 5
    captured = capsys.readouterr()
    assert "cannot be written to" in captured.err
    assert "no problem found" not in captured.out


def test_ctrl_c_ends_a_loop_of_the_shell_too(tmp_path):
    # to both
    code = ("import os, signal; from runtime.signals import CTRL_C, leave; "
            "os.kill(os.getppid(), signal.SIGINT); leave(CTRL_C)")
    loop = f"for i in 1 2; do echo $i; {sys.executable} -c '{code}'; done"
    shell = ["env", "--default-signal=INT", "bash", "-c", loop]  # tests in the background may have it ignored
    ended = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.stdout == "1\n"


@pytest.mark.parametrize(("number", "code"),
                         [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_during_the_imports_has_its_exit_code(tmp_path, number, code):
    hook = tmp_path / "numpy"                              # imported before the run listens
    hook.mkdir()
    (hook / "__init__.py").write_text("import os, time\nos.kill(os.getpid(), "
                                      f"{int(number)})\ntime.sleep(60)\n")
    ended = subprocess.run([sys.executable, str(ROOT / "main.py")], capture_output=True, text=True,
                           timeout=60, env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_a_screen_that_is_gone_does_not_cost_the_run_its_steps(root):
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    if not (child := os.fork()):
        os.dup2(reader.stdin.fileno(), 1)
        os.dup2(reader.stdin.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        try:
            leave(main.main([*arguments(TINY | {"exp": "a", "aae_epochs": 500}), "--stages", "aae"]))
        except SystemExit as stop:
            for stream in (sys.stdout, sys.stderr):        # as Python does at its end
                stream.flush()
            os._exit(stop.code)
        finally:
            os._exit(1)
    last = root / "result/a/CHECKPOINT_AAE_last.pth.tar"
    while not last.exists():
        assert wait(child, 0.1) is None
    os.kill(child, signal.SIGTERM)
    assert wait(child, 120) == 75
    assert "stopped by SIGTERM" in (root / "result/a/run.log").read_text()
