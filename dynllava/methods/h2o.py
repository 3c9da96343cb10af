"""H2O (Zhang et al., NeurIPS 2023): each head keeps its heavy hitters and its newest entries.

After every forward each key/value head keeps the ``recent`` newest entries and, of the others, the
``heavy`` ones that received most attention since they arrived.  Evicted entries are gone for good.
Three official programs share the name; this is the one that really drops entries
(``utils_real_drop``).  The two that only simulate dropping by masks live in the conformance check.

Prompt scores are column sums of the causal attention, computed in blocks of queries: memory grows
with the prompt, not with its square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dynllava.engine.attention import QUERY_BLOCK
from dynllava.engine.cache import LayerStore, Lengths
from dynllava.engine.eviction import Budget, EvictingStore
from dynllava.engine.stream import TokenStream
from dynllava.errors import UserError
from dynllava.methods.base import (
    Method,
    ModelDims,
    Observed,
    Operation,
    Probe,
    PromptShape,
    Schedule,
    Selection,
    StepContext,
)

POSITIONS = ("original", "rolled")
PHASES = ("decode", "prefill+decode")


@dataclass
class H2O(Method):
    """Evicts cache entries per layer and head.

    Parameters
    ----------
    heavy, recent : float or int
        Budget of the heavy hitters and of the newest entries: a float is a share of the layer's
        prompt tokens (``int(share * N)``, fixed by the prompt), an integer a number of entries.
    position : str
        ``original``: entries and queries keep their rotary position.  ``rolled``: an entry's
        position is its rank in the cache at that step ("streaming").
    phase : str
        ``decode``: the prompt's own attention is full.  ``prefill+decode``: it is restricted to
        the keys that are heavy over the whole prompt and to the ``recent`` nearest ones.
    first_full_layers : int
        Layers from 0 on that are left alone.
    """

    name: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "KV entries evicted per head: heavy hitters and the newest stay"
    source: ClassVar[str] = "arXiv 2306.14048, official repository FMInference/H2O"
    prunes: ClassVar[str] = "KV entries"
    saves: ClassVar[tuple[str, ...]] = ("decode with cache",)
    positions: ClassVar[str] = "original, or rolled to cache slots"
    certificate: ClassVar[str] = "golden/baselines"

    heavy: float = 0.25
    recent: float = 0.25
    position: str = "original"
    phase: str = "decode"
    first_full_layers: int = 0

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        for name in ("heavy", "recent"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            share = isinstance(value, float)
            if not number or not math.isfinite(value) or value < 0 or (share and value > 1):
                raise UserError(
                    f"{name}={value!r}: accepted is a share from 0.0 to 1.0 or a number of entries"
                )
        if self.heavy + self.recent == 0:
            raise UserError("heavy=0, recent=0: accepted is a budget above 0")
        if self.position not in POSITIONS:
            raise UserError(f"position={self.position!r}: accepted are {', '.join(POSITIONS)}")
        if self.phase not in PHASES:
            raise UserError(f"phase={self.phase!r}: accepted are {', '.join(PHASES)}")
        full = self.first_full_layers
        if not isinstance(full, int) or isinstance(full, bool) or not 0 <= full < num_layers:
            raise UserError(
                f"first_full_layers={full!r}: accepted is a number from 0 to {num_layers - 1}"
            )

    def check_model(self, heads: int, image_tokens: int) -> None:
        """See :meth:`Method.check_model`."""
        for name in ("heavy", "recent"):
            value = getattr(self, name)
            if 0 < value < 1 and int(value * image_tokens) == 0:
                raise UserError(
                    f"{name}={value!r}: keeps none of {image_tokens} tokens; accepted is 0 or a "
                    f"share from {1 / image_tokens:.2g}"
                )

    def budget(self, length: int) -> tuple[int, int]:
        """Return (heavy, recent) entries for ``length`` prompt tokens in a layer."""
        heavy, recent = (
            int(value * length) if isinstance(value, float) else value
            for value in (self.heavy, self.recent)
        )
        return heavy, recent

    def scores_stepwise(self) -> bool:
        """See :meth:`Method.scores_stepwise`."""
        return True

    def probe(self, layer: int, ctx: StepContext) -> Probe | None:
        """Ask for the column sums of the prompt's attention."""
        if ctx.decoding or layer < self.first_full_layers:
            return None
        return Probe(column_sums=True)

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Drop no token; refuse to run where there is nothing to evict from."""
        if ctx.cache is None:
            raise UserError("h2o evicts cache entries: it needs use_cache=True")
        return None

    def make_store(
        self, layer: int, stream: TokenStream, lengths: Lengths, chunk: int
    ) -> LayerStore:
        """Return the evicting store of a layer; its budget counts the layer's own tokens."""
        if layer < self.first_full_layers:
            return LayerStore(lengths, chunk)
        budgets = [self.budget(length) for length in stream.host_lengths]
        return EvictingStore(
            Budget(*zip(*budgets, strict=True)),
            list(stream.host_lengths),
            compact=lengths.compact,
            rolled=self.position == "rolled",
            masks_prompt=self.phase == "prefill+decode",
            chunk=chunk,
        )

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`."""
        return self.limit_cache(super().schedule(shape, num_layers))

    def limit_cache(self, schedule: Schedule) -> Schedule:
        """Put each layer's cache under the budget of that layer's own tokens."""
        limits: list[int | None] = []
        stored = []
        for layer, held in enumerate(schedule.prefill_kv):
            full = layer < self.first_full_layers
            limit = None if full else sum(self.budget(held))
            limits.append(limit)
            stored.append(held if limit is None else min(held, limit))
        return Schedule(
            schedule.prefill_rows,
            tuple(stored),
            schedule.drops_output,
            tuple(limits),
            schedule.output_keep,
        )

    def overhead(self, shape: PromptShape, dims: ModelDims) -> list[Operation]:
        """Return the column sums' products (and the scores that a restricted prompt needs)."""
        return self.overhead_on((shape.total,) * dims.layers, shape, dims)

    def overhead_on(
        self, rows: tuple[int, ...], shape: PromptShape, dims: ModelDims
    ) -> list[Operation]:
        """Return the same where layers have ``rows`` tokens.

        The prompt's own attention forms the probabilities that are summed; only where it is
        restricted (``phase``) do they need a pass of their own.  A block of queries sees only the
        keys up to its end.
        """
        operations = []
        for layer in range(self.first_full_layers, dims.layers):
            for start in range(0, rows[layer], QUERY_BLOCK):
                block = min(QUERY_BLOCK, rows[layer] - start)
                products = [("column_sums", 1, block)]
                if self.phase != "decode":
                    products.append(("scores", block, dims.head_dim))
                operations += [
                    Operation(name, "scoring", layer, "prefill", m, k, start + block, dims.heads)
                    for name, m, k in products
                ]
        return operations
