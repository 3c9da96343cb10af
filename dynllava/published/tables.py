"""Published numbers as typed data: values as printed, with units and sources."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from dynllava.errors import UserError

DYNAMIC_LLAVA = "Huang et al., ICLR 2025, arXiv 2412.00876v4"
RESTORE = "Cho et al., ICML 2026 (RESTORE), table 1"
FASTV = "FastV README, time to first token on A-OKVQA, one A100 80G"

PAPER_KEY, RESTORE_KEY, FASTV_KEY = "dynamic-llava", "restore", "fastv"
"""What commands and reports call the three studies."""

_TITLES = {
    1: "Vision understanding: LLaVA-1.5 with sparsified vision context",
    2: "Vision projectors and token sparsification",
    3: "Generation: fluency (PPL) and quality (METEOR) against cost",
    4: "Prefill time, decoding time without cache, memory with cache (A100)",
    5: "Keep rates of vision and language context",
    6: "Hyper-parameters",
    7: "Masked softmax in training",
    8: "Tokens of the benchmarks before and after sparsification",
    9: "Sparsifying the text of the prompt as well",
    10: "Prefill TFLOPs by Eq. 13",
    11: "More methods on the vision understanding benchmarks",
    12: "VizWiz, LLaVA-Bench (wild), MM-Vet",
    13: "Generation with TokenPacker",
    14: "Latency per call on one A100",
    15: "Training time",
    16: "Keep rates on more understanding benchmarks",
    17: "Keep rates on the generation benchmarks",
}
TABLES = tuple(sorted(_TITLES))
"""Numbers of the paper's tables."""

_TEXT_COLUMNS = {
    "model", "method", "variant", "training_free", "projector", "benchmark", "context",
    "hyperparameter", "quantity", "segments", "hardware",
}  # fmt: skip
_TOKEN_WORDS = ("tokens", "vqav2", "vizwiz", "sciqa", "lvis_single", "lvis_multi", "sharegpt4v")
_UNITS = {
    "tflops": "TFLOPs (paper Eq. 13)",
    "prefill_s": "s", "prefill_ms": "ms", "decode_ms_per_token": "ms/token",
    "hours": "h", "time_to_first_token_s": "s", "gpu_memory_gb": "GB",
    "batch_size": "samples", "keep_rate": "share", "hidden_size": "channels",
    "layers": "layers", "resolution": "pixels", "value": "1", "generated_tokens": "tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Printed:
    """One printed value.

    Attributes
    ----------
    text : str
        The digits as printed, e.g. ``"2.50"``.
    value : float
        The number; not finite for ``oom`` (infinite).
    """

    text: str
    value: float

    @property
    def decimals(self) -> int:
        """Digits after the decimal point."""
        return len(self.text.partition(".")[2])


@dataclass(frozen=True)
class Column:
    """Name, type (``text`` or ``number``) and unit of a column."""

    name: str
    kind: str
    unit: str


@dataclass(frozen=True)
class PublishedTable:
    """One CSV file of :mod:`dynllava.paper`.

    Attributes
    ----------
    name : str
        File name.
    title : str
    source : str
        Publication and place in it.
    columns : tuple of Column
    rows : tuple of dict
        Column name to text, :class:`Printed`, or None where nothing is reported.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def unit(self, column: str) -> str:
        """Return the unit of ``column``."""
        return next(item.unit for item in self.columns if item.name == column)


def table(number: int) -> PublishedTable:
    """Return the paper's table ``number`` (1-17).

    Raises
    ------
    UserError
        If there is no such table.
    """
    if number not in _TITLES:
        raise UserError(f"table {number}: accepted are 1 to {max(_TITLES)}, all and ours")
    folder = resources.files("dynllava.paper")
    prefix = f"table{number:02d}_"
    name = next(item.name for item in folder.iterdir() if item.name.startswith(prefix))
    return _load(name, _TITLES[number], f"{DYNAMIC_LLAVA}, table {number}")


def restore_budgets() -> PublishedTable:
    """Return baselines at 192, 128 and 64 image tokens, re-run in one environment.

    MME is perception + cognition and SEED covers all question types here: neither column may be
    mixed with the tables of the Dynamic-LLaVA paper.
    """
    return _load(
        "published_budgets_llava15_7b.csv", "Baselines at three budgets, LLaVA-1.5-7B", RESTORE
    )


def fastv_latency() -> PublishedTable:
    """Return FastV's own latency measurements."""
    return _load("fastv_latency_a100.csv", "FastV: time to first token", FASTV)


@functools.cache
def _load(name: str, title: str, source: str) -> PublishedTable:
    text = (resources.files("dynllava.paper") / name).read_text(encoding="utf-8")
    reader = csv.DictReader(text.splitlines())
    names = list(reader.fieldnames or [])
    columns = tuple(
        Column(key, "text" if key in _TEXT_COLUMNS else "number", _unit(key, name)) for key in names
    )
    rows = tuple(
        {item.name: _parse(row[item.name], item, name) for item in columns} for row in reader
    )
    return PublishedTable(name, title, source, columns, rows)


def _unit(column: str, file: str) -> str:
    if column in _TEXT_COLUMNS:
        return ""
    if "tflops" in column:
        return _UNITS["tflops"]
    if column in _UNITS:
        return _UNITS[column]
    if "tokens" in column or (file.startswith("table08") and column in _TOKEN_WORDS):
        return "tokens"
    if "mem_mb" in column:
        return "MB"
    if "mem_gb" in column:
        return "GB"
    if column.startswith("decode_no_cache"):
        return "s"
    if "ppl" in column:
        return "perplexity"
    return "score"


def _parse(text: str, column: Column, file: str) -> str | Printed | None:
    text = text.strip()
    if not text:
        return None
    if column.kind == "text":
        return text
    if text == "oom":
        return Printed(text, float("inf"))
    try:
        return Printed(text, float(text))
    except ValueError:
        raise UserError(f"{file}: column {column.name}: {text!r} is no number", 1) from None
