"""The image-space DDPM: its network, its loss, its steps, and the PETs that it samples."""
import copy
import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from baselines.ddpm import DDPM, ImageUNet, grid_of, noise_loss
from config import DEMO, DDPMSettings
from model import Diffusion, recompute_activations
from utils import EMA, InputError, NotFiniteError, autocast, draw_noise

SIZE = (8, 12, 8)
TINY = {"downsample": 1, "base_channels": 8, "channel_mults": (1, 2), "res_blocks": 1, "time_dim": 16,
        "norm_groups": 4, "T": 20, "beta": (0.005, 0.7), "lr": 3e-3, "ema_start": 0, "ema_decay": 0.5,
        "sampling_steps": 3}
CPU, SMALL = torch.device("cpu"), dataclasses.asdict(DEMO["ddpm"])


def tiny(volume_size: tuple[int, ...] = SIZE, seed: int = 0, at_once: int = 4, **settings) -> DDPM:
    """A tiny DDPM, always with the same weights."""
    torch.manual_seed(0)
    ddpm = DDPM(DDPMSettings(**TINY | settings), volume_size, CPU, seed, at_once)
    ddpm.begin_epoch(1, 2)
    return ddpm


def random_batch(size: tuple[int, ...] = SIZE, n: int = 2) -> dict:
    """Smooth MRIs and PETs of n subjects, always the same."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(2, n, 1, 2, 3, 2, generator=generator)
    mri, pet = (F.interpolate(volumes, size, mode="trilinear") for volumes in coarse)
    return {"id": [f"s{i}" for i in range(n)], "label": torch.arange(n) % 2, "mri": mri, "pet": pet}


def count(network: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in network.parameters())


def state_of(ddpm: DDPM) -> dict:
    """A copy of what a checkpoint keeps."""
    return {name: copy.deepcopy(part.state_dict()) for name, part in ddpm.parts.items()}


def assert_same_state(found: dict, expected: dict) -> None:
    """Bit for bit."""
    assert_close(found, expected, rtol=0, atol=0)


def alpha_bars(first: float, last: float, steps: int) -> np.ndarray:
    """alpha_bar_t of a linear schedule, by numpy alone."""
    return np.cumprod(1 - (first + (last - first) * np.arange(steps) / (steps - 1)))


# ---------------------------------------------------------------- the network

@pytest.mark.parametrize(("width", "mults", "exact", "millions"), [
    (32, (1, 2, 4, 8), 43_704_641, 43.7), (32, (1, 2, 2, 4), 12_807_873, 12.8),
    (16, (1, 2, 4, 8), 10_933_409, 10.9),
])
def test_the_network_has_as_many_weights_as_the_comparison_lists(width, mults, exact, millions):
    """With a time embedding as wide as the first level, as IL-CLDM's UNet has; groups change nothing."""
    found = count(ImageUNet(base_channels=width, channel_mults=mults, time_dim=width, norm_groups=8))
    assert found == exact
    assert round(found / 1e6, 1) == millions


@pytest.mark.parametrize(("settings", "volume_size", "grid_size", "weights"), [
    ({}, (160, 192, 160), (80, 96, 80), 43_704_641 - 2 * 32),            # the last GroupNorm is left out
    (SMALL, (40, 48, 40), (40, 48, 40), 2_514_913),
])
def test_the_settings_give_the_network_of_their_size(settings, volume_size, grid_size, weights):
    """On torch's meta device a pass costs nothing."""
    ddpm = DDPM(DDPMSettings(**settings), volume_size, CPU)
    assert count(ddpm.unet) == count(ddpm.ema.module) == weights
    assert grid_of(volume_size, ddpm.settings.downsample) == grid_size
    z_t = torch.empty(2, 1, *grid_size, device="meta")
    eps = ddpm.unet.to("meta")(z_t, z_t, torch.empty(2, dtype=torch.int64, device="meta"))
    assert eps.shape == z_t.shape


@pytest.mark.parametrize(("settings", "volume_size", "message"), [
    ({"downsample": 2}, (16, 24, 15), "volumes are 16x24x15.*downsample 2; take another volume_size"),
    ({"downsample": 2}, (16, 24, 18), "grid of the DDPM is 8x12x9.*divisible by 2.*2 levels; take another"),
    ({"channel_mults": (1, 1, 1, 1)}, (40, 48, 36), "40x48x36.*divisible by 8.*4 levels"),
])
def test_what_does_not_fit_is_refused_with_the_reason(settings, volume_size, message):
    with pytest.raises(InputError, match=message):
        DDPM(DDPMSettings(**TINY | settings), volume_size, CPU)


def test_the_first_convolution_sees_the_noisy_pet_and_the_mri_itself():
    ddpm, seen = tiny(), []
    ddpm.unet.down[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    z_t, mri = torch.randn(2, 1, *SIZE), torch.randn(2, 1, *SIZE)
    ddpm.unet(z_t, mri, torch.tensor([3, 7]))
    assert torch.equal(seen[0], torch.cat([z_t, mri], dim=1))


def test_the_last_norm_is_a_setting_without_which_the_level_of_the_features_reaches_the_output():
    """Scaling the features before the output scales what a network without the norm gives."""
    plain, normed = tiny().unet, tiny(output_norm=True).unet
    assert count(normed) - count(plain) == 2 * TINY["base_channels"]
    h = torch.rand(1, 8, 4, 4, 4) + 1
    changes = []
    for unet in (plain, normed):
        changes.append((unet.out(10 * h) - unet.out(h)).abs().max().item())
    assert changes[0] > 0.1 and changes[1] < 0.01


def test_volumes_reach_the_network_in_minus_1_to_1_as_means_of_their_voxels():
    volume = torch.rand(2, 1, 8, 12, 8)
    assert_close(tiny().to_grid(volume), 2 * volume - 1)
    half = tiny(downsample=2).to_grid(volume)
    assert half.shape == (2, 1, 4, 6, 4)
    assert half[1, 0, 1, 2, 3].item() == pytest.approx(2 * volume[1, 0, 2:4, 4:6, 6:8].mean().item() - 1,
                                                       abs=1e-6)


# ---------------------------------------------------------------- the loss

class Spy(nn.Module):
    """A denoiser of one weight that notes what it was given: it says that the noise is weight * z_t."""

    def __init__(self, weight: float = 0.0):
        super().__init__()
        self.weight, self.given = nn.Parameter(torch.tensor(weight)), []

    def forward(self, z_t, mri, t):
        self.given.append((z_t.detach(), mri, t))
        return self.weight * z_t


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_is_the_squared_error_of_the_noise(weight):
    z_0, mri, eps = torch.rand(3, 2, 1, 2, 3, 2).mul(2).sub(1)
    t, spy = torch.tensor([1, 700]), Spy(weight)
    found = noise_loss(spy, Diffusion(), z_0, mri, t, eps)
    alpha_bar = alpha_bars(1e-4, 0.02, 1000)[[1, 700]].reshape(2, 1, 1, 1, 1)
    z_t = np.sqrt(alpha_bar) * z_0.numpy() + np.sqrt(1 - alpha_bar) * eps.numpy()
    assert found.item() == pytest.approx(((weight * z_t - eps.numpy()) ** 2).sum() / 24, rel=1e-5)
    [(seen, condition, times)] = spy.given
    assert_close(seen, torch.from_numpy(z_t).float())
    assert condition is mri and times is t


def with_spy(spy: Spy, **settings) -> DDPM:
    """A DDPM whose network is the spy."""
    ddpm = tiny(**settings)
    ddpm.unet, ddpm.ema, ddpm.opt = spy, EMA(spy, 0.5, 0), torch.optim.SGD(spy.parameters(), 0.0)
    return ddpm


def test_a_step_draws_uniform_times_from_1_on_and_standard_normal_noise():
    """Of a PET of 0.5, which is z_0 = 0, the network sees the noise alone."""
    torch.manual_seed(0)
    spy, half = Spy(), torch.full((4000, 1, 1, 1, 1), 0.5)
    ddpm = with_spy(spy, T=1000, beta=(1e-4, 0.02))
    loss = ddpm.step({"mri": half + 0.25, "pet": half}, 1)["mse"]
    [(z_t, mri, t)] = spy.given
    assert 1 <= t.min() <= 6 and 994 <= t.max() <= 999
    assert t.float().mean().item() == pytest.approx(500, abs=15)
    assert t.float().std().item() == pytest.approx(999 / 12 ** 0.5, rel=0.05)
    eps = z_t.flatten().double() / torch.from_numpy(1 - alpha_bars(1e-4, 0.02, 1000))[t].sqrt()
    assert eps.mean().item() == pytest.approx(0, abs=0.06) and eps.std().item() == pytest.approx(1, abs=0.04)
    assert loss == pytest.approx(eps.square().mean().item(), rel=1e-3)                       # the spy says 0
    assert torch.equal(mri, torch.full_like(mri, 0.5))                                       # 2 * 0.75 - 1


def test_every_step_has_times_and_noise_of_its_own():
    spy = Spy()
    ddpm = with_spy(spy, T=1000, beta=(1e-4, 0.02))
    for number in (1, 2):
        ddpm.step(random_batch(n=8), number)
    first, second = spy.given
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[2], second[2])


# ---------------------------------------------------------------- the step

def test_a_step_reaches_every_weight_of_the_network_and_no_weight_of_its_average():
    ddpm = tiny()
    assert ddpm.parts.keys() == {"unet", "ema", "opt"}
    losses = ddpm.step(random_batch(), 1)
    assert losses.keys() == {"mse"} and np.isfinite(losses["mse"])
    for name, weight in ddpm.unet.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
    assert ddpm.unet.down[0].weight.grad[:, 1].abs().max() > 0                               # of the MRI
    for weight in ddpm.ema.module.parameters():
        assert weight.grad is None and not weight.requires_grad
    assert {id(weight) for group in ddpm.opt.param_groups for weight in group["params"]} == {
        id(weight) for weight in ddpm.unet.parameters()}


def test_the_average_is_a_copy_up_to_its_start_and_then_follows_slowly():
    ddpm, batch = tiny(ema_start=2, ema_decay=0.75), random_batch()
    for number in (1, 2):
        ddpm.step(batch, number)
        assert_close(list(ddpm.ema.module.parameters()), list(ddpm.unet.parameters()), rtol=0, atol=0)
    before = [weight.clone() for weight in ddpm.ema.module.parameters()]
    ddpm.step(batch, 3)
    weights = zip(ddpm.ema.module.parameters(), before, ddpm.unet.parameters(), strict=True)
    for found, old, new in weights:
        assert_close(found, 0.75 * old + 0.25 * new.detach(), rtol=1e-5, atol=1e-7)


def test_the_learning_rate_is_that_of_the_settings_in_every_epoch():
    ddpm = tiny(lr=2e-4)
    for epoch in (1, 5, 10):
        ddpm.opt.param_groups[0]["lr"] = 1.0               # as a training loop may have set it
        ddpm.begin_epoch(epoch, 10)
        assert ddpm.opt.param_groups[0]["lr"] == 2e-4


def test_defaults_are_those_of_il_cldm_and_of_ho():
    found = dataclasses.asdict(DDPMSettings())
    expected = {"T": 1000, "beta": (1e-4, 0.02), "time_shift": 1, "lr": 1e-4, "ema_decay": 0.9999,
                "ema_start": 2000, "sampler": "ddim", "sampling_steps": 50, "samples": 1}
    assert {name: found[name] for name in expected} == expected
    group = tiny(betas=(0.5, 0.9), weight_decay=0.2).opt.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.9), 0.2)


def test_labels_change_nothing_in_training():
    states, batch = [], random_batch()
    for label in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        ddpm = tiny()
        ddpm.step(batch | {"label": label}, 1)
        states.append(state_of(ddpm))
    assert_same_state(*states)


def test_volumes_that_are_not_finite_stop_the_step_with_the_weights_as_they_were():
    ddpm, batch = tiny(), random_batch()
    before = state_of(ddpm)
    batch["pet"][1, 0, 3, 3, 3] = float("nan")
    with pytest.raises(NotFiniteError, match="mse"):
        ddpm.step(batch, 1)
    assert_same_state(state_of(ddpm), before)


def test_recomputed_activations_give_the_same_step():
    states = []
    for recompute in (False, True):
        ddpm = tiny()
        if recompute:
            recompute_activations(ddpm.unet)
        ddpm.step(random_batch(), 1)
        states.append(state_of(ddpm))
    assert_close(*states)


def test_a_step_and_a_sample_in_bfloat16_leave_everything_in_float32():
    ddpm, batch = tiny(), random_batch()
    expected = tiny()
    torch.manual_seed(1)
    loss = ddpm.step(batch, 1, lambda: autocast(CPU, torch.bfloat16))["mse"]
    torch.manual_seed(1)
    assert loss == pytest.approx(expected.step(batch, 1)["mse"], rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in ddpm.unet.parameters())
    pet = ddpm.predict(batch["mri"], lambda: autocast(CPU, torch.bfloat16), batch["id"])
    assert pet.dtype == torch.float32 and pet.isfinite().all()


def train(ddpm: DDPM, batch: dict, steps: range) -> None:
    """Take the steps of these numbers, on the draws that belong to them."""
    for number in steps:
        torch.manual_seed(number)
        ddpm.step(batch, number)


def test_a_training_that_was_cut_goes_on_as_an_uncut_one():
    batch, whole = random_batch(), tiny()
    train(whole, batch, range(1, 5))
    cut = tiny()
    train(cut, batch, range(1, 3))
    saved, restored = state_of(cut), tiny()
    train(restored, batch, range(9, 10))                   # whatever it was before
    for name, part in restored.parts.items():
        part.load_state_dict(saved[name])
    restored.begin_epoch(2, 2)
    train(restored, batch, range(3, 5))
    assert_same_state(state_of(restored), state_of(whole))
    pets = [ddpm.predict(batch["mri"], ids=batch["id"]) for ddpm in (restored, whole)]
    assert torch.equal(*pets)


def test_steps_on_one_batch_bring_the_samples_close_to_its_pets():
    size = (4, 4, 4)
    ddpm = tiny(size, ema_start=1000, beta=(0.02, 0.3), lr=5e-3, sampling_steps=5, samples=4)
    batch, errors = random_batch(size), []

    def note_error() -> None:
        errors.append((ddpm.predict(batch["mri"], ids=batch["id"]) - batch["pet"]).abs().mean().item())
    note_error()
    losses = [ddpm.step(batch, number)["mse"] for number in range(1, 121)]
    note_error()
    assert np.mean(losses[-30:]) < 0.4 * np.mean(losses[:10])
    assert errors[1] < 0.6 * errors[0], errors


# ---------------------------------------------------------------- the prediction

def test_a_prediction_is_a_pet_that_follows_from_mri_and_id_alone():
    ddpm, batch = tiny(), random_batch()
    torch.manual_seed(1)
    first = ddpm.predict(batch["mri"], ids=["a", "b"])
    torch.manual_seed(2)
    random = torch.get_rng_state()
    assert torch.equal(ddpm.predict(batch["mri"], ids=["a", "b"]), first)
    assert torch.equal(torch.get_rng_state(), random)      # which a training goes on with
    assert first.shape == batch["mri"].shape and first.dtype == torch.float32 and not first.requires_grad
    assert first.min() >= 0 and first.max() <= 1
    assert (first > 0).any() and (first < 1).any()
    alone = ddpm.predict(batch["mri"][1:], ids=["b"])
    assert_close(alone, first[1:], rtol=0, atol=1e-4)      # whoever else is in the batch
    other_id = ddpm.predict(batch["mri"][1:], ids=["c"])
    other_mri = ddpm.predict(1 - batch["mri"][1:], ids=["b"])
    assert (other_id - alone).abs().max() > 0.01 and (other_mri - alone).abs().max() > 1e-4


@pytest.mark.parametrize("ids", [None, [], ["a"]])
def test_a_prediction_without_an_id_for_every_scan_is_refused(ids):
    with pytest.raises(ValueError, match="2 scans came with .* give predict one ID a scan"):
        tiny().predict(random_batch()["mri"], ids=ids)


def denying(**settings) -> DDPM:
    """A DDPM whose moving average says that there is no noise."""
    ddpm = tiny(**settings)
    for weight in ddpm.ema.module.out[-1].parameters():
        weight.zero_()
    return ddpm


def as_pet(samples: list[Tensor]) -> Tensor:
    """The PET in [0, 1] of samples in [-1, 1]."""
    return ((sum(samples) / len(samples) + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(("steps", "times"), [(1, [19]), (4, [19, 13, 7, 1])])
def test_ddim_gives_the_mean_of_samples_whose_estimates_are_clamped_at_every_step(seed, steps, times):
    """Song et al. 2021, Eq. 12, where every estimate of z_0 is z_t over the signal, clamped to [-1, 1]."""
    ddpm = denying(samples=3, seed=seed, sampling_steps=steps, at_once=4)
    found = ddpm.predict(random_batch()["mri"], ids=["a", "b"])
    alpha_bar = alpha_bars(*TINY["beta"], TINY["T"])
    signals, noises = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    for row, name in enumerate(["a", "b"]):
        samples = []
        for k in range(3):
            z = next(draw_noise(seed, name, k, (1, *SIZE))).double()
            assert (z / signals[-1]).abs().max() > 1       # without the clamp it would be another
            for t, t_next in zip(times, [*times[1:], None], strict=True):
                z_0 = (z / signals[t]).clamp(-1, 1)
                if t_next is not None:
                    z = signals[t_next] * z_0 + noises[t_next] * (z - signals[t] * z_0) / noises[t]
            samples.append(z_0)
        assert_close(found[row], as_pet(samples).float(), rtol=1e-3, atol=1e-3)
    assert ddpm.evaluations == 3 * steps


def test_ddpm_samples_the_posterior_of_the_clamped_estimate_with_the_noise_of_the_scan():
    """Ho et al. 2020, Eq. 7 and Algorithm 2, for a network that says there is no noise."""
    ddpm = denying(sampler="ddpm", T=6, beta=(0.1, 0.3))
    found = ddpm.predict(random_batch()["mri"][:1], ids=["a"])[0]
    noise, beta = draw_noise(0, "a", 0, (1, *SIZE)), np.linspace(0.1, 0.3, 6)
    alpha_bar, z = alpha_bars(0.1, 0.3, 6), next(noise).double()
    for t in (5, 4, 3, 2, 1):
        z_0 = (z / alpha_bar[t] ** 0.5).clamp(-1, 1)
        of_z_0 = alpha_bar[t - 1] ** 0.5 * beta[t] / (1 - alpha_bar[t])
        of_z_t = (1 - beta[t]) ** 0.5 * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        z = of_z_0 * z_0 + of_z_t * z
        if t > 1:
            z = z + beta[t] ** 0.5 * next(noise)
    assert_close(found, as_pet([z]).float(), rtol=1e-4, atol=1e-5)
    assert ddpm.evaluations == 5


def test_at_half_size_the_result_is_resampled_trilinearly():
    ddpm = denying(downsample=2, sampling_steps=1)
    found = ddpm.predict(random_batch()["mri"][:1], ids=["a"])
    signal = float(np.sqrt(alpha_bars(*TINY["beta"], TINY["T"])[-1]))
    z_0 = (next(draw_noise(0, "a", 0, (1, 4, 6, 4)))[None] / signal).clamp(-1, 1)
    expected = F.interpolate(z_0, SIZE, mode="trilinear", align_corners=False)
    assert found.shape == (1, 1, *SIZE)
    assert_close(found, as_pet([expected]), rtol=1e-3, atol=1e-3)


def test_one_sample_is_the_first_of_several():
    several, one, batch = tiny(samples=3), tiny(samples=1), random_batch()
    assert list(one.methods()) == ["ddpm"] and list(several.methods()) == ["ddpm", "ddpm_mean"]
    pets = {name: method.predict(batch["mri"], ids=batch["id"]) for name, method in several.methods().items()}
    assert torch.equal(pets["ddpm"], one.predict(batch["mri"], ids=batch["id"]))
    assert torch.equal(pets["ddpm_mean"], several.predict(batch["mri"], ids=batch["id"]))
    assert [method.evaluations for method in several.methods().values()] == [3, 9]


def test_a_validation_takes_one_sample_by_few_steps_of_ddim():
    ddpm, batch = tiny(samples=3, sampler="ddpm", validation_steps=2), random_batch()
    expected = tiny(sampling_steps=2).predict(batch["mri"], ids=batch["id"])
    assert torch.equal(ddpm.predict_for_validation(batch["mri"], ids=batch["id"]), expected)


def test_a_network_at_half_size_trains_and_leaves_an_even_volume_as_it_is():
    ddpm, batch = tiny(downsample=2), random_batch()
    assert np.isfinite(ddpm.step(batch, 1)["mse"])
    even = torch.full((1, 1, *SIZE), 0.3)
    assert_close(ddpm.space.decode(ddpm.to_grid(even)), even)


def test_the_prediction_is_by_the_moving_average():
    ddpm, batch = tiny(), random_batch()
    before = ddpm.predict(batch["mri"], nullcontext, batch["id"])
    for weight in ddpm.unet.parameters():
        weight.data.zero_()
    assert torch.equal(ddpm.predict(batch["mri"], nullcontext, batch["id"]), before)
    for weight in ddpm.ema.module.parameters():
        weight.zero_()
    assert not torch.equal(ddpm.predict(batch["mri"], nullcontext, batch["id"]), before)


def test_in_prediction_the_network_sees_the_mri_as_in_training():
    ddpm, batch, seen = tiny(downsample=2), random_batch(), []
    for network in (ddpm.unet, ddpm.ema.module):
        network.down[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0][:, 1].detach()))
    ddpm.step(batch, 1)
    ddpm.predict(batch["mri"], ids=batch["id"])
    in_training, *in_prediction = seen
    assert len(in_prediction) == ddpm.evaluations and in_training.std() > 0.1
    for mri in in_prediction:
        assert_close(mri, in_training)
