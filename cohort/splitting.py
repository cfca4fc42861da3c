"""Three lists of subjects: random, alike in label, and as alike in all else as exchanges can make them."""
import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp

from dataset import SPLITS

UNKNOWN = "unknown"                                        # level of what is missing
AGE_GROUPS = 4                                             # quartiles, of which each list gets its share


def draw_lists(info: pd.DataFrame, ratios: tuple[float, ...], seed: int) -> pd.Series:
    """The split of each scan: subjects shared out by label, then by site, tracer, sex and quartile of age.

    info: data_info.csv. A subject whose scans differ counts as a kind of its own: its labels are 0+1. So does
    an unknown site, tracer, sex or age.
    """
    subjects = info.groupby("subject")                     # sorted: no order of rows or files matters
    factors = subjects[["label"]].agg(_joined)
    for name in ("site", "tracer", "sex"):
        if name in info and info[name].nunique(dropna=False) > 1:
            factors[name] = subjects[name].agg(_joined)
    if "age" in info and info["age"].nunique(dropna=False) > 1:
        ages = subjects["age"].agg(lambda values: pd.to_numeric(values).mean())
        factors["age"] = _age_groups(ages)
    splits = [SPLITS[k] for k in split_subjects(factors, ratios, seed)]
    return info["subject"].map(pd.Series(splits, index=factors.index))


def _joined(values: pd.Series) -> str:
    return "+".join(sorted({UNKNOWN if pd.isna(value) else str(value) for value in values}))


def _age_groups(ages: pd.Series) -> pd.Series:
    """The quartile of each age in years, as text."""
    if ages.nunique() > 1:
        ages = pd.qcut(ages, AGE_GROUPS, duplicates="drop")
    return _as_text(ages)


def _as_text(values: pd.Series) -> pd.Series:
    """Values as text, in which a missing one is a level of its own; astype(str) may leave it missing."""
    return pd.Series([UNKNOWN if pd.isna(value) else str(value) for value in values], values.index, object)


def split_subjects(factors: pd.DataFrame, ratios: tuple[float, ...], seed: int) -> np.ndarray:
    """Number of the list of each subject, from 0: [subjects] int.

    factors: a row a subject; the first column (the label) is shared out exactly, within one subject. The
    subjects of each label then go to the lists at random, and two of them change places as long as that
    brings the further columns (site, sex, ...) nearer to their shares: the sum, over levels and lists, of the
    squared difference in subjects falls with every exchange. Levels of one or two subjects need no merging,
    because they weigh no more than they hold. The result depends on the rows, their order and the seed alone.
    """
    rng = np.random.default_rng(seed)
    sizes = share_out(len(factors), ratios)
    strata, stratum = np.unique(factors.iloc[:, 0].to_numpy(str), return_inverse=True)
    quotas = share_out_strata(np.bincount(stratum), sizes)
    lists = np.empty(len(factors), int)
    for k in range(len(strata)):
        lists[rng.permutation(np.flatnonzero(stratum == k))] = np.repeat(np.arange(len(sizes)), quotas[k])
    if factors.shape[1] > 1:
        _exchange(lists, stratum, _level_codes(factors.iloc[:, 1:]), sizes / sizes.sum(), rng)
    return lists


def share_out(n: int, ratios: tuple[float, ...]) -> np.ndarray:
    """Numbers of n subjects in these ratios, each within one of its share, and at least 1 if n allows it."""
    shares = np.array(ratios) / sum(ratios) * n
    sizes = np.floor(shares + 1e-9).astype(int)
    for i in np.argsort(sizes - shares, kind="stable")[:n - sizes.sum()]:
        sizes[i] += 1
    while n >= len(sizes) and not sizes.all():
        sizes[sizes.argmin()] += 1
        sizes[sizes.argmax()] -= 1
    return sizes


def share_out_strata(strata: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Subjects of each stratum in each list: [strata, lists] whole numbers, within one of the exact share.

    strata, sizes: subjects of each stratum and of each list, with one sum; the sums of the rows and columns
    of the result. This is controlled rounding (Cox 1987, JASA 82:520), which always has a solution; of all of
    them, one with the least sum of absolute roundings.
    """
    exact = np.outer(strata, sizes) / sizes.sum()
    floor = np.floor(exact + 1e-9)
    of_stratum = np.kron(np.eye(len(strata)), np.ones(len(sizes)))
    of_list = np.kron(np.ones(len(strata)), np.eye(len(sizes)))
    missing = np.concatenate([strata - floor.sum(1), sizes - floor.sum(0)])
    may_round_up = (exact - floor > 1e-9).ravel().astype(int)
    extra = milp((1 - 2 * (exact - floor)).ravel(), integrality=1, bounds=Bounds(0, may_round_up),
                 constraints=LinearConstraint(np.vstack([of_stratum, of_list]), missing, missing))
    assert extra.success, f"no whole numbers for strata {strata} in lists {sizes}: {extra.message}"
    return (floor + extra.x.reshape(exact.shape)).round().astype(int)


def _level_codes(factors: pd.DataFrame) -> np.ndarray:
    """Numbers of the levels of each subject, [subjects, factors]; each level of each factor has its own."""
    columns = []
    for name in factors.columns:
        codes, _ = pd.factorize(_as_text(factors[name]), sort=True)
        columns.append(codes)
    codes = np.stack(columns, axis=1)
    return codes + np.concatenate([[0], np.cumsum(codes.max(0) + 1)[:-1]])


def _exchange(lists: np.ndarray, stratum: np.ndarray, codes: np.ndarray, shares: np.ndarray,
              rng: np.random.Generator) -> None:
    """Exchange subjects of one stratum between lists, in place, while levels come nearer to their shares.

    codes: from _level_codes. shares: of the subjects in each list, with sum 1.
    """
    counts = np.zeros((len(shares), codes.max() + 1), int)                   # [lists, levels]
    for k in range(len(shares)):
        counts[k] = np.bincount(codes[lists == k].ravel(), minlength=codes.max() + 1)
    excess = counts - np.outer(shares, counts.sum(0))
    everyone, improved = np.arange(len(lists)), True
    while improved:
        improved = False
        # every exchange has a side outside of the largest list
        for i in rng.permutation(np.flatnonzero(lists != shares.argmax())):
            weight = excess[:, codes].sum(-1)              # [lists, subjects]
            mine, differing = lists[i], (codes != codes[i]).sum(1)
            # half of what the sum of squares grows by if subject i and each other one change places
            growth = weight[lists, i] - weight[mine, i] - weight[lists, everyone] + weight[mine]
            growth += 2 * differing
            growth[(stratum != stratum[i]) | (lists == mine)] = np.inf
            j = int(growth.argmin())
            if growth[j] < -1e-9:
                for k, sign in ((mine, 1), (lists[j], -1)):
                    excess[k, codes[j]] += sign
                    excess[k, codes[i]] -= sign
                lists[i], lists[j] = lists[j], mine
                improved = True
