"""The sentences at the top of a report, each computed from the data it is about."""

from __future__ import annotations

from .. import style
from ..pareto.data import groups, panel
from ..points.values import Point, slower_than_dense
from .data import ReportData

Fact = tuple[str, str]


def facts(data: ReportData) -> list[Fact]:
    """Return (figure, what it says) pairs; nothing is said that the data do not hold."""
    found: list[Fact] = []
    for (source, model), points in data.pages.items():
        if source == "own":
            found += _own(model, points)
    paper = data.pages.get(("dynamic-llava", "llava-1.5-7b"))
    if paper:
        found += _published(paper)
    cells = [
        cell
        for table in data.tables
        for row in table.rows
        for header, cell in zip(table.headers, row, strict=True)
        if cell.origin == "computed" and cell.printed and not header.startswith("KV")
    ]
    agreeing = sum(cell.agrees for cell in cells)
    found.append(
        (
            f"{agreeing} of {len(cells)}",
            "cost cells of the paper's tables (Eq. 13) are reproduced at printed precision; the "
            "others are listed with the reason",
        )
    )
    slower = [
        share.label for share in data.shares if share.slower and share.origin.startswith("record")
    ]
    if slower:
        found.append((str(len(slower)), f"measured settings slower than dense: {slower[0]} ..."))
    return found


def _own(model: str, points: list[Point]) -> list[Fact]:
    shown = panel(points, "average", "image_tokens")
    marks = [mark for mark in shown.marks if not mark.point.is_dense]
    if not marks:
        return []
    best = max(marks, key=lambda mark: mark.value.value)
    tasks = len(shown.names)
    samples = sum(value.n or 0 for value in best.point.scores.values())
    found = [
        (
            f"{best.value.value:.1f} %",
            f"of dense over {tasks} tasks ({samples} samples): {best.point.label} on {model}, the "
            f"best of {len(marks)} own settings",
        )
    ]
    grouping, _ = groups(points, "average")
    if grouping is not None:
        letter = grouping.letters.get(best.point.label, "")
        alike = [
            label
            for label, letters in grouping.letters.items()
            if set(letters) & set(letter) and label != best.point.label
        ]
        if alike:
            found.append(
                (str(len(alike)), "settings that paired tests (Holm) cannot tell from that one")
            )
    slow = [point.label for point in points if slower_than_dense(points, point)]
    if slow:
        found.append((str(len(slow)), f"own settings slower than dense: {', '.join(slow[:4])}"))
    return found


def _published(points: list[Point]) -> list[Fact]:
    shown = panel(points, "average", "prefill_flops")
    dense = shown.dense[0]
    ours = [mark for mark in shown.marks if mark.point.curve.startswith("dynamic_llava I|T")]
    if not ours:
        return []
    cheapest = min(ours, key=lambda mark: mark.cost)
    saved = 1 - cheapest.cost / dense.cost
    return [
        (
            f"{saved:.0%} less",
            f"prefill compute (Eq. 13) for {cheapest.value.value:.1f} % of dense over "
            f"{len(shown.names)} benchmarks: {style.name(cheapest.point.curve)} on LLaVA-1.5-7B, "
            "as published",
        )
    ]
