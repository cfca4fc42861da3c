"""The session of an experiment: the check of its cohort, its folder and lock, its stages in order, its tables
and report."""
import importlib.util
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

from config import BASELINES, PRESETS, Config
from dataset import LATENTS, SPLITS, Cohort, Scan, check_cohort
from evaluation.external_results import load_externals
from evaluation.results import INDEX, Run, forget_run, load_run, load_runs
from evaluation.scores import Predict, best_median_worst, evaluate
from experiment.automatic import settle_label, settle_regions
from experiment.experiment import PHANTOM_NOTICE, Experiment, latents_folder
from experiment.networks import LatentSampler
from experiment.samples import sampler_of_one, write_shown_samples
from experiment.scoring import COMPARISON, COST, frozen_digests
from imaging.cache import check_temporary_folder
from imaging.volumes import read_in_range
from labels.people import read_people
from phantom.cohort import build_phantom
from runtime.checkpoints import StageRun
from runtime.commandline import parse, refuse_tool
from runtime.files import (FolderLock, WriteError, check_place, check_room, link_problem, make_folder,
                           remove_leftovers, write_csv, write_text)
from runtime.logs import LOG, keep_log, say
from runtime.program import exit_code
from runtime.ranks import (barrier, check_environment, from_rank_0, is_rank_0, launch, local_rank,
                           process_group, world_size)
from utils import InputError, pick_device

if TYPE_CHECKING:                                          # the report alone needs its packages
    from evaluation.report import Participants

Stage = Callable[[Experiment], None]
COMPARED_MM = 20                           # z of the slice of the compared PETs, which meets the ventricles


def run_experiment(argv: list[str], stages: dict[str, Stage], about: str, tools: Iterable[str]) -> int:
    """Run the stages that a command line asks for. Returns the exit code (docs/running.md).

    tools: first words that would have named a tool, for a suggestion.
    """
    if argv and not argv[0].startswith("-"):
        refuse_tool(argv[0], tools)
    cfg = parse(Config, argv, "main.py", about, PRESETS)
    return exit_code(partial(_run, cfg, argv, stages))


def _run(cfg: Config, argv: list[str], stages: dict[str, Stage]) -> int | None:
    """Run the stages, in a process for each GPU if the settings ask for several."""
    check_environment(cfg.gpus, cfg.device)
    if cfg.gpus > 1 and world_size() == 1:
        return launch(cfg.gpus, argv)
    device = pick_device(cfg.device, local_rank())
    with process_group(device):
        from_rank_0(_check_results, cfg)
        if set(cfg.stages) <= {"check", "tables"}:         # which need no trained experiment
            from_rank_0(_check_and_tables, cfg)
            return None
        lock = FolderLock(cfg.result_dir) if is_rank_0() else nullcontext()
        with lock:
            cohort = from_rank_0(check, cfg)
            cfg = from_rank_0(settle_regions, cfg, cohort)
            exp = settle_label(Experiment(cfg, cohort, device, shlex.join(["python", "main.py", *argv])))
            from_rank_0(_begin, exp, lock)
            for name in stages:
                if name in cfg.stages:
                    with naming(name):
                        _run_stage(exp, name, stages[name])
                        barrier()
    return None


def _run_stage(exp: Experiment, name: str, stage: Stage) -> None:
    if exp.cfg.pretrained_from(name):
        say(name, f"not trained here: {exp.networks.best_path(name)} is used")
        return
    stage(exp)


@contextmanager
def naming(stage: str) -> Iterator[None]:
    """A block whose errors carry the stage's name for their message."""
    try:
        yield
    except BaseException as error:
        error.add_note(stage)
        raise


# ---------------------------------------------------------------- before the first stage

def _check_results(cfg: Config) -> None:
    """What can be known before the cohort is read: that no earlier result is spoilt which this run needs, and
    that it can write."""
    if "tables" in cfg.stages and "test" not in cfg.stages and (cfg.result_dir / INDEX).exists():
        load_run(cfg.result_dir)
    if cfg.is_phantom and not Path(cfg.data_dir).exists():
        check_place(Path(cfg.data_dir))
    if not set(cfg.stages) <= {"check", "tables"}:
        check_place(cfg.result_dir)
        _check_latents_folder(cfg)
        if cfg.cache == "file":
            check_temporary_folder()


def _check_latents_folder(cfg: Config) -> None:
    """Say where latents go if that is not beside the volumes. Raises WriteError if they cannot go there."""
    folder = latents_folder(cfg)
    try:
        check_place(folder)
    except WriteError as error:
        raise WriteError(error.errno, f"latent_dir {error}; --latent_dir takes another folder") from error
    if not (cfg.latent_dir or folder.is_relative_to(cfg.data_dir)):
        reason = link_problem(Path(cfg.data_dir) / LATENTS) or f"{cfg.data_dir} cannot be written to"
        say("check", f"{reason}: latents are kept in {folder} (setting latent_dir)")


def _check_and_tables(cfg: Config) -> None:
    if "check" in cfg.stages:
        with naming("check"):
            settle_regions(cfg, check(cfg))
    if "tables" in cfg.stages:
        with naming("tables"):
            make_all_tables(cfg)


def check(cfg: Config) -> Cohort:
    """Read the whole cohort once, a phantom being simulated first, and print what is in it. Raises InputError
    with all problems."""
    if cfg.is_phantom:
        try:
            build_phantom(Path(cfg.data_dir), cfg.phantom_subjects, cfg.phantom_voxel, cfg.phantom_link,
                          cfg.phantom_seed, cfg.phantom_discordant, cfg.phantom_marker, cfg.phantom_sites,
                          cfg.phantom_kind)
        except ValueError as error:
            raise InputError(str(error)) from error
    cohort = check_cohort(Path(cfg.data_dir), cfg.info_folder, cfg.image_size, cfg.num_classes,
                          cfg.subject_pattern,
                          smallest_training_list=max(cfg.aae_batch_size, cfg.ldm_batch_size) * world_size(),
                          least_of_each_label=cfg.least_of_each_label, covariates=cfg.covariates,
                          subgroups=cfg.subgroups)
    notice = f" ({PHANTOM_NOTICE})" if (Path(cfg.data_dir) / "phantom.json").exists() else ""
    say("check", f"{cfg.data_dir}: no problem found{notice}\n{cohort.report}")
    if cfg.covariates and not cfg.predicts_label:
        say("check", f"covariates ({', '.join(cfg.covariates)}): seen by the status classifiers alone, "
                     "because label_at_sampling none samples without a label")
    return cohort


def _begin(exp: Experiment, lock: FolderLock) -> None:
    """Find out what could stop the run later, make the experiment's folder its own, and write down there what
    is run."""
    cfg = exp.cfg
    exp.refuse_conflicts()
    folders = {"encode": exp.latents_folder, "test": cfg.result_dir / "synthesized",
               "report": cfg.result_dir / "figures", "tables": cfg.result_dir.parent / "tables"}
    for folder in [cfg.result_dir, *(folders[stage] for stage in folders if stage in cfg.stages)]:
        make_folder(folder)
        remove_leftovers(folder)
    lock.acquire()
    if lock.left_by:
        say("check", f"an earlier run here ({lock.left_by}) was killed; what it was writing is removed, what "
                     "it had saved is used")
    remove_leftovers(cfg.result_dir, everyones=True)
    check_room(cfg.result_dir, exp.checkpoint_room(),
               "the checkpoints (the best, the last, and the next while it is written)")
    keep_log(cfg.result_dir / "run.log")
    write_text(cfg.result_dir / "config.json", cfg.to_json())
    LOG.debug("%s", exp.command)
    networks = exp.networks
    networks.check_device()
    say("check", f"{exp.cache.describe()}; networks compute in {networks.precision} on "
                 f"{exp.device}{networks.slow_precision}")


def begin_training(exp: Experiment, run: StageRun, batches: DataLoader, epochs: int) -> None:
    """Say what a training does, where it continues, and which settings are no longer those of its beginning;
    results of earlier networks count no longer."""
    processes = f" of {world_size()} processes together" if world_size() > 1 else ""
    steps = f" and {len(run.progress.losses)} steps" if run.progress.losses else ""
    say(run.stage, f"{len(exp.cohort.train)} subjects, {batches.sampler.step_items} a step{processes}, "
                   f"{run.epoch} of {epochs} epochs{steps} done, writes {run.best_path}")
    if run.remarks:
        say(run.stage, "continues under settings that may change its numbers, but not the method "
                       f"(saved -> now): {'; '.join(run.remarks)}")
    if run.epochs_left(epochs) and is_rank_0():
        forget_run(exp.cfg.result_dir)
        for name in (COMPARISON, COST):
            (exp.cfg.result_dir / name).unlink(missing_ok=True)


# ---------------------------------------------------------------- pictures, tables and report

def plot_history(exp: Experiment) -> None:
    """Draw the losses and scores of both stages, and of the baselines."""
    if _draws("the losses"):
        from evaluation.figures import plot_curves
        plot_curves(exp.cfg.result_dir, exp.cfg.result_dir / "loss_curve", exp.notice, (".png",))


def plot_shown_scans(exp: Experiment, of_mean: LatentSampler) -> None:
    """Write one sample of each of the first test scans of each label, and draw it beside their real PET and
    their synthetic one. of_mean: the sampler of the synthetic PETs."""
    if not is_rank_0():
        return
    sampler = sampler_of_one(of_mean)
    write_shown_samples(exp, sampler)
    if _draws("the synthetic PETs"):
        from evaluation.volume_figures import plot_synthesized

        rows = {f"{scan.id}\nlabel {scan.label}": (scan.pet, exp.synthesized(scan), exp.one_sample(scan))
                for scan in exp.shown_scans()}
        plot_synthesized(exp.cfg.result_dir / "synthesized", rows, sampler.drawn, exp.notice)


def plot_comparison(exp: Experiment, methods: dict[str, Predict], scores: pd.DataFrame) -> None:
    """Draw the PETs of all scored methods beside each other, of the test scans that IL-CLDM does best, about
    as well as usual, and worst; nothing if no trained method is compared with it.

    methods: name -> predict function. scores: of IL-CLDM, a row a test scan.
    """
    if methods.keys().isdisjoint(BASELINES) or not from_rank_0(_draws, "the compared methods"):
        return
    error, place = ("MAE_brain", "in the brain") if "MAE_brain" in scores else ("MAE", "on the box")
    shown = scores.iloc[best_median_worst(scores[error].tolist())]
    scan_of = {scan.id: scan for scan in exp.cohort.test}
    scans = [scan_of[name] for name in shown["ID"]]
    level, where = _compared_level(exp)
    slices = _compared_slices(exp, methods, scans, level)
    if is_rank_0():
        from evaluation.volume_figures import plot_methods
        titles = [f"{scan.id}\nlabel {scan.label}\nMAE of IL-CLDM\n{place}: {value:.4f}"
                  for scan, value in zip(scans, shown[error], strict=True)]
        plot_methods(exp.cfg.result_dir / COMPARISON, titles, slices, where, exp.notice)


def _compared_level(exp: Experiment) -> tuple[int, str]:
    """The level of the crop whose axial slices are compared, and where that is, for a caption."""
    affine = exp.crop.affine(exp.cohort.affine)
    level = int(np.clip(round((COMPARED_MM - affine[2, 3]) / affine[2, 2]), 0, exp.crop.size[2] - 1))
    return level, f"axial slices at z = {affine[2, 2] * level + affine[2, 3]:.0f} mm"


def _compared_slices(exp: Experiment, methods: dict[str, Predict], scans: list[Scan],
                     level: int) -> dict[str, list[np.ndarray]]:
    """Method -> axial slice [D, H] of each scan's PET at a level of the crop. Whole volumes of all methods
    would not fit into memory."""
    def measure(x_hat: Tensor, _: dict) -> dict[str, np.ndarray]:
        """The slice of a PET [D, H, W]."""
        return {"slice": x_hat[:, :, level].cpu().numpy().copy()}     # a view would keep the volume

    slices = {"real": [_axial_slice(exp, scan.pet, level) for scan in scans],
              "il_cldm": [_axial_slice(exp, exp.synthesized(scan), level) for scan in scans]}
    for method, predict in methods.items():
        if method not in ("aae", "il_cldm"):
            batches = exp.batches(scans, "mri", "pet", divided=True)
            slices[method] = evaluate(predict, batches, measure, f"picture {method}")["slice"].tolist()
    return slices


def _axial_slice(exp: Experiment, path: Path, level: int) -> np.ndarray:
    """The slice [D, H] of a file's volume at a level of the crop."""
    return read_in_range(path)[0][exp.crop.slices()][:, :, level].copy()


def _draws(what: str) -> bool:
    """Whether this process draws pictures; without matplotlib none does, which must not cost a training."""
    if is_rank_0() and importlib.util.find_spec("matplotlib") is None:
        say("check", f"no picture of {what}: it needs the package matplotlib (requirements.txt)")
        return False
    return is_rank_0()


def tables(exp: Experiment) -> None:
    """Write the tables of all experiments under result/, from their CSVs alone."""
    if is_rank_0():
        make_all_tables(exp.cfg)


def make_all_tables(cfg: Config) -> None:
    """Write result/tables of all experiments whose results can be read. Raises InputError if there is
    none."""
    from evaluation.grey_zone import reasons
    from evaluation.layout import write_tables
    from evaluation.external_table import external_groups, external_table
    from evaluation.rows import group_runs
    from evaluation.tables import make_tables
    runs, left_out = load_runs(cfg.result_dir.parent)
    externals = []
    for run in runs:
        found, unusable = _externals(cfg.result_dir.parent / run.name)
        externals += found
        left_out |= unusable
    for name, reason in left_out.items():
        say("tables", f"{name} is left out: {reason}")
    groups, remarks = group_runs(runs)
    for remark in remarks:
        say("tables", remark)
    if not groups:
        raise InputError(f"{cfg.result_dir.parent} holds no experiment with scores; --stages test writes "
                         "them")
    for reason in reasons(groups):
        say("tables", reason)
    tables = [*make_tables([*groups, *external_groups(externals)]), external_table(groups, externals)]
    for path in write_tables(cfg.result_dir.parent / "tables", list(filter(None, tables))):
        say("tables", f"{len(runs)} experiments, wrote {path} (and .md, .tex)")


def _externals(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """The external cohorts of an experiment, and those that cannot be used with the reason."""
    return load_externals(folder, frozen_digests(folder))


def report(exp: Experiment) -> None:
    """Write the figures and the report of this experiment, from its CSVs and volumes."""
    if not is_rank_0():
        return
    from evaluation.external_table import external_table
    from evaluation.failure_cases import CSV, failure_cases, read_cases
    from evaluation.methods_text import methods_text
    from evaluation.report import read_subjects, write_figures, write_report
    from evaluation.rows import group_runs
    from evaluation.tables import make_tables
    folder, result = exp.cfg.result_dir, load_run(exp.cfg.result_dir)
    say("report", f"writes {folder}/figures/, {folder}/report.html, {CSV}, table_1.csv and methods.txt")
    subjects = read_subjects(exp.shown_scans(), folder / "synthesized", exp.one_sample_folder, exp.crop)
    people = read_people(exp.cfg.info_folder, [scan.id for scan in exp.cohort.scans])
    settings = result.metadata["settings"]
    further = [*settings.get("covariates", ()), *settings.get("subgroups", ())]
    participants = _participants(exp, people, further)
    cases, (level, where) = failure_cases(result, people, further), _compared_level(exp)
    drawn = read_cases(cases, {scan.id: scan for scan in exp.cohort.test}, folder / "synthesized", exp.crop,
                       level)
    if not drawn:
        say("report", f"no figure of failure cases: {folder}/synthesized lacks some of their PETs")
    externals, left_out = _externals(folder)
    names = [run.metadata["external"]["name"] for run in externals]
    methods = methods_text(result, participants.flow, names)
    write_csv(folder / CSV, cases)
    write_csv(folder / "table_1.csv", participants.table)
    write_text(folder / "methods.txt", methods)
    figures = write_figures(folder, result, subjects, drawn, where)
    groups = group_runs([result])[0]
    for name, reason in left_out.items():
        say("report", f"{name} is left out: {reason}")
    shown = list(filter(None, [*make_tables(groups), external_table(groups, externals)]))
    write_report(folder / "report.html", result, shown, figures, participants, methods, subjects,
                 exp.cohort.affine)


def _participants(exp: Experiment, people: pd.DataFrame, further: list[str]) -> "Participants":
    """The flow of participants, and Table 1 with these further columns. people: as read_people gives it."""
    from evaluation.participants import count_participants
    from evaluation.report import Participants
    from evaluation.table_1 import make_table_1
    lists, pattern = {split: getattr(exp.cohort, split) for split in SPLITS}, exp.cfg.subject_pattern
    flow = count_participants(exp.cfg.info_folder, lists, pattern)
    if flow.remark:
        say("report", flow.remark)
    return Participants(flow, make_table_1(lists, people, pattern, further))
