"""Small static charts as inline SVG: lines and horizontal bars, styled by the page's CSS."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH = 760
LETTER = 7.0
"""Width that a letter is given: a little above the mean, as fonts differ."""


@dataclass(frozen=True)
class Line:
    """One curve: ``style_class`` names its colour in the page's CSS."""

    label: str
    style_class: str
    dashes: tuple[float, ...]
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Dot:
    """A marked place with a tooltip."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Bar:
    """One bar; ``value`` None draws the text ``note`` alone."""

    label: str
    value: float | None
    note: str
    style_class: str
    alarm: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers within [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, int(high / step + 1e-9) + 1)]


def lines(
    curves: Sequence[Line], dots: Sequence[Dot], x_title: str, y_title: str, name: str
) -> str:
    """Return a line chart from zero with labels at the curves' ends.

    Parameters
    ----------
    curves, dots : sequence
        Data in axis units.
    x_title, y_title : str
    name : str
        What screen readers call the chart.
    """
    height, left, right, top, bottom = 380, 58, 190, 16, 46
    x_max = max(max(curve.xs) for curve in curves)
    y_max = 1.05 * max(max(curve.ys) for curve in curves)

    def place(x: float, y: float) -> tuple[float, float]:
        wide, high = WIDTH - left - right, height - top - bottom
        return left + x / x_max * wide, height - bottom - y / y_max * high

    parts = [_open(height, name)]
    for value in ticks(0, y_max):
        _, y = place(0, value)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in ticks(0, x_max):
        x, _ = place(value, 0)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"{value:g}</text>"
        )
    labels = []
    for curve in curves:
        points = [place(x, y) for x, y in zip(curve.xs, curve.ys, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dash = " ".join(f"{item:g}" for item in curve.dashes) or "none"
        parts.append(
            f'<path class="curve {curve.style_class}" d="{path}" stroke-dasharray="{dash}">'
            f"<title>{html.escape(curve.label)}</title></path>"
        )
        labels.append((points[-1][1], curve))
    for y, curve in _spread(labels, 16):
        parts.append(
            f'<text class="label {curve.style_class}" x="{WIDTH - right + 10}" y="{y + 4:.1f}">'
            f"{html.escape(curve.label)}</text>"
        )
    for dot in dots:
        x, y = place(dot.x, dot.y)
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
            f"<title>{html.escape(dot.title)}</title></circle>"
        )
    middle = left + (WIDTH - left - right) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{height - 8}" text-anchor="middle">'
        f"{html.escape(x_title)}</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(14 {height / 2 - 10}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_title)}</text></svg>'
    )
    return "".join(parts)


def _spread(labels: list[tuple[float, Line]], gap: float) -> list[tuple[float, Line]]:
    """Move labels apart so that none covers another."""
    placed: list[tuple[float, Line]] = []
    for y, curve in sorted(labels, key=lambda item: item[0]):
        y = max(y, placed[-1][0] + gap) if placed else y
        placed.append((y, curve))
    return placed


def bars(groups: Mapping[str, Sequence[Bar]], low: float, high: float, name: str) -> str:
    """Return horizontal bars from zero, a picture a group; outside [low, high] they are cut.

    Parameters
    ----------
    groups : mapping of str to sequence of Bar
        A heading, and the bars below it.
    low, high : float
        Axis limits with ``low <= 0 < high``, in shares.
    name : str
        What screen readers call the chart.
    """
    row, right, top = 24, 170, 30
    longest = max(len(item.label) for items in groups.values() for item in items)
    left = min(330.0, 20 + LETTER * longest)

    def place(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return left + share * (WIDTH - left - right)

    charts = []
    for heading, items in groups.items():
        last = heading == list(groups)[-1]
        bottom = top + row * len(items)
        # A picture each, so that paper breaks between groups and never within a row.
        parts = [_open(bottom + (30 if last else 8), f"{name}: {heading}")]
        for value in ticks(low, high, 4):
            x = place(value)
            strong = " strong" if value in (0, 1) else ""
            parts.append(
                f'<line class="grid{strong}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
            )
            if last:
                parts.append(
                    f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">'
                    f"{100 * value:g} %</text>"
                )
        parts.append(f'<text class="group" x="0" y="{top - 10}">{_fitting(heading, WIDTH)}</text>')
        for index, item in enumerate(items):
            parts += _bar(item, left, top + row * (index + 0.5), place)
        charts.append("".join(parts) + "</svg>")
    return "".join(charts)


def _bar(item: Bar, left: float, y: float, place: Callable[[float], float]) -> list[str]:
    parts = [
        f'<text class="tick dark" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">'
        f"{_fitting(item.label, left - 12)}</text>"
    ]
    x = place(0)
    if item.value is not None:
        x0, x1 = sorted((place(0), place(item.value)))
        parts.append(
            f'<rect class="bar {item.style_class}" x="{x0:.1f}" y="{y - 7:.1f}" '
            f'width="{max(x1 - x0, 1.5):.1f}" height="14" rx="2"/>'
        )
        x = x1
    kind = "note alarm" if item.alarm else "note"
    parts.append(
        f'<text class="{kind}" x="{x + 8:.1f}" y="{y + 4:.1f}">{html.escape(item.note)}</text>'
    )
    return parts


def _fitting(text: str, width: float) -> str:
    """Return ``text`` escaped, cut where it would not fit; the whole then is its tooltip."""
    most = int(width / LETTER)
    if len(text) <= most:
        return html.escape(text)
    return f"{html.escape(text[: most - 1])}\u2026<title>{html.escape(text)}</title>"


def _open(height: float, name: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{html.escape(name, quote=True)}">'
    )
