"""Why a printed decode or KV figure differs from Eq. 13 on the printed token counts.

A reason is given only where the table itself supports it: token counts are printed as whole
numbers, so a cost is known up to half a token; what lies outside may come from unequal lengths
(Eq. 13 is a quadratic, and cells are means over samples), but only if the lengths this takes are
possible and the rows about the same texts agree on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dynllava.plan.names import FULL, LEARNED
from dynllava.published import labels
from dynllava.published import tables as published

from ..points import costs

ROUNDING = "within rounding: half a token more or less in the printed whole token counts allows it"
LENGTHS = (
    "printed above Eq. 13 on the printed mean token counts: samples of unequal length would do it "
    "(a mean of a quadratic lies above the quadratic of the mean); the tables neither confirm nor "
    "refute that"
)
REFUTED = (
    "printed above Eq. 13 on the printed mean token counts; unequal lengths do not explain it: the "
    "rows about the same teacher-forced texts would need different lengths"
)
IMPLAUSIBLE = (
    "printed above Eq. 13 on the printed mean token counts; unequal lengths would have to vary "
    "with a standard deviation above their mean: the cause is not known"
)
BELOW = "printed below Eq. 13 on the printed mean token counts: the cause is not known"
DOUBLED = (
    "printed cell equals the 13B one and is twice what its token counts imply: probably an error "
    "at the source"
)
H2O_TOKENS = (
    "the paper puts the tokens that H2O's cache holds through Eq. 13; H2O computes every output "
    "token and saves attention products only"
)
MEASURED_KV = (
    "computed: bytes of the output tokens' keys and values; printed: maximum GPU memory of the "
    "cache as measured by the authors"
)
KV_SOURCE = (
    "printed: over 1.5 times the bytes of all output tokens, dropped ones included; probably an "
    "error at the source"
)
_KV_LIMIT = 1.5

Interval = tuple[float, float]


@dataclass(frozen=True)
class Generation:
    """One row and run (``"ppl"`` teacher-forced, ``"meteor"`` generating) of a generation table.

    Attributes
    ----------
    method : str
    size : Size
    total, computing : float
        Printed mean output tokens, and those that sparse layers compute.
    """

    method: str
    size: costs.Size
    total: float
    computing: float

    @property
    def dense(self) -> int:
        """Layers that compute all output tokens."""
        return labels.dense_layers(self.method)

    def tflops(self, more: float = 0.0) -> float:
        """Return Eq. 13's TFLOPs with ``more`` tokens than printed in both counts."""
        hidden, layers = self.size.hidden, self.size.layers

        def one(tokens: float) -> float:
            return 32 * tokens * hidden**2 + 4 * tokens**2 * hidden

        kept = (layers - self.dense) * one(self.computing + more)
        return (self.dense * one(self.total + more) + kept) / 1e12

    def variance(self, printed: published.Printed) -> Interval:
        """Return the variance of total lengths that ``printed`` takes, if kept shares are equal."""
        half = 0.5 * 10.0**-printed.decimals
        share = self.computing / self.total
        layers = self.dense + (self.size.layers - self.dense) * share**2
        factor = 4 * self.size.hidden * layers / 1e12
        low = (printed.value - half - self.tflops(0.5)) / factor
        return max(0.0, low), (printed.value + half - self.tflops(-0.5)) / factor


def generation(row: dict[str, Any], run: str) -> Generation | None:
    """Return a row's run, None where token counts are not printed."""
    total, computing = row[f"total_tokens_{run}"], row[f"computing_tokens_{run}"]
    if total is None or computing is None:
        return None
    method = row.get("method") or (FULL if labels.is_dense(row["context"]) else LEARNED)
    size = costs.size_of("7b" if "context" in row else row.get("model") or row["method"])
    # H2O evicts from the cache and computes every token.
    computed = total.value if labels.evicts(method) else computing.value
    return Generation(method, size, total.value, computed)


def decode_reason(row: dict[str, Any], run: str) -> str:
    """Return why a row's printed decode TFLOPs differ from Eq. 13."""
    found, printed = generation(row, run), row[f"decode_tflops_{run}"]
    if found is None or printed is None:
        return ""
    if labels.evicts(found.method):
        return H2O_TOKENS
    half = 0.5 * 10.0**-printed.decimals
    if found.tflops(-0.5) <= printed.value + half and printed.value - half <= found.tflops(0.5):
        return ROUNDING
    if printed.value < found.tflops():
        return BELOW
    needed = found.variance(printed)
    if _doubled(row, run, printed):
        return DOUBLED
    if run == "ppl" and not _overlap(needed, teacher_forced_variance(row["benchmark"])):
        return REFUTED
    return IMPLAUSIBLE if math.sqrt(needed[0]) > found.total else LENGTHS


def _doubled(row: dict[str, Any], run: str, printed: published.Printed) -> bool:
    """Return whether a 7B cell repeats the 13B one of the same method."""
    if row.get("model") != "llava-1.5-7b":
        return False
    return any(
        other["model"] == "llava-1.5-13b"
        and (other["benchmark"], other["method"]) == (row["benchmark"], row["method"])
        and other[f"decode_tflops_{run}"] is not None
        and other[f"decode_tflops_{run}"].text == printed.text
        for other in published.table(3)
    )


@lru_cache(maxsize=16)
def teacher_forced_variance(benchmark: str) -> Interval | None:
    """Return the variance of lengths on which table 3's dense rows agree; None if they do not.

    The answers are given, so both model sizes (one tokenizer) run the same texts.
    """
    low, high = 0.0, math.inf
    for row in published.table(3):
        found, printed = generation(row, "ppl"), row["decode_tflops_ppl"]
        dense = (
            found is not None and found.total == found.computing and not labels.evicts(found.method)
        )
        if found is None or printed is None or row["benchmark"] != benchmark or not dense:
            continue
        needed = found.variance(printed)
        low, high = max(low, needed[0]), min(high, needed[1])
    return (low, high) if low <= high else None


def _overlap(first: Interval, second: Interval | None) -> bool:
    return second is not None and first[0] <= second[1] and second[0] <= first[1]


def kv_reason(row: dict[str, Any], run: str) -> str:
    """Return why a row's printed KV memory differs from the bytes of its output tokens."""
    found, printed = generation(row, run), row[f"kv_mem_mb_{run}"]
    if found is None or printed is None:
        return ""
    every = costs.output_kv_bytes(FULL, found.size, found.total, found.total) / 1e6
    return KV_SOURCE if printed.value > _KV_LIMIT * every else MEASURED_KV


def tokens_for(printed: float, tflops: Callable[[float], float], base: float) -> float:
    """Return the image tokens at which ``tflops`` is ``printed`` (searched up to ``base``)."""
    low, high = 0.0, base
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tflops(middle) < printed else (low, middle)
    return high
