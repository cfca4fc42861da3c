"""Scores of ensembles against independent computations: integrals, closed forms, simulation."""
import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from evaluation.samples import (
    central_interval,
    covered,
    energy_score,
    expected_coverage,
    fair_crps,
    pit,
    score_ensembles,
    uniform_p,
    wilson,
    with_errors,
)


def test_the_fair_crps_is_the_integral_over_the_ecdf_less_what_few_samples_cost():
    """CRPS of the empirical distribution: integral of (F - 1[y <= x])^2 dx (Matheson and Winkler 1976)."""
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(1.3, 0.2, (5, 7)), rng.normal(1.2, 0.3, 5)
    for own, y, found in zip(samples, truth, fair_crps(samples, truth), strict=True):
        grid = np.sort([*own, y])
        middle = (grid[1:] + grid[:-1]) / 2
        step = (own[None] <= middle[:, None]).mean(1) - (y <= middle)
        integral = (step ** 2 * np.diff(grid)).sum()
        spread = np.mean([abs(a - b) for a, b in itertools.permutations(own, 2)])
        assert found == pytest.approx(integral + spread / 2 * (6 / 7 - 1))   # m - 1 over m, to 1


def test_the_fair_crps_of_samples_of_any_number_is_that_of_their_gaussian_on_average():
    rng, mean, std, y = np.random.default_rng(1), 1.2, 0.25, 1.45
    z = (y - mean) / std
    normal = scipy.stats.norm
    closed = std * (z * (2 * normal.cdf(z) - 1) + 2 * normal.pdf(z) - 1 / np.sqrt(np.pi))
    for m in (2, 5, 40):
        found = fair_crps(rng.normal(mean, std, (40_000, m)), np.full(40_000, y))
        assert found.mean() == pytest.approx(closed, abs=4 * found.std() / 200)
    integral, _ = scipy.integrate.quad(lambda x: (normal.cdf(x, mean, std) - (x >= y)) ** 2, -1, 4,
                                       points=[y])
    assert closed == pytest.approx(integral, abs=1e-6)


def test_one_sample_is_scored_by_its_absolute_error():
    np.testing.assert_allclose(fair_crps(np.array([[1.0], [2.0]]), np.array([1.5, 1.2])), [0.5, 0.8])


def test_the_energy_score_is_that_of_all_pairs_and_of_one_region_the_crps():
    rng = np.random.default_rng(2)
    samples, truth = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 4))
    for own, y, found in zip(samples, truth, energy_score(samples, truth), strict=True):
        to_truth = np.mean([np.sqrt(((x - y) ** 2).sum()) for x in own])
        pairs = [np.sqrt(((a - b) ** 2).sum()) for a, b in itertools.permutations(own, 2)]
        assert found == pytest.approx(to_truth - np.mean(pairs) / 2)
    np.testing.assert_allclose(energy_score(samples[..., :1], truth[:, :1]),
                               fair_crps(samples[..., 0], truth[:, 0]))


def test_pit_is_the_rank_of_the_truth_by_hand():
    samples = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 2.0, 3.0], [1.0, np.nan, 3.0]])
    found = pit(samples, np.array([0.5, 2.5, 2.0, 2.0]), np.array([0.0, 0.5, 0.5, 0.5]))
    np.testing.assert_allclose(found[:3], [0, 2.5 / 4, 1.5 / 4])
    assert np.isnan(found[3])


@pytest.mark.parametrize("m", [3, 20])
def test_of_calibrated_samples_pit_is_uniform_and_intervals_cover_as_often_as_they_say(m):
    rng = np.random.default_rng(3)
    centre = rng.normal(1.2, 0.2, 20_000)
    samples, truth = rng.normal(centre[:, None], 0.1, (20_000, m)), rng.normal(centre, 0.1)
    places = pit(samples, truth, rng.random(20_000))
    assert uniform_p(places) > 0.01
    assert np.histogram(places, 10, (0, 1))[0] / 20_000 == pytest.approx(np.full(10, 0.1), abs=0.01)
    if m == 20:
        for level in (50, 80, 90):
            assert covered(samples, truth, level).mean() == pytest.approx(level / 100, abs=0.012)
    else:                                                  # smallest to largest of three: 2 of 4 gaps
        assert covered(samples, truth, 90).mean() == pytest.approx(0.5, abs=0.012)
    too_narrow = centre[:, None] + 0.5 * (samples - centre[:, None])
    assert uniform_p(pit(too_narrow, truth, rng.random(20_000))) < 1e-6


def test_ends_of_an_interval_lie_at_the_places_of_weibull():
    samples = np.arange(1.0, 20.0)[None]                   # 19 samples: place p 20 of the ordered ones
    low, high = central_interval(samples, 80)
    assert (low[0], high[0]) == (pytest.approx(2), pytest.approx(18))
    assert covered(samples, np.array([2.0]), 80) == 1 and covered(samples, np.array([1.99]), 80) == 0
    assert np.isnan(covered(samples, np.array([np.nan]), 80))


def test_the_expected_coverage_is_that_of_intervals_from_lists_of_that_length():
    """By simulation: a list of N errors, its interval, and how many of n new ones it covers."""
    rng, n, of_list, level = np.random.default_rng(4), 60, 19, 80
    ordered = np.sort(rng.random((20_000, of_list)))       # the errors' places in their distribution
    share = ordered[:, 17] - ordered[:, 1]                 # between the 2nd and 18th: 16 of 20 gaps
    coverages = rng.binomial(n, share) / n
    low, high = np.quantile(coverages, [0.025, 0.975])
    assert expected_coverage(level, n, of_list) == pytest.approx((low, high), abs=0.017)
    wide = expected_coverage(level, 200, 10)
    of_three = scipy.stats.betabinom(60, 2, 2)             # between the ends of three values: Beta(2, 2)
    assert expected_coverage(90, 60, 3) == pytest.approx(of_three.ppf([0.025, 0.975]) / 60)
    narrow = expected_coverage(level, 200, 100_000)
    binomial = scipy.stats.binom(200, 0.8).interval(0.95)
    assert narrow == pytest.approx(np.array(binomial) / 200, abs=0.006)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_share_has_the_interval_of_wilson():
    p, n, z = 0.8, 20, scipy.stats.norm.ppf(0.975)         # Wilson 1927, by hand
    centre = (p + z ** 2 / (2 * n)) / (1 + z ** 2 / n)
    half = z / (1 + z ** 2 / n) * np.sqrt(p * (1 - p) / n + z ** 2 / (4 * n ** 2))
    assert wilson(16, 20) == (pytest.approx(centre - half), pytest.approx(centre + half))
    assert np.isnan(wilson(0, 0)).all()


def test_errors_of_another_list_become_samples():
    found = with_errors(np.array([1.0, 2.0]), np.array([-0.1, np.nan, 0.3]))
    np.testing.assert_allclose(found, [[0.9, 1.3], [1.9, 2.3]])


def test_the_row_of_a_scan_has_every_score():
    rng = np.random.default_rng(5)
    names = ("SUVR", "SUVR_a", "SUVR_b")
    samples, truth = ({name: rng.normal(1.2, 0.2, shape) for name in names} for shape in ((4, 6), 4))
    table = score_ensembles(samples, truth, np.full(4, 0.5))
    suvr = samples["SUVR"]
    np.testing.assert_allclose(table["CRPS"], fair_crps(suvr, truth["SUVR"]))
    np.testing.assert_allclose(table[["SUVR", "SUVR_sd"]].T, [suvr.mean(1), suvr.std(1, ddof=1)])
    of_regions = [fair_crps(samples[name], truth[name]) for name in names[1:]]
    np.testing.assert_allclose(table["CRPS_regions"], np.mean(of_regions, axis=0))
    both = np.stack([samples["SUVR_a"], samples["SUVR_b"]], axis=-1)
    real = np.stack([truth["SUVR_a"], truth["SUVR_b"]], axis=-1)
    np.testing.assert_allclose(table["energy"], energy_score(both, real))
    assert set(table) == {"SUVR_real", "SUVR", "SUVR_sd", "CRPS", "PIT", "covered_50", "covered_80",
                          "covered_90", "CRPS_regions", "covered_80_regions", "energy"}
    alone = score_ensembles({"SUVR": suvr[:, :1]}, {"SUVR": truth["SUVR"]}, np.full(4, 0.5))
    assert (alone["SUVR_sd"] == 0).all() and "energy" not in alone
