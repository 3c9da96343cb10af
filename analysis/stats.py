"""Paired tests on samples, minimum detectable effects, multiple comparisons.

``paired_t`` and ``minimum_detectable_effect`` give the numbers of
``lmms_eval.api.metrics.paired_ttest`` and ``power_analysis`` (a test compares them) without that
package's import time of several seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMALITY_SAMPLES = 30
"""Below this number of samples a bootstrap test replaces the paired t test."""


@dataclass(frozen=True)
class Comparison:
    """Outcome of a paired test of candidate minus base.

    Attributes
    ----------
    test : str
        ``"McNemar exact"``, ``"McNemar"``, ``"paired t"`` or ``"paired bootstrap"``.
    n : int
        Pairs.
    difference : float
        Mean of candidate - base, in the metric's unit.
    stderr : float
        Standard error of ``difference`` (0 if all differences are equal).
    p_worse, p_two_sided : float
        One-sided p for "candidate has lower values", and two-sided.
    """

    test: str
    n: int
    difference: float
    stderr: float
    p_worse: float
    p_two_sided: float


def compare_paired(
    base: Sequence[float], candidate: Sequence[float], *, seed: int = 0
) -> Comparison:
    """Test paired samples with the test that fits: McNemar for 0/1 scores, else t or bootstrap.

    Parameters
    ----------
    base, candidate : sequence of float
        [n] scores of the same samples in the same order, finite.
    seed : int
        Seed of the bootstrap (used below :data:`NORMALITY_SAMPLES` samples).

    Raises
    ------
    ValueError
        If lengths differ, there are no samples, or a score is not finite.
    """
    first, second = np.asarray(base, float), np.asarray(candidate, float)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError("paired scores need equal, non-zero lengths")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("scores must be finite")
    values = np.unique(np.concatenate([first, second]))
    if len(values) <= 2 and set(values.tolist()) <= {0.0, 1.0}:
        return mcnemar(first, second)
    if len(first) < NORMALITY_SAMPLES:
        return paired_bootstrap(first, second, seed=seed)
    return paired_t(first, second)


def mcnemar(base: np.ndarray, candidate: np.ndarray) -> Comparison:
    """McNemar's test of 0/1 scores [n], exact (mid-p) up to 200 discordant pairs.

    The mid-p variant keeps its size near alpha where the exact test is conservative and the
    chi-square approximation liberal (Fagerland, Lydersen, Laake 2013).
    """
    from scipy import stats

    lost = int(((base == 1) & (candidate == 0)).sum())
    won = int(((base == 0) & (candidate == 1)).sum())
    n, discordant = len(base), lost + won
    difference = (won - lost) / n
    stderr = math.sqrt(max(discordant - (won - lost) ** 2 / n, 0.0)) / n
    if discordant == 0:
        return Comparison("McNemar exact", n, 0.0, 0.0, 1.0, 1.0)
    if discordant <= 200:
        half = 0.5 * float(stats.binom.pmf(lost, discordant, 0.5))
        worse = float(stats.binom.sf(lost, discordant, 0.5)) + half
        better = float(stats.binom.cdf(lost, discordant, 0.5)) - half
        both = min(1.0, 2 * min(worse, better))
        return Comparison("McNemar exact", n, difference, stderr, worse, both)
    z = (lost - won) / math.sqrt(discordant)
    worse = float(stats.norm.sf(z))
    return Comparison("McNemar", n, difference, stderr, worse, min(1.0, 2 * min(worse, 1 - worse)))


def paired_t(base: np.ndarray, candidate: np.ndarray) -> Comparison:
    """Paired t test of scores [n]; ``n`` must be at least 2."""
    from scipy import stats

    differences = candidate - base
    n, mean = len(differences), float(np.mean(differences))
    stderr = float(np.std(differences, ddof=1)) / math.sqrt(n)
    if stderr == 0:
        return _constant("paired t", n, mean)
    t = mean / stderr
    worse = float(stats.t.cdf(t, n - 1))
    return Comparison("paired t", n, mean, stderr, worse, float(2 * stats.t.sf(abs(t), n - 1)))


def paired_bootstrap(
    base: np.ndarray, candidate: np.ndarray, *, resamples: int = 4000, seed: int = 0
) -> Comparison:
    """Studentised bootstrap of the mean paired difference [n], for few samples."""
    differences = candidate - base
    n, mean = len(differences), float(np.mean(differences))
    stderr = float(np.std(differences, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if stderr == 0:
        return _constant("paired bootstrap", n, mean)
    generator = np.random.default_rng(seed)
    # Resampling the centred differences draws from the null hypothesis "no difference".
    drawn = (differences - mean)[generator.integers(0, n, (resamples, n))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    errors[errors == 0] = np.inf
    t = drawn.mean(axis=1) / errors
    observed = mean / stderr
    worse = float((np.sum(t <= observed) + 1) / (resamples + 1))
    both = float((np.sum(np.abs(t) >= abs(observed)) + 1) / (resamples + 1))
    return Comparison("paired bootstrap", n, mean, stderr, worse, both)


def _constant(test: str, n: int, mean: float) -> Comparison:
    """Return the sign test's outcome when all differences are equal: t is undefined there."""
    if mean == 0:
        return Comparison(test, n, mean, 0.0, 1.0, 1.0)
    return Comparison(test, n, mean, 0.0, 0.5**n if mean < 0 else 1.0, min(1.0, 2 * 0.5**n))


def minimum_detectable_effect(
    stderr: float, *, alpha: float = 0.05, power: float = 0.8, two_sided: bool = False
) -> float:
    """Return the smallest true difference that a test finds with probability ``power``.

    ``stderr`` is the standard error of the paired difference; the result has its unit.
    """
    from scipy import stats

    tail = alpha / 2 if two_sided else alpha
    return float(stats.norm.ppf(1 - tail) + stats.norm.ppf(power)) * stderr


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def confidence_interval(value: float, stderr: float, level: float = 0.95) -> tuple[float, float]:
    """Return the normal confidence interval of ``value``."""
    from scipy import stats

    half = float(stats.norm.ppf(0.5 + level / 2)) * stderr
    return value - half, value + half
