"""How far roofline estimates lay from published measurements, by regime, and the memory they miss.

The estimates leave out kernel launches, norms, host time and cache copies.  How much that is was
measured by others, on an A100 with the Hugging Face code of the time: by mode, and by whether large
batches hide launches.  An estimated time or speed-up is shown with the range of its regime, or with
the remark that no run of that regime was published.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from dynllava.published.labels import is_dense

from .against_published import Comparison, compare
from .devices import GIB

LARGE_BATCH = 8
NOT_CHECKED = "no published run"

Regime = tuple[str, bool, bool]
"""(mode, batch of 8 or more, method drops something)."""


@dataclass(frozen=True)
class Band:
    """Lowest and highest measured / estimated of ``rows`` published rows."""

    low: float
    high: float
    rows: int

    def __str__(self) -> str:
        return f"{self.low:.2f}-{self.high:.2f}x ({self.rows} row{'s' if self.rows > 1 else ''})"


@functools.cache
def _ratios() -> tuple[dict[Regime, list[float]], dict[tuple[str, bool], list[float]]]:
    times: dict[Regime, list[float]] = {}
    speedups: dict[tuple[str, bool], list[float]] = {}
    rows = [row for row in compare() if row.mode != "memory"]
    for row in rows:
        if row.ratio is None:
            continue
        large = row.batch >= LARGE_BATCH
        sparse = not is_dense(row.method)
        times.setdefault((row.mode, large, sparse), []).append(row.ratio)
        dense = next((item for item in rows if _is_dense_of(item, row)), None)
        if sparse and dense is not None and dense.ratio is not None:
            speedups.setdefault((row.mode, large), []).append(dense.ratio / row.ratio)
    return times, speedups


def _is_dense_of(item: Comparison, row: Comparison) -> bool:
    same = (item.table, item.model, item.batch, item.quantity)
    return is_dense(item.method) and same == (row.table, row.model, row.batch, row.quantity)


def time_band(mode: str, batch: int, sparse: bool) -> Band | None:
    """Return measured / estimated time of the published rows of a regime, None without any.

    Parameters
    ----------
    mode : str
        One of :data:`dynllava.costs.ledger.MODES`.
    batch : int
        Published are 1 and 8: below 8 the rows of batch 1 stand, from 8 on those of 8.
    sparse : bool
        Whether the method drops anything.
    """
    found = _ratios()[0].get((mode, batch >= LARGE_BATCH, sparse))
    return Band(min(found), max(found), len(found)) if found else None


def speedup_band(mode: str, batch: int) -> Band | None:
    """Return measured / estimated speed-up over dense of a regime, None without published rows."""
    found = _ratios()[1].get((mode, batch >= LARGE_BATCH))
    return Band(min(found), max(found), len(found)) if found else None


def speedup_text(estimated: float, mode: str, batch: int) -> str:
    """Return an estimated speed-up with what published runs of its regime make of it."""
    band = speedup_band(mode, batch)
    if band is None:
        return f"{estimated:.2f}x ({NOT_CHECKED})"
    low, high = estimated * band.low, estimated * band.high
    return f"{estimated:.2f}x (as published runs went: {low:.2f}-{high:.2f}x)"


@dataclass(frozen=True)
class MemoryOverhead:
    """Memory beyond weights, KV cache and working set, least squares over published peaks.

    ``base`` bytes, and ``per_kv_byte`` bytes a byte of KV at the end of the run; ``residuals`` are
    measured - fitted, in bytes, by row of table 4.
    """

    base: float
    per_kv_byte: float
    residuals: dict[str, float]

    def of(self, kv_bytes: float) -> float:
        """Return the overhead in bytes."""
        return max(0.0, self.base + self.per_kv_byte * kv_bytes)


@functools.cache
def memory_overhead() -> MemoryOverhead:
    """Fit the overhead to the eight published peaks (13B, batch 8, decoding with a cache).

    Near one byte a byte of KV: that code concatenated, so the old cache lay beside the new one.
    """
    rows = [row for row in compare() if row.mode == "memory" and row.measured is not None]
    matrix = np.array([[1.0, row.kv_gib] for row in rows])
    missing = np.array([(row.measured or 0.0) - row.estimated for row in rows])
    solution, *_ = np.linalg.lstsq(matrix, missing, rcond=None)
    rest = missing - matrix @ solution
    residuals = {
        f"{row.method}, {row.outputs} tokens": float(value) * GIB
        for row, value in zip(rows, rest, strict=True)
    }
    return MemoryOverhead(float(solution[0]) * GIB, float(solution[1]), residuals)
