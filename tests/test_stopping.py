"""Signals: where they stop a run, and where they wait."""
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stopping import AGAIN, CTRL_C, SIGNALS, Stopped, abandoned_on_error, held, leave_signals_to_parent, listening


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_and_has_its_exit_code(number):
    with pytest.raises(Stopped, match=signal.Signals(number).name) as stop, listening():
        os.kill(os.getpid(), number)
        time.sleep(5)
        pytest.fail("went on")
    assert stop.value.exit_code == (CTRL_C if number == signal.SIGINT else AGAIN)


def test_a_signal_waits_for_the_end_of_held_blocks_and_is_raised_once():
    done = []
    with listening():
        with pytest.raises(Stopped), held():
            with held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        with held():                                       # what saves after a stop is not stopped again
            done.append("saved")
    assert done == ["inner", "outer", "saved"]


def test_an_error_of_a_held_block_is_not_hidden_by_a_signal():
    with listening(), pytest.raises(ZeroDivisionError), held():
        os.kill(os.getpid(), signal.SIGTERM)
        print(1 / 0)


def test_handlers_are_as_before_behind_the_block():
    before = [signal.getsignal(number) for number in SIGNALS]
    with listening():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_ends_at_once_even_in_a_held_block():
    code = ("import os, signal, time\nfrom stopping import held, listening\n"
            "with listening(), held():\n    os.kill(os.getpid(), signal.SIGUSR1)\n    print('held', flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (AGAIN, "held\n")
    assert "SIGUSR1: finishing what is being done; a second signal ends at once" in ended.stderr


def test_a_process_that_reads_leaves_signals_to_its_parent_but_can_be_ended():
    code = ("import os, signal\nfrom stopping import leave_signals_to_parent\nleave_signals_to_parent()\n"
            "os.kill(os.getpid(), signal.SIGINT)\nos.kill(os.getpid(), signal.SIGUSR1)\nprint('alive', flush=True)\n"
            "os.kill(os.getpid(), signal.SIGTERM)\nprint('still alive')\n")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, "alive\n")
    assert leave_signals_to_parent.__defaults__            # a loader calls it with the number of the process, a pool without


def test_the_waiting_tasks_of_a_pool_are_given_up_with_an_error():
    done = []

    def task(number):
        time.sleep(0.05)
        done.append(number)
    with pytest.raises(Stopped), abandoned_on_error(ThreadPoolExecutor(1)) as pool:
        results = pool.map(task, range(100))
        next(results)
        raise Stopped(signal.SIGTERM)
    assert 1 <= len(done) <= 4
