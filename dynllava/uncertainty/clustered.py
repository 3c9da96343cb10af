"""Differences summed by cluster, and how much clusters inflate a variance."""

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
    square : float
        Sum of the squared differences of the samples.
    """

    totals: np.ndarray
    sizes: np.ndarray
    differing: int
    discordance: float
    square: float

    @property
    def clusters(self) -> int:
        """G."""
        return len(self.totals)

    @property
    def samples(self) -> int:
        """Samples over all clusters."""
        return int(self.sizes.sum())

    @property
    def independent(self) -> bool:
        """Whether every cluster holds one sample."""
        return bool(self.sizes.max() == 1)

    @property
    def difference(self) -> float:
        """Mean of candidate - baseline over samples."""
        return float(self.totals.sum() / self.sizes.sum())


def sums_of(differences: np.ndarray, clusters: Sequence[Hashable] | None) -> Sums:
    """Return the sums by cluster of ``differences`` [n]; None = every sample is its own cluster."""
    changed = differences != 0
    share, square = float(changed.mean()), float(np.square(differences).sum())
    if clusters is None:
        sizes = np.ones(len(differences))
        return Sums(differences, sizes, int(changed.sum()), share, square)
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(item, len(numbers)) for item in clusters])
    totals = np.bincount(index, weights=differences)
    sizes = np.bincount(index).astype(float)
    differing = int((np.bincount(index, weights=changed) > 0).sum())
    return Sums(totals, sizes, differing, share, square)


def design_effect(values: np.ndarray, clusters: Sequence[Hashable] | None) -> float:
    """Return by how much clusters inflate the variance of the mean of ``values`` [n]; at least 1.

    The cluster-robust variance over that of independent samples; 1 for constant values.
    """
    centred = values - values.mean()
    spread = float(np.square(centred).sum())
    if clusters is None or spread == 0:
        return 1.0
    return max(1.0, float(np.square(sums_of(centred, clusters).totals).sum()) / spread)
