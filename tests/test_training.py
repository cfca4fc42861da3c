"""The updates of both stages, and the label classifier."""
import signal
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion import Diffusion
from labels.linear import LabelClassifier, pool_volume, pool_width
from model import AAE, Discriminator, UNet
from runtime import training
from runtime.checkpoints import Progress
from runtime.signals import Stopped
from runtime.training import Objective, Sample, aae_step, ldm_step, train_epoch, update
from utils import NotFiniteError, autocast


def networks():
    torch.manual_seed(0)
    aae, disc = AAE((8, 16), norm_groups=8), Discriminator((8, 8))
    return aae, disc, torch.optim.Adam(aae.parameters(), 1e-3), torch.optim.Adam(disc.parameters(), 1e-3)


def test_one_batch_of_volumes_overfits():
    aae, disc, opt_g, opt_d = networks()
    x = F.interpolate(torch.rand(2, 1, 4, 4, 4), scale_factor=4, mode="trilinear")
    losses = [aae_step(aae, disc, opt_g, opt_d, x, 100.0)["rec"] for _ in range(80)]
    assert losses[-1] < 0.2 * losses[0]


def test_discriminator_learns_to_tell_real_from_reconstructed():
    aae, disc, _, opt_d = networks()
    still = torch.optim.SGD(aae.parameters(), 0.0)         # an autoencoder that stands still leaves the same task at every step
    x = torch.rand(2, 1, 16, 16, 16)
    losses = [aae_step(aae, disc, still, opt_d, x, 100.0)["disc"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_step_equals_plain_gradients_of_the_two_losses():
    """With plain gradient descent one step moves each network along its own loss, the other's left out."""
    aae, disc, *_ = networks()
    x, rate = torch.rand(2, 1, 16, 16, 16), 0.1
    opt_g, opt_d = torch.optim.SGD(aae.parameters(), rate), torch.optim.SGD(disc.parameters(), rate)
    x_hat = aae(x)
    gradients = torch.autograd.grad(100 * F.l1_loss(x_hat, x) - disc(x_hat).mean(), list(aae.parameters()))
    hinge = (F.relu(1 - disc(x)).mean() + F.relu(1 + disc(x_hat.detach())).mean()) / 2
    gradients_disc = torch.autograd.grad(hinge, list(disc.parameters()))
    expected = [p - rate * g for p, g in zip([*aae.parameters(), *disc.parameters()], [*gradients, *gradients_disc], strict=True)]
    losses = aae_step(aae, disc, opt_g, opt_d, x, 100.0)
    for p, wanted in zip([*aae.parameters(), *disc.parameters()], expected, strict=True):
        torch.testing.assert_close(p, wanted, atol=1e-5, rtol=1e-4)
    assert losses["disc"] == pytest.approx(hinge.item(), rel=1e-5)


def test_one_batch_of_latents_overfits():
    torch.manual_seed(0)
    unet, diffusion = UNet(base_channels=8, channel_mults=(1, 2), norm_groups=4, downscale=2), Diffusion(prediction="v")
    z_0, mri, label = torch.randn(4, 1, 4, 4, 4), torch.rand(4, 1, 8, 8, 8), torch.tensor([0, 1, 0, 1])
    opt = torch.optim.AdamW(unet.parameters(), 3e-3)
    losses = [ldm_step(unet, Objective(diffusion, 0.5), opt, Sample(z_0, mri, torch.eye(2)[label]))["mse"] for _ in range(300)]
    assert np.mean(losses[-30:]) < 0.4 * np.mean(losses[:10])


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_label_dropout_drops_that_share_and_steps_are_uniform(dropout, kept):
    torch.manual_seed(0)
    seen = {"t": [], "label": []}

    class Spy(nn.Module):
        def forward(self, z_t, mri, t, label):
            seen["t"].append(t)
            seen["label"].append(label)
            return z_t
    label = torch.tensor([0, 1]).repeat(2000)
    nothing = torch.zeros(4000, 1, 1, 1, 1)
    Objective(Diffusion(), dropout).losses(Spy(), Sample(nothing, nothing, torch.eye(2)[label]))
    [weights], [t] = seen["label"], seen["t"]
    assert weights.sum(1).mean().item() == pytest.approx(kept, abs=0.03)
    present = weights.sum(1) > 0
    assert torch.equal(weights[present].argmax(1), label[present])
    assert (t.min().item(), t.max().item()) == (pytest.approx(1, abs=5), pytest.approx(999, abs=5))
    assert t.float().mean().item() == pytest.approx(500, abs=15)


class Batches:
    """Batches of IDs as a loader gives them, those behind its sampler's first."""
    batch_size = 2

    def __init__(self, *ids: str):
        self.ids, self.sampler = ids, SimpleNamespace(seed=None, first=0, step_items=2)

    def __len__(self):
        return len(self.ids) - self.sampler.first // self.batch_size

    def __iter__(self):
        return iter([{"id": list(names)} for names in self.ids[self.sampler.first // self.batch_size:]])


def test_a_loss_that_is_not_finite_stops_with_step_and_subjects_before_any_weight_changes():
    weight = nn.Parameter(torch.ones(3))
    opt = torch.optim.SGD([weight], 0.1)

    def step(batch):
        loss = (weight * (float("nan") if "c" in batch["id"] else 1.0)).sum()
        opt.zero_grad()
        loss.backward()
        update(opt, {"rec": loss.item()})
        return {"rec": loss.item()}
    with pytest.raises(NotFiniteError, match="aae epoch 3, step 2: loss {'rec': nan}, norm of the gradient nan on b, c; the last"):
        train_epoch(Batches("a", "bc", "d"), step, 0, "aae epoch 3", Progress())
    torch.testing.assert_close(weight.data, torch.full((3,), 0.9))                           # the first step alone


def test_a_gradient_that_is_not_finite_stops_even_where_the_loss_is():
    weight = nn.Parameter(torch.zeros(1))
    loss = weight.sqrt().sum()                             # 0, with an infinite slope
    loss.backward()
    with pytest.raises(NotFiniteError, match=r"loss {'mse': 0.0}, norm of the gradient inf"):
        update(torch.optim.SGD([weight], 0.1), {"mse": loss.item()})
    assert weight.item() == 0


def test_an_epoch_that_is_continued_equals_an_uncut_one():
    def steps(progress, stop_after=99):
        drawn = []

        def step(batch):
            if len(drawn) == stop_after:
                raise Stopped(signal.SIGTERM)
            drawn.append((*batch["id"], torch.rand(1).item()))
            return {"rec": drawn[-1][-1]}
        with suppress(Stopped):
            return drawn, train_epoch(Batches("ab", "cd", "ef", "gh"), step, 5, "t", progress)[0]
        return drawn, None
    uncut, mean = steps(Progress())
    for cut in range(5):
        progress = Progress()
        first, _ = steps(progress, cut)
        torch.manual_seed(99)
        second, found = steps(Progress(**vars(progress)))
        assert first + second == uncut
        assert found == mean == {"rec": pytest.approx(np.mean([row[-1] for row in uncut]))}


@pytest.mark.parametrize("pause", [0.0, 3.0])
def test_the_share_of_time_spent_waiting_for_data_is_measured(monkeypatch, pause):
    clock = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])

    class Slow(Batches):
        def __iter__(self):
            for batch in super().__iter__():
                clock[0] += pause
                yield batch

    def step(batch):
        clock[0] += 1.0
        return {"rec": 0.0}
    assert train_epoch(Slow("a", "b"), step, 0, "t", Progress())[1] == pytest.approx(pause / (pause + 1))


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_that_are_added_up_are_those_of_the_whole_batch(parts):
    x = torch.rand(4, 1, 16, 16, 16)
    results = []
    for count in (1, parts):
        aae, disc, *_ = networks()
        disc.eval()                                        # batch norms see a part alone; with fixed statistics the split must not matter
        opt_g, opt_d = torch.optim.SGD(aae.parameters(), 0.1), torch.optim.SGD(disc.parameters(), 0.1)
        losses = aae_step(aae, disc, opt_g, opt_d, x, 100.0, count)
        results.append((losses, [*aae.parameters(), *disc.parameters()]))
    (losses, weights), (losses_parts, weights_parts) = results
    assert losses_parts == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(weights_parts, weights, atol=1e-5, rtol=1e-4)


def test_a_denoiser_step_in_parts_follows_the_mean_of_their_losses():
    sample = Sample(torch.randn(4, 1, 4, 4, 4), torch.rand(4, 1, 8, 8, 8), torch.eye(2)[[0, 1, 0, 1]])

    def start():
        torch.manual_seed(0)
        unet = UNet(base_channels=8, channel_mults=(1, 2), norm_groups=4, downscale=2)
        torch.manual_seed(1)
        return unet, Objective(Diffusion(prediction="v"), 0.5)
    unet, objective = start()
    losses = [objective.losses(unet, part)["loss"] for part in sample.parts(2)]
    gradients = torch.autograd.grad(sum(losses) / 2, list(unet.parameters()))
    expected = [p - 0.1 * g for p, g in zip(unet.parameters(), gradients, strict=True)]
    unet, objective = start()
    found = ldm_step(unet, objective, torch.optim.SGD(unet.parameters(), 0.1), sample, parts=2)
    assert found["mse"] == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    torch.testing.assert_close(list(unet.parameters()), expected, atol=1e-6, rtol=1e-5)


def test_steps_in_bfloat16_learn_as_those_in_float32():
    """Losses that fall alike, on weights that stay in float32."""
    x = F.interpolate(torch.rand(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), scale_factor=4, mode="trilinear")
    last = {}
    for dtype in (torch.float32, torch.bfloat16):
        aae, disc, opt_g, opt_d = networks()
        losses = [aae_step(aae, disc, opt_g, opt_d, x, 100.0, cast=lambda dtype=dtype: autocast(x.device, dtype)) for _ in range(12)]
        assert all(p.dtype == torch.float32 for p in aae.parameters())
        assert losses[-1]["rec"] < 0.9 * losses[0]["rec"]
        last[dtype] = losses[-1]["rec"]
    assert last[torch.bfloat16] == pytest.approx(last[torch.float32], rel=0.05)


@pytest.mark.parametrize("classes", [2, 3])
def test_classifier_finds_the_label_and_its_state_gives_the_same_probabilities(classes):
    rng = np.random.default_rng(0)
    brain = np.zeros((8, 8, 8), bool)
    brain[2:, :, :] = True
    labels = np.arange(60) % classes
    volumes = torch.from_numpy(rng.normal(0, 0.3, (60, 1, 8, 8, 8)).astype(np.float32))
    volumes[:, 0, 4:] += torch.from_numpy(labels)[:, None, None, None] * 0.2
    pooled = pool_volume(volumes, 2).numpy()
    classifier = LabelClassifier.fit(pooled[:40], labels[:40], brain, 2, seed=0)
    found = classifier.probabilities(volumes[40:])
    assert found.shape == (20, classes)
    torch.testing.assert_close(found.sum(1), torch.ones(20))
    assert (found.argmax(1).numpy() == labels[40:]).mean() > 0.8
    torch.testing.assert_close(LabelClassifier.from_state(classifier.state()).probabilities(volumes[40:]), found)
    outside = volumes[40:].clone()
    outside[:, :, :2] = 100.0                              # what lies outside the brain has no say
    torch.testing.assert_close(classifier.probabilities(outside), found)


def test_collapsed_classifier_equals_the_scikit_learn_pipeline():
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    rng = np.random.default_rng(1)
    pooled, labels = rng.normal(size=(9, 1, 3, 3, 3)), np.array([1] + [0] * 8)                  # one positive: no cross-validation
    classifier = LabelClassifier.fit(pooled, labels, np.ones((3, 3, 3), bool), 1, seed=0)
    pipeline = make_pipeline(StandardScaler(), PCA(0.9, svd_solver="full"), LogisticRegression(C=1e-4)).fit(pooled.reshape(9, -1), labels)
    new = rng.normal(size=(5, 1, 3, 3, 3))
    np.testing.assert_allclose(classifier.probabilities(torch.from_numpy(new)), pipeline.predict_proba(new.reshape(5, -1)), atol=1e-6)


def test_blocks_are_about_8_mm():
    assert [pool_width(mm) for mm in (1.0, 1.5, 2.0, 4.0, 8.0, 12.0)] == [8, 5, 4, 2, 1, 1]
