"""From method names and budgets to the cells of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dynllava import methods
from dynllava.benchmarks.sweep import Cell
from dynllava.errors import UserError
from dynllava.profiling.spec import ModelSpec


def cells(
    names: Sequence[str],
    budgets: Sequence[float],
    params: Mapping[str, Mapping[str, Any]],
    spec: ModelSpec,
) -> list[Cell]:
    """Return one cell per method and budget (one per method where no budget applies).

    Parameters
    ----------
    names : sequence of str
        Methods.
    budgets : sequence of float
        Mean image tokens processed per layer; none = every method once, as it is.
    params : mapping
        {method: {parameter: value}}, which the solver leaves alone.
    spec : ModelSpec
        The model the budgets are solved for.

    Raises
    ------
    UserError
        If no parameters of a method meet a budget.
    """
    found = []
    for name in dict.fromkeys(names):
        own = dict(params.get(name, {}))
        if name == "full" or not budgets:
            found.append(Cell(name, own))
            continue
        for budget in budgets:
            found.append(Cell(name, _solve(name, budget, own, spec), budget))
    return found


def check(names: Sequence[str], params: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise :class:`UserError` for an unknown method or parameter, before a model is loaded."""
    for name in names:
        methods.create(name, **params.get(name, {}))
    for name in params:
        if name not in names:
            raise UserError(f"--param {name}...: {name} is not among the methods")


def _solve(name: str, budget: float, own: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    from dynllava.methods.budget import solve

    solved = solve(name, budget, spec.dims.layers, spec.image_tokens, **own)
    return dataclasses.asdict(solved) if dataclasses.is_dataclass(solved) else dict(solved)
