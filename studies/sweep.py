"""Quality against cost: the validation list synthesized by every sampler with few and many network evaluations and latent samples.

The defaults of sampler, sampling_steps and samples_per_scan were chosen from this table, and never from the test list.
"""
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from config import Config
from diffusion import Synthesizer
from evaluation.figures import plot_sampling
from evaluation.metrics import METRICS, evaluate
from experiment.experiment import Experiment
from labels.ridge import RidgeClassifier
from newscans.synthesize import changeable, saved_settings
from runtime.commandline import build, given
from runtime.files import make_folder, read_own_table, write_csv
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from runtime.settings import refuse, setting, value_problems
from runtime.signals import stop_if_requested
from utils import derived_seed, pick_device, weights_key


@dataclass(frozen=True)
class Settings:
    """The settings of `python main.py sweep` beside those of the experiment."""

    exp: str = setting("", "name of the trained experiment; its settings are read from result/<exp>/config.json", section="sweep")

    def __post_init__(self):
        refuse(value_problems(self) or ([] if self.exp else ["sweep needs --exp"]))


def main(argv: list[str]) -> int:
    """Sweep the samplers of a trained experiment. Returns the exit code."""
    words = given([*dataclasses.fields(Settings), *changeable()], argv, "main.py sweep",
                  "Score the validation list with every sampler, number of network evaluations and number of latent samples.")
    settings = build(Settings, {name: value for name, value in words.items() if name == "exp"})
    cfg = build(Config, saved_settings(settings.exp) | words | {"stages": ("check",)})
    return exit_code(lambda: sweep(cfg))


def sweep(cfg: Config) -> None:
    """Write result/<exp>/sweep."""
    from main import check
    exp = Experiment(cfg, check(cfg), pick_device(cfg.device, 0))
    exp.refuse_conflicts()
    folder = cfg.result_dir / "sweep"
    synthesizer, classifier, _ = exp.best_synthesizer()
    say("sweep", f"{len(exp.cohort.validation)} subjects of the validation list, writes {folder}; what is there already stays")
    measure_sweep(exp, synthesizer, classifier, folder)


CALLS = (1, 2, 5, 10, 20, 50, 100)                         # of ddim and dpm; ddpm takes T - 1
DRAWS = (1, 4, 16)


def measure_sweep(exp: Experiment, synthesizer: Synthesizer, classifier: RidgeClassifier | None, folder: Path) -> None:
    """Write sampling_sweep.csv, a row for each sampler, number of calls and number of draws, and its picture.

    A row holds the mean scores over the validation list and the correlation of synthetic with real SUVR. The present setting of the
    sampler is one of the rows. Rows of the same networks, settings and scans that are there already stay, so that the same command goes on.
    """
    make_folder(folder)
    cfg, path = exp.cfg, folder / "sampling_sweep.csv"
    longest = cfg.timesteps - 1
    plan = [("ddpm", longest)] + [(sampler, steps) for sampler in ("ddim", "dpm") for steps in CALLS if steps <= longest]
    setting = (cfg.sampler, longest if cfg.sampler == "ddpm" else cfg.sampling_steps)
    if setting not in plan:
        plan.append(setting)
    measured_on = _measured_on(exp, synthesizer)
    columns = ["measured_on", "sampler", "steps", "draws"]
    table = pd.DataFrame(columns=columns)
    if path.is_file():
        table = read_own_table(path, [*columns, "calls"], "remove it, and python main.py sweep makes it again", measured_on=str)
    table = table[table["measured_on"] == measured_on]
    real = evaluate(lambda batch: batch["pet"], exp.batches(exp.cohort.validation, "pet"), lambda x, _: _uptake(exp, x), "sweep, real PET")
    for sampler, steps in reversed(plan):                                                    # the long one last
        draws = sorted({*DRAWS, *((cfg.samples_per_scan,) if (sampler, steps) == setting else ())})
        if set(draws) <= set(table.loc[(table["sampler"] == sampler) & (table["steps"] == steps), "draws"]):
            continue
        for scores in _score(exp, synthesizer, classifier, sampler, steps, draws, real):
            row = {"sampler": sampler, "steps": steps, "calls": synthesizer.diffusion.evaluations(sampler, steps), **scores}
            new = pd.DataFrame([row]).assign(measured_on=measured_on)
            table = pd.concat([table, new]) if len(table) else new
            table = table.drop_duplicates(columns, keep="last").sort_values(["sampler", "draws", "calls"], kind="stable")
            write_csv(path, table)
    note = f"validation list, {exp.scores_note(len(exp.cohort.validation))}"
    plot_sampling(table, (*setting, cfg.samples_per_scan), folder / "sampling_sweep", note)


def _measured_on(exp: Experiment, synthesizer: Synthesizer) -> str:
    """16 hexadecimal digits that identify what a row depends on besides its sampler."""
    cfg = exp.cfg
    facts = (weights_key(synthesizer.unet, synthesizer.decoder), exp.cohort.fingerprint("validation"), exp.identity()["masks"], cfg.seed,
             cfg.label_at_sampling, exp.precision)
    return f"{derived_seed(*facts):016x}"


def _uptake(exp: Experiment, x: Tensor) -> dict[str, float]:
    """The SUVR of a volume [D, H, W], if there are regions."""
    return {"SUVR": exp.regions.measure(x.cpu().numpy())["SUVR"]} if exp.regions else {}


def _score(exp: Experiment, synthesizer: Synthesizer, classifier: RidgeClassifier | None, sampler: str, steps: int, draws: list[int],
           real: pd.DataFrame) -> Iterator[dict]:
    """The mean scores with each number of draws. More draws go on from fewer ones, as a run with so many makes them."""
    title, scans, first = f"sweep, {sampler} {steps}", exp.cohort.validation, 0
    drawn = {scan.id: [] for scan in scans}                                                  # ID -> draws of one scan
    for m in draws:
        sample = exp.sampler(synthesizer, classifier, sampler, steps, range(first, m))
        at_once = max(1, exp.cfg.sampling_batch // (m - first))
        with progress_bar(desc=f"{title}, {m} draws", unit="scan", total=len(scans)) as bar:
            for batch in exp.batches(scans, "mri", batch=at_once):
                stop_if_requested()
                for name, z_0 in zip(batch["id"], sample(batch).z_0, strict=True):
                    drawn[name].append(z_0)
                bar.update(len(batch["id"]))
        first = m

        def predict(batch: dict) -> Tensor:
            return synthesizer.decode(torch.stack([torch.cat(drawn[name]).mean(dim=0) for name in batch["id"]]))
        scores = evaluate(predict, exp.batches(scans, "pet"), lambda x_hat, volumes: exp.image_scores(x_hat, volumes) | _uptake(exp, x_hat),
                          f"{title}, {m} draws")
        correlation = {"SUVR_r": scores["SUVR"].corr(real["SUVR"])} if exp.regions else {}
        yield {"draws": m, "n": len(scores), **scores[list(METRICS)].mean(), **correlation}
