"""One run against a printed number: agrees within a margin, differs by more, or undecided.

The printed number stands without its samples, so nothing can be paired.  Where the run answered the
same questions it is taken as a fixed number (what two runs of one model on the same questions
differ by is smaller than what other questions would do: the interval is on the safe side); where
the authors drew other samples, their score has an error of its own, assumed as large as the run's.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .paired import MIN_CLUSTERS, compare_paired

AGREES = "agrees"
DIFFERS = "differs"
NO_VERDICT = "undecided"


@dataclass(frozen=True)
class Agreement:
    """What a run says about a printed number; all in the score's unit.

    Attributes
    ----------
    value, printed, margin : float
    interval : tuple of float or None
        Two-sided interval of ``value`` (of its difference to print, moved to it, where the printed
        number has an error of its own) at level 1 - alpha; None where there is too little data.
    p_differs : float
        p of "at most ``margin`` apart", two-sided.
    p_agrees : float
        p of "at least ``margin`` apart".
    units : int
        Independent units (clusters) behind it.
    """

    value: float
    printed: float
    margin: float
    interval: tuple[float, float] | None
    p_differs: float
    p_agrees: float
    units: int

    def verdict(self, alpha: float = 0.05) -> str:
        """Return :data:`DIFFERS`, :data:`AGREES` or :data:`NO_VERDICT` at level ``alpha``."""
        if self.p_differs <= alpha:
            return DIFFERS
        return AGREES if self.p_agrees <= alpha else NO_VERDICT


def from_scores(
    scores: Sequence[float] | np.ndarray,
    printed: float,
    margin: float,
    clusters: Sequence[Hashable] | None = None,
    alpha: float = 0.05,
) -> Agreement:
    """Compare the mean of ``scores`` [n] with a printed number on the same questions.

    Both tests and the interval are those of :func:`compare_paired` against a constant: t of the
    cluster sums without their skewness, an exact bound where few samples differ.

    Parameters
    ----------
    scores : sequence of float
        [n] finite.
    printed : float
    margin : float
        Above 0: at least half a unit of the printed number's last digit.
    clusters : sequence, optional
        [n] what samples share.
    alpha : float
        Level of the interval.

    Raises
    ------
    ValueError
        As :func:`compare_paired`, and for a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError("a margin above 0 is needed")
    found = np.asarray(scores, float)
    constant = np.full(found.shape, printed)
    below = compare_paired(constant, found, clusters, margin, alpha)
    above = compare_paired(found, constant, clusters, margin, alpha)
    interval = None
    if below.interval is not None:
        low, high = below.interval
        interval = (printed + low, printed + high)
    return Agreement(
        float(found.mean()),
        printed,
        margin,
        interval,
        min(1.0, 2 * min(below.p_worse, above.p_worse)),
        max(below.p_not_inferior, above.p_not_inferior),
        below.clusters,
    )


def from_error(
    value: float,
    error: float,
    units: int,
    printed: float,
    margin: float,
    *,
    own_error: bool = False,
    alpha: float = 0.05,
) -> Agreement:
    """Compare a score that is no mean of samples, by its standard error.

    Parameters
    ----------
    value, error : float
        Score and standard error.
    units : int
        Independent units; t with one degree of freedom less.
    printed, margin : float
    own_error : bool
        The printed number has an error as large as ``error``: other samples were drawn.
    """
    from scipy import special

    if not (error > 0 and np.isfinite(error)) or units < MIN_CLUSTERS:
        return Agreement(value, printed, margin, None, 1.0, 1.0, units)
    spread = error * (2**0.5 if own_error else 1.0)
    half = float(special.stdtrit(units - 1, 1 - alpha / 2)) * spread
    away = value - printed

    def above(distance: float) -> float:
        """Return the chance of a difference of at least ``distance`` where there is none."""
        return float(special.stdtr(units - 1, -distance / spread))

    beyond, within = above(abs(away) - margin), max(above(margin - away), above(margin + away))
    interval = (value - half, value + half)
    return Agreement(value, printed, margin, interval, min(1.0, 2 * beyond), within, units)


@functools.cache
def half_width(share: float, units: int, alpha: float = 0.05) -> float:
    """Return half the width of the interval of a 0/1 score's mean over independent units.

    Parameters
    ----------
    share : float
        Expected mean, from 0 to 1.
    units : int
    """
    right = round(share * units)
    scores = np.zeros(units)
    scores[:right] = 1
    found = from_scores(scores, share, 0.5, alpha=alpha).interval
    if found is None:
        return 1.0
    return (found[1] - found[0]) / 2
