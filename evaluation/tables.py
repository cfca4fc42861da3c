"""The tables of a paper from the CSVs of all experiments: image quality, amyloid status, uptake, comparisons.

Runs that differ in their seeds alone are one row. Rows of one section can be compared: same cohort, lists,
crop and masks. Both follow from the marks of the settings in config.py, which say what a setting affects.
"""
import dataclasses
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter

import numpy as np
import pandas as pd

from evaluation import statistics
from evaluation.calibration import CAPTION as CALIBRATION_CAPTION
from evaluation.calibration import calibration
from evaluation.grey_zone import CAPTION as GREY_ZONE_CAPTION
from evaluation.grey_zone import grey_zone
from evaluation.power import expected_widths
from evaluation.results import Run
from evaluation.rows import COMPARED, Group, Row, Table, collect_rows, row_label, tidy_table
from evaluation.statistics import bootstrap_p, holm
from evaluation.subgroups import CAPTION as SUBGROUPS_CAPTION
from evaluation.subgroups import subgroups
from evaluation.values import (
    Comparison,
    Values,
    absolute_error,
    accuracy_p,
    compare_replicates,
    compare_values,
    image_values,
    status_values,
    uptake_values,
)
from utils import METRICS

METHODS = ("mean_pet", *COMPARED, "il_cldm", "oracle", "aae")                # in the order of the tables
CLASSIFIERS = ("majority", "age_sex", "covariates", "mri", "covariates_mri", "pet", "suvr",
               "mri_pet")                                  # in the order of the tables

LOWER_IS_BETTER = ("MAE", "MAE_brain", "spectrum_brain", "RMSE", "Brier")
TARGETS = {"bias": 0.0, "slope": 1.0}                      # the nearest is best
UNRATED = ("LoA_low", "LoA_high", "SEN", "SPE", "PPV", "NPV",   # one decision for everybody wins one of two
           "nyquist", "nyquist_real")                      # the smoothest picture has the least


# ---------------------------------------------------------------- the tables, tidy: a record a row and metric

def image_quality(groups: list[Group]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the image scores, and the comparisons of all contenders."""
    rows = collect_rows(groups, "test", ("method",), METHODS)
    tests = {name: partial(_compare_values, value=itemgetter(name)) for name in METRICS}
    pairs = list(itertools.combinations([row for row in rows if row.is_contender], 2))
    tidy = tidy_table(rows, ("method",), [image_values(row.runs) for row in rows])
    comparisons = _compare("image_quality", pairs, tests)
    later = "spectrum_brain"                               # not scored by an earlier version
    pairs = [(a, b) for a, b in pairs if _has(a, later) and _has(b, later)]
    return tidy, comparisons + _compare("image_quality", pairs,
                                        {later: partial(_compare_values, value=itemgetter(later))})


def _has(row: Row, column: str) -> bool:
    """Whether all runs of the row have the column."""
    return all(column in frame for frame in row.runs.values())


def amyloid_status(groups: list[Group]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the status metrics, and comparisons of contenders.

    Every contender is compared with the classifier of the MRI alone, and the synthetic PET with every other.
    """
    order = (*CLASSIFIERS, "none", *METHODS, "real")
    rows = collect_rows(groups, "predictions", ("classifier", "method"), order)
    values, replicates = {}, {}                            # of each row: metric -> value, and -> [RESAMPLES]
    for row in rows:
        values[row], replicates[row] = status_values(row.runs, row.key[0] != "suvr")
    contenders = []
    for row in rows:
        if row.is_contender and row.key[0] != "majority" and row.method != "mean_pet":
            contenders.append(row)
    pairs = [pair for pair in itertools.combinations(contenders, 2) if _is_status_question(*pair)]
    tests = {name: partial(_compare_status, metric=name, values=values, replicates=replicates)
             for name in ("AUC", "ACC")}
    tidy = tidy_table(rows, ("classifier", "method"), list(values.values()))
    return tidy, _compare("amyloid_status", pairs, tests)


def _is_status_question(a: Row, b: Row) -> bool:
    """Whether one is the classifier of the MRI, or both are that of the PET and one sees a synthetic PET, or
    the question is what the MRI, or the synthetic PET, is worth beside covariates."""
    classifiers = {a.key[0], b.key[0]}
    sees_synthetic = "il_cldm" in (a.method, b.method)
    return ("mri" in classifiers or classifiers == {"covariates", "covariates_mri"}
            or (sees_synthetic and classifiers in ({"pet"}, {"suvr", "covariates_mri"})))


def quantification(groups: list[Group]) -> tuple[pd.DataFrame, list[dict]]:
    """Tidy table of the agreement of uptake with the real PET, and comparisons of the errors of the SUVR."""
    paired = [Group(group.name, group.section, [_pair_uptake(run) for run in group.runs]) for group in groups]
    rows = collect_rows(paired, "uptake", ("measure", "method"), ("SUVR", "CL", *METHODS))
    contenders = [row for row in rows if row.is_contender and row.key[0] == "SUVR"]
    tests = {"MAE": partial(_compare_values, value=absolute_error)}
    comparisons = _compare("quantification", itertools.combinations(contenders, 2), tests)
    return tidy_table(rows, ("measure", "method"), [uptake_values(row.runs) for row in rows]), comparisons


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


# ---------------------------------------------------------------- comparisons

Test = Callable[[Row, Row], Comparison]


def _compare_values(a: Row, b: Row, value: Callable[[pd.DataFrame], pd.Series]) -> Comparison:
    return compare_values(a.runs, b.runs, value)


def _compare_status(a: Row, b: Row, metric: str, values: dict[Row, dict[str, Values]],
                    replicates: dict[Row, dict[str, np.ndarray]]) -> Comparison:
    of_a, of_b = replicates[a][metric], replicates[b][metric]
    p = bootstrap_p(of_a, of_b) if metric == "AUC" else accuracy_p(a.runs, b.runs, of_a, of_b)
    return compare_replicates(p, values[a][metric], values[b][metric], of_a, of_b)


def _compare(table: str, pairs: Iterable[tuple[Row, Row]], tests: dict[str, Test]) -> list[dict]:
    """A record a pair and metric: its comparison, with p Holm-corrected over the pairs of a section.

    A pair of other sections or other subjects is left out.
    """
    records = []
    for a, b in pairs:
        if a.section != b.section or a.subjects != b.subjects:
            continue
        for metric, test in tests.items():
            records.append({
                "section": a.section, "table": table, "metric": metric, "a": a.label, "b": b.label,
                "n": len(a.subjects), **vars(test(a, b))})
    if not records:
        return []
    frame = pd.DataFrame(records)
    for _, family in frame.groupby(["section", "metric"]):
        frame.loc[family.index, "p_holm"] = holm(family["p"])
    return frame.to_dict("records")


# ---------------------------------------------------------------- all tables of some runs

CAPTIONS = {
    "image_quality":
        "Image quality on the test list: mean ± SD over subjects, or over the seeds where there are several. "
        "MAE, PSNR (dB) and SSIM on the box and, with _brain, inside the brain mask. spectrum_brain: mean "
        "over bins of frequency of |10 log10 (synthetic / real power)| inside the brain, whose outer 20 mm "
        "fade out, in dB; 0: the texture of the real PET. nyquist: share of the power at the highest "
        "frequency of an axis, in millionths; above that of the real PET, nyquist_real, there is a "
        "checkerboard in the picture, below it is smoother. Bold: best of what needs no PET. †: differs from "
        "mean_pet (paired Wilcoxon over subjects, Holm-corrected, p < 0.05). aae and oracle see the PET or "
        "the truth: upper bounds.",
    "amyloid_status":
        "Amyloid status on the test list, with 95 % bootstrap intervals over subjects ({resamples} "
        "resamples; ± SD over seeds where there are several). Every status classifier is fitted on the "
        "training list (pet and mri_pet on real PET), its threshold chosen on the validation list's real "
        "volumes. Bold: best of what needs no PET. †: differs from the classifier of the MRI (AUC: paired "
        "bootstrap; ACC: exact McNemar, or the bootstrap over several seeds; Holm-corrected, p < 0.05). "
        "real, aae and oracle see the PET or the truth: upper bounds. A value of 0 or 1 has an interval of "
        "no width, because resampling cannot leave it. {n} The grey zone of 10 to 30 Centiloids is left out "
        "in the table grey_zone, where the Centiloids of the real PETs are known; a phantom has none.",
    "quantification":
        "Uptake of the synthetic against the real PET on the test list. ± is the SD over subjects, or over "
        "the seeds where there are several; bias, MAE, RMSE and the Bland-Altman limits in units of the "
        "measure; CCC: concordance correlation; ICC: ICC(A,1), absolute agreement of single measures; slope "
        "below 1: compressed toward the mean. Bold: best of what needs no PET. †: absolute "
        "errors differ from those of mean_pet (paired Wilcoxon over subjects, Holm-corrected, p < 0.05).",
    "calibration": CALIBRATION_CAPTION,
    "grey_zone": GREY_ZONE_CAPTION,
    "subgroups": SUBGROUPS_CAPTION,
    "comparisons":
        "Paired comparisons on the test list: Wilcoxon signed-rank for image scores and absolute errors, "
        "paired bootstrap for AUC, exact McNemar (over several seeds the bootstrap) for ACC; {resamples} "
        "resamples; two-sided p, and Holm-corrected within a metric. Difference: a - b with its 95 % "
        "interval, of image scores and absolute errors the median over the subjects. Rank-biserial: "
        "matched-pairs correlation in [-1, 1], above 0 where a is the larger one.",
}


def make_tables(groups: list[Group]) -> list[Table]:
    """The tables that the runs have data for; comparisons last, if there are any."""
    resamples = statistics.RESAMPLES
    parts = [("image_quality", ("method",), "mean_pet", image_quality(groups)),
             ("amyloid_status", ("classifier", "method"), "mri none", amyloid_status(groups)),
             ("quantification", ("measure", "method"), "SUVR mean_pet", quantification(groups))]
    tables, comparisons = [], []
    for name, keys, reference, (tidy, records) in parts:
        comparisons += records
        if len(tidy):
            tidy = _mark_best(_add_p(tidy, keys, records, reference), keys)
            tables.append(
                Table(name, tidy, keys, CAPTIONS[name].format(resamples=resamples, n=_auc_widths(groups)))
            )
    order = (*CLASSIFIERS, "none", *METHODS, "real")
    unmarked = {"best": False, "p_holm": np.nan}
    for name, keys, tidy in (
        ("calibration", ("classifier", "method"), calibration(groups, order).assign(**unmarked)),
        ("grey_zone", ("classifier", "subjects", "method"), grey_zone(groups, order).assign(**unmarked)),
        ("subgroups", ("column", "group"), subgroups(groups)),
    ):
        if len(tidy):
            tables.append(Table(name, tidy, keys, CAPTIONS[name].format(resamples=resamples)))
    if comparisons:
        caption = CAPTIONS["comparisons"].format(resamples=resamples)
        tables.append(Table("comparisons", pd.DataFrame(comparisons), ("a", "b"), caption))
    return tables


def _auc_widths(groups: list[Group]) -> str:
    """What the numbers of subjects of the test lists can show, in sentences."""
    counts = set()
    for run in (run for group in groups for run in group.runs if run.predictions is not None):
        label = run.predictions.drop_duplicates("ID")["label"]
        counts.add((int((label == 1).sum()), int((label == 0).sum())))
    widths = [expected_widths(*count) for count in sorted(counts)]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in widths)


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
