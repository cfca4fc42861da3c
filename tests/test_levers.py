"""The settings that may bring the diagnosis back: what each changes, and that nothing else changes."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import TINY
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close
from torch.utils.data import DataLoader

from baselines.controls import mean_and_deviation
from config import Config
from diffusion import Diffusion, Draws, LatentScale, Synthesizer
from experiment.denoising import sampling_from
from experiment.experiment import Experiment
from experiment.networks import Networks
from labels import soft_labels as labels
from labels.linear import folds_of, label_of_draws, radical_inverse
from labels.ridge import NetworkClassifier, RidgeClassifier, calibrate, features_of
from model import AAE, UNet
from runtime.training import ImageLoss, Objective, Sample, set_rate
from utils import InputError


def unet(**settings) -> UNet:
    torch.manual_seed(0)
    return UNet(base_channels=8, channel_mults=(1, 2), norm_groups=4, downscale=2, **settings)


# ---------------------------------------------------------------- the diffusion

@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_ends_in_pure_noise_and_begins_as_before(prediction):
    plain, diffusion = Diffusion(prediction=prediction), Diffusion(prediction=prediction, zero_terminal_snr=True)
    assert diffusion.alpha_bar[-1] == 0
    assert diffusion.alpha_bar[0] == pytest.approx(plain.alpha_bar[0].item(), rel=1e-6)
    assert (diffusion.alpha_bar.diff() < 0).all()
    assert_close(diffusion.alpha_bar[1:] / diffusion.alpha_bar[:-1], 1 - diffusion.beta[1:], atol=1e-5, rtol=1e-4)
    z_0, eps, last = torch.randn(2, 1, 3, 3, 3), torch.randn(2, 1, 3, 3, 3), torch.tensor([999, 999])
    assert_close(diffusion.q_sample(z_0, last, eps), eps)                                    # nothing of z_0 is left to read

    def knows(z_t, t):                                     # a denoiser that knows z_0 says so at pure noise too
        eps = (z_t - diffusion.alpha_bar[t].sqrt().view(-1, 1, 1, 1, 1) * z_0) / (1 - diffusion.alpha_bar[t]).sqrt().view(-1, 1, 1, 1, 1)
        return diffusion.target(z_0, t, eps)
    assert_close(diffusion.ddim(knows, eps, 5), z_0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weighs_the_error_of_z_0_alike_whatever_is_predicted(prediction):
    diffusion, t = Diffusion(prediction=prediction), torch.tensor([3, 100, 400, 900])
    z_0, eps = torch.randn(4, 1, 3, 3, 3), torch.randn(4, 1, 3, 3, 3)
    z_t = diffusion.q_sample(z_0, t, eps)
    output = diffusion.target(z_0, t, eps) + 0.01 * torch.randn_like(z_0)
    estimate, _ = diffusion.z_0_and_eps(output, z_t, t)
    weighted = diffusion.loss_weight(t, 5.0) * (output - diffusion.target(z_0, t, eps)).square().flatten(1).mean(1)
    snr = diffusion.alpha_bar[t] / (1 - diffusion.alpha_bar[t])
    assert snr[0] > 5 > snr[2]                             # both sides of gamma are tried
    assert_close(weighted, snr.clamp(max=5) * (estimate - z_0).square().flatten(1).mean(1), rtol=2e-2, atol=1e-7)
    assert_close(diffusion.loss_weight(t, 0.0), torch.ones(4))


@pytest.mark.parametrize(("shift", "above_half"), [(1.0, 0.5), (3.0, 0.75), (0.5, 1 / 3)])
def test_shifted_times_lie_above_the_middle_as_often_as_the_formula_says(shift, above_half):
    """t > T / 2 where u > 1 / (1 + s), hence with probability s / (1 + s)."""
    torch.manual_seed(0)
    t = Diffusion().draw_times(40000, shift)
    assert (t.min(), t.max()) == (pytest.approx(1, abs=3), pytest.approx(999, abs=3))
    assert t.min() >= 1 and t.max() <= 999 and t.dtype == torch.int64
    assert (t > 500).float().mean().item() == pytest.approx(above_half, abs=0.01)


def test_a_cosine_of_learning_rates_falls_from_all_to_almost_nothing():
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    rates = []
    for epoch in range(1, 11):
        set_rate([opt], 0.4, epoch, 10, decay=True)
        rates.append(opt.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.4) and rates[5] == pytest.approx(0.2) and 0 < rates[-1] < 0.011
    assert np.all(np.diff(rates) < 0)
    set_rate([opt], 0.4, 10, 10, decay=False)
    assert opt.param_groups[0]["lr"] == 0.4


def test_without_its_norms_the_autoencoder_scales_with_the_uptake():
    """Convolutions without biases and ReLUs alone are homogeneous: twice the uptake, twice the reconstruction. GroupNorms are not."""
    x, error = torch.rand(1, 1, 8, 8, 8), {}
    for block_norm in (False, True):
        torch.manual_seed(0)
        aae = AAE((8, 16), 2, output_norm=False, norm_groups=8, block_norm=block_norm)
        for name, weight in aae.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
        error[block_norm] = ((aae(2 * x) - 2 * aae(x)).norm() / aae(2 * x).norm()).item()
    assert error[False] < 1e-5 and error[True] > 0.05


@pytest.mark.parametrize(("settings", "shared"), [({}, True), ({"latent_mean": "voxel"}, False)])
def test_scaled_latents_have_mean_0_and_deviation_1_over_the_training_list(settings, shared):
    """With a mean a voxel nothing is left that all subjects share; the way back gives what the decoder takes."""
    torch.manual_seed(0)
    common, scans = 5 * torch.randn(2, 3, 3, 3), [SimpleNamespace(id=str(i)) for i in range(6)]
    latents = {scan.id: common + 0.1 * torch.randn(2, 3, 3, 3) for scan in scans} | {"validation": torch.zeros(2, 3, 3, 3)}
    scale = Experiment.latent_scale(SimpleNamespace(cfg=Config(**TINY | settings), cohort=SimpleNamespace(train=scans)), latents)
    scaled = torch.stack([scale.apply(latents[scan.id]) for scan in scans])
    assert scaled.mean().item() == pytest.approx(0, abs=1e-4)
    assert scaled.std(correction=0).item() == pytest.approx(1, rel=1e-4)
    assert (scaled.mean(dim=0).abs().max() > 1) == shared
    assert_close(scale.undo(scaled[0]), latents["0"])
    assert_close(LatentScale.of(scale.metadata()).undo(scaled[0]), latents["0"])


@pytest.mark.parametrize(("settings", "with_pet"), [({"image_loss": 0.0}, False), ({"image_loss": 1.0}, True)])
def test_the_denoiser_is_trained_on_scaled_latents_and_on_the_weights_of_its_own_subjects(settings, with_pet):
    torch.manual_seed(0)
    scans = [SimpleNamespace(id=str(i)) for i in range(4)]
    exp = SimpleNamespace(cfg=Config(**TINY | settings), cohort=SimpleNamespace(train=scans[:3], validation=scans[3:]), device="cpu")
    latents, scale = {scan.id: torch.randn(1, 2, 2, 2) for scan in scans}, LatentScale(torch.tensor(0.3), 2.0)
    weights = torch.arange(8.0).view(4, 2)
    batch = {"id": ["3", "1"], "mri": torch.rand(2, 1, 4, 4, 4), "pet": torch.rand(2, 1, 4, 4, 4)}
    sample = sampling_from(exp, latents, scale.metadata() | {"label_weights": weights})(batch)
    assert_close(sample.z_0, torch.stack([(latents[name] - 0.3) / 2 for name in ("3", "1")]))
    assert_close(sample.label, weights[[3, 1]])
    assert_close(sample.mri, batch["mri"])
    assert sample.pet is batch["pet"] if with_pet else sample.pet is None


# ---------------------------------------------------------------- losses on decoded images

def image_loss(**changes) -> ImageLoss:
    cortex = torch.zeros(4, 4, 4, dtype=torch.bool)
    cortex[:2] = True
    settings = {"decode": lambda z_0: z_0.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4), "weight": 1.0,
                "cortex_weight": 0.0, "cortex": cortex, "scale": 0.5, "over_time": "even"}
    return ImageLoss(**settings | changes)


def test_image_loss_is_the_error_in_units_of_the_deviation():
    z_0, alpha_bar = torch.rand(2, 1, 2, 2, 2), torch.tensor([0.9, 0.1])
    loss = image_loss()
    assert loss(z_0, loss.decode(z_0), alpha_bar) == 0
    assert loss(z_0, loss.decode(z_0) + 0.1, alpha_bar).item() == pytest.approx(0.2, rel=1e-5)
    off = loss.decode(z_0)
    off[1] += 0.1                                          # the noisy one alone
    assert image_loss(over_time="signal")(z_0, off, alpha_bar).item() == pytest.approx(0.5 * 0.2 * 0.1, rel=1e-4)
    outside = loss.decode(z_0)
    outside[:, :, 2:] += 0.1
    assert image_loss(weight=0.0, cortex_weight=3.0)(z_0, outside, alpha_bar) == 0
    inside = loss.decode(z_0)
    inside[:, :, :2] += 0.1
    assert image_loss(weight=0.0, cortex_weight=3.0)(z_0, inside, alpha_bar).item() == pytest.approx(0.6, rel=1e-5)


def test_the_objective_adds_the_image_loss_of_its_estimate_and_its_gradient_reaches_the_denoiser():
    network, diffusion = unet(), Diffusion(prediction="v")
    sample = Sample(torch.randn(2, 1, 2, 2, 2), torch.rand(2, 1, 4, 4, 4), torch.eye(2), torch.rand(2, 1, 4, 4, 4))

    def losses(image):
        torch.manual_seed(3)
        return Objective(diffusion, 0.5, image=image).losses(network, sample)
    plain, with_image = losses(None), losses(image_loss())
    assert plain.keys() == {"loss", "mse"} and plain["loss"] == plain["mse"] == with_image["mse"]
    assert_close(with_image["loss"], with_image["mse"] + with_image["image"])
    gradients = torch.autograd.grad(with_image["image"], network.out[-1].weight)[0]
    assert gradients.abs().max() > 0


# ---------------------------------------------------------------- the MRI at every level

def test_multiscale_features_enter_at_every_level_and_leave_the_rest_as_it_was():
    plain, network = unet(), unet(multiscale=True)
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
    assert_close(network(z_t, mri, t), plain(z_t, mri, t))


def test_deviations_are_what_a_subject_has_beyond_the_training_list_and_every_network_sees_them():
    torch.manual_seed(0)
    mris = torch.rand(5, 1, 8, 12, 8) * torch.linspace(0, 1, 8)
    network = unet(deviations_of=(8, 12, 8), multiscale=True)
    network.look.learn(*mean_and_deviation(DataLoader([{"mri": mri} for mri in mris], batch_size=2)))
    seen = network.look(mris)
    assert_close(seen[:, :1], mris)
    assert_close(seen[:, 1:], (mris - mris.mean(0)) / (mris.std(0, correction=0) + 0.05))
    assert network.look(mris + 100)[:, 1:].max() == 4
    features = network.condition(mris)
    network.look.mean += 0.5                               # the same MRIs, of another cohort
    for before, after in zip(features, network.condition(mris), strict=True):
        assert (before - after).abs().max() > 1e-3
    regression = unet(latent_channels=1, deviations_of=(8, 12, 8), regression=True)
    assert [one.shape[1] for one in regression.condition(mris)] == [2]
    assert regression(mris[:, :0], mris, torch.zeros(5).long()).shape == mris.shape


# ---------------------------------------------------------------- labels

P = torch.tensor([[0.7, 0.3], [0.1, 0.9]])


def test_labels_of_draws():
    weights, counts = label_of_draws(P, range(3), "mixed")
    assert_close(weights, P[:, None].expand(2, 3, 2))
    assert_close(counts, torch.ones(2, 3))
    weights, counts = label_of_draws(P, range(3), "class")
    assert weights.argmax(2).tolist() == [[0, 0, 0], [1, 1, 1]] and weights.sum(2).eq(1).all() and counts.eq(1).all()
    weights, counts = label_of_draws(P, range(1, 5), "weighted")
    assert weights.argmax(2).tolist() == [[1, 0, 1, 0]] * 2
    assert_close(counts, torch.tensor([[0.3, 0.7, 0.3, 0.7], [0.9, 0.1, 0.9, 0.1]]))


@pytest.mark.parametrize("m", [4, 10, 64])
def test_draws_are_split_in_proportion_and_further_ones_leave_the_first_as_they_are(m):
    torch.manual_seed(0)
    p = torch.rand(50, 3).softmax(1)
    weights, counts = label_of_draws(p, range(m), "split")
    assert counts.eq(1).all() and weights.sum(2).eq(1).all()
    assert (weights.mean(1) - p).abs().max() < 2.5 / m     # van der Corput: a share is met up to about log2(m) / m, and here closer
    assert_close(label_of_draws(p, range(m - 2, m), "split")[0], weights[:, -2:])


def test_radical_inverses_fill_the_unit_interval():
    assert [radical_inverse(k) for k in range(1, 8)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]


def test_weighted_draws_have_their_mean_and_deviation():
    z_0 = torch.randn(2, 4, 1, 2, 2, 2)
    even, weights = Draws(z_0, torch.full((2, 4), 3.0)), torch.tensor([[1.0, 3, 0, 0], [1, 1, 2, 2]])
    assert_close(even.mean(), z_0.mean(1))
    assert_close(even.deviation(z_0), z_0.std(1))
    share = (weights / weights.sum(1, keepdim=True)).view(2, 4, 1, 1, 1, 1)
    drawn = Draws(z_0, weights)
    assert_close(drawn.mean(), (share * z_0).sum(1))
    assert_close(drawn.mean()[0], 0.25 * z_0[0, 0] + 0.75 * z_0[0, 1])
    assert Draws(z_0 * 0 + 5, weights).deviation(z_0 * 0 + 5).abs().max() < 1e-3


def noise(seed: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(1, 4, 4, 4, generator=generator)


def test_guidance_stretches_what_the_label_changes():
    network, diffusion, mri = unet().eval(), Diffusion(prediction="v"), torch.rand(1, 1, 8, 8, 8)
    label = torch.tensor([[[0.0, 1.0]]])

    def draw(scale, label=label):
        return Synthesizer(nn.Identity(), network, diffusion, guidance=scale).draw(mri, label, [[noise(1)]], "ddim", 1)
    without, with_label = draw(1.0, None), draw(1.0)
    assert (with_label - without).abs().max() > 1e-4
    assert_close(draw(3.0), without + 3 * (with_label - without), atol=1e-5, rtol=1e-4)
    assert_close(draw(3.0, None), without)                 # nothing to be guided by


def test_folds_leave_every_subject_out_once_with_every_label_in_each():
    y = np.array([0] * 12 + [1] * 7)
    folds = list(folds_of(y, 3))
    assert sorted(np.concatenate([left_out for _, left_out in folds])) == list(range(19))
    assert all(set(y[rows]) == {0, 1} == set(y[left_out]) and not set(rows) & set(left_out) for rows, left_out in folds)
    with pytest.raises(InputError, match="holds one subject with some label"):
        list(folds_of(np.array([0, 0, 1]), 0))


def planted(n: int, strength: float, seed: int):
    """MRIs [n, 1, 12, 12, 12] in one corner of which the label shows, and the labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    mri = torch.from_numpy(rng.normal(0.5, 0.1, (n, 1, 12, 12, 12)).astype(np.float32))
    mri[:, :, :6, :6, :6] += strength * torch.from_numpy(y).view(-1, 1, 1, 1, 1)
    mri[:, :, 6:, :6, :6] += strength * torch.from_numpy(y).view(-1, 1, 1, 1, 1)             # on both sides, as atrophy is
    return mri, y


def test_the_label_network_finds_a_planted_label_and_knows_its_doubts():
    mri, y = planted(80, 0.08, 0)
    classifier, left_out = NetworkClassifier.cross_fit(mri, y, 1, 0, torch.device("cpu"))
    assert roc_auc_score(y, left_out[:, 1]) > 0.8
    assert_close(left_out.sum(1), torch.ones(80))
    new, truth = planted(60, 0.08, 1)
    found = classifier.probabilities(new)
    assert roc_auc_score(truth, found[:, 1]) > 0.85
    again = NetworkClassifier.from_state(classifier.state(), torch.device("cpu"))
    assert_close(again.probabilities(new), found)
    noise_only, y = planted(80, 0.0, 2)
    classifier, left_out = NetworkClassifier.cross_fit(noise_only, y, 1, 0, torch.device("cpu"))
    brier = ((left_out[:, 1].numpy() - y) ** 2).mean()
    assert brier < 0.27                                    # it does not claim what it cannot know: 0.25 is the base rate's


def test_ridge_regression_finds_a_planted_label_and_its_state_gives_the_same_probabilities():
    mri, y = planted(80, 0.03, 0)
    brain = torch.ones(12, 12, 12)
    brain[:, :, 9:] = 0
    classifier, left_out = RidgeClassifier.cross_fit(mri, y, np.eye(2)[y], brain, 1, 0)
    new, truth = planted(200, 0.03, 1)
    found = classifier.probabilities(new)
    assert roc_auc_score(truth, found[:, 1]) > 0.85 and roc_auc_score(y, left_out[:, 1]) > 0.75
    assert_close(found.sum(1), torch.ones(200))
    assert ((found[:, 1].numpy() - truth) ** 2).mean() < 0.18                                # probabilities, not only an order
    assert_close(RidgeClassifier.from_state(classifier.state()).probabilities(new), found, rtol=0, atol=0)
    assert_close(classifier.probabilities(new[7:8]), found[7:8], rtol=0, atol=0)             # alike in any batch
    assert_close(classifier.probabilities(new.flip(2)), found, atol=1e-5, rtol=1e-4)         # both sides are one
    outside = new.clone()
    outside[..., 9:] = 100.0
    assert_close(classifier.probabilities(outside), found, rtol=0, atol=0)


def test_what_ridge_regression_sees_has_no_gain_and_little_shading_of_the_scanner_but_the_width_of_a_sulcus():
    x, y, z = torch.meshgrid(*[torch.arange(24.0) - 11.5] * 3, indexing="ij")
    brain = x ** 2 + y ** 2 + z ** 2 < 121

    def head(sulcus: int) -> torch.Tensor:
        mri = 0.6 * brain.float()
        mri[:, 12 - sulcus:12 + sulcus] *= 0.3
        return mri[None, None]

    def distance(other: torch.Tensor) -> float:
        return (features_of(other, brain) - features_of(head(1), brain)).abs().mean().item()

    atrophy = distance(head(2))
    assert atrophy > 0.05
    assert distance(1.3 * head(1)) < 1e-6
    assert distance((1 + 0.3 * z / 11) * head(1)) < 0.3 * atrophy                            # 30 % more on top than in the middle
    assert distance(head(1) + (~brain) * 5) < 1e-6


def test_ridge_regression_predicts_how_much_and_stays_within_what_training_has_seen():
    rng = np.random.default_rng(0)
    mri, y = planted(120, 0.0, 0)
    load = y + 0.3 * rng.standard_normal(120)
    mri[:, :, :, :6, :6] += 0.03 * torch.from_numpy(load).float().view(-1, 1, 1, 1, 1)
    weights = np.stack([1 - load, load], axis=1)
    classifier, left_out = RidgeClassifier.cross_fit(mri, y, weights, torch.ones(12, 12, 12), 1, 0)
    found = classifier.weights(mri)
    assert np.corrcoef(found[:, 1], load)[0, 1] > 0.8
    assert_close(found.sum(dim=1), torch.ones(120))
    assert roc_auc_score(y, left_out[:, 1]) > 0.75 and ((left_out[:, 1].numpy() - y) ** 2).mean() < 0.2
    far = classifier.weights(mri + 100 * (mri - mri.mean(0)))
    assert far[:, 1].max().item() == pytest.approx(weights.max()) and far[:, 1].min().item() == pytest.approx(weights.min())


def test_what_a_subject_gets_in_cross_fitting_does_not_depend_on_its_own_label():
    mri, y = planted(40, 0.0, 3)
    _, left_out = RidgeClassifier.cross_fit(mri, y, np.eye(2)[y], torch.ones(12, 12, 12), 1, 0)
    assert abs(roc_auc_score(y, left_out[:, 1]) - 0.5) < 0.3                                 # a fit that saw them would reach 1
    three = np.arange(40) % 3
    classifier, left_out = RidgeClassifier.cross_fit(mri, three, np.eye(3)[three], torch.ones(12, 12, 12), 1, 0)
    assert left_out.shape == (40, 3) and classifier.probabilities(mri).shape == (40, 3)


def test_calibration_brings_logits_to_the_frequencies():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-(0.3 * margin + 0.5)))).astype(int)
    scale, shift = calibrate(torch.stack([torch.zeros(4000), torch.from_numpy(margin).float()], 1), y)
    assert scale.tolist() == [pytest.approx(0.3, abs=0.05)] * 2 and shift[1].item() == pytest.approx(0.5, abs=0.1)
    logits = torch.from_numpy(rng.normal(0, 1, (4000, 3))).float()
    y = torch.distributions.Categorical(logits=0.5 * logits).sample().numpy()
    assert calibrate(logits, y)[0].tolist() == [pytest.approx(0.5, abs=0.1)] * 3


def test_shuffled_labels_are_the_same_labels_at_other_subjects():
    scans = [SimpleNamespace(label=i % 2) for i in range(40)]

    def of(**settings):
        return labels.training_labels(SimpleNamespace(cfg=Config(**TINY | settings), cohort=SimpleNamespace(train=scans)))
    plain, shuffled = of(), of(shuffle_labels=True)
    assert plain.tolist() == [i % 2 for i in range(40)]
    assert sorted(shuffled) == sorted(plain) and 8 < (shuffled != plain).sum() < 32
    assert shuffled.tolist() == of(shuffle_labels=True).tolist() != of(shuffle_labels=True, seed=1).tolist()


@pytest.mark.parametrize(("how", "told"), [("true", [[1, 0], [0, 1], [1, 0]]), ("predicted", [[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])])
def test_training_is_told_the_label_or_what_a_fit_without_the_subject_predicts_and_validation_the_label(monkeypatch, how, told):
    classifier = SimpleNamespace(state=lambda: "its state")
    predicted = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    monkeypatch.setattr(labels, "fit_predictor", lambda exp, own, weights: (classifier, predicted))
    scans = [SimpleNamespace(label=i % 2) for i in range(5)]
    exp = SimpleNamespace(cfg=Config(**TINY | {"label_in_training": how}), cohort=SimpleNamespace(train=scans[:3], validation=scans[3:]))
    facts = labels.label_facts(exp)
    assert_close(facts["label_weights"], torch.tensor([*told, [0, 1], [1, 0]], dtype=torch.float32))
    assert facts["classifier"] == "its state"


class WithUptake:
    """An experiment whose PETs have the SUVRs that are given, first those of the training list."""

    def __init__(self, suvr, **settings):
        self.cfg, self.regions = Config(**TINY | {"cortex_mask": "c", "reference_mask": "r"} | settings), self
        scans = [SimpleNamespace(id=str(i), label=i % 2) for i in range(len(suvr))]
        self.cohort, self.suvr = SimpleNamespace(train=scans[:-2], validation=scans[-2:]), suvr

    def batches(self, scans, modality):
        return [{"pet": torch.tensor(self.suvr).view(-1, 1, 1, 1, 1)}]

    def measure(self, pet):
        return {"SUVR": float(pet[0, 0, 0])}


def test_weights_of_the_suvr_say_where_between_the_labels_a_pet_lies():
    suvr = [1.0, 1.4, 1.1, 1.6, 1.3, 1.05]                 # means of the training list: 1.05 with label 0, 1.5 with 1
    weights, levels = labels.suvr_weights(WithUptake(suvr))
    assert levels.tolist() == pytest.approx([1.05, 1.5])
    assert_close(weights[:, 1], (torch.tensor(suvr) - 1.05) / 0.45)
    assert_close(weights.sum(dim=1), torch.ones(6))
    shuffled = [labels.suvr_weights(WithUptake(suvr, shuffle_labels=True, seed=seed))[0] for seed in range(9)]
    assert all(sorted(one[:4, 1].tolist()) == sorted(weights[:4, 1].tolist()) for one in shuffled)
    assert any((one[:4] != weights[:4]).any() for one in shuffled)
    assert all((one[4:] == weights[4:]).all() for one in shuffled)                           # the validation list is left alone
    with pytest.raises(InputError, match="no uptake in the reference_mask in the PET of 4"):
        labels.suvr_weights(WithUptake([*suvr[:4], float("nan"), 1.0]))
    with pytest.raises(InputError, match="1.500 with label 0 and 1.050 with label 1"):
        labels.suvr_weights(WithUptake([1.4, 1.0, 1.6, 1.1, 1.3, 1.05]))


def test_matched_draws_give_the_suvr_that_the_mri_predicts_whatever_the_denoiser_makes_of_the_weights():
    """A denoiser whose PETs miss the SUVR that their weights say, each by another amount, and one without any uptake."""
    negative, positive, miss = 1.0, 1.5, torch.tensor([0.2, -0.1, 0.0, float("nan")])
    weights = torch.tensor([[0.7, 0.3], [-0.1, 1.1], [1.0, 0.0], [0.5, 0.5]])
    exp = Networks(Config(**TINY), torch.device("cpu"))
    exp.cfg = SimpleNamespace(seed=0, shared_noise=False, latent_channels=1, latent_size=(1, 1, 1), label_at_sampling="matched",
                              num_classes=2, label_in_training="suvr")
    exp.regions = SimpleNamespace(measure=lambda pet: {"SUVR": float(pet[0, 0, 0])})
    classifier = RidgeClassifier(*[None] * 6, levels=torch.tensor([negative, positive]))
    classifier.probabilities = classifier.weights = lambda mri: weights

    class Missing:
        def draw(self, mri, label, noise, sampler, steps):
            return (negative + (positive - negative) * label[:, :, 1] + miss[:, None]).nan_to_num(0.0)[:, :, None, None, None, None]

        def decode(self, z_0):
            return torch.where(miss.isnan()[:, None, None, None, None], torch.nan, z_0)
    batch = {"id": list("abcd"), "mri": torch.zeros(4, 1, 1, 1, 1)}
    once, matched = (exp.draw(Missing(), classifier, "ddim", 1, range(2), match)(batch).mean().flatten() for match in (False, True))
    wanted = negative + (positive - negative) * weights[:, 1]
    assert_close(once[:3], (wanted + miss)[:3])
    assert_close(matched[:3], wanted[:3])
    assert matched[3] == once[3]
    classifier.levels = None                               # as in a checkpoint from before there was matched
    with pytest.raises(InputError, match="train stage 2 anew"):
        exp.draw(Missing(), classifier, "ddim", 1, range(2), True)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("how", "in_training"), [("mixed", "true"), ("mixed", "suvr"), ("weighted", "true")])
def test_every_draw_has_its_noise_and_what_the_mri_predicts_of_the_label(how, in_training, shared):
    """Draws that are weighted by the label differ in the label alone; scans share their noise only when asked to."""
    probabilities, amounts = torch.tensor([[0.7, 0.3], [0.2, 0.8]]), torch.tensor([[1.1, -0.1], [0.5, 0.5]])
    exp, seen = Networks(Config(**TINY), torch.device("cpu")), {}
    exp.cfg = SimpleNamespace(seed=0, shared_noise=shared, latent_channels=1, latent_size=(1, 1, 1), label_at_sampling=how,
                              num_classes=2, label_in_training=in_training)
    classifier = SimpleNamespace(probabilities=lambda mri: probabilities, weights=lambda mri: amounts)

    def draw(mri, label, noise, sampler, steps):
        seen["label"] = label
        return torch.stack([torch.stack([next(stream) for stream in scan]) for scan in noise])
    drawn = exp.draw(SimpleNamespace(draw=draw), classifier, "ddim", 1, range(4))({"id": ["a", "b"], "mri": torch.zeros(2, 1, 1, 1, 1)})
    noise = drawn.z_0.flatten(1).numpy()                                                     # [2, 4]
    assert (noise[0] == noise[1]).all() if shared else not set(noise[0]) & set(noise[1])
    assert [len(set(row)) for row in noise] == ([2, 2] if how == "weighted" else [4, 4])
    assert_close(drawn.label, probabilities)
    if how == "weighted":
        assert (noise[:, 0::2] == noise[:, 1::2]).all()
        assert_close(seen["label"], torch.eye(2)[[0, 1, 0, 1]].expand(2, -1, -1))
        assert_close(drawn.weight, probabilities.repeat(1, 2))
    else:
        assert_close(seen["label"], (amounts if in_training == "suvr" else probabilities)[:, None].expand(-1, 4, -1))


# ---------------------------------------------------------------- settings that do not go together

@pytest.mark.parametrize(("settings", "problem"), [
    ({"zero_terminal_snr": True, "prediction": "eps"}, "zero_terminal_snr needs prediction v or x0"),
    ({"zero_terminal_snr": True, "sampler": "ddpm"}, "and sampler ddim"),
    ({"label_at_sampling": "weighted", "samples_per_scan": 3}, "must be a multiple"),
    ({"guidance": 2.0, "label_dropout": 0.0}, "guidance 2.0 needs a denoiser"),
    ({"guidance": 2.0, "label_at_sampling": "none", "label_dropout": 0.1}, "guidance 2.0 needs a denoiser"),
    ({"cortex_loss": 1.0}, "cortex_loss needs a cortex_mask"),
    ({"label_in_training": "suvr"}, "suvr needs a cortex_mask and a reference_mask"),
    ({"label_in_training": "suvr", "label_predictor": "linear", "cortex_mask": "c", "reference_mask": "r"},
     "label_predictor ridge and .*, not 2, linear and mixed"),
    ({"label_at_sampling": "matched"}, "matched needs label_in_training suvr, not true"),
    ({"exp": "a", "aae_from": "a"}, "is this experiment itself"),
])
def test_levers_that_cannot_work_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        Config(**TINY | settings)
