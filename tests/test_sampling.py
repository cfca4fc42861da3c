"""Latent samples of MRIs: their noise, the label that they are given, and how many network evaluations they
take."""
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn
from torch.testing import assert_close

from config import Config
from evaluation.measurement import MaskFiles, Measurement
from experiment.networks import LatentSampler, Networks
from imaging.regions import Regions
from labels.ridge import LabelPredictor
from model import Diffusion, LatentSpace, Synthesizer, UNet
from utils import NotFiniteError, draw_noise

REGIONS = {"regions": "auto", "cortex_mask": "c", "reference_mask": "r"}  # which label_in_training suvr needs
SHAPE = (4, 8, 12, 8)                                      # C, d, h, w of these settings
PROBABILITIES, SOFT_LABELS = torch.tensor([[0.7, 0.3], [0.2, 0.8]]), torch.tensor([[1.1, -0.1], [0.5, 0.5]])


class NoiseAlone:
    """Stands in for a synthesizer whose samples are the first noise of their streams; notes what it was
    given."""

    def __init__(self):
        self.unet, self.diffusion, self.given = nn.Linear(1, 1), Diffusion(T=20), []

    def sample(self, mri: Tensor, label: Tensor | None, noise: list[list[Iterator[Tensor]]], sampler: str,
               steps: int, last: int = 1) -> Tensor:
        """The first noise of every sample, [B, m, C, d, h, w]."""
        self.given.append({"mri": mri, "label": label, "sampler": sampler, "steps": steps})
        return torch.stack([torch.stack([next(stream) for stream in scan]) for scan in noise])

    def decode(self, z_0: Tensor) -> Tensor:
        """The mean of the channels stands in for a PET."""
        return z_0.mean(dim=1, keepdim=True)


class Predictor(LabelPredictor):
    """A predictor that gives the scans these rows; levels: those of an SUVR, if one made its soft labels."""

    def __init__(self, probabilities: Tensor = PROBABILITIES, levels: Tensor | None = None):
        self.rows, self.levels, self.regions = probabilities, levels, ""

    def probabilities(self, volume: Tensor, cells: None) -> Tensor:
        """The first rows."""
        return self.rows[:len(volume)]

    def soft_labels(self, volume: Tensor, cells: None) -> Tensor:
        """The first soft labels."""
        return SOFT_LABELS[:len(volume)]


def batch_of(*ids: str) -> dict:
    """A batch of scans of these IDs."""
    return {"id": list(ids), "mri": torch.zeros(len(ids), 1, 1, 1, 1)}


def sampler_of(synthesizer, predictor=None, samples: range = range(4), sampler: str = "ddim", steps: int = 3,
               **settings) -> LatentSampler:
    """A latent sampler of tiny settings."""
    return LatentSampler(Config(**TINY | settings), synthesizer, predictor, None, sampler, steps, samples)


# ---------------------------------------------------------------- noise

def test_the_noise_of_a_sample_depends_on_seed_id_and_its_number_alone():
    """Not on who stands beside the scan, on its place in the batch, on how many samples it has, on sampler,
    label and MRI."""
    z_0 = sampler_of(NoiseAlone())(batch_of("a", "b"))
    assert z_0.shape == (2, 4, *SHAPE)
    samples = z_0.flatten(0, 1).flatten(1)                 # [8, ...]
    assert len(samples.unique(dim=0)) == 8                 # all differ
    assert torch.equal(z_0[1, 2], next(draw_noise(0, "b", 2, SHAPE)))
    otherwise = sampler_of(NoiseAlone(), Predictor(), range(2, 4), "dpm", 5)
    assert torch.equal(otherwise({"id": ["b"], "mri": torch.rand(1, 1, 1, 1, 1)})[0], z_0[1, 2:])
    assert torch.equal(sampler_of(NoiseAlone())(batch_of("c", "b", "a"))[2], z_0[0])
    other_seed = sampler_of(NoiseAlone(), seed=1)(batch_of("a", "b"))
    assert len(torch.cat([samples, other_seed.flatten(0, 1).flatten(1)]).unique(dim=0)) == 16
    torch.manual_seed(99)                                  # nor on the random numbers of the process
    assert torch.equal(sampler_of(NoiseAlone())(batch_of("a", "b")), z_0)


def test_a_real_denoiser_gives_a_scan_the_same_latents_whoever_stands_beside_it():
    cfg = Config(**TINY | {"sampling_batch": 3})
    torch.manual_seed(0)
    unet = UNet(cfg.latent_channels, 8, (1, 2), 1, norm_groups=4, downscale=2).eval()
    space = LatentSpace(SimpleNamespace(encoder=None, decoder=None))
    synthesizer = Networks(cfg, torch.device("cpu")).synthesizer(space, unet)
    mri, ids = torch.rand(3, 1, *cfg.volume_size), ["a", "b", "c"]

    def sample(labels: list[int], rows: list[int]) -> Tensor:
        """Latents of the scans of these rows, with these labels."""
        predictor = Predictor(torch.eye(2)[labels])
        sampler = LatentSampler(cfg, synthesizer, predictor, None, "ddim", 2, range(2))
        return sampler({"id": [ids[row] for row in rows], "mri": mri[rows]})
    together = sample([0, 1, 1], [0, 1, 2])
    assert_close(sample([1], [1]), together[[1]], atol=1e-5, rtol=1e-5)
    assert (sample([0], [1]) - together[[1]]).abs().max() > 1e-3           # the label has its say


def test_latents_that_are_not_finite_are_refused_with_the_names_of_their_scans():
    class Overflowing(NoiseAlone):
        def sample(self, *given):
            z_0 = super().sample(*given)
            z_0[1, 0, 0, 0, 0, 0], z_0[2, 3] = float("inf"), float("nan")
            return z_0
    with pytest.raises(NotFiniteError, match="the latents sampled by dpm for b, c are not finite"):
        sampler_of(Overflowing(), sampler="dpm")(batch_of("a", "b", "c", "d"))


# ---------------------------------------------------------------- the label

@pytest.mark.parametrize("in_training", ["true", "suvr"])
def test_a_scan_is_given_what_its_mri_predicts_of_what_training_was_given(in_training):
    synthesizer, labels = NoiseAlone(), {"label_in_training": in_training, "label_at_sampling": "mixed"}
    predictor = Predictor(levels=torch.tensor([1.0, 1.5]) if in_training == "suvr" else None)
    sampler = sampler_of(synthesizer, predictor, **REGIONS, **labels)
    sampler(batch_of("a", "b"))
    [given] = synthesizer.given
    assert torch.equal(given["label"], SOFT_LABELS if in_training == "suvr" else PROBABILITIES)
    assert (given["sampler"], given["steps"]) == ("ddim", 3)
    assert torch.equal(sampler.label_probabilities(batch_of("a", "b")), PROBABILITIES)


def test_without_a_predictor_there_is_no_label():
    synthesizer = NoiseAlone()
    sampler = sampler_of(synthesizer)
    sampler(batch_of("a"))
    assert synthesizer.given[0]["label"] is None
    assert sampler.label_probabilities(torch.zeros(1, 1, 1, 1, 1)) is None


def test_the_predictor_of_a_denoiser_is_used_if_the_settings_want_a_prediction():
    predictor = LabelPredictor(torch.ones(2, 3), torch.zeros(2), torch.tensor([0.0, 1.0]),
                               torch.ones(1, 1, 3, dtype=torch.bool), torch.ones(2, 2), 1)
    networks = Networks(Config(**TINY), torch.device("cpu"))
    found = networks.label_predictor({"label_predictor": predictor.state()})
    assert torch.equal(found.coef, predictor.coef) and found.pool == 1
    refusal = "holds no predictor of the label; sample it with --label_at_sampling none"
    with pytest.raises(ValueError, match=refusal):
        networks.label_predictor({"label_predictor": None})
    without = Networks(Config(**TINY | {"label_at_sampling": "none"}), torch.device("cpu"))
    assert without.label_predictor({"label_predictor": predictor.state()}) is None
    assert without.label_predictor({"label_predictor": None}) is None


class Missing:
    """Stands in for a denoiser whose PETs miss the SUVR of their label, each by another amount.

    A latent of one voxel is the SUVR; its PET has a voxel of that uptake, the cortex, and one of 1, the
    reference region. Where the miss is NaN, the reference region has no uptake.
    """
    negative, positive, miss = 1.0, 1.5, torch.tensor([0.2, -0.1, 0.0, float("nan")])

    def __init__(self):
        self.unet, self.diffusion, self.labels = nn.Linear(1, 1), Diffusion(), []

    def sample(self, mri: Tensor, label: Tensor, noise: list, sampler: str, steps: int, last: int) -> Tensor:
        """The SUVR of every sample, [B, m, 1, 1, 1, 1], the same for all samples of a scan."""
        self.labels.append(label)
        suvr = self.negative + (self.positive - self.negative) * label[:, 1] + self.miss.nan_to_num(0.0)
        return suvr.view(-1, 1, 1, 1, 1, 1).repeat(1, len(noise[0]), 1, 1, 1, 1)

    def decode(self, z_0: Tensor) -> Tensor:
        """PETs of two voxels, [B, 1, 1, 1, 2]."""
        reference = torch.where(self.miss.isnan(), 0.0, 1.0).view(-1, 1, 1, 1, 1)
        return torch.cat([z_0, reference], dim=4)


def test_matched_samples_have_the_suvr_that_the_mri_predicts_whatever_the_denoiser_makes_of_its_labels():
    """Of a PET without uptake in the reference region nothing is known, and nothing is changed."""
    soft_labels = torch.tensor([[0.7, 0.3], [-0.1, 1.1], [1.0, 0.0], [0.5, 0.5]])
    predictor = LabelPredictor(*[None] * 6, levels=torch.tensor([Missing.negative, Missing.positive]))
    predictor.soft_labels = lambda mri, cells: soft_labels
    cortex, reference = torch.tensor([[[True, False]]]).numpy(), torch.tensor([[[False, True]]]).numpy()
    measurement = Measurement(cortex | reference, Regions(cortex, reference, {}), 8.0, MaskFiles("", {}))
    cfg, batch, found = Config(**TINY | REGIONS | {"label_in_training": "suvr"}), batch_of(*"abcd"), {}
    for matched in (False, True):
        synthesizer = Missing()
        sampler = LatentSampler(cfg, synthesizer, predictor, measurement, "ddim", 1, range(2), matched)
        found[matched] = sampler(batch).mean(dim=1).flatten()
        assert len(synthesizer.labels) == 1 + matched
        assert torch.equal(synthesizer.labels[0], soft_labels)
    wanted = Missing.negative + (Missing.positive - Missing.negative) * soft_labels[:, 1]
    assert_close(found[False][:3], (wanted + Missing.miss)[:3])
    assert_close(found[True][:3], wanted[:3])
    assert found[True][3] == found[False][3]


# ---------------------------------------------------------------- network evaluations, and the PET

@pytest.mark.parametrize(("sampler", "steps", "one"),
                         [("ddim", 3, 3), ("dpm", 7, 7), ("dpm", 19, 17), ("ddpm", 3, 19)])
def test_evaluations_count_those_of_all_samples_and_twice_if_they_are_matched(sampler, steps, one):
    """dpm takes fewer where two of its steps would fall on one t, and ddpm takes T - 1 whatever is asked
    for."""
    cfg, synthesizer = Config(**TINY), SimpleNamespace(diffusion=Diffusion(20, (1e-4, 0.5)))
    for samples in (range(1), range(4), range(2, 4)):
        for matched in (False, True):
            latent_sampler = LatentSampler(cfg, synthesizer, None, None, sampler, steps, samples, matched)
            assert latent_sampler.evaluations == one * len(samples) * (1 + matched)


def test_the_network_is_evaluated_as_often_as_is_said():
    cfg = Config(**TINY)
    torch.manual_seed(0)
    unet = UNet(cfg.latent_channels, 8, (1, 2), 1, norm_groups=4, downscale=2).eval()
    seen = []
    unet.out.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    space = LatentSpace(SimpleNamespace(encoder=None, decoder=None))
    synthesizer = Synthesizer(space, unet, Diffusion(20), batch=3)
    sampler = LatentSampler(cfg, synthesizer, None, None, "ddim", 2, range(2))
    sampler({"id": ["a", "b"], "mri": torch.rand(2, 1, *cfg.volume_size)})
    assert sum(seen) == 2 * sampler.evaluations == 8       # of two scans


def test_a_pet_is_decoded_from_the_mean_of_its_samples():
    sampler = sampler_of(NoiseAlone())
    batch = batch_of("a", "b")
    assert_close(sampler.synthesize(batch), sampler(batch).mean(dim=1).mean(dim=1, keepdim=True))
