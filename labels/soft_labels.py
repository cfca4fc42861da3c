"""The way of the label: which one the denoiser is trained with, and which one each draw gets for an MRI whose label is not known."""
import numpy as np
import torch
from torch import Tensor

from experiment.experiment import Experiment
from labels.linear import pool_volume, pool_width
from labels.ridge import INPUT_MM, RidgeClassifier
from runtime.logs import progress_bar
from utils import InputError, derived_seed


def label_facts(exp: Experiment) -> dict:
    """What stage 2 needs of the labels: classifier, the state of what predicts a label from an MRI, or None; and label_weights [n, K]
    float32, those of the label embeddings for the scans of the training list and then of the validation list, in their order.

    Raises InputError if they are to follow from the SUVR and the PETs do not have any that fits the labels.
    """
    cfg, labels, levels = exp.cfg, training_labels(exp), None
    if cfg.label_in_training == "suvr":
        weights, levels = suvr_weights(exp)
    else:
        weights = true_weights(exp)
    state = None
    if cfg.predicts_label:
        classifier = fit_predictor(exp, labels, weights[:len(labels)])
        classifier.levels = levels
        state = classifier.state()
    return {"classifier": state, "label_weights": weights * (cfg.label_in_training != "none")}


def label_weights(exp: Experiment, facts: dict) -> dict[str, Tensor]:
    """ID -> weights of the label embeddings [K], of training and validation list, from label_facts."""
    return {scan.id: weights for scan, weights in zip(exp.cohort.train + exp.cohort.validation, facts["label_weights"], strict=True)}


def training_order(exp: Experiment) -> np.ndarray:
    """Whose label each subject of the training list has, [n]: his own, but for the control shuffle_labels, in which they change places."""
    own = np.arange(len(exp.cohort.train))
    return np.random.default_rng(derived_seed(exp.cfg.seed, "shuffled labels")).permutation(own) if exp.cfg.shuffle_labels else own


def training_labels(exp: Experiment) -> np.ndarray:
    """The labels that training sees, [n]."""
    return np.array([scan.label for scan in exp.cohort.train])[training_order(exp)]


def true_weights(exp: Experiment) -> Tensor:
    """A weight of 1 for the label of each scan, as in label_facts."""
    labels = [*training_labels(exp), *(scan.label for scan in exp.cohort.validation)]
    return torch.eye(exp.cfg.num_classes)[torch.tensor(labels)]


def suvr_weights(exp: Experiment) -> tuple[Tensor, Tensor]:
    """Weights that say how much amyloid there is, as in label_facts: a scan with the mean SUVR of a label has a weight of 1 for that label,
    in between they are mixed, and beyond one of them is negative. With them those two mean SUVRs, [2]."""
    scans = exp.cohort.train + exp.cohort.validation
    loader = progress_bar(exp.batches(scans, "pet"), desc="SUVR of the PETs", unit="batch")
    suvr = np.array([exp.regions.measure(pet)["SUVR"] for batch in loader for pet in batch["pet"][:, 0].numpy()])
    if not np.isfinite(suvr).all():
        without = [scan.id for scan, value in zip(scans, suvr, strict=True) if not np.isfinite(value)]
        raise InputError(f"label_in_training suvr: no uptake in the reference_mask in the PET of {', '.join(without)}")
    train, labels = suvr[:len(exp.cohort.train)], np.array([scan.label for scan in exp.cohort.train])
    negative, positive = (train[labels == label].mean() for label in (0, 1))
    if not negative < positive:
        raise InputError(f"label_in_training suvr: the mean SUVR of the training list is {negative:.3f} with label 0 and {positive:.3f} "
                         "with label 1, but amyloid raises it; look at the labels, and at cortex_mask and reference_mask")
    share = (np.concatenate([train[training_order(exp)], suvr[len(train):]]) - negative) / (positive - negative)
    return torch.from_numpy(np.stack([1 - share, share], axis=1)).float(), torch.tensor([negative, positive])


def fit_predictor(exp: Experiment, labels: np.ndarray, weights: Tensor) -> RidgeClassifier:
    """Fit the predictor of the label on the training MRIs. labels: [n]; weights: [n, K], what the ridge regression is fitted to."""
    pool = pool_width(exp.voxel_mm, INPUT_MM)
    loader = progress_bar(exp.batches(exp.cohort.train, "mri"), desc="label classifier", unit="batch")
    pooled = torch.cat([pool_volume(batch["mri"], pool) for batch in loader])                # [n, 1, d, h, w]
    brain = pool_volume(torch.from_numpy(exp.brain).float()[None, None], pool)[0, 0]
    return RidgeClassifier.cross_fit(pooled, labels, weights.numpy(), brain, pool, exp.cfg.seed)
