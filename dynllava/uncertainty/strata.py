"""Hardness strata that do not favour anybody: cross-fitted, not filtered by the runs compared.

"Keep the items that downsampling fails and compare the methods there" gives every method a gain,
the same method with another seed included: on the chosen items the control's score is 0 by
construction, while any other run regresses to the item's real difficulty.  Here an item's stratum
comes from runs of the control that are not compared (other seeds, or the other half of an image's
questions), so a method equal to the control shows no gain.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_CLUSTERS = 6


@dataclass(frozen=True)
class Stratum:
    """Method - control in one stratum.

    Attributes
    ----------
    low, high : float
        Bounds of the control's independent mean score: low <= score < high (the last one: <=).
    gain : float or None
        Mean of method - control; None without items.
    interval : tuple of float or None
        Cluster-robust t interval; None with fewer than :data:`MIN_CLUSTERS` clusters.
    items : float
        Items, each counted by the share of its folds that fall here.
    clusters : int
    """

    low: float
    high: float
    gain: float | None
    interval: tuple[float, float] | None
    items: float
    clusters: int


def by_runs(
    control: Sequence[Sequence[float]] | np.ndarray,
    method: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    edges: Sequence[float] = (0.5,),
    alpha: float = 0.05,
) -> list[Stratum]:
    """Stratify by independent runs of the control and compare with the run left out.

    Parameters
    ----------
    control : array
        [R, n] scores of R >= 2 independent runs (seeds) of the control in [0, 1].
    method : array
        [n] scores of the same items by a run that shares no draw with the control's.
    clusters : sequence, optional
        [n] what items share.
    edges : sequence of float
        Bounds between strata, ascending, of the mean of the other runs.
    alpha : float
        1 - level of the intervals.

    Raises
    ------
    ValueError
        With fewer than two runs of the control, or sizes that differ.
    """
    runs, scores = np.asarray(control, float), np.asarray(method, float)
    if runs.ndim != 2 or len(runs) < 2 or runs.shape[1:] != scores.shape:
        raise ValueError("two or more runs of the control on the same items are needed")
    others = (runs.sum(0) - runs) / (len(runs) - 1)
    return _strata(others, scores - runs, _numbers(clusters, len(scores)), edges, alpha)


def by_halves(
    control: Sequence[float] | np.ndarray,
    method: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    edges: Sequence[float] = (0.5,),
    alpha: float = 0.05,
    seed: int = 0,
) -> list[Stratum]:
    """Stratify each half of a cluster's items by the control's mean on the other half.

    For a control without seeds (downsampling).  Items of clusters of one take no part.  The rest as
    in :func:`by_runs`.

    Parameters
    ----------
    control, method : array
        [n] scores in [0, 1].
    clusters : sequence
        [n] what items share: an image with several questions.
    edges, alpha
        See :func:`by_runs`.
    seed : int
        Of the split.
    """
    first, second = np.asarray(control, float), np.asarray(method, float)
    index = _numbers(clusters, len(first))
    order = np.random.default_rng(seed).permutation(len(first))
    half = np.zeros(len(first), dtype=np.int64)
    seen: dict[int, int] = {}
    for item in order:
        half[item] = seen.get(int(index[item]), 0) % 2
        seen[int(index[item])] = seen.get(int(index[item]), 0) + 1
    cell = 2 * index + half
    totals = np.bincount(cell, first, minlength=2 * len(seen))
    sizes = np.bincount(cell, minlength=2 * len(seen))
    other = cell + 1 - 2 * half
    usable = sizes[other] > 0
    hardness = totals[other[usable]] / sizes[other[usable]]
    difference = (second - first)[usable]
    return _strata(hardness[None], difference[None], index[usable], edges, alpha)


def _numbers(clusters: Sequence[Hashable] | None, count: int) -> np.ndarray:
    if clusters is None:
        return np.arange(count)
    if len(clusters) != count:
        raise ValueError("one cluster an item is needed")
    found: dict[Hashable, int] = {}
    return np.array([found.setdefault(name, len(found)) for name in clusters], dtype=np.int64)


def _strata(
    hardness: np.ndarray,
    differences: np.ndarray,
    clusters: np.ndarray,
    edges: Sequence[float],
    alpha: float,
) -> list[Stratum]:
    """Return the strata of folds [F, n] of hardness and of method - control."""
    bounds = [0.0, *edges, 1.0]
    place = np.digitize(hardness, edges)
    return [
        _stratum(place == number, differences, clusters, (low, high), alpha)
        for number, (low, high) in enumerate(itertools.pairwise(bounds))
    ]


def _stratum(
    here: np.ndarray,
    differences: np.ndarray,
    clusters: np.ndarray,
    bounds: tuple[float, float],
    alpha: float,
) -> Stratum:
    sizes = np.bincount(clusters, here.mean(0))
    totals = np.bincount(clusters, (here * differences).mean(0))
    count = int((sizes > 0).sum())
    if not count:
        return Stratum(*bounds, None, None, 0.0, 0)
    gain = float(totals.sum() / sizes.sum())
    interval = None
    if count >= MIN_CLUSTERS:
        from scipy import stats

        # The number of items in a stratum is random too: the error is that of a ratio.
        residuals = totals - gain * sizes
        error = np.sqrt(count / (count - 1) * np.square(residuals).sum()) / sizes.sum()
        half = float(stats.t.ppf(1 - alpha / 2, count - 1)) * float(error)
        interval = (gain - half, gain + half)
    return Stratum(*bounds, gain, interval, float(sizes.sum()), count)
