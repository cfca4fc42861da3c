"""The parts of the diffusion process that are not published: its times and its weights over time."""
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from model import Diffusion


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weighs_the_error_of_z_0_alike_whatever_is_predicted(prediction):
    torch.manual_seed(0)
    diffusion, t = Diffusion(prediction=prediction), torch.tensor([3, 100, 400, 900])
    z_0, eps = torch.randn(4, 1, 3, 3, 3), torch.randn(4, 1, 3, 3, 3)
    z_t = diffusion.q_sample(z_0, t, eps)
    output = diffusion.target(z_0, t, eps) + 0.01 * torch.randn_like(z_0)
    z_0_hat, _ = diffusion.z_0_and_eps(output, z_t, t)
    error = (output - diffusion.target(z_0, t, eps)).square().flatten(1).mean(1)
    snr = diffusion.alpha_bar[t] / (1 - diffusion.alpha_bar[t])
    assert snr[0] > 5 > snr[2]                             # both sides of gamma are tried
    expected = snr.clamp(max=5) * (z_0_hat - z_0).square().flatten(1).mean(1)
    assert_close(diffusion.loss_weight(t, 5.0) * error, expected, rtol=2e-2, atol=1e-7)
    assert_close(diffusion.loss_weight(t, 0.0), torch.ones(4))


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
