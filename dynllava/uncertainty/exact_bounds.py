"""Bounds of a mean of bounded cluster sums that need no large sample.

For few clusters with a differing answer no normal theory holds.  Gaffke's bound (N. Gaffke 2005,
"Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable"; Learned-Miller and Thomas 2020, arXiv 1905.06208) needs only that a sum cannot fall
below its worst value: for sums Z_1 .. Z_G >= -B the p value of "mean <= 0" is

    P(E_1 Z_1 + ... + E_G Z_G - E_0 B <= 0),   E independent standard exponentials.

For sums with two values it is the exact (Clopper-Pearson) binomial p value; with no differing
answer among G equal clusters and margin d it is (1 - d)^G.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_POINTS = 3000


def at_most(totals: np.ndarray, sizes: np.ndarray, against: float, span: float) -> float:
    """Return the p value of H0 "mean difference <= against".

    Parameters
    ----------
    totals, sizes : array
        [G] sum of differences and number of samples of each cluster.
    against : float
        Difference under the hypothesis, in the score's unit.
    span : float
        Largest possible absolute difference of one sample (1 for scores from 0 to 1).
    """
    if against <= -span:
        return 0.0
    shifted = totals - against * sizes
    worst = (span + against) * float(sizes.max())
    return _negative_share(np.append(shifted, -worst))


def interval(
    totals: np.ndarray, sizes: np.ndarray, alpha: float, span: float
) -> tuple[float, float]:
    """Return the two-sided interval of the mean difference at level 1 - alpha."""
    low = _root(lambda value: at_most(totals, sizes, value, span), alpha / 2, span)
    high = _root(lambda value: at_most(-totals, sizes, value, span), alpha / 2, span)
    return low, -high


def _root(p_value: Callable[[float], float], level: float, span: float) -> float:
    """Return the value at which the rising ``p_value`` reaches ``level``."""
    from scipy import optimize

    if p_value(span) <= level:
        return span
    return float(optimize.brentq(lambda x: p_value(x) - level, -span, span, xtol=1e-6))


def _negative_share(weights: np.ndarray) -> float:
    """Return P(sum of weights x independent exponentials <= 0), by inverting its transform.

    Gil-Pelaez (1951) with phi(t) = product of 1 / (1 - i w t); over log t the integrand is smooth
    and vanishes at both ends, so the trapezoidal rule converges fast.
    """
    weights = weights[weights != 0]
    if not len(weights) or weights.max() <= 0:
        return 1.0
    if weights.min() >= 0:
        return 0.0
    values, counts = np.unique(np.round(weights / np.abs(weights).max(), 12), return_counts=True)
    spread = float(np.sqrt((counts * values**2).sum()))
    u, step = np.linspace(np.log(1e-11 / spread), np.log(1e7 / spread), _POINTS, retstep=True)
    products = np.exp(u)[:, None] * values[None, :]
    size = -0.5 * (counts * np.log1p(products**2)).sum(1)
    angle = (counts * np.arctan(products)).sum(1)
    share = 0.5 - float((np.exp(size) * np.sin(angle)).sum()) * step / np.pi
    return float(min(max(share, 0.0), 1.0))
