"""SparseVLM (Zhang et al., ICML 2025): text rates image tokens; dropped ones are recycled.

Before layer 0 the *raters* are chosen: text tokens after the image that match it more than the
average one does.  At each pruning layer their attention rates the image tokens, the best stay, and
the better part of the rest is clustered and merged into a few new tokens.  Pruning acts on the
*output* of layer l, so layer l + 1 is the first short one.

Three releases differ, and are versions here:

``1.5``
    Fixed budgets, recycling, positions renumbered 0..N'-1; a decode query's position is the
    layer's own cache length.
``rank``
    The first release: as 1.5, but the count kept is ``int(scale * rank + bias)`` with the
    numerical rank of the rater-to-image attention block.
``2.0``
    "SparseVLM+": attention is divided by a rotary bias, only the heads with the largest
    text-to-image mass vote, nothing is recycled, positions stay.

Only the raters' attention rows are computed, beside any attention kernel.  Where the official code
adds random noise to break ties, the lowest index wins here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch

from dynllava.engine.clustering import cluster_means, density_peaks
from dynllava.engine.stream import Segment, take_rows
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
)

VERSIONS = ("1.5", "rank", "2.0")
#: Pruning layers of a 32-layer model; other depths scale the first short layer.
LAYERS = {"1.5": (2, 6, 15), "rank": (2, 6, 15, 19), "2.0": (2, 6, 15)}
#: Image tokens of the model that the published budgets are for.
PUBLISHED_IMAGE = 576
PUBLISHED: dict[str, dict[int, tuple[int, ...]]] = {
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
RECYCLED = 0.3
POINTS_PER_CLUSTER = 10


@dataclass
class SparseVLM(Method):
    """Keeps the image tokens that the raters attend to, and merges part of the others.

    Parameters
    ----------
    version : str
        ``1.5``, ``rank`` or ``2.0``, see the module's description.
    retain : int
        Published setting (192, 128, 96 or 64), scaled to images of other than 576 tokens.
    budgets : str, sequence or None
        Image tokens kept at each pruning layer, e.g. ``"300/200/110"``; numbers below 1 are shares
        of the row's image tokens.  Replaces ``retain``.  Merged tokens come on top.
    pruning_layers : str, sequence or None
        Layers (from 0) whose output is pruned; default: 2, 6, 15 (``rank``: and 19) of 32,
        scaled to the depth.
    scale, bias : float
        Of the ``rank`` version.
    priority_heads : int or None
        Heads that vote in version 2.0; default: 14 of 32, scaled to the number of heads.
    strict_official : bool
        Accept budgets that grow from layer to layer; as in the official code, a pruning layer then
        drops a single token.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "image tokens rated by text tokens, dropped ones merged"
    source: ClassVar[str] = "arXiv 2410.04417, official repository Gumpest/SparseVLMs"
    prunes: ClassVar[str] = "image tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")
    positions: ClassVar[str] = "compact per layer (1.5, rank), original (2.0)"
    certificate: ClassVar[str] = "golden/baselines"

    version: str = "1.5"
    retain: int = 192
    budgets: str | Sequence[float] | None = None
    pruning_layers: str | Sequence[int] | None = None
    scale: float = 13.5
    bias: float = 0.0
    priority_heads: int | None = None
    strict_official: bool = False

    def __post_init__(self) -> None:
        self.version = str(self.version)
        if self.version not in VERSIONS:
            raise UserError(f"version={self.version!r}: accepted are {', '.join(VERSIONS)}")
        self._budgets = self._read_budgets()
        layers = self.pruning_layers
        self._layers = (
            None if layers is None else tuple(map(int, numbers("pruning_layers", layers)))
        )

    def _read_budgets(self) -> tuple[float, ...]:
        if self.budgets is not None:
            return numbers("budgets", self.budgets)
        if self.version == "rank":
            return ()
        published = PUBLISHED[self.version]
        if self.retain not in published:
            accepted = ", ".join(map(str, published))
            raise UserError(f"retain={self.retain!r}: accepted are {accepted}, or pass budgets")
        return tuple(budget / PUBLISHED_IMAGE for budget in published[self.retain])

    def check_model(self, heads: int, image_tokens: int) -> None:
        """See :meth:`Method.check_model`."""
        if self.priority_heads is not None:
            check_count("priority_heads", self.priority_heads, heads, "model's attention heads")
        for budget in self._budgets:
            if budget > image_tokens:
                raise UserError(
                    f"budgets={budget:g}/...: accepted are numbers up to {image_tokens}, the "
                    "model's image tokens, or shares"
                )

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        layers, budgets = self.layers(num_layers), self._budgets
        rising = all(a < b for a, b in pairwise(layers))
        if not layers or not rising or layers[0] < 0 or layers[-1] > num_layers - 2:
            listed = "/".join(map(str, layers))
            raise UserError(
                f"pruning_layers={listed}: accepted are rising layers from 0 to {num_layers - 2}"
            )
        if not (math.isfinite(self.scale) and math.isfinite(self.bias)):
            raise UserError(f"scale={self.scale}, bias={self.bias}: accepted are finite numbers")
        if self.priority_heads is not None and self.priority_heads < 1:
            raise UserError(f"priority_heads={self.priority_heads!r}: accepted are 1 and more")
        if self.version == "rank":
            return
        if len(budgets) != len(layers):
            raise UserError(
                f"{len(budgets)} budgets for {len(layers)} pruning layers: one for each"
            )
        grows = any(a < b for a, b in pairwise(budgets))
        if grows and not self.strict_official:
            listed = "/".join(f"{budget:g}" for budget in budgets)
            raise UserError(f"budgets={listed}: a later layer cannot keep more than an earlier one")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the pruning layers of a model of ``num_layers``."""
        if self._layers is not None:
            return self._layers
        scaled: list[int] = []
        for layer in LAYERS[self.version]:
            first_short = round((layer + 1) * num_layers / 32)
            scaled.append(max(first_short - 1, scaled[-1] + 1 if scaled else 0))
        return tuple(scaled)

    def compact_positions(self) -> bool:
        """See :meth:`Method.compact_positions`."""
        return self.version != "2.0"

    def probe(self, layer: int, ctx: StepContext) -> Probe | None:
        """Ask for the raters' rows at the pruning layers."""
        if ctx.decoding or "raters" not in ctx.state or layer not in self.layers(ctx.num_layers):
            return None
        rows = last_image_row(ctx)[:, None] + 1 + ctx.state["raters"]
        ctx.state["rater_rows"] = rows.clamp(min=0)
        return Probe(query_rows=ctx.state["rater_rows"])

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Choose the raters before layer 0; prune the output of the pruning layers."""
        if ctx.decoding:
            return None
        if layer == 0:
            choose_raters(ctx)
        layers = self.layers(ctx.num_layers)
        if layer - 1 not in layers or observed is None or observed.rows is None:
            return None
        scores, block = self._rate(observed.rows, ctx, layer - 1)
        is_image = ctx.stream.is_segment(Segment.IMAGE).to(scores.device)
        present = is_image.sum(1)
        target = self._target(layers.index(layer - 1), block, ctx, layer - 1)
        kept, recycled, clusters = self._counts(present, target)
        order = torch.argsort(
            scores.masked_fill(~is_image, float("-inf")), dim=1, descending=True, stable=True
        )
        columns = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, columns)
        keep = ~is_image | (rank < kept[:, None])
        note(ctx, layer - 1, scores=scores, order=order, kept=kept, recycled=recycled)
        if self.version == "2.0":
            return Selection(keep)
        most = max(int(recycled.max()), 1)
        chosen = (kept[:, None] + columns[:, :most]).clamp(max=order.shape[1] - 1)
        points = take_rows(ctx.stream.hidden, order.gather(1, chosen)).float()
        centres, assigned = density_peaks(points, recycled, clusters)
        merged = cluster_means(points, recycled, assigned, max(centres.shape[1], 1))
        note(ctx, layer - 1, input=points, centers=centres, assign=assigned, merged=merged)
        return Selection(keep, merged=merged, merged_length=clusters, renumber=True)

    def _rate(
        self, rows: torch.Tensor, ctx: StepContext, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores [B, L] and the head-averaged block [B, R, L] (0 beside the image)."""
        voters = ctx.state["rater_mask"].to(rows.device)
        is_image = ctx.stream.is_segment(Segment.IMAGE).to(rows.device)
        if self.version == "2.0":
            rows = rows / rotary_bias(ctx, rows.dtype)[:, None]
        rows = rows.masked_fill(~(voters[:, :, None] & is_image[:, None, :])[:, None], 0.0)
        if self.version == "2.0":
            mass = rows.sum((2, 3))
            heads = self.priority_heads or max(1, round(mass.shape[1] * 14 / 32))
            chosen = torch.argsort(mass, dim=1, descending=True, stable=True)[:, :heads]
            note(ctx, layer, head_sums=mass, heads=chosen)
            rows = rows.gather(1, chosen[:, :, None, None].expand(-1, -1, *rows.shape[2:]))
        block = rows.mean(1)
        return block.sum(1) / voters.sum(1).clamp(min=1)[:, None], block

    def _target(
        self, index: int, block: torch.Tensor, ctx: StepContext, layer: int
    ) -> torch.Tensor:
        """Return [B] int64: image tokens to keep, before clamping."""
        count = ctx.state["image_count"].to(block.device)
        if self.version != "rank":
            return self._budget(index, count)
        values = torch.linalg.svdvals(block)
        raters = ctx.state["rater_mask"].sum(1).to(block.device)
        present = ctx.stream.is_segment(Segment.IMAGE).sum(1).to(block.device)
        # The usual numerical rank, with each row's own size: padding must not move the threshold.
        eps = torch.finfo(values.dtype).eps
        threshold = torch.maximum(raters, present) * eps * values.amax(1)
        rank = (values > threshold[:, None]).sum(1)
        note(ctx, layer, rank=rank, singular_values=values)
        return (self.scale * rank.double() + self.bias).long()

    def _budget(self, index: int, image_count: torch.Tensor) -> torch.Tensor:
        budget = self._budgets[index]
        if budget >= 1:
            return torch.full_like(image_count, int(budget))
        return torch.floor(image_count.double() * budget + 1e-9).long()

    def _counts(
        self, present: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return [B] int64 each: tokens kept, tokens recycled, clusters they become."""
        # A pruning layer always drops at least one token.
        kept = torch.minimum(target, present - 1).clamp(min=0)
        has_image = present > 0
        recycled = torch.floor(RECYCLED * (present - kept).double()).long() + 1
        clusters = recycled // POINTS_PER_CLUSTER + 1
        if self.version == "2.0":
            return kept, torch.zeros_like(kept), torch.zeros_like(kept)
        return kept, recycled * has_image, clusters * has_image

    def _spans(self, shape: PromptShape, num_layers: int) -> list[tuple[int, int, int, int]]:
        """Return (layer, image tokens before, recycled, image tokens after) per pruning layer."""
        spans = []
        image = torch.tensor([shape.image])
        present = image
        for index, layer in enumerate(self.layers(num_layers)):
            if self.version == "rank":
                rank = min(expected_raters(shape), int(present))
                target = torch.tensor([int(self.scale * rank + self.bias)])
            else:
                target = self._budget(index, image)
            kept, recycled, clusters = self._counts(present, target)
            spans.append((layer, int(present), int(recycled), int(kept + clusters)))
            present = kept + clusters
        return spans

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`.

        The ``rank`` version's counts depend on the prompt; assumed is full rank with half of the
        text tokens as raters.
        """
        rows = [shape.total] * num_layers
        for layer, before, _, after in self._spans(shape, num_layers):
            rows[layer + 1 :] = [rows[-1] - before + after] * (num_layers - layer - 1)
        none = (None,) * num_layers
        return Schedule(tuple(rows), tuple(rows), (False,) * num_layers, none)

    def overhead(self, shape: PromptShape, dims: ModelDims) -> list[Operation]:
        """Return rater choice, rater rows, rotary bias, distances and merging.

        The number of raters depends on the prompt; half of the text tokens are assumed.
        """
        operations: list[Operation] = []

        def add(name: str, layer: int, m: int, k: int, n: int, count: int = 1) -> None:
            if m * k * n:
                operations.append(Operation(name, "rating", layer, "prefill", m, k, n, count))

        if shape.image == 0:
            return []
        raters, width = expected_raters(shape), dims.head_dim
        add("raters", 0, shape.image, dims.hidden, shape.text_after)
        rows = self.schedule(shape, dims.layers).prefill_rows
        for layer, before, recycled, _ in self._spans(shape, dims.layers):
            add("scores", layer, raters, width, rows[layer], dims.heads)
            if self.version == "2.0":
                add("rotary_bias", layer, raters, 2 * width, rows[layer])
            if self.version == "rank":
                add("rank", layer, raters, before, raters)
            clusters = recycled // POINTS_PER_CLUSTER + 1 if recycled else 0
            add("distances", layer, recycled, dims.hidden, recycled)
            add("merge", layer, clusters, recycled, dims.hidden)
        return operations


def expected_raters(shape: PromptShape) -> int:
    """Return the raters assumed where the prompt is not known: half of the text, rounded up."""
    return max(1, math.ceil(shape.text_after / 2))


def choose_raters(ctx: StepContext) -> None:
    """Choose each row's raters from the raw embeddings and keep them in ``ctx.state``.

    A text token's relevance is the mean over image tokens of the softmax over text tokens of
    the dot products (no scaling); raters are above the mean relevance.  A row with a single text
    token has that one, a row with none after the image is rated by its last image token.  Output
    tokens never rate.
    """
    stream = ctx.stream
    is_image = stream.is_segment(Segment.IMAGE)
    image_count = is_image.sum(1)
    columns = torch.arange(stream.size, device=is_image.device)
    after = stream.is_segment(Segment.TEXT) & (columns > last_image_row(ctx)[:, None])
    after &= (image_count > 0)[:, None]
    text_count = after.sum(1)
    images, texts = torch.stack([image_count, text_count]).amax(1).tolist()
    if images == 0:
        return
    vision = take_rows(stream.hidden, left_aligned(is_image, images)).float()
    text = take_rows(stream.hidden, left_aligned(after, max(texts, 1))).float()
    device = text.device
    has_text = torch.arange(text.shape[1], device=device) < text_count.to(device)[:, None]
    has_image = torch.arange(images, device=device) < image_count.to(device)[:, None]
    match = (vision @ text.transpose(1, 2)).masked_fill(~has_text[:, None], -1e30).softmax(-1)
    relevance = (match * has_image[..., None]).sum(1) / has_image.sum(1).clamp(min=1)[:, None]
    relevance = relevance * has_text
    mean = relevance.sum(1) / has_text.sum(1).clamp(min=1)
    raters = (relevance > mean[:, None]) & has_text
    raters |= ~raters.any(1, keepdim=True) & has_text
    voters = raters.sum(1)
    most = max(int(voters.max()), 1)
    ordinal = left_aligned(raters, most)
    mask = torch.arange(most, device=device) < voters[:, None]
    # Without text after the image, ordinal -1 is the last image token.
    alone = (voters == 0) & has_image.any(1)
    mask[:, 0] |= alone
    ctx.state["raters"] = ordinal.masked_fill(~mask, -1).masked_fill(alone[:, None], -1)
    ctx.state["rater_mask"] = mask
    ctx.state["image_count"] = image_count
    ctx.record["sparsevlm.rater_scores"] = relevance
    ctx.record["sparsevlm.raters"] = raters


def last_image_row(ctx: StepContext) -> torch.Tensor:
    """Return [B] int64: stream row of each row's last image token, -1 if it has none."""
    is_image = ctx.stream.is_segment(Segment.IMAGE)
    columns = torch.arange(ctx.stream.size, device=is_image.device)
    return torch.where(is_image, columns, -1).amax(1)


def left_aligned(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Return [B, width] int64: columns of the True entries first, in order."""
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :width]


def rotary_bias(ctx: StepContext, dtype: torch.dtype) -> torch.Tensor:
    """Return [B, R, L]: attention logits of all-ones vectors under the rotary embedding.

    (rope(1) . rope(1)) / sqrt(d) is the inner product of the cosine and sine tables.
    """
    stream = ctx.stream
    cos, sin = (part.to(dtype) for part in ctx.rotary(stream.hidden.to(dtype), stream.position))
    rows = ctx.state["rater_rows"]
    bias = take_rows(cos, rows) @ cos.transpose(1, 2) + take_rows(sin, rows) @ sin.transpose(1, 2)
    return bias / cos.shape[-1] ** 0.5


def note(ctx: StepContext, layer: int, **values: Any) -> None:
    """Record values of a pruning layer."""
    ctx.record.update({f"sparsevlm.L{layer}.{name}": value for name, value in values.items()})


def numbers(name: str, value: str | float | Sequence[float]) -> tuple[float, ...]:
    """Return the numbers of ``"300/200/110"``, of a sequence, or a single one.

    Raises
    ------
    UserError
        If one is no positive finite number (0 is accepted for layers).
    """
    parts = value.split("/") if isinstance(value, str) else value
    parts = parts if isinstance(parts, Sequence) else (parts,)
    try:
        read = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UserError(f"{name}={value!r}: accepted are numbers such as 300/200/110") from None
    low_ok = all(number > 0 for number in read) or name == "pruning_layers"
    if not read or not low_ok or not all(math.isfinite(number) for number in read):
        raise UserError(f"{name}={value!r}: accepted are positive numbers such as 300/200/110")
    return read
