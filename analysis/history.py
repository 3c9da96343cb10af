"""Every metric over commits, one small panel a metric."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.analysis import style
from dynllava.analysis.files import write_bytes
from dynllava.analysis.measured_points import Stored, method_label
from dynllava.analysis.pareto_plot import figure_files

from dynllava.errors import UserError

COLUMNS, ROWS = 3, 5


@dataclass(frozen=True)
class Reading:
    """One value of one metric at one commit."""

    commit: str
    value: float
    error: float | None


def collect(stored: Iterable[Stored]) -> tuple[list[str], dict[str, dict[str, list[Reading]]]]:
    """Return the commits by first appearance, and metric -> method -> readings.

    Raises
    ------
    UserError
        If no successful record has a value.
    """
    ordered = sorted((s for s in stored if s.record.status == "ok"), key=lambda s: s.written)
    records = [item.record for item in ordered]
    commits: list[str] = []
    metrics: dict[str, dict[str, list[Reading]]] = {}
    for record in records:
        commit = (record.environment.commit or "unknown")[:8]
        commit += "+" if record.environment.dirty else ""
        if commit not in commits:
            commits.append(commit)
        where = f"{record.model.name}, {record.task.name if record.task else record.kind}"
        values: list[tuple[str, float, float | None]] = [
            *((name, item.value, item.stderr) for name, item in record.scores.items()),
            *((f"{name} ({item.unit})", item.value, None) for name, item in record.counted.items()),
            *(
                (f"{name} ({item.unit})", item.median, (item.iqr or 0) / 2)
                for name, item in record.measured.items()
            ),
        ]
        for name, value, error in values:
            series = metrics.setdefault(f"{where}\n{name}", {})
            series.setdefault(method_label(record), []).append(Reading(commit, value, error))
    if not metrics:
        raise UserError("history: no successful record with a value", 1)
    return commits, metrics


def draw(stored: Iterable[Stored], folder: str) -> list[Path]:
    """Write ``history-N.png`` and ``.svg`` pages to ``folder`` and return their paths."""
    commits, metrics = collect(stored)
    names = list(metrics)
    size = COLUMNS * ROWS
    paths = []
    for page in range(math.ceil(len(names) / size)):
        shown = {name: metrics[name] for name in names[page * size : (page + 1) * size]}
        for kind, data in _page(commits, shown).items():
            paths.append(write_bytes(Path(folder) / f"history-{page + 1}.{kind}", data))
    return paths


def _page(commits: list[str], metrics: dict[str, dict[str, list[Reading]]]) -> dict[str, bytes]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    methods = list(dict.fromkeys(name for series in metrics.values() for name in series))
    with matplotlib.rc_context({**style.RC, "axes.titlesize": 8.5}):
        rows = math.ceil(len(metrics) / COLUMNS)
        legend = 0.3 + 0.2 * math.ceil(len(methods) / 4)
        height = 2.2 * rows + 0.9 + legend
        figure = Figure(figsize=(11, height))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            rows, COLUMNS, left=0.06, right=0.985, wspace=0.28, hspace=0.75,
            top=1 - 0.85 / height, bottom=(legend + 0.45) / height,
        )  # fmt: skip
        handles: dict[str, Any] = {}
        for index, (name, series) in enumerate(metrics.items()):
            axes = figure.add_subplot(grid[index // COLUMNS, index % COLUMNS])
            axes.set_title(name, pad=4)
            for method, readings in series.items():
                # Budgets of one method share a colour: every second one is hollow.
                alike = [name for name in methods if name.split()[0] == method.split()[0]]
                hollow = alike.index(method) % 2 == 1
                handles.setdefault(method, _series(axes, commits, method, readings, hollow))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
            axes.set_xlim(-0.3, len(commits) - 0.7 if len(commits) > 1 else 0.3)
            step = math.ceil(len(commits) / 6)
            axes.set_xticks(range(0, len(commits), step), commits[::step])
            axes.tick_params(axis="x", labelsize=7)
        figure.text(0.012, 1 - 0.27 / height, "Every metric over commits", fontsize=12,
                    fontweight="bold", va="center")  # fmt: skip
        figure.legend(handles=list(handles.values()), labels=list(handles), loc="lower center",
                      ncols=4, frameon=False, handlelength=3.2)  # fmt: skip
        return figure_files(figure)


def _series(
    axes: Any, commits: list[str], method: str, readings: list[Reading], hollow: bool
) -> Any:
    look = style.look(method.split()[0])
    xs = [commits.index(item.commit) for item in readings]
    errors = [item.error or 0 for item in readings]
    face = "white" if hollow else look.colour
    return axes.errorbar(
        xs, [item.value for item in readings], yerr=errors if any(errors) else None,
        color=look.colour, marker=look.marker, mfc=face, ms=4.5, mew=1.2, lw=1.2,
        elinewidth=0.9, capsize=0,
        ls=(0, look.dashes) if look.dashes else "-",
    )  # fmt: skip
