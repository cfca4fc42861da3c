"""The methods that the synthetic PET is scored beside: the trained baselines, the mean PET, and a phantom's
oracle."""
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from torch import Tensor

from baselines import mean_pet, oracle
from baselines.baseline import Baseline
from baselines.regression import Labels
from config import BASELINES, DENOISER, LABELLED, ON_IMAGES
from evaluation.scores import Predict, evaluate
from experiment.experiment import Experiment
from experiment.networks import build_baseline, cells_of, latent_scale
from experiment.session import begin_training, plot_history
from experiment.stage_2 import stage_2_metadata
from experiment.survey import Survey
from labels.soft_labels import label_order
from model import AAE
from runtime.checkpoints import check_settings, load_checkpoint, restore
from runtime.fit import fit
from runtime.logs import say
from utils import InputError, seed_everything, weights_key


def _bound_to(name: str, aae: AAE | None) -> dict:
    """What a checkpoint is bound to beside its settings: an autoencoder, if the baseline works on latents."""
    return {"autoencoder": weights_key(aae)} if name in DENOISER else {}


# ---------------------------------------------------------------- training

def train_baselines(exp: Experiment) -> None:
    """Train the baselines of the settings, each in as many epochs as config.py:Config.epochs_of says."""
    cfg, aae, latents, training = exp.cfg, None, {}, {}
    if cfg.baselines_need_stage_1:
        aae = exp.networks.best_aae()
        latents = exp.load_latents(aae)
        training = {scan.id: latents[scan.id] for scan in exp.cohort.train}
    for name in cfg.baselines:
        if name not in cfg.trainable_baselines:
            say("baselines", f"{name} is left out: with label_at_sampling none there is no label to give it")
            continue
        seed_everything(cfg.seed, name)
        metadata = {}
        if name in LABELLED:
            metadata = stage_2_metadata(exp, latents, exp.survey())
        elif name in DENOISER:
            mean, std = latent_scale(cfg, training, None)
            metadata = {"latent_mean": mean, "latent_std": std}
        labels = labels_of(exp, name, metadata)
        baseline = build_baseline(name, cfg, exp.device, aae, training, labels, metadata)
        train_baseline(exp, baseline, aae, metadata)
    plot_history(exp)


def labels_of(exp: Experiment, name: str, metadata: dict) -> Labels | None:
    """What the baseline knows of labels, from the metadata of stage 2 or of its own checkpoint; None for one
    without."""
    if name not in LABELLED:
        return None
    scans = exp.cohort.train + exp.cohort.validation
    of = {scan.id: label for scan, label in zip(scans, metadata["soft_labels"], strict=True)}
    predictor = exp.networks.label_predictor(metadata)

    def predict(mri: Tensor, ids: list[str] | None) -> Tensor:
        """The label of MRIs [B, 1, D, H, W], [B, K], as the diffusion is given it."""
        return predictor.label(mri, cells_of(exp.people, ids))

    image_loss = 0.0 if name in ON_IMAGES else exp.cfg.image_loss
    return Labels(of, predict, image_loss, exp.survey().pet_std)


def train_baseline(exp: Experiment, baseline: Baseline, aae: AAE | None, metadata: dict) -> None:
    """Train one baseline; validate, and keep the best epoch. metadata: plain values that its checkpoint
    keeps."""
    cfg, bound_to = exp.cfg, _bound_to(baseline.name, aae)
    if bound_to:
        bound_to["aae_epochs"] = cfg.aae_epochs            # an autoencoder that must not be trained further
    run = exp.stage_run(baseline.name, baseline.parts, **bound_to)
    run.metadata = run.metadata or metadata
    epochs = cfg.epochs_of(baseline.name)
    subjects = exp.training_batches(cfg.ldm_batch_size, *baseline.modalities, jitter=baseline.shifts_crop)
    validation = exp.batches(exp.cohort.validation, "mri", "pet", divided=True)

    labels = _training_labels(exp)

    def step(batch: dict) -> dict[str, float]:
        """Take the updates of a batch."""
        batch["label"] = batch["label"].new_tensor([labels[name] for name in batch["id"]])
        return baseline.step(batch, run.step, exp.cast)

    def validate(title: str) -> tuple[dict[str, float], pd.DataFrame]:
        """The scores on the validation list."""
        predict = BaselinePrediction(baseline.predict_for_validation, exp.cast)
        return {}, evaluate(predict, validation, exp.measurement.image_scores, title)

    begin_training(exp, run, subjects, epochs)
    fit(run, subjects, step, validate=validate, epochs=epochs, seed=cfg.seed,
        begin_epoch=baseline.begin_epoch, validate_every=cfg.validation_every)


def _training_labels(exp: Experiment) -> dict[str, int]:
    """ID -> label of the training list, as training is to see it."""
    train, cfg = exp.cohort.train, exp.cfg
    order = label_order(len(train), cfg.seed, cfg.shuffle_labels)
    return {scan.id: train[place].label for scan, place in zip(train, order, strict=True)}


class BaselinePrediction:
    """The prediction of a baseline for evaluate: MRI -> PET in [0, 1]. evaluations: of networks, a scan."""

    def __init__(self, predict: Callable, cast: Callable, evaluations: int = 1):
        self.predict, self.cast, self.evaluations = predict, cast, evaluations

    def __call__(self, batch: dict) -> Tensor:
        """The PETs of a batch, [B, 1, D, H, W]."""
        return self.predict(batch["mri"], self.cast, batch["id"])


# ---------------------------------------------------------------- for the test stage

def reference_methods(exp: Experiment, aae: AAE, survey: Survey,
                      epochs: dict[str, int]) -> dict[str, Predict]:
    """Name -> predict function of every method beside il_cldm: trained baselines that fit this experiment (of
    others it says why not), the mean PET, and the oracle where a phantom has one for the whole test list.

    epochs: that stage 1 and 2 were trained for, by the settings aae_epochs and ldm_epochs.
    """
    methods: dict[str, Predict] = {}
    for name in BASELINES:
        best, last = exp.networks.best_path(name), exp.networks.last_path(name)
        if not (best.exists() or last.exists()):
            continue
        try:
            methods |= _trained(exp, name, aae)
            trained = load_checkpoint(last)["epoch"] if last.exists() else None
        except InputError as error:
            say("test", f"{name} is left out: {' '.join(line.strip() for line in str(error).splitlines())}")
            continue
        expected = epochs["ldm_epochs"] + (epochs["aae_epochs"] if name in ON_IMAGES else 0)
        if trained not in (None, expected):
            say("test", f"{name} is trained for {trained} epochs, IL-CLDM for {expected}; --stages baselines "
                        "goes on")
    methods[mean_pet.NAME] = mean_pet.predict_mean(survey.mean_pet)
    data_dir = Path(exp.cfg.data_dir)
    if all(oracle.oracle_file(data_dir, scan.id).is_file() for scan in exp.cohort.test):
        methods[oracle.NAME] = oracle.read_oracle(data_dir, exp.crop)
    return methods


def _trained(exp: Experiment, name: str, aae: AAE) -> dict[str, Predict]:
    """The methods of a baseline of the best epoch. Raises InputError if it is not of this experiment."""
    path = exp.networks.best_path(name)
    saved = load_checkpoint(path)
    check_settings(path, saved, exp.settings(name) | _bound_to(name, aae))
    if name in DENOISER and not {"latent_mean", "latent_std"} <= saved["metadata"].keys():
        raise InputError(f"{path} does not say how its latents were scaled")
    labels = labels_of(exp, name, saved["metadata"])
    baseline = build_baseline(name, exp.cfg, exp.device, aae, labels=labels, metadata=saved["metadata"])
    for part, network in baseline.networks.items():
        restore(network.eval().requires_grad_(False), saved["state"].get(part), path)
    return {name: BaselinePrediction(method.predict, exp.cast, method.evaluations)
            for name, method in baseline.methods().items()}
