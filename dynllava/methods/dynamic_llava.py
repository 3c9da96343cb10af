"""Dynamic-LLaVA (Huang et al., ICLR 2025): learned image and output predictors.

Conventions follow the official code: predictor logit 0 means keep, the layer counts from 0,
``int()`` truncates the number of kept image tokens, positions are never renumbered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dynllava.engine.stream import Segment, take_rows
from dynllava.errors import UserError
from dynllava.methods.base import (
    Method,
    ModelDims,
    Observed,
    Operation,
    PromptShape,
    Schedule,
    Selection,
    StepContext,
    check_fraction,
    check_layer,
    top_image_tokens,
)


@dataclass
class DynamicLlava(Method):
    """Learned sparsification of image tokens (I), output tokens (T), or both (I|T).

    Parameters
    ----------
    sparse_layer : int
        First layer (from 0) that sees the reduced set.
    vision_keep_rate : float
        Share of image tokens kept, ``int(n * rate)`` of them; 1.0 switches the image predictor off.
    output_keep_rate : float
        What the output predictor was trained for; 1.0 switches it off.  It decides by
        logit0 > logit1, so any other value than the trained one needs ``output_threshold``.
    output_threshold : float or None
        Keep an output token if logit0 - logit1 exceeds this margin (default 0).
    strict_official : bool
        Without a cache, choose kept output tokens as the official code does: as many as
        decide to stay, but the ones with the highest raw logit0.
    """

    name: ClassVar[str] = "dynamic_llava"
    summary: ClassVar[str] = "learned image and output predictors after layer 2"
    source: ClassVar[str] = "arXiv 2412.00876, official repository Osilly/dynamic_llava"
    prunes: ClassVar[str] = "image and output tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")
    certificate: ClassVar[str] = "golden/dynamic_llava"
    single_cut: ClassVar[tuple[str, str] | None] = ("sparse_layer", "vision_keep_rate")

    sparse_layer: int = 2
    vision_keep_rate: float = 0.2
    output_keep_rate: float = 0.5
    output_threshold: float | None = None
    strict_official: bool = False

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        check_layer("sparse_layer", self.sparse_layer, num_layers)
        check_fraction("vision_keep_rate", self.vision_keep_rate)
        check_fraction("output_keep_rate", self.output_keep_rate)
        threshold = self.output_threshold
        if threshold is not None and not math.isfinite(threshold):
            raise UserError(f"output_threshold={threshold!r}: accepted is a finite number")

    def check_checkpoint(self, sparse_config: dict[str, Any]) -> None:
        """Refuse an output keep rate that the predictor was not trained for."""
        trained, chosen = sparse_config["output_text_keep_rate"], self.output_keep_rate
        if not sparse_config["use_output_text_predictor"] or self.output_threshold is not None:
            return
        if chosen not in (1.0, trained):
            raise UserError(
                f"output_keep_rate={chosen}: the checkpoint's output predictor was trained for "
                f"{trained}; accepted are {trained}, 1.0 (predictor off), or any rate together "
                "with a calibrated output_threshold"
            )

    def output_layer(self) -> int | None:
        """See :meth:`Method.output_layer`."""
        return self.sparse_layer if self.output_keep_rate < 1 else None

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Decide on image tokens (prompt) and output tokens at the sparse layer's input."""
        if layer != self.sparse_layer:
            return None
        stream = ctx.stream
        keep = None
        if not ctx.decoding and self.vision_keep_rate < 1:
            keep = self._keep_image_tokens(ctx)
        if self.output_keep_rate < 1 and self._has_outputs(ctx):
            logits = self._judge_outputs(ctx)
            ctx.record["output_predictor_logits"] = logits
            is_output = stream.is_segment(Segment.OUTPUT)
            stays = self.decide(logits)
            if self.strict_official and not ctx.decoding:
                stays = official_nocache_choice(logits, stays, stream.length, is_output)
            stays = stays.to(is_output.device) | ~is_output
            keep = stays if keep is None else keep & stays
        return None if keep is None else Selection(keep)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Return bool [...] from output predictor logits [..., 2]; a tie drops."""
        margin = logits[..., 0].float() - logits[..., 1].float()
        return margin > (self.output_threshold or 0.0)

    def _judge_outputs(self, ctx: StepContext) -> torch.Tensor:
        """Return output predictor logits [B, L, 2]; zero for tokens that are no output tokens."""
        if ctx.output_predictor is None:
            raise UserError("the model has no output predictor: set output_keep_rate=1.0")
        hidden = ctx.stream.hidden
        if ctx.stream.size == 1:
            return ctx.output_predictor(hidden)
        # A call without a cache has the prompt in front of them: judge output tokens only.
        is_output = ctx.stream.is_segment(Segment.OUTPUT)
        most = int(is_output.sum(1).max())
        order = torch.argsort((~is_output).to(torch.uint8), dim=1, stable=True)[:, :most]
        judged = ctx.output_predictor(take_rows(hidden, order))
        logits = judged.new_zeros(*is_output.shape, 2)
        return logits.scatter(1, order[..., None].expand(-1, -1, 2).to(judged.device), judged)

    def _has_outputs(self, ctx: StepContext) -> bool:
        # A decode step is one token a row and always an output token; asking the tensor
        # would cost a host synchronisation.
        if ctx.decoding and ctx.stream.size == 1:
            return True
        return bool(ctx.stream.is_segment(Segment.OUTPUT).any())

    def _keep_image_tokens(self, ctx: StepContext) -> torch.Tensor | None:
        stream = ctx.stream
        is_image = stream.is_segment(Segment.IMAGE)
        counts = is_image.sum(1)
        host_counts = counts.tolist()
        most = max(host_counts)
        if most == 0:
            return None
        if ctx.image_predictor is None:
            raise UserError("the model has no image predictor: set vision_keep_rate=1.0")
        order = torch.argsort((~is_image).to(torch.uint8), dim=1, stable=True)[:, :most]
        hidden = take_rows(stream.hidden, order)
        mask = None
        if min(host_counts) != most:
            mask = torch.arange(most, device=counts.device) < counts.clamp(min=1)[:, None]
        logits = ctx.image_predictor(hidden, mask)
        ctx.record["image_predictor_input"] = hidden
        ctx.record["image_predictor_logits"] = logits
        scores = logits.float().log_softmax(-1)[..., 0]
        full = scores.new_full(is_image.shape, float("-inf")).scatter(1, order, scores)
        kept_counts = [int(count * self.vision_keep_rate) for count in host_counts]
        return top_image_tokens(full, stream, torch.tensor(kept_counts, device=full.device))

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`."""
        dense, sparse = self.sparse_layer, num_layers - self.sparse_layer
        reduced = shape.total - shape.image + int(shape.image * self.vision_keep_rate)
        rows = (shape.total,) * dense + (reduced,) * sparse
        drops = (False,) * dense + (self.output_keep_rate < 1,) * sparse
        return Schedule(rows, rows, drops, (None,) * num_layers, self.output_keep_rate)

    def overhead(self, shape: PromptShape, dims: ModelDims) -> list[Operation]:
        """Return the predictors' linear layers and attention (paper A.4.1)."""
        d, n = dims.predictor_dim, shape.image
        operations: list[Operation] = []

        def add(name: str, component: str, phase: str, m: int, k: int, n: int, count: int = 1):
            operations.append(Operation(name, component, self.sparse_layer, phase, m, k, n, count))

        if self.vision_keep_rate < 1 and n > 0:
            part, heads, blocks = "image_predictor", dims.predictor_heads, dims.predictor_blocks
            add("down", part, "prefill", n, dims.hidden, d)
            add("qkv", part, "prefill", n, d, 3 * d, blocks)
            add("scores", part, "prefill", n, d // heads, n, heads * blocks)
            add("values", part, "prefill", n, n, d // heads, heads * blocks)
            add("proj", part, "prefill", n, d, d, blocks)
            add("fc1", part, "prefill", n, d, dims.predictor_feedforward, blocks)
            add("fc2", part, "prefill", n, dims.predictor_feedforward, d, blocks)
            add("head1", part, "prefill", n, d, d // 2)
            add("head2", part, "prefill", n, d // 2, d // 4)
            add("head3", part, "prefill", n, d // 4, 2)
        if self.output_keep_rate < 1:
            part = "output_predictor"
            add("down", part, "decode", 1, dims.hidden, d)
            add("head1", part, "decode", 1, d, d // 2)
            add("head2", part, "decode", 1, d // 2, d // 4)
            add("head3", part, "decode", 1, d // 4, 2)
        return operations


def official_nocache_choice(
    logits: torch.Tensor, stays: torch.Tensor, length: torch.Tensor, is_output: torch.Tensor
) -> torch.Tensor:
    """Return the official no-cache set: top raw logit0, as many as decided to stay.

    Parameters
    ----------
    logits : Tensor [B, L, 2]
        Output predictor logits.
    stays : Tensor [B, L] bool
        The per-token decision.
    length : Tensor [B] int64
        Valid tokens per row.
    is_output : Tensor [B, L] bool
        Output tokens; the newest one is not judged.
    """
    rows = torch.arange(is_output.shape[1], device=is_output.device)
    judged = is_output & (rows < (length - 1)[:, None])
    # In a batch every sample keeps the largest count.
    count = int((stays & judged).sum(1).max())
    raw = logits[..., 0].masked_fill(~judged, float("-inf"))
    rank = torch.argsort(torch.argsort(raw, dim=1, descending=True, stable=True), dim=1)
    return judged & (rank < count)
