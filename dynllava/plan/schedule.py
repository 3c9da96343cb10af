"""How many tokens each layer processes and stores."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Tokens per layer as a function of prompt and output, for one row.

    Attributes
    ----------
    prefill_rows : tuple of int
        [layers] tokens that each layer processes in prefill.
    prefill_kv : tuple of int
        [layers] entries that each layer's cache holds after prefill.
    drops_output : tuple of bool
        [layers] whether dropped output tokens are missing from this layer.
    kv_limit : tuple of (int or None)
        [layers] most entries the cache holds (H2O's budget), ``None`` = no limit.
    output_keep : str or float
        How many of t output tokens are kept where ``drops_output``: a rate in [0, 1]
        (``floor(rate * t + 0.5)``), or ``"alternate"`` (``ceil(t / 2)``).
    """

    prefill_rows: tuple[int, ...]
    prefill_kv: tuple[int, ...]
    drops_output: tuple[bool, ...]
    kv_limit: tuple[int | None, ...]
    output_keep: float | str = 1.0

    def kept_outputs(self, outputs: int) -> int:
        """Return how many of ``outputs`` output tokens the dropping layers keep (expected)."""
        if self.output_keep == "alternate":
            return math.ceil(outputs / 2)
        return math.floor(float(self.output_keep) * outputs + 0.5)

    def kv_lengths(self, outputs: int, kept: int | None = None) -> list[int]:
        """Return [layers] cache entries after ``outputs`` output tokens were fed.

        ``kept`` is the realised number of kept ones; by default the expected one.
        """
        kept = self.kept_outputs(outputs) if kept is None else kept
        lengths = []
        for stored, drops, limit in zip(
            self.prefill_kv, self.drops_output, self.kv_limit, strict=True
        ):
            length = stored + (kept if drops else outputs)
            lengths.append(length if limit is None else min(length, limit))
        return lengths

    def attended_lengths(self, outputs: int, kept: int | None = None) -> list[int]:
        """Return [layers] keys that the next decode query attends to, itself included."""
        return [length + 1 for length in self.kv_lengths(outputs, kept)]

    def nocache_rows(self, outputs: int, kept: int | None = None) -> list[int]:
        """Return [layers] tokens processed by one call without a cache.

        ``outputs`` output tokens follow the prompt; ``kept`` counts those kept among the first
        ``outputs - 1``, since the last one always takes part in its own step.
        """
        if outputs == 0:
            return list(self.prefill_rows)
        kept = self.kept_outputs(outputs - 1) if kept is None else kept
        return [
            rows + (kept + 1 if drops else outputs)
            for rows, drops in zip(self.prefill_rows, self.drops_output, strict=True)
        ]
