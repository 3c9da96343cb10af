"""Compression methods: one file each, found by the registry below.

A method file in this package registers itself by defining a :class:`~dynllava.methods.base.Method`
dataclass with a ``name``.  Methods of other packages are registered with :func:`register`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

from dynllava.errors import UserError
from dynllava.methods.base import Method

_EXTERNAL: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Make a method of another package known by its ``name``; usable as a class decorator."""
    _EXTERNAL[method.name] = method
    return method


def registry() -> dict[str, type[Method]]:
    """Return name -> method class, sorted by name."""
    found = dict(_EXTERNAL)
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Method) and value.name:
                found[value.name] = value
    return dict(sorted(found.items()))


def names() -> list[str]:
    """Return the names of all methods."""
    return list(registry())


def create(name: str, **parameters: Any) -> Method:
    """Return a method by name, or a composition such as ``fastv+h2o`` with prefixed parameters.

    Raises
    ------
    UserError
        For an unknown name or parameter.
    """
    if "+" in name:
        from dynllava.methods.composition import compose

        return compose(name, parameters, create)
    known = registry()
    if name not in known:
        raise UserError(f"method={name!r}: accepted are {', '.join(known)}")
    accepted = [field.name for field in dataclasses.fields(known[name]) if field.init]
    for key in parameters:
        if key not in accepted:
            listed = ", ".join(accepted) if accepted else "no parameters"
            raise UserError(f"{name} has no parameter {key!r}: accepted are {listed}")
    return known[name](**parameters)
