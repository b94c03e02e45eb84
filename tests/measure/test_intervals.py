"""Intervals against formulas written out, brute force and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from winnow.measure.intervals import (
    UNKNOWN,
    mean_interval,
    paired_mean,
    paired_proportions,
    paired_spearman,
    proportion_interval,
    spearman,
    spearman_interval,
)

Z = 1.959963984540054


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (8578, 10_000)])
def test_wilson_by_its_formula(k, n):
    p, z2 = k / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    assert proportion_interval(k, n) == pytest.approx((max(centre - half, 0), min(centre + half, 1)), abs=1e-12)


def test_mean_of_independent_values_has_the_t_interval():
    # Alternating signs: neighbours resemble each other less than chance, so nothing is widened.
    values = np.array([1.0, -1.2, 0.9, -0.8, 1.1, -1.0, 0.7, -1.3])
    expected = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, rel=1e-12)


def test_mean_of_resembling_neighbours_by_the_double_sum():
    rng = np.random.default_rng(0)
    values = np.convolve(rng.normal(size=204), np.ones(5), "valid")
    n, lags = 200, int(4 * 2 ** (2 / 9))
    centred = values - values.mean()
    variance = sum(
        max(0.0, 1 - abs(i - j) / (lags + 1)) * centred[i] * centred[j]
        for i, j in itertools.product(range(n), repeat=2)
    ) / (n * (n - 1))
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(variance)
    assert half > 1.5 * stats.t.ppf(0.975, n - 1) * stats.sem(values)
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-10)


def test_mean_interval_covers_where_the_plain_one_does_not():
    rng = np.random.default_rng(1)
    hits = plain = 0
    for _ in range(400):
        noise = rng.normal(size=301)
        values = noise[1:] + 0.7 * noise[:-1]  # true mean 0, lag-1 correlation 0.47
        low, high = mean_interval(values)
        hits += low <= 0 <= high
        low, high = stats.t.interval(0.95, 299, values.mean(), stats.sem(values))
        plain += low <= 0 <= high
    assert hits / 400 > 0.91 > plain / 400


def test_one_value_bounds_nothing_and_nan_stays_nan():
    assert mean_interval(np.array([3.0])) == UNKNOWN
    assert all(math.isnan(bound) for bound in mean_interval(np.array([1.0, math.nan, 2.0])))
    assert spearman_interval(0.5, 3) == UNKNOWN
    assert all(math.isnan(bound) for bound in spearman_interval(math.nan, 30))
    assert paired_proportions(0, 0, 0) == UNKNOWN
    assert proportion_interval(0, 0) == UNKNOWN


def test_spearman_interval_by_its_formula():
    rho, n = 0.8203, 1379
    half = Z * math.sqrt((1 + rho * rho / 2) / (n - 3))
    centre = 0.5 * math.log((1 + rho) / (1 - rho))
    expected = [(math.exp(2 * x) - 1) / (math.exp(2 * x) + 1) for x in (centre - half, centre + half)]
    assert spearman_interval(rho, n) == pytest.approx(expected, rel=1e-12)
    low, high = spearman_interval(1.0, 100)
    assert 0.99 < low <= high <= 1


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30))
def test_spearman_equals_scipy_with_ties(pairs):
    a, b = np.array(pairs, dtype=float).T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert math.isnan(spearman(a, b))
    else:
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def score_statistic(lost, gained, n, delta):
    """Tango's Z^2 with the constrained maximum-likelihood estimate found numerically."""

    def loss(q):
        cells = [(lost, q + delta), (gained, q), (n - lost - gained, 1 - 2 * q - delta)]
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    q = minimize_scalar(loss, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-13}).x
    return (lost - gained - n * delta) ** 2 / (n * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(12, 2, 50), (5, 5, 40), (40, 20, 160), (1, 0, 9), (90, 60, 1000)])
def test_tango_bounds_solve_the_score_equation(lost, gained, n):
    low, high = paired_proportions(lost, gained, n)
    assert low < (lost - gained) / n < high
    for bound in (low, high):
        assert score_statistic(lost, gained, n, bound) == pytest.approx(Z * Z, rel=1e-4)


def test_tango_without_any_change_keeps_a_width():
    n = 50
    assert paired_proportions(0, 0, n) == pytest.approx((-Z * Z / (n + Z * Z), Z * Z / (n + Z * Z)), rel=1e-9)


@settings(max_examples=40)
@given(st.integers(1, 200), st.data())
def test_tango_is_ordered_and_antisymmetric(n, data):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    low, high = paired_proportions(lost, gained, n)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    mirrored = paired_proportions(gained, lost, n)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.1, 0.05), (0.3, 0.1), (0.05, 0.05)])
def test_tango_covers_exactly_enumerated(p_lost, p_gained):
    n, covered = 30, 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            p = stats.multinomial.pmf([lost, gained, n - lost - gained], n, [p_lost, p_gained, 1 - p_lost - p_gained])
            if p < 1e-7:
                continue
            low, high = paired_proportions(lost, gained, n)
            covered += p * (low <= p_lost - p_gained <= high)
    assert 0.93 < covered < 0.99


def test_paired_mean_is_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(2)
    common = rng.normal(size=100) * 5
    first, second = common + rng.normal(size=100) * 0.1, common + rng.normal(size=100) * 0.1
    low, high = paired_mean(first, second)
    assert low < (first - second).mean() < high
    assert high - low < 0.1 < 2 * 1.9 * 5 / 10


def test_paired_spearman_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(3)
    gold = np.round(rng.normal(size=150), 1)  # ties
    first, second = gold + rng.normal(size=150) * 0.5, gold + rng.normal(size=150) * 0.9
    low, high = paired_spearman(gold, first, second)
    assert (low, high) == paired_spearman(gold, first, second)  # same seed, same interval

    def difference(truth, one, two):
        return stats.spearmanr(one, truth).statistic - stats.spearmanr(two, truth).statistic

    theirs = stats.bootstrap(
        (gold, first, second), difference, paired=True, vectorized=False, n_resamples=600, method="percentile"
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.025)
    assert low < difference(gold, first, second) < high


def test_paired_spearman_of_equal_predictions_is_zero():
    gold = np.arange(20.0)
    predictions = gold[::-1] ** 2
    assert paired_spearman(gold, predictions, predictions) == (0.0, 0.0)
    assert paired_spearman(gold[:3], gold[:3], gold[:3]) == UNKNOWN
    assert all(math.isnan(b) for b in paired_spearman(gold, np.full(20, math.nan), predictions))
