"""Dynamic-LLaVA (Huang et al., ICLR 2025): learned image and output predictors.

Conventions follow the official code: predictor logit 0 means keep, the layer counts from 0,
``int()`` truncates the number of kept image tokens, positions are never renumbered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.errors import UserError
from dynllava.plan import (
    Cut,
    ModelDims,
    Operation,
    Plan,
    Predictor,
    Rule,
    Segment,
    Shape,
    Share,
    Stage,
)

from .base import Method, check_fraction, check_layer, share

if TYPE_CHECKING:
    import torch

    from dynllava.engine.view import View

    from .calibration import Calibration


@dataclass(frozen=True)
class DynamicLlava(Method):
    """Learned sparsification of image tokens (I), output tokens (T), or both (I|T).

    Parameters
    ----------
    sparse_layer : int
        First layer (from 0) that sees the reduced set.
    vision_keep_rate : float
        Share of image tokens kept, ``int(n * rate)`` of them; 1.0 switches the image predictor off.
    output_keep_rate : float
        Share of output tokens kept; 1.0 switches the output predictor off.  A calibrated
        checkpoint has a threshold for any rate; else accepted is the trained rate, at which
        logit0 > logit1 decides as in the official code, or ``output_threshold`` says the rule.
    output_threshold : float or None
        Keep an output token if logit0 - logit1 exceeds this margin (default: the checkpoint's
        calibrated one for the rate, 0 without).
    per_image : bool
        Spend the image budget where it is needed: keep the image tokens whose margin exceeds the
        calibrated threshold of ``vision_keep_rate``, at least one, so that pictures differ and
        their mean share is the rate.  Beyond the paper.
    strict_official : bool
        Without a cache, choose kept output tokens as the official code does: as many as
        decide to stay, but the ones with the highest raw logit0.
    """

    name: ClassVar[str] = "dynamic_llava"
    learned: ClassVar[bool] = True
    summary: ClassVar[str] = "learned image and output predictors after layer 2"
    source: ClassVar[str] = "arXiv 2412.00876, official repository Osilly/dynamic_llava"
    certificate: ClassVar[str] = "golden/dynamic_llava"

    sparse_layer: int = 2
    vision_keep_rate: float = share(0.2)
    output_keep_rate: float = 0.5
    output_threshold: float | None = None
    per_image: bool = False
    strict_official: bool = False

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_layer("sparse_layer", self.sparse_layer, layers)
        check_fraction("vision_keep_rate", self.vision_keep_rate)
        check_fraction("output_keep_rate", self.output_keep_rate)
        threshold, output = self.output_threshold, self.output_keep_rate
        if threshold is not None and not math.isfinite(threshold):
            raise UserError(f"output_threshold={threshold!r}: accepted is a finite number")
        cuts = []
        if self.vision_keep_rate < 1:
            share = Share(self.vision_keep_rate, rounding="truncate")
            cut = Cut(self.sparse_layer, share, by=Predictor("image"))
            if self.per_image:
                by = Predictor("image", self.vision_keep_rate, calibrated=True)
                cut = Cut(self.sparse_layer, Rule(self._above_threshold, self._declared), by=by)
            cuts.append(cut)
        if output < 1:
            # With a threshold of its own the predictor may be used at any rate.
            look = Predictor("output", output if threshold is None else None)
            cuts.append(Cut(self.sparse_layer, Share(output), by=look, of=Segment.OUTPUT))
        return Plan(tuple(cuts), work=(self._work,))

    def score(self, view: View) -> torch.Tensor:
        """Return the image predictor's log-probability of keeping a token."""
        return self._image_logits(view).log_softmax(-1)[..., 0]

    def _image_logits(self, view: View) -> torch.Tensor:
        """Return float32 logits [B, L, 2] of the image predictor; (-inf, 0) at other tokens."""
        return view.memo("image logits", lambda: self._judge_images(view))

    def _judge_images(self, view: View) -> torch.Tensor:
        import torch

        is_image = view.is_image
        counts = is_image.sum(1)
        host_counts = counts.tolist()
        most = max(host_counts)
        order = torch.argsort((~is_image).to(torch.uint8), dim=1, stable=True)[:, :most]
        hidden, mask = view.take(order), None
        if min(host_counts) != most:
            mask = torch.arange(most, device=counts.device) < counts.clamp(min=1)[:, None]
        logits = view.predictor("image")(hidden, mask, rate=self.vision_keep_rate)
        view.record.update(image_predictor_input=hidden, image_predictor_logits=logits)
        spread = logits.new_zeros((*is_image.shape, 2), dtype=torch.float32)
        spread[..., 0] = float("-inf")
        return spread.scatter(1, order[..., None].expand(-1, -1, 2), logits.float())

    def _above_threshold(self, view: View) -> torch.Tensor:
        """Return [B] int64: image tokens whose margin exceeds the calibrated threshold."""
        logits = self._image_logits(view)
        threshold = view.predictor("image").calibration.threshold(self.vision_keep_rate)
        above = logits[..., 0] - logits[..., 1] > threshold
        return (above & view.is_image.to(above.device)).sum(1).clamp(min=1)

    def _declared(self, shape: Shape, present: int) -> int:
        return int(present * self.vision_keep_rate)

    def choose(self, view: View) -> torch.Tensor:
        """Keep the output tokens that the output predictor keeps."""
        logits = self._judge_outputs(view)
        view.record["output_predictor_logits"] = logits
        calibration = view.predictor("output").calibration
        stays = self.decide(logits, calibration)
        if self.strict_official and not view.decoding:
            stays = official_nocache_choice(logits, stays, view.stream.length, view.is_output)
        return stays

    def decide(self, logits: torch.Tensor, calibration: Calibration | None = None) -> torch.Tensor:
        """Return bool [...] from output predictor logits [..., 2]; a tie drops."""
        threshold = self.output_threshold
        if threshold is None:
            threshold = calibration.threshold(self.output_keep_rate) if calibration else 0.0
        return logits[..., 0].float() - logits[..., 1].float() > threshold

    def _judge_outputs(self, view: View) -> torch.Tensor:
        """Return output predictor logits [B, L, 2]; zero for tokens that are no output tokens."""
        import torch

        predictor = view.predictor("output")
        if view.stream.size == 1:
            return predictor(view.hidden, rate=self.output_keep_rate)
        # A call without a cache has the prompt in front of them: judge output tokens only.
        is_output = view.is_output
        most = int(is_output.sum(1).max())
        order = torch.argsort((~is_output).to(torch.uint8), dim=1, stable=True)[:, :most]
        judged = predictor(view.take(order), rate=self.output_keep_rate)
        logits = judged.new_zeros(*is_output.shape, 2)
        return logits.scatter(1, order[..., None].expand(-1, -1, 2).to(judged.device), judged)

    def _work(
        self, shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]
    ) -> Iterator[Operation]:
        """Return the predictors' linear layers and attention (paper A.4.1)."""
        d, deep = dims.predictor_dim, dims.predictor_feedforward
        heads, blocks = dims.predictor_heads, dims.predictor_blocks
        head = [("head1", d, d // 2), ("head2", d // 2, d // 4), ("head3", d // 4, 2)]
        linear = [("down", dims.hidden, d), *head]
        inner = [("qkv", d, 3 * d), ("proj", d, d), ("fc1", d, deep), ("fc2", deep, d)]
        for stage in stages:
            if not isinstance(stage.cut.by, Predictor) or stage.cut.by.name != "image":
                continue
            n, where = stage.before, ("image_predictor", self.sparse_layer, "prefill")
            for count, parts in ((1, linear), (blocks, inner)):
                for name, k, width in parts:
                    yield Operation(name, *where, n, k, width, count)
            yield Operation("scores", *where, n, d // heads, n, heads * blocks)
            yield Operation("values", *where, n, n, d // heads, heads * blocks)
        if self.output_keep_rate < 1:
            for name, k, width in linear:
                yield Operation(name, "output_predictor", self.sparse_layer, "decode", 1, k, width)


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
    import torch

    rows = torch.arange(is_output.shape[1], device=is_output.device)
    judged = is_output & (rows < (length - 1)[:, None])
    # In a batch every sample keeps the largest count.
    count = int((stays & judged).sum(1).max())
    raw = logits[..., 0].masked_fill(~judged, float("-inf"))
    rank = torch.argsort(torch.argsort(raw, dim=1, descending=True, stable=True), dim=1)
    return judged & (rank < count)
