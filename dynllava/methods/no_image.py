"""Control: no image tokens from one layer on.

What a model still answers under this control it read from the image before that layer, or
guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynllava.plan import Count, Cut, Plan

from .base import Method, check_layer


@dataclass(frozen=True)
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
    layer: int = 0

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_layer("layer", self.layer, layers)
        return Plan((Cut(self.layer, Count(0)),))
