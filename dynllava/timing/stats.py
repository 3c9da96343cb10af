"""Medians, spreads and realised shares of interleaved timings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SAVING = 0.05
"""Below this counted saving a realised share would be noise divided by little: undefined."""

SLOWER = 1.0
"""A method whose median time ratio to dense exceeds this is flagged."""


@dataclass(frozen=True)
class Spread:
    """Median and inter-quartile range of repeats."""

    median: float
    iqr: float
    repeats: int


def spread(values: Sequence[float]) -> Spread:
    """Return median and inter-quartile range (linear interpolation) of at least one value."""
    if len(values) == 1:
        return Spread(values[0], 0.0, 1)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), high - low, len(values))


def median_margin(found: Spread) -> float:
    """Return half an approximate 95 % interval of the median: 1.57 IQR / sqrt(n).

    The notch of a box plot (McGill, Tukey and Larsen 1978); with few repeats it exceeds half the
    inter-quartile range.
    """
    return 1.57 * found.iqr / math.sqrt(found.repeats)


def paired_ratios(times: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return time / baseline of each repeat: both ran next to each other, so drift cancels."""
    return [time / base for time, base in zip(times, baseline, strict=True)]


def realised_share(ratio: float, cost_ratio: float) -> float | None:
    """Return (1 - t/t_dense) / (1 - c/c_dense), None if less than 5 % was saved on paper.

    Parameters
    ----------
    ratio : float
        t / t_dense, measured.
    cost_ratio : float
        c / c_dense: FLOPs for prefill and for decoding without a cache, bytes moved (weights and
        KV) for decoding with one.
    """
    saving = 1 - cost_ratio
    return None if saving < MIN_SAVING else (1 - ratio) / saving
