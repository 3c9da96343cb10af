"""From method names and budgets to the cells of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dynllava import methods
from dynllava.benchmarks.sweep import Cell
from dynllava.errors import UserError
from dynllava.methods.budget import SINGLE_CUT, solve
from dynllava.methods.parameters import parse
from dynllava.profiling.spec import ModelSpec

IMAGE_TO_TEXT = 9
"""Image tokens per text token of the prompt that budgets are solved for (LLaVA-1.5: 576 to 64).

Only methods that evict cache entries depend on it.
"""


def cells(
    names: Sequence[str],
    budgets: Sequence[float],
    params: Mapping[str, Mapping[str, Any]],
    spec: ModelSpec,
) -> list[Cell]:
    """Return one cell per method and budget (one per method where no budget applies).

    A budget below what a method can reach is left out with a note on standard error, as long as
    another one remains.

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

    Raises
    ------
    UserError
        If a method meets none of the budgets.
    """
    found = []
    for text in dict.fromkeys(names):
        name, own = _own_parameters(text, params)
        if budgets and takes_budget(name):
            found += _solved(name, budgets, own, spec)
        else:
            found.append(Cell(name, own))
    return found


def takes_budget(name: str) -> bool:
    """Return whether a budget of image tokens sets anything of the method."""
    return name in SINGLE_CUT or name in ("sparsevlm", "h2o") or "+" in name


def check(names: Sequence[str], params: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise :class:`UserError` for an unknown method or parameter, before a model is loaded."""
    chosen = set()
    for text in names:
        name, own = _own_parameters(text, params)
        methods.create(name, **own)
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
    found, failures = [], []
    for budget in dict.fromkeys(budgets):
        try:
            solution = solve(name, budget, shape, spec.dims.layers, **own)
        except UserError as error:
            failures.append(error)
            continue
        found.append(Cell(name, solution, float(budget)))
    if not found:
        raise failures[0]
    for failure in failures:
        print(f"note: {failure}; left out", file=sys.stderr)
    return found
