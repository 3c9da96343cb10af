"""The exact sign-flip test of cluster sums."""

from __future__ import annotations

import numpy as np

_UNITS, _UNITS_EACH = 4000, 24
"""Grid that real numbers are rounded to: steps of their largest possible total, at least so many
altogether and for each sum that differs."""

_NORMAL = 1000
"""From so many effective sums of real numbers on, their signed total is normal."""


def flip_tails(sums: np.ndarray) -> tuple[float, float, float]:
    """Return P(T* < T), P(T* = T), P(T* > T) over all sign patterns of the cluster sums.

    If base and candidate could be exchanged within every cluster (no difference), each sum is as
    likely positive as negative; T is their total and T* the total under random signs.  The
    distribution over all 2^K patterns is built by convolution, so there is nothing random in it
    and mirrored data give mirrored tails.  Sums that are no whole numbers are rounded to a grid
    first; the test of the rounded sums is still exact.  Only very many real numbers are handled
    by the normal distribution.

    Parameters
    ----------
    sums : array
        [K] float, sum of candidate - baseline in each cluster; zeros do not matter.

    Returns
    -------
    tuple of float
        Below, at, above.
    """
    from scipy import stats

    sums = np.asarray(sums, float)
    squares = np.square(sums)
    whole = np.array_equal(sums, np.rint(sums))
    if not whole and squares.sum() ** 2 >= _NORMAL * np.square(squares).sum():
        below = float(stats.norm.cdf(sums.sum() / np.sqrt(squares.sum())))
        return below, 0.0, 1 - below
    steps = np.rint(sums / _unit(sums, whole)).astype(np.int64)
    total = int(steps.sum())
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    mass = np.ones(1)
    # The total is 2 * (sum of the positive ones) - (sum of all): convolve the positive part.
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        mass = _convolve(mass, size, count)
    reach = int((sizes * counts).sum())
    place = (total + reach) // 2
    at = float(mass[place])
    return float(mass[:place].sum()), at, float(mass[place + 1 :].sum())


def _unit(sums: np.ndarray, whole: bool) -> float:
    """Return the step of the grid: 1 for whole numbers, else a fine share of the largest total."""
    reach = float(np.abs(sums).sum())
    steps = max(_UNITS, _UNITS_EACH * int(np.count_nonzero(sums)))
    return 1.0 if whole and reach <= 50 * steps else reach / steps


def _convolve(mass: np.ndarray, size: int, count: int) -> np.ndarray:
    """Return the distribution of the positive part after ``count`` clusters of ``|sum| = size``."""
    from scipy import stats

    if count <= 16:
        for _ in range(count):
            longer = np.zeros(len(mass) + size)
            longer[: len(mass)] = mass / 2
            longer[size:] += mass / 2
            mass = longer
        return mass
    weights = np.zeros(size * count + 1)
    weights[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
    if len(mass) * len(weights) <= 20_000_000:
        return np.convolve(mass, weights)
    length = len(mass) + len(weights) - 1
    spectrum = np.fft.rfft(mass, length) * np.fft.rfft(weights, length)
    return np.clip(np.fft.irfft(spectrum, length), 0, 1)
