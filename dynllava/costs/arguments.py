"""Command-line values shared by the profiling commands."""

from __future__ import annotations

from dynllava.errors import UserError


def parse_integers(text: str, name: str) -> list[int]:
    """Return ``"1,8"`` as positive integers."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise UserError(f"{name} {text!r}: accepted are positive integers separated by commas")
    return values


LARGEST = {"prompt_tokens": 1_000_000, "output_tokens": 100_000, "batch": 1_000_000}
"""Argument -> largest value: beyond it a count takes hours, or memory that no machine has."""


def check_count(name: str, value: int, most: int) -> None:
    """Raise :class:`UserError` unless ``value`` is in [1, ``most``]."""
    if not 1 <= value <= most:
        raise UserError(f"{name} {value}: accepted is a number from 1 to {most}")
