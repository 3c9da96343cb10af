"""Uniform grid: keeps evenly spaced image tokens, whatever the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynllava.methods.base import (
    Method,
    Observed,
    PromptShape,
    Schedule,
    Selection,
    StepContext,
    check_fraction,
    check_layer,
)
from dynllava.methods.random import static_schedule
from dynllava.tokens import Segment


@dataclass
class Uniform(Method):
    """Keeps ``int(n * image_keep_rate)`` image tokens, evenly spaced in raster order.

    Parameters
    ----------
    image_keep_rate : float
        Share of image tokens kept.
    layer : int
        First layer that sees the reduced set.
    """

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "evenly spaced image tokens"
    source: ClassVar[str] = "static control"
    prunes: ClassVar[str] = "image tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")

    image_keep_rate: float = 0.2
    layer: int = 2

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        check_layer("layer", self.layer, num_layers)
        check_fraction("image_keep_rate", self.image_keep_rate)

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Keep image token i if it starts a new one of ``kept`` equal intervals."""
        if layer != self.layer or ctx.decoding:
            return None
        stream = ctx.stream
        is_image = stream.is_segment(Segment.IMAGE)
        total = is_image.sum(1, keepdim=True).clamp(min=1)
        kept = torch.floor(total.double() * self.image_keep_rate + 1e-9).long()
        index = stream.image_index.clamp(min=0)
        starts = (index * kept) // total != ((index - 1) * kept).div(total, rounding_mode="floor")
        return Selection(starts | ~is_image)

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`."""
        kept = int(shape.image * self.image_keep_rate + 1e-9)
        return static_schedule(shape, num_layers, self.layer, kept, 1.0)
