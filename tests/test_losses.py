"""The losses and updates of both stages, and the latents, labels and PETs that the denoiser is trained on."""
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import Tensor, nn
from torch.testing import assert_close

from config import Config
from experiment.networks import latent_scale
from experiment.stage_2 import LatentBatch, LatentBatches
from main import Stage2, aae_step, ldm_loss, ldm_step, validation_loss
from model import AAE, Diffusion, Discriminator, LatentSpace, UNet
from runtime import fit as fit_module
from utils import NotFiniteError, autocast

# ---------------------------------------------------------------- stage 1


def networks():
    """A tiny autoencoder and discriminator, always with the same weights, and their optimizers."""
    torch.manual_seed(0)
    aae, disc = AAE((8, 16), norm_groups=8), Discriminator((8, 8))
    opt_g, opt_d = torch.optim.Adam(aae.parameters(), 1e-3), torch.optim.Adam(disc.parameters(), 1e-3)
    return aae, disc, opt_g, opt_d


def plain_descent(aae: AAE, disc: Discriminator, rate: float) -> tuple[torch.optim.SGD, torch.optim.SGD]:
    """Optimizers whose step is the gradient times the rate."""
    return torch.optim.SGD(aae.parameters(), rate), torch.optim.SGD(disc.parameters(), rate)


def weights_of(network: nn.Module) -> Tensor:
    """All weights of a network in one row."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_one_batch_of_volumes_overfits():
    aae, disc, opt_g, opt_d = networks()
    x = F.interpolate(torch.rand(2, 1, 4, 4, 4), scale_factor=4, mode="trilinear")
    losses = [aae_step(aae, disc, opt_g, opt_d, x, 100.0)["rec"] for _ in range(80)]
    assert losses[-1] < 0.2 * losses[0]


def test_discriminator_learns_to_tell_real_from_reconstructed():
    aae, disc, _, opt_d = networks()
    still = torch.optim.SGD(aae.parameters(), 0.0)  # an autoencoder that stands still leaves the same task
    x = torch.rand(2, 1, 16, 16, 16)
    losses = [aae_step(aae, disc, still, opt_d, x, 100.0)["disc"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_step_equals_plain_gradients_of_the_two_losses():
    """With plain gradient descent one step moves each network along its own loss, the other's left out."""
    aae, disc, *_ = networks()
    x, rate = torch.rand(2, 1, 16, 16, 16), 0.1
    opt_g, opt_d = plain_descent(aae, disc, rate)
    x_hat = aae(x)
    rec, adv = F.l1_loss(x_hat, x), -disc(x_hat).mean()
    gradients = torch.autograd.grad(100 * rec + adv, list(aae.parameters()))
    hinge = (F.relu(1 - disc(x)).mean() + F.relu(1 + disc(x_hat.detach())).mean()) / 2
    gradients_disc = torch.autograd.grad(hinge, list(disc.parameters()))
    weights, expected = [*aae.parameters(), *disc.parameters()], []
    for weight, gradient in zip(weights, [*gradients, *gradients_disc], strict=True):
        expected.append(weight.detach() - rate * gradient)
    losses = aae_step(aae, disc, opt_g, opt_d, x, 100.0)
    for weight, wanted in zip(weights, expected, strict=True):
        assert_close(weight.data, wanted, atol=1e-5, rtol=1e-4)
    assert losses == pytest.approx({"rec": rec.item(), "adv": adv.item(), "disc": hinge.item()}, rel=1e-5)


def test_the_adversarial_loss_never_reaches_the_discriminator_nor_the_hinge_loss_the_autoencoder():
    """In a step every weight gets a gradient once, from its own loss, and what it then holds is that
    gradient."""
    aae, disc, *_ = networks()
    opt_g, opt_d = plain_descent(aae, disc, 0.0)
    reached = dict.fromkeys([*aae.parameters(), *disc.parameters()], 0)

    def count(weight: Tensor) -> None:
        reached[weight] += 1
    for weight in reached:
        weight.register_post_accumulate_grad_hook(count)
    x = torch.rand(2, 1, 16, 16, 16)
    aae_step(aae, disc, opt_g, opt_d, x, 100.0)
    assert set(reached.values()) == {1}
    hinge = (F.relu(1 - disc(x)).mean() + F.relu(1 + disc(aae(x).detach())).mean()) / 2
    expected = torch.autograd.grad(hinge, list(disc.parameters()))
    assert_close([weight.grad for weight in disc.parameters()], list(expected), atol=1e-6, rtol=1e-4)


def test_lambda_rec_scales_the_reconstruction_term_and_nothing_else():
    """The step of the autoencoder is linear in it, and at 0 it goes up the discriminator's logits alone."""
    x, moved, losses, discriminators = torch.rand(2, 1, 16, 16, 16), {}, {}, {}
    for lambda_rec in (0.0, 1.0, 3.0):
        aae, disc, *_ = networks()
        before, opt_g, opt_d = weights_of(aae), *plain_descent(aae, disc, 1.0)
        losses[lambda_rec] = aae_step(aae, disc, opt_g, opt_d, x, lambda_rec)
        moved[lambda_rec], discriminators[lambda_rec] = weights_of(aae) - before, weights_of(disc)
    along_rec = moved[1.0] - moved[0.0]
    assert along_rec.abs().max() > 1e-3 and moved[0.0].abs().max() > 1e-5
    assert_close(moved[3.0], moved[0.0] + 3 * along_rec, atol=1e-5, rtol=1e-4)
    assert losses[0.0] == losses[1.0] == losses[3.0]  # which are those before the step, without their weight
    assert torch.equal(discriminators[0.0], discriminators[3.0])
    aae, disc, *_ = networks()
    adversarial = torch.autograd.grad(-disc(aae(x)).mean(), list(aae.parameters()))
    uphill = -torch.cat([gradient.flatten() for gradient in adversarial])
    assert_close(moved[0.0], uphill, atol=1e-6, rtol=1e-4)


def test_volumes_that_are_not_finite_stop_stage_1_with_its_weights_as_they_were():
    aae, disc, opt_g, opt_d = networks()
    before = weights_of(aae), weights_of(disc)
    x = torch.rand(2, 1, 16, 16, 16)
    x[1, 0, 3, 3, 3] = float("nan")
    with pytest.raises(NotFiniteError, match="loss {'rec': nan"):
        aae_step(aae, disc, opt_g, opt_d, x, 100.0)
    assert torch.equal(weights_of(aae), before[0]) and torch.equal(weights_of(disc), before[1])


def test_steps_in_bfloat16_learn_as_those_in_float32():
    """Losses that fall alike, on weights that stay in float32."""
    generator, last = torch.Generator().manual_seed(0), {}
    x = F.interpolate(torch.rand(2, 1, 4, 4, 4, generator=generator), scale_factor=4, mode="trilinear")
    for dtype in (torch.float32, torch.bfloat16):
        def cast(dtype: torch.dtype = dtype) -> torch.autocast:
            return autocast(x.device, dtype)
        aae, disc, opt_g, opt_d = networks()
        losses = [aae_step(aae, disc, opt_g, opt_d, x, 100.0, cast) for _ in range(12)]
        assert all(weight.dtype == torch.float32 for weight in aae.parameters())
        assert losses[-1]["rec"] < 0.9 * losses[0]["rec"]
        last[dtype] = losses[-1]["rec"]
    assert last[torch.bfloat16] == pytest.approx(last[torch.float32], rel=0.05)


# ---------------------------------------------------------------- the loss of stage 2

class Enlarging(nn.Module):
    """Stands in for a decoder with a weight: doubles the grid."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, z_0):
        return 0.5 + self.gain * z_0.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)


def stage_2(prediction: str = "v", **settings) -> Stage2:
    """Stage 2 with a decoder that doubles the grid, and latents of mean 0.3 and standard deviation 2."""
    space = LatentSpace(SimpleNamespace(encoder=nn.Identity(), decoder=Enlarging()), 0.3, 2.0)
    usual = {"diffusion": Diffusion(prediction=prediction), "space": space, "pet_std": 0.25}
    return Stage2(**usual | settings)


def test_the_defaults_that_main_shows_are_those_of_the_settings():
    cfg = Config()
    assert (stage_2().image_loss, stage_2().time_shift) == (cfg.image_loss, cfg.time_shift)


def small_unet() -> UNet:
    """A tiny denoiser, always with the same weights."""
    torch.manual_seed(0)
    return UNet(base_channels=8, channel_mults=(1, 2), norm_groups=4, downscale=2)


def random_batch(n: int = 4) -> LatentBatch:
    """Latents, MRIs, labels by turns and PETs of n subjects, always the same."""
    generator = torch.Generator().manual_seed(5)
    z_0 = torch.randn(n, 1, 4, 4, 4, generator=generator)
    mri = torch.rand(n, 1, 8, 8, 8, generator=generator)
    pet = torch.rand(n, 1, 8, 8, 8, generator=generator)
    return LatentBatch(z_0, mri, torch.eye(2)[torch.arange(n) % 2], pet)


class Knowing(nn.Module):
    """A denoiser that knows z_0, and says so as the process wants it; notes what it was given."""

    def __init__(self, diffusion: Diffusion, z_0: Tensor):
        super().__init__()
        self.diffusion, self.z_0, self.given = diffusion, z_0, []

    def forward(self, z_t, mri, t, label):
        self.given.append((z_t, mri, t, label))
        alpha_bar_t = self.diffusion.alpha_bar[t].view(-1, 1, 1, 1, 1)
        eps = (z_t - alpha_bar_t.sqrt() * self.z_0) / (1 - alpha_bar_t).sqrt()
        return self.diffusion.target(self.z_0, t, eps)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_denoiser_that_knows_z_0_has_no_loss(prediction):
    stage, batch = stage_2(prediction), random_batch()
    batch = batch._replace(pet=stage.space.decode(batch.z_0).detach())
    t, eps = torch.tensor([1, 300, 700, 999]), torch.randn(4, 1, 4, 4, 4)
    unet = Knowing(stage.diffusion, batch.z_0)
    losses = ldm_loss(unet, stage, batch, t, eps)
    assert losses.keys() == {"loss", "mse", "image"}
    assert losses["mse"].item() == pytest.approx(0, abs=1e-7)
    assert losses["image"].item() == pytest.approx(0, abs=3e-4)
    [(z_t, mri, times, label)] = unet.given
    assert_close(z_t, stage.diffusion.q_sample(batch.z_0, t, eps))
    assert mri is batch.mri and times is t and label is batch.label


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_terms_are_the_error_of_v_and_the_l1_of_the_decoded_estimate_in_units_of_pet_std(weight):
    """Both computed by numpy, from the network's output alone."""
    stage, batch, unet = stage_2(image_loss=weight), random_batch(), small_unet()
    t, eps = torch.tensor([1, 300, 700, 999]), torch.randn(4, 1, 4, 4, 4)
    losses = ldm_loss(unet, stage, batch, t, eps)

    beta = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    alpha_bar = np.cumprod(1 - beta)[t.numpy()].reshape(4, 1, 1, 1, 1)
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    z_0, pet, eps = batch.z_0.numpy(), batch.pet.numpy(), eps.numpy()
    z_t = signal * z_0 + noise * eps
    with torch.no_grad():
        output = unet(torch.from_numpy(z_t).float(), batch.mri, t, batch.label).numpy()
    v = signal * eps - noise * z_0
    assert losses["mse"].item() == pytest.approx(np.mean((output - v) ** 2), rel=1e-4)
    z_0_hat = signal * z_t - noise * output
    decoded = (0.5 + 0.3 * (2.0 * z_0_hat + 0.3)).repeat(2, axis=2).repeat(2, axis=3).repeat(2, axis=4)
    assert losses["image"].item() == pytest.approx(weight * np.abs(decoded - pet).mean() / 0.25, rel=1e-4)
    assert_close(losses["loss"], losses["mse"] + losses["image"])


def test_the_image_term_is_the_error_in_units_of_the_standard_deviation():
    """A PET that is 0.1 off everywhere, with a standard deviation of 0.25, costs 0.4."""
    stage, batch = stage_2(), random_batch()
    batch = batch._replace(pet=stage.space.decode(batch.z_0).detach() + 0.1)
    t, eps = torch.tensor([1, 300, 700, 900]), torch.randn(4, 1, 4, 4, 4)
    losses = ldm_loss(Knowing(stage.diffusion, batch.z_0), stage, batch, t, eps)
    assert losses["image"].item() == pytest.approx(0.4, rel=1e-3)


def test_without_an_image_loss_nothing_is_decoded_and_with_it_its_gradient_reaches_the_denoiser():
    unet, batch = small_unet(), random_batch()
    t, eps = torch.tensor([1, 300, 700, 999]), torch.randn(4, 1, 4, 4, 4)
    undecodable = LatentSpace(SimpleNamespace(encoder=None, decoder=None))
    plain = ldm_loss(unet, stage_2(image_loss=0.0, space=undecodable), batch._replace(pet=None), t, eps)
    with_image = ldm_loss(unet, stage_2(), batch, t, eps)
    assert plain.keys() == {"loss", "mse"} and plain["loss"] == plain["mse"] == with_image["mse"]
    gradient = torch.autograd.grad(with_image["image"], unet.out[-1].weight)[0]
    assert gradient.abs().max() > 0


# ---------------------------------------------------------------- the update of stage 2

def test_one_batch_of_latents_overfits():
    unet, batch = small_unet(), random_batch()._replace(pet=None)
    opt, stage = torch.optim.AdamW(unet.parameters(), 3e-3), stage_2(image_loss=0.0, time_shift=1.0)
    losses = [ldm_step(unet, opt, stage, batch)["mse"] for _ in range(150)]
    assert np.mean(losses[-30:]) < 0.4 * np.mean(losses[:10])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_stage_2_lower_both_terms_and_leave_the_autoencoder_as_it_is(dtype):
    """Gradients go through its decoder, but none stays in its weights, even where nobody has frozen them."""
    def cast() -> torch.autocast:
        return autocast(torch.device("cpu"), dtype)
    unet, stage, batch = small_unet(), stage_2(), random_batch()
    batch = batch._replace(pet=stage.space.decode(batch.z_0).detach())
    before = {name: weight.clone() for name, weight in stage.space.decoder.state_dict().items()}
    opt, losses = torch.optim.AdamW(unet.parameters(), 3e-3), []
    for _ in range(40):
        losses.append(ldm_step(unet, opt, stage, batch, cast))
    for name in ("mse", "image"):
        first, last = (np.mean([row[name] for row in rows]) for rows in (losses[:10], losses[-10:]))
        assert last < 0.4 * first, name
    assert losses[0].keys() == {"mse", "image"}            # numbers, without their sum
    assert all(weight.dtype == torch.float32 for weight in unet.parameters())
    for name, weight in stage.space.decoder.named_parameters():
        assert weight.requires_grad and weight.grad is None
        assert torch.equal(weight, before[name])


class Spy(nn.Module):
    """A denoiser of one weight that notes what it was given."""

    def __init__(self):
        super().__init__()
        self.weight, self.given = nn.Parameter(torch.zeros(1)), []

    def forward(self, z_t, mri, t, label):
        self.given.append((z_t, mri, t, label))
        return self.weight * z_t


def given_in_a_step(batch: LatentBatch, stage: Stage2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z_t, MRI, times and label that the denoiser sees in a step."""
    spy = Spy()
    ldm_step(spy, torch.optim.SGD(spy.parameters(), 0.1), stage, batch)
    [given] = spy.given
    return given


@pytest.mark.parametrize(("shift", "above_half"), [(1.0, 0.5), (10.0, 10 / 11)])
def test_times_are_drawn_as_the_settings_say_and_every_subject_keeps_its_label(shift, above_half):
    torch.manual_seed(0)
    nothing, label = torch.zeros(4000, 1, 1, 1, 1), torch.eye(2)[torch.tensor([0, 1]).repeat(2000)]
    stage = stage_2(image_loss=0.0, time_shift=shift)
    z_t, _, t, seen = given_in_a_step(LatentBatch(nothing, nothing, label), stage)
    assert torch.equal(seen, label)
    assert 1 <= t.min() <= 6 and 994 <= t.max() <= 999
    assert (t > 500).float().mean().item() == pytest.approx(above_half, abs=0.03)
    eps = z_t.flatten() / (1 - stage.diffusion.alpha_bar[t]).sqrt()                          # z_0 is 0
    assert eps.mean().item() == pytest.approx(0, abs=0.06) and eps.std().item() == pytest.approx(1, abs=0.04)


def test_every_step_has_times_and_noise_of_its_own():
    batch, stage = random_batch(), stage_2()
    first, second = given_in_a_step(batch, stage), given_in_a_step(batch, stage)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[2], second[2])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_see_together_what_one_rank_with_all_subjects_sees(monkeypatch, ranks):
    batch, stage, size = random_batch(), stage_2(image_loss=0.0), 4 // ranks
    torch.manual_seed(0)
    alone, found = given_in_a_step(batch, stage), []
    for rank in range(ranks):
        monkeypatch.setattr(fit_module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(fit_module, "world_size", lambda: ranks)
        # there is no other process
        monkeypatch.setattr(fit_module, "all_reduce_mean", lambda gradients: None)
        torch.manual_seed(0)
        own = LatentBatch(*(part[rank * size:(rank + 1) * size] for part in batch))
        found.append(given_in_a_step(own, stage))
    for name, parts, whole in zip(("z_t", "mri", "t", "label"), zip(*found, strict=True), alone, strict=True):
        assert torch.equal(torch.cat(parts), whole), name


class Loader:
    """Batches of the validation list."""

    def __init__(self, *batches: list[str]):
        self.batches, self.dataset = batches, sum(batches, [])

    def __iter__(self):
        return iter([{"id": names} for names in self.batches])


def test_the_validation_loss_is_a_mean_over_scans_that_does_not_depend_on_what_was_drawn_before():
    """Of steps and noise that follow from seed and IDs; each batch counts by its scans."""
    stage, batch, unet = stage_2(), random_batch(), small_unet()
    exp = SimpleNamespace(cfg=SimpleNamespace(seed=0), cast=nullcontext)
    names = ["a", "b", "c", "d"]

    def rows_of(given: dict) -> LatentBatch:
        rows = [names.index(name) for name in given["id"]]
        return LatentBatch(*(part[rows] for part in batch))

    def loss_of(*batches: list[str], seed: int = 0) -> float:
        torch.seed()                                       # anything may have been drawn before
        exp.cfg.seed = seed
        return validation_loss(exp, unet, stage, SimpleNamespace(from_volumes=rows_of), Loader(*batches))
    whole = loss_of(["a", "b", "c"], ["d"])
    assert whole == loss_of(["a", "b", "c"], ["d"])
    assert whole == pytest.approx((3 * loss_of(["a", "b", "c"]) + loss_of(["d"])) / 4)
    assert whole != loss_of(["a", "b", "c"], ["d"], seed=1)


# ---------------------------------------------------------------- what the denoiser is trained on

IDENTITY = SimpleNamespace(encoder=nn.Identity(), decoder=nn.Identity())


def test_scaled_latents_have_mean_0_and_standard_deviation_1_over_the_training_list():
    torch.manual_seed(0)
    common, latents = 5 * torch.randn(2, 3, 3, 3), {}
    for name in "abcdef":
        latents[name] = common + 0.1 * torch.randn(2, 3, 3, 3)
    mean, std = latent_scale(Config(**TINY), latents, None)
    space = LatentSpace(IDENTITY, mean, std)
    scaled = torch.stack([space.scale(latent) for latent in latents.values()])
    assert scaled.mean().item() == pytest.approx(0, abs=1e-4)
    assert scaled.std(correction=0).item() == pytest.approx(1, rel=1e-4)
    assert scaled.mean(dim=0).abs().max() > 1              # what all subjects share is left in them
    assert_close(space.decode(scaled[0]), latents["a"])
    assert latent_scale(Config(**TINY | {"latent_scaling": False}), latents, None) == (0, 1)
    saved = {"latent_mean": 5.0, "latent_std": 7.0}
    assert latent_scale(Config(**TINY), None, saved) == (5, 7)  # as the networks were trained


@pytest.mark.parametrize("image_loss", [0.0, 1.0])
def test_the_denoiser_is_trained_on_scaled_latents_and_on_the_labels_of_its_own_subjects(image_loss):
    torch.manual_seed(0)
    scans = [SimpleNamespace(id=str(i)) for i in range(4)]
    exp = SimpleNamespace(cfg=Config(**TINY | {"image_loss": image_loss}), device="cpu",
                          cohort=SimpleNamespace(train=scans[:3], validation=scans[3:]))
    latents = {scan.id: torch.randn(1, 2, 2, 2) for scan in scans}
    soft_labels = torch.arange(8.0).view(4, 2)
    batch = {"id": ["3", "1"], "mri": torch.rand(2, 1, 4, 4, 4), "pet": torch.rand(2, 1, 4, 4, 4)}
    found = LatentBatches(exp, LatentSpace(IDENTITY, 0.3, 2.0), latents, soft_labels).from_volumes(batch)
    assert_close(found.z_0, torch.stack([(latents[name] - 0.3) / 2 for name in ("3", "1")]))
    assert_close(found.label, soft_labels[[3, 1]])
    assert_close(found.mri, batch["mri"])
    assert found.pet is (batch["pet"] if image_loss else None)
