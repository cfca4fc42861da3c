"""What the study of budgets runs: its methods, their budgets and seeds, the settings of every experiment."""
from typing import NamedTuple

from config import PRESETS, REGRESSIONS, Config
from runtime.commandline import parse
from studies.repairs_rows import BY_NAME as ROWS
from studies.repairs_rows import Row
from studies.running import SEEDS, Failed, benchmark_cohort, cohort_words

BASE = PRESETS["benchmark"]                                # the settings of budget 1
BUDGETS = (1, 4, 16, 64)                                   # times the epochs of stage 2
AS_PUBLISHED = ROWS["published"].change
FRESH, FIRST_FRESH = (4, 4, 200), 2000                     # fresh phantoms: of each list, seed of the first
FRESH_NAME = "fresh"                                       # as an external cohort
LADDER = {1: SEEDS, 4: SEEDS, 16: SEEDS}
FIRST = {budget: SEEDS[:1] for budget in LADDER}
LONGEST = {64: SEEDS[:1]}


class Method(NamedTuple):
    """A method of the study.

    change: the settings that differ from those of the preset benchmark. runs: budget -> seeds it is run with.
    stage_1: the method whose stage 1 it uses; of a regression the diffusion in whose experiment it is
    trained, with the same settings. scaled: whether its moving average is scaled to the budget. samples_of:
    the method whose trained stage 2 it samples in another way; none: it trains its own.
    """
    name: str
    change: str
    stage_1: str
    runs: dict[int, tuple[int, ...]]
    scaled: bool = True
    samples_of: str = ""


def _repair(row: Row) -> Method:
    """A row of the study of repairs, tried again with longer training."""
    return Method(row.name, row.change, row.name if row.trains == "aae" else row.of, FIRST | LONGEST,
                  samples_of=row.of if row.trains == "nothing" else "")


METHODS = (
    Method("default", "", "default", LADDER | LONGEST),
    Method("published", AS_PUBLISHED, "published", LADDER | LONGEST),
    Method("published_average", f"{AS_PUBLISHED} --ema_decay 0.9999 --ema_start 2000", "published", LADDER,
           scaled=False),
    Method("long_stage_1", f"--aae_epochs {16 * BASE['aae_epochs']}", "long_stage_1",
           {1: SEEDS[:1], 16: SEEDS[:1]}),
    Method("latent_regression", "", "default", LADDER),
    Method("image_regression", "", "default", LADDER),
    Method("labelled_latent_regression", "", "default", FIRST),
    Method("labelled_image_regression", "", "default", FIRST),
)
# Rows of the study of repairs that differ from the default, but those with other numbers of evaluations
# and of latent samples, because every diffusion is sampled so (studies/budget_measure.py).
REPAIRS = tuple(_repair(ROWS[name]) for name in (
    "fallback", "no_image_loss", "eps", "even_times", "one_channel", "no_label", "mixed", "unscaled",
    "latents_1", "output_norm", "block_norm", "aae_constant_rate"))
BY_NAME = {method.name: method for method in (*METHODS, *REPAIRS)}


class Experiment(NamedTuple):
    """An experiment of the study: a diffusion, and the regressions that are trained beside it."""
    method: str
    budget: int
    seed: int
    regressions: tuple[str, ...] = ()


# ---------------------------------------------------------------- the settings of an experiment

def average_words(budget: int) -> list[str]:
    """The moving average scaled to the budget, as words of a command line.

    Its time constant, 1 / (1 - decay) updates, and its start are the same share of all updates at every
    budget: decay = 1 - (1 - d) / budget, start = budget s, where d, s are those of the preset.
    """
    decay = 1 - (1 - BASE["ema_decay"]) / budget
    return ["--ema_decay", f"{decay:.8g}", "--ema_start", str(budget * BASE["ema_start"])]


def length_words(budget: int) -> list[str]:
    """The epochs of stage 2 and of a validation, as words of a command line: both grow with the budget."""
    return ["--ldm_epochs", str(budget * BASE["ldm_epochs"]),
            "--validation_every", str(budget * BASE["validation_every"])]


def stage_1_name(method: str, seed: int) -> str:
    """Name of the experiment that trains the stage 1 of a method."""
    return f"budget{seed}_{BY_NAME[method].stage_1}_stage_1"


def experiment_name(method: str, budget: int, seed: int) -> str:
    """Name of the experiment of a method, budget and seed."""
    return f"budget{seed}_{method}_{budget}"


def words(method: str, budget: int, seed: int) -> list[str]:
    """The command line of a diffusion's experiment, without its stages and the name of its stage 1."""
    change = BY_NAME[method].change.split()
    preset = [] if "--preset" in change else ["--preset", "benchmark"]
    average = average_words(budget) if BY_NAME[method].scaled else []
    own = cohort_words(experiment_name(method, budget, seed), seed, benchmark_cohort(seed, False))
    return [*preset, *own, *change, *average, *length_words(budget)]


def words_of(experiment: Experiment) -> list[str]:
    """The command line of an experiment, without its stages."""
    method, budget, seed, regressions = experiment
    beside = ["--baselines", *regressions] if regressions else []
    source = BY_NAME[method].samples_of
    trained = ["--ldm_from", experiment_name(source, budget, seed)] if source else []
    return [*words(method, budget, seed), "--aae_from", stage_1_name(method, seed), *trained, *beside]


def stage_1_words(experiment: Experiment) -> list[str]:
    """The command line of the experiment that trains the stage 1 of this one, without its stages."""
    source = BY_NAME[experiment.method].stage_1
    return [*words(source, 1, experiment.seed), "--exp", stage_1_name(source, experiment.seed)]


def fresh_name(seed: int) -> str:
    """Name of the experiment that simulates the fresh phantoms of a seed, in the folder data/<name>."""
    return f"fresh{seed}"


def fresh_words(experiment: Experiment) -> list[str]:
    """The command line that simulates phantoms like those of an experiment, which no list has, without its
    stage."""
    name, seed = fresh_name(experiment.seed), FIRST_FRESH + experiment.seed
    return [*words("default", 1, experiment.seed), "--exp", name, "--data_dir", f"data/{name}",
            "--phantom_seed", str(seed), "--phantom_subjects", *map(str, FRESH)]


def settings_of(experiment: Experiment) -> Config:
    """The settings of an experiment."""
    return parse(Config, words_of(experiment), "main.py", "", PRESETS)


# ---------------------------------------------------------------- what is to be run

def planned(names: list[str], budgets: list[int], seeds: list[int]) -> list[Experiment]:
    """The experiments of these methods, budgets and seeds, the small budgets first; regressions are trained
    beside the default. Raises Failed if there are none."""
    plan = []
    for budget in sorted(budgets):
        for seed in seeds:
            wanted = [name for name in names if seed in BY_NAME[name].runs.get(budget, ())]
            regressions = tuple(name for name in wanted if name in REGRESSIONS)
            for method in BY_NAME.values():
                if method.name == "default" and regressions:
                    plan.append(Experiment("default", budget, seed, regressions))
                elif method.name in wanted and method.name not in REGRESSIONS:
                    plan.append(Experiment(method.name, budget, seed))
    if not plan:
        raise Failed(2, f"the study has no {', '.join(names)} at budget {', '.join(map(str, budgets))} with "
                        f"seed {', '.join(map(str, seeds))}; docs/study_budget.md lists what it has")
    return plan
