"""The methods that the synthetic PET is scored beside: the trained regressions, the mean PET, and a phantom's
oracle."""
from pathlib import Path

import pandas as pd
from torch.optim import AdamW

from baselines import mean_pet, oracle
from baselines.latent_regression import LatentRegression
from baselines.regression import Regression
from config import BASELINES
from evaluation.scores import Predict, evaluate
from experiment.experiment import Experiment
from experiment.networks import build_baseline
from experiment.session import begin_training, plot_history
from experiment.survey import Survey
from model import AAE
from runtime.checkpoints import check_settings, load_checkpoint, restore
from runtime.fit import fit
from runtime.logs import say
from utils import EMA, InputError, seed_everything, weights_key


def _bound_to(baseline_name: str, aae: AAE) -> dict:
    """What else than its settings a checkpoint belongs to: an autoencoder, unless it knows none."""
    return {"autoencoder": weights_key(aae)} if baseline_name == LatentRegression.name else {}


# ---------------------------------------------------------------- training

def train_baselines(exp: Experiment) -> None:
    """Train the regressions from MRI to PET, in as many epochs as stage 2."""
    aae = exp.networks.best_aae()
    latents = exp.load_latents(aae)
    training = {scan.id: latents[scan.id] for scan in exp.cohort.train}
    for name in BASELINES:
        seed_everything(exp.cfg.seed, name)
        train_baseline(exp, build_baseline(name, exp.cfg, exp.device, aae, training), aae)
    plot_history(exp)


def train_baseline(exp: Experiment, baseline: Regression, aae: AAE) -> None:
    """Train one regression; validate, keep and use the moving average of its network."""
    cfg, network, bound_to = exp.cfg, baseline.network, _bound_to(baseline.name, aae)
    if bound_to:
        bound_to["aae_epochs"] = cfg.aae_epochs            # an autoencoder that must not be trained further
    ema, opt = EMA(network, cfg.ema_decay, cfg.ema_start), AdamW(network.parameters(), cfg.ldm_lr, fused=True)
    run = exp.stage_run(baseline.name, {"unet": network, "ema": ema.module, "opt": opt}, **bound_to)
    run.metadata = run.metadata or baseline.metadata()
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
    if name == LatentRegression.name and not {"latent_mean", "latent_std"} <= saved["metadata"].keys():
        raise InputError(f"{path} does not say how its latents were scaled")
    baseline = build_baseline(name, exp.cfg, exp.device, aae, metadata=saved["metadata"])
    network = baseline.network.eval().requires_grad_(False)
    restore(network, saved["state"].get("ema"), path)
    return baseline.predictor(network, exp.cast)
