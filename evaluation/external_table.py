"""External cohorts in the tables: sections of their own, and one table that shows each beside the
experiment's own test list."""
import json

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from evaluation.results import Run
from evaluation.rows import Group, Table, group_runs
from evaluation.values import Runs, Values, image_values, status_values, uptake_values

NAME = "external"                                          # of the table
OWN = "test list"                                          # of the experiment, in the column cohort
# Row -> the status classifier that reads it; all but the first see a PET.
ROWS = {"none": "mri", "mean_pet": "pet", "il_cldm": "pet", "oracle": "pet", "real": "pet"}
IMAGE, UPTAKE, STATUS = ("PSNR_brain", "SSIM_brain"), ("bias", "Pearson", "slope"), ("AUC", "SEN", "SPE")
CAPTION = (
    "The experiment on its own test list and on external cohorts, with the same networks, masks, thresholds "
    "and calibration: nothing is fitted on an external cohort. PSNR (dB) and SSIM in the brain, bias, "
    "correlation and slope of the SUVR against that of the real PET (mean ± SD over subjects, or over the "
    "seeds). AUC, sensitivity and specificity with 95 % bootstrap intervals over subjects: of the status "
    "classifier pet on the PETs of the method, of mri where the method is none. Coverage: share of the "
    "subjects whose real SUVR lies in the 90 % interval that was calibrated on the validation list, with "
    "Wilson's 95 % interval. Brier: of the calibrated probability of positive status; calibration: mean of "
    "that probability less the share of positive subjects (0 is right). mean_pet is the mean PET of the "
    "training list; oracle and real see the truth or the PET.")


# ---------------------------------------------------------------- sections of the other tables

def external_groups(externals: list[Run]) -> list[Group]:
    """The runs on external cohorts as groups, whose rows are compared within one cohort alone."""
    cohorts: dict[str, list[Run]] = {}
    for run in externals:
        cohorts.setdefault(run.metadata["cohort"], []).append(run)
    groups = []
    for runs in cohorts.values():
        for group in group_runs(runs)[0]:
            groups.append(Group(group.name, _section(group), group.runs))
    return groups


def _section(group: Group) -> str:
    """What rows of an external cohort must share to be compared, as JSON."""
    origin = group.runs[0].metadata["external"]
    section = json.loads(group.section) | {"split": f"external cohort {origin['name']}"}
    section |= {"data_dir": origin["data_dir"], "info_dir": origin["info_dir"]}
    return json.dumps(section, sort_keys=True)


# ---------------------------------------------------------------- beside the own test list

def external_table(groups: list[Group], externals: list[Run]) -> Table | None:
    """The table of all experiments that have external cohorts; None if none has."""
    records = []
    for group in groups:
        names = {run.name for run in group.runs}
        of_group: dict[str, list[Run]] = {}
        for run in externals:
            if run.name in names:
                of_group.setdefault(run.metadata["external"]["name"], []).append(run)
        section = json.loads(group.section) | {"split": "test, and external cohorts"}
        if of_group:
            for cohort, runs in {OWN: group.runs, **of_group}.items():
                records += _records(json.dumps(section, sort_keys=True), group.name, cohort, runs)
    return Table(NAME, pd.DataFrame(records), ("cohort", "method"), CAPTION) if records else None


def _records(section: str, experiment: str, cohort: str, runs: list[Run]) -> list[dict]:
    """A record a method and metric of one cohort; runs: one a seed."""
    records, commands = [], list(dict.fromkeys(run.metadata["command"] for run in runs))
    n = len({(run.metadata["cohort"], name) for run in runs for name in run.test["ID"]})
    for method in ROWS:
        for metric, values in headline(runs, method).items():
            records.append({
                "section": section, "experiment": experiment, "cohort": cohort, "method": method, "n": n,
                "seeds": len(runs), "metric": metric, **vars(values), "best": False, "p_holm": np.nan,
                "made_by": commands})
    return records


def headline(runs: list[Run], method: str) -> dict[str, Values]:
    """Metric -> values of a method, NaN where it is not defined; nothing if no run has the method. runs: of
    one cohort, one a seed."""
    found: dict[str, Values] = {}
    scores = _frames(runs, "test", method)
    if scores:
        found |= _some(image_values(scores), IMAGE)
    if pairs := _uptake_pairs(runs, method):
        found |= _some(uptake_values(pairs), UPTAKE)
    if status := _status(runs, method):
        found |= _some(status_values(status, True)[0], STATUS)
    if method == "il_cldm":
        found |= uncertainty_values([run.uncertainty for run in runs if run.uncertainty is not None])
    if not found:
        return {}
    metrics = (*IMAGE, *UPTAKE, *STATUS, "coverage", "Brier", "calibration")
    return {name: found.get(name, Values(np.nan)) for name in metrics}


def _some(values: dict[str, Values], names: tuple[str, ...]) -> dict[str, Values]:
    return {name: values[name] for name in names}


def _key(run: Run) -> tuple[str, int]:
    return run.metadata["cohort"], run.seed


def _frames(runs: list[Run], frame: str, method: str) -> Runs:
    """The rows of a method in a CSV of each run that has it, by ID."""
    found = {}
    for run in runs:
        table = getattr(run, frame)
        if table is not None and (table["method"] == method).any():
            found[_key(run)] = table[table["method"] == method].set_index("ID").sort_index()
    return found


def _uptake_pairs(runs: list[Run], method: str) -> Runs:
    """SUVR of the method (value) and of the real PET (real) by ID, of each run that has them."""
    if method == "real":
        return {}
    real, found = _frames(runs, "uptake", "real"), {}
    for key, table in _frames(runs, "uptake", method).items():
        pairs = pd.DataFrame({"value": table["SUVR"], "real": real[key]["SUVR"]}).dropna()
        if len(pairs):
            found[key] = pairs
    return found


def _status(runs: list[Run], method: str) -> Runs:
    """Label, score and decision of the method's status classifier by ID, of each run that has it."""
    found = {}
    for key, table in _frames(runs, "predictions", method).items():
        own = table[table["classifier"] == ROWS[method]]
        if len(own):
            found[key] = own
    return found


def uncertainty_values(assessed: list[pd.DataFrame]) -> dict[str, Values]:
    """Coverage of the interval, Brier score and calibration of the probability, averaged over the seeds.

    assessed: of each seed, as uncertainty.assess gives. Of what is not known in any, nothing.
    """
    coverages, briers, excesses = [], [], []
    for table in assessed:
        if table["covered"].notna().all():
            coverages.append(table["covered"].mean())
        if table["probability"].notna().all():
            briers.append(((table["probability"] - table["label"]) ** 2).mean())
            excesses.append((table["probability"] - table["label"]).mean())
    values = {}
    for name, found in (("coverage", coverages), ("Brier", briers), ("calibration", excesses)):
        if found:
            spread = float(np.std(found, ddof=1)) if len(found) > 1 else np.nan
            values[name] = Values(float(np.mean(found)), spread)
    if len(coverages) == 1 and len(assessed) == 1:         # over seeds the subjects are the same
        n = len(assessed[0])
        limits = binomtest(round(coverages[0] * n), n).proportion_ci(method="wilson")
        values["coverage"] = Values(coverages[0], low=limits.low, high=limits.high)
    return values


def in_words(run: Run) -> list[str]:
    """A line a method with its values."""
    lines = []
    for method in ROWS:
        parts = []
        for name, found in headline([run], method).items():
            if np.isfinite(found.value):
                limits = f" [{found.low:.3f}, {found.high:.3f}]" if np.isfinite(found.low) else ""
                parts.append(f"{name} {found.value:.3f}{limits}")
        if parts:
            lines.append(f"{'mri alone' if method == 'none' else method}: {', '.join(parts)}")
    return lines
