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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dynllava.errors import UserError
from dynllava.plan import (
    Attention,
    Cut,
    Keep,
    Merge,
    ModelDims,
    Operation,
    Plan,
    Rule,
    Shape,
    Stage,
)

from .base import Method, check_choice, check_number, instead, share
from .checks import check_rising, check_stages, keeps, numbers
from .raters import expected_raters, rater_rows, raters, rotary_bias

if TYPE_CHECKING:
    import torch

    from dynllava.engine.ranking import Dropped
    from dynllava.engine.view import View

VERSIONS = ("1.5", "rank", "2.0")
#: Pruning layers of a 32-layer model; other depths scale the first short layer.
LAYERS = {"1.5": (2, 6, 15), "rank": (2, 6, 15, 19), "2.0": (2, 6, 15)}
#: Image tokens of the model that the published budgets are for.
PUBLISHED_IMAGE = 576
PUBLISHED: dict[str, dict[int, tuple[int, ...]]] = {
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


@dataclass(frozen=True)
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
    certificate: ClassVar[str] = "golden/baselines"

    version: str = "1.5"
    retain: int = instead(192)
    budgets: str | Sequence[float] | None = share(None)
    pruning_layers: str | Sequence[int] | None = None
    scale: float = 13.5
    bias: float = 0.0
    priority_heads: int | None = None
    strict_official: bool = False

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_choice("version", str(self.version), VERSIONS)
        if not (math.isfinite(self.scale) and math.isfinite(self.bias)):
            raise UserError(f"scale={self.scale}, bias={self.bias}: accepted are finite numbers")
        check_number("priority_heads", self.priority_heads, optional=True)
        places = self.layers(layers)
        check_rising("pruning_layers", places, layers - 2)
        look = Attention(
            rater_rows, count=expected_raters, component="rating", heads=self.priority_heads
        )
        late = str(self.version) == "2.0"
        merge, positions = (None, "original") if late else (Merge(clusters), "compact")
        pairs = zip(places, self._keeps(len(places)), strict=True)
        cuts = [Cut(at + 1, keep, by=look, merge=merge, positions=positions) for at, keep in pairs]
        return Plan(tuple(cuts), work=(self._work,))

    def layers(self, layers: int) -> tuple[int, ...]:
        """Return the pruning layers of a model of ``layers``."""
        if self.pruning_layers is not None:
            return tuple(map(int, numbers("pruning_layers", self.pruning_layers, zero=True)))
        scaled: list[int] = []
        for layer in LAYERS[str(self.version)]:
            first_short = round((layer + 1) * layers / 32)
            scaled.append(max(first_short - 1, scaled[-1] + 1 if scaled else 0))
        return tuple(scaled)

    @property
    def targets(self) -> tuple[float, ...]:
        """What each pruning layer keeps: numbers of tokens, or shares below 1."""
        if self.budgets is not None:
            return numbers("budgets", self.budgets)
        published = PUBLISHED[str(self.version)]
        if self.retain not in published:
            accepted = ", ".join(map(str, published))
            raise UserError(f"retain={self.retain!r}: accepted are {accepted}, or pass budgets")
        return tuple(budget / PUBLISHED_IMAGE for budget in published[self.retain])

    def _keeps(self, stages: int) -> list[Keep]:
        """Return what each pruning layer keeps; it always drops at least one token."""
        if str(self.version) == "rank":
            return [Rule(self._rank, self._expected_rank, spare=1)] * stages
        check_stages("budgets", self.targets, stages, growing=self.strict_official)
        return keeps("budgets", self.targets, spare=1)

    def score(self, view: View) -> torch.Tensor:
        """Return the attention of the raters, mean over heads and raters."""
        voters = raters(view)[1].to(view.attention.device)
        return self._block(view).sum(1) / voters.sum(1).clamp(min=1)[:, None]

    def _block(self, view: View) -> torch.Tensor:
        """Return the raters' head-averaged attention [B, R, L], 0 beside the image."""
        rows, late = view.attention, str(self.version) == "2.0"
        voters, is_image = (part.to(rows.device) for part in (raters(view)[1], view.is_image))
        if late:
            rows = rows / rotary_bias(view, rows.dtype)[:, None]
        rows = rows.masked_fill(~(voters[:, :, None] & is_image[:, None, :])[:, None], 0.0)
        if late:
            mass = rows.sum((2, 3))
            heads = self.priority_heads or max(1, round(mass.shape[1] * 14 / 32))
            chosen = mass.argsort(dim=1, descending=True, stable=True)[:, :heads]
            view.note(head_sums=mass, heads=chosen)
            rows = rows.gather(1, chosen[:, :, None, None].expand(-1, -1, *rows.shape[2:]))
        return rows.mean(1)

    def _rank(self, view: View) -> torch.Tensor:
        """Return [B] int64: tokens to keep by the numerical rank of the raters' attention."""
        import torch

        block = self._block(view)
        values = torch.linalg.svdvals(block)
        sides = torch.maximum(raters(view)[1].sum(1), view.is_image.sum(1)).to(block.device)
        # The usual numerical rank, with each row's own size: padding must not move the threshold.
        threshold = sides * torch.finfo(values.dtype).eps * values.amax(1)
        rank = (values > threshold[:, None]).sum(1)
        view.note(rank=rank, singular_values=values)
        return (self.scale * rank.double() + self.bias).long()

    def _expected_rank(self, shape: Shape, present: int) -> int:
        """Return the tokens kept at full rank."""
        return int(self.scale * min(expected_raters(shape), present) + self.bias)

    def merge(self, view: View, dropped: Dropped) -> torch.Tensor:
        """Return the means of the clusters of the better dropped tokens."""
        import torch

        from dynllava.engine.clustering import cluster_means, density_peaks

        count = recycled(dropped.count) * (dropped.new > 0)
        columns = torch.arange(max(int(count.max()), 1), device=count.device)
        places = (dropped.kept[:, None] + columns).clamp(max=dropped.order.shape[1] - 1)
        points = view.take(dropped.order.gather(1, places)).float()
        centres, assigned = density_peaks(points, count, dropped.new)
        merged = cluster_means(points, count, assigned, max(centres.shape[1], 1))
        view.note(recycled=count, input=points, centers=centres, assign=assigned, merged=merged)
        return merged

    def _work(
        self, shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]
    ) -> Iterator[Operation]:
        """Return rater choice, rotary bias, rank, distances and merging.

        The number of raters depends on the prompt; half of the text tokens are assumed.
        """
        own = [stage for stage in stages if not stage.cut.early]
        image, count = own[0].before, expected_raters(shape) * bool(own[0].before)
        yield Operation("raters", "rating", 0, "prefill", image, dims.hidden, shape.text_after)
        late, rank = (count * (str(self.version) == name) for name in ("2.0", "rank"))
        for stage in own:
            points = recycled(stage.dropped) * bool(stage.merged)
            sizes = {
                "rotary_bias": (late, 2 * dims.head_dim, stage.rows_before),
                "rank": (rank, stage.before, rank),
                "distances": (points, dims.hidden, points),
                "merge": (stage.merged, points, dims.hidden),
            }
            for name, size in sizes.items():
                yield Operation(name, "rating", stage.cut.layer - 1, "prefill", *size)


def recycled(dropped: Any) -> Any:
    """Return how many of the dropped tokens are merged: 0.3 of them and one."""
    return dropped * 3 // 10 + 1


def clusters(dropped: Any) -> Any:
    """Return how many tokens the recycled ones become: one a ten points and one."""
    return recycled(dropped) // 10 + 1
