"""Files of ``dynllava pareto``: figures, their data, and a summary."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from dynllava.errors import UserError
from dynllava.output.files import write_bytes, write_text
from dynllava.output.tables import markdown_lines

from .. import style
from ..points import names as benchmarks
from ..points.published import MODELS, SOURCES, published_points
from ..points.values import AXES, Point
from . import data as pareto_data
from . import plot as pareto_plot


def collections(
    own: Sequence[Point], sources: Sequence[str] = SOURCES, models: Sequence[str] = ()
) -> dict[tuple[str, str], list[Point]]:
    """Return the points of each page: (source, model) to published and own points.

    Studies are never mixed: they differ in protocol.  Own runs join every study of their model;
    a model without published numbers gets a page of its own (source ``"own"``).  Runs that are no
    evidence (:attr:`Point.caveat`) are on none.
    """
    own = [item for item in own if not item.caveat]
    found: dict[tuple[str, str], list[Point]] = {}
    for source in sources:
        if source not in SOURCES:
            raise UserError(f"source {source!r}: accepted are {', '.join(SOURCES)}")
        for model in MODELS:
            points = published_points(source, model)
            if points:
                joined = [in_paper_units(item) for item in own if _same(item.model, model)]
                found[source, model] = points + joined
    for name in dict.fromkeys(item.model for item in own):
        if not any(_same(name, model) for model in MODELS):
            found["own", name] = [item for item in own if item.model == name]
    if models:
        unknown = [name for name in models if not any(name == key[1] for key in found)]
        if unknown:
            known = ", ".join(sorted({key[1] for key in found}))
            raise UserError(f"model {unknown[0]!r}: accepted are {known}")
        found = {key: value for key, value in found.items() if key[1] in models}
    return found


def in_paper_units(point: Point) -> Point:
    """Return an own run with its compute under Eq. 13, or without compute where that is missing.

    Counted totals (all tokens, vision tower, overhead) and Eq. 13 do not share an axis.
    """
    kept = {name: cost for name, cost in point.costs.items() if name not in _COMPUTE}
    for name in _COMPUTE:
        eq13 = name.replace("flops", "eq13")
        if eq13 in point.costs:
            kept[name] = point.costs[eq13]
    return dataclasses.replace(point, costs=kept)


_COMPUTE = ("prefill_flops", "decode_flops")


def _same(name: str, model: str) -> bool:
    return name.lower().removesuffix("-hf") in (model, f"dynamic-{model}")


def write_pages(
    pages: dict[tuple[str, str], list[Point]],
    folder: str | os.PathLike[str],
    costs: Sequence[str],
    average: str = "common",
) -> list[Path]:
    """Write figures, ``pareto.csv`` and ``summary.md`` to ``folder``; return the paths.

    Parameters
    ----------
    pages : dict
        See :func:`collections`.
    folder : path
    costs : sequence of str
        Axes.
    average : str
        ``"common"``: over the benchmarks that most methods report; ``"all"``: over all of the
        page, which few published methods report.

    Raises
    ------
    UserError
        If no page has a point with a score and one of the costs.
    """
    target = Path(folder)
    panels: list[pareto_data.Panel] = []
    files: dict[str, bytes] = {}
    sections = ["# Pareto summary", "", _explanation()]
    for (source, model), points in pages.items():
        for cost in costs:
            name = f"{source}-{model}-{cost}"
            # Paired tests do not depend on the cost: the first section of a page holds them.
            first = cost == costs[0]
            made, drawn, text = _page(points, source, model, cost, average, first)
            panels += made
            files |= {f"{name}-{key}": data for key, data in drawn.items()}
            sections += text
    if not files:
        raise UserError("nothing to plot: no point has both a score and one of the costs", 1)
    paths = [write_bytes(target / name, data) for name, data in files.items()]
    paths.append(write_text(target / "pareto.csv", pareto_data.csv_text(panels)))
    paths.append(write_text(target / "summary.md", "\n".join(sections) + "\n"))
    return paths


def _page(
    points: list[Point], source: str, model: str, cost: str, average: str, with_tests: bool
) -> tuple[list[pareto_data.Panel], dict[str, bytes], list[str]]:
    names = pareto_data.benchmark_names(points)
    over = names if average == "all" else None
    mean = pareto_data.panel(points, "average", cost, over)
    panels = [pareto_data.panel(points, name, cost) for name in names]
    shown = [panel for panel in (mean, *panels) if panel.curves()]
    if not shown:
        return [], {}, []
    title = f"Accuracy against {AXES[cost].phrase}, {style.model_name(model)}"
    origin = _sources(points)
    files: dict[str, bytes] = {}
    if mean in shown:
        over_text = ", ".join(benchmarks.title(name) for name in mean.names)
        drawn = pareto_plot.draw_one(mean, title, f"{origin}\nAverage of {over_text}")
        files |= {f"average.{kind}": data for kind, data in drawn.items()}
    if len(panels) > 1 or mean not in shown:
        drawn = pareto_plot.draw_many(panels, title, origin)
        files |= {f"benchmarks.{kind}": data for kind, data in drawn.items()}
    text = [f"## {source}, {model}, {AXES[cost].phrase}", ""]
    text += _summary_table(mean if mean in shown else shown[0])
    text += _groups(points, shown) if with_tests else []
    if mean.names and mean.missing:
        text += ["", "Not in the average: " + "; ".join(mean.missing) + "."]
    return shown, files, [*text, ""]


def _sources(points: Sequence[Point]) -> str:
    published = next((item.source for item in points if item.origin == "published"), None)
    own = any(item.origin == "measured" for item in points)
    parts = [f"Published (hollow): {published}"] if published else []
    return ". ".join(parts + (["Own runs (filled)"] if own else []))


def _summary_table(panel: pareto_data.Panel) -> list[str]:
    columns = ("method", "origin", "budgets", "hypervolume", "mean score over costs", "note")
    rows = []
    for row in pareto_data.summarise(panel):
        volume = "-" if row.hypervolume is None else f"{row.hypervolume:.4f}"
        name = style.name(row.curve).replace("|", "\\|")
        area = "-" if row.area is None else f"{row.area:.4f}"
        rows.append((name, row.origin, str(row.budgets), volume, area, row.note))
    lines = [f"{benchmarks.title(panel.benchmark)}:", "", *markdown_lines(columns, rows)]
    shares = [
        f"{mark.point.label} {mark.front_share:.2f}"
        for mark in sorted(panel.marks, key=lambda mark: -(mark.front_share or 0))
        if mark.front_share
    ]
    if shares:
        lines += [
            "",
            "On the front with probability (bootstrap of the samples' clusters): "
            f"{', '.join(shares)}.",
        ]
    return lines


def _groups(points: list[Point], shown: Sequence[pareto_data.Panel]) -> list[str]:
    lines = []
    for panel in shown:
        found, reason = pareto_data.groups(points, panel.benchmark)
        if found is None:
            if panel.benchmark == "average":
                lines += ["", f"Paired tests: not possible, {reason}."]
            continue
        letters = ", ".join(f"{label} ({letter})" for label, letter in found.letters.items())
        lines += [
            "",
            f"{benchmarks.title(panel.benchmark)}, paired tests on {found.samples} samples "
            "by cluster (Holm, alpha 0.05; methods that share a letter are not distinguishable): "
            f"{letters}.",
        ]
    return lines


def _explanation() -> str:
    cost, score = pareto_data.REFERENCE
    return (
        "Costs and scores are relative to the dense model. Hypervolume: area dominated within "
        f"cost {cost:g} and score {score:g} of dense. Mean score over costs: area under the front "
        "from the highest of the methods' lowest costs up to dense, divided by its width.\n"
    )
