"""One paired comparison: worse, not worse by more than a margin, or undecided."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from . import exact_bounds, skewness
from .clustered import Sums, sums_of
from .sign_flips import flip_tails

WORSE = "worse"
NOT_WORSE = "not worse by more than margin"
UNDECIDED = "undecided"

MIN_CLUSTERS = 6
"""With fewer independent units nothing is decided: 5 of 5 lost have a two-sided p of 0.06."""

MIN_DIFFERING = 20
"""With fewer clusters that hold a differing answer, margins and intervals use an exact bound."""


@dataclass(frozen=True)
class Comparison:
    """Outcome of :func:`compare_paired`; differences are in the score's unit.

    Attributes
    ----------
    difference : float
        Mean of candidate - baseline over samples.
    interval : tuple of float or None
        Two-sided interval at level 1 - alpha; None with fewer than :data:`MIN_CLUSTERS` clusters,
        and for scores outside [0, 1] that differ in fewer than :data:`MIN_DIFFERING`.
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

    Margin 0 ("is there a difference?"): McNemar's mid-p for independent 0/1 scores, else exact
    sign flips of the cluster sums.  A margin, and every interval: the skewness-corrected t of the
    cluster sums (:mod:`.skewness`) from :data:`MIN_DIFFERING` clusters with a differing answer
    on, below it an exact bound for scores from 0 to 1 (:mod:`.exact_bounds`).

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
    span = _span(first, second)
    worse, better, test = (
        _with_margin(sums, margin, span) if margin else _exchange(sums, _binary(first, second))
    )
    reason = ""
    if test == "none":
        reason = (
            f"scores differ in {sums.differing} clusters, {MIN_DIFFERING} are needed for a margin "
            "where scores have no range from 0 to 1"
        )
    return _outcome(sums, _interval(sums, alpha, span), worse, better, margin, alpha, test, reason)


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


def _exchange(sums: Sums, binary: bool) -> tuple[float, float, str]:
    """Return both p values at margin 0, where base and candidate are exchangeable."""
    below, at, above = flip_tails(sums.totals)
    if sums.independent and binary:
        # The exact test of 0/1 scores is conservative, its mid-p keeps the level on average
        # (Fagerland, Lydersen and Laake 2013).
        return below + at / 2, above + at / 2, "McNemar mid-p"
    units = "samples" if sums.independent else "clusters"
    return min(1.0, below + at), min(1.0, above + at), f"sign flips of {units}"


def _with_margin(sums: Sums, margin: float, span: float | None) -> tuple[float, float, str]:
    """Return both p values at a margin."""
    found = skewness.moments(sums.totals, sums.sizes)
    if _many(sums, found):
        worse, better = skewness.tails(found, -margin)
        return float(worse), float(better), "t of clusters, skewness-corrected"
    if span is None:
        return 1.0, 1.0, "none"
    return (
        exact_bounds.at_most(-sums.totals, sums.sizes, margin, span),
        exact_bounds.at_most(sums.totals, sums.sizes, -margin, span),
        "exact bound",
    )


def _interval(sums: Sums, alpha: float, span: float | None) -> tuple[float, float] | None:
    found = skewness.moments(sums.totals, sums.sizes)
    if not _many(sums, found):
        if span is None:
            return None
        return exact_bounds.interval(sums.totals, sums.sizes, alpha, span)
    low, high = (float(value) for value in skewness.interval(found, alpha))
    return (low, high) if span is None else (max(low, -span), min(high, span))


def _many(sums: Sums, found: skewness.Moments) -> bool:
    return sums.differing >= MIN_DIFFERING and bool(found.stderr > 0)


def _binary(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())


def _span(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the largest possible difference of a sample: 1 for scores from 0 to 1."""
    both = (first.min(), first.max(), second.min(), second.max())
    return 1.0 if min(both) >= 0 and max(both) <= 1 else None
