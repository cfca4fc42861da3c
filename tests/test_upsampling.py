"""The decoder's upsampling: the published one leaves a grid, the blurred one none."""
import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import nn

from config import Config
from experiment.networks import build_aae
from model import AAE, UPSAMPLING, BlurredUp, UNet, recompute_activations, up

CHANNELS = 3


def last_upsampling(upsampling: str) -> nn.Module:
    """That of a decoder of two levels, with random weights."""
    torch.manual_seed(0)
    aae = AAE((CHANNELS, 2 * CHANNELS), norm_groups=3, upsampling=upsampling)
    return aae.decoder[4].double()


def share_at_nyquist(volumes: torch.Tensor) -> float:
    """Share of the power of [..., D, H, W], but for the means, at the highest frequency of any axis."""
    power = torch.fft.fftn(volumes.detach(), dim=(-3, -2, -1)).abs().square().sum((0, 1)).numpy()
    power[0, 0, 0] = 0
    highest = np.zeros(power.shape, dtype=bool)
    for axis, n in enumerate(power.shape):
        np.moveaxis(highest, axis, 0)[n // 2] = True
    return power[highest].sum() / power.sum()


def test_the_published_upsampling_makes_a_grid_of_what_is_constant_and_the_blurred_one_does_not():
    constant = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(1, CHANNELS, 1, 1, 1)
    constant = constant.expand(1, CHANNELS, 6, 8, 6)
    assert share_at_nyquist(last_upsampling("transposed")(constant)) > 0.1
    blurred = last_upsampling("blurred")(constant)
    spread = blurred.flatten(2).amax(2) - blurred.flatten(2).amin(2)
    assert blurred.abs().max() > 0.01 and spread.max() < 1e-12                  # constant, faces included


@pytest.mark.parametrize("upsampling", UPSAMPLING)
def test_whatever_lies_in_the_volume_the_blurred_upsampling_has_no_power_at_nyquist(upsampling):
    h = torch.zeros(2, CHANNELS, 8, 10, 8, dtype=torch.float64)
    h[..., 2:-2, 2:-2, 2:-2] = torch.randn(2, CHANNELS, 4, 6, 4, dtype=torch.float64)
    share = share_at_nyquist(last_upsampling(upsampling)(h))
    assert share < 1e-20 if upsampling == "blurred" else share > 1e-3


def test_the_blurred_upsampling_is_the_published_one_after_which_a_binomial_filter_comes():
    blurred, transposed = last_upsampling("blurred"), up(CHANNELS).double()
    transposed.load_state_dict(blurred.state_dict())
    h = torch.randn(2, CHANNELS, 5, 6, 4, dtype=torch.float64)
    expected = transposed(h).detach().numpy()
    for axis in (2, 3, 4):
        expected = correlate1d(expected, [0.25, 0.5, 0.25], axis=axis)
    found = blurred(h).detach().numpy()
    assert found.shape == expected.shape
    inside = (..., *3 * (slice(2, -2),))                   # voxels to which no face is near
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-12)


def test_every_upsampling_of_the_decoder_is_that_of_the_settings_and_the_unet_keeps_the_published_one():
    choices = {field.name: field.metadata["choices"] for field in dataclasses.fields(Config)}
    assert set(choices["upsampling"]) == set(UPSAMPLING)
    small = {"aae_channels": (8, 16, 16), "aae_norm_groups": 8}
    for upsampling, kind in (("transposed", nn.ConvTranspose3d), ("blurred", BlurredUp)):
        aae = build_aae(Config(upsampling=upsampling, **small), torch.device("cpu"))
        kinds = [type(layer) for layer in aae.decoder if isinstance(layer, nn.ConvTranspose3d)]
        assert kinds == [kind] * 2
    assert not any(isinstance(layer, BlurredUp) for layer in UNet(1, 8, (1, 2), 1, norm_groups=4).modules())


def test_weights_of_one_upsampling_have_names_and_shapes_of_the_other():
    one, other = (AAE((8, 16), norm_groups=8, upsampling=name).state_dict() for name in UPSAMPLING)
    assert {name: w.shape for name, w in one.items()} == {name: w.shape for name, w in other.items()}


def test_the_blurred_upsampling_keeps_channels_last_computes_in_bfloat16_and_is_built_without_memory():
    layer, h = last_upsampling("blurred").float(), torch.randn(2, CHANNELS, 4, 6, 4)
    layer, h = (one.to(memory_format=torch.channels_last_3d) for one in (layer, h))
    exact = layer(h)
    assert exact.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(h)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.02, rtol=0.02)
    with torch.device("meta"):
        assert all(weight.is_meta for weight in AAE(upsampling="blurred").parameters())


def test_gradients_of_the_blurred_upsampling_are_those_of_its_differences():
    layer = last_upsampling("blurred")
    h = torch.randn(1, CHANNELS, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (h,))


def test_recomputed_activations_change_nothing_with_the_blurred_upsampling():
    x, found = torch.rand(1, 1, 8, 8, 8), []
    for recompute in (False, True):
        torch.manual_seed(0)
        aae = AAE((8, 16), norm_groups=8, upsampling="blurred")
        if recompute:
            recompute_activations(aae)
        x_hat = aae(x)
        x_hat.square().mean().backward()
        found.append([x_hat, *(weight.grad for weight in aae.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
