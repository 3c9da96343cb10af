"""Times of two versions, compared by processes: an exact permutation test, and how many it needs.

Rounds of one process share its memory layout, clock and neighbours, so the unit is a process: the
median of its rounds.  Base and candidate take turns, so that slow drift of the machine meets both.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from dynllava.errors import UserError

LEAST_PROCESSES = 8
"""Processes a side that a timing needs."""

LARGE_FAMILY, LEAST_IN_LARGE_FAMILY = 100, 10
"""Where more timings than the first are corrected together, each needs the second."""

EXACT_LIMIT = 1_000_000
"""Up to this many assignments of processes to sides all are tried, beyond it a sample of them."""

SAMPLED = 199_999
_MOST_EXACT = 11  # comb(22, 11) is the last one under EXACT_LIMIT


def needed_processes(family: int, alpha: float = 0.05) -> int:
    """Return how many processes a side a timing needs among ``family`` corrected together.

    At least 8, at least 10 among more than 100; and so many that the smallest p value which the
    permutation test can reach, 1 / C(2n, n), passes Holm's first step, ``alpha / family``.

    Raises
    ------
    UserError
        If no number is enough (more than some 35,000 timings at 5 %).
    """
    least = LEAST_PROCESSES if family <= LARGE_FAMILY else LEAST_IN_LARGE_FAMILY
    for processes in range(least, _MOST_EXACT + 1):
        if family * smallest_p(processes, processes) <= alpha:
            return processes
    raise UserError(f"{family} timings are too many to correct together at alpha {alpha:g}")


def smallest_p(base: int, candidate: int) -> float:
    """Return the smallest p value of :func:`slower_p` with so many processes a side."""
    assignments = math.comb(base + candidate, base)
    return 1 / (assignments if assignments <= EXACT_LIMIT else SAMPLED + 1)


def slower_p(
    base: Sequence[float] | np.ndarray,
    candidate: Sequence[float] | np.ndarray,
    *,
    higher_is_better: bool = False,
    margin: float = 0.0,
) -> np.ndarray:
    """Return the one-sided p value of "the candidate is slower by more than ``margin``".

    Permutation test (Fisher, Pitman) of the difference of the mean logarithms: exact for every
    distribution, because under the hypothesis any assignment of the processes to the two sides
    was as likely as the one that ran.

    Parameters
    ----------
    base, candidate : array
        [..., n] and [..., m] medians of processes; several timings at once along the first axes.
    higher_is_better : bool
        Direction: True for rates, False for times.
    margin : float
        Relative rise (of a rate: fall) that is tolerated: 0.05 tests "slower by more than 5 %".

    Returns
    -------
    array
        [...] p values.

    Raises
    ------
    UserError
        If a value is not positive: times and rates are.
    """
    first, second = np.asarray(base, float), np.asarray(candidate, float)
    if not (np.all(first > 0) and np.all(second > 0)):
        raise UserError("times and rates are positive; found a value that is not", 1)
    sign = -1.0 if higher_is_better else 1.0
    old, new = sign * np.log(first), sign * np.log(second) - math.log1p(margin)
    pooled = np.concatenate([new, old], axis=-1)
    pooled = pooled - pooled.mean(axis=-1, keepdims=True)
    chosen, exact = _assignments(new.shape[-1], old.shape[-1])
    sums = pooled @ chosen.T
    # What ran is the first assignment; equal sums may differ in their last bits.
    tolerance = 1e-9 * np.abs(pooled).max(axis=-1, keepdims=True)
    reached = (sums >= sums[..., :1] - tolerance).sum(axis=-1)
    return reached / (len(chosen) if exact else SAMPLED + 1)


@functools.lru_cache(maxsize=4)
def _assignments(chosen: int, others: int) -> tuple[np.ndarray, bool]:
    """Return which of the processes may have been the candidate's [A, n + m], what ran first."""
    total = chosen + others
    count = math.comb(total, chosen)
    if count <= EXACT_LIMIT:
        picked = np.fromiter(
            itertools.chain.from_iterable(itertools.combinations(range(total), chosen)), np.int64
        ).reshape(count, chosen)
    else:
        generator = np.random.default_rng(0)
        drawn = generator.permuted(np.tile(np.arange(total), (SAMPLED, 1)), axis=1)[:, :chosen]
        picked = np.concatenate([np.arange(chosen)[None], drawn])
    table = np.zeros((len(picked), total))
    np.put_along_axis(table, picked, 1.0, axis=1)
    return table, count <= EXACT_LIMIT


def detectable_rise(
    base: Sequence[float], candidate: Sequence[float], *, alpha: float, power: float = 0.8
) -> float:
    """Return about which relative rise is found with probability ``power`` at level ``alpha``.

    From the processes' own spread (logarithms, pooled) by the t approximation of the test.
    ``alpha`` is what is left to one timing after correction, e.g. 0.05 / family.
    """
    from scipy import stats

    sides = [np.log(np.asarray(side, float)) for side in (base, candidate)]
    degrees = sum(len(side) - 1 for side in sides)
    pooled = sum((len(side) - 1) * side.var(ddof=1) for side in sides) / degrees
    error = math.sqrt(pooled * sum(1 / len(side) for side in sides))
    return math.expm1(float(stats.t.isf(alpha, degrees) + stats.t.ppf(power, degrees)) * error)


def interleaved(base: Sequence[str], candidate: Sequence[str]) -> bool:
    """Return whether processes, named so that names sort by start, took turns.

    They did where, in order of start, the side changes at least as often as the smaller side has
    processes: A B A B and A B B A do, all of A before all of B does not.
    """
    order = sorted([(name, 0) for name in base] + [(name, 1) for name in candidate])
    changes = sum(left[1] != right[1] for left, right in itertools.pairwise(order))
    return changes >= min(len(base), len(candidate))
