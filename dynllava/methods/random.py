"""Random: drops tokens by a hash of (seed, sample, position); the paper's static baseline.

A control of a budget of image tokens drops image tokens and nothing else; the paper's table 3 drops
output tokens (``output_keep_rate=0.5,layer=0``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import Cut, Plan, Segment, Share

from .base import Method, check_fraction, check_layer, share

if TYPE_CHECKING:
    import torch

    from dynllava.engine.view import View

DEFAULT_IMAGE_SHARE = 0.2


@dataclass(frozen=True)
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

    output_keep_rate: float = 1.0
    image_keep_rate: float | None = share(None)
    layer: int = 2
    seed: int = 0

    @property
    def image_share(self) -> float:
        """The share of image tokens kept, also where it is not given."""
        if self.image_keep_rate is not None:
            return self.image_keep_rate
        return DEFAULT_IMAGE_SHARE if self.output_keep_rate == 1 else 1.0

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_layer("layer", self.layer, layers)
        check_fraction("output_keep_rate", self.output_keep_rate)
        check_fraction("image_keep_rate", self.image_share)
        wanted = {Segment.IMAGE: self.image_share, Segment.OUTPUT: self.output_keep_rate}
        cuts = [Cut(self.layer, Share(rate), of=kind) for kind, rate in wanted.items() if rate < 1]
        return Plan(tuple(cuts))

    def score(self, view: View) -> torch.Tensor:
        """Return the draws, the smallest best."""
        return -hash_uniform(self.seed, view.sample_ids, view.stream.position)

    def choose(self, view: View) -> torch.Tensor:
        """Keep the output tokens whose draw is below the rate."""
        draw = hash_uniform(self.seed, view.sample_ids, view.stream.position)
        return draw < self.output_keep_rate


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
