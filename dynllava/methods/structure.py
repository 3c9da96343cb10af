"""Structure: keeps every other output token; the paper's structured static baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynllava.plan import Alternate, Cut, Plan, Segment

from .base import Method, check_layer


@dataclass(frozen=True)
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

    layer: int = 0

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_layer("layer", self.layer, layers)
        return Plan((Cut(self.layer, Alternate(), of=Segment.OUTPUT),))
