"""One figure that says what the project does: what methods keep, and what that costs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynllava.output.files import write_bytes

from .. import style
from ..points.values import Point, common_benchmarks, dense_of, relative_average
from ..report.overlay import Overlay, veiled

PICTURES = 4
COST = "image_tokens"


def write_overview(path: Path, points: Sequence[Point], overlays: Sequence[Overlay]) -> Path | None:
    """Write kept patches of one question beside score against image tokens; None without both.

    Parameters
    ----------
    path : Path
        PNG to write.
    points : sequence of Point
        Own runs of one model; the score is the mean relative to dense.
    overlays : sequence of Overlay
        The question under most methods is shown.
    """
    shown = _question(overlays)
    rows = _scores(points)
    if not shown or len(rows) < 2:
        return None
    return write_bytes(path, _draw(shown, rows))


def _question(overlays: Sequence[Overlay]) -> list[Overlay]:
    """Return the overlays of one question that drop patches, those that answer wrongly last."""
    groups: dict[tuple[str, str], list[Overlay]] = {}
    for item in overlays:
        if item.cached is None and item.expected:
            groups.setdefault((item.image, item.question), []).append(item)
    short = [group for group in groups.values() if group[0].right is not None]
    if not short:
        return []
    # The question that tells the methods apart.
    best = max(short, key=lambda group: len({item.right for item in group}))
    return sorted(best, key=lambda item: (-len(item.kept), not item.right))[:PICTURES]


def _scores(points: Sequence[Point]) -> list[tuple[Point, float, float]]:
    """Return (point, image tokens a layer, percent of dense) of runs that count as evidence."""
    found = []
    usable = [point for point in points if not point.caveat]
    names = common_benchmarks(usable)
    for point in usable:
        dense, cost = dense_of(usable, point), point.costs.get(COST)
        if dense is None or cost is None:
            continue
        value = relative_average(point, dense, names)
        if value is not None:
            found.append((point, cost.value, value.value))
    return found


def _draw(shown: Sequence[Overlay], rows: Sequence[tuple[Point, float, float]]) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(10.5, 4.4))
        FigureCanvasAgg(figure)
        figure.text(0.015, 0.95, f"Q: {shown[0].question}", fontsize=10, fontweight="bold")
        for number, item in enumerate(shown):
            left, bottom = 0.015 + 0.268 * (number % 2), 0.50 - 0.45 * (number // 2)
            axes = figure.add_axes((left, bottom, 0.153, 0.365))
            axes.imshow(veiled(item), interpolation="nearest")
            axes.set_axis_off()
            axes.set_anchor("NW")
            answer = f"{item.answer} ({'right' if item.right else 'wrong'})"
            text = f"{item.label}\n{len(set(item.kept))} of {item.grid**2} patches\n{answer}"
            text = text.replace("$", r"\$")
            figure.text(left + 0.158, bottom + 0.355, text, fontsize=8, va="top")
        _front(figure.add_axes((0.605, 0.14, 0.38, 0.74)), rows)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        return buffer.getvalue()


def _front(axes: Any, rows: Sequence[tuple[Point, float, float]]) -> None:
    curves: dict[str, list[tuple[float, float]]] = {}
    for point, cost, score in rows:
        curves.setdefault(point.curve, []).append((cost, score))
    for curve, places in curves.items():
        look = style.look(curve)
        places.sort()
        xs, ys = zip(*places, strict=True)
        axes.plot(xs, ys, look.marker, ls="-", lw=1.2, color=look.colour, label=style.name(curve))
    best, front = float("-inf"), []
    for _, cost, score in sorted(rows, key=lambda row: (row[1], -row[2])):
        if score > best:
            best = score
            front.append((cost, score))
    axes.step(*zip(*front, strict=True), where="post", color=style.FRONT, lw=4, alpha=0.75,
              zorder=1)  # fmt: skip
    axes.set_xlabel("Mean image tokens processed per layer (counted)")
    axes.set_ylabel("Score, mean over tasks (% of dense)")
    axes.set_title("Accuracy against tokens; the broad line is the front", fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
