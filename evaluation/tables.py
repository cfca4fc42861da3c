"""The tables of a paper, from the per-subject CSVs of all experiments: image quality, amyloid status, quantification, comparisons.

Experiments that differ in their seeds alone are one row. What can be compared stands in one section: same cohort, crop and masks.
"""
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from config import BASELINES, Config
from evaluation.metrics import METRICS
from evaluation.results import Run
from evaluation.statistics import (
    AGREEMENT,
    STATUS_METRICS,
    agreement,
    bootstrap,
    bootstrap_p,
    holm,
    interval,
    mcnemar_p,
    status_metrics,
    wilcoxon_p,
)
from utils import derived_seed

UPPER_BOUNDS = ("aae", "oracle", "real")                       # see the PET or the truth: shown, but no contenders
TRAINED = ("aae", *BASELINES)                            # controls that another seed makes another one
REPETITION = ("seed", "phantom_seed")
MATTERS = {f.name for f in dataclasses.fields(Config) if {*f.metadata["affects"]} - {"new_scans"}}    # to the numbers of a row
SECTION = [f.name for f in dataclasses.fields(Config) if "comparison" in f.metadata["affects"]]
LOWER = ("MAE", "MAE_brain", "RMSE", "Brier")
TARGETS = {"bias": 0.0, "slope": 1.0}                      # best is nearest
UNRATED = ("LoA_low", "LoA_high", "SEN", "SPE", "PPV", "NPV")                         # half of a pair: a trivial call wins one half
SHARED = "all"                                             # the experiment of a control that is the same in all of them


@dataclass
class Group:
    """An experiment with all its seeds. section: what rows must share to be compared, as text: cohort, lists, crop and masks."""
    name: str
    section: str
    runs: list[Run]


@dataclass
class Row:
    """What stands in one row: where it comes from, and its subjects (indexed by ID) in every run, keyed by (cohort, seed)."""
    section: str
    experiment: str
    key: tuple[str, ...]                                   # (method,) or (classifier, method)
    runs: dict[tuple[str, int], pd.DataFrame]
    commands: list[str]

    @property
    def contends(self) -> bool:
        return self.key[-1] not in UPPER_BOUNDS

    @property
    def subjects(self) -> set[tuple[str, str]]:
        """(cohort, ID) of everyone in the row."""
        return {(cohort, name) for (cohort, _), frame in self.runs.items() for name in frame.index}

    def per_subject(self, value: Callable[[pd.DataFrame], pd.Series]) -> pd.Series:
        """The value of every subject, averaged over the seeds: indexed by (cohort, ID)."""
        series = [value(frame) for frame in self.runs.values()]
        whole = pd.concat(series, keys=[cohort for cohort, _ in self.runs])
        return whole.groupby(level=[0, 1]).mean()


# ---------------------------------------------------------------- experiments, their seeds, and what can be compared

def _lists(run: Run) -> tuple[str, str]:
    return run.metadata["cohort"], run.metadata["training"]


def _section(runs: list[Run]) -> str:
    first = runs[0].metadata
    settings = {name: first["settings"][name] for name in (*SECTION, "data_dir", "info_dir")}
    if any(settings["phantom_subjects"]):                  # another folder may hold the same simulation
        settings |= {"data_dir": "", "info_dir": ""}
    lists = sorted({_lists(run) for run in runs})
    return json.dumps(settings | {"phantom": first["phantom"], "lists": lists, "masks": first["masks"]}, sort_keys=True)


def _fits(run: Run, group: list[Run]) -> bool:
    """Whether the run has the lists of the others; simulated cohorts may differ where their phantom_seed does."""
    def cohort_seed(one: Run) -> int | None:
        settings = one.metadata["settings"]
        return settings["phantom_seed"] if any(settings["phantom_subjects"]) else None
    return all(_lists(run) == _lists(other) or cohort_seed(run) != cohort_seed(other) for other in group)


def group_runs(runs: list[Run]) -> tuple[list[Group], list[str]]:
    """The runs that differ in their seeds alone, group by group; and remarks on runs that repeat another one and are left out."""
    candidates: dict[str, list[list[Run]]] = {}
    remarks = []
    for run in runs:
        same = {name: value for name, value in run.metadata["settings"].items() if name in MATTERS and name not in REPETITION}
        same["precision"] = run.metadata["settings"]["precision"]
        variants = candidates.setdefault(json.dumps([same, run.metadata["masks"]], sort_keys=True), [])
        group = next((group for group in variants if _fits(run, group)), None)
        twin = next((other for other in group or [] if (_lists(other), other.seed) == (_lists(run), run.seed)), None)
        if twin:
            remarks.append(f"{run.name} repeats {twin.name} (same settings, seed and lists) and is left out")
        elif group:
            group.append(run)
        else:
            variants.append([run])
    groups = [sorted(group, key=lambda run: (run.seed, run.name)) for variants in candidates.values() for group in variants]
    names = [os.path.commonprefix([run.name for run in group]).rstrip("_-.") for group in groups]
    unique = [name if name and names.count(name) == 1 else group[0].name for name, group in zip(names, groups, strict=True)]
    return [Group(name, _section(group), group) for name, group in zip(unique, groups, strict=True)], remarks


def collect_rows(groups: list[Group], frame: str, keys: tuple[str, ...], order: tuple[str, ...]) -> list[Row]:
    """A row an experiment and method of one of the CSVs; a control that several experiments share is one row.

    keys: the columns that tell methods apart, "method" last. order: methods or read-outs as they are to stand.
    """
    rows: list[Row] = []
    for group in groups:
        found: dict[tuple, Row] = {}
        for run in group.runs:
            table = getattr(run, frame)
            for key, subjects in table.groupby(list(keys), sort=False) if table is not None else ():
                row = found.setdefault(key, Row(group.section, group.name, key, {}, []))
                row.runs[run.metadata["cohort"], run.seed] = subjects.set_index("ID").sort_index()
                row.commands.append(run.metadata["command"])
        for row in found.values():
            twin = next((other for other in rows if _is_same_control(row, other)), None)
            if twin:
                twin.runs |= row.runs
                twin.commands += [text for text in row.commands if text not in twin.commands]
            else:
                rows.append(row)
    for row in rows:
        _tidy_runs(row)

    def rank(row: Row) -> tuple:
        return row.section, *(order.index(part) if part in order else len(order) for part in row.key), row.experiment
    return sorted(_name_controls(rows), key=rank)


def _equal(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two frames say the same of the same subjects, but for rounding."""
    if not one.index.equals(other.index):
        return False
    numbers = one.select_dtypes("number")
    return np.allclose(numbers, other[numbers.columns], rtol=1e-6, atol=1e-9, equal_nan=True)


def _is_same_control(row: Row, other: Row) -> bool:
    """Whether two experiments' rows of a control are one: equal wherever they have a run in common. Of a trained one all must be."""
    method = row.key[-1]
    if (row.section, row.key) != (other.section, other.key) or method == "il_cldm":
        return False
    if method in TRAINED and row.runs.keys() != other.runs.keys():
        return False
    return all(_equal(frame, other.runs[name]) for name, frame in row.runs.items() if name in other.runs)


def _tidy_runs(row: Row) -> None:
    """Keep the subjects that all seeds of a cohort have; keep one seed of a control that is the same in all of them."""
    for cohort in {cohort for cohort, _ in row.runs}:
        mine = sorted(name for name in row.runs if name[0] == cohort)
        common = row.runs[mine[0]].index
        for name in mine[1:]:
            common = common.intersection(row.runs[name].index)
        for name in mine:
            row.runs[name] = row.runs[name].loc[common]
        if row.key[-1] not in ("il_cldm", *TRAINED) and all(_equal(row.runs[mine[0]], row.runs[name]) for name in mine[1:]):
            for name in mine[1:]:
                del row.runs[name]


def _name_controls(rows: list[Row]) -> list[Row]:
    """The rows; a control of which there is one in its section is of all experiments."""
    for row in rows:
        alike = [other for other in rows if (other.section, other.key) == (row.section, row.key)]
        everyones = {text for other in rows if other.section == row.section for text in other.commands} == set(row.commands)
        if len(alike) == 1 and row.key[-1] != "il_cldm" and (everyones or row.key[-1] not in BASELINES):
            row.experiment = SHARED
    return rows


# ---------------------------------------------------------------- the values of a row

@dataclass
class Values:
    """One metric of one row. low, high: its 95 % interval."""
    value: float
    spread: float = np.nan
    low: float = np.nan
    high: float = np.nan


def _over_seeds(values: list[float], spread_over_subjects: float = np.nan) -> tuple[float, float]:
    """Mean, and SD over the seeds, or over the subjects if there is one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else spread_over_subjects


def image_values(row: Row) -> dict[str, Values]:
    """Mean and SD of every image score."""
    return {name: Values(*_over_seeds([frame[name].mean() for frame in row.runs.values()], next(iter(row.runs.values()))[name].std()))
            for name in METRICS}


def status_values(row: Row, resamples: int) -> tuple[dict[str, Values], dict[str, np.ndarray]]:
    """Every status metric with its interval, and its bootstrap draws, averaged over the seeds (so that those of one list stay paired)."""
    values, draws = [], []
    for (cohort, _), frame in row.runs.items():
        label, score, positive = (frame[name].to_numpy(float) for name in ("label", "score", "positive"))

        def metrics(index: np.ndarray, label=label, score=score, positive=positive) -> np.ndarray:
            return status_metrics(label[index], score[index], positive[index], probability=row.key[0] != "suvr")
        values.append(metrics(np.arange(len(frame))))
        draws.append(bootstrap(metrics, len(frame), resamples, derived_seed("bootstrap", cohort)))
    mean_draws = np.mean(draws, axis=0)
    low, high = interval(mean_draws)
    result = {name: Values(*_over_seeds([v[i] for v in values]), low[i], high[i]) for i, name in enumerate(STATUS_METRICS)}
    return result, dict(zip(STATUS_METRICS, mean_draws, strict=True))


def uptake_values(row: Row) -> dict[str, Values]:
    """Agreement of a method's uptake with the real PET's; with one seed, bias and MAE have an SD over subjects."""
    found = [agreement(frame["real"].to_numpy(), frame["value"].to_numpy()) for frame in row.runs.values()]
    first = next(iter(row.runs.values()))
    error = first["value"] - first["real"]
    over_subjects = {"bias": error.std(), "MAE": error.abs().std()}
    return {name: Values(*_over_seeds([one[name] for one in found], over_subjects.get(name, np.nan))) for name in AGREEMENT}


# ---------------------------------------------------------------- the tables, tidy: a record a row and metric

def _records(row: Row, names: tuple[str, ...], values: dict[str, Values]) -> list[dict]:
    return [{"section": row.section, "experiment": row.experiment, **dict(zip(names, row.key, strict=True)), "n": len(row.subjects),
             "seeds": len(row.runs), "contends": row.contends, "metric": metric, **vars(v), "made_by": row.commands}
            for metric, v in values.items()]


def _compare(table: str, pairs: Iterable[tuple[Row, Row]], tests: dict[str, Callable[[Row, Row], float]]) -> list[dict]:
    """A record a pair and metric; a pair with other subjects is left out. Holm over the pairs of a section, metric by metric."""
    records = []
    for a, b in pairs:
        if a.section == b.section and a.subjects == b.subjects:
            for metric, p in tests.items():
                records.append({"section": a.section, "table": table, "metric": metric, "a": label_of(a.key, a.experiment),
                                "b": label_of(b.key, b.experiment), "n": len(a.subjects), "p": p(a, b)})
    frame = pd.DataFrame(records, columns=["section", "table", "metric", "a", "b", "n", "p"])
    for _, family in frame.groupby(["section", "metric"]):
        frame.loc[family.index, "p_holm"] = holm(family["p"])
    return frame.to_dict("records")


def label_of(key: tuple[str, ...], experiment: str) -> str:
    """A row's name where there is one column for it."""
    return " ".join(key if experiment == SHARED else (*key, f"({experiment})"))


def image_quality(groups: list[Group]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the image scores, and the comparisons of all contenders."""
    rows = collect_rows(groups, "test", ("method",), ("mean_pet", *BASELINES, "il_cldm", "oracle", "aae"))

    def paired(metric: str) -> Callable[[Row, Row], float]:
        return lambda a, b: wilcoxon_p(*(row.per_subject(lambda frame: frame[metric]).to_numpy() for row in (a, b)))
    contenders = [row for row in rows if row.contends]
    comparisons = _compare("image_quality", itertools.combinations(contenders, 2), {name: paired(name) for name in METRICS})
    return pd.DataFrame([record for row in rows for record in _records(row, ("method",), image_values(row))]), comparisons


def amyloid_status(groups: list[Group], resamples: int) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the status metrics; comparisons of every contender with the MRI's own classifier, and of the PETs with each other."""
    order = ("majority", "age_sex", "mri", "pet", "suvr", "mri_pet", "none", "mean_pet", *BASELINES, "il_cldm", "oracle", "aae",
             "real")
    rows = collect_rows(groups, "predictions", ("classifier", "method"), order)
    values, draws = zip(*(status_values(row, resamples) for row in rows), strict=True) if rows else ((), ())
    draws_of = {id(row): one for row, one in zip(rows, draws, strict=True)}

    def auc(a: Row, b: Row) -> float:
        return bootstrap_p(draws_of[id(a)]["AUC"], draws_of[id(b)]["AUC"])

    def accuracy(a: Row, b: Row) -> float:
        """p of McNemar's test, which takes one call a subject; of the bootstrap where several seeds give several."""
        if any(len(row.runs) > len({cohort for cohort, _ in row.runs}) for row in (a, b)):
            return bootstrap_p(draws_of[id(a)]["ACC"], draws_of[id(b)]["ACC"])
        right = [row.per_subject(lambda frame: 1 - (frame["positive"] - frame["label"]).abs()).to_numpy() for row in (a, b)]
        return mcnemar_p(*(calls == 1 for calls in right)) if np.isfinite(right).all() else np.nan

    tested = [row for row in rows if row.contends and row.key[0] != "majority" and row.key[-1] != "mean_pet"]
    pairs = [(a, b) for a, b in itertools.combinations(tested, 2)
             if "mri" in (a.key[0], b.key[0]) or (a.key[0] == b.key[0] == "pet" and "il_cldm" in (a.key[-1], b.key[-1]))]
    comparisons = _compare("amyloid_status", pairs, {"AUC": auc, "ACC": accuracy})
    records = [record for row, v in zip(rows, values, strict=True) for record in _records(row, ("classifier", "method"), v)]
    return pd.DataFrame(records), comparisons


def quantification(groups: list[Group]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the agreement of SUVR, CL and further regions with the real PET; comparisons of the absolute errors."""
    paired = [Group(group.name, group.section, [_pair_uptake(run) for run in group.runs]) for group in groups]
    rows = collect_rows(paired, "uptake", ("measure", "method"), ("SUVR", "CL", "mean_pet", *BASELINES, "il_cldm", "oracle",
                                                                          "aae"))

    def error(a: Row, b: Row) -> float:
        return wilcoxon_p(*(row.per_subject(lambda frame: (frame["value"] - frame["real"]).abs()).to_numpy() for row in (a, b)))
    pairs = [(a, b) for a, b in itertools.combinations([row for row in rows if row.contends], 2) if a.key[0] == b.key[0] == "SUVR"]
    comparisons = _compare("quantification", pairs, {"MAE": error})
    return pd.DataFrame([record for row in rows for record in _records(row, ("measure", "method"), uptake_values(row))]), comparisons


def _pair_uptake(run: Run) -> Run:
    """The run with its uptake as a row a measure, method and subject: measure, method, ID, value and the real PET's; undefined ones go."""
    if run.uptake is None:
        return run
    long = run.uptake.drop(columns="label").melt(["method", "ID"], var_name="measure").dropna()
    real = long[long["method"] == "real"].rename(columns={"value": "real"}).drop(columns="method")
    return Run(run.name, run.metadata, run.test, long[long["method"] != "real"].merge(real, on=["measure", "ID"]), run.predictions)


# ---------------------------------------------------------------- all tables of some runs

@dataclass(frozen=True)
class Table:
    """A tidy table, its key columns, what a row is compared with, and its caption."""
    name: str
    tidy: pd.DataFrame
    keys: tuple[str, ...]
    reference: str
    caption: str


CAPTIONS = {
    "image_quality":
        "Image quality on the test list: mean ± SD over subjects, or over the seeds where there are several. MAE, PSNR (dB) and SSIM "
        "on the box and, with _brain, inside the brain mask. Bold: best of what needs no PET. †: differs from mean_pet (paired "
        "Wilcoxon over subjects, Holm-corrected, p < 0.05). aae and oracle see the PET or the truth: ceilings.",
    "amyloid_status":
        "Amyloid status on the test list, with 95 % bootstrap intervals over subjects ({resamples} resamples; ± SD over seeds where "
        "there are several). Every read-out is fitted on the training list (pet and mri_pet on real PET), its threshold chosen on the "
        "validation list's real volumes. Bold: best of what needs no PET. †: differs from the classifier of the MRI (AUC: paired "
        "bootstrap; ACC: exact McNemar, or the bootstrap over several seeds; Holm-corrected, p < 0.05). real, aae and oracle see the "
        "PET or the truth: ceilings. A value of 0 or 1 has an interval of no width, because resampling cannot leave it.",
    "quantification":
        "Uptake of the synthetic against the real PET on the test list. ± is the SD over subjects, or over the seeds where there are "
        "several; bias, MAE, RMSE and the Bland-Altman limits in units of the measure; slope below 1: compressed toward the mean. "
        "Bold: best of what needs no PET. †: absolute errors differ from those of mean_pet (paired Wilcoxon over subjects, Holm-"
        "corrected, p < 0.05).",
    "comparisons":
        "Paired comparisons on the test list: Wilcoxon signed-rank for image scores and absolute errors, paired bootstrap for AUC, "
        "exact McNemar (over several seeds the bootstrap) for ACC; {resamples} resamples; two-sided p, and Holm-corrected within a "
        "metric.",
}


def make_tables(groups: list[Group]) -> list[Table]:
    """The tables that the runs have data for; comparisons last, if there are any."""
    resamples = max(run.metadata["settings"]["bootstrap_resamples"] for group in groups for run in group.runs)
    made = {"image_quality": (("method",), "mean_pet", image_quality(groups)),
            "amyloid_status": (("classifier", "method"), "mri none", amyloid_status(groups, resamples)),
            "quantification": (("measure", "method"), "SUVR mean_pet", quantification(groups))}
    tables = [Table(name, _rate(tidy, keys, comparisons, reference), keys, reference, CAPTIONS[name].format(resamples=resamples))
              for name, (keys, reference, (tidy, comparisons)) in made.items() if len(tidy)]
    comparisons = pd.DataFrame([record for _, _, (_, records) in made.values() for record in records])
    if len(comparisons):
        tables.append(Table("comparisons", comparisons, ("a", "b"), "", CAPTIONS["comparisons"].format(resamples=resamples)))
    return tables


def _rate(tidy: pd.DataFrame, keys: tuple[str, ...], comparisons: list[dict], reference: str) -> pd.DataFrame:
    """The table with `best` of each section and metric among the contenders, and p_holm of each row against the reference."""
    tidy = tidy.assign(best=False)
    families = ["section", "metric", *(["measure"] if "measure" in keys else [])]
    for (_, metric, *_), family in tidy[tidy["contends"] & tidy["value"].notna()].groupby(families):
        distance = (family["value"] - TARGETS[metric]).abs() if metric in TARGETS else \
            family["value"] if metric in LOWER else -family["value"]
        if metric not in UNRATED and len(family) > 1:
            tidy.loc[family.index[np.isclose(distance, distance.min(), rtol=1e-9, atol=0)], "best"] = True
    p = {(c["section"], c["metric"], other): c["p_holm"] for c in comparisons for one, other in ((c["a"], c["b"]), (c["b"], c["a"]))
         if one == reference}
    labels = [label_of(tuple(record[key] for key in keys), record["experiment"]) for record in tidy.to_dict("records")]
    return tidy.assign(p_holm=[p.get((section, metric, label), np.nan)
                               for section, metric, label in zip(tidy["section"], tidy["metric"], labels, strict=True)])
