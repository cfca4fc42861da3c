"""The log of a run: where its lines go, and how long it says that a run will take."""
import logging

import pytest

from runtime.logs import LOG, keep_log, logging_run, say, time_left


@pytest.mark.parametrize(("seconds", "steps", "expected"), [
    (0.45, 26_667, "about 3 h 20 min left for 26,667 steps (0.45 s a step)"),
    (0.45, 1000, "about 8 min left for 1,000 steps (0.45 s a step)"),
    (0.0123, 100, "about 1 s left for 100 steps (0.012 s a step)"),
    (29.8, 2, "about 1 min left for 2 steps (30 s a step)"),
    (1799.5, 2, "about 1 h 0 min left for 2 steps (1800 s a step)"),
    (2.0, 43_000, "about 23 h 53 min left for 43,000 steps (2 s a step)"),
    (2.0, 96_000, "about 2 d 5 h left for 96,000 steps (2 s a step)"),
    (1.0, 0, "about 0 s left for 0 steps (1 s a step)")])
def test_the_time_left_is_said_in_two_units_at_most(seconds, steps, expected):
    assert time_left(seconds, steps) == expected


def test_the_file_of_a_log_begins_with_the_lines_that_came_before_it_was_named(tmp_path, capsys):
    before = LOG.handlers
    with logging_run():
        say("check", "early")
        keep_log(tmp_path / "run.log")
        say("aae", "late")
        LOG.debug("%s", "for the file alone")
        LOG.error("%s", "error: wrong")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["check  early", "aae    late"]
    assert captured.err.splitlines() == ["error: wrong"]
    lines = [line.split("  ", 1)[1] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert lines == ["check  early", "aae    late", "for the file alone", "error: wrong"]
    assert LOG.handlers == before


def test_a_log_that_cannot_be_written_is_an_error_at_once_and_a_full_disk_later_is_not(tmp_path, capsys):
    with logging_run():
        with pytest.raises(OSError, match="run.log"):
            keep_log(tmp_path / "nowhere" / "run.log")
        keep_log(tmp_path / "run.log")
        [file] = [handler for handler in LOG.handlers if isinstance(handler, logging.FileHandler)]
        file.stream = open("/dev/full", "w")               # every line to it now fails  # noqa: SIM115
        say("aae", "goes on")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("aae    goes on\n", "")
