"""Three lists of subjects: their sizes, their labels, and how near they come to each other in all else."""
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort import splitting
from cohort.splitting import share_out, share_out_strata, split_subjects

RATIOS = (0.8, 0.1, 0.1)
REPEATABLE = settings(derandomize=True, database=None, deadline=None, max_examples=50)


def cohort(n: int, sites: int, seed: int = 0) -> pd.DataFrame:
    """Subjects of sites of very different sizes, as in a large study."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "label": (rng.random(n) < 0.45).astype(int),
        "site": rng.choice(sites, n, p=rng.dirichlet(np.full(sites, 1.5))),
        "sex": rng.choice(list("MF"), n),
        "tracer": rng.choice(["FBP", "FBB"], n, p=[0.7, 0.3]),
        "age": rng.integers(0, 4, n)})


def distances(values: pd.Series, lists: np.ndarray, ratios=RATIOS) -> np.ndarray:
    """Subjects by which each level misses its share of each list, [levels, lists]."""
    counts = pd.crosstab(values, lists).reindex(columns=range(len(ratios)), fill_value=0).to_numpy()
    return np.abs(counts - np.outer(counts.sum(1), np.array(ratios) / sum(ratios)))


@REPEATABLE
@given(st.integers(3, 3000), st.tuples(*[st.floats(0.01, 100)] * 3))
def test_every_list_is_within_one_subject_of_its_ratio_and_none_is_empty(n, ratios):
    sizes = share_out(n, ratios)
    assert sizes.sum() == n and sizes.min() >= 1
    shares = n * np.array(ratios) / sum(ratios)
    if shares.min() >= 1:
        assert np.abs(sizes - shares).max() < 1


def test_lists_that_would_be_empty_take_from_the_largest():
    assert share_out(5, RATIOS).tolist() == [3, 1, 1]
    assert share_out(3, RATIOS).tolist() == [1, 1, 1]
    assert share_out(510, RATIOS).tolist() == [408, 51, 51]                                  # the paper's


@REPEATABLE
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.tuples(*[st.floats(0.05, 1)] * 3))
def test_every_label_is_within_one_subject_of_its_share_in_every_list(strata, ratios):
    if sum(strata) < 3:
        return
    sizes = share_out(sum(strata), ratios)
    shared = share_out_strata(np.array(strata), sizes)
    assert (shared.sum(1) == strata).all() and (shared.sum(0) == sizes).all() and shared.min() >= 0
    assert np.abs(shared - np.outer(strata, sizes) / sizes.sum()).max() < 1


@pytest.mark.parametrize("n", [7, 60, 500])
def test_the_label_is_shared_out_whatever_else_is_known(n):
    factors = cohort(n, 60)
    lists = split_subjects(factors, RATIOS, seed=3)
    assert np.bincount(lists, minlength=3).tolist() == share_out(n, RATIOS).tolist()
    expected = np.outer(np.bincount(factors["label"]), np.bincount(lists)) / n
    assert np.abs(pd.crosstab(factors["label"], lists).to_numpy() - expected).max() < 1


def test_with_500_subjects_of_60_sites_every_level_of_every_factor_is_within_one_subject_of_its_share():
    factors = cohort(500, 60)
    lists = split_subjects(factors, RATIOS, seed=0)
    assert max(distances(factors[name], lists).max() for name in factors) < 1
    by_label_alone = split_subjects(factors[["label"]], RATIOS, seed=0)
    assert distances(factors["site"], by_label_alone).max() > 2      # so it was the exchanges


def test_no_exchange_is_left_that_would_bring_the_lists_nearer():
    factors = cohort(40, 5)
    lists = split_subjects(factors, (0.5, 0.3, 0.2), seed=1)

    further = factors.drop(columns="label").astype(str)
    levels = pd.get_dummies(further).to_numpy(float)       # [subjects, levels]

    def badness(lists: np.ndarray) -> float:
        """Sum of the squared differences of all levels and lists from their shares."""
        members = np.eye(3)[lists]
        return ((members.T @ levels - np.outer(members.mean(0), levels.sum(0))) ** 2).sum()

    for i, j in itertools.combinations(range(40), 2):
        if factors["label"][i] == factors["label"][j]:
            other = lists.copy()
            other[[i, j]] = lists[[j, i]]
            assert badness(other) > badness(lists) - 1e-6


def test_the_seed_and_nothing_else_chooses_among_equally_good_lists():
    factors = cohort(100, 10)
    first = split_subjects(factors, RATIOS, seed=0)
    np.testing.assert_array_equal(first, split_subjects(factors.copy(), RATIOS, seed=0))
    assert (first != split_subjects(factors, RATIOS, seed=1)).any()


def test_over_many_seeds_every_subject_gets_into_every_list():
    factors = cohort(30, 8)
    lists = np.stack([split_subjects(factors, (1, 1, 1), seed) for seed in range(60)])
    assert all(set(column) == {0, 1, 2} for column in lists.T)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_a_missing_value_is_a_level_of_its_own_and_never_another(missing):
    values = pd.Series(["F", "M", missing, "M", missing], dtype=object)
    codes = splitting._level_codes(
        pd.DataFrame({"sex": values, "age": pd.qcut([61.0, 65, 70, 75, np.nan], 2)})
    )
    assert codes[:, 0].tolist() == [0, 1, 2, 1, 2]
    assert codes[4, 1] not in codes[:4, 1] and codes[:, 1].min() > codes[:, 0].max()


@pytest.mark.parametrize("seed", range(3))
def test_subjects_of_unknown_sex_and_age_are_shared_out_like_any_others(seed):
    factors = cohort(60, 3, seed)
    factors["sex"] = factors["sex"].astype(object).where(np.arange(60) % 3 > 0)
    factors["age"] = factors["age"].astype(object).where(np.arange(60) % 4 > 0, None)
    lists = split_subjects(factors, (0.5, 0.25, 0.25), seed)
    for name in ("sex", "age"):
        assert distances(factors[name].isna(), lists, (0.5, 0.25, 0.25)).max() <= 1
