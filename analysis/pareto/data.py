"""What a Pareto plot shows: curves, fronts, and the numbers that summarise them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynllava.errors import UserError
from dynllava.output.tables import as_csv

from ..points import names as benchmarks
from ..points.values import (
    AXES,
    Point,
    Value,
    common_benchmarks,
    cost_kind,
    dense_of,
    relative_average,
    slower_than_dense,
)
from . import front as pareto
from .front_share import front_shares

NORMAL_95 = 1.959964
"""Standard errors from a score to the ends of its 95 % interval."""

REFERENCE = (1.0, 0.5)
"""Corner of the hypervolume: the dense model's cost, half of the dense model's score."""


@dataclass(frozen=True)
class Mark:
    """One plotted point.

    Attributes
    ----------
    point : Point
    cost : float
    value : Value
    on_front : bool
        Whether no other point is better at no higher cost.
    slower : tuple of str
        Measured axes on which dense is faster.
    front_share : float or None
        Share of cluster bootstrap draws in which the point is on the front; None where a point
        of the panel has no samples.
    """

    point: Point
    cost: float
    value: Value
    on_front: bool = False
    slower: tuple[str, ...] = ()
    front_share: float | None = None

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % confidence interval within the metric's range, if there is one."""
        if not self.value.stderr:
            return None
        half = NORMAL_95 * self.value.stderr
        low, high = self.value.value - half, self.value.value + half
        if self.value.perfect is None:
            return low, high
        return max(low, 0.0), min(high, self.value.perfect)


@dataclass(frozen=True)
class Panel:
    """One benchmark against one cost.

    Attributes
    ----------
    benchmark, axis : str
    marks : tuple of Mark
        All methods, by curve and cost; the dense points are among them.
    dense : tuple of Mark
        The dense references.
    missing : tuple of str
        Labels that cannot be shown, each with the reason.
    names : tuple of str
        Benchmarks of the average; empty otherwise.
    """

    benchmark: str
    axis: str
    marks: tuple[Mark, ...]
    dense: tuple[Mark, ...]
    missing: tuple[str, ...]
    names: tuple[str, ...] = ()

    def curves(self) -> dict[tuple[str, str], list[Mark]]:
        """Return marks by (origin, curve) without the dense ones, by rising cost."""
        found: dict[tuple[str, str], list[Mark]] = {}
        for mark in self.marks:
            if not mark.point.is_dense:
                found.setdefault((mark.point.origin, mark.point.curve), []).append(mark)
        return found


def axis_of(name: str) -> str:
    """Return ``name`` if it is an axis, else raise :class:`UserError`."""
    if name not in AXES:
        raise UserError(f"cost {name!r}: accepted are {', '.join(AXES)}")
    return name


def panel(
    points: Sequence[Point], benchmark: str, axis: str, names: Sequence[str] | None = None
) -> Panel:
    """Return what the plot of ``benchmark`` (or ``"average"``) against ``axis`` shows.

    Parameters
    ----------
    points : sequence of Point
        All of one model.
    benchmark, axis : str
    names : sequence of str, optional
        Benchmarks of the average; default :func:`common_benchmarks`.
    """
    averaged = tuple(names or common_benchmarks(list(points))) if benchmark == "average" else ()
    marks, missing = [], []
    for point in points:
        value = _value(points, point, benchmark, averaged)
        if point.caveat:
            missing.append(f"{point.label}: {point.caveat}")
        elif value is None:
            reason = "misses a benchmark of the average" if averaged else "no score"
            missing.append(f"{point.label}: {reason}")
        elif axis not in point.costs:
            missing.append(f"{point.label}: no {AXES[axis].phrase}")
        else:
            slower = tuple(slower_than_dense(points, point))
            marks.append(Mark(point, point.costs[axis].value, value, False, slower))
    best = set(pareto.front([(mark.cost, _oriented(mark.value)) for mark in marks]))
    shares = front_shares(marks, averaged or (benchmark,), relative=bool(averaged))
    marks = [
        replace(mark, on_front=index in best, front_share=share)
        for index, (mark, share) in enumerate(zip(marks, shares, strict=True))
    ]
    marks.sort(key=lambda mark: (mark.point.origin, mark.point.curve, mark.cost))
    dense = tuple(mark for mark in marks if mark.point.is_dense)
    return Panel(benchmark, axis, tuple(marks), dense, tuple(missing), averaged)


def _value(
    points: Sequence[Point], point: Point, benchmark: str, names: tuple[str, ...]
) -> Value | None:
    if benchmark != "average":
        return point.scores.get(benchmark)
    dense = dense_of(points, point)
    return None if dense is None else relative_average(point, dense, names)


def _oriented(value: Value) -> float:
    return value.value if value.higher_is_better else -value.value


@dataclass(frozen=True)
class Summary:
    """One method's numbers in one panel; a None has its reason in ``note``."""

    benchmark: str
    axis: str
    origin: str
    curve: str
    budgets: int
    hypervolume: float | None
    area: float | None
    note: str = ""


def summarise(shown: Panel) -> list[Summary]:
    """Return hypervolume and area under the front of each method.

    Costs and scores are divided by the dense model's (lower-is-better scores inverted).  The
    hypervolume is bounded by :data:`REFERENCE`; the area is the mean relative score over costs
    from the highest of all methods' lowest costs up to dense.
    """
    pairs: dict[tuple[str, str], list[pareto.Pair]] = {}
    for key, marks in shown.curves().items():
        dense = next((mark for mark in shown.dense if mark.point.origin == key[0]), None)
        if dense is not None and dense.cost and dense.value.value:
            pairs[key] = [(mark.cost / dense.cost, _relative(mark, dense)) for mark in marks]
    swept = {key: items for key, items in pairs.items() if len({cost for cost, _ in items}) > 1}
    low = max((min(item)[0] for item in swept.values()), default=1.0)
    rows = []
    for key, marks in shown.curves().items():
        if key not in pairs:
            rows.append(
                Summary(shown.benchmark, shown.axis, *key, len(marks), None, None,
                        "no dense reference with this cost")
            )  # fmt: skip
            continue
        volume = pareto.hypervolume(pairs[key], REFERENCE)
        # The dense model closes every front: no method need be used at full cost.
        closed = [*pairs[key], (1.0, 1.0)]
        area = pareto.area_under_front(closed, low, 1.0) if key in swept else None
        note = "" if area is not None else "an area needs two budgets below the dense cost"
        rows.append(Summary(shown.benchmark, shown.axis, *key, len(marks), volume, area, note))
    return sorted(rows, key=lambda row: -(row.hypervolume or 0))


def _relative(mark: Mark, dense: Mark) -> float:
    ratio = mark.value.value / dense.value.value
    return ratio if mark.value.higher_is_better or not ratio else 1 / ratio


def groups(points: Sequence[Point], benchmark: str) -> tuple[pareto.Grouping | None, str]:
    """Return which own runs ``benchmark``'s samples cannot tell apart, or None and the reason.

    The average pools the samples of the tasks that it is over and that every run shares.
    """
    own = [point for point in points if point.samples]
    if not own:
        return None, "published numbers come without samples"
    names = [benchmark]
    if benchmark == "average":
        shared = set.intersection(*(set(point.samples) for point in own))
        names = sorted(shared & set(common_benchmarks(own)))
    own = [point for point in own if all(name in point.samples for name in names)]
    scores = {
        point.label: {
            f"{task}/{key}": value for task in names for key, value in point.samples[task].items()
        }
        for point in own
    }
    clusters = {
        f"{task}/{key}": cluster
        for point in own
        for task in names
        for key, cluster in point.clusters[task].items()
    }
    found = pareto.group(scores, clusters)
    return found, "" if found else "fewer than two runs share samples"


_FIELDS = (
    "benchmark", "cost_axis", "cost_unit", "cost_kind", "model", "curve", "label", "origin",
    "cost", "cost_note", "score", "ci_low", "ci_high", "samples", "on_front",
    "front_probability", "slower_than_dense", "source",
)  # fmt: skip


def csv_text(panels: Sequence[Panel]) -> str:
    """Return the plotted data, one line a point."""
    rows = []
    for shown in panels:
        axis = AXES[shown.axis]
        kind = cost_kind(axis.name, [mark.point for mark in shown.marks])
        for mark in shown.marks:
            interval = mark.interval() or ("", "")
            point = mark.point
            rows.append(
                [shown.benchmark, axis.name, axis.unit, kind, point.model, point.curve,
                 point.label, point.origin, f"{mark.cost:.6g}", point.costs[axis.name].note,
                 f"{mark.value.value:.6g}",
                 *(f"{end:.6g}" if end != "" else "" for end in interval),
                 mark.value.n or "", int(mark.on_front),
                 "" if mark.front_share is None else f"{mark.front_share:.3f}",
                 " ".join(mark.slower), point.source]
            )  # fmt: skip
    return as_csv(_FIELDS, rows)


def benchmark_names(points: Sequence[Point]) -> list[str]:
    """Return the benchmarks of one page: the paper's 12, or what own runs of the model hold."""
    if any(point.origin == "published" and "gqa" in point.scores for point in points):
        return list(benchmarks.PAPER12)
    return list(dict.fromkeys(name for point in points for name in point.scores))
