"""Where texts beside points go, so that none covers a mark or another text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PLACES = (
    (1, -1, "left"), (1, 1, "left"), (-1, 1, "right"), (-1, -1, "right"), (0, 1, "center"),
    (0, -1, "center"),
)  # fmt: skip
"""Tried in this order: to the right or left (+1, -1), above or below, and the alignment."""
LETTER, HEIGHT = 0.66, 1.3
"""Width of a letter and height of a line, in font sizes."""


@dataclass(frozen=True)
class Placed:
    """A text that found a place: offset of its anchor from the point, and its alignment."""

    index: int
    right: float
    up: float
    align: str


def placed(
    texts: Sequence[str], points: Sequence[tuple[float, float]], font: float, mark: float
) -> list[Placed]:
    """Return places for ``texts`` beside their points; a text without a free place is left out.

    Parameters
    ----------
    texts : sequence of str
        Empty where a point has none.
    points : sequence of (float, float)
        In the unit of ``font`` (points or pixels), y upwards.
    font, mark : float
        Size of the letters, and half the width of a mark.
    """
    taken = [(x - mark, y - mark, x + mark, y + mark) for x, y in points]
    found = []
    for index, (text, (x, y)) in enumerate(zip(texts, points, strict=True)):
        if not text:
            continue
        wide, high = LETTER * font * len(text), HEIGHT * font
        for side, above, align in PLACES:
            right = side * (mark + 2)
            up = above * (0.75 * high if side else mark + 0.75 * high) - 0.35 * font
            left = x + right - {"left": 0.0, "center": wide / 2, "right": wide}[align]
            area = (left, y + up - 0.2 * high, left + wide, y + up + 0.8 * high)
            if not any(_overlap(area, other) for other in taken):
                taken.append(area)
                found.append(Placed(index, right, up, align))
                break
    return found


def _overlap(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
