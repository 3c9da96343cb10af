"""Modules that moved: their old names work for one more minor version, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def forward(old: str, new: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds its names in the module ``new``."""

    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new), name)

    return find
