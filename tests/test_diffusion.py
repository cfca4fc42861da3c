"""The parts of the diffusion process that are not published: its schedule, its times and its weights over
time."""
import numpy as np
import pytest
import torch
from conftest import TINY
from torch.testing import assert_close

from config import Config
from model import Diffusion


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_ends_in_pure_noise_and_begins_as_before(prediction):
    plain = Diffusion(prediction=prediction)
    diffusion = Diffusion(prediction=prediction, zero_terminal_snr=True)
    assert diffusion.alpha_bar[-1] == 0
    assert diffusion.alpha_bar[0] == pytest.approx(plain.alpha_bar[0].item(), rel=1e-6)
    assert (diffusion.alpha_bar.diff() < 0).all()
    ratio = diffusion.alpha_bar[1:] / diffusion.alpha_bar[:-1]
    assert_close(ratio, 1 - diffusion.beta[1:], atol=1e-5, rtol=1e-4)
    z_0, eps, last = torch.randn(2, 1, 3, 3, 3), torch.randn(2, 1, 3, 3, 3), torch.tensor([999, 999])
    assert_close(diffusion.q_sample(z_0, last, eps), eps)  # nothing of z_0 is left to read

    def denoise(z_t, t):
        """A denoiser that knows z_0, and says so at pure noise too."""
        alpha_bar_t = diffusion.alpha_bar[t].view(-1, 1, 1, 1, 1)
        return diffusion.target(z_0, t, (z_t - alpha_bar_t.sqrt() * z_0) / (1 - alpha_bar_t).sqrt())
    assert_close(diffusion.ddim(denoise, eps, 5), z_0, atol=1e-4, rtol=1e-4)


def test_zero_terminal_snr_is_refused_where_pure_noise_says_nothing_about_z_0():
    with pytest.raises(AssertionError, match="of pure noise"):
        Diffusion(prediction="eps", zero_terminal_snr=True)
    refused = [("prediction", "eps"), ("sampler", "ddpm"), ("sampler", "dpm"), ("validation_sampler", "ddpm")]
    for name, value in refused:
        with pytest.raises(ValueError, match="zero_terminal_snr needs prediction v or x0 and sampler ddim"):
            Config(**TINY | {"zero_terminal_snr": True, name: value})


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
