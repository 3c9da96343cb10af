"""Intervals of a median that hold their coverage, whatever the distribution of the repeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MIN_ROUNDS = 6
"""Below this no interval of a median reaches 95 %: the range of 5 values covers 93.75 %."""


@dataclass(frozen=True)
class MedianInterval:
    """Median of ``rounds`` values and the order statistics that bound it.

    Attributes
    ----------
    median, low, high : float
        In the unit of the values.
    rounds : int
        Number of values.
    coverage : float
        Exact probability that the interval holds the true median of independent draws from a
        continuous distribution; at least the level that was asked for (ties only add to it).
    """

    median: float
    low: float
    high: float
    rounds: int
    coverage: float

    @property
    def margin(self) -> float:
        """The larger of the two distances from the median to its bounds."""
        return max(self.high - self.median, self.median - self.low)


def median_interval(values: Sequence[float], level: float = 0.95) -> MedianInterval | None:
    """Return the narrowest symmetric pair of order statistics that covers the median.

    [x(k), x(n+1-k)] holds the median with probability 1 - 2 P(Bin(n, 1/2) < k), exactly and for
    every continuous distribution (e.g. Hollander, Wolfe and Chicken 2014, section 3.6).

    Parameters
    ----------
    values : sequence of float
        [n] independent repeats: medians of processes, or rounds of one process where only that
        process is spoken of.
    level : float
        Wanted coverage.

    Returns
    -------
    MedianInterval or None
        None for fewer than :data:`MIN_ROUNDS` values, or where even the range of the values
        does not reach ``level``: there is no interval then, and no verdict.
    """
    n = len(values)
    if n < MIN_ROUNDS:
        return None
    # Largest k with P(Bin(n, 1/2) <= k - 1) <= (1 - level) / 2.
    k, tail = 0, Fraction(0)
    while True:
        following = tail + Fraction(math.comb(n, k), 2**n)
        if following > Fraction((1 - level) / 2):
            break
        k, tail = k + 1, following
    if k < 1:
        return None
    ordered = sorted(values)
    coverage = 1 - 2 * float(tail)
    return MedianInterval(statistics.median(ordered), ordered[k - 1], ordered[n - k], n, coverage)


def summary_margin(iqr: float, rounds: int) -> float | None:
    """Return half a 95 % interval of a median of which only the inter-quartile range is known.

    ``(2 + 11 / n) IQR / sqrt(n)``: the factor is the smallest simple one under which normal,
    uniform, exponential, log-normal and Laplace rounds are all covered in at least 95 % of the
    draws (``tests/uncertainty/test_medians.py``).  A box plot's notch has 1.57 for all n, which
    covers 80 % at 6 rounds and 89 % at 60.  None for fewer than :data:`MIN_ROUNDS` rounds.
    """
    return None if rounds < MIN_ROUNDS else (2 + 11 / rounds) * iqr / math.sqrt(rounds)
