"""Visual gain retained: how much of what the picture adds to the answers a method keeps.

A benchmark that a blind model half solves hides a loss: of 60 points, 50 may come from the question
alone.  The share (method - blind) / (dense - blind) counts the rest; *blind* is the dense model
without image tokens from layer 0 on, on the same weights as *dense*.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_GAIN = 0.10
"""Smallest dense - blind, as a share of the full score, of which a share is formed."""

MIN_CLUSTERS = 6


@dataclass(frozen=True)
class Triple:
    """Scores of the same samples of one task by three runs.

    Attributes
    ----------
    method, dense, blind : sequence of float
        [n], a higher score is better.
    clusters : sequence or None
        [n] what samples share; None: every sample is its own.
    scale : float
        Score of a perfect answer.
    """

    method: Sequence[float]
    dense: Sequence[float]
    blind: Sequence[float]
    clusters: Sequence[Hashable] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Retained:
    """Outcome of :func:`retained_gain`; gains are shares of the full score.

    Attributes
    ----------
    share : float or None
        (method - blind) / (dense - blind); None where the rules forbid it.
    interval : tuple of float or None
        Of ``share``, cluster bootstrap of both differences at once.
    gain : float
        dense - blind.
    gain_interval : tuple of float or None
    samples, clusters : int
    reason : str
        Why there is no share; else empty.
    """

    share: float | None
    interval: tuple[float, float] | None
    gain: float
    gain_interval: tuple[float, float] | None
    samples: int
    clusters: int
    reason: str = ""


def retained_gain(
    tasks: Sequence[Triple], *, draws: int = 2000, alpha: float = 0.05, seed: int = 0
) -> Retained:
    """Return the visual gain retained over tasks of equal weight.

    No share is given where dense - blind is below :data:`MIN_GAIN` or its interval holds 0, or with
    fewer than :data:`MIN_CLUSTERS` clusters: a ratio to nothing is noise.

    Parameters
    ----------
    tasks : sequence of Triple
        At least one; clusters of different tasks are different.
    draws : int
        Bootstrap draws of whole clusters within each task; percentile intervals.
    alpha : float
        1 - level of the intervals.
    seed : int

    Raises
    ------
    ValueError
        Without samples, or if a task's sequences differ in length.
    """
    generator = np.random.default_rng(seed)
    kept, gain = np.zeros(draws), np.zeros(draws)
    point = np.zeros(2)
    samples = clusters = 0
    fewest = MIN_CLUSTERS
    for task in tasks:
        sums = _by_cluster(task)
        point += sums[:2].sum(1) / sums[2].sum()
        drawn = _resample(sums, draws, generator)
        kept += drawn[0] / drawn[2]
        gain += drawn[1] / drawn[2]
        samples += int(sums[2].sum())
        clusters += sums.shape[1]
        fewest = min(fewest, sums.shape[1])
    if not samples:
        raise ValueError("at least one sample is needed")
    of_kept, of_gain = point / len(tasks)
    if fewest < MIN_CLUSTERS:
        reason = f"fewer than {MIN_CLUSTERS} clusters"
        return Retained(None, None, float(of_gain), None, samples, clusters, reason)
    gain_interval = _percentiles(gain / len(tasks), alpha)
    reason = ""
    if of_gain < MIN_GAIN:
        reason = f"the picture adds {100 * of_gain:.1f} points, {100 * MIN_GAIN:g} are needed"
    elif gain_interval[0] <= 0:
        reason = "the interval of what the picture adds holds 0"
    if reason:
        return Retained(None, None, float(of_gain), gain_interval, samples, clusters, reason)
    return Retained(
        float(of_kept / of_gain),
        _percentiles(kept / gain, alpha),
        float(of_gain),
        gain_interval,
        samples,
        clusters,
    )


def _by_cluster(task: Triple) -> np.ndarray:
    """Return [3, G]: method - blind and dense - blind in full scores, and samples, by cluster."""
    method, dense, blind = (
        np.asarray(item, float) / task.scale for item in (task.method, task.dense, task.blind)
    )
    if not method.shape == dense.shape == blind.shape or method.ndim != 1:
        raise ValueError("scores of the same samples are needed")
    names = range(len(method)) if task.clusters is None else task.clusters
    if len(names) != len(method):
        raise ValueError("one cluster a sample is needed")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    weights = (method - blind, dense - blind, np.ones(len(method)))
    return np.stack([np.bincount(index, item, minlength=len(numbers)) for item in weights])


def _resample(sums: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Return [3, draws]: the sums over clusters drawn with replacement."""
    count = sums.shape[1]
    times = generator.multinomial(count, np.full(count, 1 / count), size=draws)
    return sums @ times.T


def _percentiles(values: np.ndarray, alpha: float) -> tuple[float, float]:
    low, high = np.quantile(values, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
