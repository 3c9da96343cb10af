"""FastV (Chen et al., ECCV 2024): drops the image tokens that the last prompt token ignores.

Layers 0..k-1 are dense.  The attention of layer k-1, last query row, averaged over heads, ranks
the image tokens; the best ones go on into layer k at their original positions.  Only that row of
the attention is computed, next to whatever kernel runs the layer.

The official repositories hold three decoders that answer differently; they are named options
here, and a FastV number must say which it used:

``static``
    Ranks once, in prefill; layers from k on store the pruned cache (llava-hf fork, lmms-eval).
``rerank``
    Drops nothing: ranks again at every step with that step's query and hides the losers from it
    (4.31 fork, mask variant).  It saves no compute and no memory.
``reprune``
    No cache: every step runs the whole sequence and prunes by its newest token (4.31 fork, in-place
    variant).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynllava.engine.stream import Segment
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
    check_count,
    check_fraction,
    check_layer,
    keep_highest,
)
from dynllava.methods.random import static_schedule

DECODERS = ("static", "rerank", "reprune")


@dataclass
class FastV(Method):
    """Keeps the image tokens that the last token of layer k-1 attends to most.

    Parameters
    ----------
    k : int
        First layer (from 0) that sees the reduced set; at least 1.
    keep_ratio : float
        Share of image tokens *kept*, ``int(n * keep_ratio)`` (the official ``fastv_r`` is the
        dropped share).
    keep : int or None
        Number of image tokens kept; replaces ``keep_ratio``.
    decoder : str
        ``static``, ``rerank`` or ``reprune``, see the module's description.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "image tokens the last prompt token attends to at layer k-1"
    source: ClassVar[str] = "arXiv 2403.06764, official repository pkunlp-icler/FastV"
    prunes: ClassVar[str] = "image tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")
    certificate: ClassVar[str] = "golden/baselines"
    single_cut: ClassVar[tuple[str, str] | None] = ("k", "keep_ratio")

    k: int = 3
    keep_ratio: float = 0.5
    keep: int | None = None
    decoder: str = "static"

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        check_layer("k", self.k, num_layers, first=1)
        check_fraction("keep_ratio", self.keep_ratio)
        keep = self.keep
        if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
            raise UserError(f"keep={keep!r}: accepted is None or a number of tokens from 1 on")
        if self.decoder not in DECODERS:
            raise UserError(f"decoder={self.decoder!r}: accepted are {', '.join(DECODERS)}")

    def check_model(self, heads: int, image_tokens: int) -> None:
        """See :meth:`Method.check_model`."""
        if self.keep is not None:
            check_count("keep", self.keep, image_tokens, "model's image tokens")

    def uses_cache(self) -> bool:
        """See :meth:`Method.uses_cache`."""
        return self.decoder != "reprune"

    def scores_stepwise(self) -> bool:
        """See :meth:`Method.scores_stepwise`."""
        return self.decoder == "rerank"

    def needs_whole_cache(self) -> bool:
        """See :meth:`Method.needs_whole_cache`."""
        return self.decoder == "rerank"

    def kept_count(self, image: int) -> int:
        """Return how many of ``image`` image tokens are kept."""
        if self.keep is not None:
            return min(self.keep, image)
        return int(image * self.keep_ratio + 1e-9)

    def probe(self, layer: int, ctx: StepContext) -> Probe | None:
        """Ask for one query row of layer k-1."""
        if layer != self.k - 1 or (ctx.decoding and self.decoder == "static"):
            return None
        # Nothing to rank: a text-only prompt costs no row of scores, nor do the steps after it.
        if ctx.decoding and "fastv_image" not in ctx.cache.method_state:
            return None
        if not ctx.decoding and not bool(ctx.stream.is_segment(Segment.IMAGE).any()):
            return None
        if self.decoder == "static":
            row = ctx.last_prompt_row()
        else:
            row = (ctx.stream.length - 1).clamp(min=0)
        return Probe(query_rows=row[:, None])

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Keep the image tokens with the highest attention."""
        if layer != self.k or observed is None or observed.rows is None:
            return None
        scores = observed.rows[:, :, 0].mean(1)
        ctx.record["fastv_scores"] = scores
        if ctx.cache is not None and self.decoder == "reprune":
            raise UserError("fastv decoder='reprune' runs without a cache: use_cache=False")
        if ctx.decoding:
            return self._rerank_step(scores, ctx)
        stream = ctx.stream
        is_image = stream.is_segment(Segment.IMAGE)
        counts = self._counts(is_image)
        keep = keep_highest(scores, is_image, counts)
        ctx.record["fastv_kept"] = keep & is_image
        if self.decoder == "rerank" and ctx.cache is not None:
            ctx.cache.method_state["fastv_image"] = is_image
        return Selection(keep, hide=self.decoder == "rerank")

    def _rerank_step(self, scores: torch.Tensor, ctx: StepContext) -> Selection:
        """Rank the cached image tokens by this call's query; hide the others in this call."""
        stored = ctx.cache.method_state["fastv_image"].to(scores.device)
        is_image = torch.nn.functional.pad(stored, (0, scores.shape[1] - stored.shape[1]))
        keep = keep_highest(scores, is_image, self._counts(is_image))
        ctx.record["fastv_kept"] = keep & is_image
        return Selection(keep, hide=True)

    def _counts(self, is_image: torch.Tensor) -> torch.Tensor:
        counts = is_image.sum(1)
        if self.keep is not None:
            return counts.clamp(max=self.keep)
        return torch.floor(counts.double() * self.keep_ratio + 1e-9).long()

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`."""
        kept = shape.image if self.decoder == "rerank" else self.kept_count(shape.image)
        return static_schedule(shape, num_layers, self.k, kept, 1.0)

    def overhead(self, shape: PromptShape, dims: ModelDims) -> list[Operation]:
        """Return the scoring row: one query against all keys, per head."""
        if shape.image == 0:
            return []
        phases = ("prefill", "decode") if self.decoder == "rerank" else ("prefill",)
        keys, heads = shape.total, dims.heads
        return [
            Operation("scores", "ranking", self.k - 1, phase, 1, dims.head_dim, keys, heads, 1)
            for phase in phases
        ]
