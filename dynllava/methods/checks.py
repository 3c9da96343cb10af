"""Checks of a method's parameters; each raises one line that says what is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dynllava.errors import UserError
from dynllava.plan import Count, Keep, Share

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


def check_rising(name: str, layers: Sequence[int], last: int) -> None:
    """Raise :class:`UserError` unless ``layers`` rise, from 0 at least to ``last`` at most."""
    rising = all(a < b for a, b in pairwise(layers))
    if not layers or not rising or layers[0] < 0 or layers[-1] > last:
        listed = "/".join(map(str, layers))
        raise UserError(f"{name}={listed}: accepted are rising layers from 0 to {last}")


def check_stages(name: str, listed: Sequence[float], stages: int, *, growing: bool = False) -> None:
    """Raise :class:`UserError` unless there is one number a stage and none above the one before."""
    if len(listed) != stages:
        raise UserError(f"{len(listed)} {name} for {stages} layers: one for each")
    if not growing and any(a < b for a, b in pairwise(listed)):
        shown = "/".join(f"{number:g}" for number in listed)
        raise UserError(f"{name}={shown}: a later layer cannot keep more than an earlier one")


def keeps(name: str, listed: Sequence[float], *, shares: bool = False, **common: Any) -> list[Keep]:
    """Return what each number keeps: tokens, or below 1 (or with ``shares``) a share.

    ``common`` goes to every :class:`~dynllava.plan.Share`, ``spare`` to every
    :class:`~dynllava.plan.Count` too.
    """
    spare = common.get("spare", 0)
    return [
        Share(number, **common)
        if shares or number < 1
        else Count(int(number), spare=spare, name=name)
        for number in listed
    ]


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
