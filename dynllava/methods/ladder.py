"""The settings of a method in order of rising cost, and the highest that stays within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dynllava.errors import UserError
from dynllava.plan import Image, Segment, Shape

from . import create
from .base import Method
from .budget import LONGEST, _Knobs, budget_fields
from .checks import DEEPEST
from .smaller import sizing


@dataclass(frozen=True)
class Ladder:
    """Settings of one method for one prompt, by rising number of image tokens (or cache entries).

    Attributes
    ----------
    name : str
        Registered method or composition.
    fixed : dict
        Parameters that were given.
    count : int
        Rungs, from 0 to ``count - 1``; the last keeps everything.
    setting : callable
        ``setting(rung)``: the parameters that the rung sets.
    """

    name: str
    fixed: dict[str, Any]
    count: int
    setting: Callable[[int], dict[str, Any]]

    def parameters(self, rung: int) -> dict[str, Any]:
        """Return the method's parameters at a rung, the given ones included."""
        return {**self.fixed, **self.setting(rung)}

    def method(self, rung: int) -> Method:
        """Return the method at a rung."""
        return create(self.name, **self.parameters(rung))

    def highest(self, holds: Callable[[Method], bool]) -> int | None:
        """Return the highest rung for which ``holds`` is true, None where the lowest fails.

        Costs rise with the rungs, but for the last: what keeps everything need not choose.
        """
        if holds(self.method(self.count - 1)):
            return self.count - 1
        if self.count == 1 or not holds(self.method(0)):
            return None
        low, high = 0, self.count - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(self.method(middle)) else (low, middle)
        return low


def ladder_of(method: Method, shape: Shape, layers: int) -> Ladder:
    """Return the ladder of a method as it is set.

    What no budget sets stays; several shares keep their proportions.

    Raises
    ------
    UserError
        As :func:`ladder`.
    """
    fixed = {}
    scaled = _scaled_part(method)
    for part in method.parts:
        prefix = f"{part.name}_" if len(method.parts) > 1 else ""
        taken = budget_fields(type(part)) if part is scaled else set()
        for key, value in part.parameters().items():
            if key not in taken:
                fixed[prefix + key] = value
    return _ladder(method, shape, layers, fixed)


def _scaled_part(method: Method) -> Method | None:
    """Return the part of a method that a budget sets."""
    if len(method.parts) == 1:
        return method
    image = [part for part in method.parts if part.plan(DEEPEST).of(Segment.IMAGE)]
    return sizing(method) or (image[0] if image else None)


def ladder(name: str, shape: Shape, layers: int, **fixed: Any) -> Ladder:
    """Return the ladder of a method: the shares that a budget sets, scaled together.

    Parameters
    ----------
    name : str
        A registered method, or a composition, whose image part is then scaled.
    shape : Shape
        The prompt (the longest of a batch): a rung is a token of its image, or a grid.
    layers : int
        Decoder layers.
    **fixed
        Parameters that are given.

    Raises
    ------
    UserError
        If nothing of the method can be scaled, or a prompt has no image.
    """
    return _ladder(create(name, **fixed), shape, layers, fixed)


def _ladder(base: Method, shape: Shape, layers: int, fixed: dict[str, Any]) -> Ladder:
    name = base.name
    if not shape.image:
        raise UserError(f"{name}: a prompt without an image has nothing to scale")
    smaller = sizing(base)
    if smaller is not None:
        prefix = f"{smaller.name}_" if len(base.parts) > 1 else ""
        grids = _grids(shape)
        return Ladder(
            name,
            fixed,
            len(grids),
            lambda rung: {prefix + "rows": grids[rung][0], prefix + "columns": grids[rung][1]},
        )
    knobs = _Knobs.of(base, name, shape, layers)
    knobs.check_free(fixed)
    count = math.ceil(knobs.whole / min(knobs.weights))

    def setting(rung: int) -> dict[str, Any]:
        values = knobs._values(knobs._counts((rung + 1) / knobs.whole))
        return {knobs.prefix + key: value for key, value in values.items()}

    return Ladder(name, fixed, count, setting)


def _grids(shape: Shape) -> list[tuple[int, int]]:
    """Return the grids that a picture can be made to, one a size, the squarest of each."""
    picture = Image.of(shape.image)
    found: dict[int, tuple[int, int]] = {}
    for rows in range(1, picture.rows + 1):
        for columns in range(rows, picture.columns + 1):
            if columns <= LONGEST * rows:
                found[rows * columns] = (rows, columns)
    return [found[size] for size in sorted(found)]
