"""TPA-GAN: its networks as published, its losses against other formulas, and what each of its phases
changes."""
import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY as TINY_CONFIG
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from baselines.tpa_gan import (PHASES, TPAGAN, DenseLayer, Generator, ParallelPaths, ResidualUnits,
                               StandardDiscriminator, TaskDiscriminator, adversarial_loss,
                               discriminator_loss, gaussian_weights, magnitude_weights, phase_ends,
                               reconstruction_terms, slice_ssim)
from config import Config, TPAGANSettings
from experiment.networks import build_baseline
from utils import InputError, NotFiniteError, autocast

SIZE, CPU = (16, 24, 16), torch.device("cpu")
TINY = TPAGANSettings(width=1, residual_units=2, disc_channels=(4, 4, 4, 4), task_layers=(1, 1, 1),
                      task_channels=4, task_growth=4, task_bottleneck=2, g_lr=2e-3, d_lr=2e-3, task_lr=1e-2)
EPOCH = dict(zip(PHASES, range(1, 5), strict=True))        # of each phase, in a training of four epochs


def tiny(phase: str = "reconstruction", seed: int = 0, **settings) -> TPAGAN:
    """A tiny TPA-GAN, always with the same weights, at the beginning of a phase. Its PETs are about 0.5 then,
    so that few steps go far."""
    torch.manual_seed(seed)
    model = TPAGAN(replace(TINY, **settings), SIZE, CPU)
    nn.init.constant_(model.g.output.bias, 0.5)
    model.begin_epoch(EPOCH[phase], 4)
    return model


def made_up(seed: int = 0, size: tuple[int, ...] = SIZE) -> dict:
    """A batch of two scans whose PETs are smooth functions of their MRIs."""
    generator = torch.Generator().manual_seed(seed)
    mri = F.interpolate(torch.rand(2, 1, 4, 4, 4, generator=generator), size, mode="trilinear")
    return {"id": ["s01", "s02"], "label": torch.tensor([0, 1]), "mri": mri, "pet": 0.9 - 0.6 * mri ** 2}


def state_of(network: nn.Module) -> Tensor:
    """All weights and statistics of a network in one row, copied."""
    return torch.cat([value.detach().double().flatten() for value in network.state_dict().values()])


def changed_by(model: TPAGAN, batch: dict) -> set[str]:
    """Names of the networks that a step changes."""
    networks = {name: part for name, part in model.parts.items() if isinstance(part, nn.Module)}
    before = {name: state_of(network) for name, network in networks.items()}
    model.step(batch, 1)
    return {name for name, network in networks.items() if not torch.equal(state_of(network), before[name])}


def plain_descent(model: TPAGAN) -> None:
    """Give the model optimizers whose step is the gradient."""
    for name in ("g", "d", "t"):
        setattr(model, f"opt_{name}", torch.optim.SGD(model.parts[name].parameters(), 1.0))


def weights_of(network: nn.Module) -> Tensor:
    """The trained weights of a network in one row, copied."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def gradient_of(loss: Tensor, network: nn.Module) -> Tensor:
    """The gradient of a loss in the weights of a network, in one row."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


# ---------------------------------------------------------------- the networks

def test_the_networks_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        networks = Generator(), StandardDiscriminator(), TaskDiscriminator(), Generator(shared_kernel=False)
    counts = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert counts == [18_341_449, 4_717_825, 244_930, 62_140_105]


@pytest.mark.parametrize("size", [(160, 192, 160), (40, 48, 40)])
def test_the_settings_build_the_published_networks_for_both_sizes(size):
    with torch.device("meta"):
        model = TPAGAN(TPAGANSettings(), size, torch.device("meta"))
    networks = [model.parts[name] for name in ("g", "d", "t")]
    counts = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert counts == [18_341_449, 4_717_825, 244_930]


@pytest.mark.parametrize("size, disc_grid, task_grid", [
    ((160, 192, 160), (5, 6, 5), (10, 12, 10)),
    ((40, 48, 40), (2, 2, 2), (2, 3, 2)),
    ((76, 94, 76), (3, 3, 3), (4, 5, 4)),                  # the published size
    ((15, 17, 16), (1, 1, 1), (1, 1, 1)),                  # no axis has to divide by anything
])
def test_volumes_of_any_size_go_through_all_networks(size, disc_grid, task_grid):
    networks = [network(size).to("meta").eval() for network in
                (Generator, StandardDiscriminator, TaskDiscriminator)]
    grids = {}

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        grids[layer] = output.shape[2:]
    for network in networks[1:]:
        network.layers.register_forward_hook(note)
    x = torch.empty(2, 1, *size, device="meta")
    assert [network(x).shape for network in networks] == [x.shape, (2,), (2, 2)]
    assert [grids[network.layers] for network in networks[1:]] == [disc_grid, task_grid]
    assert [network.last_grid for network in networks[1:]] == [disc_grid, task_grid]


def test_every_level_of_the_generator_has_the_published_grid_and_channels():
    network, shapes = Generator().to("meta"), []

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        shapes.append(tuple(output.shape[1:]))
    for layer in (*network.levels, network.last_level, network.residual, *network.merges):
        layer.register_forward_hook(note)
    network(torch.empty(1, 1, 160, 192, 160, device="meta"))
    assert shapes == [(24, 160, 192, 160), (96, 79, 95, 79), (192, 39, 47, 39), (384, 19, 23, 19),
                      (384, 19, 23, 19), (192, 39, 47, 39), (96, 79, 95, 79), (24, 160, 192, 160)]


@pytest.mark.parametrize("network", [Generator, TaskDiscriminator])
def test_volumes_that_are_too_small_are_refused(network):
    with pytest.raises(InputError, match=r"at least 15 voxels .* the volumes have 40x14x40; take larger"):
        network((40, 14, 40))


def test_a_single_scan_that_fills_one_voxel_of_the_coarsest_grid_is_refused_in_training():
    whole = made_up()
    one = {name: whole[name][:1] for name in whole}
    model = tiny("adversarial", disc_channels=(4, 4, 4, 4, 4))
    assert changed_by(model, whole) == {"g", "d"}
    with pytest.raises(InputError, match="batch of one scan of 16x24x16 voxels"):
        model.step(one, 1)
    assert changed_by(tiny("adversarial"), one) == {"g", "d"}


def test_a_level_has_a_path_a_kernel_size():
    level = ParallelPaths(1, 6, (3, 7, 5))
    assert [[layer.kernel_size[0] for layer in path if isinstance(layer, nn.Conv3d)]
            for path in level.paths] == [[3, 3], [7, 7], [5, 5]]
    x = torch.randn(1, 1, 9, 9, 9)
    first, _, last = level.paths[1]
    by_hand = F.conv3d(F.conv3d(x, first.weight, first.bias, padding=3).clamp(min=0), last.weight, last.bias,
                       padding=3)
    assert_close(level(x)[:, 2:4], by_hand)


@pytest.mark.parametrize("shared", [True, False])
def test_residual_units_add_two_convolutions_each(shared):
    torch.manual_seed(0)
    residual, h = ResidualUnits(3, 2, shared), torch.randn(1, 3, 4, 4, 4)
    before = h.clone()
    convs = list(residual.convs) * (4 if shared else 1)
    expected = h
    for i in (0, 2):
        inner = convs[i](expected.clamp(min=0))
        expected = expected + convs[i + 1](inner.clamp(min=0))
    assert_close(residual(h), expected)
    assert torch.equal(h, before) and len(residual.convs) == (1 if shared else 4)


def test_the_gate_scales_every_voxel_and_channel_and_the_output_is_not_bounded():
    model = Generator(SIZE, width=1).requires_grad_(False)
    mri = made_up()["mri"]
    plain = model(mri) - model.output.bias
    model.gate[2].weight.zero_()
    model.gate[2].bias.fill_(math.log(3))                  # a gate of 3 / 4 everywhere
    three_quarters = model(mri) - model.output.bias
    model.gate[2].bias.fill_(-math.log(3))                 # and of 1 / 4
    assert_close(three_quarters, 3 * (model(mri) - model.output.bias), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(plain, three_quarters)
    model.output.bias.fill_(-7.0)
    assert model(mri).max() < -5


def test_a_dense_layer_keeps_its_input_and_adds_channels():
    layer, h = DenseLayer(5, 3, 2), torch.randn(2, 5, 4, 4, 4)
    before = h.clone()
    out = layer(h)
    assert out.shape[1] == 8 and torch.equal(out[:, :5], before) and out[:, 5:].std() > 0


def test_the_classifier_takes_the_largest_feature_of_the_whole_volume():
    torch.manual_seed(0)
    network = TaskDiscriminator(SIZE, num_classes=3, layers=(1, 1)).eval()
    x = torch.rand(2, 1, *SIZE)
    largest = F.max_pool3d(network.layers(x), network.last_grid)
    assert_close(network(x), largest.flatten(1) @ network.label.weight.T + network.label.bias)
    assert network(x).shape == (2, 3)


def test_the_discriminator_gives_the_mean_of_its_map():
    torch.manual_seed(0)
    network = StandardDiscriminator(SIZE, (4, 4)).eval()
    x = torch.rand(2, 1, *SIZE)
    assert network.layers(x).shape == (2, 1, 4, 6, 4)
    assert_close(network(x), network.layers(x).sum((1, 2, 3, 4)) / 96)


# ---------------------------------------------------------------- losses

def test_ssim_is_that_of_scikit_image_on_each_slice_along_the_last_axis():
    x = made_up()["pet"]
    x_hat = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    of_slices = []
    for one, other in zip(x_hat[:, 0].double().numpy(), x[:, 0].double().numpy(), strict=True):
        for w in range(16):
            _, ssim = structural_similarity(one[:, :, w], other[:, :, w], data_range=1.0, sigma=1.5,
                                            full=True, gaussian_weights=True, use_sample_covariance=False)
            of_slices.append(ssim[5:-5, 5:-5].mean())
    assert slice_ssim(x_hat, x).item() == pytest.approx(np.mean(of_slices), abs=1e-5)
    assert 0.1 < np.mean(of_slices) < 0.95
    assert slice_ssim(x, x).item() == pytest.approx(1, abs=1e-6)


def test_the_gaussian_window_has_its_width_and_sums_to_one():
    weights = gaussian_weights(11, 1.5)
    assert sum(weights) == pytest.approx(1) and weights == weights[::-1]
    assert weights[7] / weights[5] == pytest.approx(math.exp(-2 ** 2 / (2 * 1.5 ** 2)))
    assert gaussian_weights(3, 0.5) != pytest.approx(gaussian_weights(3, 1.0))


def test_the_window_of_ssim_is_that_of_the_settings():
    batch = made_up()
    fake = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    default = tiny().generator_loss(fake, batch["pet"], batch["label"])[1]
    other = tiny(ssim_window=5, ssim_sigma=1.0).generator_loss(fake, batch["pet"], batch["label"])[1]
    assert default["l1"] == other["l1"] and abs(default["dssim"] - other["dssim"]) > 1e-3
    assert_close(other["dssim"], 1 - slice_ssim(fake, batch["pet"], 5, 1.0))


def test_reconstruction_terms_are_l1_mse_and_one_minus_ssim():
    x = torch.full((1, 1, 12, 12, 2), 0.5, dtype=torch.float64)
    terms = reconstruction_terms(x + 0.2, x)
    luminance = (2 * 0.7 * 0.5 + 1e-4) / (0.7 ** 2 + 0.5 ** 2 + 1e-4)            # of SSIM, without structure
    expected = {"l1": 0.2, "mse": 0.04, "dssim": 1 - luminance}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-9)


def test_weights_give_all_terms_the_largest_ones_order_of_magnitude():
    terms = torch.tensor([0.2, 0.0031, 0.00007], requires_grad=True)
    weights = magnitude_weights(terms)
    assert_close(weights, torch.tensor([1.0, 10.0, 1000.0]))
    assert not weights.requires_grad
    assert_close(magnitude_weights(torch.tensor([0.05, 0.3])), torch.tensor([1.0, 1.0]))
    assert_close(magnitude_weights(torch.tensor([0.0, 0.3]), least=1e-3), torch.tensor([100.0, 1.0]))


def test_adversarial_losses_are_sums_of_cross_entropies():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 0.3])

    def probability(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))
    assert adversarial_loss(fake).item() == pytest.approx(
        -(math.log(probability(-1.0)) + math.log(probability(0.3))) / 2)
    of_real = -(math.log(probability(2.0)) + math.log(probability(0.5))) / 2
    of_fake = -(math.log(1 - probability(-1.0)) + math.log(1 - probability(0.3))) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(of_real + of_fake)


@pytest.mark.parametrize("phase, weights", [("reconstruction", {}), ("adversarial", {"adv_weight": 0.5}),
                                            ("task", {"task_weight": 3.0})])
def test_the_generators_loss_weighs_its_terms(phase, weights):
    model, batch = tiny(phase, **weights), made_up()
    fake = (batch["pet"] + 0.05).requires_grad_()
    loss, terms = model.generator_loss(fake, batch["pet"], batch["label"])
    sizes = {name: terms[name].item() for name in ("l1", "mse", "dssim")}
    expected = sum(10 ** math.floor(math.log10(max(sizes.values()) / size)) * size for size in sizes.values())
    with torch.no_grad():
        if phase == "adversarial":
            expected += 0.5 * F.softplus(-model.d(fake)).mean().item()
        elif phase == "task":
            odds = model.t(fake).double().softmax(dim=1)
            expected += 3 * -(odds[0, 0].log() + odds[1, 1].log()).item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    further = {"reconstruction": [], "adversarial": ["adv"], "task": ["task"]}[phase]
    assert list(terms) == ["l1", "mse", "dssim", *further]


# ---------------------------------------------------------------- phases

def test_phases_take_their_shares_of_the_epochs():
    model, phases = tiny(), []
    for epoch in range(1, 341):
        model.begin_epoch(epoch, 340)
        phases.append(model.phase)
    assert [phases.count(phase) for phase in PHASES] == [41, 39, 42, 218]
    assert phases == sorted(phases, key=PHASES.index)


@pytest.mark.parametrize("epochs, counts", [(1, [0, 1, 0, 0]), (2, [1, 1, 0, 0]), (3, [1, 1, 1, 0]),
                                            (4, [1, 1, 1, 1]), (16, [2, 2, 2, 10])])
def test_short_trainings_leave_out_the_last_phases(epochs, counts):
    model, phases = tiny(), []
    for epoch in range(1, epochs + 1):
        model.begin_epoch(epoch, epochs)
        phases.append(model.phase)
    assert [phases.count(phase) for phase in PHASES] == counts


def test_shares_of_phases_are_settings():
    settings = replace(TINY, task_share=0.5, rec_share=0.2, adv_share=0.4)
    assert phase_ends(settings, 20) == (10, 12, 16)


def test_only_the_classifiers_learning_rate_falls():
    """To a tenth after 21 and 31 of 40 epochs, as published."""
    model = TPAGAN(replace(TPAGANSettings(width=1), task_share=0.4), SIZE, CPU)
    rates = []
    for epoch in range(1, 101):
        model.begin_epoch(epoch, 100)
        rates.append([opt.param_groups[0]["lr"] for opt in (model.opt_g, model.opt_d, model.opt_t)])
    rates = np.array(rates)
    assert (rates[:, 0] == 1e-4).all() and (rates[:, 1] == 4e-4).all()
    assert rates[:40, 2] == pytest.approx([1e-3] * 21 + [1e-4] * 10 + [1e-5] * 9)
    model.begin_epoch(1, 3)                                # a single epoch of T has the first rate
    assert model.opt_t.param_groups[0]["lr"] == 1e-3
    assert [opt.param_groups[0]["weight_decay"] for opt in (model.opt_g, model.opt_d, model.opt_t)] == [
        0, 0, 1e-4]


@pytest.mark.parametrize("phase, networks, terms", [
    ("classifier", {"t"}, ["classifier"]),
    ("reconstruction", {"g"}, ["l1", "mse", "dssim"]),
    ("adversarial", {"g", "d"}, ["l1", "mse", "dssim", "adv", "disc"]),
    ("task", {"g"}, ["l1", "mse", "dssim", "task"]),
])
def test_a_phase_changes_its_own_networks_alone(phase, networks, terms):
    """Their weights and the statistics of their batch norms."""
    batch = made_up()
    assert changed_by(tiny(phase), batch) == networks
    assert list(tiny(phase).step(batch, 1)) == terms


# ---------------------------------------------------------------- updates

def test_the_frozen_classifier_gets_no_gradient_and_judges_in_eval_mode():
    model, batch = tiny("classifier"), made_up()
    model.step(batch, 1)
    for network in (model.g, model.d, model.t):
        network.train()                                    # as the training loop does before an epoch
    model.begin_epoch(4, 4)
    assert not any(module.training for module in model.t.modules())
    model.opt_t.zero_grad()
    model.step(batch, 2)
    assert all(weight.grad is None and not weight.requires_grad for weight in model.t.parameters())
    fake = torch.rand(2, 1, *SIZE)
    alone = [model.t(fake[i:i + 1]) for i in range(2)]     # the other scan of a batch does not matter
    assert_close(model.t(fake), torch.cat(alone))
    model.begin_epoch(1, 4)
    assert model.t.training and all(weight.requires_grad for weight in model.t.parameters())


def test_the_label_reaches_the_generator_in_the_last_phase_alone():
    batch = made_up()
    other = batch | {"label": 1 - batch["label"]}
    for phase in PHASES[1:]:
        models = tiny(phase), tiny(phase)
        models[0].step(batch, 1)
        models[1].step(other, 1)
        same = torch.equal(weights_of(models[0].g), weights_of(models[1].g))
        assert same == (phase != "task"), phase


def weighed(fake: Tensor, pet: Tensor) -> Tensor:
    """The reconstruction loss, worked out in numbers of Python."""
    terms = [(fake - pet).abs().mean(), ((fake - pet) ** 2).mean(), 1 - slice_ssim(fake, pet)]
    largest = max(term.item() for term in terms)
    return sum(10 ** math.floor(math.log10(largest / term.item())) * term for term in terms)


def test_the_adversarial_step_is_one_of_the_generator_and_then_one_of_the_discriminator_on_the_same_fake():
    """Both along gradients that are worked out here, on copies."""
    batch, model, other = made_up(), tiny("adversarial"), tiny("adversarial")
    plain_descent(model)
    losses = model.step(batch, 1)

    fake = other.g(batch["mri"])
    loss = weighed(fake, batch["pet"]) + F.softplus(-other.d(fake)).mean()
    assert_close(weights_of(model.g), weights_of(other.g) - gradient_of(loss, other.g), atol=1e-5, rtol=1e-4)

    loss = (F.softplus(-other.d(batch["pet"])) + F.softplus(other.d(fake.detach()))).mean()
    assert losses["disc"] == pytest.approx(loss.item(), rel=1e-5)
    assert_close(weights_of(model.d), weights_of(other.d) - gradient_of(loss, other.d), atol=1e-5, rtol=1e-4)


def test_the_task_step_follows_the_reconstruction_and_the_frozen_classifiers_verdict():
    batch, model, other = made_up(), tiny("task"), tiny("task")
    plain_descent(model)
    losses = model.step(batch, 1)
    fake = other.g(batch["mri"])
    task = -other.t.eval()(fake).log_softmax(dim=1)[[0, 1], batch["label"]].mean()
    assert losses["task"] == pytest.approx(task.item(), rel=1e-5)
    loss = weighed(fake, batch["pet"]) + task
    assert_close(weights_of(model.g), weights_of(other.g) - gradient_of(loss, other.g), atol=1e-5, rtol=1e-4)


def test_the_classifier_learns_the_label_from_real_pets():
    model, batch = tiny("classifier"), made_up()
    batch["pet"] = 0.3 + 0.4 * batch["label"].float().view(2, 1, 1, 1, 1) + 0.1 * batch["pet"]
    learned = [model.step(batch, i)["classifier"] for i in range(1, 61)]
    assert learned[-1] < 0.1 * learned[0]
    model.begin_epoch(4, 4)
    assert F.cross_entropy(model.t(batch["pet"]), batch["label"]) < 0.1 * learned[0]
    assert F.cross_entropy(model.t(batch["pet"]), 1 - batch["label"]) > learned[0]


@pytest.mark.parametrize("phase", PHASES[1:])
def test_steps_on_one_batch_lower_the_reconstruction_error(phase):
    model, batch = tiny(phase), made_up()
    losses = [model.step(batch, i) for i in range(1, 16)]
    assert losses[-1]["l1"] < 0.6 * losses[0]["l1"] and losses[-1]["mse"] < 0.4 * losses[0]["mse"]


def test_steps_in_bfloat16_have_the_losses_of_those_in_float32():
    batch, losses = made_up(), {}
    for dtype in (torch.float32, torch.bfloat16):
        def cast(dtype: torch.dtype = dtype) -> torch.autocast:
            return autocast(CPU, dtype)
        for phase in PHASES:
            model = tiny(phase)
            losses[phase, dtype] = model.step(batch, 1, cast)
        assert model.predict(batch["mri"], cast).dtype == torch.float32
        assert all(weight.dtype == torch.float32 for weight in model.g.parameters())
    for phase in PHASES:
        assert losses[phase, torch.bfloat16] == pytest.approx(losses[phase, torch.float32], rel=0.05), phase
        assert losses[phase, torch.bfloat16] != losses[phase, torch.float32], phase


def test_volumes_that_are_not_finite_stop_a_step_with_the_weights_as_they_were():
    model, batch = tiny("adversarial"), made_up()
    before = weights_of(model.g), weights_of(model.d)
    batch["pet"] = batch["pet"].clone()
    batch["pet"][1, 0, 3, 3, 3] = float("nan")
    with pytest.raises(NotFiniteError, match="'l1': nan"):
        model.step(batch, 1)
    assert torch.equal(weights_of(model.g), before[0]) and torch.equal(weights_of(model.d), before[1])


# ---------------------------------------------------------------- prediction

def test_predictions_are_pets_in_range_that_depend_on_the_mri_alone():
    model, batch = tiny(), made_up()
    with torch.no_grad():
        model.g.output.bias.zero_()
        raw = model.g(batch["mri"])
        model.g.output.weight *= 2 / raw.std()             # some have to be clamped, at both ends
        model.g.output.bias += 0.5 - 2 * raw.mean() / raw.std()
        raw = model.g(batch["mri"])
    pet = model.predict(batch["mri"])
    assert pet.shape == batch["pet"].shape and pet.dtype == torch.float32 and not pet.requires_grad
    assert raw.max() > 1 and raw.min() < 0 and pet.max() == 1 and pet.min() == 0
    assert_close(pet, raw.clip(0, 1))
    torch.manual_seed(5)
    assert torch.equal(model.predict(batch["mri"], ids=["s07", "s08"]), pet)
    for network in (model.g, model.d, model.t):
        network.eval()
    assert torch.equal(model.predict(batch["mri"]), pet)
    one_by_one = torch.cat([model.predict(batch["mri"][i:i + 1]) for i in range(2)])
    assert_close(one_by_one, pet, atol=1e-5, rtol=1e-5)
    assert (model.predict(1 - batch["mri"]) - pet).abs().max() > 1e-3


def test_it_says_what_it_is_and_what_its_training_needs():
    model = tiny()
    assert model.name == "tpa_gan"
    assert model.modalities == ("mri", "pet")
    assert set(model.parts) == {"g", "d", "t", "opt_g", "opt_d", "opt_t"}


# ---------------------------------------------------------------- interruption

def train_epoch(model: TPAGAN, epoch: int) -> list[dict]:
    """Take an epoch of five, two steps with random crops of its own, as the training loop does; its
    losses."""
    for network in (model.g, model.d, model.t):
        if any(weight.requires_grad for weight in network.parameters()):
            network.train()
    model.begin_epoch(epoch, 5)
    torch.manual_seed(epoch)
    batch, losses = made_up(), []
    for number in (2 * epoch - 1, 2 * epoch):
        losses.append(model.step(batch | {"mri": batch["mri"] + 0.1 * torch.rand(2, 1, *SIZE)}, number))
    for network in (model.g, model.d, model.t):
        network.eval()
    return losses


@pytest.fixture(scope="module")
def uncut() -> tuple[list[list[dict]], list[dict]]:
    """The losses of each of five epochs, and a copy of all parts after each."""
    torch.set_num_threads(1)
    model, losses, states = tiny(), [], []
    for epoch in range(1, 6):
        losses.append(train_epoch(model, epoch))
        states.append(copy.deepcopy({name: part.state_dict() for name, part in model.parts.items()}))
    return losses, states


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_training_that_was_cut_and_restored_equals_an_uncut_one(uncut, cut, tmp_path):
    losses, states = uncut
    torch.save(states[cut - 1], tmp_path / "saved")
    model, saved = tiny(seed=9), torch.load(tmp_path / "saved", weights_only=True)
    for name, part in model.parts.items():
        part.load_state_dict(saved[name])
    assert [train_epoch(model, epoch) for epoch in range(cut + 1, 6)] == losses[cut:]
    for name, part in model.parts.items():
        pairs = zip(tree_leaves(part.state_dict()), tree_leaves(states[-1][name]), strict=True)
        for found, expected in pairs:
            assert torch.equal(found, expected) if torch.is_tensor(found) else found == expected, name


# ---------------------------------------------------------------- memory

def step_by(recompute: bool) -> tuple[dict[str, float], Tensor, int]:
    """Losses and gradients of a step of the adversarial phase, by the system of the settings, and how many
    values autograd keeps of a forward pass of G."""
    cfg = Config(**TINY_CONFIG, tpa_gan=TINY, recompute=recompute)
    torch.manual_seed(0)
    model, batch, kept = build_baseline("tpa_gan", cfg, CPU, None), made_up(), []

    def keep(saved: Tensor) -> Tensor:
        """Note the size of what is kept."""
        kept.append(saved.numel())
        return saved
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        model.g(batch["mri"])
    model.begin_epoch(EPOCH["adversarial"], 4)
    losses = model.step(batch, 1)
    weights = [*model.g.parameters(), *model.d.parameters()]
    return losses, torch.cat([weight.grad.flatten() for weight in weights]), sum(kept)


def test_recomputed_activations_give_the_same_step_and_keep_less():
    losses, gradients, kept = step_by(recompute=False)
    same_losses, same_gradients, less = step_by(recompute=True)
    assert losses == same_losses and torch.equal(gradients, same_gradients)
    assert {"adv", "disc"} <= losses.keys() and gradients.abs().max() > 0
    assert less < 0.7 * kept
