"""Everything a report shows, gathered once, and the plain data its script reads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.published import tables as published
from dynllava.records.reading import Stored, read_stores

from .. import style
from ..elastic.tables import elastic_tables
from ..pareto.data import Mark, benchmark_names, panel
from ..pareto.kv_growth import Crossover, Growth, crossovers, growth
from ..pareto.plot import score_label
from ..pareto.report import collections
from ..points import names as benchmarks
from ..points.measured import measured_points
from ..points.realised import Share, measured_shares, published_shares
from ..points.stores import DEFAULT
from ..points.values import AXES, Point, cost_kind, display_unit, slower_than_dense
from ..tables import paper as tables
from ..tables.cells import TableData
from . import overlay
from .hardness import strata_table
from .serving import serving_tables
from .verdicts import verdict_tables

_STUDIES = {
    published.PAPER_KEY: "Dynamic-LLaVA paper",
    published.RESTORE_KEY: "RESTORE, three budgets",
    published.FASTV_KEY: "FastV README",
    "own": "own runs",
}


@dataclass(frozen=True)
class ReportData:
    """What a report is made of.

    Attributes
    ----------
    stored : list of Stored
        All readable records, failed ones included.
    own : list of Point
    pages : dict
        (source, model) to points, see :func:`pareto_report.collections`.
    tables, own_tables, verdicts, serving, elastic : list of TableData
    shares : list of Share
    growth, crossovers : list
    overlays : list of Overlay
    notes : list of str
        What could not be read.
    """

    stored: list[Stored]
    own: list[Point]
    pages: dict[tuple[str, str], list[Point]]
    tables: list[TableData]
    own_tables: list[TableData]
    verdicts: list[TableData]
    serving: list[TableData]
    elastic: list[TableData]
    shares: list[Share]
    growth: list[Growth]
    crossovers: list[Crossover]
    overlays: list[overlay.Overlay]
    notes: list[str]


def gather(folder: str | os.PathLike[str]) -> ReportData:
    """Read ``folder`` and the published numbers.

    The default folder need not exist; another one must (:class:`UserError`).
    """
    absent = Path(folder) == Path(DEFAULT) and not Path(folder).exists()
    stored, notes = ([], []) if absent else read_stores(folder)
    overlays, unread = overlay.read_all(Path(folder))
    for note in notes + unread:
        print(f"warning: {note}; left out of the report", file=sys.stderr)
    own = measured_points(stored)
    strata = strata_table(stored)
    curves = growth()
    return ReportData(
        stored,
        own,
        # Own runs first: they are what a reader of this report made.
        dict(sorted(collections(own).items(), key=lambda item: item[0][0] != "own")),
        [tables.build(number, own, with_ours=bool(own)) for number in published.TABLES],
        [*tables.ours(own), *([strata] if strata is not None else [])],
        verdict_tables(own),
        serving_tables(stored),
        elastic_tables(stored),
        measured_shares(stored) + published_shares(),
        curves,
        crossovers(curves),
        overlays,
        notes + unread,
    )


def page_data(data: ReportData) -> dict[str, Any]:
    """Return the interactive plot's data as plain lists and dicts."""
    pages = []
    looks: dict[str, Any] = {}
    for (source, model), points in data.pages.items():
        page = _page(source, model, points)
        if page is not None:
            pages.append(page)
        for point in points:
            if point.curve not in looks:
                look = style.look(point.curve)
                looks[point.curve] = {
                    "name": style.name(point.curve),
                    "index": len(looks),
                    "marker": look.marker,
                    "dashes": " ".join(f"{item:g}" for item in look.dashes),
                }
    return {"pages": pages, "looks": looks}


def _page(source: str, model: str, points: Sequence[Point]) -> dict[str, Any] | None:
    names = benchmark_names(points)
    rows = [_point(points, point) for point in points]
    axes = []
    for axis in AXES.values():
        costs = [point.costs[axis.name].value for point in points if axis.name in point.costs]
        if not costs:
            continue
        factor, unit = display_unit(axis.name, max(costs))
        axes.append(
            {
                "name": axis.name,
                "title": axis.title,
                "unit": unit,
                "kind": cost_kind(axis.name, points),
            }
        )
        for point, row in zip(points, rows, strict=True):
            if axis.name in point.costs:
                cost = point.costs[axis.name]
                row["costs"][axis.name] = [factor * cost.value, cost.note]
    shown = []
    for name in ["average", *names]:
        found = panel(points, name, axes[0]["name"]) if axes else None
        higher = True
        for point, row in zip(points, rows, strict=True):
            value = _shown_score(points, point, name)
            if value is not None:
                row["scores"][name] = value
                higher = name == "average" or point.scores[name].higher_is_better
        if any(name in row["scores"] for row in rows):
            title = label = benchmarks.title(name)
            if found is not None:
                label = score_label(found)
                if name == "average":
                    title = f"Average of {len(found.names)} (% of dense)"
            shown.append({"name": name, "title": title, "label": label, "higher": higher})
    if not shown or not axes:
        return None
    sources = list(dict.fromkeys(point.source for point in points))
    return {
        "title": f"{style.model_name(model)}: {_STUDIES[source]}",
        "source": "Sources: " + "; ".join(sources) + ".",
        "benchmarks": shown,
        "axes": axes,
        "points": rows,
    }


def _point(points: Sequence[Point], point: Point) -> dict[str, Any]:
    return {
        "curve": point.curve,
        "label": point.label,
        "budget": benchmarks.budget(point.label),
        "origin": point.origin,
        "dense": point.is_dense,
        "source": point.source,
        "slower": [AXES[name].phrase for name in slower_than_dense(points, point)],
        "scores": {},
        "costs": {},
    }


def _shown_score(points: Sequence[Point], point: Point, name: str) -> list[Any] | None:
    """Return [value, low, high, samples] as the tooltip shows them."""
    if name != "average":
        value = point.scores.get(name)
    else:
        axis = next(iter(point.costs), None)
        marks = panel(points, name, axis).marks if axis else ()
        value = next((mark.value for mark in marks if mark.point is point), None)
    if value is None:
        return None
    low, high = Mark(point, 0.0, value).interval() or (None, None)
    return [value.value, low, high, value.n]


def script_json(value: Any) -> str:
    """Return JSON that is safe inside a ``script`` element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
