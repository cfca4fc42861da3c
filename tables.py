"""The tables of a paper, from the per-subject CSVs of all experiments: image quality, amyloid status, quantification, comparisons.

Experiments that differ in their seeds alone are one row. What can be compared stands in one section: same cohort, crop and masks.
"""
import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from config import command
from results import Run
from stats import AGREEMENT, STATUS_METRICS, agreement, bootstrap, bootstrap_p, holm, interval, mcnemar_p, status_metrics, wilcoxon_p
from utils import METRICS, derived_seed

OWN = ("il_cldm", "aae")                                   # methods that every experiment has of its own; the others are shared controls
CEILINGS = ("aae", "oracle", "real")                       # see the PET or the truth: shown, but no contenders
REPETITION = ("seed", "phantom_seed")
UNBOUND = ("exp", "stages", "device", "num_workers")       # change no result
SECTION = ("data_dir", "info_dir", "image_size", "crop_start", "volume_size", "num_classes", "brain_mask", "cortex_mask", "reference_mask",
           "regions_image", "regions_table", "centiloid_slope", "centiloid_intercept", "phantom_subjects", "phantom_voxel", "phantom_link")
LOWER = ("MAE", "MAE_brain", "RMSE", "Brier")
TARGETS = {"bias": 0.0, "slope": 1.0}                      # best is nearest
UNRATED = ("LoA_low", "LoA_high", "SEN", "SPE", "PPV", "NPV")                         # half of a pair: a trivial call wins one half


@dataclass
class Row:
    """What stands in one row: where it comes from, and its subjects (indexed by ID) in every run, keyed by (cohort, seed)."""
    section: str
    experiment: str
    key: tuple[str, ...]                                   # (method,) or (readout, method)
    contends: bool
    runs: dict[tuple[str, int], pd.DataFrame] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    twins: int = 0                                         # experiments whose row would be the very same

    @property
    def subjects(self) -> set[tuple[str, str]]:
        """(cohort, ID) of everyone in the row."""
        return {(cohort, name) for (cohort, _), frame in self.runs.items() for name in frame.index}

    def per_subject(self, value: Callable[[pd.DataFrame], pd.Series]) -> pd.Series:
        """The value of every subject, averaged over the seeds: indexed by (cohort, ID)."""
        series = [value(frame) for frame in self.runs.values()]
        whole = pd.concat(series, keys=[cohort for cohort, _ in self.runs])
        return whole.groupby(level=[0, 1]).mean()


# ---------------------------------------------------------------- rows and sections

def _data(run: Run) -> str:
    """Cohort, crop and masks of a run, as text."""
    settings = {name: run.facts["settings"].get(name) for name in SECTION}
    if run.facts["phantom"]:                               # another folder may hold the same simulation
        settings |= {"data_dir": None, "info_dir": None}
    return json.dumps(settings)


def _section(group: list[Run]) -> str:
    """What two rows must share to be compared, as text: the data, and the very test lists of all seeds."""
    return json.dumps(json.loads(_data(group[0])) | {"test_lists": sorted({run.facts["cohort"] for run in group})})


def group_runs(runs: list[Run]) -> tuple[list[list[Run]], list[str]]:
    """The runs that differ in their seeds alone, group by group; and remarks on runs that repeat another one and are left out."""
    groups: dict[str, list[Run]] = {}
    remarks = []
    for run in runs:
        settings = {name: value for name, value in run.facts["settings"].items() if name not in (*REPETITION, *UNBOUND, *SECTION)}
        group = groups.setdefault(_data(run) + json.dumps(settings, sort_keys=True), [])
        twin = next((other for other in group if (other.facts["cohort"], other.seed) == (run.facts["cohort"], run.seed)), None)
        if twin:
            remarks.append(f"{run.name} repeats {twin.name} (same settings, seed and test list) and is left out")
        else:
            group.append(run)
    return [sorted(group, key=lambda run: run.seed) for group in groups.values()], remarks


def collect_rows(groups: list[list[Run]], frame: str, keys: tuple[str, ...], order: tuple[str, ...]) -> list[Row]:
    """A row an experiment and method of one of the CSVs; a control that several experiments share is one row.

    keys: the columns that tell methods apart, "method" last. order: methods or read-outs as they are to stand.
    """
    rows: dict[tuple, Row] = {}
    for group in groups:
        section = _section(group)
        for run in group:
            table = getattr(run, frame)
            for key, subjects in table.groupby(list(keys), sort=False) if table is not None else ():
                own = key[-1] in OWN
                experiment = _name(group) if own else "all"
                row = rows.setdefault((section, experiment, key), Row(section, experiment, key, key[-1] not in CEILINGS))
                subjects = subjects.set_index("ID").sort_index()
                known = [f for (cohort, _), f in row.runs.items() if cohort == run.facts["cohort"]]
                if own or not any(subjects.equals(other) for other in known):
                    row.runs.setdefault((run.facts["cohort"], run.seed), subjects)
                    row.commands.append(command(run.facts["settings"]))

    def rank(row: Row) -> tuple:
        return row.section, *(order.index(part) if part in order else len(order) for part in row.key), row.experiment
    return _merge_equal(sorted(rows.values(), key=rank))


def _name(group: list[Run]) -> str:
    """One name for all seeds of an experiment: what their names begin with."""
    return os.path.commonprefix([run.name for run in group]).rstrip("_-.") or group[0].name


def _merge_equal(rows: list[Row]) -> list[Row]:
    """One row for experiments that share an autoencoder: what is equal to the last value stands once."""
    kept: list[Row] = []
    for row in rows:
        alike = [other for other in kept if (other.section, other.key, other.runs.keys()) == (row.section, row.key, row.runs.keys())]
        twin = next((other for other in alike if all(frame.equals(row.runs[name]) for name, frame in other.runs.items())), None)
        if twin:
            twin.twins += 1
        else:
            kept.append(row)
    for row in kept:
        row.experiment += f" (+ {row.twins} alike)" if row.twins else ""
    return kept


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
    """Agreement of a method's uptake with the real PET's."""
    found = [agreement(frame["real"].to_numpy(), frame["value"].to_numpy()) for frame in row.runs.values()]
    return {name: Values(*_over_seeds([one[name] for one in found])) for name in AGREEMENT}


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
    return " ".join(key if experiment == "all" else (*key, f"({experiment})"))


def image_quality(groups: list[list[Run]]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the image scores, and the comparisons of all contenders."""
    rows = collect_rows(groups, "test", ("method",), ("mean_pet", "il_cldm", "oracle", "aae"))

    def paired(metric: str) -> Callable[[Row, Row], float]:
        return lambda a, b: wilcoxon_p(*(row.per_subject(lambda frame: frame[metric]).to_numpy() for row in (a, b)))
    contenders = [row for row in rows if row.contends]
    comparisons = _compare("image_quality", itertools.combinations(contenders, 2), {name: paired(name) for name in METRICS})
    return pd.DataFrame([record for row in rows for record in _records(row, ("method",), image_values(row))]), comparisons


def amyloid_status(groups: list[list[Run]], resamples: int) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the status metrics; comparisons of every contender with the MRI's own classifier, and of the PETs with each other."""
    order = ("majority", "age_sex", "mri", "pet", "suvr", "mri_pet", "none", "mean_pet", "il_cldm", "oracle", "aae", "real")
    rows = collect_rows(groups, "predictions", ("readout", "method"), order)
    values, draws = zip(*(status_values(row, resamples) for row in rows), strict=True) if rows else ((), ())
    draws_of = {id(row): one for row, one in zip(rows, draws, strict=True)}

    def auc(a: Row, b: Row) -> float:
        return bootstrap_p(draws_of[id(a)]["AUC"], draws_of[id(b)]["AUC"])

    def accuracy(a: Row, b: Row) -> float:                 # over several seeds the call of most of them
        calls = [row.per_subject(lambda frame: 1 - (frame["positive"] - frame["label"]).abs()).to_numpy() for row in (a, b)]
        return mcnemar_p(*(right > 0.5 for right in calls)) if np.isfinite(calls).all() else np.nan

    contenders = [row for row in rows if row.contends]
    pairs = [(a, b) for a, b in itertools.combinations(contenders, 2)
             if "mri" in (a.key[0], b.key[0]) or (a.key == b.key == ("pet", "il_cldm"))]
    comparisons = _compare("amyloid_status", pairs, {"AUC": auc, "ACC": accuracy})
    records = [record for row, v in zip(rows, values, strict=True) for record in _records(row, ("readout", "method"), v)]
    return pd.DataFrame(records), comparisons


def quantification(groups: list[list[Run]]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the agreement of SUVR, CL and further regions with the real PET; comparisons of the absolute errors."""
    paired = [[_pair_uptake(run) for run in group] for group in groups]
    rows = collect_rows(paired, "uptake", ("measure", "method"), ("SUVR", "CL", "mean_pet", "il_cldm", "oracle", "aae"))

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
    return Run(run.name, run.facts, run.test, long[long["method"] != "real"].merge(real, on=["measure", "ID"]), run.predictions)


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
        "Image quality on the test list: mean ± SD over subjects, or over the seeds where there are several. MAE, PSNR and SSIM on the"
        " box and, with _brain, inside the brain mask. Bold: best of what needs no PET. †: differs from mean_pet (paired Wilcoxon over"
        " subjects, Holm-corrected, p < 0.05). aae and oracle see the PET or the truth: ceilings.",
    "amyloid_status":
        "Amyloid status on the test list, with 95 % bootstrap intervals over subjects (± SD over seeds where there are several). Every"
        " read-out is fitted on the training list (pet and mri_pet on real PET), its threshold chosen on the validation list's real "
        "volumes. Bold: best of what needs no PET. †: differs from the classifier of the MRI (AUC: paired bootstrap; ACC: exact "
        "McNemar; Holm-corrected, p < 0.05). real, aae and oracle see the PET or the truth: ceilings. A value of 0 or 1 has an "
        "interval of no width, because resampling cannot leave it.",
    "quantification":
        "Uptake of the synthetic against the real PET on the test list. bias, MAE, RMSE and the Bland-Altman limits in units of the "
        "measure; slope below 1: compressed toward the mean. Bold: best of what needs no PET. †: absolute errors differ from those of "
        "mean_pet (paired Wilcoxon over subjects, Holm-corrected, p < 0.05).",
    "comparisons":
        "Paired comparisons on the test list: Wilcoxon signed-rank for image scores and absolute errors, paired bootstrap for AUC, "
        "exact McNemar for ACC; two-sided p, and Holm-corrected within a metric.",
}


def make_tables(groups: list[list[Run]], resamples: int) -> list[Table]:
    """The tables that the runs have data for; comparisons last, if there are any."""
    made = {"image_quality": (("method",), "mean_pet", image_quality(groups)),
            "amyloid_status": (("readout", "method"), "mri none", amyloid_status(groups, resamples)),
            "quantification": (("measure", "method"), "SUVR mean_pet", quantification(groups))}
    tables = [Table(name, _rate(tidy, keys, comparisons, reference), keys, reference, CAPTIONS[name])
              for name, (keys, reference, (tidy, comparisons)) in made.items() if len(tidy)]
    comparisons = pd.DataFrame([record for _, _, (_, records) in made.values() for record in records])
    return [*tables, *([Table("comparisons", comparisons, ("a", "b"), "", CAPTIONS["comparisons"])] if len(comparisons) else [])]


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
