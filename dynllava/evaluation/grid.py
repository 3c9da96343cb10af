"""From method names and budgets to the cells of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dynllava import methods
from dynllava.costs.spec import ModelSpec
from dynllava.errors import UserError
from dynllava.methods.budget import solve
from dynllava.methods.parameters import MethodText, parse

from .sweep import Cell, labelled

IMAGE_TO_TEXT = 9
"""Image tokens per text token of the prompt that budgets are solved for (LLaVA-1.5: 576 to 64).

Only methods that evict cache entries depend on it.
"""


def cells(
    names: Sequence[str],
    budgets: Sequence[float],
    params: Mapping[str, Mapping[str, Any]],
    spec: ModelSpec,
    seeds: int = 1,
) -> list[Cell]:
    """Return one cell per method and budget; one cell for a reference (dense, no image).

    Beside budgets no method runs at a budget of its own: it meets each of them, or the grid is
    refused.

    Parameters
    ----------
    names : sequence of str
        Methods, each with parameters of its own if given (``fastv:k=2``).
    budgets : sequence of float
        Mean image tokens processed per layer; none = every method once, as it is.
    params : mapping
        {method: {parameter: value}} beside those; the solver leaves both alone.
    spec : ModelSpec
        The model the budgets are solved for.
    seeds : int
        Draws of a method that draws and whose seed is not given: one cell each.

    Raises
    ------
    UserError
        If a method has no budget to set, or cannot meet one of them.
    """
    found = []
    for text in dict.fromkeys(names):
        name, own = _own_parameters(text, params)
        plan = methods.create(name, **own).plan(spec.dims.layers)
        if not budgets or plan.is_reference:
            found.append(Cell(name, own))
        else:
            found += _solved(name, budgets, own, spec)
    return [draw for cell in labelled(found) for draw in _draws(cell, seeds)]


def _draws(cell: Cell, seeds: int) -> list[Cell]:
    """Return the cell once for every seed, or as it is where nothing is drawn."""
    fields = methods.create(cell.method, **cell.params).parameters()
    key = next((name for name in fields if name == "seed" or name.endswith("_seed")), None)
    if key is None or key in cell.params:
        return [cell]
    return [replace(cell, params={**cell.params, key: seed}) for seed in range(seeds)]


def check(names: Sequence[str], params: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise :class:`UserError` for an unknown method or parameter, before a model is loaded."""
    chosen = set()
    for text in names:
        name, own = _own_parameters(text, params)
        MethodText(name, own).create()
        chosen.add(name)
    for name in params:
        if name not in chosen:
            raise UserError(f"--param {name}...: {name} is not among the methods")


def _own_parameters(
    text: str, params: Mapping[str, Mapping[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Return a method's name and what is set of it, in its text and beside it."""
    method = parse(text)
    beside = params.get(method.name, {})
    for key in beside:
        if key in method.parameters:
            raise UserError(f"--param {method.name}.{key}: {text} sets it already")
    return method.name, {**beside, **method.parameters}


def _solved(
    name: str, budgets: Sequence[float], own: dict[str, Any], spec: ModelSpec
) -> list[Cell]:
    shape = spec.prompt(max(2, spec.image_tokens // IMAGE_TO_TEXT))
    return [
        Cell(name, solve(name, budget, shape, spec.dims.layers, **own), float(budget))
        for budget in dict.fromkeys(budgets)
    ]
