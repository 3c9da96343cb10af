"""Realised share: how much of a saving in cost became time.

(1 - t / t_dense) / (1 - c / c_dense); undefined where the saving is below 5 %.  The cost of own
runs is counted, that of published rows Eq. 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynllava.published import tables as published
from dynllava.records.reading import Stored, latest

from .published import MODELS, SOURCES, published_points
from .values import Point, dense_of

LEAST_SAVING = 0.05


@dataclass(frozen=True)
class Share:
    """One method's realised share in one mode; ``value`` None where undefined (see ``note``)."""

    label: str
    method: str
    mode: str
    value: float | None
    slower: bool
    note: str
    origin: str


def realised_share(time_ratio: float, cost_ratio: float) -> float | None:
    """Return the realised share, or None if less than 5 % was saved by count."""
    if 1 - cost_ratio < LEAST_SAVING:
        return None
    return (1 - time_ratio) / (1 - cost_ratio)


def published_shares() -> list[Share]:
    """Return prefill shares from published times (A100) and Eq. 13's cost of the same rows."""
    shares = []
    for source in SOURCES:
        for model in MODELS:
            points = published_points(source, model)
            for point in points:
                share = _prefill(points, point, source)
                if share is not None:
                    shares.append(share)
    return shares


def _prefill(points: Sequence[Point], point: Point, source: str) -> Share | None:
    dense = dense_of(points, point)
    if dense is None or point.is_dense or "ttft" not in point.costs or "ttft" not in dense.costs:
        return None
    times = point.costs["ttft"].value / dense.costs["ttft"].value
    costs = point.costs["prefill_flops"].value / dense.costs["prefill_flops"].value
    value = realised_share(times, costs)
    where = "FastV README" if source == published.FASTV_KEY else "table 14"
    note = f"time {times - 1:+.0%}, Eq. 13 {costs - 1:+.0%}"
    label = f"{point.label}, 13B ({where})"
    return Share(label, point.curve, "prefill", value, times > 1, note, published.FASTV
                 if source == published.FASTV_KEY else point.source)  # fmt: skip


def measured_shares(stored: Sequence[Stored]) -> list[Share]:
    """Return the wall-clock shares of bench records."""
    shares = []
    for item in latest(stored):
        record = item.record
        if record.kind != "bench":
            continue
        for mode in ("prefill", "decode", "decode_nocache"):
            ratio = record.measured.get(f"time_ratio_{mode}")
            cost = record.counted.get(f"cost_ratio_{mode}")
            if ratio is None or cost is None:
                continue
            share = record.measured.get(f"realised_share_{mode}")
            plan = f", {record.task.name.removeprefix('speed-')}" if record.task else ""
            shares.append(
                Share(
                    f"{record.method.shown}, {mode.replace('_', ' ')}{plan}",
                    record.method.name,
                    mode,
                    None if share is None else share.median,
                    ratio.median > 1,
                    f"time {ratio.median - 1:+.0%}, count {cost.value - 1:+.0%}",
                    f"record {record.record_id[:8]}: {record.model.name}, "
                    f"{record.environment.device}, {record.environment.dtype}",
                )
            )
    return shares
