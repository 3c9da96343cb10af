"""Which weights a method is compared on: dense ones, or those tuned together with the predictors.

A decoder that was tuned with the predictors is no dense model.  Only methods that need those
predictors run on it; the dense reference and every other method run on the dense weights, and
whoever wants to know what the tuning alone does names methods that run on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dynllava.costs.spec import ModelSpec
from dynllava.errors import UserError
from dynllava.methods import learned
from dynllava.records import RunRecord

from .runner import ModelRunner
from .sweep import Cell

DENSE, TUNED = "dense", "tuned"

DENSE_OF = {"embedded": "embedded-dense"}
"""Dense weights that are known by name."""


@dataclass(frozen=True)
class Part:
    """What runs on the same weights.

    Attributes
    ----------
    source : str
        As :func:`dynllava.models.loading.load_model` accepts it.
    role : str
        :data:`DENSE`, :data:`TUNED`, or ``""`` where one model is all there is.
    methods : tuple of str
    """

    source: str
    role: str
    methods: tuple[str, ...]


def parts(
    pretrained: str, methods: Sequence[str], dense: str | None = None, on_tuned: Sequence[str] = ()
) -> list[Part]:
    """Return what runs on which weights, dense ones first.

    Parameters
    ----------
    pretrained : str
        The model with trained predictors (or any model, without ``dense``).
    methods : sequence of str
    dense : str, optional
        The model that it was tuned from; known for the embedded one.  Without it everything runs on
        ``pretrained``.
    on_tuned : sequence of str
        Methods that run on the tuned weights besides.

    Raises
    ------
    UserError
        If ``on_tuned`` is given without dense weights.
    """
    dense = dense or DENSE_OF.get(pretrained)
    if dense is None:
        if on_tuned:
            raise UserError("--on-tuned compares two kinds of weights: give --dense MODEL too")
        return [Part(pretrained, "", tuple(methods))]
    tuned = [name for name in methods if learned(name)]
    found = [
        Part(dense, DENSE, tuple(name for name in methods if not learned(name))),
        Part(pretrained, TUNED, tuple(dict.fromkeys([*tuned, *on_tuned]))),
    ]
    return [part for part in found if part.methods]


def run_parts(
    chosen: Sequence[Part],
    load: Callable[[Part], ModelRunner],
    grid: Callable[[Part, ModelSpec], list[Cell]],
    sweep: Callable[[ModelRunner, list[Cell]], list[RunRecord]],
) -> list[RunRecord]:
    """Evaluate each part on its weights, one model in memory at a time.

    Every part's budgets are solved before the first run.

    Parameters
    ----------
    chosen : sequence of Part
    load : callable
        Returns the part's model.
    grid : callable
        Returns the part's cells for the model's sizes.
    sweep : callable
        Evaluates cells on a model.

    Raises
    ------
    UserError
        If the parts' models differ in size.
    """
    runner = load(chosen[0])
    spec = runner.spec
    grids = [grid(part, spec) for part in chosen]
    records = list(sweep(runner, grids[0]))
    for part, cells in zip(chosen[1:], grids[1:], strict=True):
        del runner
        runner = load(part)
        if _sizes(runner.spec) != _sizes(spec):
            raise UserError(f"{part.source} and {chosen[0].source} differ in size: no comparison")
        records += sweep(runner, cells)
    return records


def _sizes(spec: ModelSpec) -> tuple[int, ...]:
    """Return what a budget and a cost depend on, the predictors' sizes apart."""
    dims = spec.dims
    return dims.layers, dims.hidden, dims.kv_heads, dims.intermediate, spec.image_tokens


def label(part: Part, cell: Cell) -> Cell:
    """Return the cell, labelled where its method runs on the tuned weights without need."""
    if part.role != TUNED or learned(cell.method):
        return cell
    return replace(cell, label=f"{cell}, {TUNED} weights")
