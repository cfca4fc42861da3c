"""The data of stage 2: scaled latents, soft labels and the predictor of the label, and the batches made of
them."""
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiment.experiment import Experiment
from experiment.networks import latent_scale
from experiment.survey import Survey
from labels.linear import pool_volume, pool_width
from labels.ridge import INPUT_MM, LabelPredictor
from labels.soft_labels import label_order, one_hot, suvr_levels, suvr_soft_labels
from model import LatentSpace, UNet
from runtime import gpu
from runtime.ranks import from_rank_0
from utils import InputError


class LatentBatch(NamedTuple):
    """A batch of stage 2.

    z_0: [B, C, d, h, w], scaled. mri: [B, 1, D, H, W]. pet: [B, 1, D, H, W], or None without image_loss.
    label: [B, K], weights of the K label embeddings, by the setting label_in_training:

        suvr    [1 - s, s], s = (SUVR of the subject's own PET - mean_0) / (mean_1 - mean_0); mean_k: over the
                training subjects of label k. s may lie below 0 and above 1
        true    1 for the subject's own label, else 0
        none    0 everywhere

    The default, auto, becomes suvr or true before training (Config, experiment/automatic.py).
    """
    z_0: Tensor
    mri: Tensor
    label: Tensor
    pet: Tensor | None = None


class LatentBatches:
    """Batches of stage 2 from batches of volumes: looks up z_0 and soft label of every scan of the training
    and validation list, and brings all to the device.

    latents: ID -> E(x). soft_labels: [n, K] of the training and then the validation list.
    """

    def __init__(self, exp: Experiment, space: LatentSpace, latents: dict[str, Tensor], soft_labels: Tensor):
        scans = exp.cohort.train + exp.cohort.validation
        self.device, self.with_pet = exp.device, bool(exp.cfg.image_loss)
        self.label_of = {scan.id: label for scan, label in zip(scans, soft_labels, strict=True)}
        self.z_0_of = {name: space.scale(latent) for name, latent in latents.items()}

    def from_volumes(self, batch: dict) -> LatentBatch:
        """The latent batch of a batch {id, mri, and pet where images are compared}."""
        z_0 = torch.stack([self.z_0_of[name] for name in batch["id"]])
        label = torch.stack([self.label_of[name] for name in batch["id"]])
        pet = batch["pet"].to(self.device, non_blocking=True) if self.with_pet else None
        return LatentBatch(z_0.to(self.device), batch["mri"].to(self.device, non_blocking=True),
                           label.to(self.device), pet)


def capture_cuda_graphs(exp: Experiment, unet: UNet) -> None:
    """On a GPU: capture the passes of the denoiser's training, whose batches all have one size, as CUDA
    graphs; not those that recompute activations, which cannot be captured."""
    cfg, n = exp.cfg, exp.cfg.ldm_batch_size
    if cfg.recompute:
        return
    shapes = ((n, cfg.latent_channels, *cfg.latent_size), (n, 1, *cfg.volume_size), (n, cfg.num_classes))
    z_t, mri, label = (torch.zeros(shape, device=exp.device) for shape in shapes)
    t = torch.zeros(n, dtype=torch.int64, device=exp.device)
    gpu.capture_training(unet, exp.networks.dtype, z_t, mri, t, label)


def stage_2_metadata(exp: Experiment, latents: dict[str, Tensor], survey: Survey) -> dict:
    """What training and sampling need of the training list, as the checkpoint of stage 2 keeps it:
    latent_mean and latent_std, soft_labels [n, K] of the training and then the validation list,
    label_predictor (its state, or None), affine of the cohort, phantom, tracer ('' if not known to be one).

    Raises InputError if the soft labels are to follow from the SUVR, and the PETs have none that fits the
    labels.
    """
    mean, std = latent_scale(exp.cfg, {scan.id: latents[scan.id] for scan in exp.cohort.train}, None)
    soft_labels, predictor = from_rank_0(_labels, exp, survey)
    return {"latent_mean": mean, "latent_std": std, "soft_labels": soft_labels, "label_predictor": predictor,
            "affine": torch.from_numpy(exp.cohort.affine), "phantom": exp.is_phantom,
            "tracer": exp.cohort.tracer}


def _labels(exp: Experiment, survey: Survey) -> tuple[Tensor, dict | None]:
    """Soft labels of both lists, and the state of the predictor of the label, or None."""
    cfg, train, validation = exp.cfg, exp.cohort.train, exp.cohort.validation
    order = label_order(len(train), cfg.seed, cfg.shuffle_labels)
    labels = np.array([scan.label for scan in train])
    levels = None
    if cfg.label_in_training == "suvr":
        suvr = _suvr_of(exp, survey)
        levels = suvr_levels(suvr[:len(train)], labels)
        soft_labels = suvr_soft_labels(np.concatenate([suvr[:len(train)][order], suvr[len(train):]]), levels)
    else:
        soft_labels = one_hot(np.concatenate([labels[order], [scan.label for scan in validation]]),
                              cfg.num_classes)
    if cfg.label_in_training == "none":
        soft_labels = torch.zeros_like(soft_labels)
    if not cfg.predicts_label:
        return soft_labels, None
    cells = None if exp.people is None else exp.people.loc[[scan.id for scan in train]]
    predictor = fit_label_predictor(exp, survey, labels[order], soft_labels[:len(train)], levels, cells)
    return soft_labels, predictor.state()


def fit_label_predictor(exp: Experiment, survey: Survey, labels: np.ndarray, soft_labels: Tensor,
                        levels: Tensor | None, cells: pd.DataFrame | None,
                        with_mri: bool = True) -> LabelPredictor:
    """The predictor of the label, fitted to labels [n] and soft labels [n, K] of the training list.

    levels: [2], mean SUVR of each label, if an SUVR made the soft labels. cells: covariates of the list as
    text, or None. with_mri: whether it sees the MRI beside them; a control.
    """
    pool = pool_width(exp.measurement.voxel_mm, INPUT_MM)
    brain = pool_volume(torch.from_numpy(exp.measurement.brain).float()[None, None], pool)[0, 0]
    predictor = LabelPredictor.cross_fit(survey.mri, labels, soft_labels.numpy(), brain, pool, exp.cfg.seed,
                                         levels, cells, with_mri)
    if levels is not None:
        predictor.regions = exp.measurement.region_key()
    return predictor


def _suvr_of(exp: Experiment, survey: Survey) -> np.ndarray:
    """SUVR of the training and then the validation list, [n]. Raises InputError if a PET has none."""
    scans = exp.cohort.train + exp.cohort.validation
    suvr = survey.of(scans)["SUVR"].to_numpy()
    without = [scan.id for scan, value in zip(scans, suvr, strict=True) if not np.isfinite(value)]
    if without:
        raise InputError("label_in_training suvr: no uptake in the reference region in the PET of "
                         f"{', '.join(without)}")
    return suvr
