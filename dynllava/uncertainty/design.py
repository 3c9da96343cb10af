"""A paired comparison before it is made: how cluster sums are distributed, with and without a drop.

Answers are lost, won or the same; in a cluster they are Dirichlet-multinomial, so that two
differences correlate as the present ones do.  Without a true difference as many are won as lost;
a true drop's losses come on top.  Where nearly every score differs (a perplexity, a similarity of
captions) a drop lowers all of them instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .clustered import Sums

_WHOLE, _GRID = 128, 32
"""Whole cluster sums are kept as they are up to the first; larger or real ones are laid on a grid
of so many steps either way."""

_GROUPS = 12
"""At most so many different cluster sizes; more are grouped."""

_FIRM = 10
"""From so many clusters with a difference on, these say how differences cluster."""

_DENSE = 0.5
"""Where more than this share of scores differs, by unequal amounts, a drop lowers all of them."""


@dataclass(frozen=True)
class Law:
    """Distribution of one cluster's summed difference.

    Attributes
    ----------
    values : array
        [V] whole, ascending, in steps.
    chances : array
        [V] positive, of sum 1.
    step : float
        In the score's unit.
    whole : bool
        Whether the steps are those of the scores, not of a grid laid over other numbers.
    """

    values: np.ndarray
    chances: np.ndarray
    step: float
    whole: bool

    @property
    def variance(self) -> float:
        """In the score's unit, squared."""
        mean = self.values @ self.chances
        return float((self.values - mean) ** 2 @ self.chances) * self.step**2


@dataclass(frozen=True)
class Group:
    """Clusters of about one size.

    Attributes
    ----------
    share : float
        Share of all clusters.
    size : int
        Samples in each.
    sums : array or None
        [n] absolute summed differences that were seen, where a drop lowers all scores.
    """

    share: float
    size: int
    sums: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Design:
    """A paired comparison before it is made.

    Attributes
    ----------
    clusters : int
        Independent clusters.
    groups : tuple of Group
        What they hold; the shares sum to 1.
    discordance : float
        Share of samples whose score differs though nothing changed.
    icc : float
        Correlation of two differences in a cluster.
    loss : float
        What one lost answer costs, in the score's unit: 1 for 0/1 scores.
    bounded : bool
        Whether scores lie from 0 to 1; else there is no exact bound for few differing clusters.
    """

    clusters: int
    groups: tuple[Group, ...]
    discordance: float = 0.0
    icc: float = 0.0
    loss: float = 1.0
    bounded: bool = True

    @cached_property
    def per_cluster(self) -> float:
        """Samples in a mean cluster."""
        return sum(group.share * group.size for group in self.groups)

    @property
    def samples(self) -> float:
        """Samples over all clusters."""
        return self.clusters * self.per_cluster

    @property
    def independent(self) -> bool:
        """Whether every cluster holds one sample that is won, lost or the same."""
        return all(group.size == 1 and group.sums is None for group in self.groups)

    def shares(self, drop: float) -> tuple[float, float]:
        """Return the shares of samples that are lost and won under a true ``drop``."""
        net = min(drop / self.loss, 1.0)
        won = min(self.discordance / 2, (1 - net) / 2)
        return won + net, won

    def law(self, drop: float) -> Law:
        """Return the distribution of a cluster's summed difference under a true ``drop`` >= 0."""
        values: list[np.ndarray] = []
        masses = []
        for group in self.groups:
            if group.sums is None:
                mass = _lost_and_won(group.size, *self.shares(drop), self.icc)
                values.append(np.arange(-group.size, group.size + 1))
            else:
                both = np.concatenate([group.sums, -group.sums]) - drop * group.size
                mass = np.full(len(both), 1 / len(both))
                values.append(both / self.loss)
            masses.append(group.share * mass)
        return _on_grid(np.concatenate(values), np.concatenate(masses), self.loss)

    def variance(self, drop: float) -> float:
        """Return the variance of the summed difference under a true ``drop``."""
        return self.clusters * self.law(drop).variance

    def smallest(self, power_at: Callable[[float], float], power: float) -> float | None:
        """Return the smallest drop at which ``power_at`` reaches ``power``, None if at none."""
        from scipy import optimize, stats

        def above(drop: float) -> float:
            return float(stats.norm.ppf(min(max(power_at(drop), 1e-6), 1 - 1e-6)) - aim)

        aim = stats.norm.ppf(power)
        most = min(self.loss, 1.0) if self.bounded else self.loss
        if power_at(most) < power:
            return None
        low = min(most, max(3.5 * math.sqrt(self.variance(0.0)), 8 * self.loss) / self.samples)
        high = low
        while above(low) >= 0 and low > 1e-9:
            low, high = low / 2, low
        while high < most and above(high) < 0:
            low, high = high, min(most, 1.5 * high)
        return float(optimize.brentq(above, low, high, rtol=2e-3, xtol=1e-9))

    def with_clusters(self, clusters: int) -> Design:
        """Return the same design with another number of clusters."""
        return replace(self, clusters=clusters)


def observed_design(sums: Sums, design_effect: float = 1.0) -> Design:
    """Return the design of a comparison that was made; what differs is taken as chance.

    Parameters
    ----------
    sums : Sums
    design_effect : float
        Of the baseline's scores.  It says how losses cluster where too few answers differ to show
        it themselves.
    """
    loss = 1.0
    if sums.discordance:
        loss = math.sqrt(sums.square / (sums.discordance * sums.samples))
    equal = np.allclose(sums.totals / loss, np.rint(sums.totals / loss))
    dense = sums.discordance > _DENSE and not equal
    order = np.argsort(sums.sizes, kind="stable")
    kinds = np.unique(sums.sizes)
    if len(kinds) <= _GROUPS:
        parts = [np.flatnonzero(sums.sizes == kind) for kind in kinds]
    else:
        parts = np.array_split(order, _GROUPS)
    groups: list[Group] = []
    for part in parts:
        share, size = len(part) / sums.clusters, float(sums.sizes[part].mean())
        if dense:
            groups.append(Group(share, round(size), np.abs(sums.totals[part])))
        else:
            groups += _between(share, size)
    icc = _observed_icc(sums, design_effect)
    return Design(sums.clusters, tuple(groups), sums.discordance, icc, loss)


def binary_design(
    clusters: int, discordance: float, per_cluster: float = 1.0, icc: float = 0.0
) -> Design:
    """Return the design of 0/1 scores with intra-cluster correlation ``icc`` of the differences."""
    return Design(clusters, tuple(_between(1.0, max(per_cluster, 1.0))), discordance, icc)


def _between(share: float, size: float) -> list[Group]:
    """Return clusters of a mean ``size``: of the whole numbers below and above it."""
    low = math.floor(size)
    more = size - low
    groups = [Group(share * (1 - more), low), Group(share * more, low + 1)]
    return [group for group in groups if group.share > 1e-12]


def _observed_icc(sums: Sums, design_effect: float) -> float:
    """Return the correlation of two differences in a cluster, from the spread of cluster sums.

    Sums of squares over sizes: large clusters do not outweigh the rest (as in the analysis of
    variance).  The spread of few clusters is known badly, and a drop planned from too small a one
    is missed more often than one from too large a one is found: 1 / (effective clusters) on top
    makes the power right on average.
    """
    pairs = float((sums.sizes * (sums.sizes - 1)).sum())
    if not pairs:
        return 0.0
    known = min(max((design_effect - 1) * sums.samples / pairs, 0.0), 1.0)
    if not sums.square:
        return known
    spread = np.square(sums.totals) / sums.sizes
    found = float(spread.sum()) * sums.samples / sums.square
    if found:
        found *= 1 + float(np.square(spread).sum() / spread.sum() ** 2)
    own = min(max((found - sums.clusters) / (sums.samples - sums.clusters), 0.0), 1.0)
    weight = min(1.0, sums.differing / _FIRM)
    return weight * own + (1 - weight) * known


def _lost_and_won(size: int, lost: float, won: float, icc: float) -> np.ndarray:
    """Return the chances [2 size + 1] of a sum of -size .. size of a Dirichlet-multinomial."""
    counts = np.arange(size + 1)
    differing = _betabinomial(counts, np.array(size), lost + won, icc)
    among = lost / (lost + won) if lost + won else 0.0
    # Given how many differ, the losses are beta-binomial again, with this correlation.
    inner = icc / (icc + (1 - icc) * (lost + won)) if icc else 0.0
    losses = _betabinomial(counts[None, :], counts[:, None], among, inner)
    mass = np.zeros(2 * size + 1)
    places = counts[:, None] - 2 * counts[None, :] + size
    valid = counts[None, :] <= counts[:, None]
    np.add.at(mass, places[valid], (differing[:, None] * losses)[valid])
    return mass


def _betabinomial(counts: np.ndarray, size: np.ndarray, rate: float, icc: float) -> np.ndarray:
    """Return the chances of ``counts`` events in ``size``, two correlated by ``icc``."""
    from scipy import stats

    if rate <= 0 or rate >= 1 or icc >= 1:
        rate = min(max(rate, 0.0), 1.0)
        return (1 - rate) * (counts == 0) + rate * (counts == size)
    if icc < 1e-6:
        return np.asarray(stats.binom.pmf(counts, size, rate))
    a = 1 / icc - 1
    found = stats.betabinom.pmf(counts, size, a * rate, a * (1 - rate))
    return np.where(size == 0, counts == 0, np.nan_to_num(found))


def _on_grid(values: np.ndarray, masses: np.ndarray, unit: float) -> Law:
    """Return the law of real ``values`` (in ``unit``), split between neighbours on a grid."""
    reach = float(np.abs(values).max())
    whole = bool(np.array_equal(values, np.rint(values))) and reach <= _WHOLE
    most = _WHOLE if whole else _GRID
    step = 1.0 if whole else reach / _GRID
    places = values / step + most
    low = np.clip(np.floor(places + 1e-9).astype(int), 0, 2 * most)
    rest = np.clip(places - low, 0.0, 1.0)
    mass = np.zeros(2 * most + 2)
    np.add.at(mass, low, masses * (1 - rest))
    np.add.at(mass, low + 1, masses * rest)
    used = np.flatnonzero(mass > 0)
    return Law(used - most, mass[used] / mass[used].sum(), step * unit, whole)
