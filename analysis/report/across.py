"""One parameter across values: pairs of own runs that differ in it alone, each with a verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from dynllava.errors import UserError
from dynllava.methods.parameters import render_value
from dynllava.methods.titles import recorded
from dynllava.records.reading import Stored, latest

from ..points.measured import configuration, measured_points
from ..points.values import Point
from ..tables.cells import Cell, TableData
from .against_dense import Against, compared
from .verdicts import SHORT, p_text

Pair = tuple[Point, Point, str, str]
"""A point, the one it is compared with, and the two values."""


def across(stored: Iterable[Stored], parameter: str, margin: float = 0.01) -> list[TableData]:
    """Return a table of pairs, and one of those that are evidence about nothing, if there are any.

    Parameters
    ----------
    stored : iterable of Stored
    parameter : str
        Its default value is what the others are compared with.
    margin : float
        Tolerated drop in the unit of a sample's score (0.01 = a point).

    Raises
    ------
    UserError
        If no two runs differ in the parameter alone.
    """
    found = _pairs(list(stored), parameter)
    if not found:
        raise UserError(
            f"parameter {parameter!r}: no two runs with samples differ in it alone; accepted are "
            "stores with at least two values of it",
            1,
        )
    sound = [pair for pair in found if not pair[0].caveat]
    tables = [_table(sound, parameter, margin)] if sound else []
    for caveat in dict.fromkeys(pair[0].caveat for pair in found if pair[0].caveat):
        apart = [pair for pair in found if pair[0].caveat == caveat]
        tables.append(_table(apart, parameter, margin, caveat))
    return tables


def _pairs(stored: list[Stored], parameter: str) -> list[Pair]:
    groups: dict[str, dict[str, list[Stored]]] = {}
    for item in latest(stored):
        record = item.record
        if record.kind != "evaluation" or parameter not in record.method.parameters:
            continue
        others = {k: v for k, v in record.method.parameters.items() if k != parameter}
        plain = replace(record, method=replace(record.method, parameters=others))
        key = json.dumps(configuration(replace(plain, method=plain.method.unseeded())))
        value = render_value(record.method.parameters[parameter])
        groups.setdefault(key, {}).setdefault(value, []).append(item)
    pairs: list[Pair] = []
    for values in groups.values():
        record = next(iter(values.values()))[0].record
        default = render_value(_default(record.method.name, parameter))
        if default not in values:
            continue
        (base,) = measured_points(values.pop(default))
        for value, items in values.items():
            (point,) = measured_points(items)
            pairs.append((replace(point, label=base.label), base, value, default))
    return pairs


def _default(name: str, parameter: str) -> Any:
    method = recorded(name, {})
    return None if method is None else method.parameters().get(parameter)


def _table(pairs: Sequence[Pair], parameter: str, margin: float, caveat: str = "") -> TableData:
    rows = compared([(point, base) for point, base, _, _ in pairs], margin)
    default = pairs[0][3]
    verdicts = () if caveat else ("p worse", "p not worse", "verdict")
    headers = ("setting", f"{parameter}", "points [95 %]", "samples", *verdicts)
    body = [
        (Cell(row.label), Cell(value), *_cells(row, bool(caveat)))
        for row, (_, _, value, _) in zip(rows, pairs, strict=True)
        if row is not None
    ]
    notes = [
        f"Paired with the run of {parameter}={default} and otherwise equal parameters on the same "
        "samples, all tasks with scores from 0 to 1 pooled, by image. A point is a hundredth of a "
        "full score.",
    ]
    if not caveat:
        notes.append(
            f"p worse: of a drop above the margin ({100 * margin:g} in points); p not worse: of "
            f"at most that. Both corrected by Holm over {len(body)} pairs; level 0.05."
        )
    title = f"{parameter}, other values against {default}" + (f" ({caveat})" if caveat else "")
    return TableData("ours", title, headers, tuple(body), (), tuple(notes))


def _cells(row: Against, apart: bool) -> tuple[Cell, ...]:
    done = row.comparison
    interval = "no interval"
    if done.interval is not None:
        interval = f"[{100 * done.interval[0]:+.1f}, {100 * done.interval[1]:+.1f}]"
    found = (Cell(f"{100 * done.difference:+.1f} {interval}"), Cell(f"{done.samples:,}"))
    if apart:
        return found
    return (
        *found,
        Cell(p_text(row.p_worse)),
        Cell(p_text(row.p_not_worse)),
        Cell(SHORT[row.verdict]),
    )
