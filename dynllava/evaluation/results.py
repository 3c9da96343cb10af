"""From lmms-eval's results of one task to scores, per-sample rows and counted costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dynllava.costs import flops, ledger, realised
from dynllava.costs.spec import ModelSpec
from dynllava.methods.base import Method
from dynllava.records import Counted, Score
from dynllava.tasks.loading import LoadedTask

from .statistics import Sample, category_mean_f1, read_sample, standard_error

_MEANS = {
    "input_tokens": "token",
    "output_tokens": "token",
    "image_tokens": "token",
    "image_tokens_kept": "token",
    "kv_entries": "entry",
    "kv_bytes": "byte",
    "forced_kv_entries": "entry",
    "forced_kv_bytes": "byte",
}

_ANY_TEXT = 64
"""Text tokens assumed for image tokens per layer, which do not depend on them."""


def logged_samples(result: dict[str, Any], task: LoadedTask) -> list[dict[str, Any]]:
    """Return what lmms-eval logged, in the order of the data set whatever the launch."""
    return sorted(result["samples"][task.task.config.task], key=lambda item: item["doc_id"])


def scores(
    result: dict[str, Any], task: LoadedTask, logged: Sequence[dict[str, Any]]
) -> dict[str, Score]:
    """Return every numeric metric with its standard error and number of samples."""
    found = {}
    for key, value in result["results"][task.task.config.task].items():
        metric, comma, _ = key.partition(",")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not comma or "_stderr" in metric or not number or not math.isfinite(value):
            continue
        samples = samples_of(task, metric, logged)
        error = standard_error(samples, _estimator(task, metric), task.scale or 1)
        found[metric] = Score(float(value), error, len(samples) or len(logged))
    if task.benchmark and task.benchmark.logged:
        # A metric of ours over samples that lmms-eval logged for one of its own.
        samples = samples_of(task, task.metric, logged)
        value = category_mean_f1(samples)
        error = standard_error(samples, "f1_categories")
        found[task.metric] = Score(value, error, len(samples))
    return found


def samples_of(task: LoadedTask, metric: str, logged: Sequence[dict[str, Any]]) -> list[Sample]:
    """Return the samples that take part in ``metric``, each with its cluster.

    Where the data set names no cluster, samples of one image form one.
    """
    cluster = task.benchmark.cluster if task.benchmark else "image_id"
    key = metric
    if task.benchmark and task.benchmark.logged and metric == task.benchmark.metric:
        key = task.benchmark.logged
    read = (read_sample(item, key, _estimator(task, metric), cluster) for item in logged)
    items = [item for item in read if item is not None]
    if all(item.cluster is not None for item in items):
        return items
    images = task.image_ids(max(item.doc_id for item in items) + 1)
    return [
        replace(item, cluster=images[item.doc_id]) if item.cluster is None else item
        for item in items
    ]


def _estimator(task: LoadedTask, metric: str) -> str:
    found = task.benchmark
    return found.estimator if found and metric in (found.metric, found.logged) else "mean"


def rows(task: LoadedTask, logged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one plain row per document for the samples file."""
    by_id = {item.doc_id: item for item in samples_of(task, task.metric, logged)}
    found = []
    for item in logged:
        sample = by_id.get(item["doc_id"])
        arguments = item.get("arguments") or [None]
        found.append(
            {
                "doc_id": item["doc_id"],
                "score": sample.score if sample else None,
                "cluster": sample.cluster if sample else None,
                "question": arguments[0],
                "target": item["target"],
                "answer": item["filtered_resps"],
                "costs": _merged_costs(item),
            }
        )
    return found


def _merged_costs(item: dict[str, Any]) -> dict[str, float]:
    """Return a document's token counts, averaged over its requests."""
    counts = [entry for entry in item.get("token_counts") or [] if entry]
    names = dict.fromkeys(name for entry in counts for name in entry)
    return {name: math.fsum(entry.get(name, 0) for entry in counts) / len(counts) for name in names}


def counted(
    rows: Sequence[dict[str, Any]], method: Method, spec: ModelSpec | None
) -> dict[str, Counted]:
    """Return the costs of a mean sample: observed by the model, and counted by the ledger.

    The ledger counts at the mean prompt and answer length of the task, with the realised share
    of kept output tokens, and the realised mean of image tokens where the image sets their number.
    """
    means = {}
    for name in _MEANS:
        values = [row["costs"][name] for row in rows if name in row["costs"]]
        if values:
            means[name] = math.fsum(values) / len(values)
    found = {name: _reported(name, value) for name, value in means.items()}
    fed = math.fsum(row["costs"].get("output_tokens_fed", 0) for row in rows)
    kept = math.fsum(row["costs"].get("output_tokens_kept", 0) for row in rows)
    if fed:
        found["output_keep_rate"] = Counted(kept / fed, "1", "realised", "generation")
    if spec is not None:
        found |= _ledger(means, kept / fed if fed else None, method, spec)
    return found


def _reported(name: str, value: float) -> Counted:
    if name.startswith("forced"):
        return Counted(value, _MEANS[name], "mean per sample, after the reference answer", "forced")
    return Counted(value, _MEANS[name], "mean per sample, reported by the model", "generation")


def _ledger(
    means: dict[str, float], keep_rate: float | None, method: Method, spec: ModelSpec
) -> dict[str, Counted]:
    """Return what the schedule says; FLOPs only where the prompt's length is known."""
    known = "input_tokens" in means
    about = "at the mean prompt length"
    if spec.family is not None:
        if "image_tokens" not in means:
            return {}
        # Pictures differ in size: the mean number of their tokens, and no tower.
        tokens = round(means.get("image_tokens", 0))
        spec, about = replace(spec, vision=None, image_tokens=tokens), f"{about}, without the tower"
    text = round(means["input_tokens"]) - spec.image_tokens if known else _ANY_TEXT
    if text < 1:
        return {}
    outputs = max(1, round(means.get("output_tokens", 1)))
    seen = means.get("image_tokens_kept")
    adaptive = realised.adapts(method, spec.dims.layers)
    if adaptive and seen is None:
        # Its estimate is about other pictures.
        return {}
    if adaptive:
        method = realised.Realised(method, round(seen or 0))
    run = ledger.Run(spec, method, spec.prompt(text), outputs)
    if keep_rate is not None and any(run.schedule.drops_output):
        run = run.realised(output_keep=keep_rate)
    image = ledger.image_tokens_per_layer(run)
    value, origin = (seen, "realised") if adaptive else (sum(image) / len(image), "declared")
    found = {
        "mean_image_tokens": Counted(
            float(value or 0), "token", f"mean over decoder layers, {origin}", "prefill"
        )
    }
    modes = ("prefill", "decode") if outputs > 1 else ("prefill",)
    for mode in modes if known else ():
        macs = ledger.total(ledger.entries(run, mode))
        found[f"{mode}_flops"] = Counted(
            flops.FLOPS_PER_MAC * macs, "FLOP", f"counted {about}", mode
        )
    return found
