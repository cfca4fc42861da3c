"""ResViT: published sizes, slices, losses, phases, and a training that can be cut."""
import copy
import dataclasses
import math

import pytest
import torch
from conftest import TINY as TINY_CONFIG
from torch import Tensor, nn
from torch.testing import assert_close

from baselines.resvit import (Generator, PatchDiscriminator, Resvit, discriminator_loss, draw_slices,
                              first_phase, rate_factor, squared_distance, take_slices)
from config import DEMO, Config, ResvitSettings
from experiment.networks import build_baseline
from utils import InputError, autocast

CPU, VOLUME = torch.device("cpu"), (16, 24, 12)
SMALL = dataclasses.asdict(DEMO["resvit"])
TINY = SMALL | {"width": 4, "art_blocks": 2, "transformer_blocks": (1, 2), "hidden": 8, "layers": 1,
                "heads": 2, "mlp": 16, "disc_width": 4, "disc_layers": 1, "slices_per_volume": 3,
                "predict_slices": 5}
EPOCHS = 3                                                 # two without transformers, one with them


def baseline(volume_size: tuple[int, int, int] = VOLUME, seed: int = 0, **changed) -> Resvit:
    """A tiny baseline, always with the same weights for a seed, ready to be trained."""
    torch.manual_seed(seed)
    resvit = Resvit(ResvitSettings(**(TINY | changed)), volume_size, CPU)
    resvit.generator.train(), resvit.disc.train()
    return resvit


def a_batch(volumes: int = 2, size: tuple[int, int, int] = VOLUME) -> dict:
    """Random volumes; the PET is a smooth function of the MRI."""
    generator = torch.Generator().manual_seed(1)
    mri = torch.rand(volumes, 1, *size, generator=generator)
    return {"id": [f"s{i}" for i in range(volumes)], "label": torch.arange(volumes) % 2, "mri": mri,
            "pet": 0.2 + 0.6 * mri ** 2}


def count(network: nn.Module) -> int:
    """Number of the weights that are trained."""
    return sum(weight.numel() for weight in network.parameters())


def weights_of(weights) -> Tensor:
    """All of them in one row, as they are now."""
    return torch.cat([weight.detach().flatten().clone() for weight in weights])


# ---------------------------------------------------------------- networks


def test_the_published_networks_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        generator, disc = Generator(), PatchDiscriminator()
    assert count(generator) == 123_441_537 and count(disc) == 2_764_609
    assert count(generator.transformer) == 85_056_000      # ViT-B/16, once for both blocks
    assert count(generator.paths) == 27_014_656 and count(generator.blocks) == 10_626_048
    assert list(generator.paths) == ["A1", "A6"]


@pytest.mark.parametrize(("size", "settings", "tokens", "scores"), [
    ((160, 192, 160), {}, 120, (18, 22)), ((40, 48, 40), SMALL, 30, (8, 10))])
def test_slices_keep_their_size_and_are_judged_in_patches(size, settings, tokens, scores):
    """On torch's meta device, which computes shapes alone."""
    with torch.device("meta"):
        resvit = Resvit(ResvitSettings(**settings), size, torch.device("meta"))
        resvit.begin_epoch(3, 3)
        resvit.generator.train(), resvit.disc.train()      # in which shapes are cheap
        slices = torch.zeros(2, 1, *size[:2])
        assert resvit.generate(slices).shape == slices.shape
        assert resvit.disc(slices, slices).shape == (2, 1, *scores)
        assert resvit.generator.paths["A1"].positions.shape[1] == tokens
        assert resvit.predict(torch.zeros(1, 1, *size)).shape == (1, 1, *size)


def test_a_patch_of_the_published_discriminator_is_70_pixels_wide():
    disc = PatchDiscriminator(width=1).eval()
    source = torch.zeros(1, 1, 256, 256, requires_grad=True)
    disc(source, source.detach())[0, 0, 15, 15].backward()
    seen = source.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert seen.max() - seen.min() + 1 == 70


@pytest.mark.parametrize("size", [(160, 200), (150, 192), (0, 16), (8, 16)])
def test_a_generator_refuses_slices_that_it_cannot_divide(size):
    message = f"{size[0]}x{size[1]} pixels.* divides each side by 16; .* multiples of 16"
    with torch.device("meta"), pytest.raises(InputError, match=message):
        Generator(size)


def test_a_discriminator_refuses_slices_without_a_whole_patch():
    with torch.device("meta"):
        with pytest.raises(InputError, match="23x48 pixels are too small.* needs 24"):
            PatchDiscriminator((23, 48))
        smallest = PatchDiscriminator((24, 24)).train()
        assert smallest(torch.zeros(2, 1, 24, 24), torch.zeros(2, 1, 24, 24)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(("changed", "message"), [
    ({"slices_per_volume": 13}, "slices_per_volume is 13, but a volume has 12"),
    ({"slices_per_volume": 0}, "slices_per_volume is 0")])
def test_settings_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        baseline(**changed)


def test_blocks_and_layers_add_to_their_input():
    """With their last layers at zero they give it back."""
    generator = baseline().generator.eval()
    block, layer = generator.blocks["A1"], generator.transformer[0]
    h, tokens = torch.randn(2, 16, 4, 6), torch.randn(2, 6, 8)
    assert not torch.equal(block(h), h) and not torch.equal(layer(tokens), tokens)
    for last in (block.convs[-1], layer.out, layer.mlp[3]):
        for weight in last.parameters():
            weight.data.zero_()
    assert torch.equal(block(h), h) and torch.equal(layer(tokens), tokens)


def test_one_transformer_serves_all_its_blocks():
    """It runs once a block, on tokens of that block's path; without transformers not at all."""
    generator, seen = baseline().generator.eval(), []
    generator.transformer.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    source = torch.rand(2, 1, 16, 24)
    generator(source)
    assert not seen
    generator.uses_transformers = True
    generator(source)
    assert [tuple(tokens.shape) for tokens in seen] == [(2, 6, 8)] * 2 and not torch.equal(*seen)
    first, last = (path.positions for path in generator.paths.values())
    assert first is not last and not first.any() and not last.any()


def test_a_path_tells_positions_apart_once_they_are_learned():
    """Until then, content that is the same everywhere gives the same token everywhere."""
    generator = baseline().generator.eval()
    path, tokens = generator.paths["A1"], []
    hook = generator.transformer.register_forward_hook(lambda _, __, result: tokens.append(result))
    path.down = nn.AvgPool2d(2)
    path.embedding = nn.Conv2d(16, 8, 1)
    path(torch.ones(1, 16, 4, 6), generator.transformer)
    path.positions.data.normal_()
    path(torch.ones(1, 16, 4, 6), generator.transformer)
    hook.remove()
    before, after = (result[0].std(dim=0).max().item() for result in tokens)
    assert before < 1e-5 and after > 0.1


def test_attention_is_the_softmax_mean_of_values_over_all_tokens_in_each_head():
    """By plain matrix products."""
    layer = Generator((8, 8), 2, 1, (1,), 1, hidden=6, layers=1, heads=2, mlp=4).transformer[0]
    tokens = torch.randn(2, 5, 6)
    query, key, value = layer.query_key_value(tokens).split(6, dim=-1)
    heads = []
    for own in (slice(0, 3), slice(3, 6)):
        weights = torch.softmax(query[..., own] @ key[..., own].mT / math.sqrt(3), dim=-1)
        heads.append(weights @ value[..., own])
    assert_close(layer.attend(tokens), torch.cat(heads, dim=-1))


def test_the_discriminator_starts_from_the_published_spread():
    torch.manual_seed(0)
    convs = [module for module in PatchDiscriminator().modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 5
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(conv.weight.mean().item()) < 2e-3


# ---------------------------------------------------------------- slices


def test_every_slice_is_drawn_equally_often_and_each_draw_spans_the_volume():
    torch.manual_seed(0)
    chosen = draw_slices(6000, 10, 4)                      # runs of two and a half slices
    assert chosen.shape == (6000, 4) and chosen.min() == 0 and chosen.max() == 9
    shares = torch.bincount(chosen.flatten(), minlength=10) / 6000
    assert_close(shares, torch.full((10,), 0.4), atol=0.03, rtol=0)
    runs = torch.tensor([[0, 2], [2, 4], [5, 7], [7, 9]])
    assert (chosen >= runs[:, 0]).all() and (chosen <= runs[:, 1]).all()
    assert torch.equal(draw_slices(2, 7, 7), torch.arange(7).expand(2, 7))


def test_draws_follow_from_the_global_seed():
    torch.manual_seed(3)
    first, second = draw_slices(2, 40, 8), draw_slices(2, 40, 8)
    torch.manual_seed(3)
    assert torch.equal(draw_slices(2, 40, 8), first) and not torch.equal(first, second)


def test_slices_are_axial_and_in_the_order_of_volumes():
    volumes = torch.arange(2 * 3 * 4 * 5).view(2, 1, 3, 4, 5)
    slices = take_slices(volumes, torch.tensor([[0, 4], [2, 1]]))
    assert slices.shape == (4, 1, 3, 4)
    for row, (volume, number) in enumerate([(0, 0), (0, 4), (1, 2), (1, 1)]):
        assert torch.equal(slices[row, 0], volumes[volume, 0, :, :, number])


# ---------------------------------------------------------------- losses and updates


def test_losses_have_the_values_of_a_calculation_by_hand():
    """Scores 1 and 3 are 0 and 2 from 1: mean square 2. Scores 0.5 and -1 are so far from 0: mean square
    0.625."""
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, -1.0])
    assert squared_distance(real, 1.0).item() == 2.0
    assert squared_distance(fake, 0.0).item() == 0.625
    assert discriminator_loss(real, fake).item() == (2.0 + 0.625) / 2
    assert squared_distance(real.bfloat16(), 1.0).dtype == torch.float32


@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_a_step_is_plain_descent_down_the_two_published_losses(epoch):
    """The discriminator moves first and down its own loss; the generator then down 100 L1 and the squared
    distance from 1 of the discriminator as it now is, on [-1, 1]. Nothing else moves."""
    resvit, batch, rate = baseline(dropout=0.0, slices_per_volume=12), a_batch(), 1e-3
    resvit.begin_epoch(epoch, EPOCHS)
    trained = resvit.generator.convolution_weights()
    if epoch == EPOCHS:
        trained = list(resvit.generator.parameters())
    resvit.parts[f"opt_g_{resvit.phase}"] = torch.optim.SGD(trained, rate)
    resvit.parts[f"opt_d_{resvit.phase}"] = torch.optim.SGD(resvit.disc.parameters(), rate)
    generator, disc = copy.deepcopy(resvit.generator), copy.deepcopy(resvit.disc)
    losses = resvit.step(batch, 1)

    mri, pet = (batch[name].permute(0, 4, 1, 2, 3).reshape(24, 1, 16, 24) * 2 - 1 for name in ("mri", "pet"))
    fake = generator(mri)
    still = fake.detach()
    loss_d = (((disc(mri, pet) - 1) ** 2).mean() + (disc(mri, still) ** 2).mean()) / 2
    for weight, gradient in zip(disc.parameters(), torch.autograd.grad(loss_d, list(disc.parameters())),
                                strict=True):
        weight.data -= rate * gradient
    l1, adv = (fake - pet).abs().mean(), ((disc(mri, fake) - 1) ** 2).mean()
    weights = list(generator.parameters())
    gradients = torch.autograd.grad(100 * l1 + adv, weights, allow_unused=True)
    moved = 0
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            weight.data -= rate * gradient
            moved += 1
    assert moved == len(trained)                           # everything of the phase, and nothing else
    assert losses == pytest.approx({"disc": loss_d.item(), "l1": l1.item(), "adv": adv.item()}, rel=1e-4)
    for found, expected in ((resvit.generator, generator), (resvit.disc, disc)):
        assert_close(weights_of(found.parameters()), weights_of(expected.parameters()), atol=2e-5, rtol=1e-3)


def test_every_weight_gets_one_gradient_a_step_from_its_own_loss():
    """The fake is detached for the discriminator, and the generator's loss leaves no gradient there."""
    resvit = baseline()
    resvit.begin_epoch(EPOCHS, EPOCHS)
    reached = dict.fromkeys([*resvit.generator.parameters(), *resvit.disc.parameters()], 0)

    def note(weight: Tensor) -> None:
        reached[weight] += 1
    for weight in reached:
        weight.register_post_accumulate_grad_hook(note)
    resvit.step(a_batch(), 1)
    assert set(reached.values()) == {1}


def test_the_losses_do_not_see_what_slices_are_filled_up_with():
    """Slices of 15x22 are filled up to 16x24, in the value of empty voxels, and cut again."""
    resvit = baseline((15, 22, 12))
    assert resvit.generator.paths["A1"].grid == (2, 3)
    seen = []
    resvit.generator.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    resvit.disc.register_forward_pre_hook(lambda _, given: seen.extend(given))
    resvit.begin_epoch(1, EPOCHS)
    losses = resvit.step(a_batch(size=(15, 22, 12)), 1)
    assert seen[0].shape == (6, 1, 16, 24)
    assert (seen[0][:, :, 15:] == -1).all() and (seen[0][..., 22:] == -1).all()
    assert all(slices.shape == (6, 1, 15, 22) for slices in seen[1:])
    assert all(math.isfinite(value) for value in losses.values())
    assert resvit.predict(a_batch(size=(15, 22, 12))["mri"]).shape == (2, 1, 15, 22, 12)


def test_steps_in_bfloat16_give_the_losses_of_those_in_float32():
    terms = {}
    for dtype in (torch.float32, torch.bfloat16):
        resvit = baseline(dropout=0.0)
        resvit.begin_epoch(EPOCHS, EPOCHS)
        torch.manual_seed(5)
        terms[dtype] = resvit.step(a_batch(), 1, lambda dtype=dtype: autocast(CPU, dtype))
        assert all(weight.dtype == torch.float32 for weight in resvit.generator.parameters())
    assert terms[torch.bfloat16] == pytest.approx(terms[torch.float32], rel=0.05)


# ---------------------------------------------------------------- phases


def test_two_thirds_of_the_epochs_are_without_transformers():
    first = {150: 100, 300: 200, 30: 20, 4: 2, 3: 2, 2: 1, 1: 0}
    assert {epochs: first_phase(epochs, ResvitSettings()) for epochs in first} == first


def test_the_rate_falls_in_the_second_half_of_a_phase_and_rises_in_a_warm_up():
    factors = [rate_factor(epoch, 100) for epoch in (1, 50, 51, 100)]
    assert factors == pytest.approx([1, 1, 50 / 51, 1 / 51])
    assert [rate_factor(epoch, 50, 4) for epoch in (1, 2, 5, 25)] == pytest.approx([0.2, 0.4, 1, 1])
    assert rate_factor(1, 1) == 1.0


@pytest.mark.parametrize(("epoch", "phase", "rate"), [
    (1, 1, 2e-4), (50, 1, 2e-4), (100, 1, 2e-4 / 51), (101, 2, 1e-3 / 6), (105, 2, 5e-3 / 6), (106, 2, 1e-3),
    (125, 2, 1e-3), (150, 2, 1e-3 / 26)])
def test_phases_and_learning_rates_are_the_published_ones_after_a_warm_up(epoch, phase, rate):
    resvit = baseline()
    resvit.begin_epoch(epoch, 150)
    assert resvit.phase == phase
    for network in "gd":
        assert resvit.parts[f"opt_{network}_{phase}"].param_groups[0]["lr"] == pytest.approx(rate)


def test_transformers_stand_still_in_the_first_phase_and_everything_moves_in_the_second():
    resvit, batch = baseline(), a_batch()
    generator = resvit.generator
    late = [*generator.paths.parameters(), *generator.transformer.parameters()]
    early = generator.convolution_weights()
    assert len(early) + len(late) == len(list(generator.parameters()))
    for epoch, moves in ((1, False), (EPOCHS, True)):
        resvit.begin_epoch(epoch, EPOCHS)
        before = [weight.detach().clone() for weight in [*late, *early]]
        resvit.step(batch, 1)
        moved = [not torch.equal(weight, old) for weight, old in zip([*late, *early], before, strict=True)]
        assert set(moved[:len(late)]) == {moves} and all(moved[len(late):])


def test_without_transformers_their_weights_do_not_matter_and_with_them_they_do():
    generator, source = baseline().generator.eval(), torch.rand(2, 1, 16, 24)
    for uses_transformers in (False, True):
        generator.uses_transformers = uses_transformers
        before = generator(source)
        for weight in generator.transformer.parameters():
            weight.data.add_(0.1)
        assert torch.equal(generator(source), before) != uses_transformers


@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_saved_weights_predict_in_the_phase_that_they_are_of(epoch):
    """A checkpoint's best epoch may be one of either phase."""
    trained, batch = baseline(), a_batch()
    trained.begin_epoch(epoch, EPOCHS)
    trained.step(batch, 1)
    trained.generator.eval()
    fresh = baseline(seed=1)
    fresh.begin_epoch(EPOCHS + 1 - epoch, EPOCHS)          # in the other phase
    fresh.generator.load_state_dict(trained.generator.state_dict())
    fresh.generator.eval()
    assert torch.equal(fresh.predict(batch["mri"]), trained.predict(batch["mri"]))


# ---------------------------------------------------------------- prediction and training


@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_predictions_are_the_generators_slices_in_zero_to_one(epoch):
    resvit, mri = baseline(), a_batch(3)["mri"]
    resvit.begin_epoch(epoch, EPOCHS)
    resvit.generator.eval()
    pet = resvit.predict(mri)
    assert pet.shape == mri.shape and pet.dtype == torch.float32 and not pet.requires_grad
    assert pet.min() >= 0 and pet.max() <= 1 and pet.std() > 0
    with torch.no_grad():
        expected = (resvit.generator(2 * mri[1, :, :, :, 7][None] - 1)[0, 0] + 1) / 2
    assert_close(pet[1, 0, :, :, 7], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(resvit.predict(mri, ids=["a", "b", "c"]), pet)
    resvit.settings = ResvitSettings(**(TINY | {"predict_slices": 36}))
    assert_close(resvit.predict(mri), pet, atol=1e-6, rtol=1e-5)


def test_a_new_baseline_is_ready_to_predict():
    """Without dropout, before any training loop has said so."""
    torch.manual_seed(0)
    resvit = Resvit(ResvitSettings(**TINY), VOLUME, CPU)
    resvit.generator.uses_transformers = True
    assert not resvit.generator.training and not resvit.disc.training
    mri = a_batch()["mri"]
    assert torch.equal(resvit.predict(mri), resvit.predict(mri))


def test_labels_and_ids_change_no_step():
    """And prediction sees neither them nor the PET: it takes the MRI alone."""
    ended = []
    for labels in ([0, 1], [1, 1]):
        resvit, batch = baseline(), a_batch()
        batch |= {"label": torch.tensor(labels), "id": [f"{labels}", "other"]}
        resvit.begin_epoch(EPOCHS, EPOCHS)
        torch.manual_seed(2)
        resvit.step(batch, 1)
        ended.append(weights_of(resvit.generator.parameters()))
    assert torch.equal(*ended)
    assert Resvit.modalities == ("mri", "pet")


def test_training_lowers_the_error_of_the_reconstruction_in_both_phases():
    resvit = baseline(width=8, slices_per_volume=12, lr_1=2e-3, lr_2=2e-3, warmup_epochs=0)
    batch = a_batch()
    for epoch in (1, EPOCHS):
        torch.manual_seed(epoch)
        resvit.begin_epoch(epoch, EPOCHS)
        errors = [resvit.step(batch, number)["l1"] for number in range(1, 26)]
        assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_cut_training_goes_on_bit_for_bit(cut):
    """In either phase and between them; what begin_epoch sets is set again."""
    batch = a_batch()

    def train(resvit: Resvit, numbers: range) -> None:
        """Steps with these numbers, two an epoch, each with its own seed."""
        for number in numbers:
            resvit.begin_epoch((number + 1) // 2, EPOCHS)
            torch.manual_seed(number)
            resvit.step(batch, number)
    whole, first, second = baseline(), baseline(), baseline(seed=1)
    train(whole, range(1, 7))
    train(first, range(1, cut + 1))
    for name, part in first.parts.items():
        second.parts[name].load_state_dict(copy.deepcopy(part.state_dict()))
    train(second, range(cut + 1, 7))
    for network in ("generator", "disc"):
        expected, found = whole.parts[network].state_dict(), second.parts[network].state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), network
    for number in (1, 2):
        for which in "gd":
            name = f"opt_{which}_{number}"
            expected, found = (resvit.parts[name].state_dict()["state"] for resvit in (whole, second))
            assert expected.keys() == found.keys() and expected
            for weight in expected:
                assert torch.equal(expected[weight]["exp_avg_sq"], found[weight]["exp_avg_sq"])


def test_the_parts_are_all_networks_and_optimizers():
    resvit = baseline()
    assert resvit.parts.keys() == {"generator", "disc", "opt_g_1", "opt_d_1", "opt_g_2", "opt_d_2"}
    assert resvit.parts["generator"] is resvit.generator and resvit.parts["disc"] is resvit.disc
    updated = {name: sum(map(torch.numel, resvit.parts[f"opt_{name}"].param_groups[0]["params"]))
               for name in ("g_1", "g_2", "d_1", "d_2")}
    generator, disc = resvit.generator, resvit.disc
    late = count(generator.transformer) + count(generator.paths)
    assert updated == {"g_1": count(generator) - late, "g_2": count(generator), "d_1": count(disc),
                       "d_2": count(disc)}
    assert Resvit.name == "resvit"


def test_the_small_settings_train_and_predict_the_demo_volumes():
    torch.manual_seed(0)
    size = (40, 48, 40)
    resvit, batch = Resvit(ResvitSettings(**SMALL), size, CPU), a_batch(size=size)
    resvit.generator.train(), resvit.disc.train()
    resvit.begin_epoch(EPOCHS, EPOCHS)
    losses = resvit.step(batch, 1)
    assert losses.keys() == {"disc", "l1", "adv"} and all(math.isfinite(value) for value in losses.values())
    resvit.generator.eval()
    pet = resvit.predict(batch["mri"][:1])
    assert pet.shape == (1, 1, *size) and pet.min() >= 0 and pet.max() <= 1


def step_by(recompute: bool) -> tuple[dict[str, float], Tensor, Tensor, int]:
    """Losses, gradients and BatchNorm statistics of a step with transformers, by the system of the settings,
    and how many values autograd keeps of a forward pass of the generator."""
    settings = ResvitSettings(**(TINY | {"layers": 4}))
    cfg = Config(**TINY_CONFIG, resvit=settings, recompute=recompute)
    torch.manual_seed(0)
    resvit, batch, kept = build_baseline("resvit", cfg, CPU, None), a_batch(size=cfg.volume_size), []
    resvit.generator.train(), resvit.disc.train()
    resvit.begin_epoch(EPOCHS, EPOCHS)

    def keep(saved: Tensor) -> Tensor:
        """Note the size of what is kept."""
        kept.append(saved.numel())
        return saved
    losses = resvit.step(batch, 1)
    weights = [weight for network in (resvit.generator, resvit.disc) for weight in network.parameters()]
    statistics = [value.flatten() for value in resvit.generator.buffers()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        resvit.generate(batch["mri"][:, :, :, :, 0])
    return losses, torch.cat([weight.grad.flatten() for weight in weights]), torch.cat(statistics), sum(kept)


def test_recomputed_activations_give_the_same_step_with_the_same_dropout_and_keep_less():
    losses, gradients, statistics, kept = step_by(recompute=False)
    same_losses, same_gradients, same_statistics, less = step_by(recompute=True)
    assert losses == same_losses and torch.equal(gradients, same_gradients)
    assert torch.equal(statistics, same_statistics) and gradients.abs().max() > 0
    assert less < kept
