"""Budgets that make methods comparable: from one number to each method's parameters.

The budget is the mean number of image tokens that a layer *processes* in prefill: a layer whose
output is pruned counts at its full length, merged tokens count, and a method that starts later has
to prune harder.  For methods that evict cache entries processing is dense, and the budget is
the mean number of prompt entries that a layer's cache holds beyond the text tokens' number, so that
equal budgets mean equal KV bytes after prefill.

No method is known by name here: the shares that its class marks (:func:`~.base.share`; else the
parameters that change what it processes) are scaled together until its plan meets the budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dynllava.errors import UserError
from dynllava.plan import Count, Image, PromptShape, Segment, Shape, Share

from . import create, registry
from .base import Method
from .checks import numbers
from .composition import Composition
from .smaller import Smaller, sizing

Budget = str | float | Sequence[float]

#: How far from its budget a method may end, as a share of the image tokens; whole tokens at an
#: early layer are coarse (a token at every layer is always allowed).
TOLERANCE = 0.02
#: Largest ratio of edges of a grid that pictures are shrunk or pooled to.
LONGEST = 2.0
#: A prompt and a depth at which a parameter's influence shows.
_TRIAL, _LAYERS = PromptShape(8, 64, 8), 32


def takes_budget(name: str) -> bool:
    """Return whether a budget of image tokens sets anything of the method.

    Parameters
    ----------
    name : str
        A registered method, or a composition (see :func:`solve` for what it then needs).
    """
    return "+" in name or issubclass(registry()[name], Smaller) or bool(shares(registry()[name]))


def shares(method: type[Method]) -> list[str]:
    """Return the parameters that a budget sets."""
    marked = _marked(method, "share")
    if marked:
        return marked
    found = []
    for field in dataclasses.fields(method):
        halved = _halved(field.default)
        if halved is not None and _changes(method(), field.name, halved):
            found.append(field.name)
    return found


def budget_fields(method: type[Method]) -> set[str]:
    """Return the parameters that cannot stand beside a budget: it sets them, or what they mean."""
    grid = {"rows", "columns"} if issubclass(method, Smaller) else set()
    return {*shares(method), *_marked(method, "instead"), *grid}


def _marked(method: type[Method], kind: str) -> list[str]:
    return [
        field.name for field in dataclasses.fields(method) if field.metadata.get("budget") == kind
    ]


def _halved(value: Any) -> Any:
    """Return half of a share or of a list of shares, None for anything else."""
    if isinstance(value, float) and 0 < value <= 1:
        return value / 2
    if isinstance(value, tuple) and value and all(_halved(part) is not None for part in value):
        return tuple(part / 2 for part in value)
    return None


def _changes(method: Method, name: str, value: Any) -> bool:
    try:
        changed = dataclasses.replace(method, **{name: value}).schedule(_TRIAL, _LAYERS)
        return changed.prefill_rows != method.schedule(_TRIAL, _LAYERS).prefill_rows
    except UserError:
        return False


def processed(method: Method, shape: Shape, layers: int) -> float:
    """Return the mean image tokens per layer that ``method`` processes in prefill.

    Parameters
    ----------
    method : Method
    shape : Shape
        The prompt.
    layers : int
        Decoder layers.
    """
    rows = method.schedule(shape, layers).prefill_rows
    return sum(rows) / layers - (shape.total - shape.image)


def held(method: Method, shape: Shape, layers: int) -> float:
    """Return the mean cache entries per layer after prefill, less the text tokens' number."""
    entries = method.schedule(shape, layers).prefill_kv
    return sum(entries) / layers - (shape.total - shape.image)


def target(budget: Budget, shape: Shape, layers: int) -> float:
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
        value = processed(create("sparsevlm", budgets=listed), shape, layers)
    if not 0 < value <= shape.image:
        raise UserError(
            f"budget={value:g}: accepted is a number of image tokens up to {shape.image}"
        )
    return value


def solve(
    method_name: str, budget: Budget, shape: Shape, num_layers: int, **fixed: Any
) -> dict[str, Any]:
    """Return the parameters with which a method meets a budget.

    Parameters
    ----------
    method_name : str
        A registered method or a composition, whose image part then gets the budget.
    budget : float, str or sequence
        Mean image tokens processed per layer, or a list (see :func:`target`).
    shape : Shape
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
    base = create(method_name, **fixed)
    smaller = sizing(base)
    if smaller is not None:
        prefix = f"{smaller.name}_" if len(base.parts) > 1 else ""
        return {**fixed, **_solve_grid(base, prefix, goal, shape, fixed)}
    knobs = _Knobs.of(base, method_name, shape, num_layers)
    knobs.check_free(fixed)
    listed = numbers("budget", budget)
    if len(listed) > 1 and knobs.listed:
        solved = {knobs.prefix + knobs.fields[0]: "/".join(f"{number:g}" for number in listed)}
        return {**fixed, **solved}
    return {**fixed, **knobs.solve(goal)}


@dataclass
class _Knobs:
    """What is turned to meet a budget: shares of one part of a method, scaled together.

    Attributes
    ----------
    method : Method
        With all its parts.
    place : int
        Which part is set.
    fields : list of str
        Its parameters.
    listed : bool
        Whether the one parameter is a list, a number a cut.
    weights : list of float
        Proportion of each share, in (0, 1].
    """

    method: Method
    place: int
    prefix: str
    fields: list[str]
    listed: bool
    weights: list[float]
    shape: Shape
    layers: int

    @classmethod
    def of(cls, method: Method, name: str, shape: Shape, layers: int) -> _Knobs:
        """Return the knobs of a method; one that has none is refused."""
        several = len(method.parts) > 1
        for place, part in enumerate(method.parts):
            fields = shares(type(part))
            cuts = part.plan(layers).of(Segment.IMAGE)
            if not fields or (several and not cuts):
                continue
            values = [getattr(part, field) for field in fields]
            listed = len(fields) == 1 and len(cuts) > 1 and not isinstance(values[0], float)
            if listed:
                weights = [_share_of(cut.keep, part.name, shape) for cut in cuts]
            else:
                # A single share may take any value; several keep their proportions.
                weights = [float(value) for value in values] if len(values) > 1 else [1.0]
            prefix = f"{part.name}_" if several else ""
            return cls(method, place, prefix, fields, listed, weights, shape, layers)
        if several:
            raise UserError(f"{name}: no part drops image tokens, so it has no budget to set")
        known = ", ".join(each for each in registry() if takes_budget(each))
        raise UserError(f"{name} has no budget to set: accepted are {known}")

    @property
    def name(self) -> str:
        """The part's name."""
        return self.method.parts[self.place].name

    @property
    def evicts(self) -> bool:
        """Whether the budget counts cache entries."""
        return len(self.method.parts) == 1 and self.method.plan(self.layers).evicts

    @property
    def whole(self) -> int:
        """Tokens that a share is of."""
        return self.shape.total if self.evicts else self.shape.image

    def check_free(self, fixed: dict[str, Any]) -> None:
        """Raise :class:`UserError` if a parameter is given that a budget sets."""
        taken = [*self.fields, *_marked(type(self.method.parts[self.place]), "instead")]
        for key in taken:
            if fixed.get(self.prefix + key) is not None:
                raise UserError(
                    f"{self.name}: {key} is given, and a budget sets it too: give one of them"
                )

    def solve(self, goal: float) -> dict[str, Any]:
        """Return the parameters that meet a budget."""
        least = self._reached(self._counts(0.0))
        if goal < least - 0.5:
            raise UserError(f"{self._says(least)} at least: a budget of {goal:g} is out of reach")
        scale = _bisect(lambda at: self._reached(self._counts(at)), goal, 1 / min(self.weights))
        counts = self._refined(self._counts(scale), goal)
        reached = self._reached(counts)
        if abs(reached - goal) > max(1.0, TOLERANCE * self.shape.image):
            raise UserError(f"{self._says(reached)}: a budget of {goal:g} is out of reach")
        return {self.prefix + key: value for key, value in self._values(counts).items()}

    def _says(self, reached: float) -> str:
        unit = "cache entries" if self.evicts else "image tokens"
        verb = "holds" if self.evicts else "processes"
        return f"{self.name} {verb} {reached:.1f} {unit} per layer"

    def _counts(self, scale: float) -> list[int]:
        whole = self.whole
        return [min(max(1, round(scale * weight * whole)), whole) for weight in self.weights]

    def _values(self, counts: Sequence[int]) -> dict[str, Any]:
        if self.listed:
            return {self.fields[0]: "/".join(map(str, counts))}
        return {
            field: share_of(count, self.whole)
            for field, count in zip(self.fields, counts, strict=True)
        }

    def _reached(self, counts: Sequence[int]) -> float:
        parts = list(self.method.parts)
        parts[self.place] = dataclasses.replace(parts[self.place], **self._values(counts))
        method = Composition(*parts) if len(parts) > 1 else parts[0]
        return (held if self.evicts else processed)(method, self.shape, self.layers)

    def _refined(self, counts: list[int], goal: float) -> list[int]:
        """Let the last share take up what whole tokens at the others leave."""
        most = counts[-2] if self.listed else self.whole
        first = self._first(counts, goal, most)
        options = [[*counts[:-1], last] for last in (first - 1, first) if 1 <= last <= most]
        return min(options, key=lambda option: self._distance(option, goal))

    def _first(self, counts: list[int], goal: float, most: int) -> int:
        """Return the least last count that reaches the goal, else the most."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self._reached([*counts[:-1], middle]) < goal:
                low = middle + 1
            else:
                high = middle
        return low

    def _distance(self, counts: list[int], goal: float) -> tuple[float, int]:
        sign = 1 if self.listed else -1
        return abs(self._reached(counts) - goal), sign * counts[-1]


def _solve_grid(
    method: Method, prefix: str, goal: float, shape: Shape, fixed: dict[str, Any]
) -> dict[str, Any]:
    """Choose the grid nearest to the budget, of edges in a ratio of at most :data:`LONGEST`."""
    for key in ("rows", "columns"):
        if fixed.get(prefix + key) is not None:
            raise UserError(
                f"{method.name}: {key} is given, and a budget sets it too: give one of them"
            )
    picture = Image.of(shape.image)
    grids = [
        (rows, columns)
        for rows in range(1, picture.rows + 1)
        for columns in range(rows, picture.columns + 1)
        if columns <= LONGEST * rows
    ]
    if not grids:
        raise UserError(f"{method.name}: {shape.image} image tokens are no grid to make smaller")
    rows, columns = min(grids, key=lambda grid: (abs(grid[0] * grid[1] - goal), grid[1] - grid[0]))
    if abs(rows * columns - goal) > max(1.0, TOLERANCE * shape.image):
        raise UserError(
            f"{method.name} ends at {rows * columns} image tokens per layer: a budget of {goal:g} "
            "is out of reach"
        )
    return {prefix + "rows": rows, prefix + "columns": columns}


def _share_of(keep: Any, name: str, shape: Shape) -> float:
    if isinstance(keep, Share):
        return keep.rate
    if isinstance(keep, Count):
        return min(1.0, keep.number / shape.image)
    raise UserError(f"{name} adapts itself to the prompt: it has no budget to set")


def share_of(count: int, whole: int) -> float:
    """Return the share of ``whole`` that truncates back to ``count``."""
    share = count / whole
    return share if int(share * whole) == count else math.nextafter(share, 1.0)


def _bisect(function: Callable[[float], float], goal: float, high: float) -> float:
    """Return where a non-decreasing ``function`` reaches ``goal`` within [0, high]."""
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < goal else (low, middle)
    return high
