"""The methods that the synthetic PET is scored beside: the trained regressions, the mean PET, and a phantom's
oracle."""
from pathlib import Path

import pandas as pd
from torch.optim import AdamW

from baselines import mean_pet, oracle
from baselines.regression import Labels, Regression
from config import BASELINES, LABELLED, ON_IMAGES
from evaluation.scores import Predict, evaluate
from experiment.experiment import Experiment
from experiment.networks import build_baseline
from experiment.session import begin_training, plot_history
from experiment.stage_2 import stage_2_metadata
from experiment.survey import Survey
from labels.ridge import LabelPredictor
from model import AAE
from runtime.checkpoints import check_settings, load_checkpoint, restore
from runtime.fit import fit
from runtime.logs import say
from utils import EMA, InputError, seed_everything, weights_key


def _bound_to(baseline_name: str, aae: AAE) -> dict:
    """What else than its settings a checkpoint belongs to: an autoencoder, unless it knows none."""
    return {} if baseline_name in ON_IMAGES else {"autoencoder": weights_key(aae)}


# ---------------------------------------------------------------- training

def train_baselines(exp: Experiment) -> None:
    """Train the regressions from MRI to PET, in as many epochs as stage 2."""
    cfg, aae = exp.cfg, exp.networks.best_aae()
    latents = exp.load_latents(aae)
    training = {scan.id: latents[scan.id] for scan in exp.cohort.train}
    metadata = {}
    if set(cfg.trainable_baselines) & set(LABELLED):
        metadata = stage_2_metadata(exp, latents, exp.survey())
    for name in cfg.baselines:
        if name not in cfg.trainable_baselines:
            say("baselines", f"{name} is left out: with label_at_sampling none there is no label to give it")
            continue
        seed_everything(cfg.seed, name)
        labels = labels_of(exp, name, metadata)
        train_baseline(exp, name, build_baseline(name, cfg, exp.device, aae, training, labels), aae, metadata)
    plot_history(exp)


def labels_of(exp: Experiment, name: str, metadata: dict) -> Labels | None:
    """What the baseline knows of labels, from the metadata of stage 2 or of its own checkpoint; None for one
    without."""
    if name not in LABELLED:
        return None
    scans = exp.cohort.train + exp.cohort.validation
    of = {scan.id: label for scan, label in zip(scans, metadata["soft_labels"], strict=True)}
    predictor = LabelPredictor.from_state(metadata["label_predictor"])
    image_loss = 0.0 if name in ON_IMAGES else exp.cfg.image_loss
    return Labels(of, predictor.label, image_loss, exp.survey().pet_std)


def train_baseline(exp: Experiment, name: str, baseline: Regression, aae: AAE, metadata: dict) -> None:
    """Train one regression; validate, keep and use the moving average of its network. metadata: that of stage
    2, of which a labelled one keeps the labels."""
    cfg, network, bound_to = exp.cfg, baseline.network, _bound_to(name, aae)
    if bound_to:
        bound_to["aae_epochs"] = cfg.aae_epochs            # an autoencoder that must not be trained further
    ema, opt = EMA(network, cfg.ema_decay, cfg.ema_start), AdamW(network.parameters(), cfg.ldm_lr, fused=True)
    run = exp.stage_run(name, {"unet": network, "ema": ema.module, "opt": opt}, **bound_to)
    run.metadata = run.metadata or baseline.metadata()
    if baseline.labels:
        run.metadata |= {key: metadata[key] for key in ("soft_labels", "label_predictor")}
    subjects = exp.training_batches(cfg.ldm_batch_size, *baseline.modalities)
    validation = exp.batches(exp.cohort.validation, "mri", "pet", divided=True)

    def step(batch: dict) -> dict[str, float]:
        """Update network and moving average on a batch."""
        losses = baseline.step(opt, batch, exp.cast)
        ema.update(network, run.step)
        return losses

    def validate(title: str) -> tuple[dict[str, float], pd.DataFrame]:
        """The scores of the moving average on the validation list."""
        return {}, evaluate(baseline.predictor(ema.module, exp.cast), validation,
                            exp.measurement.image_scores, title)

    begin_training(exp, run, subjects, cfg.ldm_epochs)
    fit(run, subjects, step, validate=validate, epochs=cfg.ldm_epochs, seed=cfg.seed, rate=cfg.ldm_lr,
        decay=cfg.ldm_lr_decay, validate_every=cfg.validation_every)


# ---------------------------------------------------------------- for the test stage

def reference_methods(exp: Experiment, aae: AAE, survey: Survey) -> dict[str, Predict]:
    """Name -> predict function of every method beside il_cldm: trained regressions that fit this experiment
    (of others it says why not), the mean PET, and the oracle where a phantom has one for the whole test
    list."""
    methods: dict[str, Predict] = {}
    for name in BASELINES:
        best, last = exp.networks.best_path(name), exp.networks.last_path(name)
        if not (best.exists() or last.exists()):
            continue
        try:
            methods[name] = _trained(exp, name, aae)
            epochs = load_checkpoint(last if last.exists() else best)["epoch"]
        except InputError as error:
            say("test", f"{name} is left out: {' '.join(line.strip() for line in str(error).splitlines())}")
            continue
        if epochs != exp.trained_epochs.get("ldm", epochs):
            say("test", f"{name} is trained for {epochs} epochs, stage 2 for {exp.trained_epochs['ldm']}; "
                        "--stages baselines goes on")
    methods[mean_pet.NAME] = mean_pet.predict_mean(survey.mean_pet)
    data_dir = Path(exp.cfg.data_dir)
    if all(oracle.oracle_file(data_dir, scan.id).is_file() for scan in exp.cohort.test):
        methods[oracle.NAME] = oracle.read_oracle(data_dir, exp.crop)
    return methods


def _trained(exp: Experiment, name: str, aae: AAE) -> Predict:
    """The prediction of a baseline by the moving average of its best epoch. Raises InputError if it is not of
    this experiment."""
    path = exp.networks.best_path(name)
    saved = load_checkpoint(path)
    check_settings(path, saved, exp.settings(name) | _bound_to(name, aae))
    if name not in ON_IMAGES and not {"latent_mean", "latent_std"} <= saved["metadata"].keys():
        raise InputError(f"{path} does not say how its latents were scaled")
    labels = labels_of(exp, name, saved["metadata"])
    baseline = build_baseline(name, exp.cfg, exp.device, aae, labels=labels, metadata=saved["metadata"])
    network = baseline.network.eval().requires_grad_(False)
    restore(network, saved["state"].get("ema"), path)
    return baseline.predictor(network, exp.cast)
