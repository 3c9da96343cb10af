"""The report's verdicts: every own run against its dense one, and who is on the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

from dynllava.uncertainty import NOT_WORSE, UNDECIDED, WORSE

from .. import style
from ..pareto.data import Panel, panel
from ..points.values import AXES, Point
from ..tables.cells import Cell, TableData
from .against_dense import Against, against_dense

HEADERS = (
    "setting", "verdict", "points [95 %]", "p worse", "p not worse", "samples", "would decide",
    "on the front",
)  # fmt: skip

SHORT = {WORSE: "worse", NOT_WORSE: "not worse", UNDECIDED: "undecided"}


def verdict_tables(points: Sequence[Point], margin: float = 0.01) -> list[TableData]:
    """Return one table a model with own runs beside a dense one, best first.

    Parameters
    ----------
    points : sequence of Point
        Own runs; those that are no evidence (``caveat``) are left out.
    margin : float
        Tolerated drop in the unit of a sample's score (0.01 = a point).
    """
    tables = []
    for model in dict.fromkeys(point.model for point in points):
        own = [point for point in points if point.model == model and not point.caveat]
        rows = against_dense(own, margin)
        if rows:
            tables.append(_table(model, own, rows))
    return tables


def _table(model: str, points: Sequence[Point], rows: Sequence[Against]) -> TableData:
    shown = _front(points)
    shares = {mark.point.label: mark.front_share for mark in shown.marks} if shown else {}
    dense = [point.label for point in points if point.is_dense]
    dash = Cell("-")
    body = [
        (Cell(label), Cell("reference"), *[dash] * 5, _share(shares.get(label))) for label in dense
    ]
    for row in sorted(rows, key=lambda item: -item.comparison.difference):
        body.append((*_cells(row), _share(shares.get(row.label))))
    first = rows[0].comparison
    points_margin = f"{100 * first.margin:g} point{'s' * (first.margin != 0.01)}"
    notes = [
        f"Paired with the dense run of the same samples, all tasks with scores from 0 to 1 pooled, "
        f"by image; {first.clusters:,} images in the first row. A point is a hundredth of a full "
        "score, differences are method - dense.",
        f"p worse: of a drop above {points_margin}; p not worse: of a drop of at most "
        f"{points_margin}. Both corrected by Holm over the {len(rows)} runs; the verdict takes "
        f"what is at most {first.alpha:g}. Intervals are those of each run alone.",
        "Would decide: samples that show 'not worse' with a power of 80 % if nothing truly "
        "differs; where that many were run, samples that decide if the drop seen is the true one.",
    ]
    if shown and any(share is not None for share in shares.values()):
        notes.append(
            "On the front: share of 2,000 draws of images, the same for all runs, in which no "
            f"other run has a higher average at no higher cost ({AXES[shown.axis].phrase})."
        )
    title = f"Against the dense model: {style.model_name(model)}, margin {points_margin}"
    return TableData("ours", title, HEADERS, tuple(body), (), tuple(notes))


def _cells(row: Against) -> tuple[Cell, ...]:
    found = row.comparison
    interval = "no interval"
    if found.interval is not None:
        interval = f"[{100 * found.interval[0]:+.1f}, {100 * found.interval[1]:+.1f}]"
    needed = "-"
    if row.verdict == UNDECIDED:
        needed = f"{row.needed:,}" if row.needed else found.reason or "over 10^8"
    return (
        Cell(row.label),
        Cell(SHORT[row.verdict], rank=int(row.verdict == WORSE)),
        Cell(f"{100 * found.difference:+.1f} {interval}"),
        Cell(p_text(row.p_worse)),
        Cell(p_text(row.p_not_worse)),
        Cell(f"{found.samples:,}"),
        Cell(needed),
    )


def _front(points: Sequence[Point]) -> Panel | None:
    """Return the panel of averages over the first cost that the points have."""
    for axis in AXES:
        shown = panel(points, "average", axis)
        if len(shown.marks) > 1:
            return shown
    return None


def _share(value: float | None) -> Cell:
    if value is None:
        return Cell("-")
    return Cell("under 1 %" if 0 < value < 0.01 else f"{100 * value:.0f} %")


def p_text(value: float) -> str:
    """Return a p value with two digits, as "< 0.001" below that."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"
