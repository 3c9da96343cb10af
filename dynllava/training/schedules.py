"""Schedules by optimiser step."""

from __future__ import annotations


def gumbel_tau(step: int, max_steps: int, start: float = 1.0, end: float = 0.1) -> float:
    """Return the Gumbel temperature of a step, exponential from ``start`` to ``end``.

    ``start * (end / start) ** (step / max_steps)``, set at the beginning of each step as the
    official callback does; constant at ``end`` behind ``max_steps``.
    """
    share = min(1.0, step / max(1, max_steps))
    return start * (end / start) ** share
