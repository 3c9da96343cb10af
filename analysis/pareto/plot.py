"""Pareto figures with matplotlib's object interface: no global state is touched."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from dynllava.plan.names import FULL

from .. import style
from ..points import names as benchmarks
from ..points.values import AXES, cost_kind, display_unit
from .data import Mark, Panel
from .labels import placed

COLUMNS = 4


def figure_files(figure: Any) -> dict[str, bytes]:
    """Return a figure as ``{"png": ..., "svg": ...}``."""
    import matplotlib

    files = {}
    with matplotlib.rc_context(style.RC):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files


def draw_one(shown: Panel, title: str, subtitle: str = "") -> dict[str, bytes]:
    """Draw one panel as a figure of its own; return the files' contents."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(7.6, 5.4))
        FigureCanvasAgg(figure)
        rows = _legend_rows([shown], 3)
        bottom = (0.62 + 0.2 * rows) / 5.4
        axes = figure.add_axes((0.095, bottom, 0.88, 0.865 - bottom))
        _draw(axes, shown, [mark.cost for mark in shown.marks], big=True)
        axes.set_xlabel(_axis_label(shown.axis, shown.marks, axes))
        axes.set_ylabel(score_label(shown))
        figure.text(0.02, 0.955, title, fontsize=12, fontweight="bold", va="center")
        figure.text(0.02, 0.908, subtitle, fontsize=8.5, color=style.MUTED, va="center")
        _legend(figure, [shown], 3)
        return figure_files(figure)


def draw_many(panels: Sequence[Panel], title: str, subtitle: str = "") -> dict[str, bytes]:
    """Draw small multiples, four a row, with one legend.

    A panel without a point is left out and named; there must be one with.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    absent = [benchmarks.title(shown.benchmark) for shown in panels if not shown.marks]
    panels = [shown for shown in panels if shown.marks]
    if absent:
        subtitle += f". Without a point: {', '.join(absent)}"
    with matplotlib.rc_context(style.RC):
        columns = min(COLUMNS, len(panels))
        rows = math.ceil(len(panels) / columns)
        legend = 0.25 + 0.2 * _legend_rows(panels, COLUMNS)
        width, height = max(2.95 * columns, 7.6), 2.3 * rows + 1.25 + legend
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            rows, columns, left=0.05, right=0.99, wspace=0.27, hspace=0.42,
            top=1 - 0.95 / height, bottom=(legend + 0.45) / height,
        )  # fmt: skip
        # One cost scale on the whole page, so that panels compare at a glance.
        costs = [mark.cost for shown in panels for mark in shown.marks]
        for index, shown in enumerate(panels):
            axes = figure.add_subplot(grid[index // columns, index % columns])
            _draw(axes, shown, costs, big=False)
            axes.set_title(benchmarks.title(shown.benchmark), pad=5)
            axes.set_ylabel(_unit(shown), fontsize=7, color=style.MUTED, labelpad=1)
        figure.text(
            0.5,
            (legend + 0.12) / height,
            _axis_label(panels[0].axis, [mark for shown in panels for mark in shown.marks], axes),
            ha="center",
            va="center",
        )
        figure.text(0.012, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        figure.text(0.012, 1 - 0.54 / height, subtitle, fontsize=9, color=style.MUTED, va="center")
        _legend(figure, panels, COLUMNS)
        return figure_files(figure)


def _axis_label(axis: str, marks: Sequence[Mark], axes: Any) -> str:
    scale = ", log scale" if axes.get_xscale() == "log" else ""
    _, unit = display_unit(axis, max((mark.cost for mark in marks), default=1.0))
    kind = cost_kind(axis, [mark.point for mark in marks])
    return f"{AXES[axis].title} ({unit}, {kind}{scale})"


def score_label(shown: Panel) -> str:
    """Return what the axis of scores says: benchmark, unit, and where less is better."""
    if shown.benchmark == "average":
        return f"Average over {len(shown.names)} benchmarks (% of dense)"
    return f"{benchmarks.title(shown.benchmark)} ({_unit(shown)})"


def _unit(shown: Panel) -> str:
    perfect = {mark.value.perfect for mark in shown.marks}
    published = any(mark.point.origin == "published" for mark in shown.marks)
    unit = ", 0-100" if perfect == {100} or (published and shown.benchmark != "mme") else ""
    less = any(not mark.value.higher_is_better for mark in shown.marks)
    return f"score{unit}{', lower is better' if less else ''}"


def _draw(axes: Any, shown: Panel, costs: Sequence[float], *, big: bool) -> None:
    size = 6.5 if big else 4.6
    for mark in shown.dense[:1]:
        axes.axhline(mark.value.value, color=style.INK, lw=0.9, dashes=(2, 2), zorder=1)
    _draw_front(axes, shown)
    for curve in shown.curves().values():
        marks = [mark for mark in curve if not _is_outlier(shown, mark)]
        if marks:
            _draw_curve(axes, marks, size)
    for mark in shown.dense:
        _draw_marks(axes, [mark], size)
    _limits(axes, shown, costs)
    if big:
        _draw_budgets(axes, shown, size)


def _draw_budgets(axes: Any, shown: Panel, size: float) -> None:
    """Write budgets beside their points; the scales must be final."""
    marks = [mark for mark in shown.marks if not _is_outlier(shown, mark)]
    pixels = axes.transData.transform([(mark.cost, mark.value.value) for mark in marks])
    scale = 72 / axes.figure.dpi
    texts = [benchmarks.budget(mark.point.label) for mark in marks]
    points = [(x * scale, y * scale) for x, y in pixels]
    for place in placed(texts, points, size, size / 2 + 1):
        mark = marks[place.index]
        axes.annotate(
            texts[place.index], (mark.cost, mark.value.value), (place.right, place.up),
            textcoords="offset points", ha=place.align, fontsize=size, color=style.MUTED, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.7},
        )  # fmt: skip


def _draw_front(axes: Any, shown: Panel) -> None:
    marks = sorted((mark for mark in shown.marks if mark.on_front), key=lambda mark: mark.cost)
    if len(marks) < 2:
        return
    axes.step(
        [mark.cost for mark in marks], [mark.value.value for mark in marks], where="post",
        color=style.FRONT, lw=4, alpha=0.75, zorder=1.5, solid_joinstyle="round",
        solid_capstyle="round",
    )  # fmt: skip


def _draw_curve(axes: Any, marks: list[Mark], size: float) -> None:
    look = style.look(marks[0].point.curve)
    line = {"dashes": look.dashes} if look.dashes else {}
    # Variants at one and the same cost are no budgets of one curve.
    if len(marks) > 1 and marks[-1].cost > 1.01 * marks[0].cost:
        axes.plot(
            [mark.cost for mark in marks], [mark.value.value for mark in marks],
            color=look.colour, lw=1.3, zorder=2, **line,
        )  # fmt: skip
    _draw_marks(axes, marks, size)


def _draw_marks(axes: Any, marks: list[Mark], size: float) -> None:
    for mark in marks:
        look = style.look(mark.point.curve)
        interval = mark.interval()
        if interval:
            axes.plot([mark.cost] * 2, interval, color=look.colour, lw=0.9, zorder=2.5, alpha=0.7)
        filled = mark.point.origin == "measured"
        axes.plot(
            mark.cost, mark.value.value, look.marker, ms=size, color=look.colour, zorder=3,
            mfc=look.colour if filled else "white", mew=1.4, clip_on=False,
        )  # fmt: skip
        if mark.slower:
            # A word reads the same in grey and without a legend.
            axes.annotate(
                "slower", (mark.cost, mark.value.value), (0, size), textcoords="offset points",
                ha="center", va="bottom", fontsize=size + 1, color="#b3261e", fontweight="bold",
            )  # fmt: skip


def _limits(axes: Any, shown: Panel, costs: Sequence[float]) -> None:
    """Set both scales: logarithmic cost where it spans much, scores without far outliers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = min(costs), max(costs)
    factor, _ = display_unit(shown.axis, high)
    # The data stay in the axis' unit; only the tick labels are scaled.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:.4g}"))
    if low > 0 and high > 3 * low:
        pad = (high / low) ** 0.06
        axes.set_xscale("log")
        axes.set_xlim(low / pad, high * pad)
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1, 2, 3, 5) if high < 12 * low else (1, 2, 5))
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:.4g}"))
    else:
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_xlim(low - pad, high + pad)
    inside = [mark for mark in shown.marks if not _is_outlier(shown, mark)]
    ends = [mark.value.value for mark in inside]
    ends += [end for mark in inside for end in (mark.interval() or ())]
    room = 0.09 * (max(ends) - min(ends)) or 0.02 * abs(max(ends)) or 1.0
    outliers = [mark for mark in shown.marks if _is_outlier(shown, mark)]
    axes.set_ylim(min(ends) - (2.2 if outliers else 1) * room, max(ends) + room)
    for mark in outliers:
        look = style.look(mark.point.curve)
        axes.annotate(
            f"{mark.value.value:.3g}\u2193", (mark.cost, 0.01), ha="center", va="bottom",
            xycoords=("data", "axes fraction"), fontsize=7.5, color=look.colour,
        )  # fmt: skip


def _is_outlier(shown: Panel, mark: Mark) -> bool:
    """Return whether a published, collapsed score would squash the rest of the panel."""
    own = mark.point.origin == "measured"
    if own or not shown.dense or not mark.value.higher_is_better:
        return False
    return mark.value.value < 0.62 * shown.dense[0].value.value


def _legend_entries(panels: Sequence[Panel]) -> list[tuple[str, str]]:
    """Return (origin, curve) pairs to explain: dense first, then by name."""
    found = {(mark.point.origin, mark.point.curve) for shown in panels for mark in shown.marks}
    return sorted(found, key=lambda item: (item[1] != FULL, style.name(item[1]), item[0]))


def _legend_rows(panels: Sequence[Panel], columns: int) -> int:
    slower = any(mark.slower for shown in panels for mark in shown.marks)
    return math.ceil((len(_legend_entries(panels)) + 1 + slower) / columns)


def _legend(figure: Any, panels: Sequence[Panel], columns: int) -> None:
    from matplotlib.lines import Line2D

    entries = _legend_entries(panels)
    origins = {origin for origin, _ in entries}
    handles = []
    for origin, curve in entries:
        look = style.look(curve)
        kind = {"published": "published", "measured": "own run"}[origin]
        label = style.name(curve) + (f" ({kind})" if len(origins) > 1 else "")
        dense = curve == FULL
        handles.append(
            Line2D(
                [], [], color=look.colour, marker=look.marker, ms=6, mew=1.4, lw=1.3,
                mfc=look.colour if origin == "measured" else "white", label=label,
                **({"dashes": (2, 2)} if dense else {"dashes": look.dashes} if look.dashes else {}),
            )
        )  # fmt: skip
    handles.append(Line2D([], [], color=style.FRONT, lw=4, alpha=0.75, label="Pareto front"))
    if origins:
        figure.legend(
            handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=8.5,
            handlelength=3.2, columnspacing=1.8, labelspacing=0.45, bbox_to_anchor=(0.5, 0.005),
        )  # fmt: skip
