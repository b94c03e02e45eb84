"""95% intervals of a figure, and paired ones of the difference between two models on the same examples."""

from __future__ import annotations

import math

import numpy as np

LEVEL = 0.95
RESAMPLES = 2_000
Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)  # too few examples for any bound


def _z() -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + LEVEL / 2))


def proportion_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion (JASA 22, 1927)."""
    if n == 0:
        return UNKNOWN
    from scipy.stats import binomtest

    bounds = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(bounds.low), float(bounds.high)


def mean_interval(values: np.ndarray) -> Interval:
    """Student's t interval of the mean of ``values`` [n], widened where neighbours resemble each other.

    Values are taken in their order (segments of a text): the variance of the mean is the larger of s^2/n and the
    Newey-West estimate (Econometrica 55, 1987) with Bartlett weights over floor(4 (n/100)^(2/9)) neighbours.
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.size
    if n < 2:
        return UNKNOWN
    if not np.isfinite(values).all():
        return math.nan, math.nan
    from scipy.stats import t

    mean = float(values.mean())
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * math.sqrt(_variance_of_mean(values))
    return mean - half, mean + half


def _variance_of_mean(values: np.ndarray) -> float:
    n = values.size
    centred = values - values.mean()
    plain = robust = float(centred @ centred) / (n - 1)
    lags = min(int(4 * (n / 100) ** (2 / 9)), n - 1)
    for lag in range(1, lags + 1):
        robust += 2 * (1 - lag / (lags + 1)) * float(centred[lag:] @ centred[:-lag]) / (n - 1)
    return max(plain, robust) / n


def spearman_interval(rho: float, n: int) -> Interval:
    """Interval of a Spearman correlation: Fisher's z with the variance (1 + rho^2/2)/(n - 3) of Bonett and Wright
    (Psychometrika 65, 2000)."""
    if n < 4:
        return UNKNOWN
    if not math.isfinite(rho):
        return math.nan, math.nan
    centre = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, rho)))
    half = _z() * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(centre - half), math.tanh(centre + half)


def paired_proportions(lost: int, gained: int, n: int) -> Interval:
    """Tango's score interval of p1 - p2 for paired proportions (Statistics in Medicine 17, 1998).

    ``lost`` examples were right for the first model only, ``gained`` for the second only, out of ``n``. The interval
    keeps a width where no answer changed: +-z^2/(n + z^2).
    """
    if n == 0:
        return UNKNOWN
    z2 = _z() ** 2
    difference = (lost - gained) / n

    def excess(delta: float) -> float:
        # Score statistic squared less z^2: negative inside the interval. q is the constrained MLE of P(gained only).
        a = 2 * n
        b = -lost - gained + (2 * n - lost + gained) * delta
        c = -gained * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * q + delta * (1 - delta))
        distance = (lost - gained - n * delta) ** 2
        if variance <= 0:
            return math.inf if distance > 0 else -z2
        return distance / variance - z2

    return _boundary(excess, difference, -1.0), _boundary(excess, difference, 1.0)


def _boundary(excess, inside: float, end: float) -> float:  # type: ignore[no-untyped-def]
    """Where ``excess`` turns positive on the way from ``inside`` to ``end``; ``end`` when it never does."""
    if excess(end) <= 0:
        return end
    for _ in range(100):
        middle = (inside + end) / 2
        if excess(middle) > 0:
            end = middle
        else:
            inside = middle
    return (inside + end) / 2


def paired_mean(first: np.ndarray, second: np.ndarray) -> Interval:
    """Interval of mean(first - second), by :func:`mean_interval` of the differences."""
    return mean_interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))


def paired_spearman(truth: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    """Percentile bootstrap over examples of rho(first, truth) - rho(second, truth), 2,000 resamples.

    The method that Wilcox (British J. of Math. and Stat. Psychology 62, 2009) recommends for two correlations that
    share a variable.
    """
    columns = np.stack([np.asarray(v, dtype=np.float64) for v in (truth, first, second)])
    n = columns.shape[1]
    if n < 4:
        return UNKNOWN
    if not np.isfinite(columns).all():
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    differences = []
    chunk = max(1, min(RESAMPLES, 400_000 // n))
    for done in range(0, RESAMPLES, chunk):
        rows = rng.integers(n, size=(min(chunk, RESAMPLES - done), n))
        gold, one, two = _standardized_ranks(columns[:, rows])
        differences.append((gold * one).sum(-1) - (gold * two).sum(-1))
    drawn = np.concatenate(differences)
    # A resample of one value repeated has no correlation: it says nothing.
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size < RESAMPLES // 2:
        return UNKNOWN
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def _standardized_ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks along the last axis, centred and of length 1, so that products sum to a correlation."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ranks / np.sqrt((ranks * ranks).sum(-1, keepdims=True))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties by mean ranks; NaN where one side is constant or not finite."""
    columns = np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    if not np.isfinite(columns).all():
        return math.nan
    one, two = _standardized_ranks(columns)
    return float((one * two).sum())
