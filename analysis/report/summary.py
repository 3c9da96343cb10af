"""The sentences at the top of a report, each computed from the data it is about."""

from __future__ import annotations

from dynllava.uncertainty import NOT_WORSE, UNDECIDED, WORSE

from .. import style
from ..pareto.data import panel
from ..points.realised import charted
from ..points.values import Point, slower_than_dense
from .against_dense import against_dense
from .data import ReportData

VERDICTS = (WORSE, NOT_WORSE, UNDECIDED)

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
    measured = [share for share in charted(data.shares) if share.rounds]
    slower = list(dict.fromkeys(share.label for share in measured if share.slower))
    if slower:
        count = sum(share.slower for share in measured)
        named = f"{', '.join(slower[:4])}{' ...' if slower[4:] else ''}"
        found.append(
            (
                f"{count} of {len(measured)}",
                f"timed runs of methods take longer than the dense model: {named}",
            )
        )
    return found


def _own(model: str, points: list[Point]) -> list[Fact]:
    rows = against_dense([point for point in points if not point.caveat])
    found = []
    if rows:
        close = [row.label for row in rows if row.verdict == NOT_WORSE]
        counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
        named = f": {', '.join(close[:3])}" if close else ""
        found.append(
            (
                f"{len(close)} of {len(rows)}",
                f"own settings on {model} are shown to be at most a point below dense (paired, "
                f"Holm){named}; {counts[WORSE]} are worse, {counts[UNDECIDED]} undecided",
            )
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
            f"{100 * saved:.0f}\u00a0% less",
            f"prefill compute (Eq. 13) for {cheapest.value.value:.1f} % of dense over "
            f"{len(shown.names)} benchmarks: {style.name(cheapest.point.curve)} on LLaVA-1.5-7B, "
            "as published",
        )
    ]
