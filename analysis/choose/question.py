"""What is asked: a model, a load, limits; and how they are written on a command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dynllava.costs.devices import Device
from dynllava.costs.spec import ModelSpec
from dynllava.errors import UserError
from dynllava.images import LONGEST_SIDE
from dynllava.output.tables import quantity

SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

PREFILL, KV, TTFT, TPOT, LOSS, WORST = (
    "--max-prefill",
    "--max-kv",
    "--max-ttft",
    "--max-tpot",
    "--max-loss",
    "--max-worst-loss",
)


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes
    ----------
    name : str
        The option that sets it.
    most : float
        In ``unit``.
    unit : str
        ``"FLOP"``, ``"byte"``, ``"s"`` or ``"points"``.
    share_of : float or None
        The dense model's value, where the limit was given as a share of it.
    """

    name: str
    most: float
    unit: str
    share_of: float | None = None

    def text(self, value: float) -> str:
        """Return a value in this limit's unit."""
        if self.unit == "points":
            return points(value)
        if self.share_of:
            return f"{quantity(value, self.unit)} ({value / self.share_of:.2f}x)"
        return quantity(value, self.unit)

    def relaxed(self, share: float = 0.1) -> Limit:
        """Return the limit ``share`` higher (a loss: of itself, or of a point if it is less)."""
        step = share * max(abs(self.most), 1.0 if self.unit == "points" else 0.0)
        return Limit(self.name, self.most + step, self.unit, self.share_of)

    def excess(self, value: float) -> float:
        """Return by which share of the limit a value lies above it (negative: margin)."""
        least = 1.0 if self.unit == "points" else 1e-12
        return (value - self.most) / max(abs(self.most), least)


@dataclass(frozen=True)
class Question:
    """A model and the load that it is to carry.

    Attributes
    ----------
    spec : ModelSpec
    batch : int
        Equal sequences.
    text, images, outputs : int
        Text tokens and pictures of a prompt, generated tokens.
    dtype : str
        Of weights and cache.
    device : Device or None
        For time limits.
    """

    spec: ModelSpec
    batch: int = 1
    text: int = 60
    images: int = 1
    outputs: int = 16
    dtype: str = "float16"
    device: Device | None = None


def points(value: float) -> str:
    """Return a loss in points of a 0-100 score; a gain is negative."""
    return f"{0.0 if abs(value) < 0.005 else value:+.2f}"


def compute(text: str) -> tuple[float, bool]:
    """Read ``0.6x`` (a share of dense) or ``3TFLOP``; return (number, whether a share).

    Raises
    ------
    UserError
        If it is neither, or not above 0.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*(x|%|([kmgtp]?)flops?)", text.strip().lower())
    value = _number(match[1]) if match else None
    if match is None or value is None:
        raise UserError(f"{PREFILL} {text}: accepted are a share of dense as 0.6x, or as 3TFLOP")
    if match[2] in ("x", "%"):
        return value / (100 if match[2] == "%" else 1), True
    return value * SIZES[match[3]], False


def size(text: str) -> float:
    """Read bytes: ``1GB`` is 10^9, ``1GiB`` 2^30.

    Raises
    ------
    UserError
        If it is no size above 0.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*(ki|mi|gi|ti|[kmgt]?)b", text.strip().lower())
    value = _number(match[1]) if match else None
    if match is None or value is None:
        raise UserError(f"{KV} {text}: accepted is a size as 1GB (10^9 bytes) or 1GiB (2^30)")
    return value * (BINARY | SIZES)[match[2]]


def pixels(text: str) -> tuple[int, int]:
    """Read ``640x480``; return (width, height).

    Raises
    ------
    UserError
        If it is no size of a picture that can be opened.
    """
    match = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", text.strip().lower())
    if match is None or max(int(side) for side in match.groups()) > LONGEST_SIDE:
        raise UserError(
            f"--image {text}: accepted is WIDTHxHEIGHT in pixels, each from 1 to {LONGEST_SIDE}"
        )
    return int(match[1]), int(match[2])


def seconds(name: str, text: str) -> float:
    """Read a time: ``80ms`` or ``0.08s``.

    Raises
    ------
    UserError
        If it is no time above 0.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*(us|ms|s)", text.strip().lower())
    value = _number(match[1]) if match else None
    if match is None or value is None:
        raise UserError(f"{name} {text}: accepted is a time as 80ms or 0.08s")
    return value * SECONDS[match[2]]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
