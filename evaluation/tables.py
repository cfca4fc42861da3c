"""The tables of a paper from the CSVs of all experiments: image quality, amyloid status, uptake, comparisons.

Runs that differ in their seeds alone are one row. Rows of one section can be compared: same cohort, lists,
crop and masks. Both follow from the marks of the settings in config.py, which say what a setting affects.
"""
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
import pandas as pd

from config import BASELINES, Config
from evaluation.results import Run
from evaluation.statistics import bootstrap_p, holm
from evaluation.values import (
    Runs,
    Values,
    absolute_error,
    accuracy_p,
    image_values,
    status_values,
    uptake_values,
    value_p,
)
from imaging.regions import ABOUT
from utils import METRICS

COMPARED = (*BASELINES, "ddpm_mean")                       # of a run that trained them
METHODS = ("mean_pet", *COMPARED, "il_cldm", "oracle", "aae")                # in the order of the tables
CLASSIFIERS = ("majority", "age_sex", "covariates", "mri", "covariates_mri", "pet", "suvr",
               "mri_pet")                                  # in the order of the tables
UPPER_BOUNDS = ("aae", "oracle", "real")                   # see the PET or the truth: no contenders
TRAINED = ("il_cldm", "aae", *COMPARED)                   # come out otherwise with another seed
SHARED = "all"                                             # experiment of a method that is the same in all

LOWER_IS_BETTER = ("MAE", "MAE_brain", "RMSE", "Brier")
TARGETS = {"bias": 0.0, "slope": 1.0}                      # the nearest is best
UNRATED = ("LoA_low", "LoA_high", "SEN", "SPE", "PPV", "NPV")   # one decision for everybody wins one of two


# ---------------------------------------------------------------- settings that must be equal

def settings_affecting(results: set[str]) -> list[str]:
    """Names of the settings that are marked as affecting any of these results."""
    return [field.name for field in dataclasses.fields(Config) if results & set(field.metadata["affects"])]


def _row_settings() -> list[str]:
    """Names of the settings in which all runs of a row agree: those that affect its numbers, without seeds.

    Only settings of new scans affect no number of the test list.
    """
    results = {result for field in dataclasses.fields(Config) for result in field.metadata["affects"]}
    names = [*settings_affecting(results - {"new_scans"}), *UNMARKED]
    return [name for name in names if name not in SEEDS]


SEEDS = ("seed", "phantom_seed")
# Not marked as affecting the test list: a network may be used in another precision than it was trained in, and
# further regions may be added later. But precision rounds the numbers, and uptake.csv holds the regions.
UNMARKED = ("precision", "regions_image", "regions_table")
ROW_SETTINGS = _row_settings()
SECTION_SETTINGS = settings_affecting({"comparison"})      # in which all rows of a section agree


@dataclass
class Group:
    """An experiment with all its seeds. section: what rows must share to be compared, as JSON."""
    name: str
    section: str
    runs: list[Run]


@dataclass(eq=False)
class Row:
    """One row of a table.

    key: (method,), (classifier, method) or (measure, method). runs: (cohort, seed) -> the subjects of a run,
    by ID. commands: name of a run -> its command, as it was given.
    """
    section: str
    experiment: str
    key: tuple[str, ...]
    runs: Runs
    commands: dict[str, str]

    @property
    def method(self) -> str:
        """Method whose PETs the row is about; none for a status classifier without PET."""
        return self.key[-1]

    @property
    def is_contender(self) -> bool:
        """Whether the row needs no PET of the subject, so that it may be the best."""
        return self.method not in UPPER_BOUNDS

    @property
    def subjects(self) -> set[tuple[str, str]]:
        """(cohort, ID) of everyone in the row."""
        return {(cohort, subject) for (cohort, _), frame in self.runs.items() for subject in frame.index}

    @property
    def label(self) -> str:
        """Name of the row where one column holds it."""
        return row_label(self.key, self.experiment)


def row_label(key: tuple[str, ...], experiment: str) -> str:
    """Name of a row where one column holds it: its key, and the experiment unless it is the same in all."""
    name = " ".join(key)
    return name if experiment == SHARED else f"{name} ({experiment})"


# ---------------------------------------------------------------- runs to groups

def group_runs(runs: list[Run]) -> tuple[list[Group], list[str]]:
    """The runs that differ in their seeds alone, by group, and remarks on repetitions, which are left out."""
    groups: list[list[Run]] = []
    remarks = []
    for run in runs:
        group = next((group for group in groups if _belongs(run, group)), None)
        if group is None:
            groups.append([run])
            continue
        repeated = [other for other in group if (_lists(other), other.seed) == (_lists(run), run.seed)]
        if repeated:
            why = f"repeats {repeated[0].name} (same settings, seed and lists)"
            remarks.append(f"{run.name} {why} and is left out")
        else:
            group.append(run)
    for group in groups:
        group.sort(key=lambda run: (run.seed, run.name))
    named = zip(_names(groups), groups, strict=True)
    return [Group(name, _section(group), group) for name, group in named], remarks


def _belongs(run: Run, group: list[Run]) -> bool:
    """Whether the run differs from those of the group in the seeds alone.

    Their lists must be the same, but those of a phantom of another seed.
    """
    settings = run.metadata["settings"]
    for other in group:
        other_settings = other.metadata["settings"]
        if any(settings[name] != other_settings[name] for name in ROW_SETTINGS):
            return False
        if run.metadata["masks"] != other.metadata["masks"]:
            return False
        is_phantom = any(settings["phantom_subjects"])
        is_other_phantom = is_phantom and settings["phantom_seed"] != other_settings["phantom_seed"]
        if _lists(run) != _lists(other) and not is_other_phantom:
            return False
    return True


def _lists(run: Run) -> tuple[str, str]:
    """Digests of the test list, and of the lists of training and validation."""
    return run.metadata["cohort"], run.metadata["training"]


def _section(group: list[Run]) -> str:
    """What rows must share to be compared, as JSON."""
    metadata = group[0].metadata
    section = {name: metadata["settings"][name] for name in (*SECTION_SETTINGS, "data_dir", "info_dir")}
    if any(section["phantom_subjects"]):                   # another folder may hold the same simulation
        section |= {"data_dir": "", "info_dir": ""}
    section["phantom"], section["masks"] = metadata["phantom"], metadata["masks"]
    if metadata["settings"]["regions"] in ABOUT:           # own masks and a phantom's are known without it
        section["regions"] = metadata["settings"]["regions"]
    section["lists"] = sorted({_lists(run) for run in group})
    return json.dumps(section, sort_keys=True)


def _names(groups: list[list[Run]]) -> list[str]:
    """The common beginning of the names in each group; if it is empty or not unique, the first name."""
    beginnings = [os.path.commonprefix([run.name for run in group]).rstrip("_-.") for group in groups]
    names = []
    for group, beginning in zip(groups, beginnings, strict=True):
        is_name = beginning and beginnings.count(beginning) == 1
        names.append(beginning if is_name else group[0].name)
    return names


# ---------------------------------------------------------------- groups to rows

def collect_rows(groups: list[Group], frame: str, keys: tuple[str, ...], order: tuple[str, ...]) -> list[Row]:
    """A row for each experiment and method of a CSV; a method that several experiments share is one row.

    frame: name of the CSV. keys: its columns that tell rows apart, "method" last. order: the parts of a key
    in the order of the table.
    """
    rows: list[Row] = []
    for group in groups:
        for row in _rows_of_group(group, frame, keys):
            shared = next((other for other in rows if _is_shared(row, other)), None)
            if shared is None:
                rows.append(row)
            else:
                shared.runs |= row.runs
                shared.commands |= row.commands
    for row in rows:
        for cohort in {cohort for cohort, _ in row.runs}:
            _keep_common_subjects(row, cohort)
            _keep_one_of_equal_seeds(row, cohort)
    _name_shared(rows)
    return sorted(rows, key=lambda row: (row.section, _position(row.key, order), row.experiment))


def _rows_of_group(group: Group, frame: str, keys: tuple[str, ...]) -> list[Row]:
    rows: dict[tuple, Row] = {}
    for run in group.runs:
        table = getattr(run, frame)
        if table is None:
            continue
        for key, subjects in table.groupby(list(keys), sort=False):
            row = rows.setdefault(key, Row(group.section, group.name, key, {}, {}))
            row.runs[run.metadata["cohort"], run.seed] = subjects.set_index("ID").sort_index()
            row.commands[run.name] = run.metadata["command"]
    return list(rows.values())


def _is_shared(row: Row, other: Row) -> bool:
    """Whether the rows of two experiments are one: not of il_cldm, and equal in the runs that both have.

    Of a trained method all runs must be in common: nothing says that other seeds were trained in the same
    way.
    """
    if (row.section, row.key) != (other.section, other.key) or row.method == "il_cldm":
        return False
    if row.method in TRAINED and row.runs.keys() != other.runs.keys():
        return False
    common = [name for name in row.runs if name in other.runs]
    return all(_equal(row.runs[name], other.runs[name]) for name in common)


def _equal(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two tables hold the same values of the same subjects, but for rounding."""
    if not one.index.equals(other.index):
        return False
    numbers = one.select_dtypes("number")
    return np.allclose(numbers, other[numbers.columns], rtol=1e-6, atol=1e-9, equal_nan=True)


def _keep_common_subjects(row: Row, cohort: str) -> None:
    """Keep the subjects of the cohort that all its seeds have."""
    runs = sorted(name for name in row.runs if name[0] == cohort)
    common = row.runs[runs[0]].index
    for name in runs[1:]:
        common = common.intersection(row.runs[name].index)
    for name in runs:
        row.runs[name] = row.runs[name].loc[common]


def _keep_one_of_equal_seeds(row: Row, cohort: str) -> None:
    """Keep the cohort's first seed of a method that is not trained, if it is the same in all of them."""
    first, *others = sorted(name for name in row.runs if name[0] == cohort)
    if row.method not in TRAINED and all(_equal(row.runs[first], row.runs[name]) for name in others):
        for name in others:
            del row.runs[name]


def _name_shared(rows: list[Row]) -> None:
    """Call the experiment SHARED where a method has one row; of a baseline only if all runs have it."""
    for row in rows:
        section = [other for other in rows if other.section == row.section]
        is_only = [other.key for other in section].count(row.key) == 1
        of_all_runs = all(other.commands.keys() <= row.commands.keys() for other in section)
        if is_only and row.method != "il_cldm" and (of_all_runs or row.method not in COMPARED):
            row.experiment = SHARED


def _position(key: tuple[str, ...], order: tuple[str, ...]) -> list[int]:
    return [order.index(part) if part in order else len(order) for part in key]


# ---------------------------------------------------------------- the tables, tidy: a record a row and metric

def image_quality(groups: list[Group]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the image scores, and the comparisons of all contenders."""
    rows = collect_rows(groups, "test", ("method",), METHODS)
    tests = {name: partial(_value_p, value=itemgetter(name)) for name in METRICS}
    pairs = itertools.combinations([row for row in rows if row.is_contender], 2)
    tidy = _tidy(rows, ("method",), [image_values(row.runs) for row in rows])
    return tidy, _compare("image_quality", pairs, tests)


def amyloid_status(groups: list[Group], resamples: int) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the status metrics, and comparisons of contenders.

    Every contender is compared with the classifier of the MRI alone, and the synthetic PET with every other.
    """
    order = (*CLASSIFIERS, "none", *METHODS, "real")
    rows = collect_rows(groups, "predictions", ("classifier", "method"), order)
    values, replicates = [], {}                            # replicates: row -> metric -> [resamples]
    for row in rows:
        found, replicates[row] = status_values(row.runs, row.key[0] != "suvr", resamples)
        values.append(found)
    contenders = []
    for row in rows:
        if row.is_contender and row.key[0] != "majority" and row.method != "mean_pet":
            contenders.append(row)
    pairs = [pair for pair in itertools.combinations(contenders, 2) if _is_status_question(*pair)]
    tests = {"AUC": partial(_auc_p, replicates=replicates),
             "ACC": partial(_accuracy_p, replicates=replicates)}
    return _tidy(rows, ("classifier", "method"), values), _compare("amyloid_status", pairs, tests)


def _is_status_question(a: Row, b: Row) -> bool:
    """Whether one is the classifier of the MRI, or both are that of the PET and one sees a synthetic PET."""
    classifiers = {a.key[0], b.key[0]}
    return "mri" in classifiers or (classifiers == {"pet"} and "il_cldm" in (a.method, b.method))


def quantification(groups: list[Group]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the agreement of uptake with the real PET, and comparisons of the errors of the SUVR."""
    paired = [Group(group.name, group.section, [_pair_uptake(run) for run in group.runs]) for group in groups]
    rows = collect_rows(paired, "uptake", ("measure", "method"), ("SUVR", "CL", *METHODS))
    contenders = [row for row in rows if row.is_contender and row.key[0] == "SUVR"]
    tests = {"MAE": partial(_value_p, value=absolute_error)}
    comparisons = _compare("quantification", itertools.combinations(contenders, 2), tests)
    return _tidy(rows, ("measure", "method"), [uptake_values(row.runs) for row in rows]), comparisons


def _pair_uptake(run: Run) -> Run:
    """The run with its uptake as a row a measure, method and subject: value, and real, that of the real PET.

    Undefined ones are left out.
    """
    if run.uptake is None:
        return run
    values = run.uptake.drop(columns="label").melt(["method", "ID"], var_name="measure").dropna()
    is_real = values["method"] == "real"
    real = values[is_real].rename(columns={"value": "real"}).drop(columns="method")
    return dataclasses.replace(run, uptake=values[~is_real].merge(real, on=["measure", "ID"]))


def _tidy(rows: list[Row], keys: tuple[str, ...], values: list[dict[str, Values]]) -> pd.DataFrame:
    """A record a row and metric."""
    records = []
    for row, metrics in zip(rows, values, strict=True):
        key, commands = dict(zip(keys, row.key, strict=True)), list(dict.fromkeys(row.commands.values()))
        for metric, found in metrics.items():
            records.append({
                "section": row.section, "experiment": row.experiment, **key, "n": len(row.subjects),
                "seeds": len(row.runs), "is_contender": row.is_contender, "metric": metric, **vars(found),
                "made_by": commands})
    return pd.DataFrame(records)


# ---------------------------------------------------------------- comparisons

Test = Callable[[Row, Row], float]                         # p of "no difference" between two rows


def _value_p(a: Row, b: Row, value: Callable[[pd.DataFrame], pd.Series]) -> float:
    return value_p(a.runs, b.runs, value)


def _auc_p(a: Row, b: Row, replicates: dict[Row, dict[str, np.ndarray]]) -> float:
    return bootstrap_p(replicates[a]["AUC"], replicates[b]["AUC"])


def _accuracy_p(a: Row, b: Row, replicates: dict[Row, dict[str, np.ndarray]]) -> float:
    return accuracy_p(a.runs, b.runs, replicates[a]["ACC"], replicates[b]["ACC"])


def _compare(table: str, pairs: Iterable[tuple[Row, Row]], tests: dict[str, Test]) -> list[dict]:
    """A record a pair and metric, with p of the metric's test, Holm-corrected over the pairs of a section.

    A pair of other sections or other subjects is left out.
    """
    records = []
    for a, b in pairs:
        if a.section != b.section or a.subjects != b.subjects:
            continue
        for metric, test in tests.items():
            records.append({
                "section": a.section, "table": table, "metric": metric, "a": a.label, "b": b.label,
                "n": len(a.subjects), "p": test(a, b)})
    frame = pd.DataFrame(records, columns=["section", "table", "metric", "a", "b", "n", "p"])
    for _, family in frame.groupby(["section", "metric"]):
        frame.loc[family.index, "p_holm"] = holm(family["p"])
    return frame.to_dict("records")


# ---------------------------------------------------------------- all tables of some runs

@dataclass(frozen=True)
class Table:
    """A tidy table, the columns that tell its rows apart beside the experiment, and its caption."""
    name: str
    tidy: pd.DataFrame
    keys: tuple[str, ...]
    caption: str


CAPTIONS = {
    "image_quality":
        "Image quality on the test list: mean ± SD over subjects, or over the seeds where there are several. "
        "MAE, PSNR (dB) and SSIM on the box and, with _brain, inside the brain mask. Bold: best of what "
        "needs no PET. †: differs from mean_pet (paired Wilcoxon over subjects, Holm-corrected, p < 0.05). "
        "aae and oracle see the PET or the truth: upper bounds.",
    "amyloid_status":
        "Amyloid status on the test list, with 95 % bootstrap intervals over subjects ({resamples} "
        "resamples; ± SD over seeds where there are several). Every status classifier is fitted on the "
        "training list (pet and mri_pet on real PET), its threshold chosen on the validation list's real "
        "volumes. Bold: best of what needs no PET. †: differs from the classifier of the MRI (AUC: paired "
        "bootstrap; ACC: exact McNemar, or the bootstrap over several seeds; Holm-corrected, p < 0.05). "
        "real, aae and oracle see the PET or the truth: upper bounds. A value of 0 or 1 has an interval of "
        "no width, because resampling cannot leave it.",
    "quantification":
        "Uptake of the synthetic against the real PET on the test list. ± is the SD over subjects, or over "
        "the seeds where there are several; bias, MAE, RMSE and the Bland-Altman limits in units of the "
        "measure; slope below 1: compressed toward the mean. Bold: best of what needs no PET. †: absolute "
        "errors differ from those of mean_pet (paired Wilcoxon over subjects, Holm-corrected, p < 0.05).",
    "comparisons":
        "Paired comparisons on the test list: Wilcoxon signed-rank for image scores and absolute errors, "
        "paired bootstrap for AUC, exact McNemar (over several seeds the bootstrap) for ACC; {resamples} "
        "resamples; two-sided p, and Holm-corrected within a metric.",
}


def make_tables(groups: list[Group]) -> list[Table]:
    """The tables that the runs have data for; comparisons last, if there are any."""
    resamples = max(run.metadata["settings"]["bootstrap_resamples"] for group in groups for run in group.runs)
    parts = [("image_quality", ("method",), "mean_pet", image_quality(groups)),
             ("amyloid_status", ("classifier", "method"), "mri none", amyloid_status(groups, resamples)),
             ("quantification", ("measure", "method"), "SUVR mean_pet", quantification(groups))]
    tables, comparisons = [], []
    for name, keys, reference, (tidy, records) in parts:
        comparisons += records
        if len(tidy):
            tidy = _mark_best(_add_p(tidy, keys, records, reference), keys)
            tables.append(Table(name, tidy, keys, CAPTIONS[name].format(resamples=resamples)))
    if comparisons:
        caption = CAPTIONS["comparisons"].format(resamples=resamples)
        tables.append(Table("comparisons", pd.DataFrame(comparisons), ("a", "b"), caption))
    return tables


def _mark_best(tidy: pd.DataFrame, keys: tuple[str, ...]) -> pd.DataFrame:
    """The table with a column best: whether no contender of the section is better in the metric."""
    tidy = tidy.assign(best=False)
    families = ["section", "metric"] + (["measure"] if "measure" in keys else [])
    for _, family in tidy[tidy["is_contender"] & tidy["value"].notna()].groupby(families):
        metric = family["metric"].iloc[0]
        if metric in UNRATED or len(family) == 1:
            continue
        if metric in TARGETS:
            distance = (family["value"] - TARGETS[metric]).abs()
        else:
            distance = family["value"] if metric in LOWER_IS_BETTER else -family["value"]
        is_best = np.isclose(distance, distance.min(), rtol=1e-9, atol=0)
        tidy.loc[family.index[is_best], "best"] = True
    return tidy


def _add_p(tidy: pd.DataFrame, keys: tuple[str, ...], comparisons: list[dict],
           reference: str) -> pd.DataFrame:
    """The table with a column p_holm: of the comparison with the row labelled `reference`, or NaN."""
    p = {}                                                 # (section, metric, label of a row) -> p
    for record in comparisons:
        for one, other in (("a", "b"), ("b", "a")):
            if record[one] == reference:
                p[record["section"], record["metric"], record[other]] = record["p_holm"]
    found = []
    for record in tidy.to_dict("records"):
        label = row_label(tuple(record[key] for key in keys), record["experiment"])
        found.append(p.get((record["section"], record["metric"], label), np.nan))
    return tidy.assign(p_holm=found)
