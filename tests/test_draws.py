"""Labels drawn for every latent sample: their distribution, what they depend on, and that each sample is
matched by itself."""
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import TINY
from test_labels import WHOLE, planted
from test_sampling import REGIONS, Missing, NoiseAlone, Predictor, batch_of, sampler_of
from torch.testing import assert_close

from config import Config
from evaluation.measurement import MaskFiles, Measurement
from experiment.networks import LatentSampler
from imaging.regions import Regions
from labels.draws import WIDTH, draw_amounts
from labels.ridge import LabelPredictor
from model import Diffusion, LatentSpace, Synthesizer, UNet
from utils import InputError, draw_uniform

LEVELS = torch.tensor([1.0, 1.5], dtype=torch.float64)
AMOUNTS = torch.tensor([0.9, -0.1, 0.4, 1.3, 0.1], dtype=torch.float64)


# ---------------------------------------------------------------- the distribution

def drawn_from(predictions: torch.Tensor, new: float, u: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Amounts that are drawn for one scan, and the chances of as much or more."""
    found = draw_amounts(torch.tensor([new]), torch.stack([predictions, AMOUNTS]), u[None])
    assert torch.equal(found.label[..., 1], found.value.float())
    assert_close(found.label.sum(dim=-1), torch.ones(1, len(u)))
    return found.value[0].numpy(), found.or_more[0].numpy()


def test_draws_have_the_residuals_of_like_predictions_as_often_as_a_gaussian_kernel_says():
    torch.manual_seed(0)
    predictions, u = torch.tensor([0.8, 0.0, 0.1, 1.0, 0.2], dtype=torch.float64), torch.rand(20_000)
    width = WIDTH * predictions.numpy().std(ddof=1)
    for new in (0.1, 0.9):
        weight = scipy.stats.norm(scale=width).pdf(new - predictions.numpy())
        weight /= weight.sum()
        possible = np.clip(new + AMOUNTS.numpy() - predictions.numpy(), -0.1, 1.3)
        amounts, or_more = drawn_from(predictions, new, u)
        for amount in np.unique(possible.round(9)):
            is_drawn, is_as_high = np.isclose(amounts, amount), possible >= amount - 1e-6
            share = weight[np.isclose(possible, amount)].sum()
            assert is_drawn.mean() == pytest.approx(share, abs=0.015)
            if is_drawn.any():
                assert or_more[is_drawn] == pytest.approx(weight[is_as_high].sum())
        assert (np.diff(amounts[u.argsort().numpy()]) >= 0).all()            # a larger u never draws less
        assert np.isclose(amounts[:, None], possible).any(axis=1).all()


def test_no_amount_lies_beyond_those_that_training_has_seen():
    predictions = torch.tensor([0.8, 0.0, 0.1, 1.0, 0.2], dtype=torch.float64)
    for new, amount in ((1e4, 1.3), (-1e4, -0.1)):
        amounts, or_more = drawn_from(predictions, new, torch.rand(50))
        np.testing.assert_allclose(amounts, amount)
        np.testing.assert_allclose(or_more, 1)
    alike, _ = drawn_from(torch.full((5,), 0.4, dtype=torch.float64), 0.4, torch.arange(5) / 5 + 0.1)
    np.testing.assert_allclose(alike, AMOUNTS.sort().values)           # all predictions alike: all residuals


def test_labels_are_drawn_by_their_probabilities():
    torch.manual_seed(0)
    rows, u = torch.tensor([[0.7, 0.1, 0.2]]), torch.rand(1, 20_000)
    found = Predictor(rows).draw(torch.zeros(1, 1, 1, 1, 1), u, None)
    assert torch.equal(found.label.argmax(dim=-1), found.value.long())
    assert set(found.label.unique().tolist()) == {0, 1} and (found.label.sum(dim=-1) == 1).all()
    assert_close(found.label[0].mean(dim=0), rows[0], atol=0.015, rtol=0)
    for label, or_more in enumerate((1.0, 0.3, 0.2)):
        drawn = found.value[0] == label
        np.testing.assert_allclose(found.or_more[0][drawn], or_more, atol=1e-6)


def test_what_is_kept_is_a_prediction_by_a_fit_that_did_not_see_the_subject_and_its_amount():
    """An amount that is only noise is not predicted, however well a fit to all does."""
    mri, y = planted(60, 0.0, 0)
    amount = np.random.default_rng(0).normal(0.5, 0.3, 60)
    soft_labels = np.stack([1 - amount, amount], axis=1)
    predictor = LabelPredictor.cross_fit(mri, y, soft_labels, WHOLE, 1, 0, LEVELS)
    predictions, kept = predictor.left_out.numpy()
    np.testing.assert_array_equal(kept, amount)
    assert abs(np.corrcoef(predictions, amount)[0, 1]) < 0.4
    again = LabelPredictor.from_state(predictor.state())
    u = torch.rand(60, 3)
    assert torch.equal(again.draw(mri, u).label, predictor.draw(mri, u).label)
    assert torch.equal(predictor.draw(mri[7:8], u[7:8]).label, predictor.draw(mri, u).label[7:8])
    assert LabelPredictor.cross_fit(mri, y, np.eye(2)[y], WHOLE, 1, 0).left_out is None


def test_drawn_amounts_are_calibrated_where_little_and_where_much_is_predicted():
    """The residuals of the real relation are narrow below and wide above."""
    rng = np.random.default_rng(0)
    prediction = rng.uniform(0, 1, 900)
    amount = prediction + rng.normal(0, 0.05 + 0.4 * prediction)
    left_out = torch.from_numpy(np.stack([prediction, amount])[:, :450])
    u = torch.rand(450, 100, generator=torch.Generator().manual_seed(0))
    drawn = draw_amounts(torch.from_numpy(prediction[450:]), left_out, u).value.numpy()
    places = (drawn < amount[450:, None]).mean(axis=1)
    for third in np.array_split(prediction[450:].argsort(), 3):
        assert scipy.stats.kstest(places[third], "uniform").pvalue > 0.01
        assert np.mean(np.abs(places[third] - 0.5) < 0.4) == pytest.approx(0.8, abs=0.09)


# ---------------------------------------------------------------- each sample has its own

def test_the_draw_of_a_sample_depends_on_seed_id_and_its_number_alone():
    u = [draw_uniform(seed, subject, k) for seed in (0, 1) for subject in ("a", "b") for k in range(500)]
    assert len(set(u)) == 2000 and min(u) >= 0 and max(u) < 1
    assert scipy.stats.kstest(u, "uniform").pvalue > 0.01
    torch.manual_seed(99)
    assert draw_uniform(0, "b", 3) == u[503]
    cfg = {**REGIONS, "label_in_training": "true", "label_at_sampling": "sampled"}
    together, alone = [], []
    for ids, samples, given in ((("a", "b"), range(4), together), (("b",), range(2, 4), alone)):
        synthesizer = NoiseAlone()
        sampler = sampler_of(synthesizer, Predictor(torch.tensor([[0.4, 0.6], [0.4, 0.6]])), samples, **cfg)
        sampler.drawn = True
        sampler(batch_of(*ids))
        given += synthesizer.given
    assert together[0]["label"].shape == (2, 4, 2) and len(together) == 1
    assert torch.equal(together[0]["label"][1:, 2:], alone[0]["label"])
    assert len(together[0]["label"].flatten(0, 1).unique(dim=0)) == 2        # both labels were drawn


class MissingEach(Missing):
    """A denoiser that misses the SUVR of its label by as much for each scan, of each sample's own label."""

    def sample(self, mri, label, noise, sampler, steps, last):
        """The SUVR of every sample, [B, m, 1, 1, 1, 1]."""
        self.labels.append(label)
        miss = self.miss.nan_to_num(0.0)[:, None]
        suvr = self.negative + (self.positive - self.negative) * label[..., 1] + miss        # [B, m]
        return suvr[..., None, None, None, None]

    def decode(self, z_0):
        """PETs of two voxels, the second of which is the reference region."""
        return torch.cat([z_0, torch.ones_like(z_0)], dim=4)


def test_every_sample_gets_the_suvr_that_was_drawn_for_it():
    left_out = torch.stack([torch.tensor([0.8, 0.0, 0.1, 1.0, 0.2]).double(), AMOUNTS])
    predictor = LabelPredictor(*[None] * 6, levels=LEVELS, left_out=left_out)
    predictor._regress = lambda volume, cells: torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])
    cortex, reference = torch.tensor([[[True, False]]]).numpy(), torch.tensor([[[False, True]]]).numpy()
    measurement = Measurement(cortex | reference, Regions(cortex, reference, {}), 8.0, MaskFiles("", {}))
    cfg = Config(**TINY | REGIONS | {"label_in_training": "suvr", "label_at_sampling": "sampled"})
    synthesizer = MissingEach()
    synthesizer.negative, synthesizer.positive = LEVELS.tolist()
    sampler = LatentSampler(cfg, synthesizer, predictor, measurement, "ddim", 1, range(6), cfg.matches_suvr,
                            drawn=cfg.draws_label)
    batch = batch_of(*"abcd")
    z_0, drawn = sampler(batch), sampler.draws(batch).label[..., 1]
    assert len(synthesizer.labels) == 2 and synthesizer.labels[1].shape == (4, 6, 2)
    assert_close(z_0[..., 0, 0, 0, 0], (1 + 0.5 * drawn), atol=1e-5, rtol=0)
    assert len(drawn.unique()) > 2
    assert sampler.evaluations == 2 * 6


def test_a_label_of_each_sample_reaches_its_sample_in_any_batch():
    torch.manual_seed(0)
    unet = UNet(1, 8, (1, 2), 1, norm_groups=4, downscale=2).eval()
    space = LatentSpace(SimpleNamespace(encoder=None, decoder=None))
    mri, labels = torch.rand(2, 1, 8, 8, 8), torch.rand(2, 3, 2)

    def sample(batch: int, label: torch.Tensor) -> torch.Tensor:
        noise = [[iter([torch.full((1, 4, 4, 4), 0.1 * (b + 2 * k))]) for k in range(3)] for b in range(2)]
        return Synthesizer(space, unet, Diffusion(20), batch).sample(mri, label, noise, "ddim", 1)
    found = sample(4, labels)
    for b in range(2):
        for k in range(3):
            same_for_all = labels[b, k].expand(2, 2)
            assert_close(sample(6, same_for_all)[b, k], found[b, k], atol=1e-5, rtol=1e-5)
    of_scans = labels[:, 0]
    assert torch.equal(sample(4, of_scans), sample(4, of_scans[:, None].repeat(1, 3, 1)))
    assert (found - sample(4, of_scans)).abs().max() > 1e-4


# ---------------------------------------------------------------- the setting

@pytest.mark.parametrize(("in_training", "at_sampling", "draws", "twice"), [
    ("suvr", "sampled", True, True), ("true", "sampled", True, False), ("suvr", "matched", False, True),
    ("suvr", "mixed", False, False), ("suvr", "auto", False, True), ("true", "auto", False, False)])
def test_amounts_are_matched_and_probabilities_are_not(in_training, at_sampling, draws, twice):
    settings = {"label_in_training": in_training, "label_at_sampling": at_sampling}
    cfg = Config(**TINY | REGIONS | settings)
    assert (cfg.draws_label, cfg.matches_suvr) == (draws, twice)


def test_what_was_trained_without_labels_draws_none():
    with pytest.raises(ValueError, match="sampled needs a UNet that was trained with labels"):
        Config(**TINY | {"label_in_training": "none", "label_at_sampling": "sampled"})


def test_a_denoiser_of_an_earlier_version_is_refused_only_where_amounts_are_drawn():
    mri, y = planted(20, 0.05, 0)
    predictor = LabelPredictor.cross_fit(mri, y, np.eye(2)[y], WHOLE, 1, 0, LEVELS)
    state = {name: value for name, value in predictor.state().items() if name != "left_out"}
    old = LabelPredictor.from_state(state)
    assert torch.equal(old.label(mri), predictor.label(mri))
    cfg = Config(**TINY | REGIONS | {"label_in_training": "suvr"})
    arguments = (cfg, NoiseAlone(), old, None, "ddim", 1, range(2))
    LatentSampler(*arguments)(batch_of("a", "b") | {"mri": mri[:2]})
    with pytest.raises(InputError, match="train stage 2 again under another --exp"):
        LatentSampler(*arguments, drawn=True)
    labels_alone = LabelPredictor.from_state(state | {"levels": None})
    LatentSampler(cfg, NoiseAlone(), labels_alone, None, "ddim", 1, range(2), drawn=True)
