"""Budgets that make methods comparable: from one number to each method's parameters.

The budget is the mean number of image tokens that a layer *processes* in prefill: a layer whose
output is pruned counts at its full length, merged tokens count, and a method that starts later has
to prune harder.  For methods that evict cache entries (H2O) processing is dense, and the budget is
the mean number of prompt entries that a layer's cache holds beyond the text tokens' number, so that
equal budgets mean equal KV bytes after prefill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from dynllava.errors import UserError
from dynllava.methods import create, registry
from dynllava.methods.base import Method, PromptShape
from dynllava.methods.composition import Composition
from dynllava.methods.sparsevlm import PUBLISHED, PUBLISHED_IMAGE, numbers
from dynllava.methods.uniform import square_rows

Budget = str | float | Sequence[float]

#: How far from its budget a method may end, as a share of the image tokens; whole tokens at an
#: early layer are coarse (a token at every layer is always allowed).
TOLERANCE = 0.02

LONGEST = 2.0
"""Largest ratio of edges of a grid that pictures are shrunk or pooled to."""


def takes_budget(name: str) -> bool:
    """Return whether a budget of image tokens sets anything of the method.

    Parameters
    ----------
    name : str
        A registered method, or a composition (see :func:`solve` for what it then needs).
    """
    if "+" in name or name in ("sparsevlm", "h2o"):
        return True
    return registry()[name].single_cut is not None or registry()[name].sets_grid


def processed(method: Method, shape: PromptShape, num_layers: int) -> float:
    """Return the mean image tokens per layer that ``method`` processes in prefill.

    Parameters
    ----------
    method : Method
    shape : PromptShape
        The prompt.
    num_layers : int
        Decoder layers.
    """
    rows = method.schedule(shape, num_layers).prefill_rows
    return sum(rows) / num_layers - (shape.total - shape.image)


def held(method: Method, shape: PromptShape, num_layers: int) -> float:
    """Return the mean cache entries per layer after prefill, less the text tokens' number."""
    entries = method.schedule(shape, num_layers).prefill_kv
    return sum(entries) / num_layers - (shape.total - shape.image)


def target(budget: Budget, shape: PromptShape, num_layers: int) -> float:
    """Return the budget as one number.

    A list such as ``"300/200/110"`` stands for what SparseVLM 1.5 processes with it.

    Raises
    ------
    UserError
        If it is no number, or not between 0 and the number of image tokens.
    """
    listed = numbers("budget", budget)
    value = listed[0]
    if len(listed) > 1:
        method = create("sparsevlm", budgets=listed)
        method.validate(num_layers)
        value = processed(method, shape, num_layers)
    if not 0 < value <= shape.image:
        raise UserError(
            f"budget={value:g}: accepted is a number of image tokens up to {shape.image}"
        )
    return value


def solve(
    method_name: str, budget: Budget, shape: PromptShape, num_layers: int, **fixed: Any
) -> dict[str, Any]:
    """Return the parameters with which a method meets a budget.

    Parameters
    ----------
    method_name : str
        A registered method or a composition, whose image part then gets the budget.
    budget : float, str or sequence
        Mean image tokens processed per layer, or a list (see :func:`target`).
    shape : PromptShape
        The prompt that the budget is for.
    num_layers : int
        Decoder layers.
    **fixed
        Parameters that are given, e.g. ``k=2``.

    Returns
    -------
    dict
        Parameters for :func:`dynllava.methods.create`, the fixed ones included.  What they really
        process is :func:`processed`; it differs from the budget by rounding to whole tokens.

    Raises
    ------
    UserError
        If the method cannot meet the budget, or has nothing to set.
    """
    goal = target(budget, shape, num_layers)
    if "+" in method_name:
        return _solve_composition(method_name, goal, shape, num_layers, fixed)
    if not takes_budget(method_name):
        known = ", ".join(name for name in registry() if takes_budget(name))
        raise UserError(f"{method_name} has no budget to set: accepted are {known}")
    _check_free(method_name, fixed)
    if method_name == "sparsevlm":
        listed = numbers("budget", budget)
        if len(listed) > 1:
            return {**fixed, "budgets": "/".join(f"{number:g}" for number in listed)}
        solved = _solve_sparsevlm(goal, shape, num_layers, fixed)
    elif registry()[method_name].sets_grid:
        solved = _solve_grid(method_name, goal, shape, fixed)
    elif method_name == "h2o":
        solved = _solve_h2o(goal, shape, num_layers, fixed)
    else:
        solved = _solve_single_cut(method_name, goal, shape, num_layers, fixed)
    _check_met(method_name, solved, goal, shape, num_layers)
    return solved


def _check_free(name: str, fixed: dict[str, Any]) -> None:
    """Raise :class:`UserError` if a parameter is given that a budget sets."""
    cut = registry()[name].single_cut
    sets = {"sparsevlm": ("budgets", "retain"), "h2o": ("heavy", "recent"), "fastv": ("keep",)}
    grid = ("rows", "columns") if registry()[name].sets_grid else ()
    for key in (*sets.get(name, ()), *(cut[1:] if cut else ()), *grid):
        if fixed.get(key) is not None:
            raise UserError(f"{name}: {key} is given, and a budget sets it too: give one of them")


def _check_met(
    name: str, solved: dict[str, Any], goal: float, shape: PromptShape, num_layers: int
) -> None:
    """Raise :class:`UserError` if what was solved for ends at another budget."""
    method = create(name, **solved)
    method.validate(num_layers)
    evicts = name == "h2o"
    reached = (held if evicts else processed)(method, shape, num_layers)
    if abs(reached - goal) > max(1.0, TOLERANCE * shape.image):
        unit = "cache entries" if evicts else "image tokens"
        raise UserError(
            f"{name} ends at {reached:.1f} {unit} per layer: a budget of {goal:g} is out of reach"
        )


def _solve_single_cut(
    name: str, goal: float, shape: PromptShape, num_layers: int, fixed: dict[str, Any]
) -> dict[str, Any]:
    layer_name, rate_name = registry()[name].single_cut or ("", "")
    layer = fixed.get(layer_name, getattr(create(name), layer_name))
    short = num_layers - layer
    if short < 1:
        raise UserError(f"{layer_name}={layer}: the model has {num_layers} layers")
    keep = math.floor((num_layers * goal - layer * shape.image) / short + 0.5)
    if keep < 1:
        least = (layer * shape.image + short) / num_layers
        raise UserError(
            f"{name} with {layer_name}={layer} processes {least:.1f} image tokens per layer at "
            f"least: a budget of {goal:g} is out of reach"
        )
    return {**fixed, layer_name: layer, rate_name: _share(keep, shape.image)}


def _solve_grid(
    name: str, goal: float, shape: PromptShape, fixed: dict[str, Any]
) -> dict[str, Any]:
    """Choose the grid nearest to the budget, of edges in a ratio of at most :data:`LONGEST`."""
    before = square_rows(shape.image)
    grids = [
        (rows, columns)
        for rows in range(1, before + 1)
        for columns in range(rows, shape.image // before + 1)
        if columns <= LONGEST * rows
    ]
    if not grids:
        raise UserError(f"{name}: {shape.image} image tokens are no grid to make smaller")
    rows, columns = min(grids, key=lambda grid: (abs(grid[0] * grid[1] - goal), grid[1] - grid[0]))
    return {**fixed, "rows": rows, "columns": columns}


def _share(count: int, total: int) -> float:
    """Return the share of ``total`` that truncates back to ``count``."""
    share = count / total
    return share if int(share * total) == count else math.nextafter(share, 1.0)


def _solve_sparsevlm(
    goal: float, shape: PromptShape, num_layers: int, fixed: dict[str, Any]
) -> dict[str, Any]:
    """Scale the published 192-token list until the mean fits."""
    version = fixed.get("version", "1.5")
    if version not in PUBLISHED:
        raise UserError(f"sparsevlm version={version!r} adapts itself: it has no budget to set")
    shares = [number / PUBLISHED_IMAGE for number in PUBLISHED[version][192]]

    def budgets(scale: float) -> list[int]:
        return [min(max(1, round(scale * share * shape.image)), shape.image) for share in shares]

    def mean(scale: float) -> float:
        return processed(make(budgets(scale)), shape, num_layers)

    def make(counts: list[int]) -> Method:
        method = create("sparsevlm", **{**fixed, "budgets": "/".join(map(str, counts))})
        method.validate(num_layers)
        return method

    low, high = 0.0, 1 / min(shares)
    if goal < mean(low) - 0.5:
        raise UserError(
            f"sparsevlm processes {mean(low):.1f} image tokens per layer at least: a budget of "
            f"{goal:g} is out of reach"
        )
    scale = _bisect(mean, goal, low, high)
    counts = budgets(scale)
    # Whole tokens at an early layer are coarse; the last stage takes up the rest.
    options = [
        [*counts[:-1], last]
        for last in range(max(1, counts[-1] - shape.image), min(counts[-2], shape.image) + 1)
    ]
    best = min(options, key=lambda option: abs(processed(make(option), shape, num_layers) - goal))
    return {**fixed, "budgets": "/".join(map(str, best))}


def _bisect(function: Callable[[float], float], goal: float, low: float, high: float) -> float:
    """Return where a non-decreasing ``function`` reaches ``goal`` within [low, high]."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < goal else (low, middle)
    return high


def _solve_h2o(
    goal: float, shape: PromptShape, num_layers: int, fixed: dict[str, Any]
) -> dict[str, Any]:
    """Split the cache evenly between heavy and recent entries, as the official scripts do."""
    full = fixed.get("first_full_layers", 0)
    text = shape.total - shape.image
    entries = (num_layers * (text + goal) - full * shape.total) / (num_layers - full)
    if entries < 2:
        raise UserError(f"h2o with first_full_layers={full}: a budget of {goal:g} is out of reach")
    recent = round(entries) // 2
    heavy = round(entries) - recent
    shares = {"heavy": _share(heavy, shape.total), "recent": _share(recent, shape.total)}
    return {**fixed, **shares}


def _solve_composition(
    name: str, goal: float, shape: PromptShape, num_layers: int, fixed: dict[str, Any]
) -> dict[str, Any]:
    parts = cast(Composition, create(name, **fixed)).parts
    for part in parts:
        if part.single_cut is not None or part.sets_grid or part.name == "sparsevlm":
            prefix = f"{part.name}_"
            own = {
                key.removeprefix(prefix): value
                for key, value in fixed.items()
                if key.startswith(prefix)
            }
            solved = solve(part.name, goal, shape, num_layers, **own)
            return {**fixed, **{f"{prefix}{key}": value for key, value in solved.items()}}
    raise UserError(f"{name}: no part drops image tokens, so it has no budget to set")
