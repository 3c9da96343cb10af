"""How many patches and image tokens a picture has, by each family's own rule, from its size alone.

The rules are those of the families' image processors in transformers 5.23, as plain functions, so
that costs are counted without loading anything; ``tests/costs/test_families.py`` compares them with
the processors themselves.  Sizes are (height, width) in pixels, grids (rows, columns) in patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynllava.errors import UserError

Size = tuple[int, int]

LONGEST_SMOLVLM = 4096
"""Pixels: SmolVLM and Idefics3 never enlarge a side beyond this."""


def smart_resize(size: Size, factor: int, least: int, most: int) -> Size:
    """Return Qwen's size: multiples of ``factor`` with between ``least`` and ``most`` pixels."""
    height, width = size
    if max(size) > 200 * min(size):
        raise UserError(f"image of {width} x {height} pixels: accepted is at most 1 to 200")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def best_pinpoint(size: Size, pinpoints: Sequence[Sequence[int]]) -> Size:
    """Return LLaVA-NeXT's resolution: most of the picture's pixels, then least waste."""
    height, width = size

    def worth(pinpoint: Sequence[int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        used = min(int(width * scale) * int(height * scale), height * width)
        return used, used - pinpoint[0] * pinpoint[1]

    best = max(pinpoints, key=worth)
    return best[0], best[1]


def unpadded(grid: Size, size: Size, side: int, most_crops: int | None) -> Size:
    """Return a grid without the padding that kept proportions, scaled down beyond ``most_crops``.

    Parameters
    ----------
    grid : tuple of int
        Patches of all crops together.
    size : tuple of int
        Of the picture.
    side : int
        Patches of a crop's side.
    most_crops : int or None
        LLaVA-OneVision: a grid of more crops' patches is scaled down.
    """
    (rows, columns), (height, width) = grid, size
    if width / height > columns / rows:
        kept = int(round(height * (columns / width), 7))
        rows -= 2 * ((rows - kept) // 2)
    else:
        kept = int(round(width * (rows / height), 7))
        columns -= 2 * ((columns - kept) // 2)
    if most_crops is not None:
        ratio = math.sqrt(rows * columns / (most_crops * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns


def tiles(size: Size, side: int, least: int, most: int) -> Size:
    """Return InternVL's tiles (rows, columns): the nearest proportions of ``least`` to ``most``."""
    height, width = size
    shapes = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= columns * rows <= most
    ]
    best, difference = (1, 1), math.inf
    for columns, rows in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        own = abs(width / height - columns / rows)
        larger = width * height > 0.5 * side * side * columns * rows
        if own < difference or (own == difference and larger):
            best, difference = (columns, rows), own
    return best[1], best[0]


def splits(size: Size, longest: int, side: int) -> Size:
    """Return SmolVLM's and Idefics3's crops (rows, columns); (0, 0): the whole picture alone."""
    height, width = size
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        width, height = int(longest * ratio), longest
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LONGEST_SMOLVLM:
        width, height = LONGEST_SMOLVLM, int(LONGEST_SMOLVLM / ratio)
    elif height > width and height > LONGEST_SMOLVLM:
        width, height = int(LONGEST_SMOLVLM * ratio), LONGEST_SMOLVLM
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / ratio) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * ratio) / side) * side
    if height <= side and width <= side:
        return 0, 0
    return height // side, width // side


def within(size: Size, longest: int, step: int) -> Size:
    """Return Mistral 3's size: at most ``longest`` a side, rounded up to multiples of ``step``."""
    height, width = size
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return ((height - 1) // step + 1) * step, ((width - 1) // step + 1) * step


def windows(grid: Size, side: int) -> list[int]:
    """Return the sizes of Qwen2.5-VL's attention windows over a grid, ``side`` of it each way."""
    rows, columns = (
        [min(side, length - start) for start in range(0, length, side)] for length in grid
    )
    return [height * width for height in rows for width in columns]
