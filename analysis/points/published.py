"""Published tables as :class:`Point`, one source (study) at a time.

Costs are computed from token counts.  Decode compute and KV cache are those of the paper's
LVIS-VQA (single-round) setting: 56 text tokens and 159 output tokens (tables 3 and 8).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dynllava.published import labels
from dynllava.published import tables as published

from . import costs
from . import names as benchmarks
from .values import Cost, Point, Value

MODELS = ("llava-1.5-7b", "llava-1.5-13b")
SOURCES = (published.PAPER_KEY, published.RESTORE_KEY, published.FASTV_KEY)
_SCORES = (*benchmarks.PAPER12, "mme")
_TEXT_TOKENS, _OUTPUT_TOKENS = 56, 159


def published_points(source: str, model: str) -> list[Point]:
    """Return the points of one study on one model (empty if it has none)."""
    if source == published.RESTORE_KEY:
        return _restore() if model == MODELS[0] else []
    if source == published.FASTV_KEY:
        return _fastv_readme(model)
    points = _understanding(model)
    if model == MODELS[0]:
        points += _keep_rates()
    return points


def _scores(row: dict[str, Any], names: Iterable[str] = _SCORES) -> dict[str, Value]:
    return {name: Value(row[name].value) for name in names if row.get(name) is not None}


def _understanding(model: str) -> list[Point]:
    """Tables 1, 11 and 12, joined by method."""
    extra = {
        row["method"]: _scores(row, ("vizwiz", "mm_vet"))
        for row in published.table(12)
        if row["model"] == model
    }
    points = []
    for number in (1, 11):
        for row in published.table(number):
            if row["model"] != model:
                continue
            variant = row.get("variant") or ""
            label = f"{row['method']} {variant}".strip()
            points.append(
                Point(
                    "published",
                    f"{published.DYNAMIC_LLAVA}, tables 1, 11, 12",
                    model,
                    labels.curve(row["method"], variant),
                    label,
                    _scores(row) | extra.get(label, {}),
                    _row_costs(model, label, row["image_tokens"]) | _latency(model, label),
                )
            )
    return points


def _row_costs(model: str, label: str, tokens: published.Printed | None) -> dict[str, Cost]:
    if tokens is None:
        return {}
    size = costs.size_of(model)
    segments = costs.image_segments(label, size, int(tokens.value))
    return _segment_costs(size, segments, label, _computed_outputs(model, label))


def _computed_outputs(model: str, label: str) -> int:
    """Return how many of the 159 output tokens the sparse layers compute (table 3).

    H2O computes every token; what its table 3 row counts is what the cache keeps.
    """
    if labels.evicts(label):
        return _OUTPUT_TOKENS
    for row in published.table(3):
        if (row["benchmark"], row["model"], row["method"]) == ("lvis_vqa_single", model, label):
            return int(row["computing_tokens_ppl"].value)
    return _OUTPUT_TOKENS


def _segment_costs(
    size: costs.Size, segments: costs.Segments, label: str, computed: int
) -> dict[str, Cost]:
    dense = labels.dense_layers(label)
    outputs = [(dense, _OUTPUT_TOKENS), (size.layers - dense, computed)]
    total: float = costs.context_kv_bytes(size, segments, _TEXT_TOKENS, outputs)
    if labels.evicts(label):
        given = labels.numbers(label)
        full = int(given.get("k", 0))
        total = total * (full + given["r"] * (size.layers - full)) / size.layers
    note = "56 text and 159 output tokens"
    return {
        "prefill_flops": Cost(costs.prefill_tflops(size, segments), "Eq. 13, image tokens"),
        "decode_flops": Cost(
            costs.decode_tflops(label, size, _OUTPUT_TOKENS, computed), "Eq. 13, 159 output tokens"
        ),
        "kv_bytes": Cost(total / 2**20, f"half precision, {note}"),
        "image_tokens": Cost(costs.mean_tokens(segments), "mean over decoder layers"),
    }


def _latency(model: str, label: str) -> dict[str, Cost]:
    for row in published.table(14):
        if (row["model"], row["method"]) == (model, label):
            note = "A100, batch 1, table 14"
            return {
                "ttft": Cost(row["prefill_ms"].value, note),
                "tpot": Cost(row["decode_ms_per_token"].value, note),
            }
    return {}


def _keep_rates() -> list[Point]:
    """Tables 5 and 16: other keep rates of Dynamic-LLaVA-7B I|T."""
    model = MODELS[0]
    size = costs.size_of(model)
    more = {(row["context"], row["keep_rate"].text): row for row in published.table(16)}
    points = []
    for row in published.table(5):
        key = (row["context"], row["keep_rate"].text)
        # Table 1 holds the default rates already; language 0.5 anchors the second curve.
        if labels.is_dense(key[0]) or key == ("vision", "0.2"):
            continue
        segments = costs.image_segments(labels.IMAGE_AND_TEXT, size, int(row["image_tokens"].value))
        computed = int(row["language_tokens_ppl"].value)
        cost = _segment_costs(size, segments, labels.IMAGE_AND_TEXT, computed)
        curve = labels.IMAGE_AND_TEXT
        if key[0] == "language":
            # All have the same prefill: on those axes the first curve says it all.
            cost = {name: cost[name] for name in ("decode_flops", "kv_bytes")}
            curve = f"{labels.IMAGE_AND_TEXT}, output keep rate"
        source = f"{published.DYNAMIC_LLAVA}, tables 1, 11, 12"
        label = f"{labels.IMAGE_AND_TEXT}, {key[0]} keep rate {key[1]} (tables 5, 16)"
        scores = _scores(row) | _scores(more[key])
        points.append(Point("published", source, model, curve, label, scores, cost))
    return points


def _restore() -> list[Point]:
    size = costs.size_of(MODELS[0])
    points = []
    for row in published.restore_budgets():
        tokens = int(row["image_tokens"].value)
        label = row["method"] if tokens == 576 else f"{row['method']} {tokens}"
        cost = _segment_costs(size, [(size.layers, tokens)], label, _OUTPUT_TOKENS)
        cost = {
            name: Cost(item.value, f"{item.note}; from the mean image tokens")
            for name, item in cost.items()
        }
        scores = _scores(row)
        points.append(
            Point("published", published.RESTORE, MODELS[0], row["method"], label, scores, cost)
        )
    return points


def _fastv_readme(model: str) -> list[Point]:
    size = costs.size_of(model)
    points = []
    for row in published.fastv_latency():
        if row["model"] != model:
            continue
        given = labels.numbers(row["method"])
        tokens = round(576 * (1 - given.get("r", 0)))
        segments = costs.image_segments(row["method"], size, tokens)
        cost = _segment_costs(size, segments, row["method"], _OUTPUT_TOKENS)
        seconds = row["time_to_first_token_s"].value
        cost["ttft"] = Cost(1000 * seconds, "A100 80G, FastV README")
        curve = row["method"].split()[0]
        scores = {"aokvqa": Value(row["score"].value)}
        points.append(
            Point("published", published.FASTV, model, curve, row["method"], scores, cost)
        )
    return points if len(points) > 1 else []
