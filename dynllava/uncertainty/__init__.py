"""Statistics of paired runs: tests that know clusters and margins, intervals, families, power."""

from .families import holm, holm_adjusted
from .medians import MIN_ROUNDS, MedianInterval, median_interval
from .paired import (
    MIN_CLUSTERS,
    MIN_DIFFERING,
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    Comparison,
    compare_paired,
)

__all__ = [
    "MIN_CLUSTERS",
    "MIN_DIFFERING",
    "MIN_ROUNDS",
    "NOT_WORSE",
    "UNDECIDED",
    "WORSE",
    "Comparison",
    "MedianInterval",
    "compare_paired",
    "holm",
    "holm_adjusted",
    "median_interval",
]
