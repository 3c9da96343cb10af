"""One place where tokens leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .keeps import Keep
from .looks import NOTHING, Look
from .segments import Segment
from .shapes import Shape

#: In order: before the vision tower (the picture itself shrinks), before the projector, behind it
#: and before layer 0, at the input of a layer.
STAGES = ("pixels", "features", "embedded", "decoder")


@dataclass(frozen=True)
class Merge:
    """New tokens that stand for dropped ones.

    ``count(dropped)`` is their number, written with operators alone: it is called with integers
    (closed forms) and with int64 tensors (the model).
    """

    count: Callable[[Any], Any]


@dataclass(frozen=True)
class Cut:
    """One place where tokens leave.

    Attributes
    ----------
    layer : int
        First decoder layer that sees the reduced set (0 before layer 0).
    keep : Keep
        How many stay.  Before layer 0 it counts each image by itself, all rows that reach the
        language model included.
    by : Look or tuple of Look
        What decides.
    of : Segment
        ``IMAGE`` or ``OUTPUT``.
    stage : str
        One of :data:`STAGES`.
    merge : Merge or None
        New tokens that stand for the dropped ones, behind the last image token.
    positions : str
        ``"original"``: holes stay.  ``"compact"``: numbered anew; then a decode query's position
        is the layer's own cache length.
    crops : bool
        Before the projector: the method's ``rows`` also take a picture of several crops, all of
        them together.  Otherwise each crop is decided by itself, with its part of the picture's
        budget, and methods with ``rows`` are for pictures of one crop.
    """

    layer: int
    keep: Keep
    by: Look | tuple[Look, ...] = NOTHING
    of: Segment = Segment.IMAGE
    stage: str = "decoder"
    merge: Merge | None = None
    positions: str = "original"
    crops: bool = False

    @property
    def looks(self) -> tuple[Look, ...]:
        """What decides, as a tuple."""
        return self.by if isinstance(self.by, tuple) else (self.by,)

    @property
    def early(self) -> bool:
        """Whether it acts before layer 0."""
        return self.stage != "decoder"

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: where it acts."""
        return STAGES.index(self.stage), self.layer


@dataclass(frozen=True)
class Stage:
    """What a cut of image tokens does to one prompt.

    Attributes
    ----------
    cut : Cut
    shape : Shape
        The prompt.
    rows_before : int
        Tokens that enter the layer before the cut (or reach the cut, before layer 0).
    before, kept, merged : int
        Image tokens at the cut, those that stay, new ones.
    """

    cut: Cut
    shape: Shape
    rows_before: int
    before: int
    kept: int
    merged: int

    @property
    def after(self) -> int:
        """Image tokens that go on."""
        return self.kept + self.merged

    @property
    def dropped(self) -> int:
        """Image tokens that leave."""
        return self.before - self.kept
