"""The networks and the diffusion process against the published ones and against their own mathematics."""
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import (AAE, Diffusion, Discriminator, Extractor, GroupNorm, LatentSpace, Projector, Synthesizer,
                   UNet, load_published, recompute_activations, std_over_samples)

TOLERANCE = 1e-4


def published_weights(names: list[str]) -> dict[str, torch.Tensor]:
    """The weights of the published networks, drawn anew as PyTorch initialises them, 1D ones perturbed,
    rounded to float16.

    Only names, shapes, a checksum and the networks' outputs are stored: the next numbers of one seeded stream
    are the weights.
    """
    weights, fan_in = {}, 1
    for entry in names:
        name, shape = entry.rsplit(" ", 1)
        shape = [int(n) for n in shape.split("x")]
        if name.endswith("inv_freq"):
            weights[name] = 1 / 10000 ** (torch.arange(0, 128, 2) / 128)
        elif name.startswith("label_emb"):
            weights[name] = torch.empty(shape).normal_()
        elif len(shape) > 1:
            weights[name] = nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5))
            fan_in = math.prod(shape[1:])
        elif name.endswith("bias") and weights[name[:-4] + "weight"].dim() > 1:
            weights[name] = torch.empty(shape).uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        else:
            weights[name] = torch.full(shape, float(name.endswith("weight")))
    for name, weight in weights.items():
        if weight.dim() == 1 and not name.endswith("inv_freq"):
            weight += 0.05 * torch.randn_like(weight)
    return {
        name: weight if name.endswith("inv_freq") else weight.half().float()
        for name, weight in weights.items()
    }


@pytest.fixture(scope="module")
def golden() -> dict:
    """Outputs of the published networks, with the weights and inputs that they had."""
    stored = np.load(Path(__file__).parent / "golden.npz")
    torch.manual_seed(11)
    vectors = {}
    for network, inputs in (("aae", {"x": (2, 1, 16, 24, 20)}), ("discriminator", {"x": (2, 1, 32, 64, 48)}),
                            ("unet", {"z_t": (2, 1, 8, 12, 10), "mri": (2, 1, 32, 48, 40)})):
        weights = published_weights(stored[f"{network}/names"].tolist())
        checksum = sum(w.double().abs().sum().item() for name, w in weights.items() if "inv_freq" not in name)
        assert checksum == pytest.approx(stored[f"{network}/digest"][0], rel=1e-9), (
            "torch draws other random numbers than it used to"
        )
        vectors[network] = {"weights": weights}
        for name, shape in inputs.items():
            vectors[network][name] = (
                (torch.randn(shape) if name == "z_t" else torch.rand(shape)).half().float()
            )
    for key in stored.files:
        network, name = key.split("/")
        if name not in ("names", "digest"):
            vectors.setdefault(network, {})[name] = torch.from_numpy(stored[key])
    return vectors


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() < TOLERANCE


@torch.no_grad()
def test_autoencoder_equals_the_published_one(golden):
    aae, vectors = AAE(), golden["aae"]
    load_published(aae, vectors["weights"])
    assert_close(aae.encoder(vectors["x"]), vectors["latent"])
    assert_close(aae(vectors["x"]), vectors["reconstruction"])


@torch.no_grad()
def test_discriminator_equals_the_published_one(golden):
    disc, vectors = Discriminator(), golden["discriminator"]
    load_published(disc, vectors["weights"])
    assert_close(disc(vectors["x"]), vectors["logits_train"])


@torch.no_grad()
def test_unet_equals_the_published_one(golden):
    unet, vectors = UNet(base_channels=32, channel_mults=(1, 2), attention_levels=(1,)), golden["unet"]
    load_published(
        unet, {"state_dict": {f"module.{name}": w for name, w in vectors["weights"].items()}, "optimizer": {}}
    )
    z_t, mri, t, label = (vectors[name] for name in ("z_t", "mri", "t", "label"))
    assert_close(unet.extractor(mri), vectors["condition"])
    assert_close(unet(z_t, mri, t), vectors["eps_without_label"])
    assert_close(unet(z_t, mri, t, label), vectors["eps_with_label"])


def test_ancestral_sampler_equals_the_published_one(golden):
    vectors, diffusion = golden["ddpm"], Diffusion()
    torch.testing.assert_close(diffusion.beta, vectors["beta"])
    torch.testing.assert_close(diffusion.alpha_bar, vectors["alpha_bar"])
    assert_close(diffusion.q_sample(vectors["z_0"], vectors["t"], vectors["eps"]), vectors["z_t"])

    def denoise(z_t, t):
        return 0.3 * z_t + 0.1 * torch.sin(t / 100).view(-1, 1, 1, 1, 1) * vectors["condition"]
    z_0 = diffusion.ddpm(denoise, vectors["x_T"], iter(vectors["noise"]))
    assert ((z_0 - vectors["x_0"]) / vectors["x_0"]).abs().max() < TOLERANCE


def test_parameter_counts_are_those_of_the_paper():
    def count(module):
        return sum(p.numel() for p in module.parameters())
    aae = AAE()
    assert (count(aae.encoder), count(aae.decoder), count(Discriminator())) == (762_145, 634_033, 697_809)
    assert (count(Extractor()), count(UNet())) == (16_017, 204_724_882)


def test_published_weights_that_do_not_fit_are_all_named_and_nothing_is_loaded(golden):
    weights = dict(golden["aae"]["weights"])
    del weights["encoder.model.0.bias"]
    weights["encoder.model.0.weight"] = torch.zeros(8, 1, 3, 3, 3)
    weights["surplus"] = torch.zeros(1)
    aae = AAE()
    before = {name: w.clone() for name, w in aae.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit this AAE") as error:
        load_published(aae, weights)
    for part in ("missing: encoder.0.bias", "misshapen: encoder.model.0.weight is (8, 1, 3, 3, 3)",
                 "unknown: surplus"):
        assert part in str(error.value)
    assert all(torch.equal(w, before[name]) for name, w in aae.state_dict().items())


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 16), (8, 8, 16, 16)])
@pytest.mark.parametrize("latent_channels", [1, 3])
def test_extractor_lands_on_the_latent_grid_for_any_number_of_levels(channels, latent_channels):
    x = torch.rand(1, 1, 16, 24, 8)
    aae = AAE(channels, latent_channels, norm_groups=8)
    z_0 = aae.encoder(x)
    downscale = 2 ** (len(channels) - 1)
    assert z_0.shape == (1, latent_channels, 16 // downscale, 24 // downscale, 8 // downscale)
    assert aae(x).shape == x.shape
    unet = UNet(latent_channels, 8, (1,), 1, norm_groups=8, downscale=downscale)
    assert unet(z_0, x, torch.tensor([5])).shape == z_0.shape


def test_without_output_norm_the_level_of_uptake_reaches_the_latent():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 16, 16, 16)

    def relative_change(aae):
        """How much the mean latent follows a brighter input, in units of the latent's spread."""
        dark, bright = aae.encoder(0.5 * x), aae.encoder(x)
        return ((bright.mean() - dark.mean()).abs() / bright.std()).item()
    torch.manual_seed(1)
    with_norm = AAE((16, 32))
    without = AAE((16, 32), norms=("blocks",))
    names = without.state_dict().keys()
    without.load_state_dict({name: w for name, w in with_norm.state_dict().items() if name in names})
    assert relative_change(without) > 2 * relative_change(with_norm)


def test_without_its_norms_the_autoencoder_scales_with_the_uptake():
    """Convolutions without biases and ReLUs alone are homogeneous: twice the uptake, twice the
    reconstruction. GroupNorms are not."""
    x, error = torch.rand(1, 1, 8, 8, 8), {}
    for norms in ((), ("blocks",)):
        torch.manual_seed(0)
        aae = AAE((8, 16), 2, norms, norm_groups=8)
        for name, weight in aae.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
        error[norms] = ((aae(2 * x) - 2 * aae(x)).norm() / aae(2 * x).norm()).item()
    assert error[()] < 1e-5 and error["blocks",] > 0.05


def tiny_unet(**settings) -> UNet:
    """A UNet of two levels on half the grid of the MRI, always with the same weights."""
    torch.manual_seed(0)
    return UNet(base_channels=8, channel_mults=(1, 2), norm_groups=4, **({"downscale": 2} | settings))


@pytest.fixture(scope="module")
def small_unet() -> UNet:
    return tiny_unet().eval()


@torch.no_grad()
def test_label_and_mri_change_the_output_and_probabilities_mix_labels(small_unet):
    z_t, mri, t = torch.randn(1, 1, 8, 8, 8), torch.rand(1, 1, 16, 16, 16), torch.tensor([500])
    nothing = small_unet(z_t, mri, t)
    positive, negative = (small_unet(z_t, mri, t, torch.tensor([1])),
                          small_unet(z_t, mri, t, torch.tensor([0])))
    assert not torch.allclose(positive, negative, atol=1e-3)
    assert not torch.allclose(nothing, small_unet(z_t, 1 - mri, t), atol=1e-3)
    torch.testing.assert_close(small_unet(z_t, mri, t, torch.tensor([[0.0, 1.0]])), positive)
    torch.testing.assert_close(small_unet(z_t, mri, t, torch.zeros(1, 2)), nothing)
    projector = small_unet.projector
    mixed = projector(t, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(
        mixed, 0.25 * projector(t, torch.tensor([0])) + 0.75 * projector(t, torch.tensor([1]))
    )


def test_without_image_conditioning_the_mri_has_no_say():
    unet = tiny_unet(image_conditioning=False)
    z_t, t = torch.randn(2, 1, 4, 4, 4), torch.tensor([3, 500])
    outputs = [unet(z_t, torch.rand(2, 1, 8, 8, 8), t) for _ in range(2)]
    assert torch.equal(*outputs)
    assert outputs[0].shape == z_t.shape


def test_multiscale_features_enter_at_every_level_and_leave_the_rest_as_it_was():
    plain, network = tiny_unet(), tiny_unet(multiscale=True)
    assert set(plain.state_dict()) < set(network.state_dict())
    z_t, mri, t = torch.randn(2, 1, 4, 4, 4), torch.rand(2, 1, 8, 8, 8), torch.tensor([3, 500])
    condition = network.condition(mri)
    assert [tuple(one.shape) for one in condition] == [(2, 1, 4, 4, 4), (2, 16, 4, 4, 4), (2, 16, 2, 2, 2)]
    out = network.denoise(z_t, condition, t)
    for level in (1, 2):
        other = [one + (number == level) for number, one in enumerate(condition)]
        assert (network.denoise(z_t, other, t) - out).abs().max() > 1e-4
    network.load_state_dict(plain.state_dict(), strict=False)
    for inject in network.inject:
        nn.init.zeros_(inject.weight)
        nn.init.zeros_(inject.bias)
    torch.testing.assert_close(network(z_t, mri, t), plain(z_t, mri, t))


def test_a_regression_network_sees_the_mri_itself_and_nothing_of_a_latent():
    network, mri, t = (tiny_unet(regression=True, downscale=1), torch.rand(2, 1, 8, 8, 8),
                       torch.zeros(2, dtype=torch.int64))
    [condition] = network.condition(mri)
    assert torch.equal(condition, mri)
    assert network(mri[:, :0], mri, t).shape == mri.shape


def test_time_embedding_is_sines_then_cosines():
    projector = Projector(time_dim=8)
    seen = {}
    projector.time.register_forward_pre_hook(lambda module, args: seen.update(embedding=args[0]))
    projector(torch.tensor([3]))
    frequencies = [10000 ** (-2 * k / 8) for k in range(4)]
    expected = [math.sin(3 * f) for f in frequencies] + [math.cos(3 * f) for f in frequencies]
    torch.testing.assert_close(seen["embedding"], torch.tensor([expected]))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_target_and_its_inverse_agree(prediction):
    diffusion, t = Diffusion(prediction=prediction), torch.tensor([1, 300, 999])
    z_0, eps = torch.randn(3, 1, 2, 2, 2), torch.randn(3, 1, 2, 2, 2)
    z_t = diffusion.q_sample(z_0, t, eps)
    found_z_0, found_eps = diffusion.z_0_and_eps(diffusion.target(z_0, t, eps), z_t, t)
    torch.testing.assert_close(found_eps, eps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found_z_0, z_0, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_samplers_recover_z_0_from_the_true_noise(prediction, sampler):
    """A denoiser that knows z_0 leads every sampler to it, whatever the network is said to predict."""
    torch.manual_seed(0)
    diffusion, z_0 = Diffusion(prediction=prediction), torch.randn(2, 1, 3, 3, 3)

    def denoise(z_t, t):
        alpha_bar_t = diffusion.alpha_bar[t].view(-1, 1, 1, 1, 1)
        return diffusion.target(z_0, t, (z_t - alpha_bar_t.sqrt() * z_0) / (1 - alpha_bar_t).sqrt())
    z_T = torch.randn_like(z_0)
    if sampler != "ddpm":
        torch.testing.assert_close(getattr(diffusion, sampler)(denoise, z_T, 7), z_0, atol=2e-4, rtol=1e-3)
    else:                                                  # ends with the noise of its last but one step left
        sampled = diffusion.ddpm(denoise, z_T, iter(torch.randn(998, 2, 1, 3, 3, 3)))
        assert (sampled - z_0).abs().max() < 0.05


def test_ancestral_sampling_gives_the_variance_of_the_data():
    """For Gaussian data the exact denoiser is known: the samples must have the data's mean and standard
    deviation."""
    torch.manual_seed(0)
    diffusion, mean, std = Diffusion(prediction="v"), 0.7, 0.4

    def denoise(z_t, t):
        a = diffusion.alpha_bar[t].view(-1, 1, 1, 1, 1)
        variance = a * std ** 2 + 1 - a
        expected_eps = (1 - a).sqrt() * (z_t - a.sqrt() * mean) / variance
        return diffusion.target((z_t - (1 - a).sqrt() * expected_eps) / a.sqrt(), t, expected_eps)
    z_0 = diffusion.ddpm(denoise, torch.randn(4, 1, 8, 8, 8), iter(torch.randn(998, 4, 1, 8, 8, 8)))
    assert z_0.mean().item() == pytest.approx(mean, abs=0.03)
    assert z_0.std().item() == pytest.approx(std, abs=0.03)


def gaussian_error(sampler: str, steps: int) -> float:
    """RMS distance of a deterministic sampler's result from the exact solution of its differential equation,
    for Gaussian data."""
    diffusion, mean, std = Diffusion(prediction="v"), 0.7, 0.4
    evaluations = []

    def z_0_given(z_t, t):                                 # E[z_0 | z_t]
        a = diffusion.alpha_bar[t].view(-1, 1, 1, 1, 1)
        return mean + a.sqrt() * std ** 2 * (z_t - a.sqrt() * mean) / (a * std ** 2 + 1 - a)

    def denoise(z_t, t):
        evaluations.append(t)
        a, z_0 = diffusion.alpha_bar[t].view(-1, 1, 1, 1, 1), z_0_given(z_t, t)
        return diffusion.target(z_0, t, (z_t - a.sqrt() * z_0) / (1 - a).sqrt())
    z_T = torch.randn(1, 1, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    a_1, a_T = diffusion.alpha_bar[1], diffusion.alpha_bar[-1]  # (z_t - alpha mean) / SD(z_t) stays
    z_1 = (z_T - a_T.sqrt() * mean) * (
        (a_1 * std**2 + 1 - a_1) / (a_T * std**2 + 1 - a_T)
    ).sqrt() + a_1.sqrt() * mean
    exact = z_0_given(z_1, torch.tensor([1]))
    error = (getattr(diffusion, sampler)(denoise, z_T, steps) - exact).pow(2).mean().sqrt().item()
    assert len(evaluations) == steps
    return error


def test_the_second_order_solver_needs_far_fewer_network_evaluations():
    assert gaussian_error("dpm", 10) < gaussian_error("ddim", 50) < gaussian_error("ddim", 10)
    assert gaussian_error("dpm", 20) < 0.6 * gaussian_error("dpm", 10) < 0.2 * gaussian_error("dpm", 5)
    # a single one: the same estimate
    assert gaussian_error("dpm", 1) == pytest.approx(gaussian_error("ddim", 1), rel=1e-4)


def times_of(sampler: str, steps: int, diffusion: Diffusion) -> list[int]:
    """The t of every network evaluation, of two latent samples at once."""
    seen = []

    def denoise(z_t, t):
        assert t.shape == (2,)
        seen.append(t.tolist())
        return 0.1 * z_t
    getattr(diffusion, sampler)(denoise, torch.randn(2, 1, 2, 2, 2), steps)
    assert all(first == second for first, second in seen)
    return [first for first, _ in seen]


@pytest.mark.parametrize("T", [20, 1000])
@pytest.mark.parametrize("steps", [2, 3, 7, 15])
def test_ddim_steps_are_even_in_t_and_those_of_dpm_in_lambda(T, steps):
    """Both begin at T - 1 and end at 1; nothing is evaluated at t = 0, as in the published sampler."""
    diffusion = Diffusion(T)
    gaps = -np.diff(times_of("ddim", steps, diffusion))
    assert (gaps.sum(), len(gaps), gaps.max() - gaps.min() <= 1) == (T - 2, steps - 1, True)

    alpha_bar = diffusion.alpha_bar.numpy().astype(np.float64)
    of_t = np.log(np.sqrt(alpha_bar) / np.sqrt(1 - alpha_bar))
    even = [of_t[T - 1] + (of_t[1] - of_t[T - 1]) * k / (steps - 1) for k in range(steps)]
    nearest = {min(range(1, T), key=lambda t: abs(of_t[t] - goal)) for goal in even}
    assert times_of("dpm", steps, diffusion) == sorted(nearest, reverse=True)
    assert {T - 1, 1} <= nearest


def test_the_first_step_of_the_second_order_solver_is_one_of_ddim():
    """Lu et al. 2022: without an earlier estimate DPM-Solver++ is DDIM, so that two evaluations, at T - 1 and
    at 1, give the same."""
    torch.manual_seed(0)
    diffusion, z_T = Diffusion(prediction="v"), torch.randn(2, 1, 3, 3, 3)

    def denoise(z_t, t):
        return torch.sin(3 * z_t) + (t / 1000).view(-1, 1, 1, 1, 1)

    torch.testing.assert_close(diffusion.dpm(denoise, z_T, 2), diffusion.ddim(denoise, z_T, 2), atol=1e-4,
                               rtol=1e-4)


@pytest.mark.parametrize(("T", "last"), [(1000, 0.02), (20, 0.5)])
def test_the_schedule_is_exact_in_float32_and_stands_in_no_checkpoint(T, last):
    diffusion = Diffusion(T, (1e-4, last))
    beta = 1e-4 + (last - 1e-4) * np.arange(T) / (T - 1)
    alpha_bar = np.array([np.prod(1 - beta[:t + 1]) for t in range(T)])
    np.testing.assert_allclose(diffusion.beta.numpy(), beta, rtol=7e-8)  # half a digit of float32
    np.testing.assert_allclose(diffusion.alpha_bar.numpy(), alpha_bar, rtol=7e-8)
    assert not diffusion.state_dict()                      # it follows from the settings


def test_samplers_stay_on_the_device_of_their_input():
    """The device meta, which computes nothing, stands in for a GPU."""
    def denoise(z_t, t):
        assert t.device == z_t.device
        return z_t
    diffusion, z_T = Diffusion(T=12), torch.randn(2, 1, 4, 4, 4)
    on_meta = Diffusion(T=12).to("meta")
    assert on_meta.ddpm(denoise, z_T.to("meta"), iter(torch.randn(10, 2, 1, 4, 4, 4, device="meta"))).is_meta
    assert on_meta.ddim(denoise, z_T.to("meta"), 4).is_meta
    with torch.device("meta"):  # dpm reads numbers from its buffers: here the default device is the other one
        assert diffusion.dpm(denoise, z_T, 4).device == z_T.device


# ---------------------------------------------------------------- latents, and the synthesis of a PET

class Enlarging(nn.Module):
    """Stands in for a decoder: doubles the grid."""

    def forward(self, z_0):
        return 0.5 + 0.1 * z_0.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)


def enlarging_space(mean: float = 0.0, std: float = 1.0) -> LatentSpace:
    """A latent space whose decoder doubles the grid."""
    return LatentSpace(SimpleNamespace(encoder=nn.Identity(), decoder=Enlarging()), mean, std)


def noise_stream(scan: int, sample: int) -> Iterator[torch.Tensor]:
    """Endless noise of one latent sample of one scan, from its start."""
    generator = torch.Generator().manual_seed(100 * scan + sample)
    while True:
        yield torch.randn(1, 4, 4, 4, generator=generator)


def noises(scans: int, samples: int) -> list[list[Iterator[torch.Tensor]]]:
    """Streams of noise of each scan and latent sample."""
    return [[noise_stream(scan, sample) for sample in range(samples)] for scan in range(scans)]


def test_scaled_and_decoded_by_an_identity_a_latent_is_what_it_was():
    space = LatentSpace(SimpleNamespace(encoder=nn.Identity(), decoder=nn.Identity()), -3.0, 0.25)
    latent = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(space.scale(latent), (latent + 3) / 0.25)
    torch.testing.assert_close(space.decode(space.scale(latent)), latent, atol=1e-6, rtol=1e-6)
    plain = LatentSpace(SimpleNamespace(encoder=nn.Identity(), decoder=nn.Identity()))
    assert torch.equal(plain.scale(latent), latent)        # as they come, as published
    assert torch.equal(plain.decode(latent), latent)


def test_gradients_pass_through_the_decoder_and_its_values_are_not_clamped():
    z_0 = (100 * torch.randn(1, 1, 2, 2, 2)).requires_grad_()
    x_hat = enlarging_space(0.5, 2.0).decode(z_0)
    assert x_hat.min() < 0 and x_hat.max() > 1 and x_hat.dtype == torch.float32
    x_hat.sum().backward()
    torch.testing.assert_close(z_0.grad, torch.full_like(z_0, 8 * 0.1 * 2.0))  # 8 voxels a latent one


def test_streams_of_noise_must_not_end_before_one_another(small_unet):
    """Otherwise the steps that come after would go on with less noise than there should be."""
    synthesizer, mri = Synthesizer(enlarging_space(), small_unet, Diffusion(T=4)), torch.rand(1, 1, 8, 8, 8)
    streams = [iter(torch.randn(3, 1, 4, 4, 4)), iter(torch.randn(2, 1, 4, 4, 4))]
    with pytest.raises(ValueError, match="shorter"):
        synthesizer.sample(mri, None, [streams], "ddpm", 3)


def test_a_synthesis_runs_on_the_device_of_its_mri():
    unet = tiny_unet().to("meta")
    synthesizer = Synthesizer(enlarging_space(), unet, Diffusion(T=12).to("meta"))
    mri, label = torch.rand(2, 1, 8, 8, 8, device="meta"), torch.rand(2, 2)
    for sampler in ("ddpm", "ddim"):
        z_0 = synthesizer.sample(mri, label, noises(2, 3), sampler, 4)
        assert (z_0.shape, z_0.is_meta) == ((2, 3, 1, 4, 4, 4), True)


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "ddpm"])
@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("with_label", [True, False])
def test_a_latent_does_not_depend_on_the_batch_that_it_was_sampled_in(small_unet, sampler, batch, with_label):
    """Two scans, three samples each, however they are batched, give what one at a time gives; the Extractor
    sees each MRI once."""
    diffusion, mri = Diffusion(T=12, prediction="v"), torch.rand(2, 1, 8, 8, 8)
    label = torch.tensor([[0.3, 0.7], [0.9, 0.1]]) if with_label else None
    extracted = []
    hook = small_unet.extractor.register_forward_hook(lambda module, args, out: extracted.extend(args[0]))
    synthesizer = Synthesizer(enlarging_space(0.5, 2.0), small_unet, diffusion, batch)
    z_0 = synthesizer.sample(mri, label, noises(2, 3), sampler, 4)
    hook.remove()
    assert z_0.shape == (2, 3, 1, 4, 4, 4)
    assert len(extracted) == 2

    def alone(scan: int, sample: int) -> torch.Tensor:
        def denoise(z_t, t):
            return small_unet(z_t, mri[[scan]], t, label[[scan]] if with_label else None)
        stream = (eps[None] for eps in noise_stream(scan, sample))
        with torch.no_grad():
            z_T = next(stream)
            return (
                diffusion.ddpm(denoise, z_T, stream)
                if sampler == "ddpm"
                else getattr(diffusion, sampler)(denoise, z_T, 4)
            )
    expected = torch.stack([torch.cat([alone(scan, sample) for sample in range(3)]) for scan in range(2)])
    torch.testing.assert_close(z_0, expected, atol=1e-5, rtol=1e-5)
    decoded = Enlarging()(2.0 * expected.mean(dim=1) + 0.5).clamp(0, 1)  # scaled back, and then decoded
    torch.testing.assert_close(synthesizer.decode(z_0.mean(dim=1)), decoded, atol=1e-5, rtol=1e-5)


def test_decoded_samples_have_their_standard_deviation_in_every_voxel(small_unet):
    decoder, z_0 = Enlarging(), torch.randn(2, 5, 1, 4, 4, 4)
    synthesizer = Synthesizer(enlarging_space(), small_unet, Diffusion(T=12))
    assert set(synthesizer.decode(1e4 * z_0[:, 0]).unique().tolist()) == {0.0, 1.0}         # clamped
    decoded = synthesizer.decode_samples(z_0)
    expected = torch.stack([decoder(z_0[:, k]).clamp(0, 1) for k in range(5)])
    torch.testing.assert_close(decoded, expected.transpose(0, 1))
    std = std_over_samples(decoded)
    assert std.shape == (2, 1, 8, 8, 8)
    np.testing.assert_allclose(std, expected.numpy().std(axis=0, ddof=1), atol=1e-6)
    assert (std_over_samples(decoded[:, :1]) == 0).all()   # of a single sample


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "ddpm"])
@pytest.mark.parametrize("steps", [1, 5, 400, 999])
def test_the_number_of_network_evaluations_is_known_beforehand(sampler, steps):
    diffusion, seen = Diffusion(prediction="v"), []

    def denoise(z_t, t):
        seen.append(t)
        return torch.zeros_like(z_t)
    z_T = torch.randn(1, 1, 1, 1, 1)
    if sampler == "ddpm":
        diffusion.ddpm(denoise, z_T, iter(torch.randn(998, 1, 1, 1, 1, 1)))
    else:
        getattr(diffusion, sampler)(denoise, z_T, steps)
    assert len(seen) == diffusion.evaluations(sampler, steps)


# ---------------------------------------------------------------- numbers and memory

@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_statistics_of_a_large_volume_are_exact_in_every_memory_layout(layout):
    """As in a PET: most voxels alike, on a grid on which sums in plain float32 lose their last digits."""
    h = torch.full((1, 2, 96, 96, 96), 1.0)
    h[:, :, 30:60, 30:60, 30:60] += torch.rand(30, 30, 30)
    found = GroupNorm(2, 2)(h.to(memory_format=layout))
    expected = F.group_norm(h.double(), 2)
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("network", ["aae", "unet"])
def test_recomputed_activations_change_neither_output_nor_gradients_and_take_less_memory(network):
    def run(recompute):
        torch.manual_seed(0)
        if network == "aae":
            module, inputs = AAE((8, 16), norm_groups=8), (torch.rand(1, 1, 16, 16, 16),)
        else:
            module = tiny_unet()
            inputs = (torch.randn(1, 1, 8, 8, 8), torch.rand(1, 1, 16, 16, 16), torch.tensor([5]),
                      torch.tensor([1]))
        if recompute:
            recompute_activations(module)
        kept = {}                                          # storage -> bytes of what the backward pass needs

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = module(*inputs)
        size = sum(kept.values())
        out.square().mean().backward()
        return out, [p.grad for p in module.parameters()], size
    (out, gradients, size), (out_again, gradients_again, less) = run(False), run(True)
    torch.testing.assert_close(out_again, out, rtol=0, atol=0)
    torch.testing.assert_close(gradients_again, gradients, rtol=0, atol=0)
    assert less < 0.7 * size
