"""What a paired comparison can find: power, smallest drop, and the samples a margin needs.

Power is that of the very test which is applied: comparisons are drawn from a
:class:`~.design.Design` and tested, all at once; for independent answers it is summed exactly.
The draws are the same in every call, so that a design has one answer.  A test inside a family is
planned at the level that Holm's first step leaves it, alpha / k.
"""

from __future__ import annotations

import numpy as np

from . import exact_bounds, skewness
from .design import Design, Law
from .paired import MIN_CLUSTERS, MIN_DIFFERING

_DRAWS = 2000
"""Comparisons a power is counted in: a standard error of 0.009 at 0.8."""

_EDGEWORTH = 40
"""From so many effective clusters on, sign flips are normal with a corrected kurtosis."""

_COUNTED = 2000
"""Sign flips are counted up to so large a total, in steps."""

_BOUNDED = 300
"""Exact bounds take a millisecond each: so many different draws are bounded."""


def detection_power(design: Design, drop: float, alpha: float, margin: float = 0.0) -> float:
    """Return the probability that a true ``drop`` gives p_worse <= alpha at ``margin``."""
    if design.clusters < MIN_CLUSTERS or not 0 < alpha < 1:
        return 0.0
    if margin > 0:
        return _margin_power(design, drop, alpha, margin, worse=True)
    if design.independent:
        return _flip_power(design.clusters, *design.shares(drop), alpha)
    law = design.law(drop)
    return float((_flips_p(law, _drawn(design, law)) <= alpha).mean())


def decision_power(design: Design, margin: float, alpha: float, drop: float = 0.0) -> float:
    """Return the probability of p_not_inferior <= alpha at ``margin`` under a true ``drop``."""
    if design.clusters < MIN_CLUSTERS or margin <= 0:
        return 0.0
    return _margin_power(design, drop, alpha, margin, worse=False)


def smallest_drop(
    design: Design, alpha: float, power: float = 0.8, margin: float = 0.0
) -> float | None:
    """Return the smallest true drop found with probability ``power``, None if none is."""
    return design.smallest(lambda drop: detection_power(design, drop, alpha, margin), power)


def either_power(first: float, second: float, correlation: float) -> float:
    """Return the probability that either of two tests rejects.

    Their statistics are taken as jointly normal with ``correlation``; 1 where the second adds no
    noise of its own.
    """
    from scipy import stats

    low, high = sorted((min(max(first, 0.0), 1.0), min(max(second, 0.0), 1.0)))
    if low <= 0 or high >= 1 or correlation >= 1 - 1e-9:
        return high
    z = stats.norm.ppf([1 - low, 1 - high])
    cov = [[1, correlation], [correlation, 1]]
    return 1 - float(stats.multivariate_normal(cov=cov).cdf(z))


def plan_clusters(
    design: Design,
    margin: float,
    alpha: float,
    power: float = 0.8,
    drop: float = 0.0,
    largest: int = 10**8,
) -> int | None:
    """Return how many clusters like ``design``'s decide "not worse by more than margin".

    The smallest number with :func:`decision_power` >= ``power``; under a true ``drop`` of the
    margin or more that with :func:`detection_power` of "worse".  None above ``largest``.
    """

    def reached(clusters: int) -> bool:
        wider = design.with_clusters(clusters)
        if drop < margin:
            return decision_power(wider, margin, alpha, drop) >= power
        return detection_power(wider, drop, alpha, margin) >= power

    low, high = MIN_CLUSTERS - 1, 2 * MIN_CLUSTERS
    while not reached(high):
        low, high = high, 2 * high
        if high > largest:
            return None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high


def _drawn(design: Design, law: Law) -> np.ndarray:
    """Return how many clusters have each value, [draws, values], the same in every call."""
    return np.random.default_rng(0).multinomial(design.clusters, law.chances, _DRAWS)


def _flip_power(clusters: int, losing: float, winning: float, alpha: float) -> float:
    """Return the power of McNemar's mid-p test, exactly."""
    from scipy import stats

    both = min(1.0, losing + winning)
    if both == 0:
        return 0.0
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], clusters, both)
    counts = np.arange(int(low), int(high) + 1)
    need = _sign_limit(counts, alpha)
    found = stats.binom.sf(need - 1, counts, losing / both)
    return float((stats.binom.pmf(counts, clusters, both) * found).sum())


def _sign_limit(counts: np.ndarray, alpha: float) -> np.ndarray:
    """Return for each number of differing clusters how many must lose for mid-p <= alpha."""
    from scipy import stats

    need = stats.binom.isf(alpha, counts, 0.5)
    # isf solves P(X > k) <= alpha; the mid-p adds half of P(X = k), so k or k + 1.
    middle = stats.binom.sf(need, counts, 0.5) + stats.binom.pmf(need, counts, 0.5) / 2
    return np.where(middle <= alpha, need, need + 1)


def _flips_p(law: Law, counts: np.ndarray) -> np.ndarray:
    """Return p of "worse" by sign flips for outcomes [n, V]: how many clusters have each value."""
    from scipy import stats

    values = law.values
    sizes = np.unique(np.abs(values[values != 0]))
    flipped = np.stack([counts[:, np.abs(values) == size].sum(1) for size in sizes], axis=1)
    total = counts @ values
    square, fourth = flipped @ sizes.astype(float) ** 2, flipped @ sizes.astype(float) ** 4
    p = np.ones(len(counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.where(square > 0, square**2 / fourth, 0.0)
    many = (effective >= _EDGEWORTH) | (flipped @ sizes > _COUNTED)
    span = np.gcd.reduce(sizes) if law.whole else 0
    z = (total[many] + span) / np.sqrt(square[many])
    correction = -2 / effective[many] / 24 * (z**3 - 3 * z)
    p[many] = stats.norm.cdf(z) - stats.norm.pdf(z) * correction
    few = ~many & (square > 0)
    if few.any():
        p[few] = _counted_flips(sizes, flipped[few], total[few], 1.0 if law.whole else 0.5)
    return p


def _counted_flips(
    sizes: np.ndarray, counts: np.ndarray, total: np.ndarray, at: float
) -> np.ndarray:
    """Return P(T* < total) + ``at`` x P(T* = total), T* the total under random signs.

    (T* + reach) / 2 is a whole number from 0 to reach: its chances by a discrete Fourier sum.
    """
    reach = counts @ sizes
    points = int(reach.max()) + 1
    cosines = np.cos(np.pi * np.outer(sizes, np.arange(points)) / points)
    logs = np.log(np.maximum(np.abs(cosines), 1e-300))
    real = np.exp(counts @ logs) * (1 - 2 * ((counts @ (cosines < 0)) % 2))
    turn = np.exp(1j * np.pi * np.outer(reach, np.arange(points)) / points)
    mass = np.fft.fft(real * turn, axis=1).real / points
    place = ((total + reach) // 2).astype(int)
    rows = np.arange(len(counts))
    return np.cumsum(mass, axis=1)[rows, place] - (1 - at) * mass[rows, place]


def _margin_power(design: Design, drop: float, alpha: float, margin: float, worse: bool) -> float:
    """Return the power of the test at a margin."""
    law = design.law(drop)
    outcomes = _drawn(design, law)
    found = _moments_p(design, law, outcomes, margin, worse) <= alpha
    few = outcomes[:, law.values != 0].sum(1) < MIN_DIFFERING
    share = float((found & ~few).mean())
    if not few.any() or not design.bounded:
        return share
    taken, repeats = np.unique(outcomes[few], axis=0, return_counts=True)
    if len(taken) > _BOUNDED:
        # The first draws stand for all of theirs.
        taken, repeats = np.unique(outcomes[few][:_BOUNDED], axis=0, return_counts=True)
    passed = _bounded_p(design, law, taken, margin, worse) <= alpha
    return share + float(few.mean()) * float(repeats[passed].sum() / repeats.sum())


def _bounded_p(
    design: Design, law: Law, outcomes: np.ndarray, margin: float, worse: bool
) -> np.ndarray:
    """Return p of the exact bound for outcomes [n, V] of clusters of the mean size."""
    sizes = np.full(design.clusters, design.per_cluster)
    sign = -1 if worse else 1
    totals = [sign * law.step * np.repeat(law.values, row) for row in outcomes]
    return np.array([exact_bounds.at_most(row, sizes, -sign * margin, 1.0) for row in totals])


def _moments_p(
    design: Design, law: Law, outcomes: np.ndarray, margin: float, worse: bool
) -> np.ndarray:
    """Return p of the skewness-corrected t for outcomes [n, V] of clusters of the mean size."""
    sums = law.values * law.step
    mean = outcomes @ sums / design.clusters
    residuals = sums[None, :] - mean[:, None]
    second, third, fourth = ((outcomes * residuals**power).sum(1) for power in (2, 3, 4))
    variance = second / (design.clusters - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = third / design.clusters / variance**1.5 / np.sqrt(design.clusters)
        effective = second**2 / fourth
    found = skewness.Moments(
        mean / design.per_cluster,
        np.sqrt(variance / design.clusters) / design.per_cluster,
        np.nan_to_num(skew, nan=0.0, posinf=0.0, neginf=0.0),
        np.maximum(np.nan_to_num(effective, nan=0.0) - 1, 1.0),
    )
    below, above = skewness.tails(found, -margin)
    return below if worse else above
