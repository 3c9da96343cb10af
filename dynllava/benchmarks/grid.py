"""From method names and budgets to the cells of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dynllava import methods
from dynllava.benchmarks.sweep import Cell
from dynllava.errors import UserError
from dynllava.methods.budget import SINGLE_CUT, solve
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
        If a method meets none of the budgets.
    """
    found = []
    for name in dict.fromkeys(names):
        own = dict(params.get(name, {}))
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
    for name in names:
        methods.create(name, **params.get(name, {}))
    for name in params:
        if name not in names:
            raise UserError(f"--param {name}...: {name} is not among the methods")


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
