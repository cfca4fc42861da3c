"""FGAN: its networks as published, its losses by hand, what each update reaches, and its phases."""
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from baselines.fgan import (FGAN, DSNet, FGANDiscriminator, FGANGenerator, GeneratorBlock, adversarial_loss,
                            discriminator_loss, feature_consistency, instance_norm)
from config import PRESETS, FGANSettings
from runtime.checkpoints import restore
from utils import InputError, autocast

FULL, DEMO, TINY = (160, 192, 160), (40, 48, 40), (16, 24, 16)
CPU, SMALL = torch.device("cpu"), PRESETS["demo"]["fgan"]
NARROW = FGANSettings(generator_width=4, generator_blocks=1, discriminator_width=4, lr=1e-3,
                      classifier_channels=(4, 6, 6), classifier_pools=1, feature_layers=(0, 1, 2))
NETWORKS = ("generator", "discriminator", "classifier")


def narrow(**settings) -> FGAN:
    """FGAN with narrow networks, always with the same weights."""
    torch.manual_seed(0)
    return FGAN(replace(NARROW, **settings), TINY, CPU)


def made_up_batch(seed: int = 0, size: tuple[int, ...] = TINY) -> dict:
    """Two smooth MRIs with PETs that follow from them and, by their level, from the label."""
    generator, coarse = torch.Generator().manual_seed(seed), tuple(n // 4 for n in size)
    mri = F.interpolate(torch.rand(2, 1, *coarse, generator=generator), size=size, mode="trilinear")
    label = torch.tensor([0, 1])
    pet = 0.6 * (1 - mri) + 0.3 * label.view(2, 1, 1, 1, 1) * mri
    return {"id": ["s01", "s02"], "label": label, "mri": mri, "pet": pet}


def weights_of(network: nn.Module) -> Tensor:
    """All weights of a network in one row."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def all_weights(method: FGAN) -> list[Tensor]:
    """The weights of the three networks, a row each."""
    return [weights_of(method.parts[name]) for name in NETWORKS]


def count(network: nn.Module) -> int:
    """The number of weights."""
    return sum(weight.numel() for weight in network.parameters())


# ---------------------------------------------------------------- networks


def test_the_published_networks_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        generator, without_norm = FGANGenerator(FULL), FGANGenerator(FULL, output_norm=False)
        of_the_papers = FGANGenerator(FULL, width=8, blocks=6)
        classifiers = [DSNet((144, 176, 144)), DSNet(FULL), DSNet(DEMO, pools=SMALL.classifier_pools)]
        discriminator = FGANDiscriminator(FULL)
    assert count(generator) == 814_403 and count(without_norm) == 814_401
    assert count(of_the_papers) == 373_219
    assert count(discriminator) == 2_772_321
    for classifier in classifiers:
        assert (count(classifier.layers), count(classifier.linear)) == (291_456, 20_482)


def test_the_compared_networks_are_the_published_ones_without_the_output_norm():
    method = FGAN(SMALL, DEMO, CPU)
    assert [count(method.parts[name]) for name in NETWORKS] == [814_401, 2_772_321, 311_938]
    assert narrow(output_norm=True).generator.layers[-1].num_channels == 1


@pytest.mark.parametrize(("size", "pools", "coarsest", "patches"),
                         [(FULL, 4, (10, 12, 10), (20, 24, 20)), (DEMO, 2, (10, 12, 10), (5, 6, 5))])
def test_shapes_at_both_sizes(size, pools, coarsest, patches):
    with torch.device("meta"):
        generator, discriminator = FGANGenerator(size), FGANDiscriminator(size)
        classifier = DSNet(size, pools=pools)
    x = torch.empty(1, 1, *size, device="meta")
    assert generator(x).shape == x.shape
    assert discriminator(x).shape == (1, 1, *patches)
    assert classifier(x).shape == (1, 2) and classifier.descriptor(x).shape == (1, 128 * 4 * 5 * 4)
    phi = classifier.features(x)
    assert [h.shape[1] for h in phi] == [16, 32, 64, 64, 64]
    assert phi[0].shape[2:] == size and phi[4].shape[2:] == coarsest


@pytest.mark.parametrize(("network", "size", "divisor"),
                         [(FGANGenerator, (42, 48, 40), 4), (FGANGenerator, (40, 48, 4), 4),
                          (FGANDiscriminator, (40, 48, 44), 8), (FGANDiscriminator, (40, 8, 40), 8),
                          (DSNet, DEMO, 16), (DSNet, (32, 48, 48), 16)])
def test_a_size_that_a_network_cannot_take_is_refused(network, size, divisor):
    """Sides that do not divide, or that leave no position."""
    found = "x".join(map(str, size))
    with pytest.raises(InputError, match=f"volume_size is {found}.* multiples of {divisor}, .*crop or pad"):
        network(size)


def test_the_method_refuses_the_small_size_without_its_settings():
    with pytest.raises(InputError, match="fewer classifier_pools"):
        FGAN(FGANSettings(), DEMO, CPU)


def test_the_norms_are_instance_norms_with_scale_and_offset():
    norm, h = instance_norm(3, "relu"), torch.randn(2, 3, 4, 4, 4)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    mean, variance = h.mean((2, 3, 4), keepdim=True), h.var((2, 3, 4), correction=0, keepdim=True)
    weight, bias = norm.weight.view(3, 1, 1, 1), norm.bias.view(3, 1, 1, 1)
    wanted = (weight * (h - mean) / (variance + 1e-5).sqrt() + bias).clamp(min=0)
    assert_close(norm(h), wanted, atol=1e-5, rtol=1e-4)


def test_borders_of_the_generator_are_mirrored_where_they_are_as_published():
    """Of a volume that is the same everywhere, its first and last layer and its blocks make one that is."""
    generator, even = FGANGenerator(TINY, 4, 1), torch.ones(1, 1, *TINY)
    [block] = [layer for layer in generator.layers if isinstance(layer, GeneratorBlock)]
    for layers, channels in ((generator.layers[:2], 1), (block.layers[:2], 16), (block.layers[3:5], 16),
                             (generator.layers[-3:-1], 4)):
        h = layers(even.expand(-1, channels, -1, -1, -1))
        assert h.shape[2:] == TINY and h.std((2, 3, 4)).max() < 1e-5


def test_the_block_adds_its_input_before_the_last_relu():
    block, h = GeneratorBlock(4), torch.randn(1, 4, 6, 6, 6)
    assert_close(block(h), (h + block.layers(h)).clamp(min=0))
    assert block.layers(h).min() < -0.1                            # no ReLU in it after the last norm


def test_with_the_output_norm_every_volume_has_the_same_level_and_without_it_its_own():
    """Which is why the default leaves it out: the level of a volume is its subject's uptake."""
    spread = {}
    for output_norm in (True, False):
        torch.manual_seed(0)
        generator = FGANGenerator(TINY, 4, 1, output_norm)
        with torch.no_grad():
            logits = torch.atanh(generator(torch.cat([made_up_batch(seed)["mri"] for seed in (0, 1)])))
        spread[output_norm] = logits.flatten(1).mean(1).std() / logits.std()
    assert spread[True] < 1e-5 < 1e-3 < spread[False]


def test_the_discriminator_sees_patches_of_70_voxels():
    """The field of a score: those voxels that change it."""
    size = (8, 8, 144)
    torch.manual_seed(0)
    layers = FGANDiscriminator((16, 16, 16), 2).layers
    without_norms = nn.Sequential(*(layer for layer in layers if not hasattr(layer, "num_groups")))
    x = torch.rand(1, 1, *size, requires_grad=True)
    score = without_norms(x)[0, 0, 0, 0, 9]
    [gradient] = torch.autograd.grad(score, x)
    touched = gradient.abs().amax((0, 1, 2, 3)).nonzero().flatten()
    # stride 8, three layers of kernel 4 and padding 1 before; then two that keep the grid
    assert (touched[0].item(), touched[-1].item()) == (8 * (9 - 2) - 7, 8 * (9 - 2) - 7 + 69)


@pytest.mark.parametrize("second_order", [True, False])
def test_the_spatial_cosine_module_by_hand(second_order):
    """Features of each position as a unit vector, all positions as one, and a weight for each value."""
    torch.manual_seed(0)
    classifier, x = DSNet(TINY, (4, 6, 6), 1, second_order), torch.rand(1, 1, *TINY)
    last = classifier.features(x)[-1][0].detach()                                            # [6, 8, 12, 8]
    blocks = []
    for i in range(3):
        for j in range(5):
            for k in range(3):
                window = last[:, 2 * i:2 * i + 3, 2 * j:2 * j + 3, 2 * k:2 * k + 3]
                f = window.sum((1, 2, 3)) / 27
                if second_order:
                    f = torch.cat([f, f ** 2 - 1])
                blocks.append(f / (f ** 2).sum() ** 0.5)
    by_position = torch.stack(blocks) / 45 ** 0.5                  # 45 unit vectors have the length 45**0.5
    assert_close(classifier.descriptor(x)[0], by_position.T.flatten(), atol=1e-6, rtol=1e-5)
    weight, bias = classifier.linear.weight, classifier.linear.bias
    assert_close(classifier(x)[0], weight @ by_position.T.flatten() + bias, atol=1e-6, rtol=1e-5)


def test_the_classifier_knows_where_the_uptake_is():
    classifier, x = DSNet(TINY, (4, 6, 6), 1), made_up_batch()["pet"] * 2 - 1
    assert (classifier(x) - classifier(x.flip(3))).abs().max() > 1e-3


def test_max_pools_halve_the_grid_with_the_border_after_the_volume():
    classifier, x = DSNet(TINY, (4, 6, 6), 1), torch.rand(1, 1, *TINY)
    first, second, _ = classifier.features(x)
    padded = F.pad(first, (0, 1, 0, 1, 0, 1), value=-torch.inf)
    pooled = padded.unfold(2, 3, 2).unfold(3, 3, 2).unfold(4, 3, 2).amax((5, 6, 7))
    assert_close(second, classifier.layers[1](pooled))


# ---------------------------------------------------------------- losses


def test_feature_consistency_by_hand():
    """A sum over layers of the mean in each, however many values a layer has."""
    fake = [torch.tensor([1.0, 3.0]), torch.tensor([[0.0, 0.0], [0.0, 4.0]]), torch.tensor([5.0])]
    real = [torch.tensor([2.0, 1.0]), torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([-5.0])]
    assert feature_consistency(fake, real, (0, 1, 2)).item() == pytest.approx(1.5 + 1.5 + 10.0)
    assert feature_consistency(fake, real, (1,)).item() == pytest.approx(1.5)


def test_adversarial_losses_by_hand():
    """Absolute values: a square would give other numbers."""
    fake, real = torch.tensor([[0.5, -2.0]]), torch.tensor([[3.0, 0.0]])
    assert adversarial_loss(fake).item() == pytest.approx((0.5 + 3.0) / 2)
    assert discriminator_loss(real, fake).item() == pytest.approx(((0.5 + 2.0) / 2 + (2.0 + 1.0) / 2) / 2)


def test_the_feature_consistency_hardly_sees_the_level_of_a_volume():
    """The reason for lambda_voxel: a PET 0.1 brighter costs less than one with noise that errs less."""
    torch.manual_seed(0)
    classifier, pet = DSNet(TINY, (16, 32, 64), 1), made_up_batch()["pet"]
    with torch.no_grad():
        real = classifier.features(pet * 2 - 1)
        brighter = feature_consistency(classifier.features((pet + 0.1) * 2 - 1), real, (0, 1, 2))
        noisy = pet + 0.05 * torch.randn(pet.shape)
        noise = feature_consistency(classifier.features(noisy * 2 - 1), real, (0, 1, 2))
    assert (noisy - pet).abs().mean() < 0.1 / 2 and brighter < noise


# ---------------------------------------------------------------- updates


def test_the_step_equals_plain_gradients_of_the_three_losses():
    """With plain gradient descent one step moves each network along its own loss, the others' left out."""
    method = narrow(lambda_feature=2.0, lambda_adv=3.0, lambda_voxel=5.0)
    batch, rate = made_up_batch(), 0.1
    method.opt_g, method.opt_d, method.opt_c = (
        torch.optim.SGD(method.parts[name].parameters(), rate) for name in NETWORKS)
    method.begin_epoch(1, 3)
    for opt in (method.opt_g, method.opt_d):
        opt.param_groups[0]["lr"] = rate

    generator, discriminator, classifier = (method.parts[name] for name in NETWORKS)
    mri, pet = 2 * batch["mri"] - 1, 2 * batch["pet"] - 1
    fake = generator(mri)
    pairs = zip(classifier.features(fake), classifier.features(pet), strict=True)
    feature = sum(torch.mean(torch.abs(one - other)) for one, other in pairs)
    adv, voxel = torch.mean(torch.abs(discriminator(fake) - 1)), torch.mean(torch.abs(fake - pet))
    disc = torch.mean(torch.abs(discriminator(generator(mri)))) / 2
    disc = disc + torch.mean(torch.abs(discriminator(pet) - 1)) / 2
    logits = classifier(pet)
    cls = torch.mean(torch.logsumexp(logits, 1) - logits[range(2), batch["label"]])
    expected = []
    for network, loss in ((generator, 2 * feature + 3 * adv + 5 * voxel), (discriminator, disc),
                          (classifier, cls)):
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        pairs = zip(network.parameters(), gradients, strict=True)
        expected.append([weight.detach() - rate * gradient for weight, gradient in pairs])

    terms = method.step(batch, 1)
    for name, wanted in zip(NETWORKS, expected, strict=True):
        found = [weight.detach() for weight in method.parts[name].parameters()]
        assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    values = {"feature": feature, "adv": adv, "voxel": voxel, "disc": disc, "cls": cls}
    assert terms == pytest.approx({name: value.item() for name, value in values.items()}, rel=1e-4)


@pytest.mark.parametrize("learns", [True, False])
def test_every_weight_gets_one_gradient_from_its_own_loss_and_none_when_fixed(learns):
    method = narrow()
    reached = {weight: 0 for name in NETWORKS for weight in method.parts[name].parameters()}

    def note(weight: Tensor) -> None:
        reached[weight] += 1
    for weight in reached:
        weight.register_post_accumulate_grad_hook(note)
    method.begin_epoch(1 if learns else 3, 3)
    method.step(made_up_batch(), 1)
    fixed = set(method.classifier.parameters())
    for weight, times in reached.items():
        assert times == (1 if learns or weight not in fixed else 0)


def test_the_classifier_learns_in_its_phase_alone():
    method, batch = narrow(), made_up_batch()
    for network in NETWORKS:                                       # as the training loop does before an epoch
        method.parts[network].train()
    method.begin_epoch(1, 3)
    before = all_weights(method)
    assert "cls" in method.step(batch, 1) and method.classifier.training
    assert not any(torch.equal(old, new) for old, new in zip(before, all_weights(method), strict=True))
    method.begin_epoch(2, 3)
    before = all_weights(method)
    assert "cls" not in method.step(batch, 2) and not method.classifier.training
    same = [torch.equal(old, new) for old, new in zip(before, all_weights(method), strict=True)]
    assert same == [False, False, True]


def test_a_fixed_classifier_still_leads_the_generator():
    """Its features reach the generator's weights, although it gets no gradient itself."""
    moved = []
    for lambda_feature in (0.0, 1.0):
        method = narrow(lambda_feature=lambda_feature)
        method.begin_epoch(3, 3)
        method.step(made_up_batch(), 1)
        moved.append(weights_of(method.generator))
    assert not torch.equal(*moved)


def test_labels_reach_the_classifier_and_through_it_alone_the_generator():
    def trained(label: list[int], epoch: int, steps: int) -> list[Tensor]:
        """The weights after so many steps of one epoch of three."""
        method, batch = narrow(classifier_lr=1.0), made_up_batch() | {"label": torch.tensor(label)}
        method.begin_epoch(epoch, 3)
        for number in range(steps):
            method.step(batch, number + 1)
        return all_weights(method)

    def same(epoch: int, steps: int) -> list[bool]:
        """Whether generator, discriminator and classifier do not depend on the labels."""
        one, other = trained([0, 1], epoch, steps), trained([1, 0], epoch, steps)
        return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
    assert same(epoch=1, steps=1) == [True, True, False]
    assert not same(epoch=1, steps=2)[0]
    assert same(epoch=3, steps=2) == [True, True, True]


def test_phases_and_rates_of_the_published_151_epochs():
    method = narrow(lr=2e-4)
    learns, rates = [], []
    for epoch in range(1, 152):
        method.begin_epoch(epoch, 151)
        learns.append(method.classifier_learns)
        rates.append(method.opt_g.param_groups[0]["lr"])
        assert method.opt_d.param_groups[0]["lr"] == rates[-1]
        assert method.opt_c.param_groups[0]["lr"] == 0.01
    assert learns == [True] * 50 + [False] * 101
    assert rates[:101] == pytest.approx([2e-4] * 101)
    assert rates[101:] == pytest.approx([2e-4 * left / 51 for left in range(50, 0, -1)])


@pytest.mark.parametrize(("epochs", "learning"), [(1, 1), (2, 1), (3, 1), (30, 10), (302, 100)])
def test_phases_are_shares_of_the_epochs_and_follow_from_the_number_alone(epochs, learning):
    method, found = narrow(), []
    for epoch in range(epochs, 0, -1):                             # backwards: nothing is carried over
        method.begin_epoch(epoch, epochs)
        trained = all(weight.requires_grad for weight in method.classifier.parameters())
        found.append((method.classifier_learns, trained, method.opt_g.param_groups[0]["lr"]))
    found.reverse()
    assert [one[0] for one in found] == [one[1] for one in found] == [True] * learning + [False] * (
        epochs - learning)
    assert found[0][2] == NARROW.lr and 0 < found[-1][2] <= NARROW.lr


# ---------------------------------------------------------------- training and prediction


@pytest.mark.parametrize("size", [TINY, (8, 32, 24)])
def test_a_prediction_is_a_volume_in_0_1_that_depends_on_its_own_mri_alone(size):
    torch.manual_seed(0)
    method = FGAN(replace(NARROW, classifier_pools=0), (16, *size[1:]), CPU)
    with torch.no_grad():                                          # large outputs, to put the range to a test
        for weight in method.generator.parameters():
            weight.mul_(3)
    mri = made_up_batch(1, (16, *size[1:]))["mri"]
    before = all_weights(method)
    pet = method.predict(mri)
    assert pet.shape == mri.shape and pet.dtype == torch.float32 and not pet.requires_grad
    assert 0 <= pet.min() < 0.1 and 0.9 < pet.max() <= 1
    assert torch.equal(pet, method.predict(mri, ids=["s01", "s02"]))
    assert_close(method.predict(mri[1:]), pet[1:], atol=1e-5, rtol=1e-4)
    assert (pet[0] - pet[1]).abs().max() > 0.01
    assert all(torch.equal(old, new) for old, new in zip(before, all_weights(method), strict=True))


def test_the_range_of_a_prediction_is_that_of_the_data():
    """The generator's -1 is 0, and its 1 is 1."""
    method = narrow()
    for level, wanted in ((-20.0, 0.0), (0.0, 0.5), (20.0, 1.0)):
        nn.init.zeros_(method.generator.layers[-1].weight)
        nn.init.constant_(method.generator.layers[-1].bias, level)
        assert_close(method.predict(torch.rand(1, 1, *TINY)), torch.full((1, 1, *TINY), wanted))


def test_steps_with_the_voxel_term_lower_the_error():
    method, batch = narrow(lambda_voxel=10.0, lr=5e-3), made_up_batch()
    method.begin_epoch(1, 3)
    before = (method.predict(batch["mri"]) - batch["pet"]).abs().mean()
    for number in range(15):
        method.step(batch, number + 1)
    assert (method.predict(batch["mri"]) - batch["pet"]).abs().mean() < 0.7 * before


def test_steps_with_the_published_weights_lower_the_feature_consistency():
    method, batch = narrow(lr=1e-2), made_up_batch()
    method.begin_epoch(3, 3)
    terms = [method.step(batch, number + 1) for number in range(15)]
    assert terms[-1]["feature"] < 0.8 * terms[0]["feature"]


def test_the_discriminator_learns_to_tell_real_from_synthetic():
    method, batch = narrow(lr=5e-3), made_up_batch()
    method.opt_g = torch.optim.SGD(method.generator.parameters(), 0.0)             # leaves the same task
    losses = [method.step(batch, number + 1)["disc"] for number in range(15)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_classifier_learns_the_labels():
    method, batch = narrow(classifier_lr=2.0), made_up_batch()
    losses = [method.step(batch, number + 1)["cls"] for number in range(15)]
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(method.classifier(batch["pet"] * 2 - 1).argmax(1), batch["label"])


def test_a_step_in_bfloat16_is_that_in_float32_but_for_rounding():
    terms = []
    for dtype in (torch.float32, torch.bfloat16):
        method = narrow()
        method.begin_epoch(1, 3)
        terms.append(method.step(made_up_batch(), 1, lambda dtype=dtype: autocast(CPU, dtype)))
        assert all(weight.dtype == torch.float32 for weight in method.generator.parameters())
        pet = method.predict(made_up_batch()["mri"], lambda dtype=dtype: autocast(CPU, dtype))
        assert pet.dtype == torch.float32
    assert terms[1] == pytest.approx(terms[0], rel=0.03)


def test_a_cut_and_restored_training_equals_an_uncut_one_bit_for_bit():
    """Cut after each of three epochs, so also where the classifier is fixed and where the rate falls."""
    def take_epoch(method: FGAN, epoch: int) -> list[dict[str, float]]:
        """The terms of the two steps of an epoch."""
        torch.manual_seed(epoch)
        method.begin_epoch(epoch, 3)
        return [method.step(made_up_batch(10 * epoch + i), 2 * epoch + i) for i in range(2)]

    uncut, saved, terms = narrow(), [], []
    for epoch in (1, 2, 3):
        terms.append(take_epoch(uncut, epoch))
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in uncut.parts.items()}, file)
        saved.append(file)
    for cut in (1, 2):
        torch.manual_seed(99)
        method = FGAN(NARROW, TINY, CPU)
        saved[cut - 1].seek(0)
        states = torch.load(saved[cut - 1])
        for name, part in method.parts.items():
            restore(part, states[name], Path("memory"))
        for epoch in range(cut + 1, 4):
            assert take_epoch(method, epoch) == terms[epoch - 1]
        assert all(map(torch.equal, all_weights(method), all_weights(uncut)))


def test_all_that_learns_is_kept_in_a_checkpoint():
    method = narrow()
    networks = [part for part in method.parts.values() if isinstance(part, nn.Module)]
    optimizers = [part for part in method.parts.values() if not isinstance(part, nn.Module)]
    held = {weight for network in networks for weight in network.parameters()}
    stepped = [weight for opt in optimizers for group in opt.param_groups for weight in group["params"]]
    assert len(stepped) == len(set(stepped)) and set(stepped) == held
    assert (method.name, method.modalities) == ("fgan", ("mri", "pet"))
