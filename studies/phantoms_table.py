"""The tables of the study of phantoms, from its per-subject scores."""
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy import ndarray

from evaluation.statistics import interval
from studies.budget_table import HEADINGS, REFERENCES, SCORES, replicates_of, scores_of
from studies.repairs_table import gain_text, mean_and_sd

METHODS = ("default", "fallback", "published", "latent_regression", "labelled_latent_regression",
           "image_regression", *REFERENCES)                # in the order of the tables
UPDATES = 960                                              # of stage 2, at budget 1
OTHERS = METHODS[1:-len(REFERENCES)]                       # which the default is to lead
LISTS = ("validation", "test")
ANSWERS = {1: "yes", 0: "close", -1: "no"}
KEY = ["kind", "budget", "method", "list"]                 # columns that tell the rows of the table apart


class Scored(NamedTuple):
    """Scores of a method on a list of one seed, their bootstrap replicates [5, R] (of the same subjects for
    every method), and the number of subjects and of the positive ones among them."""
    scores: dict[str, float]
    replicates: ndarray
    subjects: int
    positive: int


def score_lists(subjects: pd.DataFrame) -> dict[tuple, dict[int, Scored]]:
    """Kind, budget, method and list -> seed -> scores. Those of a test list have gap_share: how far the
    squared error has come from that of the mean PET to that of the oracle.

    subjects: a row a kind, budget, method, list, seed and subject.
    """
    found = {}
    for (*key, seed), group in subjects.groupby([*KEY, "seed"], sort=False):
        group = group.sort_values("ID")
        found.setdefault(tuple(key), {})[seed] = Scored(
            scores_of(group), replicates_of(group, seed), len(group), int(group["label"].sum()))
    for (kind, budget, _, name), of_seeds in found.items():
        if name == "test":                                 # the bounds are scored on no other list
            for seed, one in of_seeds.items():
                worst, best = (found[kind, budget, bound, name][seed].scores for bound in REFERENCES)
                gap = worst["MSE_brain"] - best["MSE_brain"]
                one.scores["gap_share"] = (worst["MSE_brain"] - one.scores["MSE_brain"]) / gap
    return found


def make_table(scored: dict[tuple, dict[int, Scored]]) -> pd.DataFrame:
    """A row a kind, budget, method and list: the mean of every score over the seeds, with _sd their standard
    deviation, and _low and _high the 95 % interval, bootstrap over the subjects of every seed."""
    rows = []
    for key, of_seeds in scored.items():
        scores = pd.DataFrame([one.scores for one in of_seeds.values()])
        row = dict(zip(KEY, key, strict=True)) | {
            "n": len(of_seeds), "subjects": sum(one.subjects for one in of_seeds.values()),
            "positive": sum(one.positive for one in of_seeds.values()),
            **scores.mean(), **scores.std().add_suffix("_sd")}
        replicates = np.mean([one.replicates for one in of_seeds.values()], axis=0)
        for name, low, high in zip(SCORES, *interval(replicates), strict=True):
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return _in_order(pd.DataFrame(rows), {"method": METHODS, "list": LISTS})


def make_leads(scored: dict[tuple, dict[int, Scored]]) -> pd.DataFrame:
    """A row a kind, budget and other method: by how much the default is ahead, over the seeds that both have.

    gain, AUC_gain and test_gain, each with its paired 95 % interval (_low, _high): PSNR in the brain (dB) and
    AUC of the validation list, PSNR of the test list. leads: yes or no if the interval of gain lies on one
    side of 0, else close.
    """
    rows = []
    for kind, budget, method, name in scored:
        if method not in OTHERS or name != "validation" or (kind, budget, "default", name) not in scored:
            continue
        row = {"kind": kind, "budget": budget, "against": method}
        for column, score, where in (("gain", "PSNR_brain", "validation"), ("AUC_gain", "AUC", "validation"),
                                     ("test_gain", "PSNR_brain", "test")):
            default, other = (scored[kind, budget, one, where] for one in ("default", method))
            row |= _difference(default, other, score, column)
        if row["n"]:
            row["leads"] = ANSWERS[int(row["gain_low"] > 0) - int(row["gain_high"] < 0)]
            rows.append(row)
    columns = ["kind", "budget", "against"]                # which are there without any row
    return _in_order(pd.DataFrame(rows, columns=None if rows else columns), {"against": METHODS})


def _difference(one: dict[int, Scored], other: dict[int, Scored], score: str,
                column: str) -> dict[str, float]:
    """By how much a score of `one` is above that of the other, with its interval, and the number of seeds."""
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return {"n": 0}
    number = SCORES.index(score)
    found = np.mean([one[seed].scores[score] - other[seed].scores[score] for seed in seeds])
    replicates = [one[seed].replicates[number] - other[seed].replicates[number] for seed in seeds]
    low, high = interval(np.mean(replicates, axis=0))
    return {"n": len(seeds), column: float(found), f"{column}_low": float(low), f"{column}_high": float(high)}


def _in_order(table: pd.DataFrame, orders: dict[str, tuple]) -> pd.DataFrame:
    """Kinds and budgets as they come, in them the rows in the order of the values of each column."""
    of = {"kind": list(dict.fromkeys(table["kind"])), "budget": sorted(set(table["budget"]))} | orders
    return table.sort_values(list(of), kind="stable", ignore_index=True,
                             key=lambda column: column.map(list(of[column.name]).index))


# ---------------------------------------------------------------- Markdown

def to_markdown(table: pd.DataFrame, leads: pd.DataFrame) -> str:
    """For each kind and budget the scores of all methods, and whether the default leads."""
    parts = []
    for (kind, budget), group in table.groupby(["kind", "budget"], sort=False):
        parts += [f"**{kind}**, {UPDATES * budget:,} updates of stage 2:", _markdown(_scores_shown(group))]
        own = leads[(leads["kind"] == kind) & (leads["budget"] == budget)]
        if len(own):
            parts += [f"Does the default lead on **{kind}**?", _markdown(_leads_shown(own))]
            close = own[(own["leads"] == "close") & (own["n"] < 3)]
            if len(close):
                parts.append(f"Close: {', '.join(close['against'])}. Three seeds: `python main.py study "
                             f"phantoms --kinds {kind} --budget {budget} --seeds 0 1 2`.")
    return "\n\n".join(parts) + "\n"


def _markdown(shown: pd.DataFrame) -> str:
    """A table of texts as Markdown."""
    return shown.to_markdown(index=False, disable_numparse=True)


def _scores_shown(table: pd.DataFrame) -> pd.DataFrame:
    """A line a method and list: scores with their SD over the seeds and their intervals."""
    columns = {"method": table["method"], "list": table["list"], "seeds": table["n"],
               "subjects": table["subjects"], "positive": table["positive"]}
    for name, (heading, digits) in HEADINGS.items():
        columns[f"{heading} [95 %]"] = [_with_interval(row, name, digits) for _, row in table.iterrows()]
    shares = table[["gap_share", "gap_share_sd"]].to_numpy()
    columns["share of the gap"] = [mean_and_sd(*both, 2) for both in shares]
    return pd.DataFrame(columns)


def _with_interval(row: pd.Series, name: str, digits: int) -> str:
    """A mean with its SD over the seeds and its interval; a dash where there is none."""
    text = mean_and_sd(row[name], row[f"{name}_sd"], digits) or "-"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return text + (f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) else "")


def _leads_shown(leads: pd.DataFrame) -> pd.DataFrame:
    """A line a method: gains of the default over it, and the answer."""
    columns = {"against": leads["against"], "seeds": leads["n"]}
    for name, heading in (("gain", "gain in PSNR (dB)"), ("AUC_gain", "gain in AUC"),
                          ("test_gain", "test list: gain in PSNR (dB)")):
        numbers = leads[[name, f"{name}_low", f"{name}_high"]].to_numpy()
        columns[f"{heading} [95 %]"] = [gain_text(*three) for three in numbers]
    return pd.DataFrame({**columns, "leads": leads["leads"]})
