"""IL-CLDM: synthesize amyloid PET from T1 MRI (Ou et al., IEEE JBHI 29(2):1221-1231, 2025).

The stages in the paper's order: an adversarial autoencoder learns PET volumes (stage 1) and encodes them; a UNet conditioned on the
MRI and the label learns to denoise the latents (stage 2); sampled and decoded they are the synthetic PET of the test list.
"""
from runtime import environment  # noqa: F401, I001  first: it says what is missing before the imports below fail
import importlib
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from runtime.checkpoints import StageRun
from runtime.commandline import parse
from config import PRESETS, Config
from baselines.controls import mean_volume, oracle_file, read_oracle
from dataset import Cohort, Scan, check_cohort, read_demographics
from experiment.denoising import build_objective, sampling_from, training_facts, validation_loss
from experiment.experiment import PHANTOM_NOTICE, Experiment
from evaluation.figures import plot_curves, plot_synthesized
from runtime.files import FolderLock, check_place, check_room, make_folder, remove_leftovers, write_text
from evaluation.layout import write_tables
from imaging.loading import LatentCache
from runtime.logs import LOG, keep_log, progress_bar, say
from evaluation.metrics import describe, evaluate
from model import AAE, UNet
from experiment.networks import CHECKPOINT, build_aae, build_discriminator, build_unet
from phantom.cohort import build_phantom
from runtime.program import exit_code
from runtime.ranks import check_environment, is_rank_0, process_group, launch, local_rank, from_rank_0, ranks, barrier
from baselines.regression import begin_regression, regressions, train_regression, trained_regressions
from evaluation.report import cohort_table, read_subjects, write_figures, write_report
from evaluation.results import forget_run, load_run, load_runs
from evaluation.scoring import clear_results, fit_status, measure_uncertainty, survey_real, synthesize_and_save, trained_epochs, write_results
from runtime.signals import leave
from evaluation.tables import group_runs, make_tables
from runtime.training import aae_step, ldm_step, set_rate, train_epoch
from utils import EMA, InputError, NotFiniteError, derived_seed, pick_device, seed_everything, weights_key


# ---------------------------------------------------------------- stage 1: the adversarial autoencoder

def train_aae(exp: Experiment) -> None:
    """Train autoencoder against discriminator on the training PETs; keep the epoch with the best validation score."""
    cfg = exp.cfg
    if cfg.pretrained_from("aae"):
        say("aae", f"not trained here: {exp.best_path('aae')} is used")
        return
    seed_everything(cfg.seed, "aae")
    aae, disc = build_aae(cfg, exp.device), build_discriminator(cfg, exp.device)
    opt_g, opt_d = (torch.optim.Adam(network.parameters(), cfg.aae_lr, betas=cfg.aae_betas, fused=True) for network in (aae, disc))
    run = StageRun(cfg.result_dir, "aae", CHECKPOINT["aae"], {"aae": aae, "disc": disc, "opt_g": opt_g, "opt_d": opt_d},
                   exp.settings("aae"), exp.free_settings("aae"))
    volumes = exp.training_batches("aae", "pet", jitter=True)
    announce(run, "aae", f"{len(exp.cohort.train)} PET volumes", volumes, cfg.aae_epochs)
    validation = exp.batches(exp.cohort.validation, "pet", divided=True)

    def step(batch: dict) -> dict[str, float]:
        x = batch["pet"].to(exp.device, non_blocking=True)
        return aae_step(aae, disc, opt_g, opt_d, x, cfg.lambda_rec, exp.cast)

    if run.epochs_left(cfg.aae_epochs) and is_rank_0():
        forget_run(cfg.result_dir)
    with run.saved_when_stopped():
        for epoch in run.epochs_left(cfg.aae_epochs):
            seed = derived_seed(cfg.seed, "aae", epoch)    # an epoch depends on its number alone
            aae.train()
            set_rate([opt_g, opt_d], cfg.aae_lr, epoch, cfg.aae_epochs, cfg.aae_lr_decay)
            losses, waiting = train_epoch(volumes, step, seed, f"aae epoch {epoch}", run.progress, [aae, disc])
            aae.eval()
            scores = evaluate(reconstruct(exp, aae), validation, exp.image_scores, f"aae epoch {epoch}, validation")
            run.finish_epoch(epoch, losses, scores)
            say("aae", f"epoch {epoch}/{cfg.aae_epochs}  L1 {losses['rec']:.4f}  waiting for data {waiting:.1%}  "
                       f"validation {describe(scores)}")
    plot_history(exp)


def plot_history(exp: Experiment) -> None:
    """The picture of the losses and scores of both stages, and of the controls."""
    if is_rank_0():
        plot_curves(exp.cfg.result_dir, exp.cfg.result_dir / "loss_curve", exp.notice, (".png",))


def announce(run: StageRun, stage: str, data: str, loader: DataLoader, epochs: int) -> None:
    """What a training does, where it continues, and which settings are no longer those of its beginning."""
    processes = f" of {ranks()} processes together" if ranks() > 1 else ""
    steps = f" and {len(run.progress.losses)} steps" if run.progress.losses else ""
    say(stage, f"{data}, {loader.sampler.step_items} a step{processes}, {run.epoch} of {epochs} epochs{steps} done, writes {run.best_path}")
    if run.remarks:
        say(stage, "continues under settings that may change its numbers, but not the method (saved -> now): "
            + "; ".join(run.remarks))


def reconstruct(exp: Experiment, aae: AAE) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: PET -> its reconstruction."""
    def predict(batch: dict) -> Tensor:
        with exp.cast():
            return aae(batch["pet"].to(exp.device)).float().clamp(0, 1)
    return predict


# ---------------------------------------------------------------- between the stages

@torch.no_grad()
def encode(exp: Experiment) -> None:
    """The best autoencoder encodes the PETs of the lists that stage 2 needs; latents that are there already stay."""
    aae = exp.best_aae()
    cache = exp.latent_cache(aae)
    scans = exp.cohort.train + exp.cohort.validation
    missing = from_rank_0(lambda: missing_latents(cache, scans))
    say("encode", f"{len(missing)} of {len(scans)} latents are to be made, writes {cache.folder}")
    groups = [scans[first:first + exp.cfg.aae_batch_size] for first in range(0, len(scans), exp.cfg.aae_batch_size)]
    needed = [scan for group in groups if any(scan.id in missing for scan in group) for scan in group]   # beside the same others, always
    for batch in progress_bar(exp.batches(needed, "pet", divided=True), desc="encode", unit="batch"):
        with exp.cast():
            latents = aae.encoder(batch["pet"].to(exp.device)).float().cpu()                 # [B, C, d, h, w]
        for name, z_0 in zip(batch["id"], latents, strict=True):
            if not torch.isfinite(z_0).all():
                raise NotFiniteError(f"the latent of {name} is not finite")
            if name in missing:
                cache.save(missing[name], z_0)


def missing_latents(cache: LatentCache, scans: list[Scan]) -> dict[str, Scan]:
    """The scans, by ID, that have no latent yet."""
    make_folder(cache.folder)
    return {scan.id: scan for scan in scans if cache.load(scan) is None}


# ---------------------------------------------------------------- stage 2: the conditioned denoiser

def train_ldm(exp: Experiment) -> None:
    """Train the denoiser on the latents; validate, keep and use its moving average."""
    cfg, aae = exp.cfg, exp.best_aae()
    if cfg.pretrained_from("ldm"):
        say("ldm", f"not trained here: {exp.best_path('ldm')} is used")
        return
    seed_everything(cfg.seed, "ldm")
    unet = build_unet(cfg, exp.device)
    ema = EMA(unet, cfg.ema_decay, cfg.ema_start)
    opt = torch.optim.AdamW(unet.parameters(), cfg.ldm_lr, fused=True)
    bound_to = {"autoencoder": weights_key(aae), "aae_epochs": cfg.aae_epochs, "label_at_sampling": cfg.label_at_sampling}
    run = StageRun(cfg.result_dir, "ldm", CHECKPOINT["ldm"], {"unet": unet, "ema": ema.module, "opt": opt}, exp.settings("ldm") | bound_to,
                   exp.free_settings("ldm"))
    subjects = exp.training_batches("ldm", "mri", *(["pet"] if cfg.image_loss else []))
    announce(run, "ldm", f"{len(exp.cohort.train)} subjects", subjects, cfg.ldm_epochs)
    if run.epochs_left(cfg.ldm_epochs):
        if is_rank_0():
            forget_run(cfg.result_dir)
        train_denoiser(exp, run, aae, unet, ema, opt, subjects)
    plot_history(exp)


def train_denoiser(exp: Experiment, run: StageRun, aae: AAE, unet: UNet, ema: EMA, opt: Optimizer, subjects: DataLoader) -> None:
    """The epochs of stage 2 that are left."""
    cfg, cohort = exp.cfg, exp.cohort
    latents = exp.load_latents(aae)
    run.metadata = run.metadata or from_rank_0(lambda: training_facts(exp, latents))
    synthesizer, classifier = exp.synthesizer(aae, ema.module, run.metadata)
    sampled = exp.sampler(synthesizer, classifier, cfg.validation_sampler, cfg.validation_steps, range(1))
    objective, sample = build_objective(exp, synthesizer), sampling_from(exp, latents, run.metadata)
    validation = exp.batches(cohort.validation, "mri", "pet", batch=cfg.sampling_batch, divided=True)

    def step(batch: dict) -> dict[str, float]:
        """Update denoiser and moving average on a batch: its loss."""
        losses = ldm_step(unet, objective, opt, sample(batch), exp.cast)
        run.step += 1
        ema.update(unet, run.step)
        return losses

    with run.saved_when_stopped():
        for epoch in run.epochs_left(cfg.ldm_epochs):
            set_rate([opt], cfg.ldm_lr, epoch, cfg.ldm_epochs, cfg.ldm_lr_decay)
            losses, waiting = train_epoch(subjects, step, derived_seed(cfg.seed, "ldm", epoch), f"ldm epoch {epoch}", run.progress, [unet])
            scores = None
            if epoch % cfg.validation_every == 0:
                losses["mse_validation"] = validation_loss(exp, ema.module, objective, sample, validation)
                scores = evaluate(lambda batch: synthesizer.decode(sampled(batch).mean()), validation, exp.image_scores,
                                  f"ldm epoch {epoch}, validation")
            run.finish_epoch(epoch, losses, scores)
            validated = "" if scores is None else f"  validation {describe(scores)}"
            say("ldm", f"epoch {epoch}/{cfg.ldm_epochs}  mse {losses['mse']:.4f}  waiting for data {waiting:.1%}{validated}")


# ---------------------------------------------------------------- what the diffusion is compared with

def train_baselines(exp: Experiment) -> None:
    """Train the regressions from MRI to PET, in as many epochs as stage 2."""
    cfg = exp.cfg
    for control in regressions(exp, exp.best_aae()):
        run, ema = begin_regression(control)
        subjects = exp.training_batches("ldm", *control.modalities)
        announce(run, control.name, f"{len(exp.cohort.train)} subjects", subjects, cfg.ldm_epochs)
        if run.epochs_left(cfg.ldm_epochs):
            if is_rank_0():
                forget_run(cfg.result_dir)
            train_regression(control, run, ema, subjects)
    plot_history(exp)


# ---------------------------------------------------------------- test

def test(exp: Experiment) -> None:
    """Reconstruct and synthesize the test list with the best checkpoints; score image, uptake and status beside their controls."""
    cfg, cohort, folder = exp.cfg, exp.cohort, exp.cfg.result_dir
    synthesizer, classifier, aae = exp.best_synthesizer()
    epochs = trained_epochs(exp)
    controls = trained_regressions(exp, aae, epochs["ldm_epochs"])
    sample = exp.sampler(synthesizer, classifier, cfg.sampler, cfg.sampling_steps, range(cfg.samples_per_scan),
                         cfg.label_at_sampling == "matched")
    say("test", f"{len(cohort.test)} subjects, {cfg.samples_per_scan} latent samples by {cfg.sampler}, writes {folder}/*.csv and synthesized/")
    for remark in exp.region_remarks():
        say("test", remark)
    real = survey_real(exp)
    readers = fit_status(exp, real, synthesizer) if is_rank_0() else {}
    mean_pet = from_rank_0(lambda: mean_volume(exp.batches(cohort.train, "pet")))
    methods = {"aae": reconstruct(exp, aae), "il_cldm": synthesize_and_save(exp, synthesizer, sample), **controls,
               "mean_pet": lambda batch: mean_pet.expand_as(batch["pet"])}
    if all(oracle_file(exp, scan.id).is_file() for scan in cohort.test):
        methods["oracle"] = read_oracle(exp)

    def measure(x_hat: Tensor, volumes: dict[str, Tensor]) -> dict:
        return exp.image_scores(x_hat, volumes) | exp.readable(x_hat, volumes)

    from_rank_0(lambda: clear_results(exp))
    batch = {"il_cldm": cfg.scans_at_once}
    subjects = {method: evaluate(predict, exp.batches(cohort.test, "mri", "pet", batch=batch.get(method, 0), divided=True), measure,
                                 f"test {method}") for method, predict in methods.items()}
    validation = evaluate(methods["il_cldm"], exp.batches(cohort.validation, "mri", "pet", batch=cfg.scans_at_once, divided=True), measure,
                          "test il_cldm, validation list")
    if is_rank_0():
        uncertain = measure_uncertainty(exp, synthesizer, validation, subjects["il_cldm"], real, readers)
        write_results(exp, subjects, real, readers, epochs, uncertain)
        plot_synthesized(folder / "synthesized", [(f"{scan.id}\nlabel {scan.label}", scan.pet, exp.synthesized(scan))
                                                  for scan in exp.shown_scans()], exp.notice)


# ---------------------------------------------------------------- tables and report

def tables(cfg: Config) -> None:
    """The tables of all experiments under result/, from their CSVs alone; rank 0 alone."""
    if not is_rank_0():
        return
    runs, without = load_runs(cfg.result_dir.parent)
    for name in without:
        say("tables", f"{name} has no scores yet (--stages test writes them) and is left out")
    groups, remarks = group_runs(runs)
    for remark in remarks:
        say("tables", remark)
    if not groups:
        raise InputError(f"{cfg.result_dir.parent} holds no experiment with scores; --stages test writes them")
    for path in write_tables(cfg.result_dir.parent / "tables", make_tables(groups)):
        say("tables", f"{len(runs)} experiments, wrote {path} (and .md, .tex)")


def report(exp: Experiment) -> None:
    """The figures and the report of this experiment, from its CSVs and volumes; rank 0 alone."""
    if not is_rank_0():
        return
    cfg, folder = exp.cfg, exp.cfg.result_dir
    say("report", f"writes {folder}/figures/ and {folder}/report.html")
    result = load_run(folder)
    subjects = read_subjects(exp.shown_scans(), folder / "synthesized", exp.crop)
    figures = write_figures(folder, result, subjects)
    demographics, _ = read_demographics(cfg.info_folder, exp.cohort.train + exp.cohort.validation + exp.cohort.test)
    write_report(folder / "report.html", result, make_tables(group_runs([result])[0]), figures,
                 cohort_table(exp.cohort, demographics), subjects, exp.cohort.affine)


# ---------------------------------------------------------------- the run

def check(cfg: Config) -> Cohort:
    """Read the whole cohort once, a phantom being simulated first, and print what is in it; raises InputError with all problems."""
    if cfg.is_phantom:
        try:
            build_phantom(Path(cfg.data_dir), cfg.phantom_subjects, cfg.phantom_voxel, cfg.phantom_link, cfg.phantom_seed)
        except ValueError as error:
            raise InputError(str(error)) from error
    cohort = check_cohort(Path(cfg.data_dir), cfg.info_folder, cfg.image_size, cfg.num_classes, cfg.subject_pattern,
                          smallest_training_list=max(cfg.aae_batch_size, cfg.ldm_batch_size) * ranks(), least_of_each_label=cfg.least_of_each_label)
    notice = f" ({PHANTOM_NOTICE})" if (Path(cfg.data_dir) / "phantom.json").exists() else ""
    say("check", f"{cfg.data_dir}: no problem found{notice}\n{cohort.report}")
    if cfg.predicts_label and not cfg.knows_regions:
        say("check", "no regions are known (cortex_mask, reference_mask): the UNet is trained with the true label and sampled with the one "
                     "predicted from the MRI (label_in_training true, label_at_sampling mixed)")
    return cohort


def begin(exp: Experiment, lock: FolderLock) -> None:
    """Find out what could stop the run later, make the experiment's folder its own, and write down there what is run."""
    cfg = exp.cfg
    exp.refuse_conflicts()
    folders = {"encode": exp.latents, "test": cfg.result_dir / "synthesized",
               "report": cfg.result_dir / "figures", "tables": cfg.result_dir.parent / "tables"}
    for folder in [cfg.result_dir, *(folders[stage] for stage in folders if stage in cfg.stages)]:
        make_folder(folder)
        remove_leftovers(folder)
    lock.acquire()
    if lock.left_by:
        say("check", f"an earlier run here ({lock.left_by}) was killed; what it was writing is removed, what it had saved is used")
    remove_leftovers(cfg.result_dir, everyones=True)
    check_room(cfg.result_dir, exp.checkpoint_room(), "the checkpoints (the best, the last, and the next while it is written)")
    keep_log(cfg.result_dir / "run.log")
    write_text(cfg.result_dir / "config.json", cfg.to_json())
    LOG.debug("%s", exp.command)
    say("check", f"{exp.cache.describe()}; networks compute in {exp.precision} on {exp.device}{exp.slow_precision}")


def run(cfg: Config, command: str) -> None:
    """The stages of the settings, in the paper's order. command: as it was given."""
    device = pick_device(cfg.device, local_rank())
    with process_group(device):
        run_experiment(cfg, device, command)


@contextmanager
def naming(stage: str) -> Iterator[None]:
    """A block whose errors carry the stage's name for their message."""
    try:
        yield
    except BaseException as error:
        error.add_note(stage)
        raise


def run_experiment(cfg: Config, device: torch.device, command: str) -> None:
    """The stages of an experiment, in the paper's order."""
    from_rank_0(lambda: check_results(cfg))
    if set(cfg.stages) <= {"check", "tables"}:
        for name, stage in {"check": check, "tables": tables}.items():
            if name in cfg.stages and is_rank_0():
                stage(cfg)
        return
    with FolderLock(cfg.result_dir) if is_rank_0() else nullcontext() as lock:
        exp = Experiment(cfg, from_rank_0(lambda: check(cfg)), device, command)
        from_rank_0(lambda: begin(exp, lock))
        for name, stage in {"aae": train_aae, "encode": encode, "ldm": train_ldm, "baselines": train_baselines,
                            "test": test, "report": report, "tables": lambda exp: tables(exp.cfg)}.items():
            if name in cfg.stages:
                with naming(name):
                    stage(exp)
                    barrier()


def check_results(cfg: Config) -> None:
    """What can be known before the cohort is read: that no earlier result is spoilt which this run needs, and that it can write."""
    if "tables" in cfg.stages:
        load_runs(cfg.result_dir.parent, but=cfg.exp if "test" in cfg.stages else "")
    if not set(cfg.stages) <= {"check", "tables"}:
        check_place(cfg.result_dir)


WORDS = {"preprocess": "cohort.preprocess", "prepare": "cohort.prepare", "synthesize": "newscans.synthesize", "sweep": "studies.sweep",
         "study": "studies.repairs", "benchmark": "studies.benchmark"}                       # word after main.py -> module with its main
ABOUT = ("IL-CLDM: synthesize amyloid PET from T1 MRI. Trains both stages on the cohort and writes result/<exp>/. Running the same command "
         f"again continues where it stopped. With settings of their own: main.py {', '.join(WORDS)}.")


def main(argv: list[str] | None = None) -> int:
    """Run with a command line's settings, or hand it to what its first word names. Returns the exit code (docs/running.md)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in WORDS:
        return importlib.import_module(WORDS[argv[0]]).main(argv[1:])
    cfg = parse(Config, argv, "main.py", ABOUT, PRESETS)

    def work() -> int | None:
        check_environment(cfg.gpus, cfg.device)
        if cfg.gpus > 1 and ranks() == 1:
            return launch(cfg.gpus, argv)
        return run(cfg, shlex.join(["python", "main.py", *argv]))
    return exit_code(work)


if __name__ == "__main__":
    leave(main())
