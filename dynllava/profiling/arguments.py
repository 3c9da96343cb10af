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
