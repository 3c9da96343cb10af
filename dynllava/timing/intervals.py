"""What a measured quantity's stored rounds say about its true median."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from dynllava.records import Measured
from dynllava.uncertainty.medians import MIN_ROUNDS, median_interval, summary_margin

_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""97.5 % points of Student's t for two to five processes, which order statistics cannot serve."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a median, and what it speaks of.

    Attributes
    ----------
    low, high : float
        In the quantity's unit.
    processes : int
        Processes it is taken over.  With one it speaks of that process alone: what differs from
        process to process (memory layout, clocks, drift) is not inside.
    rounds : int
        Rounds, of all processes together.
    """

    low: float
    high: float
    processes: int
    rounds: int

    @property
    def what(self) -> str:
        """Return the numbers of rounds and processes in words."""
        return f"{self.rounds} rounds, " + (
            "one process" if self.processes == 1 else f"{self.processes} processes"
        )


def interval(item: Measured) -> Interval | None:
    """Return the 95 % interval of a measured median, None under six rounds.

    Six processes or more: order statistics of their medians.  Two to five: Student's t of their
    medians.  One: order statistics of its rounds, or, where they are not stored (schema 1), a
    factor on the inter-quartile range that covers.
    """
    if item.repeats < MIN_ROUNDS or item.iqr is None:
        return None
    medians = [statistics.median(values) for values in item.rounds.values() if values]
    count = len(medians)
    if count == 0:
        half = summary_margin(item.iqr, item.repeats) or 0.0
        return Interval(item.median - half, item.median + half, 1, item.repeats)
    if count in range(2, MIN_ROUNDS):
        half = _T[count - 1] * statistics.stdev(medians) / math.sqrt(count)
        middle = statistics.mean(medians)
        return Interval(middle - half, middle + half, count, item.repeats)
    values = medians if count >= MIN_ROUNDS else next(iter(item.rounds.values()))
    found = median_interval(values)
    return None if found is None else Interval(found.low, found.high, count, item.repeats)
