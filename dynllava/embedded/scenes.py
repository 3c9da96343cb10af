"""Seeded synthetic scenes: a few coloured shapes and perhaps a digit on a grey, noisy ground.

All randomness comes from SHAKE-128 and :class:`random.Random`, all drawing is integer arithmetic
on NumPy arrays, so a seed gives the same pixels on every machine.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

IMAGE_SIZE = 96
PATCH_SIZE = 8
PATCHES_PER_SIDE = IMAGE_SIZE // PATCH_SIZE
GRID = 4
CELL = IMAGE_SIZE // GRID
MAX_OBJECTS = 6

COLOURS = {
    "red": (205, 35, 35),
    "green": (35, 150, 45),
    "blue": (40, 65, 215),
    "yellow": (235, 220, 40),
    "purple": (145, 45, 175),
    "cyan": (50, 205, 215),
    "black": (18, 18, 18),
    "white": (242, 242, 242),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("large", "small")
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("first", "second", "third", "fourth")

_RADIUS = {"large": 19, "small": 12}  # half pixels
_SUPERSAMPLE = 4
# Seven segments in the usual order: top, upper left, upper right, middle, lower left, lower
# right, bottom; one string of lit segments per digit.
_SEGMENTS = (
    *("012456", "25", "02346", "02356", "1235"),
    *("01356", "013456", "025", "0123456", "012356"),
)
_SEGMENT_BOXES = (
    (0, 0, 11, 3),
    (0, 0, 3, 10),
    (8, 0, 11, 10),
    (0, 7, 11, 10),
    (0, 7, 3, 17),
    (8, 7, 11, 17),
    (0, 14, 11, 17),
)
# Edges of a five-pointed star of circumradius 1000 as (normal x, normal y): a point is inside
# when it lies under at least four of the five lines, each at distance 309 from the centre.
_STAR_NORMALS = ((0, 1000), (951, 309), (588, -809), (-588, -809), (-951, 309))


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape.

    Attributes
    ----------
    shape, colour, size : str
    row, column : int
        Cell of the 4 x 4 grid, counted from the top left.
    box : tuple of int
        Pixel box ``(left, top, right, bottom)``, right and bottom exclusive.
    """

    shape: str
    colour: str
    size: str
    row: int
    column: int
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[int, int]:
        """Centre of the box in pixels, ``(x, y)``."""
        left, top, right, bottom = self.box
        return (left + right) // 2, (top + bottom) // 2


@dataclass(frozen=True)
class SceneDigit:
    """The digit of a scene: its value, cell and pixel box."""

    value: int
    row: int
    column: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows.

    Attributes
    ----------
    seed : str
    image : PIL.Image.Image
        RGB, 96 x 96.
    objects : tuple of SceneObject
        In reading order of their cells.
    digit : SceneDigit or None
    patches : numpy.ndarray
        int8 ``[12, 12]``: index of the object a patch shows, ``len(objects)`` for the digit,
        -1 for background.
    """

    seed: str
    image: Image.Image
    objects: tuple[SceneObject, ...]
    digit: SceneDigit | None
    patches: np.ndarray

    def to_dict(self) -> dict:
        """Everything but the pixels, ready for JSON."""
        return {
            "seed": self.seed,
            "objects": [
                {
                    "shape": item.shape,
                    "colour": item.colour,
                    "size": item.size,
                    "row": item.row,
                    "column": item.column,
                    "box": list(item.box),
                }
                for item in self.objects
            ],
            "digit": None
            if self.digit is None
            else {
                "value": self.digit.value,
                "row": self.digit.row,
                "column": self.digit.column,
                "box": list(self.digit.box),
            },
            "patches": self.patches.reshape(-1).tolist(),
        }


def seeded_random(*parts: object) -> random.Random:
    """Make a :class:`random.Random` whose stream depends on ``parts`` only."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def generate_scene(seed: int | str, min_objects: int = 1, digit: bool | None = None) -> Scene:
    """Draw the scene of a seed.

    Parameters
    ----------
    seed : int or str
        Any value; ``7`` and ``"7"`` are the same seed.
    min_objects : int, default 1
        Fewest objects, up to 6.
    digit : bool, optional
        Force a digit in or out; by default half of the scenes have one.

    Returns
    -------
    Scene
    """
    if not 1 <= min_objects <= MAX_OBJECTS:
        raise ValueError(f"min_objects must be between 1 and {MAX_OBJECTS}, got {min_objects}")
    rng = seeded_random("scene", seed)
    count = rng.randint(min_objects, MAX_OBJECTS)
    with_digit = rng.random() < 0.5 if digit is None else digit
    cells = sorted(rng.sample(range(GRID * GRID), count + with_digit))
    digit_cell = rng.choice(cells) if with_digit else None
    kinds = rng.sample([(c, s) for c in COLOURS for s in SHAPES], count)

    canvas = _background(rng, str(seed))
    owner = np.full((PATCHES_PER_SIDE, PATCHES_PER_SIDE), -1, np.int8)
    best = np.full(owner.shape, 9, np.int64)  # a patch shows what covers at least 10 of its 64 px
    objects: list[SceneObject] = []
    drawn_digit = None
    colour: tuple[int, ...]
    for cell in cells:
        row, column = divmod(cell, GRID)
        if cell == digit_cell:
            value = rng.randrange(10)
            mask, colour = _digit_mask(value), COLOURS[rng.choice(("black", "white"))]
            box = _place(rng, mask.shape, row, column)
            drawn_digit = SceneDigit(value, row, column, box)
            index = count
        else:
            name, shape = kinds[len(objects)]
            size = rng.choice(SIZES)
            mask = _shape_mask(shape, _RADIUS[size])
            colour = tuple(min(255, max(0, v + rng.randint(-12, 12))) for v in COLOURS[name])
            box = _place(rng, mask.shape, row, column)
            index = len(objects)
            objects.append(SceneObject(shape, name, size, row, column, box))
        _paint(canvas, mask, colour, box)
        covered = _patch_coverage(mask, box)
        owner[covered > best] = index
        best = np.maximum(best, covered)
    noise = np.frombuffer(hashlib.shake_128(f"noise/{seed}".encode()).digest(96 * 96), np.uint8)
    canvas += (noise.reshape(IMAGE_SIZE, IMAGE_SIZE, 1) % 25).astype(np.int64) - 12
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return Scene(str(seed), image, tuple(objects), drawn_digit, owner)


def _background(rng: random.Random, seed: str) -> np.ndarray:
    """Draw a greyish ground, bilinear between 5 x 5 random nodes; int64 ``[96, 96, 3]``."""
    base = rng.randint(95, 160)
    raw = hashlib.shake_128(f"ground/{seed}".encode()).digest(5 * 5 * 4)
    nodes = np.frombuffer(raw, np.uint8).reshape(5, 5, 4).astype(np.int64)
    # A shared brightness wave plus a weaker tint of each channel.
    nodes = base + (nodes[..., 3:] % 49 - 24) + (nodes[..., :3] % 17 - 8)
    step = np.arange(IMAGE_SIZE) % CELL
    first = np.arange(IMAGE_SIZE) // CELL
    weight = step[:, None, None]
    rows = nodes[first] * (CELL - weight) + nodes[first + 1] * weight
    weight = step[None, :, None]
    return (rows[:, first] * (CELL - weight) + rows[:, first + 1] * weight) // (CELL * CELL)


def _place(
    rng: random.Random, shape: tuple[int, int], row: int, column: int
) -> tuple[int, int, int, int]:
    """Choose a random box of ``shape`` (height, width) that stays inside its cell."""
    height, width = shape
    left = column * CELL + rng.randint(1, CELL - width - 1)
    top = row * CELL + rng.randint(1, CELL - height - 1)
    return left, top, left + width, top + height


def _paint(
    canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, ...], box: tuple[int, int, int, int]
) -> None:
    left, top, right, bottom = box
    region = canvas[top:bottom, left:right]
    alpha = mask[..., None]
    full = _SUPERSAMPLE * _SUPERSAMPLE
    region[:] = (region * (full - alpha) + np.array(colour) * alpha) // full


def _patch_coverage(mask: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels of each patch that a mask covers, int64 ``[12, 12]``."""
    whole = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.int64)
    left, top, right, bottom = box
    whole[top:bottom, left:right] = mask
    split = whole.reshape(PATCHES_PER_SIDE, PATCH_SIZE, PATCHES_PER_SIDE, PATCH_SIZE)
    return split.sum((1, 3)) // (_SUPERSAMPLE * _SUPERSAMPLE)


@lru_cache(maxsize=64)
def _shape_mask(shape: str, radius: int) -> np.ndarray:
    """Anti-aliased mask of a shape, int64 ``[radius, radius]`` with values 0-16.

    ``radius`` is in half pixels, so it equals the width in pixels.
    """
    # Sub-pixel coordinates with the origin in the middle, in units of 1/8 pixel (always odd or
    # always even, never fractional), scaled so that the circumradius is 1000.
    points = np.arange(radius * _SUPERSAMPLE) * 2 + 1 - radius * _SUPERSAMPLE
    points = points * 1000 // (radius * _SUPERSAMPLE)
    x, y = points[None, :], points[:, None]
    inside: np.ndarray
    if shape == "circle":
        inside = x * x + y * y <= 1000 * 1000
    elif shape == "ring":
        inside = (x * x + y * y <= 1000 * 1000) & (x * x + y * y >= 560 * 560)
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 860
    elif shape == "cross":
        inside = np.minimum(abs(x), abs(y)) <= 300
    elif shape == "triangle":
        inside = 2 * abs(x) <= y + 1000
    else:
        lines = [nx * x + ny * y <= 309 * 1000 for nx, ny in _STAR_NORMALS]
        inside = np.add.reduce([line.astype(np.int64) for line in lines]) >= 4
        inside &= x * x + y * y <= 1000 * 1000
    return _reduce(inside)


@lru_cache(maxsize=16)
def _digit_mask(value: int) -> np.ndarray:
    """Seven-segment digit, int64 ``[17, 11]`` with values 0 or 16."""
    mask = np.zeros((17, 11), np.int64)
    for segment in _SEGMENTS[value]:
        left, top, right, bottom = _SEGMENT_BOXES[int(segment)]
        mask[top:bottom, left:right] = _SUPERSAMPLE * _SUPERSAMPLE
    return mask


def _reduce(inside: np.ndarray) -> np.ndarray:
    side = inside.shape[0] // _SUPERSAMPLE
    full = np.broadcast_to(inside, (side * _SUPERSAMPLE, side * _SUPERSAMPLE)).astype(np.int64)
    return full.reshape(side, _SUPERSAMPLE, side, _SUPERSAMPLE).sum((1, 3))
