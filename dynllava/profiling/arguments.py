"""Command-line values shared by the profiling commands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dynllava.errors import UserError


def parse_parameters(pairs: Iterable[str]) -> dict[str, Any]:
    """Return ``["k=2", "keep_ratio=0.25"]`` as a dict; values are JSON, else plain text."""
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"method parameter {pair!r}: accepted is NAME=VALUE")
        try:
            parameters[name] = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            parameters[name] = None if text == "None" else text
    return parameters


def parse_integers(text: str, name: str) -> list[int]:
    """Return ``"1,8"`` as positive integers."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise UserError(f"{name} {text!r}: accepted are positive integers separated by commas")
    return values
