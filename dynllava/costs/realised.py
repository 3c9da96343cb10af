"""Counts of a method whose number of image tokens depends on the image, at a realised number."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dynllava.methods.base import Method
from dynllava.methods.smaller import sizing
from dynllava.plan import Count, Cut, Plan, Rule, Segment


def adapts(method: Method, layers: int) -> bool:
    """Return whether the image sets how many of its tokens reach layer 0.

    Parameters
    ----------
    method : Method
    layers : int
        Decoder layers.
    """
    return any(map(_adapts, method.plan(layers).of(Segment.IMAGE))) and sizing(method) is None


def _adapts(cut: Cut) -> bool:
    return cut.early and isinstance(cut.keep, Rule)


@dataclass(frozen=True)
class Realised(Method):
    """A method with the number of tokens that images really had; for closed forms alone.

    Parameters
    ----------
    method : Method
    tokens : int
        Image tokens of an image that reached layer 0.
    """

    method: Method
    tokens: int

    def plan(self, layers: int) -> Plan:
        """Return the method's plan with that number in place of its estimate."""
        plan = self.method.plan(layers)
        cuts = [replace(cut, keep=Count(self.tokens)) if _adapts(cut) else cut for cut in plan.cuts]
        return replace(plan, cuts=tuple(cuts))
