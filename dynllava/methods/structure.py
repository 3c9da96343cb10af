"""Structure: keeps every other output token; the paper's structured static baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynllava.engine.stream import Segment
from dynllava.methods.base import (
    Method,
    Observed,
    PromptShape,
    Schedule,
    Selection,
    StepContext,
    check_layer,
)
from dynllava.methods.random import static_schedule


@dataclass
class Structure(Method):
    """Drops every second output token (the 2nd, 4th, ...), in all layers from ``layer`` on.

    Parameters
    ----------
    layer : int
        First layer that sees the reduced set.
    """

    name: ClassVar[str] = "structure"
    summary: ClassVar[str] = "every other output token"
    source: ClassVar[str] = "static baseline of arXiv 2412.00876, table 3 (no official code)"
    prunes: ClassVar[str] = "output tokens"
    saves: ClassVar[tuple[str, ...]] = ("decode with cache", "decode without cache")

    layer: int = 0

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        check_layer("layer", self.layer, num_layers)

    def output_layer(self) -> int | None:
        """See :meth:`Method.output_layer`."""
        return self.layer

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Keep output tokens with an even ordinal."""
        if layer != self.layer:
            return None
        is_output = ctx.stream.is_segment(Segment.OUTPUT)
        return Selection((torch.remainder(ctx.output_index, 2) == 0) | ~is_output)

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`."""
        return static_schedule(shape, num_layers, self.layer, shape.image, "alternate")
