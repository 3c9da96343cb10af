"""Run records as :class:`Point`: one per model, method and budget, over all its tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from dynllava.methods import learned
from dynllava.methods.parameters import render
from dynllava.methods.titles import Named, titles
from dynllava.records import RunRecord
from dynllava.records.reading import Stored, cluster_key, configuration, latest
from dynllava.tasks import registry

from . import names as benchmarks
from .evidence import caveat
from .seeds import merge
from .values import Cost, Point, Value

_COUNTED = {
    "prefill_flops": ("prefill_flops",),
    "decode_flops": ("decode_flops",),
    "prefill_eq13": ("prefill_eq13",),
    "decode_eq13": ("decode_eq13",),
    "kv_bytes": ("forced_kv_bytes", "kv_bytes"),
    "image_tokens": ("mean_image_tokens",),
}
_MEASURED = {"ttft": ("ttft", "time_to_first_token"), "tpot": ("tpot", "time_per_output_token")}
_TO_UNIT = {
    ("prefill_flops", "MAC"): 2e-12, ("prefill_flops", "FLOP"): 1e-12,
    ("decode_flops", "MAC"): 2e-12, ("decode_flops", "FLOP"): 1e-12,
    ("prefill_eq13", "FLOP"): 1e-12, ("decode_eq13", "FLOP"): 1e-12,
    ("kv_bytes", "byte"): 2**-20, ("image_tokens", "token"): 1.0,
    ("ttft", "s"): 1e3, ("ttft", "ms"): 1.0, ("tpot", "s"): 1e3, ("tpot", "ms"): 1.0,
}  # fmt: skip


def measured_points(stored: Iterable[Stored], *, samples: bool = True) -> list[Point]:
    """Return one point per evaluated model, method and budget.

    Parameters
    ----------
    stored : iterable of Stored
    samples : bool
        Read the samples files too (for paired tests).

    Bench and profile records add costs to the points of their model and method.
    """
    groups: dict[str, list[Stored]] = {}
    others = []
    for item in latest(stored):
        if item.record.kind == "evaluation":
            groups.setdefault(json.dumps(configuration(item.record)), []).append(item)
        elif item.record.kind in ("bench", "profile"):
            others.append(item)
    draws: dict[str, list[Point]] = {}
    named = curves(items[0].record for items in groups.values())
    for items, curve in zip(groups.values(), named, strict=True):
        first = items[0].record
        costs = [item.record for item in others if _joins(item.record, first)]
        point = _point(items, curve, costs, samples)
        unseeded = replace(
            first, method=replace(first.method, parameters=first.method.without_seed())
        )
        draws.setdefault(json.dumps(configuration(unseeded)), []).append(point)
    figures = {}
    if samples:
        # Imported here because that module reads samples with this one.
        from ..report.beside_accuracy import beside_accuracy

        figures = beside_accuracy(item for items in groups.values() for item in items)
    return [
        replace(merge(points), beside=figures[key].texts() if key in figures else ())
        for key, points in draws.items()
    ]


def _joins(cost: RunRecord, evaluation: RunRecord) -> bool:
    """Return whether a bench or profile record is of an evaluation's model and method.

    Speed is taken at batch 1; the stock dense model stands for ``full``.
    """
    if cost.kind == "bench" and not (cost.task and cost.task.name.startswith("speed-b1-")):
        return False
    if (cost.model.name, cost.method.name) != (evaluation.model.name, evaluation.method.name):
        return False
    return cost.method.is_dense or cost.method.parameters == evaluation.method.parameters


def _point(items: list[Stored], curve: str, others: list[RunRecord], samples: bool) -> Point:
    record = items[0].record
    scores, per_sample, clusters = {}, {}, {}
    costs: dict[str, list[Cost]] = {}
    forced = any("forced_kv_bytes" in item.record.counted for item in items)
    for item in items:
        task = item.record.task
        if task is not None and task.metric is not None:
            name = benchmarks.canonical(task.name)
            scores[name] = _score(item.record)
            if samples:
                scored = item.scored_samples()
                per_sample[name] = {key: sample.score for key, sample in scored.items()}
                clusters[name] = {
                    key: cluster_key(name, key, sample.cluster) for key, sample in scored.items()
                }
        for axis, cost in record_costs(item.record).items():
            # Caches compare after the same outputs; after its own, a method that says more
            # stores more.
            if axis != "kv_bytes" or not forced or "forced_kv_bytes" in item.record.counted:
                costs.setdefault(axis, []).append(cost)
    # Costs at a run's own prompts and answers come first; bench and profile fill the gaps.
    for other in others:
        for axis, cost in record_costs(other).items():
            costs.setdefault(axis, [cost])
    # A checkpoint with trained predictors is compared with the model it was made from.
    model = record.model.name.rstrip("/").rpartition("/")[2].removesuffix("-dynamic")
    return Point(
        "measured",
        "own runs",
        model,
        curve + _weights(record),
        _label(record, curve),
        scores,
        {axis: _mean(values) for axis, values in costs.items()},
        {name: value for name, value in per_sample.items() if value},
        record.model.weights or "",
        clusters=clusters,
        caveat=caveat(record),
        method=render(record.method.name, record.method.parameters),
    )


def curves(records: Iterable[RunRecord]) -> list[str]:
    """Return the curve of each record: its method, told apart from others of the same name."""
    return titles(
        [Named(item.method.name, item.method.parameters, item.method.budget) for item in records],
        shares=False,
    )


def _weights(record: RunRecord) -> str:
    """Return what a curve's name ends with on tuned weights without need."""
    tuned = record.model.weights == "tuned" and not learned(record.method.name)
    return ", tuned weights" if tuned else ""


def _label(record: RunRecord, curve: str) -> str:
    """Return a label that also tells a record from those of other runs."""
    label, name = record.method.shown, record.method.name
    if label.startswith(curve) or not label.startswith(name):
        return label
    return curve + label.removeprefix(name)


def _score(record: RunRecord) -> Value:
    task = record.task
    assert task is not None
    score = record.scores[task.metric or ""]
    # As published: percent, but MME and perplexity in their own units.
    factor = 100 if task.scale == 1 else 1
    stderr = None if score.stderr is None else factor * score.stderr
    perfect = None if task.scale is None else factor * task.scale
    name = benchmarks.canonical(task.name)
    benchmark = registry.BENCHMARKS.get(name)
    caution = benchmark.caution(task.prompts) if benchmark else ""
    value = factor * score.value
    protocol = json.dumps([task.split, task.prompts, task.dataset_hash])
    return Value(
        value, stderr, score.n, task.higher_is_better, perfect, caution=caution, protocol=protocol
    )


def record_costs(record: RunRecord) -> dict[str, Cost]:
    """Return the costs of one record by axis, in the axis' unit."""
    found: dict[str, Cost] = {}
    for axis, names in _COUNTED.items():
        counted = next((record.counted[name] for name in names if name in record.counted), None)
        factor = None if counted is None else _TO_UNIT.get((axis, counted.unit))
        if counted is not None and factor:
            note = f"{counted.convention}, {counted.mode}"
            found[axis] = Cost(counted.value * factor, note)
    for axis, keys in _MEASURED.items():
        timed = next((record.measured[name] for name in keys if name in record.measured), None)
        scale = None if timed is None else _TO_UNIT.get((axis, timed.unit))
        if timed is not None and scale:
            note = f"median of {timed.repeats} on {record.environment.device or 'unknown device'}"
            spread = None if timed.iqr is None else timed.iqr * scale
            found[axis] = Cost(timed.median * scale, note, spread)
    return found


def _mean(values: list[Cost]) -> Cost:
    """Return the mean over tasks, which differ in prompt and answer lengths."""
    if len(values) == 1:
        return values[0]
    value = sum(item.value for item in values) / len(values)
    return Cost(value, f"{values[0].note}; mean over {len(values)} records", values[0].spread)
