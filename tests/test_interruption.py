"""Runs that are interrupted equal runs that are not, and leave nothing behind; the numbers of --thorough are
those of the README."""
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).parent / "interrupt.py")


def interrupted(record_property, *arguments: str) -> str:
    """What the script says of so many interruptions; it must find no fault."""
    ended = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record_property("trust", f"{arguments[0]}: {ended.stdout.strip()}")
    return ended.stdout


def test_a_killed_run_that_is_given_again_equals_an_uncut_one_bit_for_bit(record_property, count):
    number = count(4, 100)
    text = interrupted(record_property, "kills", "--count", str(number))
    assert int(re.match(r"(\d+) kills", text)[1]) >= number
    assert int(re.search(r"(\d+) final outputs", text)[1]) > 100


def test_stopping_and_continuing_piles_nothing_up(record_property, count):
    text = interrupted(record_property, "cycles", "--count", str(count(3, 50)), "--steps",
                       str(count(80, 1000)))
    assert int(re.search(r"(\d+) stops", text)[1]) >= count(3, 50)
