"""The part of the diffusion process that is not published: its times."""
import numpy as np
import pytest
import torch

from model import Diffusion


@pytest.mark.parametrize(("shift", "above_half"), [(1.0, 0.5), (3.0, 0.75), (0.5, 1 / 3)])
def test_shifted_times_lie_above_the_middle_as_often_as_the_formula_says(shift, above_half):
    """t > T / 2 where u > 1 / (1 + s), hence with probability s / (1 + s)."""
    torch.manual_seed(0)
    t = Diffusion().draw_times(40000, shift)
    assert (t.min(), t.max()) == (pytest.approx(1, abs=3), pytest.approx(999, abs=3))
    assert t.min() >= 1 and t.max() <= 999 and t.dtype == torch.int64
    assert (t > 500).float().mean().item() == pytest.approx(above_half, abs=0.01)


@pytest.mark.parametrize("shift", [1.0, 10.0])
def test_every_time_but_0_is_drawn_and_unshifted_ones_equally_often(shift):
    torch.manual_seed(0)
    counts = np.bincount(Diffusion(T=20).draw_times(40000, shift), minlength=20)
    assert counts[0] == 0 and len(counts) == 20 and (counts[1:] > 0).all()
    if shift == 1:
        assert np.abs(counts[1:] / 40000 - 1 / 19).max() < 0.006
    else:
        assert (np.diff(counts[1:]) > 0).mean() > 0.9      # more of them at high noise
