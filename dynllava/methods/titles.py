"""What tables and plots call methods: a name, and the parameters in which those of one name differ.

``prumerge:plus=true`` has a name of its own (:attr:`~.base.Method.title`); ``fastv`` and
``fastv:k=5`` side by side are told apart by what differs from the defaults: ``fastv k=5``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynllava.errors import UserError

from . import create
from .base import Method
from .budget import budget_fields
from .parameters import convert, render_value


@dataclass(frozen=True)
class Named:
    """A method as a run or a record has it.

    Attributes
    ----------
    name : str
        Registered name, or names joined by ``+``.
    parameters : mapping
        Those that are known; defaults for the rest.
    budget : float or None
        Where one sets its shares.
    """

    name: str
    parameters: Mapping[str, Any]
    budget: float | None = None


def titles(methods: Sequence[Named], *, shares: bool = True) -> list[str]:
    """Return a title for each method: equal ones have equal parameters, but for seeds.

    Parameters
    ----------
    methods : sequence of Named
        What stands in one table.
    shares : bool
        Whether shares that a budget could set tell methods apart; False for curves, which are one
        method at several shares.  Beside a budget they never do.
    """
    bases: list[str] = []
    settings: list[dict[str, tuple[Any, Any]]] = []
    for item in methods:
        method = recorded(item.name, item.parameters)
        bases.append(item.name if method is None else method.title)
        settings.append(_settings(method, shares and item.budget is None) if method else {})
    return [
        " ".join([base, *_apart(own, _of(base, bases, settings))])
        for base, own in zip(bases, settings, strict=True)
    ]


def _of(base: str, bases: list[str], settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [own for name, own in zip(bases, settings, strict=True) if name == base]


def _apart(own: dict[str, Any], others: list[dict[str, Any]]) -> list[str]:
    """Return what differs from some other one, defaults left out."""
    return [
        f"{key}={render_value(value)}"
        for key, (value, default) in own.items()
        if value != default and any(other.get(key) != own[key] for other in others)
    ]


def recorded(name: str, parameters: Mapping[str, Any]) -> Method | None:
    """Return the method that plain values describe; None for one that is not here (any more)."""
    try:
        return create(name, **{key: convert(name, key, item) for key, item in parameters.items()})
    except UserError:
        return None


def _settings(method: Method, shares: bool) -> dict[str, tuple[Any, Any]]:
    """Return {parameter: (value, default)} without seeds and what a budget sets."""
    several = len(method.parts) > 1
    found = {}
    for part in method.parts:
        left_out = set() if shares else budget_fields(type(part))
        for field in dataclasses.fields(part):
            if field.name != "seed" and field.name not in left_out:
                prefix = f"{part.name}_" if several else ""
                found[prefix + field.name] = (getattr(part, field.name), field.default)
    return found
