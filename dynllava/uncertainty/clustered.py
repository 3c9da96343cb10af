"""Differences summed by cluster, and the cluster-robust t statistic of their mean."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sums:
    """Paired differences by cluster.

    Attributes
    ----------
    totals : array
        [G] float, sum of candidate - baseline in each cluster.
    sizes : array
        [G] float, samples in each cluster.
    differing : int
        Clusters with at least one sample whose score differs.
    discordance : float
        Share of samples whose score differs.
    """

    totals: np.ndarray
    sizes: np.ndarray
    differing: int
    discordance: float

    @property
    def clusters(self) -> int:
        """G."""
        return len(self.totals)

    @property
    def samples(self) -> int:
        """Samples over all clusters."""
        return int(self.sizes.sum())

    @property
    def difference(self) -> float:
        """Mean of candidate - baseline over samples."""
        return float(self.totals.sum() / self.sizes.sum())


def sums_of(differences: np.ndarray, clusters: Sequence[Hashable] | None) -> Sums:
    """Return the sums by cluster of ``differences`` [n]; None = every sample is its own cluster."""
    changed = differences != 0
    if clusters is None:
        return Sums(
            differences, np.ones(len(differences)), int(changed.sum()), float(changed.mean())
        )
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(item, len(numbers)) for item in clusters])
    totals = np.bincount(index, weights=differences)
    sizes = np.bincount(index).astype(float)
    differing = int((np.bincount(index, weights=changed) > 0).sum())
    return Sums(totals, sizes, differing, float(changed.mean()))


def standard_error(sums: Sums) -> float:
    """Return the cluster-robust standard error of the mean difference, G / (G - 1) corrected.

    Miller 2024 (arXiv 2411.00640), Eq. 4, with the usual correction for few clusters; with one
    sample a cluster it is s / sqrt(n).
    """
    residuals = sums.totals - sums.difference * sums.sizes
    count = sums.clusters
    return float(np.sqrt(count / (count - 1) * np.square(residuals).sum()) / sums.samples)
