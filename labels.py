"""The way of the label: which one the denoiser is trained with, and which one each draw gets for an MRI whose label is not known."""
import numpy as np
import torch
from torch import Tensor

from classifier import LabelClassifier, folds_of, pool_volume, pool_width
from experiment import Experiment
from logs import progress_bar
from networks import Predictor
from predictor import INPUT_MM, NetworkClassifier, RidgeClassifier
from utils import derived_seed


def label_facts(exp: Experiment) -> dict:
    """What stage 2 needs of the labels: classifier, the state of what predicts a label from an MRI, or None; and label_weights [n, K]
    float32, those of the label embeddings for the scans of the training list, in its order."""
    cfg, labels = exp.cfg, training_labels(exp)
    one_hot = torch.eye(cfg.num_classes)[torch.from_numpy(labels)]
    if not cfg.least_of_each_label:
        return {"classifier": None, "label_weights": one_hot}
    classifier, left_out = fit_predictor(exp, labels)
    return {"classifier": classifier.state(), "label_weights": left_out if cfg.label_in_training == "predicted" else one_hot}


def label_weights(exp: Experiment, facts: dict) -> dict[str, Tensor]:
    """ID -> weights of the label embeddings [K]: of the training list those of label_facts, of the validation list its labels."""
    validation = {scan.id: torch.eye(exp.cfg.num_classes)[scan.label] for scan in exp.cohort.validation}
    return validation | {scan.id: weights for scan, weights in zip(exp.cohort.train, facts["label_weights"], strict=True)}


def training_labels(exp: Experiment) -> np.ndarray:
    """The labels of the training list, [n]; the control shuffle_labels lets them change places."""
    labels = np.array([scan.label for scan in exp.cohort.train])
    if exp.cfg.shuffle_labels:
        labels = np.random.default_rng(derived_seed(exp.cfg.seed, "shuffled labels")).permutation(labels)
    return labels


def fit_predictor(exp: Experiment, labels: np.ndarray) -> tuple[Predictor, Tensor | None]:
    """Fit the predictor of the settings on the training MRIs: it, and the cross-fitted probabilities [n, K], if training needs them."""
    cfg = exp.cfg
    pool = exp.pool if cfg.label_predictor == "linear" else pool_width(exp.voxel_mm, INPUT_MM)
    loader = progress_bar(exp.batches(exp.cohort.train, "mri"), desc="label classifier", unit="batch")
    pooled = torch.cat([pool_volume(batch["mri"], pool) for batch in loader])                # [n, 1, d, h, w]
    if cfg.label_predictor == "ridge":
        brain = pool_volume(torch.from_numpy(exp.brain).float()[None, None], pool)[0, 0]
        return RidgeClassifier.cross_fit(pooled, labels, brain, pool, cfg.seed)
    if cfg.label_predictor == "network":
        return NetworkClassifier.cross_fit(pooled, labels, pool, cfg.seed, exp.device)

    def fit(rows) -> LabelClassifier:
        return LabelClassifier.fit(pooled[rows].numpy(), labels[rows], exp.brain, pool, cfg.seed)
    classifier, probabilities = fit(slice(None)), None
    if cfg.label_in_training == "predicted":
        probabilities = torch.zeros(len(labels), cfg.num_classes)
        for rows, left_out in folds_of(labels, cfg.seed):
            probabilities[left_out] = fit(rows).of_pooled(pooled[left_out].numpy()).float()
    return classifier, probabilities
