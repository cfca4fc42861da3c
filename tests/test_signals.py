"""Signals: where they stop a run, and where they are deferred."""
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.signals import (AGAIN, CTRL_C, SIGNALS, Stopped, abandoned_on_error, acknowledge_stop,
                             defer_signals, handle_signals, serve_parent, stop_if_requested)

ROOT = Path(__file__).parents[1]


def run_python(code: str, **options) -> subprocess.CompletedProcess:
    """A process of its own that runs this code in the project."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, **options)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_and_has_its_exit_code(number):
    with pytest.raises(Stopped, match=signal.Signals(number).name) as stop, handle_signals():
        os.kill(os.getpid(), number)
        time.sleep(5)
        pytest.fail("went on")
    assert stop.value.exit_code == (CTRL_C if number == signal.SIGINT else AGAIN)


def test_a_signal_waits_for_the_end_of_deferring_blocks():
    done = []
    with handle_signals(), pytest.raises(Stopped), defer_signals():
        with defer_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]


def test_an_error_of_a_deferring_block_is_not_hidden_by_a_signal():
    with handle_signals(), pytest.raises(ZeroDivisionError), defer_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        print(1 / 0)


def test_handlers_are_as_before_after_the_block():
    before = [signal.getsignal(number) for number in SIGNALS]
    with handle_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_ends_at_once_even_in_a_deferring_block():
    code = ("import os, signal, time\nfrom runtime.signals import defer_signals, handle_signals\nwith "
            "handle_signals(), defer_signals():\n    os.kill(os.getpid(), signal.SIGUSR1)\n    "
            "print('deferred', flush=True)\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n")
    ended = run_python(code, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (AGAIN, "deferred\n")
    assert "SIGUSR1: finishing what is being done; a second signal ends at once" in ended.stderr


def test_a_worker_leaves_signals_to_its_parent_but_can_be_ended():
    code = ("import os, signal\nfrom runtime.signals import "
            "serve_parent\nserve_parent()\nos.kill(os.getpid(), signal.SIGINT)\nos.kill(os.getpid(), "
            "signal.SIGUSR1)\nprint('alive', flush=True)\nos.kill(os.getpid(), "
            "signal.SIGTERM)\nprint('still alive')\n")
    ended = run_python(code, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, "alive\n")
    assert serve_parent.__defaults__  # a loader calls it with the number of the worker, a pool without


def test_the_waiting_tasks_of_a_pool_are_cancelled_after_an_error():
    done = []

    def task(number):
        time.sleep(0.05)
        done.append(number)
    with pytest.raises(Stopped), abandoned_on_error(ThreadPoolExecutor(1)) as pool:
        results = pool.map(task, range(100))
        next(results)
        raise Stopped(signal.SIGTERM)
    assert 1 <= len(done) <= 10


def test_a_stop_that_python_swallowed_is_raised_at_the_next_chance():
    class Tidy:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)           # here an exception is printed and forgotten
    with handle_signals(), pytest.raises(Stopped):
        Tidy()
        stop_if_requested()
    with handle_signals(), pytest.raises(Stopped):
        Tidy()
        with defer_signals():
            pass


def test_a_closed_screen_changes_no_exit_code(tmp_path):
    code = ("import os, signal\nfrom runtime.signals import Stopped, handle_signals, "
            "leave\nos.close(2)\ntry:\n    with handle_signals():\n        os.kill(os.getpid(), "
            "signal.SIGTERM)\nexcept Stopped as stop:\n    leave(stop.exit_code)\n")
    assert run_python(code, stdout=subprocess.DEVNULL, timeout=30).returncode == AGAIN


def test_what_is_saved_for_a_stop_is_not_stopped_again():
    done = []
    with handle_signals():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        acknowledge_stop()
        with defer_signals():
            done.append("saved")
        stop_if_requested()
    assert done == ["saved"]


def test_a_worker_ends_with_its_parent_however_that_ended():
    code = ("import os, signal, time\nfrom runtime.signals import serve_parent\nchild = os.fork()\nif "
            "child:\n    print(child, flush=True)\n    time.sleep(0.5)\n    os.kill(os.getpid(), "
            "signal.SIGKILL)\nserve_parent()\ntime.sleep(60)\n")
    child = int(run_python(code, stdout=subprocess.PIPE, text=True, timeout=70).stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail("it lives on")


def test_a_signal_after_an_error_does_not_cost_its_message():
    code = ("import os, signal\nfrom runtime import program, failures, signals\nexplain = failures.explain\n"
            "def signalled(error):\n    os.kill(os.getpid(), signal.SIGTERM)\n    return "
            "explain(error)\ndef fail():\n    raise FileNotFoundError(2, 'No such file', "
            "'a.nii')\nprogram.explain = signalled\nsignals.leave(program.exit_code(fail))\n")
    ended = run_python(code, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 5
    assert "error: [Errno 2] No such file: 'a.nii'" in ended.stderr and "Traceback" not in ended.stderr
