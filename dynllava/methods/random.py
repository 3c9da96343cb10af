"""Random: drops tokens by a hash of (seed, sample, position); the paper's static baseline.

A control of a budget of image tokens drops image tokens and nothing else; the paper's table 3 drops
output tokens (``output_keep_rate=0.5,layer=0``).
"""

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
    check_fraction,
    check_layer,
    top_image_tokens,
)

DEFAULT_IMAGE_SHARE = 0.2


@dataclass
class Random(Method):
    """Keeps a random share of image tokens, of output tokens, or of both: what is named.

    Whether an output token's K/V is dropped is one decision for all heads and all layers from
    ``layer`` on; the current token always attends to itself in its own step; prompt text stays.

    Parameters
    ----------
    output_keep_rate : float
        Probability that an output token is kept; 1.0 keeps all.
    image_keep_rate : float or None
        Share of image tokens kept, ``int(n * rate)``; 1.0 keeps all.  None (not given) is 1.0
        where output tokens are dropped, 0.2 otherwise.
    layer : int
        First layer that sees the reduced set.
    seed : int
        Changes the draw.  The draw depends on seed, sample and position alone, so
        batching cannot change it.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random image tokens, or output tokens, or both"
    source: ClassVar[str] = "static baseline of arXiv 2412.00876, table 3 (no official code)"
    prunes: ClassVar[str] = "image tokens, output tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")
    single_cut: ClassVar[tuple[str, str] | None] = ("layer", "image_keep_rate")

    output_keep_rate: float = 1.0
    image_keep_rate: float | None = None
    layer: int = 2
    seed: int = 0

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        check_layer("layer", self.layer, num_layers)
        check_fraction("output_keep_rate", self.output_keep_rate)
        if self.image_keep_rate is not None:
            check_fraction("image_keep_rate", self.image_keep_rate)

    @property
    def image_share(self) -> float:
        """The share of image tokens kept, also where it is not given."""
        if self.image_keep_rate is not None:
            return self.image_keep_rate
        return DEFAULT_IMAGE_SHARE if self.output_keep_rate == 1 else 1.0

    def output_layer(self) -> int | None:
        """See :meth:`Method.output_layer`."""
        return self.layer if self.output_keep_rate < 1 else None

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Draw by hash."""
        if layer != self.layer:
            return None
        stream = ctx.stream
        draw = hash_uniform(self.seed, ctx.sample_ids, stream.position)
        keep = torch.ones_like(stream.valid())
        if not ctx.decoding and self.image_share < 1:
            counts = stream.is_segment(Segment.IMAGE).sum(1)
            kept = torch.floor(counts.double() * self.image_share + 1e-9).long()
            keep &= top_image_tokens(-draw, stream, kept)
        if self.output_keep_rate < 1:
            keep &= (draw < self.output_keep_rate) | ~stream.is_segment(Segment.OUTPUT)
        return Selection(keep)

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`."""
        return static_schedule(
            shape,
            num_layers,
            self.layer,
            int(shape.image * self.image_share + 1e-9),
            self.output_keep_rate,
        )


def static_schedule(
    shape: PromptShape, num_layers: int, layer: int, image_kept: int, output_keep: float | str
) -> Schedule:
    """Return the schedule of one cut at ``layer``'s input."""
    reduced = shape.total - shape.image + image_kept
    rows = (shape.total,) * layer + (reduced,) * (num_layers - layer)
    drops = (False,) * layer + (output_keep != 1.0,) * (num_layers - layer)
    return Schedule(rows, rows, drops, (None,) * num_layers, output_keep)


def hash_uniform(seed: int, sample_ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return float64 [B, L] in [0, 1) from a 32-bit integer hash of seed, sample and position.

    The mixing is the finaliser of MurmurHash3 in int64 arithmetic modulo 2**32, the same on
    every device.
    """
    mask = 0xFFFFFFFF
    mixed = (sample_ids[:, None] * 0x9E3779B1 + position * 0x85EBCA77 + seed * 0xC2B2AE3D) & mask
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = mixed ^ (mixed >> shift)
        # Split the product so that it stays within int64.
        low = (mixed & 0xFFFF) * multiplier
        high = ((mixed >> 16) * multiplier) & 0xFFFF
        mixed = (low + (high << 16)) & mask
    mixed = mixed ^ (mixed >> 16)
    return mixed.double() / 2.0**32
