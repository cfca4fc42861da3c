"""IL-CLDM: synthesize amyloid PET from T1 MRI (Ou et al., IEEE JBHI 29(2):1221-1231, 2025).

The stages in the paper's order: an adversarial autoencoder learns PET volumes (stage 1) and encodes them; a UNet conditioned on the
MRI and the label learns to denoise the latents (stage 2); sampled and decoded they are the synthetic PET of the test list.
"""
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Threads that spin without end make a CPU that others share up to 10 times slower; read once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

import numpy as np
import pandas as pd
import torch
from nibabel.affines import voxel_sizes
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from classifier import LabelClassifier, pool_volume, pool_width
from config import STAGES, Config, parse_args
from dataset import (Cohort, Crop, LatentCache, Scan, VolumeDataset, check_cohort, read_volume, save_synthesis,
                     training_loader)
from figures import plot_curves, plot_synthesized
from model import AAE, Diffusion, Discriminator, Synthesizer, UNet
from phantom import build_phantom
from regions import read_mask
from training import aae_step, denoising_loss, ldm_step, train_epoch
from utils import (EMA, METRICS, InputError, NotFiniteError, StageRun, atomic, check_settings, derived_seed, evaluate, load_checkpoint,
                   pick_device, seed_everything, subject_noise, summarize, weights_key, write_csv)

CHECKPOINT = {"aae": "CHECKPOINT_AAE", "ldm": "CHECKPOINT_Unet"}
PHANTOM_NOTICE = "digital phantom, not patient data"
RESEARCH_NOTICE = "research only, not for clinical use"


# ---------------------------------------------------------------- the networks of the settings, untrained

def build_aae(cfg: Config, device: torch.device) -> AAE:
    """The autoencoder E, D."""
    return AAE(cfg.aae_channels, cfg.latent_channels, cfg.aae_output_norm, cfg.aae_norm_groups).to(device)


def build_unet(cfg: Config, device: torch.device) -> UNet:
    """The denoiser with its Extractor and Projector."""
    return UNet(cfg.latent_channels, cfg.unet_channels, cfg.unet_mults, cfg.unet_res_blocks, cfg.time_dim, cfg.num_classes,
                cfg.unet_norm_groups, cfg.unet_attention_levels, cfg.downscale, cfg.image_conditioning).to(device)


def build_diffusion(cfg: Config, device: torch.device) -> Diffusion:
    """The diffusion process."""
    return Diffusion(cfg.timesteps, cfg.beta_first, cfg.beta_last, cfg.prediction).to(device)


# ---------------------------------------------------------------- the experiment

class Experiment:
    """A checked cohort, the settings and the device: what every stage needs."""

    def __init__(self, cfg: Config, cohort: Cohort, device: torch.device):
        self.cfg, self.cohort, self.device = cfg, cohort, device
        self.crop = Crop(cfg.crop_start, cfg.volume_size)
        self.brain = read_mask(Path(cfg.brain_mask) if cfg.brain_mask else None, cohort.affine, self.crop)
        self.is_phantom = (Path(cfg.data_dir) / "phantom.json").exists()
        self.notice = f"{PHANTOM_NOTICE}; {RESEARCH_NOTICE}" if self.is_phantom else RESEARCH_NOTICE

    def scores_note(self, n: int) -> str:
        """What every score of this experiment has to be read with."""
        mask = self.cfg.brain_mask or "MNI152 mask of nilearn"
        return (f"{n} subjects ({self.notice}); box of {'x'.join(map(str, self.cfg.volume_size))} voxels, brain: {mask}; data range 1, "
                f"SSIM window 7, seed {self.cfg.seed}")

    def settings(self, stage: str) -> dict:
        """What a checkpoint of the stage is bound to: its settings, and the lists and labels that training sees."""
        return self.cfg.fixed_settings(stage) | {"training and validation list": self.cohort.fingerprint()}

    def refuse_conflicts(self) -> None:
        """Raise InputError, before anything is written, if the stages and the checkpoints in the result folder do not go together."""
        cfg, paths = self.cfg, {stage: self.cfg.result_dir / f"{file}.pth.tar" for stage, file in CHECKPOINT.items()}
        first = next((stage for stage in STAGES[1:] if stage in cfg.stages), None)
        if first in ("encode", "ldm", "test") and not paths["aae"].exists():
            raise InputError(f"{paths['aae']} is not there; run --stages aae first")
        if first == "test" and not paths["ldm"].exists():
            raise InputError(f"{paths['ldm']} is not there; run --stages encode ldm first")
        for stage, file in CHECKPOINT.items():
            for path in sorted(cfg.result_dir.glob(f"{file}*.pth.tar")):
                settings = self.settings(stage)
                if stage == "ldm" and "aae" in cfg.stages:                                   # its autoencoder must stay what it is
                    settings["aae_epochs"] = cfg.aae_epochs
                check_settings(path, load_checkpoint(path), settings)

    def scans(self, scans: list[Scan], *modalities: str) -> DataLoader:
        """The scans one by one, in order, with their centre crop."""
        return DataLoader(VolumeDataset(scans, self.crop, modalities), num_workers=self.cfg.num_workers)

    def best_checkpoint(self, stage: str) -> dict:
        """The best checkpoint of a stage. Raises InputError if there is none."""
        return load_checkpoint(self.cfg.result_dir / f"{CHECKPOINT[stage]}.pth.tar")

    def best_aae(self) -> AAE:
        """The autoencoder of the best epoch, frozen."""
        aae = build_aae(self.cfg, self.device).eval().requires_grad_(False)
        aae.load_state_dict(self.best_checkpoint("aae")["state"]["aae"])
        return aae

    def latent_cache(self, aae: AAE) -> LatentCache:
        """Where the latents of this autoencoder and crop are kept."""
        cfg = self.cfg
        return LatentCache(Path(cfg.data_dir), weights_key(aae), self.crop, (cfg.latent_channels, *cfg.latent_size), self.cohort.affine)

    def synthesize(self, synthesizer: Synthesizer, classifier: LabelClassifier | None, sampler: str, steps: int, draws: int):
        """A predict function for evaluate: one MRI -> its synthetic PET. The noise depends on seed and ID alone."""
        shape = (self.cfg.latent_channels, *self.cfg.latent_size)

        def predict(batch: dict) -> Tensor:
            [subject] = batch["id"]
            label = classifier.probabilities(batch["mri"]) if classifier else None
            noise = subject_noise(self.cfg.seed, subject, draws, shape)
            return synthesizer(batch["mri"].to(self.device), label, noise, sampler, steps)
        return predict


def say(stage: str, text: str) -> None:
    """One line of the run's log."""
    print(f"{stage:7}{text}", flush=True)


# ---------------------------------------------------------------- stage 1: the adversarial autoencoder

def train_aae(exp: Experiment) -> None:
    """Train autoencoder against discriminator on the training PETs; keep the epoch with the best validation score."""
    cfg = exp.cfg
    seed_everything(cfg.seed, "aae")
    aae, disc = build_aae(exp.cfg, exp.device), Discriminator(cfg.disc_channels).to(exp.device)
    opt_g = torch.optim.Adam(aae.parameters(), cfg.aae_lr, betas=cfg.aae_betas)
    opt_d = torch.optim.Adam(disc.parameters(), cfg.aae_lr, betas=cfg.aae_betas)
    run = StageRun(cfg.result_dir, "aae", CHECKPOINT["aae"], {"aae": aae, "disc": disc, "opt_g": opt_g, "opt_d": opt_d},
                   exp.settings("aae"))
    validation = exp.scans(exp.cohort.validation, "pet")
    say("aae", f"{len(exp.cohort.train)} PET volumes, {run.epoch} of {cfg.aae_epochs} epochs done, writes {run.best_path}")

    def step(batch: dict) -> dict[str, float]:
        return aae_step(aae, disc, opt_g, opt_d, batch["pet"].to(exp.device), cfg.lambda_rec)

    for epoch in run.epochs_left(cfg.aae_epochs):
        seed = derived_seed(cfg.seed, "aae", epoch)                                          # an epoch depends on its number alone
        seed_everything(seed)
        volumes = VolumeDataset(exp.cohort.train, exp.crop, ("pet",), cfg.crop_jitter, seed)
        aae.train()
        losses = train_epoch(training_loader(volumes, cfg.aae_batch_size, cfg.num_workers, seed), step, f"aae epoch {epoch}")
        aae.eval()
        scores = evaluate(reconstruct(aae, exp.device), validation, exp.brain, "aae validation")
        run.finish_epoch(epoch, losses, scores)
        say("aae", f"epoch {epoch}/{cfg.aae_epochs}  L1 {losses['rec']:.4f}  validation {describe(scores)}")
    plot_curves(cfg.result_dir, exp.notice)


def reconstruct(aae: AAE, device: torch.device) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: PET -> its reconstruction."""
    return lambda batch: aae(batch["pet"].to(device)).clamp(0, 1)


def describe(scores: pd.DataFrame) -> str:
    """Mean scores in a line."""
    return f"PSNR {scores['PSNR'].mean():.2f} dB, SSIM {scores['SSIM'].mean():.4f}, in the brain {scores['PSNR_brain'].mean():.2f} dB"


# ---------------------------------------------------------------- between the stages

@torch.no_grad()
def encode(exp: Experiment) -> None:
    """The best autoencoder encodes the PETs of the lists that stage 2 needs; latents that are there already stay."""
    aae = exp.best_aae()
    cache = exp.latent_cache(aae)
    scans = exp.cohort.train + exp.cohort.validation
    missing = [scan for scan in scans if cache.load(scan) is None]
    say("encode", f"{len(missing)} of {len(scans)} latents are to be made, writes {cache.folder}")
    for scan, batch in zip(missing, tqdm(exp.scans(missing, "pet"), desc="encode", unit="scan", leave=False, disable=None), strict=True):
        cache.save(scan, aae.encoder(batch["pet"].to(exp.device))[0].cpu())


# ---------------------------------------------------------------- stage 2: the conditioned denoiser

def train_ldm(exp: Experiment) -> None:
    """Train the denoiser on the latents; validate, keep and use its moving average."""
    cfg, cohort = exp.cfg, exp.cohort
    aae = exp.best_aae()
    seed_everything(cfg.seed, "ldm")
    unet, diffusion = build_unet(cfg, exp.device), build_diffusion(cfg, exp.device)
    ema = EMA(unet, cfg.ema_decay, cfg.ema_start)
    opt = torch.optim.AdamW(unet.parameters(), cfg.ldm_lr)
    bound_to = {"autoencoder": weights_key(aae), "aae_epochs": cfg.aae_epochs, "label_at_sampling": cfg.label_at_sampling}
    run = StageRun(cfg.result_dir, "ldm", CHECKPOINT["ldm"], {"unet": unet, "ema": ema.module, "opt": opt}, exp.settings("ldm") | bound_to)
    say("ldm", f"{len(cohort.train)} subjects, {run.epoch} of {cfg.ldm_epochs} epochs done, writes {run.best_path}")
    if not run.epochs_left(cfg.ldm_epochs):
        return
    latents = load_latents(exp, aae)
    run.facts = run.facts or training_facts(exp, latents)
    z_0 = {name: (z - run.facts["latent_mean"]) / run.facts["latent_std"] for name, z in latents.items()}
    predict = exp.synthesize(*build_synthesizer(exp, aae, ema.module, run.facts), "ddim", cfg.validation_steps, draws=1)

    def step(batch: dict) -> dict[str, float]:
        z = torch.stack([z_0[name] for name in batch["id"]])                                 # [B, C, d, h, w]
        losses = ldm_step(unet, diffusion, opt, *(t.to(exp.device) for t in (z, batch["mri"], batch["label"])), cfg.share_without_label)
        run.step += 1
        ema.update(unet, run.step)
        return losses

    for epoch in run.epochs_left(cfg.ldm_epochs):
        seed = derived_seed(cfg.seed, "ldm", epoch)
        seed_everything(seed)
        subjects = VolumeDataset(cohort.train, exp.crop, ("mri",))
        losses = train_epoch(training_loader(subjects, cfg.ldm_batch_size, cfg.num_workers, seed), step, f"ldm epoch {epoch}")
        scores = None
        if epoch % cfg.validation_every == 0:
            losses["mse_validation"] = validation_loss(exp, ema.module, diffusion, z_0)
            scores = evaluate(predict, exp.scans(cohort.validation, "mri", "pet"), exp.brain, "ldm validation")
        run.finish_epoch(epoch, losses, scores)
        validated = "" if scores is None else f"  validation {describe(scores)}"
        say("ldm", f"epoch {epoch}/{cfg.ldm_epochs}  mse {losses['mse']:.4f}{validated}")
    plot_curves(cfg.result_dir, exp.notice)


def training_facts(exp: Experiment, latents: dict[str, Tensor]) -> dict:
    """What sampling needs to know of the training list: shift and scale of its latents, and the label classifier if one is used."""
    cfg = exp.cfg
    latent_mean, latent_std = latent_scale(latents, exp.cohort.train) if cfg.latent_scaling else (0.0, 1.0)
    say("ldm", f"latents are shifted by {latent_mean:.3f} and scaled by {latent_std:.3f}")
    classifier = fit_classifier(exp).state() if cfg.predicts_label else None
    return {"latent_mean": latent_mean, "latent_std": latent_std, "classifier": classifier}


def build_synthesizer(exp: Experiment, aae: AAE, unet: UNet, facts: dict) -> tuple[Synthesizer, LabelClassifier | None]:
    """The sampling of a trained denoiser, and the classifier that predicts its label. Raises InputError if that one is missing."""
    synthesizer = Synthesizer(aae.decoder, unet, build_diffusion(exp.cfg, exp.device), facts["latent_mean"], facts["latent_std"])
    if not exp.cfg.predicts_label:
        return synthesizer, None
    if facts["classifier"] is None:
        raise InputError("this denoiser was trained with --label_at_sampling none and holds no label classifier; "
                         "sample it with --label_at_sampling none")
    return synthesizer, LabelClassifier.from_state(facts["classifier"])


def load_latents(exp: Experiment, aae: AAE) -> dict[str, Tensor]:
    """ID -> z_0 [C, d, h, w] of training and validation list. Raises InputError if some are missing."""
    cache = exp.latent_cache(aae)
    latents = {scan.id: cache.load(scan) for scan in exp.cohort.train + exp.cohort.validation}
    missing = [name for name, z_0 in latents.items() if z_0 is None]
    if missing:
        raise InputError(f"{cache.folder} lacks the latents of {len(missing)} subjects ({', '.join(missing[:5])} ...) made from the "
                         "present PET files; run --stages encode")
    return latents


def latent_scale(latents: dict[str, Tensor], train: list[Scan]) -> tuple[float, float]:
    """Mean and standard deviation over all voxels of the training latents."""
    values = torch.stack([latents[scan.id] for scan in train]).double()
    return values.mean().item(), values.std().item()


def fit_classifier(exp: Experiment) -> LabelClassifier:
    """Fit the label classifier on the training MRIs."""
    pool = pool_width(float(np.mean(voxel_sizes(exp.cohort.affine))))
    loader = tqdm(exp.scans(exp.cohort.train, "mri"), desc="label classifier", unit="scan", leave=False, disable=None)
    pooled = np.stack([pool_volume(batch["mri"], pool)[0, 0].numpy() for batch in loader])   # [n, d, h, w]
    labels = np.array([scan.label for scan in exp.cohort.train])
    return LabelClassifier.fit(pooled, labels, exp.brain, pool, exp.cfg.seed)


@torch.no_grad()
def validation_loss(exp: Experiment, unet: UNet, diffusion: Diffusion, z_0: dict[str, Tensor]) -> float:
    """Denoising loss of the validation list at steps and noise that are the same in every epoch."""
    seed_everything(exp.cfg.seed, "validation loss")
    losses = []
    for batch in exp.scans(exp.cohort.validation, "mri"):
        z = torch.stack([z_0[name] for name in batch["id"]])
        sample = (t.to(exp.device) for t in (z, batch["mri"], batch["label"]))
        losses.append(denoising_loss(unet, diffusion, *sample, exp.cfg.share_without_label))
    return torch.stack(losses).mean().item()


# ---------------------------------------------------------------- test

def test(exp: Experiment) -> None:
    """Reconstruct and synthesize the test list with the best checkpoints; score them beside their controls; draw the pictures."""
    cfg, cohort, folder = exp.cfg, exp.cohort, exp.cfg.result_dir
    synthesizer, classifier, aae = load_synthesizer(exp)
    synthesize = exp.synthesize(synthesizer, classifier, cfg.sampler, cfg.sampling_steps, cfg.samples_per_scan)
    note = f"{PHANTOM_NOTICE if exp.is_phantom else 'IL-CLDM, synthetic PET'}; not for clinical use"   # NIfTI holds 79 bytes
    files = {scan.id: (scan, folder / "synthesized" / f"{scan.id}.nii.gz") for scan in cohort.test}
    say("test", f"{len(cohort.test)} subjects, {cfg.samples_per_scan} draws by {cfg.sampler}, writes {folder}/test.csv and synthesized/")

    def synthesize_and_save(batch: dict) -> Tensor:
        x_hat = synthesize(batch)
        scan, path = files[batch["id"][0]]
        save_synthesis(path, x_hat[0, 0].cpu().numpy(), scan.mri, exp.crop, note)
        return x_hat

    mean_pet = mean_volume(exp.scans(cohort.train, "pet"))
    methods = {"aae": reconstruct(aae, exp.device), "il_cldm": synthesize_and_save, "mean_pet": lambda batch: mean_pet}
    if exp.is_phantom:
        methods["oracle"] = read_oracle(exp)
    tables = []
    with torch.no_grad():
        for method, predict in methods.items():
            scores = evaluate(predict, exp.scans(cohort.test, "mri", "pet"), exp.brain, f"test {method}")
            tables.append(scores.assign(method=method)[["method", *scores.columns]])
    write_results(exp, pd.concat(tables))

    chosen = [scan for label in range(cfg.num_classes - 1, -1, -1) for scan in [s for s in cohort.test if s.label == label][:2]]
    plot_synthesized(folder / "synthesized.png", [(f"{scan.id}\nlabel {scan.label}", scan.pet, files[scan.id][1]) for scan in chosen],
                     exp.notice)


def load_synthesizer(exp: Experiment) -> tuple[Synthesizer, LabelClassifier | None, AAE]:
    """The best checkpoints of both stages, ready to sample. Raises InputError if they do not belong together."""
    aae, saved = exp.best_aae(), exp.best_checkpoint("ldm")
    check_settings(exp.cfg.result_dir / f"{CHECKPOINT['ldm']}.pth.tar", saved, {"autoencoder": weights_key(aae)})
    unet = build_unet(exp.cfg, exp.device).eval().requires_grad_(False)
    unet.load_state_dict(saved["state"]["ema"])
    return *build_synthesizer(exp, aae, unet, saved["facts"]), aae


def mean_volume(loader: DataLoader) -> Tensor:
    """The mean PET of the loader's scans, [1, 1, D, H, W]: what a method scores that shows everybody the same picture."""
    total = sum(batch["pet"].double() for batch in loader)
    return (total / len(loader)).float()


def read_oracle(exp: Experiment) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: the PET that the phantom expects from a subject's anatomy and atrophy alone."""
    folder = Path(exp.cfg.data_dir) / "truth" / "oracle"

    def predict(batch: dict) -> Tensor:
        [subject] = batch["id"]
        voxels, _ = read_volume(folder / f"{subject}.nii.gz")
        return torch.from_numpy(voxels[exp.crop.slices()].copy())[None, None]                # [1, 1, D, H, W]
    return predict


def write_results(exp: Experiment, scores: pd.DataFrame) -> None:
    """Write test.csv and summary.csv; print the summary with what it was measured on."""
    folder, summary = exp.cfg.result_dir, summarize(scores)
    write_csv(folder / "test.csv", scores)
    write_csv(folder / "summary.csv", summary.assign(data=PHANTOM_NOTICE if exp.is_phantom else exp.cfg.data_dir))
    table = summary.assign(text=[f"{mean:.4f} +- {std:.4f}" for mean, std in zip(summary["mean"], summary["std"], strict=True)]) \
        .pivot(index="method", columns="metric", values="text").loc[scores["method"].unique(), list(METRICS)]
    say("test", f"mean +- SD over {exp.scores_note(len(exp.cohort.test))}")
    print(table.rename_axis(index=None, columns=None).to_string(), flush=True)


# ---------------------------------------------------------------- the run

def check(cfg: Config) -> Cohort:
    """Read the whole cohort once and print what is in it; raises InputError with all problems."""
    batch = max(cfg.aae_batch_size, cfg.ldm_batch_size)
    cohort = check_cohort(Path(cfg.data_dir), cfg.info_folder, cfg.image_size, cfg.num_classes, cfg.subject_pattern,
                          smallest_training_list=batch, all_labels_in_training=cfg.predicts_label)
    notice = f" ({PHANTOM_NOTICE})" if (Path(cfg.data_dir) / "phantom.json").exists() else ""
    say("check", f"{cfg.data_dir}: no problem found{notice}\n{cohort.report}")
    return cohort


def run(cfg: Config) -> None:
    """All stages of the settings, in the paper's order."""
    device = pick_device(cfg.device)
    if cfg.is_phantom:
        try:
            build_phantom(Path(cfg.data_dir), cfg.phantom_subjects, cfg.phantom_voxel, cfg.phantom_link, cfg.phantom_seed)
        except ValueError as error:
            raise InputError(str(error)) from error
    cohort = check(cfg)
    if cfg.stages == ("check",):
        return
    exp = Experiment(cfg, cohort, device)
    exp.refuse_conflicts()
    with atomic(cfg.result_dir / "config.json") as partial:
        partial.write_text(cfg.to_json())
    stages = {"aae": train_aae, "encode": encode, "ldm": train_ldm, "test": test}
    for name, stage in stages.items():
        if name in cfg.stages:
            stage(exp)


def main(argv: list[str] | None = None) -> int:
    """Run with the command line's settings.

    Returns the exit code: 0 done, 1 a file could not be read or written, 2 wrong data or settings, 3 diverged, 130 interrupted.
    """
    cfg = parse_args(argv)
    try:
        run(cfg)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NotFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"error: {error}; finished epochs are kept, the same command continues behind them", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues behind the last finished epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
