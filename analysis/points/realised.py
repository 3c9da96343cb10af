"""Realised share: how much of a saving in cost became time.

(1 - t / t_dense) / (1 - c / c_dense); undefined where the saving is below 5 %.  The cost of own
runs is counted, that of published rows Eq. 13.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dynllava.published import tables as published
from dynllava.records.reading import Stored, latest
from dynllava.timing.words import method_in_words, mode_in_words, task_in_words

from .published import MODELS, SOURCES, published_points
from .values import Point, dense_of

LEAST_SAVING = 0.05


@dataclass(frozen=True)
class Share:
    """One method's realised share in one mode.

    Attributes
    ----------
    label : str
        What was run, without its setting.
    setting : str
        Mode and sizes: shares of one setting stand beside each other.
    method, mode : str
    value : float or None
        None where undefined (see ``note``).
    slower : bool
        Whether it takes longer than dense.
    note, origin : str
        Change in time and cost, and where it comes from.
    rounds : int
        Of the measurement; 0 for a published row.
    dense : bool
        A dense model itself, in another form than the one all are held against.
    """

    label: str
    setting: str
    method: str
    mode: str
    value: float | None
    slower: bool
    note: str
    origin: str
    rounds: int = 0
    dense: bool = False


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
    note = f"time {_change(times)}, Eq. 13 {_change(costs)}"
    setting = f"prefill, 13B, A100 ({where})"
    origin = published.FASTV if source == published.FASTV_KEY else point.source
    return Share(point.label, setting, point.curve, "prefill", value, times > 1, note, origin)


def _change(ratio: float) -> str:
    percent = round(100 * (ratio - 1))
    return f"{percent:+d} %" if percent else "unchanged"


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
            sizes = task_in_words(record.task_name, outputs=mode != "prefill")
            setting = f"{mode_in_words(mode)}, {sizes}, {record.environment.device}"
            shares.append(
                Share(
                    method_in_words(record.method.shown),
                    setting,
                    record.method.name,
                    mode,
                    None if share is None else share.median,
                    ratio.median > 1,
                    f"time {_change(ratio.median)}, count {_change(cost.value)}",
                    f"record {record.record_id[:8]}: {record.model.name}, "
                    f"{record.environment.device}, {record.environment.dtype}",
                    ratio.repeats,
                    record.method.is_dense,
                )
            )
    return shares


def charted(shares: Sequence[Share]) -> list[Share]:
    """Return what a chart shows: methods, each once in a setting, by setting and then by share.

    A dense model in another form saves nothing.  The same prefill is timed in runs of several
    lengths: the one of most rounds is shown.
    """
    found: dict[tuple[str, str], Share] = {}
    for share in shares:
        key = (share.setting, share.label)
        if not share.dense and (key not in found or share.rounds > found[key].rounds):
            found[key] = share
    # Numbers in order of size: 64, 512 and then 1,024 output tokens.
    names = sorted(
        {key[0] for key in found},
        key=lambda name: [
            (int(part), "") if part.isdigit() else (0, part)
            for part in re.split(r"(\d+)", name.replace(",", ""))
        ],
    )
    settings = {name: place for place, name in enumerate(names)}
    return sorted(
        found.values(),
        key=lambda share: (settings[share.setting], share.value is None, -(share.value or 0)),
    )
