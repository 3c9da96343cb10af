"""Several tests at once: Holm's step-down procedure."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Return which hypotheses Holm's procedure rejects at family-wise error rate ``alpha``.

    Parameters
    ----------
    p_values : sequence of float
        [k] one p value a hypothesis, however they depend on each other.
    alpha : float
        Probability of rejecting any true hypothesis.

    Returns
    -------
    list of bool
        In the order given.
    """
    return [adjusted <= alpha for adjusted in holm_adjusted(p_values)]


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values (Holm 1979) in the order given, each at most 1."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
