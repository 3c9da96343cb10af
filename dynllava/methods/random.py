"""Random: drops tokens by a hash of (seed, sample, position); the paper's static baseline."""

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
    top_image_tokens,
)
from dynllava.tokens import Segment


@dataclass
class Random(Method):
    """Keeps a random share of image tokens and of output tokens.

    Whether an output token's K/V is dropped is one decision for all heads and all layers from
    ``layer`` on; the current token always attends to itself in its own step; prompt text stays.

    Parameters
    ----------
    output_keep_rate : float
        Probability that an output token is kept; 1.0 keeps all.
    image_keep_rate : float
        Share of image tokens kept, ``int(n * rate)``; 1.0 keeps all.
    layer : int
        First layer that sees the reduced set.
    seed : int
        Changes the draw.  The draw depends on seed, sample and position alone, so
        batching cannot change it.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random output (and image) tokens"
    source: ClassVar[str] = "static baseline of arXiv 2412.00876, table 3 (no official code)"
    prunes: ClassVar[str] = "output (and image) tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")

    output_keep_rate: float = 0.5
    image_keep_rate: float = 1.0
    layer: int = 0
    seed: int = 0

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        check_layer("layer", self.layer, num_layers)
        check_fraction("output_keep_rate", self.output_keep_rate)
        check_fraction("image_keep_rate", self.image_keep_rate)

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
        if not ctx.decoding and self.image_keep_rate < 1:
            counts = stream.is_segment(Segment.IMAGE).sum(1)
            kept = torch.floor(counts.double() * self.image_keep_rate + 1e-9).long()
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
            int(shape.image * self.image_keep_rate + 1e-9),
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
