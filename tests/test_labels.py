"""Labels: those that the denoiser is trained with, their prediction from an MRI, and the linear
classifier."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from config import Config
from experiment.stage_2 import stage_2_metadata
from experiment.survey import Survey
from labels import linear, ridge
from labels.linear import LabelClassifier, pool_volume, pool_width
from labels.ridge import LabelPredictor, calibrate, calibrated, features_of, folds_of
from labels.soft_labels import label_order, one_hot, suvr_levels, suvr_soft_labels
from utils import InputError

# ---------------------------------------------------------------- soft labels


def test_shuffled_labels_are_the_same_labels_at_other_subjects():
    own = label_order(40, 0, shuffled=False)
    assert own.tolist() == list(range(40))
    order = label_order(40, 0, shuffled=True)
    assert sorted(order) == list(range(40))
    labels = np.arange(40) % 2
    assert 8 < (labels[order] != labels).sum() < 32
    assert order.tolist() == label_order(40, 0, shuffled=True).tolist()
    assert order.tolist() != label_order(40, 1, shuffled=True).tolist()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_one_hot_row_has_all_weight_on_its_label(classes):
    labels = np.array([0, 1, classes - 1])
    weights = one_hot(labels, classes)
    assert weights.shape == (3, classes) and weights.dtype == torch.float32
    assert weights.sum(dim=1).tolist() == [1, 1, 1] and weights.argmax(dim=1).tolist() == labels.tolist()


def test_soft_labels_of_the_suvr_say_where_between_the_labels_a_pet_lies():
    suvr, labels = np.array([1.0, 1.4, 1.1, 1.6]), np.array([0, 1, 0, 1])
    levels = suvr_levels(suvr, labels)
    assert levels.tolist() == pytest.approx([1.05, 1.5])
    soft_labels = suvr_soft_labels(np.array([1.05, 1.5, 1.275, 1.95, 0.6]), levels)  # at, between, beyond
    assert_close(soft_labels, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 2.0], [2.0, -1.0]]))
    assert soft_labels.dtype == torch.float32
    with pytest.raises(InputError, match="1.500 with label 0 and 1.050 with label 1, but amyloid raises it"):
        suvr_levels(np.array([1.4, 1.0, 1.6, 1.1]), labels)


def test_an_amount_of_amyloid_lies_between_two_labels_and_no_more():
    regions = {"regions": "auto", "cortex_mask": "c", "reference_mask": "r"}
    with pytest.raises(ValueError, match="label_in_training suvr needs num_classes 2, not 3"):
        Config(**TINY | regions | {"label_in_training": "suvr", "num_classes": 3})


# ---------------------------------------------------------------- what stage 2 is told

SUVR = [1.0, 1.4, 1.1, 1.6, 1.3, 1.05]  # means of the training list: 1.05 with label 0, 1.5 with 1


def metadata_of(suvr: list[float] = SUVR, **settings) -> dict:
    """What training and sampling need to know of six subjects with labels by turns; the last two are the
    validation list.

    suvr: of their PETs. Their latents are 0, 1, 2, 3, 4 and 5 in every voxel.
    """
    cfg = Config(**TINY | {"regions": "auto", "cortex_mask": "c", "reference_mask": "r"} | settings)
    scans = [SimpleNamespace(id=str(i), label=i % 2) for i in range(6)]
    cohort = SimpleNamespace(train=scans[:4], validation=scans[4:], affine=np.eye(4), tracer="FBP")
    measurement = SimpleNamespace(voxel_mm=8.0, brain=np.ones((2, 2, 2), bool), region_key=lambda: "masks")
    exp = SimpleNamespace(cfg=cfg, cohort=cohort, measurement=measurement, is_phantom=False,
                          people=None)
    mri = torch.rand(4, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    table = pd.DataFrame({"ID": [scan.id for scan in scans], "SUVR": suvr})
    latents = {scan.id: torch.full((1, 2, 2, 2), float(scan.id)) for scan in scans}
    return stage_2_metadata(exp, latents, Survey(torch.zeros(1), 1.0, mri, table))


def test_the_denoiser_is_told_the_label_of_every_subject():
    metadata = metadata_of(label_in_training="true")
    assert_close(metadata["soft_labels"], torch.eye(2)[[0, 1, 0, 1, 0, 1]])
    # of the training list
    assert (metadata["latent_mean"], metadata["latent_std"]) == (1.5, pytest.approx(1.25 ** 0.5))
    assert torch.equal(metadata["affine"], torch.eye(4, dtype=torch.float64)) and metadata["phantom"] is False
    assert metadata["tracer"] == "FBP"
    predictor = LabelPredictor.from_state(metadata["label_predictor"])
    assert predictor.levels is None and predictor.pool == 1
    assert predictor.span.tolist() == [0, 1]


def test_the_denoiser_is_told_how_much_amyloid_there_is():
    metadata = metadata_of(label_in_training="suvr")
    assert_close(metadata["soft_labels"][:, 1], (torch.tensor(SUVR) - 1.05) / 0.45)
    assert_close(metadata["soft_labels"].sum(dim=1), torch.ones(6))
    predictor = LabelPredictor.from_state(metadata["label_predictor"])
    assert predictor.levels.tolist() == pytest.approx([1.05, 1.5])
    assert predictor.span.tolist() == pytest.approx([-2 / 9, 11 / 9])  # of the training list


def test_without_labels_the_denoiser_is_told_nothing_and_without_a_prediction_there_is_no_predictor():
    metadata = metadata_of(label_in_training="none")
    assert not metadata["soft_labels"].any() and metadata["label_predictor"] is None
    metadata = metadata_of(label_in_training="true", label_at_sampling="none")
    assert metadata["soft_labels"].any() and metadata["label_predictor"] is None


@pytest.mark.parametrize("in_training", ["true", "suvr"])
def test_shuffling_moves_labels_of_the_training_list_and_of_the_predictor_with_them(monkeypatch, in_training):
    """The validation list is left alone: its loss says what the denoiser has learnt."""
    fitted = {}

    def cross_fit(cls, mri, labels, soft_labels, *rest) -> SimpleNamespace:
        fitted.update(labels=labels, soft_labels=soft_labels)
        return SimpleNamespace(state=lambda: "its state")
    monkeypatch.setattr(LabelPredictor, "cross_fit", classmethod(cross_fit))
    plain = metadata_of(label_in_training=in_training)["soft_labels"]
    moved = []
    for seed in range(9):
        metadata = metadata_of(label_in_training=in_training, shuffle_labels=True, seed=seed)
        soft_labels, order = metadata["soft_labels"], label_order(4, seed, shuffled=True)
        assert torch.equal(soft_labels[:4], plain[:4][order])
        assert torch.equal(soft_labels[4:], plain[4:])
        assert metadata["label_predictor"] == "its state"
        assert fitted["labels"].tolist() == (order % 2).tolist()
        np.testing.assert_array_equal(fitted["soft_labels"], soft_labels[:4].numpy())
        moved.append(not torch.equal(soft_labels, plain))
    assert any(moved)


def test_the_validation_list_has_no_part_in_the_predictor():
    one = metadata_of(label_in_training="suvr")
    other = metadata_of([*SUVR[:4], 9.0, 5.0], label_in_training="suvr")
    for name, value in one["label_predictor"].items():
        assert np.array_equal(value, other["label_predictor"][name]), name
    assert torch.equal(one["soft_labels"][:4], other["soft_labels"][:4])
    assert not torch.equal(one["soft_labels"][4:], other["soft_labels"][4:])


def test_a_pet_without_uptake_in_the_reference_region_is_named():
    with pytest.raises(InputError, match="no uptake in the reference region in the PET of 3, 4"):
        metadata_of([1.0, 1.4, 1.1, float("nan"), float("nan"), 1.0], label_in_training="suvr")


# ---------------------------------------------------------------- the predictor of the label

def planted(n: int, strength: float, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """MRIs [n, 1, 12, 12, 12] in one corner of which the label shows, on both sides as atrophy does, and the
    labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    mri = torch.from_numpy(rng.normal(0.5, 0.1, (n, 1, 12, 12, 12)).astype(np.float32))
    mri[:, :, :, :6, :6] += strength * torch.from_numpy(y).view(-1, 1, 1, 1, 1)
    return mri, y


@pytest.fixture
def left_out(monkeypatch) -> dict:
    """The logits of subjects by fits that did not see them, which the calibration sees, as probabilities."""
    seen = {}

    def spy(logits, labels):
        calibration = calibrate(logits, labels)
        seen["probabilities"] = calibrated(logits, calibration)
        return calibration
    monkeypatch.setattr(ridge, "calibrate", spy)
    return seen


WHOLE = torch.ones(12, 12, 12)


def test_folds_leave_every_subject_out_once_with_every_label_in_each():
    y = np.array([0] * 12 + [1] * 7)
    folds = list(folds_of(y, 3))
    assert sorted(np.concatenate([without for _, without in folds])) == list(range(19))
    for rows, without in folds:
        assert set(y[rows]) == {0, 1} == set(y[without])
        assert not set(rows) & set(without)
    with pytest.raises(InputError, match="holds one subject with some label"):
        list(folds_of(np.array([0, 0, 1]), 0))


def test_ridge_regression_finds_a_planted_label_and_its_state_gives_the_same_probabilities(left_out):
    mri, y = planted(80, 0.03, 0)
    brain = WHOLE.clone()
    brain[:, :, 9:] = 0
    predictor = LabelPredictor.cross_fit(mri, y, np.eye(2)[y], brain, 1, 0)
    new, truth = planted(200, 0.03, 1)
    found = predictor.probabilities(new)
    assert roc_auc_score(truth, found[:, 1]) > 0.85
    assert roc_auc_score(y, left_out["probabilities"][:, 1]) > 0.75
    assert_close(found.sum(1), torch.ones(200))
    assert ((found[:, 1].numpy() - truth) ** 2).mean() < 0.18  # probabilities, not only an order
    again = LabelPredictor.from_state(predictor.state())
    assert torch.equal(again.probabilities(new), found)
    assert torch.equal(again.soft_labels(new), predictor.soft_labels(new))
    assert torch.equal(predictor.probabilities(new[7:8]), found[7:8])  # alike in any batch
    assert_close(predictor.probabilities(new.flip(2)), found, atol=1e-5, rtol=1e-4)  # both sides are one
    outside = new.clone()
    outside[..., 9:] = 100.0
    assert torch.equal(predictor.probabilities(outside), found)


def test_a_predictor_pools_the_mri_as_it_was_pooled_for_its_fit():
    mri, y = planted(40, 0.05, 0)
    fine = mri.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    coarse_fit = LabelPredictor.cross_fit(mri, y, np.eye(2)[y], WHOLE, 1, 0)
    fine_fit = LabelPredictor.cross_fit(pool_volume(fine, 2), y, np.eye(2)[y], WHOLE, 2, 0)
    assert_close(fine_fit.probabilities(fine), coarse_fit.probabilities(mri), atol=1e-5, rtol=1e-4)


def test_what_a_state_holds_is_plain_tensors_that_a_checkpoint_can_keep(tmp_path):
    mri, y = planted(20, 0.05, 0)
    levels = torch.tensor([1.0, 1.5], dtype=torch.float64)
    predictor = LabelPredictor.cross_fit(mri, y, np.eye(2)[y], WHOLE, 1, 0, levels)
    torch.save(predictor.state(), tmp_path / "state")
    again = LabelPredictor.from_state(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(again.probabilities(mri), predictor.probabilities(mri))
    assert torch.equal(again.levels, levels)


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
    assert distance((1 + 0.3 * z / 11) * head(1)) < 0.3 * atrophy  # 30 % more on top than in the middle
    assert distance(head(1) + (~brain) * 5) < 1e-6


def test_ridge_regression_predicts_how_much_and_stays_within_what_training_has_seen(left_out):
    rng = np.random.default_rng(0)
    mri, y = planted(120, 0.0, 0)
    load = y + 0.3 * rng.standard_normal(120)
    mri[:, :, :, :6, :6] += 0.03 * torch.from_numpy(load).float().view(-1, 1, 1, 1, 1)
    soft_labels = np.stack([1 - load, load], axis=1)
    predictor = LabelPredictor.cross_fit(mri, y, soft_labels, WHOLE, 1, 0)
    found, probabilities = predictor.soft_labels(mri), left_out["probabilities"][:, 1].numpy()
    assert np.corrcoef(found[:, 1], load)[0, 1] > 0.8
    assert_close(found.sum(dim=1), torch.ones(120))
    assert roc_auc_score(y, probabilities) > 0.75 and ((probabilities - y) ** 2).mean() < 0.2
    far = predictor.soft_labels(mri + 100 * (mri - mri.mean(0)))
    assert far[:, 1].max().item() == pytest.approx(soft_labels.max())
    assert far[:, 1].min().item() == pytest.approx(soft_labels.min())


def test_what_a_subject_gets_in_cross_fitting_does_not_depend_on_its_own_label(left_out):
    mri, y = planted(40, 0.0, 3)
    LabelPredictor.cross_fit(mri, y, np.eye(2)[y], WHOLE, 1, 0)
    auc = roc_auc_score(y, left_out["probabilities"][:, 1])
    assert abs(auc - 0.5) < 0.3                            # a fit that saw them would reach 1
    three = np.arange(40) % 3
    predictor = LabelPredictor.cross_fit(mri, three, np.eye(3)[three], WHOLE, 1, 0)
    assert left_out["probabilities"].shape == (40, 3) and predictor.probabilities(mri).shape == (40, 3)


def test_calibration_brings_logits_to_the_frequencies():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-(0.3 * margin + 0.5)))).astype(int)
    scale, shift = calibrate(torch.stack([torch.zeros(4000), torch.from_numpy(margin).float()], 1), y)
    assert scale.tolist() == [pytest.approx(0.3, abs=0.05)] * 2
    assert shift[1].item() == pytest.approx(0.5, abs=0.1)
    torch.manual_seed(0)
    logits = torch.from_numpy(rng.normal(0, 1, (4000, 3))).float()
    y = torch.distributions.Categorical(logits=0.5 * logits).sample().numpy()
    calibration = calibrate(logits, y)
    assert calibration[0].tolist() == [pytest.approx(0.5, abs=0.1)] * 3
    assert_close(calibrated(logits, calibration), (calibration[0, 0] * logits).softmax(dim=1))


def test_an_mri_that_predicts_the_opposite_says_nothing():
    """Of logits that fall where the label rises, only the frequency of the labels is left."""
    y = np.arange(200) % 4 == 0
    logits = torch.from_numpy(np.stack([y, ~y], axis=1).astype(np.float32))
    probabilities = calibrated(logits, calibrate(logits, y.astype(int)))
    assert torch.equal(probabilities[0], probabilities[1])


def test_corrected_soft_labels_add_what_the_suvr_lacks():
    predictor = LabelPredictor(*[None] * 6, levels=torch.tensor([1.0, 1.5]))
    soft_labels = torch.tensor([[0.6, 0.4], [0.6, 0.4], [1.2, -0.2], [0.6, 0.4]])
    # as it should be, 0.2 of the span too low, 1.0 too high, unknown
    suvr = torch.tensor([1.2, 1.1, 1.4, float("nan")])
    expected = torch.tensor([[0.6, 0.4], [0.4, 0.6], [2.2, -1.2], [0.6, 0.4]])
    assert_close(predictor.corrected(soft_labels, suvr), expected)


# ---------------------------------------------------------------- the linear classifier

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
    assert_close(found.sum(1), torch.ones(20))
    assert (found.argmax(1).numpy() == labels[40:]).mean() > 0.8
    assert_close(LabelClassifier.from_state(classifier.state()).probabilities(volumes[40:]), found)
    outside = volumes[40:].clone()
    outside[:, :, :2] = 100.0                              # what lies outside the brain has no say
    assert_close(classifier.probabilities(outside), found)
    assert torch.equal(classifier.probabilities(volumes[45:46]), found[5:6])  # alike in any batch


def test_collapsed_classifier_equals_the_scikit_learn_pipeline():
    rng = np.random.default_rng(1)
    # one positive: no cross-validation
    pooled, labels = rng.normal(size=(9, 1, 3, 3, 3)), np.array([1] + [0] * 8)
    classifier = LabelClassifier.fit(pooled, labels, np.ones((3, 3, 3), bool), 1, seed=0)
    pipeline = make_pipeline(StandardScaler(), PCA(0.9, svd_solver="full"), LogisticRegression(C=1e-4))
    pipeline.fit(pooled.reshape(9, -1), labels)
    new = rng.normal(size=(5, 1, 3, 3, 3))
    expected = pipeline.predict_proba(new.reshape(5, -1))
    np.testing.assert_allclose(classifier.probabilities(torch.from_numpy(new)), expected, atol=1e-6)


def test_blocks_are_about_8_mm_or_about_as_wide_as_is_asked_for():
    assert [pool_width(mm) for mm in (1.0, 1.5, 2.0, 4.0, 8.0, 12.0)] == [8, 5, 4, 2, 1, 1]
    assert [pool_width(mm, 4.0) for mm in (1.0, 1.5, 2.0, 4.0, 8.0)] == [4, 3, 2, 1, 1]


def test_pooling_takes_the_mean_of_blocks_and_leaves_out_the_voxels_after_the_last_whole_one():
    volume = torch.rand(2, 1, 5, 4, 7)
    pooled = pool_volume(volume, 2)
    assert pooled.shape == (2, 1, 2, 2, 3)
    assert_close(pooled[1, 0, 1, 0, 2], volume[1, 0, 2:4, 0:2, 4:6].mean())
    assert torch.equal(pool_volume(volume, 1), volume)


@pytest.mark.parametrize("n_labels", [2, 3])
def test_the_penalty_is_the_one_of_scikit_learns_search(n_labels):
    rng = np.random.default_rng(n_labels)
    labels = np.arange(24) % n_labels
    features = rng.standard_normal((24, 30)) + 0.4 * labels[:, None]
    pipeline = make_pipeline(StandardScaler(), PCA(linear.COMPONENTS, svd_solver="full"),
                             LogisticRegression(max_iter=1000))
    search = GridSearchCV(pipeline, {"logisticregression__C": linear.STRENGTHS}, scoring="neg_log_loss",
                          cv=StratifiedKFold(5, shuffle=True, random_state=3)).fit(features, labels)
    found = linear._fit_pipeline(features, labels, seed=3)
    assert search.best_params_["logisticregression__C"] == found[-1].C
    assert np.array_equal(found[-1].coef_, search.best_estimator_[-1].coef_)
