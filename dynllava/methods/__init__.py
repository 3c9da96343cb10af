"""Compression methods: one file each, found by the registry below.

A method file in this package registers itself by defining a :class:`~dynllava.methods.base.Method`
dataclass with a ``name``.  Methods of other packages come with the entry-point group
``dynllava.methods``, from a file (:mod:`dynllava.methods.plugins`), or with :func:`register`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

from dynllava.errors import UserError

from .base import Method

SHARED = frozenset(
    {
        "base",
        "budget",
        "checks",
        "composition",
        "ladder",
        "parameters",
        "patches",
        "plugins",
        "predictors",
        "presets",
        "smaller",
        "titles",
    }
)
"""Modules of this package that hold no method; some need torch, which listing methods does not."""

_EXTERNAL: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Make a method of another package known by its ``name``; usable as a class decorator.

    Raises
    ------
    UserError
        If a method of this package has the name.
    """
    if method.name in _own():
        raise UserError(f"method name {method.name!r} is taken by a method of dynllava")
    _EXTERNAL[method.name] = method
    return method


def registry() -> dict[str, type[Method]]:
    """Return name -> method class, sorted by name."""
    from .plugins import installed

    return dict(sorted({**installed(), **_EXTERNAL, **_own()}.items()))


@functools.cache
def _own() -> dict[str, type[Method]]:
    """Return the methods of this package; looked up once, a report asks thousands of times."""
    from .plugins import methods_in

    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
        if info.name not in SHARED
    ]
    return {cls.name: cls for module in modules for cls in methods_in(module)}


def names() -> list[str]:
    """Return the names of all methods."""
    return list(registry())


def learned(text: str) -> bool:
    """Return whether a method (a name, or a text with parameters) needs trained predictors."""
    known = registry()
    found = (known.get(part.partition(":")[0]) for part in text.split("+"))
    return any(method.learned for method in found if method is not None)


def create(text: str, **parameters: Any) -> Method:
    """Return the method that a text names.

    Parameters
    ----------
    text : str
        A name, or a name with parameters, or a composition:
        ``fastv``, ``fastv:k=2,keep_ratio=0.25``, ``fastv:k=2+h2o:heavy=0.25``
        (grammar: :mod:`dynllava.methods.parameters`).
    **parameters
        Further parameters; for a composition with the part's name in front (``fastv_k``).

    Raises
    ------
    UserError
        For an unknown name or parameter, a value of another type, a parameter given twice.
    """
    from .parameters import check_parameters, parse

    if ":" in text:
        parsed = parse(text)
        for key in parameters:
            if key in parsed.parameters:
                raise UserError(f"{text}: {key} is given twice")
        text, parameters = parsed.name, {**parsed.parameters, **parameters}
    if "+" in text:
        from .composition import compose

        return compose(text, parameters, create)
    check_parameters(text, parameters)
    return registry()[text](**parameters)
