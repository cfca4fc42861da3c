"""What the study of budgets measures of a finished experiment beside its test: the diffusion sampled with few
and many network evaluations, and the regressions on the validation list, by which budgets are chosen.

It goes to result/<exp>/budget.csv, a row a subject of validation and test list.
"""
import pandas as pd
from torch import Tensor

from config import REGRESSIONS, Config
from evaluation.results import Run, load_run
from evaluation.scores import evaluate
from experiment.baselines import reference_methods
from experiment.experiment import Experiment
from experiment.scoring import COST, trained_epochs
from experiment.session import check
from runtime.files import read_own_table, write_csv
from studies.benchmark import machine
from studies.repairs_table import of_method
from studies.sweep import score_samples
from utils import pick_device

FILE = "budget.csv"                                        # in the folder of an experiment
STEPS = (1, 2, 20, 100)                                    # of DDIM, network evaluations a latent sample
LISTS = ("validation", "test")
SAMPLING = ["sampler", "steps", "samples", "passes"]       # columns that tell the samplings of a method apart
ONCE = {"sampler": "none", "steps": 1, "samples": 1, "passes": 1}       # a method that draws nothing
SCORES = ["PSNR_brain", "SSIM_brain", "SUVR"]


def samplings(cfg: Config, samples: int) -> list[tuple[str, int, tuple[int, ...], tuple[str, ...]]]:
    """Sampler, network evaluations a latent sample, numbers of latent samples, and lists of all samplings of
    a diffusion; none with 0 samples. With the first seed also one ancestral sample, of the test list alone:
    it is dear, and chooses nothing."""
    if not samples:
        return []
    longest = cfg.timesteps - 1
    plan = [("ddim", steps, (1, samples), LISTS) for steps in STEPS if steps <= longest]
    return [*plan, ("ddpm", longest, (1,), ("test",))] if cfg.seed == 0 else plan


def evaluations_of(cfg: Config, samples: int) -> int:
    """Network evaluations of all samplings of a diffusion."""
    scans = dict(zip(LISTS, cfg.phantom_subjects[1:], strict=True))
    return sum(steps * max(counts) * sum(scans[name] for name in lists)
               for _, steps, counts, lists in samplings(cfg, samples))


def measured(cfg: Config) -> pd.DataFrame:
    """The rows of an experiment that are there and belong to its present results."""
    path = cfg.result_dir / FILE
    if not path.is_file():
        return pd.DataFrame(columns=["method", *SAMPLING, "measured_on"])
    table = read_own_table(path, ["method", *SAMPLING, "measured_on"], f"remove {path}, and python main.py "
                           "study budget makes it again", measured_on=str, ID=str)
    return table[table["measured_on"] == _key(load_run(cfg.result_dir))]


def _key(run: Run) -> str:
    """What tells the networks of a run from others: its scores on the validation list."""
    return run.metadata["files"]["validation_list.csv"]


def _missing(cfg: Config, regressions: tuple[str, ...], samples: int, table: pd.DataFrame) -> list:
    """The samplings and the regressions that have no rows yet, in the order in which they are measured."""
    there = set(table[["method", "sampler", "steps", "samples"]].itertuples(index=False, name=None))
    missing = [name for name in regressions if (name, "none", 1, 1) not in there]
    for sampling in samplings(cfg, samples):
        sampler, steps, counts, _ = sampling
        if any(("il_cldm", sampler, steps, count) not in there for count in counts):
            missing.append(sampling)
    return missing


def is_measured(cfg: Config, regressions: tuple[str, ...], samples: int) -> bool:
    """Whether all rows of an experiment are there."""
    return not _missing(cfg, regressions, samples, measured(cfg))


def measure(cfg: Config, regressions: tuple[str, ...], samples: int) -> None:
    """Add to result/<exp>/budget.csv the rows that are missing, one sampling after the other; samples: whose
    mean stands beside one, or 0 for no sampling.

    A latent sample is drawn in one pass: the second pass of label_at_sampling matched is left out, as in the
    sweep, because it would follow the number of samples.
    """
    table = measured(cfg)
    missing = _missing(cfg, regressions, samples, table)
    if not missing:
        return
    exp = Experiment(cfg, check(cfg), pick_device(cfg.device))
    about = {"measured_on": _key(load_run(cfg.result_dir)), "machine": machine(exp.device)}
    networks = exp.networks.best_synthesizer()
    for wanted in missing:
        rows = _of_regression(exp, wanted) if isinstance(wanted, str) else _of_sampling(exp, networks, wanted)
        new = pd.concat(rows).assign(**about)
        table = pd.concat([table, new]) if len(table) else new
        write_csv(cfg.result_dir / FILE, table)


def _of_sampling(exp: Experiment, networks: tuple, wanted: tuple) -> list[pd.DataFrame]:
    """The rows with each number of latent samples of a sampling. networks: synthesizer, and predictor of the
    label or None."""
    sampler, steps, counts, lists = wanted
    tables = []
    for name in lists:
        scans = getattr(exp.cohort, name)
        for count, scores in score_samples(exp, *networks, sampler, steps, list(counts), scans):
            about = {"sampler": sampler, "steps": steps, "samples": count, "passes": 1}
            tables.append(scores[["ID", "label", *SCORES]].assign(method="il_cldm", list=name, **about))
    return tables


def _of_regression(exp: Experiment, name: str) -> list[pd.DataFrame]:
    """The rows of the validation list by a regression."""
    aae, survey = exp.networks.best_aae(), exp.survey()
    predict = reference_methods(exp, aae, survey, trained_epochs(exp))[name]

    def score(x_hat: Tensor, volumes: dict[str, Tensor]) -> dict[str, float]:
        """Image scores and SUVR."""
        return exp.measurement.image_scores(x_hat, volumes) | exp.measurement.uptake(x_hat)
    scores = evaluate(predict, exp.batches(exp.cohort.validation, "mri", "pet"), score, f"validation {name}")
    return [scores[["ID", "label", *SCORES]].assign(method=name, list="validation", **ONCE)]


# ---------------------------------------------------------------- all subjects of an experiment

def subjects_of(cfg: Config, run: Run) -> pd.DataFrame:
    """A row for each method of an experiment, list, sampling and subject: the scores of its test stage, and
    of its budget.csv. is_setting: sampled as the settings say, or a method that draws nothing.

    A method is il_cldm, one of the regressions, mean_pet or oracle; these two on the test list alone.
    """
    tables, extra = _of_test_stage(cfg, run), measured(cfg)
    if len(extra):
        tables.append(extra.assign(is_setting=extra["sampler"] == "none"))
    table = pd.concat(tables)
    real = of_method(run.uptake, "real")["SUVR"].to_dict()
    validation = run.validation_list.set_index("ID")["SUVR_real"].to_dict()
    costs = pd.read_csv(cfg.result_dir / COST).set_index("method")["training_s"]
    steps = cfg.phantom_subjects[0] // cfg.ldm_batch_size
    updates = {name: steps * cfg.epochs_of(name) for name in REGRESSIONS} | {
        "il_cldm": steps * cfg.epochs_of("ldm")}           # none of mean_pet and oracle
    return table.assign(
        exp=cfg.exp, seed=cfg.seed, SUVR_real=table["ID"].map(validation | real),
        NFE=table["steps"] * table["samples"] * table["passes"], updates=table["method"].map(updates),
        training_s=table["method"].map(costs), machine=extra["machine"].iloc[0] if len(extra) else "")


def _of_test_stage(cfg: Config, run: Run) -> list[pd.DataFrame]:
    """The rows of an experiment's test stage."""
    steps = cfg.timesteps - 1 if cfg.sampler == "ddpm" else cfg.sampling_steps
    own = {"sampler": cfg.sampler, "steps": steps, "samples": cfg.samples_per_scan,
           "passes": 2 if cfg.label_at_sampling == "matched" else 1}
    validation = run.validation_list[["ID", "label", *SCORES]]
    tables = [validation.assign(method="il_cldm", list="validation", **own)]
    for method in ("il_cldm", *REGRESSIONS, "mean_pet", "oracle"):
        if method in set(run.test["method"]):
            scores = of_method(run.test, method)[["label", "PSNR_brain", "SSIM_brain"]]
            scores = scores.join(of_method(run.uptake, method)["SUVR"]).reset_index()
            about = own if method == "il_cldm" else ONCE
            tables.append(scores.assign(method=method, list="test", **about))
    return [table.assign(is_setting=True) for table in tables]
