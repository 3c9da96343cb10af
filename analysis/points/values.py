"""One method at one budget with its scores and costs, from published tables or run records."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from dynllava.plan.names import FULL

from . import names as benchmarks


@dataclass(frozen=True)
class Axis:
    """A cost that accuracy is plotted against.

    Attributes
    ----------
    name : str
        What ``--cost`` accepts.
    title, unit : str
        Axis label.
    kind : str
        ``"counted"`` or ``"measured"``.
    """

    name: str
    title: str
    unit: str
    kind: str

    @property
    def phrase(self) -> str:
        """The title within a sentence."""
        return self.title if self.title[1].isupper() else self.title[0].lower() + self.title[1:]


AXES = {
    item.name: item
    for item in (
        Axis("prefill_flops", "Prefill compute", "TFLOPs", "counted"),
        Axis("decode_flops", "Decode compute", "TFLOPs", "counted"),
        Axis("kv_bytes", "KV cache", "MiB", "counted"),
        Axis("image_tokens", "Mean image tokens per layer", "tokens", "counted"),
        Axis("ttft", "Time to first token", "ms", "measured"),
        Axis("tpot", "Time per output token", "ms", "measured"),
    )
}


EQ13 = "Eq. 13"
"""Kind of a published compute cost: image or output tokens under the paper's formula."""


def cost_kind(axis: str, points: Iterable[Point]) -> str:
    """Return how costs on ``axis`` came about: ``"measured"``, ``"counted"``, or :data:`EQ13`.

    Compute of published rows, and of own runs that share an axis with them, is Eq. 13: 10.1
    "TFLOPs" for the image tokens of a LLaVA-1.5-7B prefill that costs 8.86 counted ones in all.
    """
    published = any(point.origin == "published" for point in points)
    return EQ13 if published and axis in ("prefill_flops", "decode_flops") else AXES[axis].kind


def display_unit(axis: str, largest: float) -> tuple[float, str]:
    """Return (factor, unit) that show values of ``axis`` up to ``largest`` without many zeros."""
    unit = AXES[axis].unit
    steps = {"TFLOPs": ("TFLOPs", "GFLOPs", "MFLOPs"), "MiB": ("MiB", "KiB", "B")}.get(
        unit, (unit,)
    )
    base = 1024 if unit == "MiB" else 1000
    factor = 1
    for name in steps:
        if largest * factor >= 0.5 or name == steps[-1]:
            return factor, name
        factor *= base
    return 1, unit


@dataclass(frozen=True)
class Value:
    """A score with its standard error and number of samples, where they are known.

    ``perfect`` is the value of a perfect score, None for an unbounded metric; ``draws`` are the
    scores of the seeds that ``value`` is the mean of; ``caution`` says what keeps it from being
    compared with the published score; ``protocol`` is what runs must share to be compared.
    """

    value: float
    stderr: float | None = None
    n: int | None = None
    higher_is_better: bool = True
    perfect: float | None = None
    draws: tuple[float, ...] = ()
    caution: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class Cost:
    """A cost in its axis' unit; ``note`` says how it came about."""

    value: float
    note: str = ""
    spread: float | None = None


@dataclass(frozen=True)
class Point:
    """One method at one budget on one model.

    Attributes
    ----------
    origin : str
        ``"published"`` or ``"measured"``.
    source : str
        Publication, or the store of the records.
    model : str
    curve : str
        Method whose budgets form one curve; ``"full"`` is the dense reference.
    label : str
        Method with its parameters.
    scores : dict
        Benchmark to :class:`Value`.
    costs : dict
        Axis name to :class:`Cost`.
    samples : dict
        Benchmark to {sample key: score}; empty for published points.
    weights : str
        Which weights ran, where a comparison has several: ``"dense"`` or ``"tuned"``.
    beside : tuple of str
        Flips, agreement with dense and visual gain retained (:mod:`beside_accuracy`), if known.
    clusters : dict
        Benchmark to {sample key: what it shares with others}, as ``samples``.
    caveat : str
        Why the run is evidence about nothing (:mod:`evidence`); empty where it is some.
    method : str
        An own run's method as :func:`dynllava.methods.parameters.parse` reads it.
    """

    origin: str
    source: str
    model: str
    curve: str
    label: str
    scores: dict[str, Value] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    samples: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: str = ""
    beside: tuple[str, ...] = ()
    clusters: dict[str, dict[str, Hashable]] = field(default_factory=dict)
    caveat: str = ""
    method: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether this is the unpruned model."""
        return self.curve == FULL


def dense_of(points: Iterable[Point], point: Point) -> Point | None:
    """Return the dense point that ``point`` compares with: same origin, source and model."""
    key = (point.origin, point.source, point.model)
    for other in points:
        if other.is_dense and (other.origin, other.source, other.model) == key:
            return other
    return None


def slower_than_dense(points: Iterable[Point], point: Point) -> list[str]:
    """Return the measured axes on which ``point`` takes longer than its dense model."""
    dense = dense_of(points, point)
    if dense is None or point.is_dense:
        return []
    return [
        name
        for name in ("ttft", "tpot")
        if name in point.costs
        and name in dense.costs
        and point.costs[name].value > dense.costs[name].value
    ]


def relative_average(point: Point, dense: Point, names: Iterable[str]) -> Value | None:
    """Return the mean of score / dense score in percent over benchmarks ``names``.

    None if either misses one of them: averages over different benchmarks do not compare.  The
    standard error treats benchmarks and the two runs as independent, which is conservative
    for paired runs; it is None unless every score has one.
    """
    ratios: list[float] = []
    variances: list[float | None] = []
    for name in names:
        ours, theirs = point.scores.get(name), dense.scores.get(name)
        if ours is None or theirs is None:
            return None
        first, second = (ours, theirs) if ours.higher_is_better else (theirs, ours)
        if not second.value:
            return None
        ratio = first.value / second.value
        ratios.append(ratio)
        if first.stderr is None or second.stderr is None:
            variances.append(None)
        else:
            relative = second.stderr * ratio
            variances.append((first.stderr**2 + relative**2) / second.value**2)
    if not ratios:
        return None
    mean = 100 * sum(ratios) / len(ratios)
    if point is dense:
        return Value(100.0, 0.0, None)
    known = [item for item in variances if item is not None]
    if len(known) < len(variances):
        return Value(mean, None, None)
    stderr = 100 * sum(known) ** 0.5 / len(ratios)
    return Value(mean, stderr, None)


def common_benchmarks(points: list[Point], share: float = 2 / 3) -> list[str]:
    """Return the benchmarks an average may use: those that over ``share`` of curves report.

    Points that miss one of them get no average.  Published models: only the paper's 12 count.
    Metrics where less is better (perplexity) stay out as long as others exist.
    """
    reported: dict[str, set[str]] = {}
    for point in points:
        for name in point.scores:
            reported.setdefault(name, set()).add(point.curve)
    names = list(reported)
    if any(point.origin == "published" for point in points):
        names = [name for name in benchmarks.PAPER12 if name in names]
    gains = {name for item in points for name, v in item.scores.items() if v.higher_is_better}
    names = [name for name in names if name in gains] or names
    curves = {point.curve for point in points if point.scores}
    return [name for name in names if len(reported[name]) > share * len(curves)]
