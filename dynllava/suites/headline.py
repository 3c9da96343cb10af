"""The lines at the top of the page of speeds: what a user gets, each computed from records."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dynllava.records import Measured, RunRecord
from dynllava.timing.speed import CPU_SUFFIX
from dynllava.timing.targets import KEEPS_ALL, TARGETS, verdict
from dynllava.timing.words import task_in_words

COMPILED = ", compiled"
_SPEED = re.compile(r"speed-b(\d+)-t\d+-i\d+-o(\d+)")


def value_of(record: RunRecord, quantity: str) -> Measured | None:
    """Return a measured quantity, on a CPU in process CPU time."""
    suffix = CPU_SUFFIX if record.environment.device == "cpu" else ""
    return record.measured.get(quantity + suffix) or record.measured.get(quantity)


def headline(records: Sequence[RunRecord]) -> list[str]:
    """Return at most five lines of Markdown; nothing is said that no record holds.

    Parameters
    ----------
    records : sequence of RunRecord
        The newest of every model, task, method and device.
    """
    found = [_prefill(records), _decode(records), _compiled(records), _evaluation(records)]
    return [f"- {line}" for line in (*found, _targets(records)) if line]


def _runs(
    records: Sequence[RunRecord], quantity: str, *, compiled: bool = False
) -> list[tuple[int, int, str, float, RunRecord]]:
    """Return (batch, output tokens, method, median, record) of the methods' speed records."""
    rows = []
    for record in records:
        parts, item = _SPEED.fullmatch(record.task_name), value_of(record, quantity)
        name = record.method.shown
        plain = not record.method.is_dense and KEEPS_ALL not in name
        if parts and item and plain and name.endswith(COMPILED) == compiled:
            rows.append((int(parts[1]), int(parts[2]), name, item.median, record))
    # Of one model on one device, as lines of several would mix: a GPU's where there is one.
    places = [_place(row[4]) for row in rows]
    best = max(places, key=lambda place: ("cuda" in place, places.count(place)), default="")
    return [row for row, place in zip(rows, places, strict=True) if place == best]


def _place(record: RunRecord) -> str:
    return f"{record.model.name}, {record.environment.device}"


def _prefill(records: Sequence[RunRecord]) -> str:
    rows = [row for row in _runs(records, "time_ratio_prefill") if row[1] == 1]
    if not rows:
        return ""
    parts = []
    for batch in sorted({row[0] for row in rows}, reverse=True):
        shown = sorted((ratio, name) for size, _, name, ratio, _ in rows if size == batch)
        texts = ", ".join(f"{name} {ratio:.2f}x" for ratio, name in shown)
        parts.append(f"batch {batch}: {texts}")
    sizes = task_in_words(rows[0][4].task_name, outputs=False).partition(", ")[2]
    return f"**Prefill**, time / dense ({_place(rows[0][4])}; {sizes}): {'; '.join(parts)}."


def _decode(records: Sequence[RunRecord]) -> str:
    rows = [row for row in _runs(records, "time_ratio_decode") if row[1] > 1]
    if not rows:
        return ""
    # The method that was timed at most lengths says what length does.
    batch = max(row[0] for row in rows)
    names = [row[2] for row in rows if row[0] == batch]
    longest = max(dict.fromkeys(names), key=names.count)
    lengths = sorted((row[1], row[3]) for row in rows if row[0] == batch and row[2] == longest)
    texts = ", ".join(f"{ratio:.2f}x over {length:,} tokens" for length, ratio in lengths)
    shortest = min(row[1] for row in rows)
    others = sorted((row[3], row[0]) for row in rows if row[1] == shortest)
    return (
        f"**Decoding with a cache**, step / dense: {longest} at batch {batch} {texts}; all methods "
        f"over {shortest} tokens, any batch: {others[0][0]:.2f}x to {others[-1][0]:.2f}x."
    )


def _compiled(records: Sequence[RunRecord]) -> str:
    rows = _runs(records, "time_ratio_decode", compiled=True)
    eager = {row[:3]: row[3] for row in _runs(records, "time_ratio_decode")}
    pairs = [
        (row[3], eager[key])
        for row in rows
        if (key := (row[0], row[1], row[2].removesuffix(COMPILED))) in eager
    ]
    if not pairs:
        return ""
    fast, slow = sorted(pair[0] for pair in pairs), sorted(pair[1] for pair in pairs)
    return (
        f"**Compiled steps** (`--compile`), step / eager dense: {fast[0]:.2f}x to {fast[-1]:.2f}x "
        f"where the same runs take {slow[0]:.2f}x to {slow[-1]:.2f}x eagerly."
    )


def _evaluation(records: Sequence[RunRecord]) -> str:
    gains: dict[int, list[float]] = {}
    for record in records:
        item = record.measured.get("speedup_over_first_batch")
        batch = re.fullmatch(r"evaluation-.*-b(\d+)", record.task_name)
        if item and batch and int(batch[1]) > 1:
            gains.setdefault(int(batch[1]), []).append(item.median)
    if not gains:
        return ""
    parts = [
        f"batch {size} {min(values):.1f} to {max(values):.1f} times"
        for size, values in sorted(gains.items())
    ]
    return f"**Evaluation**, samples/s against batch 1 (embedded model): {', '.join(parts)}."


def _targets(records: Sequence[RunRecord]) -> str:
    counts = {"reached": 0, "not reached": 0, "open": 0, "not measured": 0}
    for target in TARGETS:
        said = [
            verdict(target, item)
            for record in records
            if record.method.shown == target.method
            and record.model.name.startswith(target.models)
            and target.covers(record.task_name)
            and (item := value_of(record, target.quantity))
        ]
        for text in said or ["none"]:
            kind = {"yes": "reached", "none": "not measured"}.get(text.split(":")[0], "open")
            counts["not reached" if "not reached" in text else kind] += 1
    texts = ", ".join(f"{count} {name}" for name, count in counts.items())
    devices = sorted({record.environment.device or "?" for record in records})
    return f"**Targets**: {texts}. Measured on: {', '.join(devices) or 'nothing'}."
