"""A cluster-robust t statistic of the mean difference, corrected for skewness and few clusters.

Losses and gains of a pruned model are rare and unequal, so cluster sums are skewed and a few
clusters carry their variance; the plain t test of "not worse by more than a margin" then rejects
too often.  Two corrections, both closed forms:

- Hall's (1992, J. R. Statist. Soc. B 54) monotone transformation removes the skewness of t;
- the reference distribution has as many degrees of freedom as clusters contribute *effectively*,
  (sum of squares)^2 / (sum of fourth powers) of the residuals, minus one.

Everything is vectorised over leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """What the test needs of cluster sums; arrays over the leading axes.

    Attributes
    ----------
    difference, stderr : array
        Mean difference over samples and its cluster-robust standard error.
    skew : array
        Skewness of the cluster residuals / sqrt(number of clusters).
    freedom : array
        Effective clusters - 1, at least 1.
    """

    difference: np.ndarray
    stderr: np.ndarray
    skew: np.ndarray
    freedom: np.ndarray


def moments(totals: np.ndarray, sizes: np.ndarray) -> Moments:
    """Return the moments of cluster sums ``totals`` [..., G] of clusters of ``sizes`` [..., G]."""
    count = totals.shape[-1]
    samples = sizes.sum(-1)
    difference = totals.sum(-1) / samples
    residuals = totals - difference[..., None] * sizes
    squares = np.square(residuals)
    power2 = squares.sum(-1)
    variance = power2 / (count - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = (squares * residuals).sum(-1) / count / variance**1.5 / np.sqrt(count)
        effective = power2**2 / np.square(squares).sum(-1)
    return Moments(
        difference,
        np.sqrt(count * variance) / samples,
        np.nan_to_num(skew, nan=0.0, posinf=0.0, neginf=0.0),
        np.maximum(np.nan_to_num(effective, nan=0.0) - 1, 1.0),
    )


def tails(found: Moments, against: float) -> tuple[np.ndarray, np.ndarray]:
    """Return one-sided p values of H0 "difference >= against" and "difference <= against".

    Without any spread (``stderr`` 0) both are 1: nothing is known about the variance.
    """
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"):
        t = (found.difference - against) / found.stderr
        curved = t + found.skew * (t**2 / 3 + 1 / 6) + found.skew**2 * t**3 / 27
    known = found.stderr > 0
    curved = np.where(known, curved, 0.0)
    below = np.where(known, stats.t.cdf(curved, found.freedom), 1.0)
    above = np.where(known, stats.t.sf(curved, found.freedom), 1.0)
    return below, above


def interval(found: Moments, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the two-sided interval of the difference at level 1 - alpha: the tails, inverted."""
    from scipy import stats

    limit = stats.t.ppf(1 - alpha / 2, found.freedom)
    low = found.difference - _uncurve(limit, found.skew) * found.stderr
    return low, found.difference - _uncurve(-limit, found.skew) * found.stderr


def _uncurve(value: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Return the t whose transformed value is ``value``: the cubic is a shifted cube."""
    small = np.abs(skew) < 1e-6
    a = np.where(small, 1.0, skew)
    return np.where(small, value, 3 / a * (np.cbrt(1 + a * (value - a / 6)) - 1))
