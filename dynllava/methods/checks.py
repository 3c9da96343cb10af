"""Checks of a method's parameters; each raises one line that says what is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dynllava.errors import UserError

#: Deeper than any model: stands for the depth before a model is known.
DEEPEST = 1000


def check_fraction(name: str, value: Any, *, low_open: bool = True) -> None:
    """Raise :class:`UserError` unless ``value`` is a share in (0, 1] (or [0, 1])."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    low_ok = number and (value > 0 if low_open else value >= 0)
    if not number or math.isnan(value) or not low_ok or value > 1:
        raise UserError(
            f"{name}={value!r}: accepted is a number in {'(' if low_open else '['}0, 1]"
        )


def check_layer(name: str, value: Any, layers: int, *, first: int = 0) -> None:
    """Raise :class:`UserError` unless ``value`` is a layer index in [first, layers - 1]."""
    if not isinstance(value, int) or isinstance(value, bool) or not first <= value < layers:
        most = f"to {layers - 1}" if layers < DEEPEST else "on"
        raise UserError(f"{name}={value!r}: accepted is a layer index from {first} {most}")


def check_number(name: str, value: Any, *, first: int = 1, optional: bool = False) -> None:
    """Raise :class:`UserError` unless ``value`` is an integer from ``first`` on."""
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < first:
        none = "None or " if optional else ""
        raise UserError(f"{name}={value!r}: accepted is {none}an integer from {first} on")


def check_choice(name: str, value: Any, accepted: Sequence[str]) -> None:
    """Raise :class:`UserError` unless ``value`` is one of ``accepted``."""
    if value not in accepted:
        raise UserError(f"{name}={value!r}: accepted are {', '.join(accepted)}")


def numbers(name: str, value: Any, *, zero: bool = False) -> tuple[float, ...]:
    """Return the numbers of ``"300/200/110"``, of a sequence, or a single one.

    Raises
    ------
    UserError
        If one is no positive finite number (or 0, where ``zero`` is accepted).
    """
    parts = value.split("/") if isinstance(value, str) else value
    parts = parts if isinstance(parts, Sequence) else (parts,)
    try:
        read = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UserError(f"{name}={value!r}: accepted are numbers such as 300/200/110") from None
    low_ok = all(number > 0 or zero for number in read)
    if not read or not low_ok or not all(math.isfinite(number) for number in read):
        raise UserError(f"{name}={value!r}: accepted are positive numbers such as 300/200/110")
    return read
