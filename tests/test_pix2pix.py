"""Pix2Pix on tiny volumes: its networks, its losses, what its updates reach, and what it predicts."""
import copy
import dataclasses
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from baselines import pix2pix as module
from baselines.patchgan import PatchGAN, norm_of, start_normal
from baselines.pix2pix import Generator, Pix2Pix, adversarial_loss, discriminator_loss, drop
from config import DEMO, Pix2PixSettings
from runtime.fit import linear_decay
from utils import InputError, NotFiniteError, autocast

CPU, META = torch.device("cpu"), torch.device("meta")
FULL_SIZE, SMALL_SIZE, TINY_SIZE = (160, 192, 160), (40, 48, 40), (16, 24, 16)
SMALL = dataclasses.asdict(DEMO["pix2pix"])


def number_of_weights(network: nn.Module) -> int:
    """All that is trained in a network."""
    return sum(weight.numel() for weight in network.parameters())


def tiny(**changed) -> Pix2Pix:
    """The method on tiny volumes, always with the same start."""
    torch.manual_seed(0)
    return Pix2Pix(Pix2PixSettings(**SMALL | {"width": 4, "disc_width": 4} | changed), TINY_SIZE, CPU)


def smooth(seed: int = 0) -> dict:
    """A batch of two scans with smooth volumes in [0, 1], the PETs a function of the MRIs."""
    generator = torch.Generator().manual_seed(seed)
    mri = F.interpolate(torch.rand(2, 1, 4, 6, 4, generator=generator), scale_factor=4, mode="trilinear")
    pet = 0.2 + 0.6 * (1 - mri) ** 2
    return {"id": ["a", "b"], "label": torch.tensor([0, 1]), "mri": mri, "pet": pet}


def weights_of(network: nn.Module) -> Tensor:
    """All weights of a network in one row."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


# ---------------------------------------------------------------- the networks

@pytest.mark.parametrize("size, downs, width, expected", [
    (FULL_SIZE, 5, 32, 16_654_145), (FULL_SIZE, 5, 64, 66_600_577), (SMALL_SIZE, 3, 32, 1_448_257),
    (SMALL_SIZE, 3, 64, 5_780_097)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_generators_have_the_known_numbers_of_parameters(size, downs, width, expected, norm):
    with META:
        assert number_of_weights(Generator(size, downs, width, norm=norm)) == expected


@pytest.mark.parametrize("width, expected", [(16, 698_833), (32, 2_773_921), (64, 11_052_865)])
def test_discriminators_have_the_known_numbers_of_parameters(width, expected):
    with META:
        assert number_of_weights(PatchGAN(FULL_SIZE, width=width)) == expected


def test_the_defaults_with_flat_kernels_have_the_published_numbers_of_parameters():
    """A 4x4x4 kernel has four times the weights of a 4x4 one; all else is one number a channel."""
    with META:
        networks = Generator((256, 256, 256)), PatchGAN((256, 256, 256))
    flat = []
    for network in networks:
        kernels = sum(weight.numel() for weight in network.parameters() if weight.dim() == 5)
        flat.append(number_of_weights(network) - kernels + kernels // 4)
    assert flat == [54_407_809, 2_764_609]


def test_the_method_has_the_networks_of_both_sizes():
    settings = Pix2PixSettings()
    assert (settings.downs, settings.width, settings.disc_width, settings.disc_layers) == (5, 32, 32, 3)
    method = Pix2Pix(Pix2PixSettings(**SMALL), SMALL_SIZE, CPU)
    assert number_of_weights(method.generator) == 1_448_257
    assert method.disc.receptive_field == 16
    assert set(method.parts) == {"generator", "disc", "opt_g", "opt_d"}
    assert method.name == "pix2pix"


@pytest.mark.parametrize("size, settings, patches", [
    (FULL_SIZE, Pix2PixSettings(), (18, 22, 18)), (SMALL_SIZE, Pix2PixSettings(**SMALL), (18, 22, 18)),
    (SMALL_SIZE, Pix2PixSettings(**SMALL | {"disc_layers": 2}), (8, 10, 8)),
    (SMALL_SIZE, Pix2PixSettings(**SMALL | {"disc_layers": 3}), (3, 4, 3))])
def test_shapes(size, settings, patches):
    bottlenecks = []
    with META:
        generator = Generator(size, settings.downs, settings.width, norm=settings.norm)
        disc = PatchGAN(size, 2, settings.disc_width, settings.disc_layers, settings.norm)
        generator.down[-1].register_forward_hook(lambda *call: bottlenecks.append(call[2].shape[2:]))
        mri = torch.zeros(2, 1, *size)
        assert generator(mri, noise=True).shape == mri.shape
        assert disc(torch.cat([mri, mri], dim=1)).shape == (2, 1, *patches)
    assert bottlenecks == [(5, 6, 5)]


@pytest.mark.parametrize("n_layers, field", [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_cube_of_the_receptive_field(n_layers, field):
    torch.manual_seed(0)
    disc = PatchGAN((24, 112, 24), 1, 2, n_layers).eval()  # a batch norm in prediction mixes no voxels
    x = torch.zeros(1, 1, 24, 112, 24, requires_grad=True)
    logits = disc(x)
    logits[0, 0, 0, logits.shape[3] // 2, 0].backward()
    seen = x.grad[0, 0].abs().sum(dim=(0, 2)).nonzero()
    assert seen.max() - seen.min() + 1 == field == disc.receptive_field


@pytest.mark.parametrize("build, message", [
    (lambda: Generator((40, 48, 44), 3, 4), "multiples of 8; found 40x48x44.*fewer downs"),
    (lambda: Generator(SMALL_SIZE, 5, 4), "multiples of 32; found 40x48x40"),
    (lambda: PatchGAN((40, 42, 40), 2, 4, 2), "multiples of 4 and at least 12; found 40x42x40.*fewer layers"),
    (lambda: PatchGAN((16, 24, 16), 2, 4, 3), "multiples of 8 and at least 24; found 16x24x16"),
    (lambda: Pix2Pix(Pix2PixSettings(width=4, disc_width=4), SMALL_SIZE, CPU), "found 40x48x40"),
    (lambda: norm_of("layer", 4), "no norm 'layer': take 'batch'")])
def test_what_does_not_fit_is_refused_in_a_sentence(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_the_start_is_normal_with_the_published_spread():
    torch.manual_seed(0)
    generator = Generator(SMALL_SIZE, 3, 16, norm="instance")
    start_normal(generator)
    kernels = torch.cat([weight.flatten() for weight in generator.parameters() if weight.dim() == 5])
    scales = [block[2].weight for block in generator.up]
    assert kernels.mean().item() == pytest.approx(0, abs=5e-4)
    assert kernels.std().item() == pytest.approx(0.02, rel=0.01)
    assert torch.cat(scales).mean().item() == pytest.approx(1, abs=0.02)
    assert generator.last[1].bias.item() == 0 and not any(block[2].bias.any() for block in generator.up)
    method = tiny(init_std=0.05)
    for network in (method.generator, method.disc):
        kernels = torch.cat([weight.flatten() for weight in network.parameters() if weight.dim() == 5])
        assert kernels.std().item() == pytest.approx(0.05, rel=0.05)


def test_the_level_of_the_mri_reaches_the_output():
    """There is no norm in the first level nor before the output."""
    torch.manual_seed(0)
    generator, mri = Generator(TINY_SIZE, 3, 4, norm="instance"), smooth()["mri"]
    with torch.no_grad():
        generator.last[1].weight[4:] = 0                   # what is left is the skip of the first level
        generator.last[1].bias.zero_()
        once, brighter = generator(mri).atanh(), generator(3 * mri).atanh()
    assert once.abs().max() > 1e-3
    assert_close(brighter, 3 * once, atol=1e-5, rtol=1e-3)


def normalised(h: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """h with mean 0 and variance 1 of every channel and scan, then the learned scale and offset."""
    mean, variance = h.mean((2, 3, 4), keepdim=True), h.var((2, 3, 4), keepdim=True, correction=0)
    scale, offset = (weights[f"{name}.{kind}"].view(1, -1, 1, 1, 1) for kind in ("weight", "bias"))
    return (h - mean) / (variance + 1e-5).sqrt() * scale + offset


def test_the_networks_compute_the_published_layers():
    """Both written out, with one norm on the way down, as three levels have."""
    method, mri = tiny(), smooth()["mri"]
    w = method.generator.state_dict()
    e_1 = F.conv3d(mri, w["down.0.weight"], None, 2, 1)
    e_2 = normalised(F.conv3d(F.leaky_relu(e_1, 0.2), w["down.1.1.weight"], None, 2, 1), w, "down.1.2")
    e_3 = F.conv3d(F.leaky_relu(e_2, 0.2), w["down.2.1.weight"], None, 2, 1)
    d_2 = normalised(F.conv_transpose3d(e_3.relu(), w["up.0.1.weight"], None, 2, 1), w, "up.0.2")
    h = torch.cat([e_2, d_2], 1).relu()
    d_1 = normalised(F.conv_transpose3d(h, w["up.1.1.weight"], None, 2, 1), w, "up.1.2")
    h = torch.cat([e_1, d_1], 1).relu()
    pet_hat = F.conv_transpose3d(h, w["last.1.weight"], w["last.1.bias"], 2, 1).tanh()
    assert_close(method.generator(mri), pet_hat, atol=1e-5, rtol=1e-3)

    w, pair = method.disc.state_dict(), torch.cat([mri, pet_hat], 1)
    h = F.leaky_relu(F.conv3d(pair, w["layers.0.weight"], w["layers.0.bias"], 2, 1), 0.2)
    h = normalised(F.conv3d(h, w["layers.2.weight"], None, 1, 1), w, "layers.3")
    logits = F.conv3d(F.leaky_relu(h, 0.2), w["layers.5.weight"], w["layers.5.bias"], 1, 1)
    assert_close(method.disc(pair), logits, atol=1e-5, rtol=1e-3)


def test_dropout_acts_in_the_inner_blocks_alone(monkeypatch):
    shapes = []

    def note(h: Tensor, share: float) -> Tensor:
        shapes.append((tuple(h.shape[1:]), share))
        return h
    monkeypatch.setattr(module, "drop", note)
    with META:
        Generator(FULL_SIZE, 5, 32, 2)(torch.zeros(1, 1, *FULL_SIZE), noise=True)
        Generator(SMALL_SIZE, 3, 32, 1)(torch.zeros(1, 1, *SMALL_SIZE), noise=True)
        Generator((256,) * 3, dropout=0.3)(torch.zeros(1, 1, 256, 256, 256), noise=True)
        Generator(SMALL_SIZE, 3, 32, 1)(torch.zeros(1, 1, *SMALL_SIZE))
    assert shapes == [((128, 20, 24, 20), 0.5), ((64, 40, 48, 40), 0.5), ((32, 20, 24, 20), 0.5),
                      ((512, 4, 4, 4), 0.3), ((512, 8, 8, 8), 0.3), ((512, 16, 16, 16), 0.3)]


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = drop(torch.full((2, 8, 16, 16, 16), 3.0), 0.25)
    assert dropped.unique().tolist() == [0, 4]
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(dropped[0], dropped[1])


def test_dropout_does_not_depend_on_the_number_of_ranks(monkeypatch):
    h = torch.ones(2, 4, 4, 4, 4)
    torch.manual_seed(0)
    alone, rows = drop(h, 0.5), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        torch.manual_seed(0)
        rows.append(drop(h[:1], 0.5))
    assert torch.equal(torch.cat(rows), alone)


# ---------------------------------------------------------------- losses and learning rate

def softplus(x: float) -> float:
    """log(1 + exp(x)): the cross-entropy of a logit -x to 1, and of a logit x to 0."""
    return math.log1p(math.exp(x))


def test_the_discriminators_loss_by_hand():
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    expected = 0.5 * ((softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(3)) / 2)
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)
    zeros = torch.zeros(1, 2)
    assert discriminator_loss(zeros, zeros).item() == pytest.approx(math.log(2))


def test_the_adversarial_loss_by_hand():
    fake = torch.tensor([[0.5, 3.0]])
    assert adversarial_loss(fake).item() == pytest.approx((softplus(-0.5) + softplus(-3)) / 2, rel=1e-6)


def test_the_rate_is_constant_for_half_of_the_epochs_and_then_falls_to_0():
    assert [linear_decay(epoch, 200, 0.5) for epoch in (1, 57, 100)] == [1, 1, 1]
    assert linear_decay(101, 200, 0.5) == pytest.approx(100 / 101)
    assert linear_decay(150, 200, 0.5) == pytest.approx(51 / 101)
    assert linear_decay(200, 200, 0.5) == pytest.approx(1 / 101)
    assert [linear_decay(epoch, 4, 0.5) for epoch in range(1, 5)] == pytest.approx([1, 1, 2 / 3, 1 / 3])
    assert linear_decay(1, 1, 0.5) == 1
    assert linear_decay(4, 4, 0.75) == pytest.approx(0.5)


def test_an_epoch_sets_the_rates_of_both_optimizers():
    method = tiny()
    for epoch, rate in ((1, 2e-4), (9, 2e-4 * 2 / 6), (3, 2e-4)):  # whatever was set before
        method.begin_epoch(epoch, 10)
        for opt in (method.opt_g, method.opt_d):
            assert [group["lr"] for group in opt.param_groups] == pytest.approx([rate])
            assert opt.param_groups[0]["betas"] == (0.5, 0.999)


# ---------------------------------------------------------------- the updates

def plain_descent(method: Pix2Pix, rate: float) -> None:
    """Give the method optimizers whose step is the gradient times the rate."""
    method.opt_g = torch.optim.SGD(method.generator.parameters(), rate)
    method.opt_d = torch.optim.SGD(method.disc.parameters(), rate)


def test_the_step_equals_plain_gradients_of_the_two_losses_the_discriminators_first():
    method, batch, rate = tiny(dropout=0.0), smooth(), 0.5
    plain_descent(method, rate)
    generator, disc = copy.deepcopy(method.generator), copy.deepcopy(method.disc)
    losses = method.step(batch, 1)

    mri, pet = batch["mri"] * 2 - 1, batch["pet"] * 2 - 1
    fake = generator(mri)
    real_pair, fake_pair = torch.cat([mri, pet], 1), torch.cat([mri, fake.detach()], 1)
    loss_d = (F.softplus(-disc(real_pair)).mean() + F.softplus(disc(fake_pair)).mean()) / 2
    loss_d.backward()
    with torch.no_grad():
        for weight in disc.parameters():
            weight -= rate * weight.grad
    adv = F.softplus(-disc(torch.cat([mri, fake], 1))).mean()
    rec = (fake - pet).abs().sum() / pet.numel()
    gradients = torch.autograd.grad(adv + 100 * rec, list(generator.parameters()))

    assert losses == pytest.approx({"disc": loss_d.item(), "rec": rec.item(), "adv": adv.item()}, rel=1e-5)
    assert list(losses) == ["disc", "rec", "adv"]
    assert_close(weights_of(method.disc), weights_of(disc), atol=1e-5, rtol=1e-4)
    expected = weights_of(generator) - rate * torch.cat([gradient.flatten() for gradient in gradients])
    assert_close(weights_of(method.generator), expected, atol=1e-4, rtol=1e-3)


def test_every_weight_gets_a_gradient_once_a_step_from_its_own_loss():
    method = tiny()
    reached = dict.fromkeys([*method.generator.parameters(), *method.disc.parameters()], 0)

    def count(weight: Tensor) -> None:
        reached[weight] += 1
    for weight in reached:
        weight.register_post_accumulate_grad_hook(count)
    method.step(smooth(), 1)
    assert set(reached.values()) == {1}
    assert all(weight.grad.abs().sum() > 0 for weight in reached if weight.dim() == 5)


def test_the_discriminators_loss_does_not_reach_the_generator_and_lambda_weighs_l1_alone():
    """Where the discriminator answers the same to everything, L1 alone moves the generator."""
    moved = {}
    for lambda_l1 in (0.0, 1.0, 3.0):
        method = tiny(lambda_l1=lambda_l1, dropout=0.0)
        plain_descent(method, 1.0)
        method.opt_d = torch.optim.SGD(method.disc.parameters(), 0.0)
        last = method.disc.layers[-1]
        nn.init.zeros_(last.weight)
        before = weights_of(method.generator)
        method.step(smooth(), 1)
        assert last.weight.grad.abs().max() > 0
        moved[lambda_l1] = weights_of(method.generator) - before
    assert not moved[0.0].any() and moved[1.0].any()
    assert_close(moved[3.0], 3 * moved[1.0], atol=1e-5, rtol=1e-4)


def test_the_discriminator_sees_the_mri_beside_the_pet():
    method, seen = tiny(), []
    method.disc.register_forward_hook(lambda *call: seen.append(call[1][0]))
    batch = smooth()
    method.step(batch, 1)
    real, fake, judged = seen
    assert_close(real, torch.cat([batch["mri"], batch["pet"]], 1) * 2 - 1)
    assert torch.equal(fake, judged)                       # one draw of the dropout a step
    assert torch.equal(fake[:, :1], real[:, :1]) and not torch.equal(fake[:, 1:], real[:, 1:])
    assert [pair.requires_grad for pair in seen] == [False, False, True]  # its own loss stops at the fake PET


def test_training_has_dropout():
    found = {dropout: tiny(dropout=dropout).step(smooth(), 1)["rec"] for dropout in (0.0, 0.5)}
    assert found[0.0] != found[0.5]


def test_some_steps_on_one_batch_lower_the_error():
    method, batch = tiny(width=8, lr=2e-3), smooth()
    losses = [method.step(batch, number) for number in range(1, 51)]
    assert losses[-1]["rec"] < 0.5 * losses[0]["rec"]
    error = (method.predict(batch["mri"]) - batch["pet"]).abs().mean()
    of_the_mean = (batch["pet"] - batch["pet"].mean()).abs().mean()
    assert error < 0.8 * of_the_mean


def test_the_discriminator_learns_to_tell_real_from_synthetic():
    method, batch = tiny(lr=2e-3), smooth()
    method.opt_g = torch.optim.SGD(method.generator.parameters(), 0.0)
    losses = [method.step(batch, number)["disc"] for number in range(1, 31)]
    assert losses[-1] < 0.5 * losses[0]


def test_volumes_that_are_not_finite_stop_the_training_with_its_weights_as_they_were():
    method, batch = tiny(), smooth()
    before = weights_of(method.generator), weights_of(method.disc)
    batch["pet"][1, 0, 3, 3, 3] = float("nan")
    with pytest.raises(NotFiniteError, match="'disc': nan"):
        method.step(batch, 1)
    assert torch.equal(weights_of(method.generator), before[0])
    assert torch.equal(weights_of(method.disc), before[1])


def test_steps_in_bfloat16_are_those_in_float32_nearly():
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        def cast(dtype: torch.dtype = dtype) -> torch.autocast:
            return autocast(CPU, dtype)
        method = tiny()
        found[dtype] = [method.step(smooth(), number, cast) for number in range(1, 5)][-1]
        assert all(weight.dtype == torch.float32 for weight in method.generator.parameters())
        assert method.predict(smooth()["mri"], cast).dtype == torch.float32
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=0.05)


# ---------------------------------------------------------------- prediction, and going on after a cut

@pytest.mark.parametrize("settings", [{}, {"norm": "batch"}])
def test_predictions_are_pets_in_0_to_1_that_depend_on_the_mri_alone(settings):
    method, batch = tiny(**settings), smooth()
    for number in range(1, 4):
        method.step(batch, number)
    if settings:
        method.generator.eval()                            # as the training loop asks before it validates
    mri, state = batch["mri"], torch.get_rng_state()
    pet = method.predict(mri)
    assert pet.shape == mri.shape and pet.dtype == torch.float32 and not pet.requires_grad
    assert pet.min() >= 0 and pet.max() <= 1 and pet.std() > 0
    torch.manual_seed(9)
    assert torch.equal(method.predict(mri, ids=["c", "d"]), pet)
    assert_close(method.predict(mri[:1]), pet[:1])         # the other scan of the batch does not matter
    assert not torch.equal(method.predict(mri.flip(0)), pet)
    torch.set_rng_state(state)
    method.predict(mri)
    assert torch.equal(torch.get_rng_state(), state)       # nothing is drawn


def test_predictions_undo_the_range_of_the_generator():
    method, mri = tiny(), smooth()["mri"]
    for bias, expected in ((-9.0, 0.0), (0.0, 0.5), (9.0, 1.0)):
        with torch.no_grad():
            method.generator.last[1].weight.zero_()
            method.generator.last[1].bias.fill_(bias)
        assert_close(method.predict(mri), torch.full_like(mri, expected), atol=1e-5, rtol=0)


def test_labels_enter_nowhere():
    weights = []
    for labels in ([0, 1], [1, 0]):
        method = tiny()
        method.step(smooth() | {"label": torch.tensor(labels)}, 1)
        weights.append(weights_of(method.generator))
    assert torch.equal(*weights)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_training_that_was_cut_goes_on_bit_for_bit(norm):
    def epochs(method: Pix2Pix, numbers: range) -> list[dict]:
        losses = []
        for epoch in numbers:
            torch.manual_seed(epoch)
            method.begin_epoch(epoch, 4)
            losses += [method.step(smooth(seed), 2 * epoch + seed - 1, nullcontext) for seed in range(2)]
        return losses
    uncut = tiny(norm=norm)
    expected = epochs(uncut, range(1, 5))
    first = tiny(norm=norm)
    epochs(first, range(1, 3))
    saved = copy.deepcopy({name: part.state_dict() for name, part in first.parts.items()})
    torch.manual_seed(77)
    second = Pix2Pix(first.settings, TINY_SIZE, CPU)
    for name, part in second.parts.items():
        part.load_state_dict(saved[name])
    assert epochs(second, range(3, 5)) == expected[4:]
    for name in ("generator", "disc"):
        left, right = uncut.parts[name].state_dict(), second.parts[name].state_dict()
        assert all(torch.equal(left[key], right[key]) for key in left)
