"""The helpers of the tests themselves: sketches in the place of pictures, and the order of the files."""
from pathlib import Path

import numpy as np
import pytest
from conftest import LONGEST
from matplotlib.figure import Figure


def saved(folder: Path, **changes) -> bytes:
    """The file of a figure with a line, points and an image, but for changes: what -> its value."""
    shown = {"title": "loss", "line": [1.0, 2.0], "points": [0.5, 0.25], "image": np.eye(3)} | changes
    figure = Figure()
    axis = figure.add_subplot()
    axis.set_title(shown["title"])
    axis.plot(shown["line"])
    axis.scatter([0, 1], shown["points"])
    axis.imshow(shown["image"])
    figure.savefig(folder / "figure.png")
    return (folder / "figure.png").read_bytes()


@pytest.mark.parametrize(("name", "value"), [("title", "score"), ("line", [1.0, 2.5]),
                                             ("points", [0.5, 0.2]), ("image", np.ones((3, 3)))])
def test_sketches_differ_if_and_only_if_what_is_shown_does(tmp_path, name, value):
    assert saved(tmp_path) == saved(tmp_path) != saved(tmp_path, **{name: value})


def test_a_test_that_looks_at_a_picture_gets_one(tmp_path, drawn):
    assert saved(tmp_path).startswith(b"\x89PNG")


def test_every_file_of_the_order_is_there():
    assert not [name for name in LONGEST if not (Path(__file__).parent / f"{name}.py").is_file()]
