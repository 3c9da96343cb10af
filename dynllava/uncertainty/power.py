"""What a paired comparison can find: power, smallest drop, and the samples a margin needs.

A design says how often clusters hold a differing answer and how much such a cluster weighs.
Small counts are summed exactly over how many clusters lose and win; large ones are normal.  A
test inside a family is planned at the level that Holm's first step leaves it, alpha / k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from . import exact_bounds, skewness
from .clustered import Sums
from .paired import MIN_CLUSTERS, MIN_DIFFERING

_EXACT = 150
"""Up to this expected number of clusters with a differing answer, counts are summed exactly."""


@dataclass(frozen=True)
class Design:
    """A paired comparison before it is made.

    Attributes
    ----------
    clusters : int
        Independent clusters.
    per_cluster : float
        Samples in a mean cluster.
    differing : float
        Share of clusters that effectively hold a differing answer without a true difference.
    weight : float
        Summed difference of such a cluster, in the score's unit: 1 for independent 0/1 scores,
        up to ``per_cluster`` where a cluster's answers change together.
    effect : float
        Design effect: how much clusters inflate the variance of the differences.
    spread : float
        Clusters with a differing answer for each effective one (1 where all weigh the same).
    bounded : bool
        Whether scores lie from 0 to 1; else there is no exact bound for few differing clusters.
    """

    clusters: int
    per_cluster: float = 1.0
    differing: float = 0.0
    weight: float = 1.0
    effect: float = 1.0
    spread: float = 1.0
    bounded: bool = True

    @property
    def samples(self) -> float:
        """Samples over all clusters."""
        return self.clusters * self.per_cluster

    def variance(self, drop: float) -> float:
        """Return the variance of the summed difference under a true ``drop``."""
        losing, winning = self.under_drop(drop)
        both = losing + winning
        return self.clusters * self.weight**2 * max(both - (losing - winning) ** 2, 0.0)

    def smallest(self, power_at: Callable[[float], float], power: float) -> float | None:
        """Return the smallest drop at which ``power_at`` reaches ``power``, None if at none."""
        low, high = 0.0, self.weight / self.per_cluster
        if self.bounded:
            high = min(high, 1.0)
        if power_at(high) < power:
            return None
        while high - low > 2e-3 * high:
            middle = (low + high) / 2
            if power_at(middle) >= power:
                high = middle
            else:
                low = middle
        return high

    def with_clusters(self, clusters: int) -> Design:
        """Return the same design with another number of clusters."""
        return replace(self, clusters=clusters)

    def under_drop(self, drop: float) -> tuple[float, float]:
        """Return the share of clusters that effectively lose and win under a true ``drop``.

        The drop's losses come on top of the present changes and cluster as they do.
        """
        net = drop * self.per_cluster / self.weight
        # Mean square of a cluster's sum: its variance, and the square of its shifted mean.
        shift = drop**2 * self.per_cluster * (self.per_cluster - self.effect)
        both = self.differing + net * self.effect / self.weight + shift / self.weight**2
        losing = min(1.0, max((both + net) / 2, net))
        return losing, min(max(both - losing, 0.0), 1.0 - losing)


def observed_design(sums: Sums, design_effect: float = 1.0, *, centred: bool = True) -> Design:
    """Return the design of a comparison that was made.

    Parameters
    ----------
    sums : Sums
    centred : bool
        Whether the present mean difference is a drop to be found, and so no noise (False: what
        differs now is what would differ between equals too, which plans more samples).
    design_effect : float
        Stands in for the weight where no cluster holds a differing answer: the design effect of
        the baseline's scores, to which that of rare losses is hardly larger.
    """
    per_cluster = sums.samples / sums.clusters
    squares = np.square(sums.totals)
    if not squares.any():
        return Design(sums.clusters, per_cluster, 0.0, design_effect, design_effect)
    found = _matched(
        sums.clusters, per_cluster, float(squares.mean()), float(np.square(squares).mean())
    )
    effect = float(squares.sum()) / sums.square
    lost = abs(sums.difference) * per_cluster * effect / found.weight**2 if centred else 0.0
    return replace(
        found,
        differing=max(0.0, found.differing - lost),
        effect=effect,
        spread=sums.differing / (sums.clusters * found.differing),
    )


def binary_design(
    clusters: int, discordance: float, per_cluster: float = 1.0, icc: float = 0.0
) -> Design:
    """Return the design of 0/1 scores with intra-cluster correlation ``icc`` of the differences.

    The number of differing answers in a cluster is taken as beta-binomial, their direction as
    common to the cluster as far as ``icc`` says.
    """
    from scipy import stats

    if not discordance or per_cluster <= 1:
        effect = 1 + (max(per_cluster, 1) - 1) * icc
        return Design(clusters, per_cluster, discordance, effect, effect)
    size = max(2, round(per_cluster))
    counts = np.arange(size + 1)
    if icc == 0:
        chances = stats.binom.pmf(counts, size, discordance)
    elif icc == 1:
        chances = np.zeros(size + 1)
        chances[0], chances[-1] = 1 - discordance, discordance
    else:
        a = 1 / icc - 1
        chances = stats.betabinom.pmf(counts, size, a * discordance, a * (1 - discordance))
    # Given how many differ, their signs: two-sided Polya urn of the same correlation.
    second = fourth = 0.0
    for count, chance in zip(counts[1:].tolist(), chances[1:].tolist(), strict=True):
        wins = np.arange(count + 1)
        if icc in (0, 1) or count == 1:
            share = stats.binom.pmf(wins, count, 0.5) if icc != 1 else (wins % count == 0) / 2
        else:
            b = (1 / icc - 1) * discordance / 2
            share = stats.betabinom.pmf(wins, count, b, b)
        sums = (2.0 * wins - count) ** 2
        second += chance * float((share * sums).sum())
        fourth += chance * float((share * sums**2).sum())
    found = _matched(clusters, per_cluster, second * per_cluster / size, fourth)
    return replace(
        found,
        effect=second / (discordance * size),
        spread=(1 - float(chances[0])) / found.differing,
    )


def _matched(clusters: int, per_cluster: float, second: float, fourth: float) -> Design:
    """Return the design of clusters of one weight with these mean powers of the cluster sums.

    As many clusters of equal weight as have the variance and the fourth moment of the real,
    unequal ones: those that count effectively.
    """
    weight = math.sqrt(fourth / second)
    return Design(clusters, per_cluster, second / weight**2, weight)


def detection_power(design: Design, drop: float, alpha: float, margin: float = 0.0) -> float:
    """Return the probability that a true ``drop`` gives p_worse <= alpha at ``margin``."""
    if design.clusters < MIN_CLUSTERS or not 0 < alpha < 1:
        return 0.0
    losing, winning = design.under_drop(drop)
    if margin == 0:
        return _flip_power(design.clusters, losing, winning, alpha)
    if design.clusters * (losing + winning) > _EXACT:
        return _normal_power(design, drop - margin, losing, winning, alpha)
    return _counted_power(design, losing, winning, alpha, -margin, worse=True)


def decision_power(design: Design, margin: float, alpha: float) -> float:
    """Return the probability of p_not_inferior <= alpha at ``margin`` when nothing changed."""
    if design.clusters < MIN_CLUSTERS or margin <= 0:
        return 0.0
    half = design.differing / 2
    if design.clusters * design.differing > _EXACT:
        return _normal_power(design, margin, half, half, alpha)
    return _counted_power(design, half, half, alpha, -margin, worse=False)


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
    design: Design, margin: float, alpha: float, power: float = 0.8, largest: int = 10**8
) -> int | None:
    """Return how many clusters like ``design``'s decide "not worse by more than margin".

    The smallest number with :func:`decision_power` >= ``power``; None above ``largest``.
    """
    low, high = MIN_CLUSTERS - 1, 2 * MIN_CLUSTERS
    while decision_power(design.with_clusters(high), margin, alpha) < power:
        low, high = high, 2 * high
        if high > largest:
            return None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        if decision_power(design.with_clusters(middle), margin, alpha) >= power:
            high = middle
        else:
            low = middle
    return high


def _flip_power(clusters: int, losing: float, winning: float, alpha: float) -> float:
    """Return the power of the sign test of the clusters that differ, mid-p, exactly."""
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


def _normal_power(
    design: Design, distance: float, losing: float, winning: float, alpha: float
) -> float:
    """Return the power of the t of clusters, true mean ``distance`` away from the hypothesis."""
    from scipy import stats

    both = losing + winning
    spread = design.weight * math.sqrt(max(both - (losing - winning) ** 2, 0.0) * design.clusters)
    stderr = spread / design.samples
    if stderr == 0:
        return float(distance > 0)
    freedom = max(design.clusters * both - 1, 1.0)
    return float(stats.norm.cdf(distance / stderr - stats.t.isf(alpha, freedom)))


def _counted_power(
    design: Design, losing: float, winning: float, alpha: float, against: float, worse: bool
) -> float:
    """Return the power of the very test, summed over how many clusters lose and win."""
    from scipy import stats

    lost = _likely(design.clusters, losing)
    won = _likely(design.clusters, winning)
    total = 0.0
    chance_lost = stats.binom.pmf(lost, design.clusters, losing)
    chance_won = stats.binom.pmf(won, design.clusters, winning)
    # A loss more never helps "not inferior" and a win more never hurts: a staircase, so one
    # bisection over the losses for each number of wins.
    for number, chance in zip(won.tolist(), chance_won.tolist(), strict=True):
        low, high = -1, len(lost)
        while high - low > 1:
            middle = (low + high) // 2
            p = _p_value(design, int(lost[middle]), number, against, worse)
            if (p <= alpha) == worse:
                high = middle
            else:
                low = middle
        total += chance * float(chance_lost[high:].sum() if worse else chance_lost[:high].sum())
    return total


def _likely(clusters: int, share: float) -> np.ndarray:
    from scipy import stats

    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], clusters, share)
    return np.arange(int(low), int(high) + 1)


def _p_value(design: Design, lost: int, won: int, against: float, worse: bool) -> float:
    """Return the p value of a comparison in which so many clusters lost and won."""
    if lost + won > design.clusters:
        return 0.0 if worse == (lost > won) else 1.0
    totals = np.zeros(design.clusters)
    totals[:lost] = -design.weight
    totals[lost : lost + won] = design.weight
    sizes = np.full(design.clusters, design.per_cluster)
    if (lost + won) * design.spread >= MIN_DIFFERING:
        below, above = skewness.tails(skewness.moments(totals, sizes), against)
        return float(below if worse else above)
    if not design.bounded:
        return 1.0
    if worse:
        return exact_bounds.at_most(-totals, sizes, -against, 1.0)
    return exact_bounds.at_most(totals, sizes, against, 1.0)
