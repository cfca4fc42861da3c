"""IL-CLDM: synthesize amyloid PET from T1 MRI (Ou et al., IEEE JBHI 29(2):1221-1231, 2025).

The stages in the paper's order: an adversarial autoencoder (AAE) learns PET volumes (stage 1) and encodes
them; a UNet conditioned on the MRI and the label learns to denoise the latents (stage 2, the latent diffusion
model, LDM); sampled and decoded they are the synthetic PET. Symbols and dimension letters as in model.py;
settings and their defaults in config.py, where PUBLISHED has the published method's (docs/published.md). The
data flow and both losses as formulas: README.md.
"""
from runtime import environment  # noqa: F401, I001  first: it says what is missing before the imports below fail
import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.utils.data import DataLoader

from evaluation.scores import evaluate, mean_over_scans
from experiment.baselines import reference_methods, train_baselines
from experiment.experiment import Experiment
from experiment.networks import LatentSampler, build_aae, build_diffusion, build_discriminator, build_unet
from experiment.scoring import (Clock, ScanSynthesis, TestScores, clear_results, fit_status, read_real,
                                trained_epochs, write_costs, write_results)
from experiment.session import (begin_training, plot_comparison, plot_history, plot_shown_scans, report,
                                run_experiment, tables)
from experiment.stage_2 import LatentBatch, LatentBatches, capture_cuda_graphs, stage_2_metadata
from model import AAE, Diffusion, Discriminator, LatentSpace, UNet
from runtime.checkpoints import StageRun
from runtime.fit import draw_rows, fit, set_cosine_rate, update
from runtime.logs import progress_bar, say
from runtime.signals import leave
from utils import EMA, NotFiniteError, seed_everything, weights_key


# ---------------------------------------------------------------- stage 1: the adversarial autoencoder

def aae_step(aae: AAE, disc: Discriminator, opt_g: Optimizer, opt_d: Optimizer, x: Tensor, lambda_rec: float,
             cast: Callable = nullcontext) -> dict[str, float]:
    """Update the autoencoder, then the discriminator, on x [B, 1, D, H, W] in [0, 1] (hinge loss).

    cast: gives the context, such as autocast, of the forward passes. Returns the terms of both losses.
    """
    with cast():
        x_hat = aae(x)                                                                       # [B, 1, D, H, W]
        loss_rec, loss_adv = F.l1_loss(x_hat.float(), x), -disc(x_hat).float().mean()
    terms = {"rec": loss_rec, "adv": loss_adv}
    losses = update(opt_g, lambda_rec * loss_rec + loss_adv, terms)                          # lambda_rec 100

    with cast():
        real, fake = disc(x).float(), disc(x_hat.detach()).float()             # the hinge loss stops at x_hat
        loss_disc = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return losses | update(opt_d, loss_disc, {"disc": loss_disc})


def train_aae(exp: Experiment) -> None:
    """Train the autoencoder against the discriminator on the training PETs; keep the epoch with the best
    validation score."""
    cfg = exp.cfg
    seed_everything(cfg.seed, "aae")
    aae, disc = build_aae(cfg, exp.device), build_discriminator(cfg, exp.device)
    opt_g = Adam(aae.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=True)
    opt_d = Adam(disc.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=True)
    run = exp.stage_run("aae", {"aae": aae, "disc": disc, "opt_g": opt_g, "opt_d": opt_d})

    # A PET, checked before by dataset.py:check_cohort, is read and brought to RAS by
    # imaging/volumes.py:read_in_range, cropped with a margin by imaging/cache.py:VolumeCache.read, and
    # shifted within it by dataset.py:VolumeDataset. Its settings are crop_start, volume_size and crop_jitter.
    # No intensity is scaled, but by the file's own scale factors; NaN outside the brain is read as 0, and
    # what leaves [0, 1] by at most 0.01 is clipped. The check refuses the rest.
    volumes = exp.training_batches(cfg.aae_batch_size, "pet", jitter=True)
    validation = exp.batches(exp.cohort.validation, "pet", divided=True)

    def step(batch: dict) -> dict[str, float]:
        x = batch["pet"].to(exp.device, non_blocking=True)
        return aae_step(aae, disc, opt_g, opt_d, x, cfg.lambda_rec, exp.cast)

    def validate(title: str) -> tuple[dict[str, float], pd.DataFrame]:
        return {}, evaluate(reconstruct(exp, aae), validation, exp.measurement.image_scores, title)

    begin_training(exp, run, volumes, cfg.aae_epochs)
    fit(run, volumes, step, validate=validate, epochs=cfg.aae_epochs, seed=cfg.seed,
        begin_epoch=partial(set_cosine_rate, run.optimizers, cfg.aae_lr, cfg.aae_lr_decay))
    plot_history(exp)


def reconstruct(exp: Experiment, aae: AAE) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: PET -> its reconstruction in [0, 1]."""
    def predict(batch: dict) -> Tensor:
        """The reconstructions of a batch, [B, 1, D, H, W]."""
        with exp.cast():
            return aae(batch["pet"].to(exp.device)).float().clamp(0, 1)
    return predict


# ---------------------------------------------------------------- between the stages

@torch.no_grad()
def encode(exp: Experiment) -> None:
    """Encode the PETs that stage 2 needs with the best autoencoder; latents that are there already stay."""
    aae = exp.networks.best_aae()
    cache, needed, missing = exp.latents_to_make(aae)
    say("encode", f"{len(missing)} of {len(exp.cohort.train + exp.cohort.validation)} latents are to be "
                  f"made, writes {cache.folder}")
    for batch in progress_bar(exp.batches(needed, "pet", divided=True), desc="encode", unit="batch"):
        with exp.cast():
            latents = aae.encoder(batch["pet"].to(exp.device)).float().cpu()           # E(x), [B, C, d, h, w]
        for name, latent in zip(batch["id"], latents, strict=True):
            if not torch.isfinite(latent).all():
                raise NotFiniteError(f"the latent of {name} is not finite")
            if name in missing:
                cache.save(missing[name], latent)


# ---------------------------------------------------------------- stage 2: the conditioned denoiser

@dataclass(frozen=True)
class Stage2:
    """What the loss of stage 2 depends on beside the denoiser and its batch. The last two are settings of
    config.py."""
    diffusion: Diffusion
    space: LatentSpace
    pet_std: float                                   # standard deviation over all voxels of all training PETs
    image_loss: float = 1.0                                # published: 0
    time_shift: float = 10.0                               # published: 1


def ldm_loss(unet: UNet, stage_2: Stage2, batch: LatentBatch, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """The loss of the denoiser and its terms, at steps t [B] with noise eps [B, C, d, h, w].

    mse: squared error of its prediction of v, or of eps as published (Ho et al. 2020, Eq. 14). image:
    image_loss times the L1 between the decoded estimate of z_0 and the PET, in units of pet_std; its gradient
    reaches the denoiser through the frozen decoder. All t weigh alike; time_shift says how often each is
    drawn.

    Where its inputs come from: z_0 = (E(x) - mean) / std, one number each over the training list; t by
    model.py:Diffusion.draw_times; the MRI's features by model.py:UNet.condition; the label by the setting
    label_in_training, as LatentBatch in experiment/stage_2.py says, embedded by model.py:Projector.
    """
    diffusion = stage_2.diffusion
    z_t = diffusion.q_sample(batch.z_0, t, eps)
    output = unet(z_t, batch.mri, t, batch.label).float()                                    # [B, C, d, h, w]
    target = diffusion.target(batch.z_0, t, eps)       # v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) z_0
    mse = F.mse_loss(output, target)
    if not stage_2.image_loss:
        return {"loss": mse, "mse": mse}
    z_0_hat, _ = diffusion.z_0_and_eps(output, z_t, t)
    x_hat = stage_2.space.decode(z_0_hat)                                                    # [B, 1, D, H, W]
    error = ((x_hat - batch.pet).abs() / stage_2.pet_std).flatten(1).mean(dim=1)             # [B]
    image = (stage_2.image_loss * error).mean()
    return {"loss": mse + image, "mse": mse, "image": image}


def ldm_step(unet: UNet, opt: Optimizer, stage_2: Stage2, batch: LatentBatch,
             cast: Callable = nullcontext) -> dict[str, float]:
    """Update the denoiser on a batch at random steps and noise, which draw_rows draws alike for any number of
    processes. Returns the terms of its loss."""
    z_0 = batch.z_0
    t = draw_rows(stage_2.diffusion.draw_times, len(z_0), stage_2.time_shift)   # [B], in 1 .. T - 1
    eps = draw_rows(torch.randn, *z_0.shape, device=z_0.device)
    with cast():
        losses = ldm_loss(unet, stage_2, batch, t, eps)
    loss = losses.pop("loss")
    return update(opt, loss, losses)


def train_ldm(exp: Experiment) -> None:
    """Train the denoiser on the latents; validate, keep and use its moving average."""
    cfg, aae = exp.cfg, exp.networks.best_aae()
    seed_everything(cfg.seed, "ldm")
    unet = build_unet(cfg, exp.device)
    ema, opt = EMA(unet, cfg.ema_decay, cfg.ema_start), AdamW(unet.parameters(), cfg.ldm_lr, fused=True)
    run = exp.stage_run("ldm", {"unet": unet, "ema": ema.module, "opt": opt}, autoencoder=weights_key(aae),
                        aae_epochs=cfg.aae_epochs, **cfg.settings_of("validation"))
    modalities = ("mri", "pet") if cfg.image_loss else ("mri",)
    subjects = exp.training_batches(cfg.ldm_batch_size, *modalities)

    begin_training(exp, run, subjects, cfg.ldm_epochs)
    if run.epochs_left(cfg.ldm_epochs):
        fit_denoiser(exp, run, aae, unet, ema, opt, subjects)
    plot_history(exp)


def fit_denoiser(exp: Experiment, run: StageRun, aae: AAE, unet: UNet, ema: EMA, opt: Optimizer,
                 subjects: DataLoader) -> None:
    """Take the epochs of stage 2 that are left."""
    cfg, latents, survey = exp.cfg, exp.load_latents(aae), exp.survey()
    run.metadata = run.metadata or stage_2_metadata(exp, latents, survey)
    space = LatentSpace(aae, run.metadata["latent_mean"], run.metadata["latent_std"])
    say("ldm", f"latents are shifted by {space.mean:.3f} and scaled by {space.std:.3f}")
    stage_2 = Stage2(build_diffusion(cfg, exp.device), space, survey.pet_std, cfg.image_loss, cfg.time_shift)
    latent_batches = LatentBatches(exp, space, latents, run.metadata["soft_labels"])
    capture_cuda_graphs(exp, unet)

    def step(batch: dict) -> dict[str, float]:
        losses = ldm_step(unet, opt, stage_2, latent_batches.from_volumes(batch), exp.cast)
        ema.update(unet, run.step)
        return losses

    validation = exp.batches(exp.cohort.validation, "mri", "pet", batch=cfg.sampling_batch, divided=True)
    synthesizer, predictor = (exp.networks.synthesizer(space, ema.module),
                              exp.networks.label_predictor(run.metadata))
    sampler = LatentSampler(cfg, synthesizer, predictor, exp.measurement, cfg.validation_sampler,
                            cfg.validation_steps, range(1), people=exp.people)     # one sample, in one pass

    def validate(title: str) -> tuple[dict[str, float], pd.DataFrame]:
        mse = validation_loss(exp, ema.module, stage_2, latent_batches, validation)
        return {"mse_validation": mse}, evaluate(sampler.synthesize, validation, exp.measurement.image_scores,
                                                 title)

    fit(run, subjects, step, validate=validate, epochs=cfg.ldm_epochs, seed=cfg.seed,
        validate_every=cfg.validation_every)


@torch.no_grad()
def validation_loss(exp: Experiment, unet: UNet, stage_2: Stage2, latent_batches: LatentBatches,
                    validation: DataLoader) -> float:
    """Squared error of the validation list, at steps and noise that are the same in every epoch and for any
    number of ranks."""
    def mse_of(batch: dict) -> float:
        """Mean squared error of one batch, on the latents' scale."""
        latent_batch = latent_batches.from_volumes(batch)
        seed_everything(exp.cfg.seed, "validation loss", *batch["id"])
        t = stage_2.diffusion.draw_times(len(latent_batch.z_0), stage_2.time_shift)
        with exp.cast():
            return ldm_loss(unet, stage_2, latent_batch, t, torch.randn_like(latent_batch.z_0))["mse"].item()
    return mean_over_scans(mse_of, validation)


# ---------------------------------------------------------------- test

def test(exp: Experiment) -> None:
    """Reconstruct and synthesize the test list with the best checkpoints; score image, uptake and status
    beside the baselines."""
    cfg, cohort, measurement = exp.cfg, exp.cohort, exp.measurement
    synthesizer, predictor = exp.networks.best_synthesizer()
    sampler, survey, epochs = exp.latent_sampler(synthesizer, predictor), exp.survey(), trained_epochs(exp)
    say("test", f"{len(cohort.test)} subjects, {cfg.samples_per_scan} latent samples by {cfg.sampler}, "
                f"{sampler.evaluations} network evaluations a scan, writes {cfg.result_dir}/*.csv and "
                "synthesized/")
    for remark in measurement.remarks(cohort.affine, exp.crop):
        say("test", remark)
    real = read_real(exp, survey)
    classifiers = fit_status(exp, real, synthesizer)

    aae = synthesizer.space.aae
    methods = {"aae": reconstruct(exp, aae),
               "il_cldm": ScanSynthesis(sampler, cohort.test, cfg.result_dir, exp.is_phantom)}
    methods |= reference_methods(exp, aae, survey, epochs)
    methods = {name: Clock(predict) for name, predict in methods.items()}
    clear_results(exp)
    subjects = {}
    for method, predict in methods.items():
        at_once = cfg.scans_at_once if method == "il_cldm" else 0
        batches = exp.batches(cohort.test, "mri", "pet", batch=at_once, divided=True)
        subjects[method] = evaluate(predict, batches, measurement.all_measures, f"test {method}")
    batches = exp.batches(cohort.validation, "mri", "pet", batch=cfg.scans_at_once, divided=True)
    validation = evaluate(methods["il_cldm"], batches, measurement.all_measures,
                          "test il_cldm, validation list")

    write_costs(exp, methods)
    write_results(exp, synthesizer, TestScores(subjects, validation, real, classifiers, epochs))
    plot_shown_scans(exp, sampler)
    plot_comparison(exp, methods, subjects["il_cldm"])


# ---------------------------------------------------------------- the run

# Baselines are trained by a stage of their own; adding one: docs/comparison.md.
STAGES = {"aae": train_aae, "encode": encode, "ldm": train_ldm, "baselines": train_baselines, "test": test,
          "report": report, "tables": tables}  # after the check of the cohort, in this order

# First word after main.py -> the module whose main() has settings of its own.
TOOLS = {"preprocess": "cohort.preprocess", "prepare": "cohort.prepare", "calibrate": "cohort.calibrate",
         "synthesize": "newscans.synthesize", "external": "newscans.external", "sweep": "studies.sweep",
         "study": "studies.repairs", "benchmark": "studies.benchmark"}
ABOUT = ("IL-CLDM: synthesize amyloid PET from T1 MRI. Trains both stages on the cohort and writes "
         "result/<exp>/. Running the same command again continues where it stopped. Further commands, each "
         f"with settings of its own: main.py {', '.join(TOOLS)}.")


def main(argv: list[str] | None = None) -> int:
    """Run the stages with a command line's settings, or hand it to the tool that its first word names.
    Returns the exit code (docs/running.md)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in TOOLS:
        return importlib.import_module(TOOLS[argv[0]]).main(argv[1:])
    return run_experiment(argv, STAGES, ABOUT, TOOLS)


if __name__ == "__main__":
    leave(main())
