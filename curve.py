"""Quality against cost: the validation list synthesized by every sampler with few and many network calls and draws.

The defaults of sampler, sampling_steps and samples_per_scan were chosen from this table, and never from the test list.
"""
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from diffusion import Draws, Synthesizer
from experiment import Experiment
from figures import plot_sampling
from files import make_folder, read_own_table, write_csv
from logs import progress_bar
from metrics import METRICS, evaluate
from networks import Predictor
from stopping import stop_if_asked
from utils import derived_seed, weights_key

CALLS = (1, 2, 5, 10, 20, 50, 100)                         # of ddim and dpm; ddpm takes T - 1
DRAWS = (1, 4, 16)


def measure_curve(exp: Experiment, synthesizer: Synthesizer, classifier: Predictor | None, folder: Path) -> None:
    """Write sampling_curve.csv, a row for each sampler, number of calls and number of draws, and its picture.

    A row holds the mean scores over the validation list and the correlation of synthetic with real SUVR. The present setting of the
    sampler is one of the rows. Rows of the same networks, settings and scans that are there already stay, so that the same command goes on.
    """
    make_folder(folder)
    cfg, path = exp.cfg, folder / "sampling_curve.csv"
    longest = cfg.timesteps - 1
    plan = [("ddpm", longest)] + [(sampler, steps) for sampler in ("ddim", "dpm") for steps in CALLS if steps <= longest]
    setting = (cfg.sampler, longest if cfg.sampler == "ddpm" else cfg.sampling_steps)
    if setting not in plan:
        plan.append(setting)
    measured_on = _measured_on(exp, synthesizer)
    columns = ["measured_on", "sampler", "steps", "draws"]
    table = pd.DataFrame(columns=columns)
    if path.is_file():
        table = read_own_table(path, [*columns, "calls"], "remove it, and --stages curve makes it again", measured_on=str)
    table = table[table["measured_on"] == measured_on]
    real = evaluate(lambda batch: batch["pet"], exp.batches(exp.cohort.validation, "pet"), lambda x, _: _uptake(exp, x), "curve, real PET")
    for sampler, steps in reversed(plan):                                                    # the long one last
        whole = len(cfg.validation_draws)                  # as many draws with each label, if they are weighted
        draws = sorted({-(-m // whole) * whole for m in (DRAWS + (cfg.samples_per_scan,) if (sampler, steps) == setting else DRAWS)})
        if set(draws) <= set(table.loc[(table["sampler"] == sampler) & (table["steps"] == steps), "draws"]):
            continue
        for scores in _score(exp, synthesizer, classifier, sampler, steps, draws, real):
            row = {"sampler": sampler, "steps": steps, "calls": synthesizer.diffusion.calls(sampler, steps), **scores}
            new = pd.DataFrame([row]).assign(measured_on=measured_on)
            table = pd.concat([table, new]) if len(table) else new
            table = table.drop_duplicates(columns, keep="last").sort_values(["sampler", "draws", "calls"], kind="stable")
            write_csv(path, table)
    note = f"validation list, {exp.scores_note(len(exp.cohort.validation))}"
    plot_sampling(table, (*setting, cfg.samples_per_scan), folder / "sampling_curve", note)


def _measured_on(exp: Experiment, synthesizer: Synthesizer) -> str:
    """16 hexadecimal digits that identify what a row depends on besides its sampler."""
    cfg = exp.cfg
    facts = (weights_key(synthesizer.unet, synthesizer.decoder), exp.cohort.fingerprint("validation"), exp.identity()["masks"], cfg.seed,
             cfg.label_at_sampling, cfg.guidance, cfg.shared_noise, exp.precision)
    return f"{derived_seed(*facts):016x}"


def _uptake(exp: Experiment, x: Tensor) -> dict[str, float]:
    """The SUVR of a volume [D, H, W], if there are regions."""
    return {"SUVR": exp.regions.measure(x.cpu().numpy())["SUVR"]} if exp.regions else {}


def _score(exp: Experiment, synthesizer: Synthesizer, classifier: Predictor | None, sampler: str, steps: int, draws: list[int],
           real: pd.DataFrame) -> Iterator[dict]:
    """The mean scores with each number of draws. More draws go on from fewer ones, as a run with so many makes them."""
    title, scans, first = f"curve, {sampler} {steps}", exp.cohort.validation, 0
    drawn = {scan.id: [] for scan in scans}                                                  # ID -> draws of one scan
    for m in draws:
        draw, at_once = exp.draw(synthesizer, classifier, sampler, steps, range(first, m)), max(1, exp.cfg.sampling_batch // (m - first))
        with progress_bar(desc=f"{title}, {m} draws", unit="scan", total=len(scans)) as bar:
            for batch in exp.batches(scans, "mri", batch=at_once):
                stop_if_asked()
                some = draw(batch)
                for name, z_0, weight in zip(batch["id"], some.z_0, some.weight, strict=True):
                    drawn[name].append((z_0[None], weight[None]))
                bar.update(len(batch["id"]))
        first = m

        def predict(batch: dict) -> Tensor:
            parts = (zip(*drawn[name], strict=True) for name in batch["id"])
            return synthesizer.decode(torch.cat([Draws(*(torch.cat(part, dim=1) for part in both)).mean() for both in parts]))
        scores = evaluate(predict, exp.batches(scans, "pet"), lambda x_hat, volumes: exp.image_scores(x_hat, volumes) | _uptake(exp, x_hat),
                          f"{title}, {m} draws")
        correlation = {"SUVR_r": scores["SUVR"].corr(real["SUVR"])} if exp.regions else {}
        yield {"draws": m, "n": len(scores), **scores[list(METRICS)].mean(), **correlation}
