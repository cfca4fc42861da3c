"""Runs that are interrupted equal runs that are not, and leave nothing behind; the numbers of --thorough are
those of the README."""
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import interrupt
import torch


def interrupted(record_property, folder: Path, what: Callable[..., bool], *numbers: int) -> str:
    """What a function of interrupt.py prints of so many interruptions; it must find no fault.

    It runs in a process of its own, forked from this one, which has imported everything.
    """
    said = folder / "said.txt"
    if not (child := os.fork()):
        is_good = False
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w")
        try:
            torch.set_num_threads(1)
            is_good = what(*numbers, seed=0, root=folder)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        os._exit(not is_good)
    _, status = os.waitpid(child, 0)
    text = said.read_text()
    assert os.waitstatus_to_exitcode(status) == 0, text
    record_property("trust", f"{what.__name__}: {text.strip()}")
    return text


def test_a_killed_run_that_is_given_again_equals_an_uncut_one_bit_for_bit(record_property, tmp_path, count):
    number = count(4, 100)
    text = interrupted(record_property, tmp_path, interrupt.kills, number)
    assert int(re.match(r"(\d+) kills", text)[1]) >= number
    assert int(re.search(r"(\d+) final outputs", text)[1]) > 100


def test_stopping_and_continuing_piles_nothing_up(record_property, tmp_path, count):
    text = interrupted(record_property, tmp_path, interrupt.cycles, count(3, 50), count(40, 1000))
    assert int(re.search(r"(\d+) stops", text)[1]) >= count(3, 50)
