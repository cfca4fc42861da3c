"""The table of amyloid status with and without the grey zone: subjects whose real PET is neither clearly
negative nor clearly positive, by its Centiloids."""
import dataclasses

import pandas as pd

from evaluation.results import Run
from evaluation.rows import Group, collect_rows, tidy_table
from evaluation.values import status_values

LOW, HIGH = 10, 30                                         # Centiloids, both inside
INVENTED = ", and an equivalent in SUVR would be an invention"
EVERYONE, OUTSIDE = "all", f"without {LOW} to {HIGH} CL"

CAPTION = (
    "Amyloid status on the test list as in the table amyloid_status, of everyone, and once more without the "
    "subjects whose real PET lies in the grey zone of 10 to 30 Centiloids, with the n of both. Models and "
    "thresholds are the same. 95 % bootstrap intervals over subjects ({resamples} resamples; ± SD over seeds "
    "where there are several).")


def why_none(run: Run) -> str:
    """Why a run has no rows in the table, or nothing."""
    if run.predictions is None:
        return "amyloid status was not read"
    if run.metadata["phantom"]:
        return f"a digital phantom has no Centiloids{INVENTED}"
    if run.uptake is None or "CL" not in run.uptake:
        return f"no Centiloids of the real PETs are known (setting centiloid){INVENTED}"
    return ""


def reasons(groups: list[Group]) -> list[str]:
    """Why experiments have no rows, in a line each."""
    names: dict[str, list[str]] = {}
    for group in groups:
        why = next(filter(None, map(why_none, group.runs)), "")
        if why:
            names.setdefault(why, []).append(group.name)
    return [f"no grey zone of {LOW} to {HIGH} CL is left out for {', '.join(who)}: {why}"
            for why, who in names.items()]


def grey_zone(groups: list[Group], order: tuple[str, ...]) -> pd.DataFrame:
    """Tidy table of the status metrics of everyone and outside the grey zone. order: of classifiers and
    methods.
    """
    known = []
    for group in groups:
        if not any(map(why_none, group.runs)):
            known.append(Group(group.name, group.section, [_with_subjects(run) for run in group.runs]))
    keys = ("classifier", "subjects", "method")
    rows = collect_rows(known, "predictions", keys, (*order, EVERYONE, OUTSIDE))
    values = [status_values(row.runs, row.key[0] != "suvr")[0] for row in rows]
    return tidy_table(rows, keys, values)


def _with_subjects(run: Run) -> Run:
    """The run with its predictions twice: of everyone, and of those outside the grey zone."""
    real = run.uptake[run.uptake["method"] == "real"].set_index("ID")["CL"]
    outside = real.index[(real < LOW) | (real > HIGH)]
    predictions = run.predictions
    parts = [predictions.assign(subjects=EVERYONE),
             predictions[predictions["ID"].isin(outside)].assign(subjects=OUTSIDE)]
    return dataclasses.replace(run, predictions=pd.concat(parts, ignore_index=True))
