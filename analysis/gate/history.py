"""Every metric over commits: a page a family of metrics, a small panel a metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.output.files import write_bytes
from dynllava.records import RunRecord
from dynllava.records.reading import Stored

from .. import style
from ..pareto.plot import figure_files
from . import history_labels as labels

COLUMNS = 3


@dataclass(frozen=True)
class Reading:
    """One value of one metric at one commit."""

    commit: str
    value: float
    error: float | None


@dataclass
class Panel:
    """One metric over commits.

    Attributes
    ----------
    title : str
        Model, task or setting, and metric, for people.
    unit : str
        Of the readings as stored.
    series : dict
        Method -> commit -> readings, several where tasks are averaged.
    """

    title: str
    unit: str
    series: dict[str, dict[str, list[Reading]]]

    def add(self, method: str, reading: Reading) -> None:
        """Add a reading."""
        self.series.setdefault(method, {}).setdefault(reading.commit, []).append(reading)


def collect(stored: Iterable[Stored]) -> tuple[list[str], dict[str, list[Panel]]]:
    """Return the commits by first appearance, and the panels of each family with values.

    Scores have a panel a task.  Counted and measured costs of evaluations are means over tasks,
    those of speed records have a panel a setting.

    Raises
    ------
    UserError
        If no successful record has a value.
    """
    records = sorted((s.record for s in stored if s.record.status == "ok"), key=lambda r: r.created)
    commits: list[str] = []
    panels: dict[tuple[str, str, str], Panel] = {}
    # A method's record of a commit, task and setting counts once: the newest.
    newest: dict[tuple[str, ...], RunRecord] = {}
    for record in records:
        commit = _commit(record)
        if commit not in commits:
            commits.append(commit)
        task = record.task.name if record.task else record.kind
        newest[record.kind, record.model.name, task, record.method.shown, commit] = record
    for record in newest.values():
        commit, method = _commit(record), record.method.shown
        for page, where, name, unit, value, error in _values(record):
            key = (page, where, name)
            title = f"{labels.words(name)}\n{where}"
            panel = panels.setdefault(key, Panel(title, unit, {}))
            panel.add(method, Reading(commit, value, error))
    if not panels:
        raise UserError("history: no successful record with a value", 1)
    found: dict[str, list[Panel]] = {name: [] for name in labels.FAMILIES}
    for (page, _, _), panel in panels.items():
        found[page].append(panel)
    return commits, {name: items for name, items in found.items() if items}


def _commit(record: RunRecord) -> str:
    name = (record.environment.commit or "unknown")[:8]
    return name + ("+" if record.environment.dirty else "")


def _values(
    record: RunRecord,
) -> Iterator[tuple[str, str, str, str, float, float | None]]:
    """Yield (page, where, metric, unit, value, error) of one record."""
    task, model = record.task, record.model.name
    title = labels.setting(task.name) if task else record.kind
    for name, score in record.scores.items():
        page = "scores"
        if task is not None and name == task.metric:
            page = "accuracy" if task.higher_is_better else "perplexity"
        yield page, f"{model}\n{title}", name, "", score.value, score.stderr
    where = f"{model}\n{'mean over tasks' if record.kind == 'evaluation' else title}"
    for name, item in record.counted.items():
        if not labels.derived(name):
            yield labels.family(item.unit), where, name, item.unit, item.value, None
    for name, timed in record.measured.items():
        if not labels.derived(name):
            error = (timed.iqr or 0) / 2
            yield labels.family(timed.unit), where, name, timed.unit, timed.median, error


def draw(stored: Iterable[Stored], folder: str) -> list[Path]:
    """Write ``history-FAMILY.png`` and ``.svg`` to ``folder``, one page a family."""
    commits, families = collect(stored)
    paths = []
    for name, panels in families.items():
        for kind, data in _page(commits, labels.FAMILIES[name], panels).items():
            paths.append(write_bytes(Path(folder) / f"history-{name}.{kind}", data))
    return paths


def _page(commits: list[str], heading: str, panels: list[Panel]) -> dict[str, bytes]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    methods = list(dict.fromkeys(name for panel in panels for name in panel.series))
    seen = {name for panel in panels for found in panel.series.values() for name in found}
    commits = [name for name in commits if name in seen]
    with matplotlib.rc_context({**style.RC, "axes.titlesize": 8.5}):
        rows = math.ceil(len(panels) / COLUMNS)
        legend = 0.3 + 0.2 * math.ceil(len(methods) / 4)
        height = 2.4 * rows + 1.1 + legend
        figure = Figure(figsize=(11, height))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            rows, COLUMNS, left=0.06, right=0.985, wspace=0.28, hspace=0.8,
            top=1 - 1.05 / height, bottom=(legend + 0.45) / height,
        )  # fmt: skip
        handles: dict[str, Any] = {}
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(grid[index // COLUMNS, index % COLUMNS])
            factor, unit = labels.scaled(_largest(panel), panel.unit)
            metric, _, where = panel.title.partition("\n")
            axes.set_title(f"{metric} ({unit})\n{where}" if unit else panel.title, pad=4)
            for method, readings in panel.series.items():
                # Budgets of one method share a colour: every second one is hollow.
                alike = [name for name in methods if _first_word(name) == _first_word(method)]
                hollow = alike.index(method) % 2 == 1
                line = _series(axes, commits, method, _averaged(readings, factor), hollow)
                handles.setdefault(method, line)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
            axes.set_xlim(-0.3, len(commits) - 0.7 if len(commits) > 1 else 0.3)
            step = math.ceil(len(commits) / 4)
            axes.set_xticks(range(0, len(commits), step), commits[::step])
            axes.tick_params(axis="x", labelsize=7)
        figure.text(0.012, 1 - 0.27 / height, f"{heading} over commits", fontsize=12,
                    fontweight="bold", va="center")  # fmt: skip
        figure.legend(handles=list(handles.values()), labels=list(handles), loc="lower center",
                      ncols=4, frameon=False, handlelength=3.2)  # fmt: skip
        return figure_files(figure)


def _largest(panel: Panel) -> float:
    items = [item for found in panel.series.values() for many in found.values() for item in many]
    return max(abs(item.value) for item in items)


def _averaged(readings: dict[str, list[Reading]], factor: float) -> list[Reading]:
    """Return one reading a commit, in the unit shown: the mean over tasks where several are."""
    found = []
    for commit, items in readings.items():
        value = factor * sum(item.value for item in items) / len(items)
        error = factor * items[0].error if len(items) == 1 and items[0].error else None
        found.append(Reading(commit, value, error))
    return found


def _first_word(label: str) -> str:
    """Return the method's name at the front of a label (empty where there is none)."""
    return label.split()[0] if label.split() else ""


def _series(
    axes: Any, commits: list[str], method: str, readings: list[Reading], hollow: bool
) -> Any:
    look = style.look(_first_word(method))
    xs = [commits.index(item.commit) for item in readings]
    errors = [item.error or 0 for item in readings]
    face = "white" if hollow else look.colour
    return axes.errorbar(
        xs, [item.value for item in readings], yerr=errors if any(errors) else None,
        color=look.colour, marker=look.marker, mfc=face, ms=4.5, mew=1.2, lw=1.2,
        elinewidth=0.9, capsize=0,
        ls=(0, look.dashes) if look.dashes else "-",
    )  # fmt: skip
