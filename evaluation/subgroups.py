"""The table of subgroups: the headline numbers of il_cldm by label, sex, age, site, tracer, diagnosis and any
column that was asked for, with a test of whether they differ between the groups of a column."""
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import scipy.stats

from evaluation import statistics
from evaluation.results import Run
from evaluation.rows import Group
from evaluation.statistics import area_under_roc, correlation, holm
from evaluation.values import Statistic, Values, values_of_lists
from utils import derived_seed

LEAST = 10                                                 # subjects of a group that has numbers
FEW = 6                                                    # values of a column whose every value is a group
AGE_BANDS = ("< 65", "65-74", ">= 75")                     # years; fixed, to be the same in every cohort
NAMES = ("label", "sex", "site", "tracer", "diagnosis")    # columns whose numbers are names
UNKNOWN = "not known"

MEANS = ("PSNR_brain", "SSIM_brain", "SUVR_MAE", "SUVR_bias", "coverage",    # over the subjects
         "SEN_pet", "SPE_pet")                             # over those of one label
OF_PAIRS = {"SUVR_r": (correlation, "SUVR_real", "SUVR"), "AUC_suvr": (area_under_roc, "label", "score_suvr"),
            "AUC_mri": (area_under_roc, "label", "score_mri"),
            "AUC_pet": (area_under_roc, "label", "score_pet")}                # of two columns
NUMBERS = ("PSNR_brain", "SSIM_brain", "SUVR_MAE", "SUVR_bias", "SUVR_r", "AUC_suvr", "AUC_mri", "AUC_pet",
           "SEN_pet", "SPE_pet", "coverage")

CAPTION = (
    "Headline numbers of il_cldm on the test list by groups of its subjects, with 95 % bootstrap intervals "
    "over subjects ({resamples} resamples; ± SD over seeds where there are several): PSNR (dB) and SSIM in "
    "the brain; MAE, bias and Pearson correlation of the SUVR against the real PET; AUC of the SUVR of the "
    "synthetic PET, of the classifier of the MRI, and of the classifier pet that sees the synthetic PET, "
    "with its sensitivity and specificity at the threshold of the validation list; coverage of the "
    "calibrated 90 % interval. Age in fixed "
    "bands; any other column of more than 6 numbers is split at the median of the test list. A group of "
    "fewer than 10 subjects has its n and no number (sensitivity and specificity: fewer than 10 with the "
    "label), a column of one group is left out. †: differs between "
    "the groups of the column that have numbers and a name (Kruskal-Wallis over subjects; AUC and "
    "correlation: permutation test, for AUC within each label; Holm-corrected over the tests of an "
    "experiment, p < 0.05). A value of 0 or 1 has an interval of no width, because resampling cannot leave "
    "it.")


# ---------------------------------------------------------------- the groups of a column

def split(column: str, cells: pd.Series) -> tuple[pd.Series, list[str]]:
    """The group of each subject by the cells of a column, text, and the groups in order, UNKNOWN last."""
    is_known = cells != ""
    numbers = pd.to_numeric(cells.where(is_known), errors="coerce")
    are_numbers = column not in NAMES and np.isfinite(numbers[is_known]).all()
    if column == "age":
        found = numbers.map(_age_band, na_action="ignore")
        order = list(AGE_BANDS)
    elif are_numbers and numbers.nunique() > FEW:
        found, order = _halves(numbers)
    elif are_numbers:
        found = numbers.map("{:g}".format, na_action="ignore")
        order = [f"{number:g}" for number in sorted(numbers.dropna().unique())]
    else:
        found = cells.where(is_known)
        order = sorted(found.dropna().unique(), key=_as_a_reader_counts)
    found = found.astype(object).where(found.notna(), UNKNOWN)
    return found, [name for name in (*order, UNKNOWN) if (found == name).any()]


def _age_band(years: float) -> str:
    return AGE_BANDS[(years >= 65) + (years >= 75)]


def _halves(numbers: pd.Series) -> tuple[pd.Series, list[str]]:
    """Groups up to the median and above it; below it and from it on, if nobody is above."""
    median = numbers.median()
    is_upper, order = numbers > median, [f"<= {median:g}", f"> {median:g}"]
    if not is_upper.any():
        is_upper, order = numbers >= median, [f"< {median:g}", f">= {median:g}"]
    return is_upper.map({False: order[0], True: order[1]}).where(numbers.notna()), order


def _as_a_reader_counts(name: str) -> tuple[float, str]:
    """Key that sorts 2 before 10, and words after numbers."""
    return (float(name), name) if name.isdecimal() else (np.inf, name)


# ---------------------------------------------------------------- the numbers of a group

def subject_values(run: Run) -> pd.DataFrame:
    """A row a test subject, by ID: label, the columns of MEANS and of OF_PAIRS that the run has."""
    test = run.test[run.test["method"] == "il_cldm"].set_index("ID")
    table = test[["label", "PSNR_brain", "SSIM_brain"]].copy()
    if run.uptake is not None:
        suvr = run.uptake.pivot(index="ID", columns="method", values="SUVR")
        table["SUVR_real"], table["SUVR"] = suvr["real"], suvr["il_cldm"]
        table["SUVR_bias"] = table["SUVR"] - table["SUVR_real"]
        table["SUVR_MAE"] = table["SUVR_bias"].abs()
    if run.predictions is not None:
        for classifier, method in (("suvr", "il_cldm"), ("mri", "none"), ("pet", "il_cldm")):
            predictions = run.predictions
            rows = predictions[(predictions["classifier"] == classifier) & (predictions["method"] == method)]
            if len(rows):
                table[f"score_{classifier}"] = rows.set_index("ID")["score"]
            if len(rows) and classifier == "pet":
                is_right = 1 - (rows.set_index("ID")["positive"] - table["label"]).abs()
                table["SEN_pet"] = is_right[table["label"] == 1]
                table["SPE_pet"] = is_right[table["label"] == 0]
    if run.uncertainty is not None and run.uncertainty["covered"].notna().any():
        table["coverage"] = run.uncertainty.set_index("ID")["covered"]
    return table.sort_index()


def columns_of(number: str) -> list[str]:
    """The columns that a number is computed from."""
    return [number] if number in MEANS else list(OF_PAIRS[number][1:])


def _statistic_of(frame: pd.DataFrame, number: str) -> Statistic:
    arrays = [frame[name].to_numpy(float) for name in columns_of(number)]

    def statistic(index: np.ndarray) -> np.ndarray:
        if number in MEANS:
            return arrays[0][index].mean(-1)[None]
        return OF_PAIRS[number][0](arrays[0][index], arrays[1][index])[None]
    return statistic


def _value(tables: dict, number: str) -> Values:
    """A number of one group. tables: (cohort, seed) -> its subjects, as subject_values gives them."""
    known = {name: table.dropna(subset=columns_of(number)) for name, table in tables.items()}
    if min(map(len, known.values())) < LEAST:
        return Values(np.nan)
    values, _ = values_of_lists(known, (number,), partial(_statistic_of, number=number))
    return values[number]


# ---------------------------------------------------------------- do the groups differ?

def heterogeneity_p(number: str, subjects: pd.DataFrame, names: pd.Series, permutations: int,
                    seed: int) -> float:
    """p of "the number is the same in all groups"; NaN if fewer than two of them have LEAST subjects.

    subjects: columns as subject_values gives them. names: group of each subject.
    """
    subjects = subjects[columns_of(number)].dropna()
    names = names[subjects.index]
    sizes = names[names != UNKNOWN].value_counts()
    groups = sorted(sizes.index[sizes >= LEAST])
    if len(groups) < 2:
        return np.nan
    subjects, names = subjects[names.isin(groups)], names[names.isin(groups)]
    if number in MEANS:
        return kruskal_p([subjects.loc[names == group, number].to_numpy() for group in groups])
    function, first, second = OF_PAIRS[number]
    strata = subjects[first].to_numpy() if function is area_under_roc else np.zeros(len(subjects))
    return permutation_p(function, *(subjects[name].to_numpy(float) for name in (first, second)),
                         names.to_numpy(), strata, permutations, seed)


def kruskal_p(samples: list[np.ndarray]) -> float:
    """p of the Kruskal-Wallis test; 1 if all values are equal."""
    if np.ptp(np.concatenate(samples)) == 0:
        return 1.0
    return float(scipy.stats.kruskal(*samples).pvalue)


def permutation_p(function: Callable, a: np.ndarray, b: np.ndarray, names: np.ndarray, strata: np.ndarray,
                  permutations: int, seed: int) -> float:
    """p of "function(a, b) is the same in all groups": subjects change places between the groups, within the
    strata, and the spread of the groups' values about their mean is that of the data or more.

    a, b, names, strata: [n]. A group in which the function is not defined is left out; NaN if one is left.
    """
    defined = [name for name in np.unique(names) if np.isfinite(function(a[names == name], b[names == name]))]
    if len(defined) < 2:
        return np.nan
    keep = np.isin(names, defined)
    a, b, names, strata = a[keep], b[keep], names[keep], strata[keep]
    places, rng = np.tile(np.arange(len(a)), (permutations + 1, 1)), np.random.default_rng(seed)
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        places[1:, inside] = rng.permuted(places[1:, inside], axis=1)  # row 0: as it is
    values = np.stack(
        [function(a[places[:, names == name]], b[places[:, names == name]]) for name in defined]
    )
    weights = np.array([(names == name).sum() for name in defined])[:, None]
    mean = (weights * values).sum(0) / weights.sum()
    spread = (weights * (values - mean) ** 2).sum(0)
    drawn = spread[1:][np.isfinite(spread[1:])]
    return float(((drawn >= spread[0] - 1e-12).sum() + 1) / (len(drawn) + 1))


# ---------------------------------------------------------------- the table

def subgroups(groups: list[Group]) -> pd.DataFrame:
    """Tidy table of the groups of the test lists, of all experiments whose runs say who was in them."""
    records = []
    for group in groups:
        runs = [run for run in group.runs if run.people is not None]
        if runs:
            found = pd.DataFrame(_of_experiment(runs))
            tests = found[found["p"].notna()].drop_duplicates(["column", "metric"])
            tested = zip(tests["column"], tests["metric"], strict=True)
            corrected = dict(zip(tested, holm(tests["p"]), strict=True))
            keys = zip(found["column"], found["metric"], strict=True)
            records.append(found.assign(
                section=group.section, experiment=group.name, seeds=len(runs), is_contender=False, best=False,
                p_holm=[corrected.get(key, np.nan) for key in keys],
                made_by=[list(dict.fromkeys(run.metadata["command"] for run in runs))] * len(found)))
    if not records:
        return pd.DataFrame()
    return pd.concat(records, ignore_index=True).sort_values("section", kind="stable")


def _of_experiment(runs: list[Run]) -> list[dict]:
    """A record a column, group and number of the runs, which differ in their seeds alone."""
    tables = {(run.metadata["cohort"], run.seed): subject_values(run) for run in runs}
    lists = {run.metadata["cohort"]: run.people.set_index("ID") for run in runs}
    people = pd.concat(lists, join="inner")                                   # by cohort and ID
    pooled = pd.concat(tables.values(), keys=[cohort for cohort, _ in tables]).groupby(level=[0, 1]).mean()
    present = set.intersection(*(set(table) for table in tables.values()))
    numbers = [number for number in NUMBERS if present.issuperset(columns_of(number))]
    everyone = pd.Series("all", people.index)
    records = _of_column("all", everyone, ["all"], tables, pooled, numbers)
    for column in people:
        names, order = split(column, people[column])
        if len({*order} - {UNKNOWN}) > 1:
            records += _of_column(column, names, order, tables, pooled, numbers)
    return records


def _of_column(column: str, names: pd.Series, order: list[str], tables: dict, pooled: pd.DataFrame,
               numbers: list[str]) -> list[dict]:
    """The records of a column. names: (cohort, ID) -> group. order: its groups."""
    p = {number: heterogeneity_p(number, pooled, names, statistics.RESAMPLES,
                                 derived_seed("subgroups", column, number)) for number in numbers}
    records = []
    for name in order:
        members = names.index[names == name]
        parts = {}
        for (cohort, seed), table in tables.items():
            inside = members[members.get_level_values(0) == cohort].get_level_values(1)
            parts[cohort, seed] = table.loc[table.index.isin(inside)]
        for number in numbers:
            records.append({"column": column, "group": name, "n": len(members), "metric": number,
                            **vars(_value(parts, number)), "p": p[number]})
    return records
