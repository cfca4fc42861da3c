"""How good the latent samples of a trained experiment are as PETs that a person might have (docs/samples.md).

    python main.py study samples --exp NAME                  the test list
    python main.py study samples --exp NAME --fresh 60       and as many phantoms that nobody has seen

Each scan is synthesized as m samples, with an amount of amyloid that is drawn for each (label_at_sampling
sampled) and with the predicted one, beside the written mean PET and regressions of the same experiment, with
the errors of the validation list. Writes samples.csv (a row a list and method), samples_subjects.csv,
samples.md and samples.png to result/<exp>/.
"""
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nibabel.affines import apply_affine
from numpy import ndarray

from config import Config
from dataset import Scan
from evaluation import statistics
from evaluation.measurement import Measurement
from evaluation.samples import with_errors
from evaluation.scores import Predict, evaluate
from experiment.baselines import reference_methods
from experiment.experiment import Experiment
from experiment.networks import LatentSampler
from experiment.saved import parse_for_experiment
from experiment.scoring import trained_epochs
from experiment.session import check
from labels.ridge import LabelPredictor
from model import Synthesizer
from runtime.files import write_csv, write_text
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from runtime.settings import refuse, setting, value_problems
from runtime.signals import stop_if_requested
from studies.samples_page import draw_page
from studies.samples_table import METHODS, judge, make_table, to_markdown
from utils import InputError, pick_device

TABLE, SUBJECTS, PAGE = "samples.csv", "samples_subjects.csv", "samples.png"
FRESH_SEED = 9000                                          # added to phantom_seed; ours are all lower
NO_PET = "amount"                                          # the row that needs no PET


@dataclass(frozen=True)
class SamplesSettings:
    """The settings of `python main.py study samples` beside those of the experiment."""

    exp: str = setting("",
        "name of the trained experiment; its settings are read from result/<exp>/config.json",
        section="samples")
    samples: int = setting(20, "samples a scan, m", low=2, high=1000)
    fresh: int = setting(0,
        "further phantoms that nobody has seen, simulated as the cohort was, with another seed", low=0)

    def __post_init__(self):
        refuse(value_problems(self) or ([] if self.exp else ["study samples needs --exp"]))


def main(argv: list[str]) -> int:
    """Run the study on a trained experiment. Returns the exit code."""
    about = "Score the latent samples of the test list as predictive distributions of the uptake."
    settings, cfg = parse_for_experiment(SamplesSettings, argv, "main.py study samples", about)
    return exit_code(partial(study, dataclasses.replace(cfg, stages=("check",)), settings))


def study(cfg: Config, settings: SamplesSettings) -> None:
    """Write the results to result/<exp>/. Raises InputError if the experiment is not trained, measures no
    SUVR, or has no predictor of the label that can draw."""
    exp = Experiment(cfg, check(cfg), pick_device(cfg.device))
    exp.refuse_conflicts(needs=("aae", "ldm"))
    refuse_without_uptake(exp)
    exp.measurement = with_parcels(exp.measurement, exp.crop.affine(exp.cohort.affine))
    synthesizer, predictor = exp.networks.best_synthesizer()
    samplers = samplers_of(exp, synthesizer, predictor, settings.samples)
    lists = {"test": exp}
    if settings.fresh:
        lists["fresh"] = fresh_experiment(exp, settings.fresh)
    announce(exp, samplers, lists)
    study_lists(exp, samplers, lists)
    draw_page(cfg.result_dir / PAGE, exp, samplers)
    say("study", f"wrote {TABLE}, {SUBJECTS}, samples.md and {PAGE} to {cfg.result_dir}")


def refuse_without_uptake(exp: Experiment) -> None:
    """Raise InputError if there is nothing to measure, or no label to draw."""
    if not exp.measurement.regions:
        raise InputError("study samples scores the SUVR, and no regions are known; give --cortex_mask and "
                         "--reference_mask, or another value of --regions than none")
    if not exp.cfg.predicts_label:
        raise InputError("study samples draws the label of each sample, and this experiment is sampled "
                         "without one (label_at_sampling none)")


def study_lists(exp: Experiment, samplers: dict[str, LatentSampler], lists: dict[str, Experiment]) -> None:
    """Measure all methods on all lists, and write the tables."""
    cfg, methods = exp.cfg, deterministic_methods(exp, samplers["written"])
    errors = {name: validation_errors(exp, name, predict) for name, predict in methods.items()}
    tables = []
    for name, own in lists.items():
        real = uptake_of(own, own.cohort.test, lambda batch: batch["pet"], f"{name} list, real")
        ensembles = sample_ensembles(own, {key: samplers[key] for key in ("sampled", "fixed")}, name)
        for method, predict in methods.items():
            found = uptake_of(own, own.cohort.test, predict, f"{name} list, {method}")
            ensembles[method] = {column: with_errors(found[column].to_numpy(), errors[method][column])
                                 for column in uptake_columns(real)}
        ensembles = {method: ensembles[method] for method in METHODS if method in ensembles}
        tables.append(judge(ensembles, real, cfg.seed).assign(list=name))
    subjects = pd.concat(tables, ignore_index=True)
    table = make_table(subjects, calibrated_on(exp, errors, NO_PET in ensembles), statistics.RESAMPLES,
                       cfg.seed)
    write_csv(cfg.result_dir / SUBJECTS, subjects[["list", *subjects.columns.drop("list")]])
    write_csv(cfg.result_dir / TABLE, table)
    note = exp.scores_note(len(exp.cohort.test))
    regions = [column.removeprefix("SUVR_") for column in uptake_columns(real)[1:]]
    write_text(cfg.result_dir / "samples.md", to_markdown(table, note, regions))


# ---------------------------------------------------------------- regions and lists

def with_parcels(measurement: Measurement, affine: ndarray) -> Measurement:
    """The measurement with parts of the cortical target as further regions, unless it has regions of its
    own."""
    regions = measurement.regions
    if regions.named:
        return measurement
    named = dataclasses.replace(regions, named=parcels(regions.cortex, affine))
    return dataclasses.replace(measurement, regions=named)


def parcels(cortex: ndarray, affine: ndarray) -> dict[str, ndarray]:
    """Six parts of a cortical target [D, H, W] bool: left and right, each cut into three of as many voxels
    from back to front. affine: [4, 4], of voxels to millimetres, x to the right and y to the front."""
    x, y = np.moveaxis(apply_affine(affine, np.moveaxis(np.indices(cortex.shape), 0, -1)), -1, 0)[:2]
    named = {}
    for side, half in (("left", cortex & (x < 0)), ("right", cortex & (x >= 0))):
        cuts = np.quantile(y[half], [1 / 3, 2 / 3]) if half.any() else np.zeros(2)
        third = np.digitize(y, cuts)
        for number, name in enumerate(("back", "middle", "front")):
            part = half & (third == number)
            if part.any():
                named[f"{side}_{name}"] = part
    return named


def uptake_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a table that hold an SUVR, the composite first."""
    return [name for name in table if name.startswith("SUVR")]


def fresh_experiment(exp: Experiment, number: int) -> Experiment:
    """The experiment with a test list of phantoms that nobody has seen. Raises InputError if its cohort is no
    phantom, or has covariates, which belong to the trained people of the same IDs."""
    cfg = exp.cfg
    if not cfg.is_phantom or cfg.covariates:
        why = "it has covariates" if cfg.covariates else "its cohort is no phantom of the settings"
        raise InputError(f"--fresh {number} simulates further subjects of the cohort of {cfg.exp}, but {why}")
    few = max(4 * cfg.phantom_sites, cfg.aae_batch_size, cfg.ldm_batch_size)   # lists that nothing reads
    seed = cfg.phantom_seed + FRESH_SEED
    folder = Path(cfg.data_dir).with_name(f"{Path(cfg.data_dir).name}_fresh_{number}")
    changed = dataclasses.replace(cfg, data_dir=str(folder), latent_dir="", phantom_seed=seed,
                                  phantom_subjects=(few, few, number))
    fresh = Experiment(changed, check(changed), exp.device)
    fresh.measurement = exp.measurement
    return fresh


# ---------------------------------------------------------------- what is sampled

def samplers_of(exp: Experiment, synthesizer: Synthesizer, predictor: LabelPredictor,
                m: int) -> dict[str, LatentSampler]:
    """Samplers: `sampled`, of m samples with drawn labels; `fixed`, of m with the predicted one; `written`,
    that of the settings, whose mean is written. Raises InputError if no label can be drawn."""
    cfg, is_amount = exp.cfg, predictor.levels is not None
    both = {"sampled": True, "fixed": False}
    found = {name: LatentSampler(cfg, synthesizer, predictor, exp.measurement, cfg.sampler,
                                 cfg.sampling_steps, range(m), is_amount, exp.people, drawn)
             for name, drawn in both.items()}
    return found | {"written": exp.latent_sampler(synthesizer, predictor)}


def announce(exp: Experiment, samplers: dict[str, LatentSampler], lists: dict[str, Experiment]) -> None:
    """Say what is going to be done."""
    scans = {name: len(own.cohort.test) for name, own in lists.items()}
    each = {name: sampler.evaluations for name, sampler in samplers.items()}
    evaluations = sum(scans.values()) * sum(each.values()) + len(exp.cohort.validation) * each["written"]
    shown = ", ".join(f"{n} scans of the {name} list" for name, n in scans.items())
    say("study", f"{shown}, {len(samplers['sampled'].samples)} samples each, drawn and fixed: "
                 f"{evaluations:,} network evaluations on {exp.device}, writes {exp.cfg.result_dir}/{TABLE}")


def sample_ensembles(exp: Experiment, samplers: dict[str, LatentSampler],
                     title: str) -> dict[str, dict[str, ndarray]]:
    """Method -> uptake -> [n, m] of the samples of the test list, decoded one by one; and of the drawn
    amounts themselves, if amounts are drawn."""
    ensembles = {}
    for name, sampler in samplers.items():
        rows, amounts = [], []
        batches = exp.batches(exp.cohort.test, "mri")
        for batch in progress_bar(batches, desc=f"{title} list, {name}", unit="batch"):
            stop_if_requested()
            draws = sampler.draws(batch) if sampler.drawn else None
            for z_0 in sampler(batch, draws):                                                # [m, C, d, h, w]
                pets = sampler.synthesizer.decode(z_0)                                       # [m, 1, D, H, W]
                rows.append([exp.measurement.uptake(pet[0]) for pet in pets])
            if draws and sampler.predictor.levels is not None:
                amounts.append(draws.value)
        ensembles[name] = {column: np.array([[one[column] for one in scan] for scan in rows])
                           for column in rows[0][0] if column.startswith("SUVR")}
        if amounts:
            negative, positive = sampler.predictor.levels.tolist()
            ensembles[NO_PET] = {"SUVR": negative + (positive - negative) * torch.cat(amounts).numpy()}
    return ensembles


def deterministic_methods(exp: Experiment, written: LatentSampler) -> dict[str, Predict]:
    """The written mean PET, and the regressions of the latent that are trained beside it."""
    methods = reference_methods(exp, exp.networks.best_aae(), exp.survey(), trained_epochs(exp))
    kept = {name: methods[name] for name in METHODS if name in methods}
    return {"written": written.synthesize} | kept


def uptake_of(exp: Experiment, scans: list[Scan], predict: Predict, title: str) -> pd.DataFrame:
    """A row a scan: ID, label and the uptake of its PET."""
    def measure(x_hat: torch.Tensor, _: dict) -> dict[str, float]:
        """The uptake of a PET [D, H, W]."""
        return exp.measurement.uptake(x_hat)
    batches = exp.batches(scans, "mri", "pet", batch=exp.cfg.scans_at_once)
    return evaluate(predict, batches, measure, f"study, {title}")


def validation_errors(exp: Experiment, name: str, predict: Predict) -> dict[str, ndarray]:
    """Uptake -> errors, real - synthetic, of a method on the validation list, [k]."""
    scans = exp.cohort.validation
    real = uptake_of(exp, scans, lambda batch: batch["pet"], "validation list, real")
    found = uptake_of(exp, scans, predict, f"validation list, {name}")
    return {column: real[column].to_numpy() - found[column].to_numpy() for column in uptake_columns(real)}


def calibrated_on(exp: Experiment, errors: dict[str, dict[str, ndarray]],
                  draws_amounts: bool) -> dict[str, int]:
    """Method -> number of subjects whose errors its distribution is made of; none for one that knows no
    errors."""
    numbers = {method: int(np.isfinite(own["SUVR"]).sum()) for method, own in errors.items()}
    drawn = ("sampled", NO_PET) if draws_amounts else ()
    return numbers | dict.fromkeys(drawn, len(exp.cohort.train))
