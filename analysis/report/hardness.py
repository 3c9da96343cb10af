"""Where a method gains over random dropping: on easy or on hard items, cross-fitted.

An item's stratum is the mean score of the other seeds of ``random`` at the same budget; the
difference is taken against the seed left out (:mod:`dynllava.uncertainty.strata`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynllava.methods.presets import CONTROL
from dynllava.records.reading import Stored, latest
from dynllava.uncertainty.strata import Stratum, by_runs

from ..points.evidence import caveat
from ..tables.cells import Cell, TableData
from .beside_accuracy import Run, key, reader, takes_part, task_of

NOTE = (
    "Gain over random dropping at the same budget, in points of the score, [95 % interval] "
    "(items). An item is hard if the other seeds of random score under half on average; it is "
    "compared with the seed left out, so that a method equal to random shows no gain. Choosing "
    "items that the compared run itself fails would show one for any method."
)


def strata_table(stored: Sequence[Stored]) -> TableData | None:
    """Return one row per method and budget; None without two seeds of random at any budget."""
    read = reader()
    items = [
        item
        for item in latest(stored)
        if takes_part(item.record)
        and item.record.method.budget is not None
        and not caveat(item.record)
    ]
    groups: dict[str, dict[tuple[Any, ...], list[Stored]]] = {}
    for item in items:
        groups.setdefault(key(item.record), {}).setdefault(task_of(item.record), []).append(item)
    controls = {
        _place(tasks): tasks
        for tasks in groups.values()
        if _record(tasks).method.name == CONTROL and _record(tasks).model.weights != "tuned"
    }
    rows = []
    for tasks in groups.values():
        record = _record(tasks)
        control = controls.get(_place(tasks))
        if record.method.name == CONTROL or control is None:
            continue
        found = _compare(tasks, control, read)
        if found:
            cells = [Cell(record.method.shown), Cell(record.model.weights or "")]
            rows.append((*cells, *(Cell(_text(stratum)) for stratum in found)))
    if not rows:
        return None
    headers = ("method", "weights", "hard items", "easy items")
    title = "Hardness strata against random dropping"
    return TableData("ours", title, headers, tuple(rows), (), (NOTE,))


def _record(tasks: dict[tuple[Any, ...], list[Stored]]) -> Any:
    return next(iter(tasks.values()))[0].record


def _place(tasks: dict[tuple[Any, ...], list[Stored]]) -> tuple[str, float | None]:
    record = _record(tasks)
    return record.model.name, record.method.budget


def _compare(
    tasks: dict[tuple[Any, ...], list[Stored]],
    control: dict[tuple[Any, ...], list[Stored]],
    read: Any,
) -> list[Stratum]:
    """Return the strata over the tasks that both ran, every sample with its task's clusters."""
    method: list[float] = []
    columns: list[list[float]] = []
    clusters: list[Any] = []
    seeds = min((len(control[task]) for task in tasks if task in control), default=0)
    if seeds < 2:
        return []
    for task, items in tasks.items():
        if task not in control:
            continue
        run: Run = read(items[0])
        draws = [read(item) for item in control[task][:seeds]]
        scale = items[0].record.task.scale if items[0].record.task else None
        for name, score in run.scores.items():
            if all(name in draw.scores for draw in draws):
                method.append(score / (scale or 1.0))
                columns.append([draw.scores[name] / (scale or 1.0) for draw in draws])
                clusters.append((task[1], run.clusters[name]))
    if not method:
        return []
    return by_runs([list(column) for column in zip(*columns, strict=True)], method, clusters)


def _text(stratum: Stratum) -> str:
    if stratum.gain is None:
        return "- (0)"
    items = f"({stratum.items:.0f})"
    if stratum.interval is None:
        return f"{100 * stratum.gain:+.1f} {items}"
    low, high = stratum.interval
    return f"{100 * stratum.gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {items}"
