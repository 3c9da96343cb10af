"""Control: no image tokens from one layer on.

What a model still answers under this control it read from the image before that layer, or
guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
class NoImage(Method):
    """Drops all image tokens at the input of ``layer``.

    Parameters
    ----------
    layer : int
        First layer without image tokens; 0 = the language model never sees the picture.
    """

    name: ClassVar[str] = "no_image"
    summary: ClassVar[str] = "control: no image tokens from a layer on"
    source: ClassVar[str] = "control"
    prunes: ClassVar[str] = "image tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")
    reference: ClassVar[bool] = True

    layer: int = 0

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        check_layer("layer", self.layer, num_layers)

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Keep everything that is no image token."""
        if layer != self.layer or ctx.decoding:
            return None
        return Selection(~ctx.stream.is_segment(Segment.IMAGE))

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`."""
        return static_schedule(shape, num_layers, self.layer, 0, 1.0)
