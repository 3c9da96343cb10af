"""The one table over methods: what the invariant matrix runs, and named exceptions.

``exceptions`` maps an invariant to the reason why it cannot hold and the test that replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MethodCase:
    id: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    keep_everything: dict[str, Any] | None = None
    exceptions: dict[str, str] = field(default_factory=dict)


EVICTION = {
    "cached = uncached": "evicts per head from what was stored: no cache, no eviction; "
    "tests/methods compares each step with a plain stepwise reference",
    "schedule without a cache": "runs with a cache only",
}
RERANK = {
    "cached = uncached": "re-ranks with each step's query; without a cache the prompt's last row "
    "ranks; the golden mask_cache recordings replace this",
}
REPRUNE = {
    name: "runs without a cache only (re-prunes at every call): batching and generation are in "
    "tests/methods/test_selection.py, the calls in the golden no-cache recordings"
    for name in (
        "batched generation = one by one",
        "cached = uncached",
        "eager = sdpa",
        "schedule = lengths seen",
        "scoring = stepwise decoding",
        "no host synchronisation",
        "beam search",
        "growth",
        "second turn",
        "sampling and streaming",
        "schedule without a cache",
        "batched = one by one",
        "bfloat16 close to float32",
    )
}

RANK = {
    name: "its counts depend on the prompt, so the declared schedule is an estimate; the lengths "
    "seen are compared with the official recordings (golden rank.layer_seq_len) instead"
    for name in ("schedule = lengths seen", "schedule without a cache")
}

VOCO = {
    name: "the closed form needs to know where the learned tokens are; "
    "tests/methods/test_voco_llama.py compares counts of shapes that say so"
    for name in ("schedule = lengths seen",)
}

ADAPTIVE = {
    name: "its count depends on the image, so the declared schedule is an estimate; "
    "tests/methods/test_vision_side.py compares the realised one"
    for name in ("schedule = lengths seen", "schedule without a cache")
}

CASES = [
    MethodCase("full", "full", {}, {}),
    MethodCase(
        "dynamic_llava-I|T",
        "dynamic_llava",
        {"vision_keep_rate": 0.3},
        {"vision_keep_rate": 1.0, "output_keep_rate": 1.0},
    ),
    MethodCase(
        "dynamic_llava-I", "dynamic_llava", {"vision_keep_rate": 0.5, "output_keep_rate": 1.0}
    ),
    MethodCase("dynamic_llava-T", "dynamic_llava", {"vision_keep_rate": 1.0}),
    MethodCase("dynamic_llava-layer0", "dynamic_llava", {"sparse_layer": 0}),
    MethodCase(
        "random",
        "random",
        {"output_keep_rate": 0.5, "image_keep_rate": 0.4, "layer": 1},
        {"output_keep_rate": 1.0, "image_keep_rate": 1.0},
    ),
    MethodCase("random-output", "random", {"output_keep_rate": 0.5, "layer": 0}),
    MethodCase("structure", "structure", {"layer": 0}),
    MethodCase(
        "uniform", "uniform", {"image_keep_rate": 0.3, "layer": 2}, {"image_keep_rate": 1.0}
    ),
    MethodCase("no_image", "no_image", {"layer": 2}),
    MethodCase("no_image-layer0", "no_image", {"layer": 0}),
    MethodCase("pool", "pool", {"rows": 2, "columns": 3}, {"rows": 4, "columns": 4}),
    MethodCase("downsample", "downsample", {"rows": 3, "columns": 2}, {"rows": 4, "columns": 4}),
    MethodCase("fastv", "fastv", {"k": 2, "keep_ratio": 0.5}, {"k": 2, "keep_ratio": 1.0}),
    MethodCase(
        "fastv-rerank", "fastv", {"k": 2, "keep_ratio": 0.5, "decoder": "rerank"}, None, RERANK
    ),
    MethodCase(
        "fastv-reprune", "fastv", {"k": 2, "keep_ratio": 0.5, "decoder": "reprune"}, None, REPRUNE
    ),
    MethodCase(
        "pyramiddrop",
        "pyramiddrop",
        {"layers": "1/2/4", "ratios": "0.6/0.3/0.1"},
        {"layers": "1/2/4", "ratios": "1/1/1"},
    ),
    MethodCase(
        "pyramiddrop-original",
        "pyramiddrop",
        {"layers": "0/3", "ratios": "0.5/0", "positions": "original"},
    ),
    MethodCase("voco_llama", "voco_llama", {"token_id": 54}, {"token_id": 0}, VOCO),
    MethodCase("fastervlm", "fastervlm", {"keep_ratio": 0.4}, {"keep_ratio": 1.0}),
    MethodCase("visionzip", "visionzip", {"keep_ratio": 0.5, "positions": "original"}),
    MethodCase("divprune", "divprune", {"keep_ratio": 0.3}, {"keep_ratio": 1.0}),
    MethodCase("vispruner", "vispruner", {"keep": 6, "important_ratio": 0.4}, {"keep_ratio": 1.0}),
    MethodCase("prumerge+", "prumerge", {"plus": True, "ratio": 0.2, "positions": "original"}),
    MethodCase("prumerge+-adaptive", "prumerge", {"plus": True}, None, ADAPTIVE),
    MethodCase("hired", "hired", {"keep_ratio": 0.3}, {"keep_ratio": 1.0}),
    MethodCase("sparsevlm-1.5", "sparsevlm", {"pruning_layers": "1/3", "budgets": "8/4"}),
    MethodCase(
        "sparsevlm-2.0",
        "sparsevlm",
        {"version": "2.0", "pruning_layers": "1/3", "budgets": "8/4", "priority_heads": 2},
    ),
    MethodCase(
        "sparsevlm-rank",
        "sparsevlm",
        {"version": "rank", "pruning_layers": "1/3", "scale": 2.0},
        None,
        RANK,
    ),
    MethodCase(
        "h2o", "h2o", {"heavy": 0.25, "recent": 0.25}, {"heavy": 1.0, "recent": 1.0}, EVICTION
    ),
    MethodCase(
        "h2o-rolled", "h2o", {"heavy": 0.25, "recent": 0.25, "position": "rolled"}, None, EVICTION
    ),
    MethodCase(
        "fastv+h2o",
        "fastv+h2o",
        {"fastv_k": 2, "fastv_keep_ratio": 0.5, "h2o_heavy": 0.25, "h2o_recent": 0.25},
        None,
        EVICTION,
    ),
]
