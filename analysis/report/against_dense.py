"""Whether each own run is as good as its dense model, to within a margin: yes, no, undecided."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynllava.uncertainty import (
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    Comparison,
    compare_paired,
    holm_adjusted,
)
from dynllava.uncertainty.clustered import design_effect, sums_of
from dynllava.uncertainty.design import Design, observed_design
from dynllava.uncertainty.power import plan_clusters

from ..points.values import Point, dense_of


@dataclass(frozen=True)
class Against:
    """A run beside its dense model, all shared tasks with scores from 0 to 1 pooled.

    Attributes
    ----------
    label : str
    tasks : int
    comparison : Comparison
        Its ``verdict`` is that of a single comparison.
    verdict : str
        Corrected by Holm over all runs.
    design : Design
        What such a comparison can find.
    p_worse, p_not_worse : float
        The comparison's p values, corrected by Holm over all runs.
    needed : int or None
        Samples that would decide at the planned power, where the verdict is undecided: if nothing
        truly differs, or, where that many were run already, if the difference seen is the true
        one.
    """

    label: str
    tasks: int
    comparison: Comparison
    verdict: str
    design: Design
    p_worse: float = 1.0
    p_not_worse: float = 1.0
    needed: int | None = None


def against_dense(
    points: Iterable[Point], margin: float = 0.01, alpha: float = 0.05, power: float = 0.8
) -> list[Against]:
    """Return one comparison a run that has a dense one beside it, in order.

    Parameters
    ----------
    points : iterable of Point
        Own runs with samples; those that are no evidence (``caveat``) get no verdict.
    margin : float
        Tolerated drop in the unit of a sample's score (0.01 = a point).
    alpha, power : float
        Family-wise level, and the power of ``needed``.
    """
    points = [point for point in points if not point.caveat]
    pairs = [(point, dense_of(points, point)) for point in points if not point.is_dense]
    known = [(point, dense) for point, dense in pairs if dense is not None]
    return [row for row in compared(known, margin, alpha, power) if row is not None]


def compared(
    pairs: Iterable[tuple[Point, Point]],
    margin: float = 0.01,
    alpha: float = 0.05,
    power: float = 0.8,
) -> list[Against | None]:
    """Return one comparison a pair (a run, and what it is held against), None without samples.

    Parameters
    ----------
    pairs : iterable of (Point, Point)
        The family that verdicts are corrected over.
    margin, alpha, power : float
        See :func:`against_dense`.
    """
    rows = [_pooled(point, base, margin, alpha) for point, base in pairs]
    family = [row for row in rows if row is not None]
    worse = holm_adjusted([row.comparison.p_worse for row in family])
    close = holm_adjusted([row.comparison.p_not_inferior for row in family])
    decided = (
        _decided(row, low, high, alpha, power, len(family))
        for row, low, high in zip(family, worse, close, strict=True)
    )
    return [None if row is None else next(decided) for row in rows]


def _pooled(point: Point, dense: Point, margin: float, alpha: float) -> Against | None:
    first: list[float] = []
    second: list[float] = []
    clusters: list[object] = []
    tasks = 0
    for name in point.samples:
        ours, theirs = point.samples[name], dense.samples.get(name, {})
        shared = [key for key in ours if key in theirs]
        values = [value[key] for value in (ours, theirs) for key in shared]
        if not values or min(values) < 0 or max(values) > 1:
            continue
        sign = point.scores[name].higher_is_better
        first += [theirs[key] if sign else 1 - theirs[key] for key in shared]
        second += [ours[key] if sign else 1 - ours[key] for key in shared]
        clusters += [point.clusters[name][key] for key in shared]
        tasks += 1
    if not tasks:
        return None
    found = compare_paired(first, second, clusters, margin, alpha)
    before = np.array(first)
    sums = sums_of(np.array(second) - before, clusters)
    design = observed_design(sums, design_effect(before, clusters))
    return Against(point.label, tasks, found, UNDECIDED, design)


def _decided(
    row: Against, worse: float, close: float, alpha: float, power: float, family: int
) -> Against:
    verdict = WORSE if worse <= alpha else NOT_WORSE if close <= alpha else UNDECIDED
    found, needed = row.comparison, None
    if verdict == UNDECIDED and found.margin:
        for drop in (0.0, max(0.0, -found.difference)):
            clusters = plan_clusters(row.design, found.margin, alpha / family, power, drop)
            needed = None if clusters is None else round(clusters * row.design.per_cluster)
            if needed is None or needed > found.samples:
                break
    return replace(row, verdict=verdict, p_worse=worse, p_not_worse=close, needed=needed)


def lines(rows: Sequence[Against]) -> list[str]:
    """Return a heading and one line a run, in points (hundredths of a full score)."""
    if not rows:
        return []
    first = rows[0].comparison
    width = max(len(row.label) for row in rows)
    found = [
        f"Against the dense model, tasks pooled, margin {_points(first.margin)} (level "
        f"{first.alpha:g}, Holm over {len(rows)}); difference in points [95 % interval]:"
    ]
    for row in rows:
        done = row.comparison
        interval = "no interval"
        if done.interval is not None:
            interval = f"[{100 * done.interval[0]:+.1f}, {100 * done.interval[1]:+.1f}]"
        verdict = row.verdict.replace("margin", _points(done.margin))
        if row.verdict == UNDECIDED:
            why = done.reason or (
                f"{done.samples:,} samples; about {row.needed:,} would decide"
                if row.needed
                else f"{done.samples:,} samples"
            )
            verdict = f"{verdict} ({why})"
        found.append(f"  {row.label:{width}}  {100 * done.difference:+.1f} {interval}  {verdict}")
    return found


def _points(share: float) -> str:
    return "1 point" if share == 0.01 else f"{100 * share:g} points"
