"""One paired comparison: worse, not worse by more than a margin, or undecided."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .clustered import Sums, standard_error, sums_of
from .sign_flips import flip_tails

WORSE = "worse"
NOT_WORSE = "not worse by more than margin"
UNDECIDED = "undecided"

MIN_CLUSTERS = 6
"""With fewer independent units nothing is decided: 5 of 5 lost have a two-sided p of 0.06."""


@dataclass(frozen=True)
class Comparison:
    """Outcome of :func:`compare_paired`; differences are in the score's unit.

    Attributes
    ----------
    difference : float
        Mean of candidate - baseline over samples.
    interval : tuple of float or None
        Two-sided interval at level 1 - alpha; None with fewer than :data:`MIN_CLUSTERS` clusters.
    p_worse : float
        One-sided p of H0: difference >= -margin.
    p_not_inferior : float
        One-sided p of H0: difference <= -margin.
    p_two_sided : float
        Two-sided p of H0: difference = -margin (twice the smaller of the two, at most 1).
    discordance : float
        Share of samples whose score differs.
    samples, clusters, differing : int
        Samples, independent clusters, and clusters in which a score differs.
    margin, alpha : float
        As given.
    verdict : str
        :data:`WORSE` (p_worse <= alpha), :data:`NOT_WORSE` (p_not_inferior <= alpha) or
        :data:`UNDECIDED`.
    test : str
        What was computed, in words.
    reason : str
        Why nothing could be decided, where too little data is the reason; else empty.
    """

    difference: float
    interval: tuple[float, float] | None
    p_worse: float
    p_not_inferior: float
    p_two_sided: float
    discordance: float
    samples: int
    clusters: int
    differing: int
    margin: float
    alpha: float
    verdict: str
    test: str
    reason: str = ""


def compare_paired(
    baseline: Sequence[float] | np.ndarray,
    candidate: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    margin: float = 0.0,
    alpha: float = 0.05,
) -> Comparison:
    """Compare two runs on the same samples; a higher score is better (the caller flips).

    Parameters
    ----------
    baseline, candidate : sequence of float
        [n] scores of the same samples in the same order, finite.
    clusters : sequence, optional
        [n] what samples share (an image): samples of one cluster are not independent.  None:
        every sample is independent.
    margin : float
        Drop that is tolerated, >= 0, in the score's unit.
    alpha : float
        Level of each one-sided test; the interval has level 1 - alpha, two-sided.

    Raises
    ------
    ValueError
        If lengths differ, there are no samples, a score is not finite, or margin or alpha is
        impossible.
    """
    first, second = np.asarray(baseline, float), np.asarray(candidate, float)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError("paired scores need equal, non-zero lengths")
    if clusters is not None and len(clusters) != len(first):
        raise ValueError("one cluster a sample is needed")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("scores must be finite")
    if not (0 <= margin < np.inf and 0 < alpha < 1):
        raise ValueError("margin >= 0 and 0 < alpha < 1 are needed")
    sums = sums_of(second - first, clusters)
    if sums.clusters < MIN_CLUSTERS:
        reason = f"{sums.clusters} independent clusters, {MIN_CLUSTERS} are needed"
        return _outcome(sums, None, 1.0, 1.0, margin, alpha, "none", reason)
    worse, better, test = _tails(sums, margin)
    return _outcome(sums, _interval(sums, alpha), worse, better, margin, alpha, test)


def _outcome(
    sums: Sums,
    interval: tuple[float, float] | None,
    worse: float,
    better: float,
    margin: float,
    alpha: float,
    test: str,
    reason: str = "",
) -> Comparison:
    verdict = WORSE if worse <= alpha else NOT_WORSE if better <= alpha else UNDECIDED
    return Comparison(
        sums.difference,
        interval,
        worse,
        better,
        min(1.0, 2 * min(worse, better)),
        sums.discordance,
        sums.samples,
        sums.clusters,
        sums.differing,
        margin,
        alpha,
        verdict,
        test,
        reason,
    )


def _tails(sums: Sums, margin: float) -> tuple[float, float, str]:
    """Return p_worse, p_not_inferior and the name of the test."""
    from scipy import stats

    if margin == 0:
        below, at, above = flip_tails(sums.totals)
        return below + at, at + above, "sign flips of clusters"
    error = standard_error(sums)
    t = (sums.difference + margin) / error if error else np.inf
    worse = float(stats.t.cdf(t, sums.clusters - 1))
    return worse, float(stats.t.sf(t, sums.clusters - 1)), "cluster-robust t"


def _interval(sums: Sums, alpha: float) -> tuple[float, float]:
    from scipy import stats

    half = float(stats.t.ppf(1 - alpha / 2, sums.clusters - 1)) * standard_error(sums)
    return sums.difference - half, sums.difference + half
