"""The paper's comparison on the benchmark phantom: IL-CLDM, five systems, controls (docs/comparison.md).

    python main.py study comparison             all of it, hours first; the same command goes on
    python main.py study comparison --quick     seed 0 alone, a quarter of the training, no search of rates
    python main.py study comparison --tables    runs nothing; the tables of what is finished

Every method sees as many training volumes, first stages and earlier phases among them. Before that, three
learning rates of every method are tried on the validation list of seed 0. Writes result/study/comparison.*
"""
import argparse
import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from config import BASELINES, PRESETS, SYSTEMS, Config
from evaluation.results import Run
from evaluation.statistics import agreement, area_under_roc, bootstrap, bootstrap_p, holm, interval
from experiment.networks import checkpoint_name
from runtime.checkpoints import read_history
from runtime.commandline import parse
from runtime.files import make_folder, write_csv, write_text
from runtime.logs import LOG, logging_run, say
from studies import systems
from studies.parts import Part, Setup, scan_pass, stage_1_step, stage_2_step
from studies.running import FOLDER, SEEDS, Failed, cohort_words, load_finished, run_stages
from utils import METRICS

# Epochs of stage 1 and 2; a system gets their sum. FULL: four times the updates of the other study.
SHORT = ["--aae_epochs", "20", "--ldm_epochs", "12"]
FULL = ["--aae_epochs", "80", "--ldm_epochs", "48", "--validation_every", "8"]
FACTORS = (1 / 3, 1.0, 3.0)                                # of the preset's learning rates, that are tried
RATES = {"ldm": ("ldm_lr",), "pix2pix": ("pix2pix.lr",), "tpa_gan": ("tpa_gan.g_lr", "tpa_gan.d_lr"),
         "fgan": ("fgan.lr",), "resvit": ("resvit.lr_1", "resvit.lr_2"), "ddpm": ("ddpm.lr",)}
RESAMPLES = 2000                                           # of subjects, behind intervals and p values
NAMES = {"il_cldm": "IL-CLDM (default)", "published": "IL-CLDM (published)", "pix2pix": "Pix2Pix",
         "tpa_gan": "TPA-GAN", "fgan": "FGAN", "fgan_published": "FGAN (published form)",
         "resvit": "ResViT (2D)", "ddpm": "DDPM, one sample", "ddpm_mean": "DDPM, mean of 8",
         "ddpm_ancestral": "DDPM, one ancestral sample", "latent_regression": "latent regression",
         "labelled_latent_regression": "latent regression with label", "image_regression": "image regression",
         "labelled_image_regression": "image regression with label", "mean_pet": "mean PET (floor)",
         "oracle": "oracle (ceiling)"}


class Row(NamedTuple):
    """An experiment of the comparison.

    change: the settings that differ from those of the main experiment. baselines: that are trained in it.
    trains: what it trains itself, 'aae' both stages, 'ldm' the second, 'nothing' where it uses the networks
    of the main experiment, and those of its baselines. seeds: it is run with. methods: its methods that the
    table shows -> the name of their row.
    """
    name: str
    change: str
    baselines: tuple[str, ...]
    trains: str
    seeds: tuple[int, ...]
    methods: dict[str, str]
    of: str = "main"


IN_MAIN = ("il_cldm", *BASELINES, "ddpm_mean", "mean_pet", "oracle")
AT_LINK_0 = {name: f"{name}_link_0" for name in ("il_cldm", *SYSTEMS)}
SHUFFLED = {name: f"{name}_link_0_shuffled" for name in ("il_cldm", "tpa_gan", "fgan")}
ROWS = (
    Row("main", "--ddpm.samples 8", BASELINES, "aae", SEEDS,
        {name: name for name in IN_MAIN}),
    Row("published", "--preset benchmark published --sampler ddim --sampling_steps 50", (), "aae", SEEDS,
        {"il_cldm": "published"}),
    Row("fgan_published", "--fgan.output_norm true", ("fgan",), "nothing", (0,), {"fgan": "fgan_published"}),
    Row("ddpm_ancestral", "--ddpm.sampler ddpm", ("ddpm",), "nothing", (0,), {"ddpm": "ddpm_ancestral"}),
    # null controls: the MRI knows nothing of amyloid
    Row("link_0", "--phantom_link 0", SYSTEMS, "aae", SEEDS, AT_LINK_0),
    Row("link_0_shuffled", "--phantom_link 0 --shuffle_labels", ("tpa_gan", "fgan"), "ldm", SEEDS, SHUFFLED,
        "link_0"),
)
BY_NAME = {row.name: row for row in ROWS}


# ---------------------------------------------------------------- the settings of an experiment

def experiment_name(row: str, seed: int, quick: bool) -> str:
    """Name of the experiment of a row and seed."""
    return f"{'quick' if quick else 'comparison'}{seed}_{row}"


def words(row: Row, seed: int, quick: bool, rates: list[str]) -> list[str]:
    """The command line of an experiment, without its stages. rates: the chosen learning rates, as words."""
    name = experiment_name(row.name, seed, quick)
    change = row.change.split()
    preset = [] if "--preset" in change else ["--preset", "benchmark"]
    source = experiment_name(row.of, seed, quick)
    pretrained = {"aae": [], "ldm": ["--aae_from", source], "nothing": ["--ldm_from", source]}[row.trains]
    baselines = ["--baselines", *row.baselines] if row.baselines else []
    own_rates = [] if row.name == "published" else rates
    return [*preset, *cohort_words(name, seed, "--phantom_link" in change), *change,
            *(SHORT if quick else FULL), *pretrained, *baselines, *own_rates]


def settings_of(row: Row, seed: int, quick: bool, rates: list[str]) -> Config:
    """The settings of an experiment."""
    return parse(Config, words(row, seed, quick, rates), "main.py", "", PRESETS)


def stages(row: Row) -> list[list[str]]:
    """The stages of an experiment: those that train, then the test."""
    own = {"aae": ["aae", "encode", "ldm"], "ldm": ["ldm"], "nothing": []}[row.trains]
    return [["check", *own, *(["baselines"] if row.baselines else [])], ["test"]]


# ---------------------------------------------------------------- the search of learning rates

def rate_words(method: str, factor: float) -> list[str]:
    """The learning rates of a method times the factor, as words of a command line."""
    cfg, found = Config(**PRESETS["benchmark"]), []
    for name in RATES[method]:
        group, _, inner = name.partition(".")
        rate = getattr(getattr(cfg, group), inner) if inner else getattr(cfg, group)
        found += [f"--{name}", f"{rate * factor:.3g}"]
    return found


def search_words(number: int) -> list[str]:
    """The command line of the experiment that tries FACTORS[number] for every method, without its stages."""
    first = "rates0_0"                                     # which trains the stage 1 of all
    pretrained = ["--aae_from", first] if number else []
    rates = [word for method in RATES for word in rate_words(method, FACTORS[number])]
    return ["--preset", "benchmark", *cohort_words(f"rates0_{number}", 0), *SHORT, *pretrained,
            "--baselines", *SYSTEMS, *rates]


def search_rates() -> None:
    """Train every method with each of the FACTORS, and write comparison_rates.csv; nothing is tested."""
    rows = []
    for number, factor in enumerate(FACTORS):
        cfg = parse(Config, search_words(number), "main.py", "", PRESETS)
        if _validated(cfg) < set(RATES):
            say("study", f"learning rates times {factor:.2g}, seed 0, validation list")
            stage_1 = [] if number else ["aae", "encode"]
            run_stages(f"learning rates times {factor:.2g}", cfg.exp, search_words(number),
                       [["check", *stage_1, "ldm", "baselines"]])
        validation = read_history(cfg.result_dir / "validation.csv")
        best = validation.groupby("stage")["score"].max()
        rows += [{"method": method, "factor": factor, "score": best[method]} for method in RATES]
    table = pd.DataFrame(rows)
    table["chosen"] = table["score"] == table.groupby("method")["score"].transform("max")
    write_csv(FOLDER / "comparison_rates.csv", table.sort_values("method", kind="stable"))


def _validated(cfg: Config) -> set[str]:
    """The methods whose training with these settings is finished, by their validations."""
    path, saved = cfg.result_dir / "validation.csv", cfg.result_dir / "config.json"
    if not (path.is_file() and saved.is_file()):
        return set()
    if _settings_in(saved.read_text()) != _settings_in(cfg.to_json()):
        return set()
    last = read_history(path).groupby("stage")["epoch"].max()
    return {method for method in RATES if last.get(method, 0) >= cfg.epochs_of(method)}


def _settings_in(text: str) -> dict:
    """The settings of a config.json, without the stages that were run."""
    return {name: value for name, value in json.loads(text)["settings"].items() if name != "stages"}


def chosen_rates() -> list[str]:
    """The learning rates that the validation list chose, as words of a command line."""
    table = pd.read_csv(FOLDER / "comparison_rates.csv")
    chosen = table[table["chosen"]].drop_duplicates("method").set_index("method")["factor"]
    return [word for method, factor in chosen.items() for word in rate_words(method, factor)]


# ---------------------------------------------------------------- hours

def expected_hours(cfg: Config, quick: bool) -> dict[str, float]:
    """Hours of each method in all that is planned, from one training step and one scan of each that are timed
    here; il_cldm with both stages. The regressions are not counted."""
    short, hours = parse(Config, ["--preset", "benchmark", *SHORT], "main.py", "", PRESETS), {}
    for method in ("il_cldm", *SYSTEMS):
        cost = MethodCost.timed(method, cfg)
        rows = [row for row in ROWS if row.name != "ddpm_ancestral" and
                (row.trains != "nothing" if method == "il_cldm" else method in row.baselines)]
        hours[method] = cost.hours(cfg)
        if not quick:
            hours[method] *= sum(len(row.seeds) for row in rows)
            hours[method] += len(FACTORS) * cost.hours(short, tested=False)
        if method == "ddpm" and not quick:                 # one sample of T - 1 evaluations
            evaluations = cfg.ddpm.sampling_steps * (1 + cfg.ddpm.samples)
            hours[method] += cfg.phantom_subjects[2] * (cfg.ddpm.T - 1) * cost.scan / evaluations / 3600
    return hours


class MethodCost(NamedTuple):
    """Seconds of a method's training step (of the costliest phase), by stage, and of a scan's synthesis in
    validation and test."""
    steps: dict[str, float]
    validation_scan: float
    scan: float

    @classmethod
    def timed(cls, method: str, cfg: Config) -> "MethodCost":
        """The cost of il_cldm or a system, from one action of each kind after a warm-up."""
        setup = Setup(cfg, published=False)
        if method == "il_cldm":
            scan = seconds_of(scan_pass(setup))
            return cls({"aae": seconds_of(stage_1_step(setup)), "ldm": seconds_of(stage_2_step(setup))},
                       scan / cfg.samples_per_scan, 2 * scan)               # matched: two passes
        step = {method: seconds_of(systems.training_step(method, setup))}
        scan = seconds_of(systems.scan(method, setup))
        if method != "ddpm":
            return cls(step, scan, scan)
        # for one sample, and for the mean of several
        evaluation, one = scan / systems.FEW_STEPS, cfg.ddpm.sampling_steps
        return cls(step, evaluation * cfg.ddpm.validation_steps, evaluation * one * (1 + cfg.ddpm.samples))

    def hours(self, cfg: Config, tested: bool = True) -> float:
        """Hours of a training with its validations, and of the test if that is taken."""
        n_train, n_validation, n_test = cfg.phantom_subjects
        seconds = tested * n_test * self.scan
        for stage, step in self.steps.items():
            epochs, size = cfg.epochs_of(stage), cfg.aae_batch_size if stage == "aae" else cfg.ldm_batch_size
            validations = epochs // cfg.validation_every * n_validation * self.validation_scan
            seconds += epochs * n_train // size * step + validations
        return seconds / 3600


def seconds_of(part: Part) -> float:
    """Seconds of a unit of work of a part; a first one warms up."""
    action, units = part
    action()
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) / units


# ---------------------------------------------------------------- the run

def run_row(row: Row, seed: int, quick: bool, rates: list[str]) -> None:
    """Train and score an experiment that is not finished. Raises Failed if a command fails."""
    cfg = settings_of(row, seed, quick, rates)
    run = load_finished(cfg, *row.baselines)
    if run and set(row.methods) - {"oracle"} <= set(run.test["method"]):
        return
    say("study", f"{row.name}, seed {seed}   {row.change}")
    if row.name == "ddpm_ancestral":                       # samples the network of the main experiment
        make_folder(cfg.result_dir)
        source = settings_of(BY_NAME["main"], seed, quick, rates).result_dir
        if not (source / f"{checkpoint_name('ddpm')}_last.pth.tar").is_file():
            raise Failed(2, f"ddpm_ancestral, seed {seed}: {source} has no trained ddpm; run the row main first")
        for last in ("", "_last"):
            name = f"{checkpoint_name('ddpm')}{last}.pth.tar"
            shutil.copyfile(source / name, cfg.result_dir / name)
    run_stages(f"{row.name}, seed {seed}", cfg.exp, words(row, seed, quick, rates), stages(row))


# ---------------------------------------------------------------- the table

def method_scores(run: Run, method: str, seed: int) -> dict:
    """The scores of a method on the test list of a run, and the bootstrap replicates of its PSNR in the brain
    and of the AUC of its SUVR, [RESAMPLES] each, of the same subjects for every method of the seed."""
    images, uptake = (table[table["method"] == method].set_index("ID") for table in (run.test, run.uptake))
    real = run.uptake[run.uptake["method"] == "real"].set_index("ID")
    suvr, label = uptake["SUVR"].reindex(real.index).to_numpy(), real["label"].to_numpy()
    agrees, psnr = agreement(real["SUVR"].to_numpy(), suvr), images["PSNR_brain"].to_numpy()
    replicates = {"PSNR_brain": bootstrap(lambda chosen: psnr[chosen].mean(-1), len(psnr), RESAMPLES, seed),
                  "AUC": bootstrap(lambda chosen: area_under_roc(label[chosen], suvr[chosen]), len(label),
                                   RESAMPLES, seed)}
    return {"scores": {**images[list(METRICS)].mean(), "r": agrees["Pearson"], "bias": agrees["bias"],
                       "slope": agrees["slope"], "AUC": float(area_under_roc(label, suvr))},
            "replicates": replicates, "subjects": len(label)}


def make_table(runs: dict[tuple[str, int], Run], costs: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """A row a method: the mean of every score over the seeds, and its SD under <score>_sd; the 95 % interval of
    the AUC; p values against IL-CLDM, and at link 0 against chance, all of them adjusted together (Holm);
    costs.

    runs, costs: (row, seed) -> results, and cost.csv, of the experiments that are finished.
    """
    found, commands, cost_rows = {}, {}, {}
    for (name, seed), run in runs.items():
        for method, row in BY_NAME[name].methods.items():
            if method in set(run.test["method"]):
                found.setdefault(row, {})[seed] = method_scores(run, method, seed)
                commands.setdefault(row, run.metadata["command"])
                cost = costs[name, seed].set_index("method")
                if method in cost.index:
                    cost_rows.setdefault(row, []).append(cost.loc[method])
    rows = []
    for row, by_seed in found.items():
        scores = pd.DataFrame([seed["scores"] for seed in by_seed.values()])
        low, high = interval(_mean_over(by_seed, "AUC"))
        rows.append({"method": row, "n": len(by_seed),
                     "subjects": sum(seed["subjects"] for seed in by_seed.values()),
                     **scores.mean(), **scores.std().add_suffix("_sd"), "AUC_low": low, "AUC_high": high,
                     **_p_values(row, by_seed, found.get("il_cldm", {})),
                     **(pd.DataFrame(cost_rows[row]).mean() if row in cost_rows else {}),
                     "made_by": commands[row]})
    table = pd.DataFrame(rows)
    adjusted = holm(table[["p_PSNR_brain", "p_AUC"]].to_numpy().ravel()).reshape(-1, 2)
    order = [*NAMES, *AT_LINK_0.values(), *SHUFFLED.values()]
    table = table.assign(p_PSNR_brain=adjusted[:, 0], p_AUC=adjusted[:, 1])
    return table.sort_values("method", key=lambda names: names.map(order.index)).reset_index(drop=True)


def _mean_over(by_seed: dict[int, dict], score: str, seeds: list[int] | None = None) -> np.ndarray:
    """Replicates of the mean over seeds, [RESAMPLES]."""
    return np.mean([by_seed[seed]["replicates"][score] for seed in seeds or by_seed], axis=0)


def _p_values(row: str, by_seed: dict[int, dict], of_il_cldm: dict[int, dict]) -> dict[str, float]:
    """p of "as IL-CLDM" on the seeds that both have; at link 0 of "no better than chance" for the AUC alone."""
    if "link_0" in row:
        chance = np.full(RESAMPLES, 0.5)
        return {"p_PSNR_brain": np.nan, "p_AUC": bootstrap_p(_mean_over(by_seed, "AUC"), chance)}
    seeds = [seed for seed in by_seed if seed in of_il_cldm]
    if row == "il_cldm" or not seeds:
        return {"p_PSNR_brain": np.nan, "p_AUC": np.nan}
    return {f"p_{score}": bootstrap_p(_mean_over(by_seed, score, seeds), _mean_over(of_il_cldm, score, seeds))
            for score in ("PSNR_brain", "AUC")}


HEADINGS = {"PSNR_brain": ("PSNR in brain (dB)", 2), "SSIM_brain": ("SSIM in brain", 3),
            "MAE_brain": ("MAE in brain", 4), "PSNR": ("PSNR on box (dB)", 2), "SSIM": ("SSIM on box", 3),
            "MAE": ("MAE on box", 4), "r": ("r", 2), "bias": ("bias", 3), "slope": ("slope", 2)}


def to_markdown(table: pd.DataFrame) -> str:
    """The table of scores, mean ± SD over seeds, * where p < 0.05 against IL-CLDM; that of the null controls;
    and the costs."""
    is_null = table["method"].str.contains("link_0")
    parts = [_scores_text(table[~is_null])]
    if is_null.any():
        parts.append(_null_text(table[is_null]))
    costs = table[~is_null].dropna(subset="weights") if "weights" in table else table[:0]
    if len(costs):
        parts.append(_costs_text(costs))
    return "\n\n".join(part.to_markdown(index=False, disable_numparse=True) for part in parts) + "\n"


def _scores_text(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of the scores."""
    rows = []
    for _, row in table.iterrows():
        cells = {"method": NAMES[row["method"]], "seeds": row["n"]}
        for score, (heading, digits) in HEADINGS.items():
            star = "*" if row.get(f"p_{score}", 1) < 0.05 else ""
            cells[heading] = _mean_and_sd(row[score], row[f"{score}_sd"], digits) + star
        star = "*" if row["p_AUC"] < 0.05 else ""
        cells["AUC [95 %]"] = f"{row['AUC']:.2f} [{row['AUC_low']:.2f}, {row['AUC_high']:.2f}]{star}"
        rows.append(cells)
    return pd.DataFrame(rows)


def _null_text(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of the null controls."""
    rows = []
    for _, row in table.iterrows():
        method, _, shuffled = row["method"].partition("_link_0")
        rows.append({"method": NAMES[method], "labels": "shuffled" if shuffled else "own", "seeds": row["n"],
                     "AUC [95 %]": f"{row['AUC']:.2f} [{row['AUC_low']:.2f}, {row['AUC_high']:.2f}]",
                     "p against 0.5 (Holm)": f"{row['p_AUC']:.2f}"})
    return pd.DataFrame(rows)


def _costs_text(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of the costs."""
    return pd.DataFrame({"method": table["method"].map(NAMES),
                         "weights": [f"{n:,.0f}" for n in table["weights"]],
                         "volumes seen": [f"{n:,.0f}" for n in table["volumes_seen"]],
                         "training (s)": [f"{s:,.0f}" for s in table["training_s"]],
                         "NFE": [f"{n:.0f}" for n in table["NFE"]],
                         "a scan (s)": [f"{s:.2f}" for s in table["scan_s"]]})


def _mean_and_sd(mean: float, sd: float, digits: int) -> str:
    """Mean ± SD; without the SD where there is one seed, a dash where there is no mean."""
    if not np.isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if np.isfinite(sd) else "")


def write_tables(seeds: list[int], quick: bool, rates: list[str]) -> None:
    """Write comparison.csv and .md of the experiments that are finished, and copy the picture of the first.
    Raises Failed if there are none."""
    runs, costs, stem = {}, {}, FOLDER / ("comparison_quick" if quick else "comparison")
    for row in ROWS:
        for seed in seeds:
            cfg = settings_of(row, seed, quick, rates)
            run = load_finished(cfg, *row.baselines) if seed in row.seeds else None
            if run:
                runs[row.name, seed] = run
                costs[row.name, seed] = pd.read_csv(cfg.result_dir / "cost.csv")
    if not runs:
        raise Failed(2, "no experiment of the comparison is finished; python main.py study comparison runs "
                        "them")
    table = make_table(runs, costs)
    write_csv(stem.with_suffix(".csv"), table)
    write_text(stem.with_suffix(".md"), to_markdown(table))
    first = next(iter(runs.values()))
    picture = Path("result") / first.name / "comparison.png"
    if picture.is_file():
        shutil.copyfile(picture, stem.with_suffix(".png"))
    say("study", f"wrote {stem}.csv and .md, {len(runs)} experiments")


def main(argv: list[str]) -> int:
    """Run the comparison. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="main.py study comparison", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="the main experiment of seed 0 alone, a quarter of the training, no search of rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS,
                        help="seeds to run")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS],
                        default=[row.name for row in ROWS], help="experiments to run; main first")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing, write the tables of what is finished")
    arguments = parser.parse_args(argv)
    quick, seeds = arguments.quick, [0] if arguments.quick else arguments.seeds
    names = ["main"] if quick else arguments.rows
    make_folder(FOLDER)
    with logging_run():
        try:
            if not arguments.tables:
                _say_hours(quick)
                if not quick:
                    search_rates()
            searched = not quick and (FOLDER / "comparison_rates.csv").is_file()
            rates = chosen_rates() if searched else []
            for row in () if arguments.tables else [BY_NAME[name] for name in names]:
                for seed in [seed for seed in seeds if seed in row.seeds]:
                    run_row(row, seed, quick, rates)
            write_tables(seeds, quick, rates)
        except Failed as failure:
            code, message = failure.args
            LOG.error("%s", message)
            return code
    return 0


def _say_hours(quick: bool) -> None:
    """Say what the comparison will take."""
    hours = expected_hours(settings_of(BY_NAME["main"], 0, quick, []), quick)
    shown = ", ".join(f"{method} {value:.1f}" for method, value in hours.items())
    say("study", f"about {sum(hours.values()):.0f} hours on this machine, from a step and a scan of each "
                 f"({shown}), the regressions not counted; what is finished is not run again")
