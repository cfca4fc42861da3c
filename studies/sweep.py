"""Quality against cost: the validation list synthesized by every sampler with few and many network
evaluations and latent samples.

    python main.py sweep --exp NAME

Every latent sample is drawn in one pass: the second pass of label_at_sampling matched is left out.
The defaults of sampler, sampling_steps and samples_per_scan were chosen from this table, and never from the
test list.
"""
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from config import Config
from dataset import Scan
from evaluation.scores import evaluate
from experiment.experiment import Experiment
from experiment.networks import LatentSampler
from experiment.saved import parse_for_experiment
from experiment.session import check
from labels.ridge import LabelPredictor
from model import Synthesizer
from runtime.files import make_folder, read_own_table, write_csv
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from runtime.settings import refuse, setting, value_problems
from runtime.signals import stop_if_requested
from utils import METRICS, derived_seed, pick_device, weights_key

STEPS = (1, 2, 5, 10, 20, 50, 100)                         # of ddim and dpm; ddpm takes T - 1
SAMPLES = (1, 4, 16)                                       # latent samples a scan
KEY = ["measured_on", "sampler", "steps", "samples"]       # columns that tell rows apart


@dataclass(frozen=True)
class SweepSettings:
    """The settings of `python main.py sweep` beside those of the experiment."""

    exp: str = setting("",
        "name of the trained experiment; its settings are read from result/<exp>/config.json",
        section="sweep")

    def __post_init__(self):
        refuse(value_problems(self) or ([] if self.exp else ["sweep needs --exp"]))


def main(argv: list[str]) -> int:
    """Sweep the samplers of a trained experiment. Returns the exit code."""
    about = ("Score the validation list with every sampler, number of network evaluations and number of "
             "latent samples.")
    _, cfg = parse_for_experiment(SweepSettings, argv, "main.py sweep", about)
    return exit_code(partial(sweep, dataclasses.replace(cfg, stages=("check",))))


def sweep(cfg: Config) -> None:
    """Write result/<exp>/sweep. Raises InputError if the experiment is not trained."""
    exp = Experiment(cfg, check(cfg), pick_device(cfg.device))
    exp.refuse_conflicts(needs=("aae", "ldm"))
    folder = cfg.result_dir / "sweep"
    say("sweep", f"{len(exp.cohort.validation)} subjects of the validation list, writes {folder}; "
                 "what is there already stays")
    measure_sweep(exp, *exp.networks.best_synthesizer(), folder)


def measure_sweep(exp: Experiment, synthesizer: Synthesizer, predictor: LabelPredictor | None,
                  folder: Path) -> None:
    """Write sampling_sweep.csv, a row for each sampler, number of steps and number of latent samples, and its
    picture.

    A row holds the mean scores over the validation list and the correlation of synthetic with real SUVR; NFE
    counts the network evaluations of one latent sample. The sampler of the settings is one of the rows. Rows
    of the same networks, settings and scans that are there already stay, so that the same command goes on.
    """
    make_folder(folder)
    cfg, path = exp.cfg, folder / "sampling_sweep.csv"
    own, plan = _plan(cfg)
    measured_on = _measured_on(exp, synthesizer)
    table, real = _read(path, measured_on), _real_uptake(exp)
    for sampler, steps in plan:
        counts = set(SAMPLES)
        if (sampler, steps) == own:
            counts.add(cfg.samples_per_scan)
        there = table.loc[(table["sampler"] == sampler) & (table["steps"] == steps), "samples"]
        if counts <= set(there):
            continue
        nfe = synthesizer.diffusion.evaluations(sampler, steps)
        for scores in _score(exp, synthesizer, predictor, sampler, steps, sorted(counts), real):
            row = {"sampler": sampler, "steps": steps, "NFE": nfe, **scores, "measured_on": measured_on}
            table = _with_row(table, row)
            write_csv(path, table)
    from evaluation.figures import plot_sampling           # here, because it needs matplotlib
    note = f"validation list, {exp.scores_note(len(exp.cohort.validation))}"
    plot_sampling(table, (*own, cfg.samples_per_scan), folder / "sampling_sweep", note)


def _plan(cfg: Config) -> tuple[tuple[str, int], list[tuple[str, int]]]:
    """Sampler and steps of the settings, and all that are to be measured, the long one last."""
    longest = cfg.timesteps - 1
    own = (cfg.sampler, longest if cfg.sampler == "ddpm" else cfg.sampling_steps)
    plan = [(sampler, steps) for sampler in ("dpm", "ddim") for steps in reversed(STEPS) if steps <= longest]
    if own not in plan and cfg.sampler != "ddpm":
        plan.insert(0, own)
    return own, [*plan, ("ddpm", longest)]


def _read(path: Path, measured_on: str) -> pd.DataFrame:
    """The rows of these networks that are there already."""
    if not path.is_file():
        return pd.DataFrame(columns=KEY)
    table = read_own_table(path, [*KEY, "NFE"], "remove it, and python main.py sweep makes it again",
                           measured_on=str)
    return table[table["measured_on"] == measured_on]


def _with_row(table: pd.DataFrame, row: dict) -> pd.DataFrame:
    """The table in its order, with a further row in the place of an earlier one of the same key."""
    new = pd.DataFrame([row])
    table = pd.concat([table, new]) if len(table) else new
    return table.drop_duplicates(KEY, keep="last").sort_values(["sampler", "samples", "NFE"], kind="stable")


def _measured_on(exp: Experiment, synthesizer: Synthesizer) -> str:
    """16 hexadecimal digits that identify what a row depends on besides its sampler."""
    networks = weights_key(synthesizer.unet, synthesizer.space.decoder)
    parts = (networks, exp.cohort.fingerprint("validation"), exp.measurement.mask_keys(), exp.cfg.seed,
             exp.cfg.settings_of("validation"), exp.networks.precision)
    return f"{derived_seed(*parts):016x}"


def _suvr(exp: Experiment, x: Tensor) -> dict[str, float]:
    """The SUVR of a volume [D, H, W], if there are regions."""
    return {"SUVR": exp.measurement.uptake(x)["SUVR"]} if exp.measurement.regions else {}


def _real_uptake(exp: Experiment) -> pd.DataFrame:
    """ID, label and, if there are regions, SUVR of the real PETs of the validation list."""
    def real_pet(batch: dict) -> Tensor:
        """The PETs of a batch themselves, [B, 1, D, H, W]."""
        return batch["pet"]

    def measure(x: Tensor, _volumes: dict[str, Tensor]) -> dict[str, float]:
        """SUVR."""
        return _suvr(exp, x)
    return evaluate(real_pet, exp.batches(exp.cohort.validation, "pet"), measure, "sweep, real PET")


def _score(exp: Experiment, synthesizer: Synthesizer, predictor: LabelPredictor | None, sampler: str,
           steps: int, counts: list[int], real: pd.DataFrame) -> Iterator[dict]:
    """The mean scores over the validation list with each number of latent samples, in rising order."""
    scored = score_samples(exp, synthesizer, predictor, sampler, steps, counts, exp.cohort.validation)
    for count, scores in scored:
        row = {"samples": count, "n": len(scores), **scores[list(METRICS)].mean()}
        if exp.measurement.regions:
            row["SUVR_r"] = scores["SUVR"].corr(real["SUVR"])
        yield row


def score_samples(exp: Experiment, synthesizer: Synthesizer, predictor: LabelPredictor | None, sampler: str,
                  steps: int, counts: list[int], scans: list[Scan]) -> Iterator[tuple[int, pd.DataFrame]]:
    """Each number of latent samples, in rising order, with a row a scan: image scores and, if there are
    regions, SUVR. More samples go on from fewer ones, as a run with so many makes them."""
    samples: dict[str, list[Tensor]] = {scan.id: [] for scan in scans}         # ID -> [., C, d, h, w] each

    def predict(batch: dict) -> Tensor:
        """PETs decoded from the mean of the samples so far, [B, 1, D, H, W]."""
        means = [torch.cat(samples[name]).mean(dim=0) for name in batch["id"]]
        return synthesizer.decode(torch.stack(means))

    def measure(x_hat: Tensor, volumes: dict[str, Tensor]) -> dict[str, float]:
        """Image scores and SUVR."""
        return exp.measurement.image_scores(x_hat, volumes) | _suvr(exp, x_hat)

    first = 0
    for count in counts:
        title = f"sweep, {sampler} {steps}, {count} samples"
        latents = LatentSampler(exp.cfg, synthesizer, predictor, exp.measurement, sampler, steps,
                                range(first, count), people=exp.people)
        _add_samples(exp, latents, scans, samples, title)
        first = count
        yield count, evaluate(predict, exp.batches(scans, "pet"), measure, title)


def _add_samples(exp: Experiment, latents: LatentSampler, scans: list[Scan],
                 samples: dict[str, list[Tensor]], title: str) -> None:
    """Add to the samples of every scan those that `latents` makes of it."""
    at_once = max(1, exp.cfg.sampling_batch // len(latents.samples))
    with progress_bar(desc=title, unit="scan", total=len(scans)) as bar:
        for batch in exp.batches(scans, "mri", batch=at_once):
            stop_if_requested()
            for name, z_0 in zip(batch["id"], latents(batch), strict=True):
                samples[name].append(z_0)
            bar.update(len(batch["id"]))
