"""Roofline estimates beside the published A100 measurements, row by row.

The papers do not print the prompt's text length; :data:`TEXT_TOKENS` is assumed.  Nothing is
fitted here: the ratio measured / estimated shows what the estimate leaves out (kernel launches,
eager attention, host work, growing caches); :mod:`dynllava.costs.bands` sums that up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dynllava.methods.base import Method
from dynllava.published import labels, tables

from . import kv, roofline
from .devices import GIB, load_device
from .ledger import Run
from .spec import PRESETS

TEXT_TOKENS = 60
DEVICE = "a100-80g"
DTYPE = "float16"


@dataclass(frozen=True)
class Comparison:
    """A published measurement (None: out of memory) and our estimate of the same quantity.

    ``mode`` is one of :data:`dynllava.costs.ledger.MODES`, or ``"memory"``; ``kv_gib`` the KV
    cache at the end of a memory row.
    """

    table: str
    model: str
    method: str
    batch: int
    outputs: int
    quantity: str
    unit: str
    measured: float | None
    note: str
    estimated: float
    mode: str
    kv_gib: float | None = None

    @property
    def ratio(self) -> float | None:
        """Measured / estimated."""
        return None if self.measured is None else self.measured / self.estimated


def method_of_label(label: str) -> Method:
    """Return the method that a row of the published tables names."""
    from dynllava import methods

    name, parameters = labels.method_of(label)
    return methods.create(name, **parameters)


def compare(efficiency: roofline.Efficiency | None = None) -> list[Comparison]:
    """Return every published A100 timing (and cache-decoding memory) with our estimate."""
    rows = [*_latency(efficiency), *_time_and_memory(efficiency), *_first_token(efficiency)]
    return rows


def _latency(efficiency: roofline.Efficiency | None) -> Iterator[Comparison]:
    for row in tables.table(14):
        outputs, batch = int(row["generated_tokens"].value), int(row["batch_size"].value)
        for column, mode in (("prefill_ms", "prefill"), ("decode_ms_per_token", "decode")):
            yield _timed("table 14", row, batch, outputs, column, "ms", mode, efficiency)


def _time_and_memory(efficiency: roofline.Efficiency | None) -> Iterator[Comparison]:
    for row in tables.table(4):
        batch = int(row["batch_size"].value)
        yield _timed("table 4", row, batch, 1, "prefill_s", "s", "prefill", efficiency)
        for thousands in (1, 2, 4):
            outputs = thousands * 1000
            column = f"decode_no_cache_{thousands}k_s"
            yield _timed("table 4", row, batch, outputs, column, "s", "decode_nocache", efficiency)
            yield _memory(row, batch, outputs, f"decode_cache_{thousands}k_mem_gb")


def _first_token(efficiency: roofline.Efficiency | None) -> Iterator[Comparison]:
    for row in tables.fastv_latency():
        yield _timed("FastV", row, 1, 1, "time_to_first_token_s", "s", "prefill", efficiency)


def _timed(
    table: str,
    row: dict[str, Any],
    batch: int,
    outputs: int,
    column: str,
    unit: str,
    mode: str,
    efficiency: roofline.Efficiency | None,
) -> Comparison:
    measured, note = _number(row[column])
    run = _run(row, batch, outputs)
    estimate = roofline.estimate(run, mode, load_device(DEVICE), DTYPE, efficiency)
    seconds = estimate.per_call if column.endswith("per_token") else estimate.total
    value = seconds * (1000 if unit == "ms" else 1)
    return Comparison(
        table,
        row["model"],
        row["method"],
        batch,
        outputs,
        column,
        unit,
        measured,
        note,
        value,
        mode,
    )


def _memory(row: dict[str, Any], batch: int, outputs: int, column: str) -> Comparison:
    measured, note = _number(row[column])
    run = _run(row, batch, outputs)
    value = kv.memory_bytes(run, DTYPE) / GIB
    held = kv.kv_state(run, outputs - 1, DTYPE).total_stored / GIB
    return Comparison(
        "table 4", row["model"], row["method"], batch, outputs, column, "GB", measured, note, value,
        "memory", held,
    )  # fmt: skip


def _run(row: dict[str, Any], batch: int, outputs: int) -> Run:
    spec = PRESETS[row["model"]]
    return Run(spec, method_of_label(row["method"]), spec.prompt(TEXT_TOKENS), outputs, batch)


def _number(cell: tables.Printed | None) -> tuple[float | None, str]:
    """Return a cell's number and a note (``oom``)."""
    if cell is None:
        return None, ""
    return (cell.value, "") if math.isfinite(cell.value) else (None, cell.text)
