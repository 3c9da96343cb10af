"""What every method promises, as plain values: schedules, operations, KV lengths, budgets.

``python tests/core/plan_entries.py FILE`` writes the frozen copy; the tests compare with it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

from method_cases import CASES

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.budget import solve
from dynllava.plan import ModelDims, PromptShape

DEPTHS = (6, 18, 32, 40)
#: (text before, image, text after)
SHAPES = ((35, 576, 40), (5, 144, 51), (5, 57, 20), (9, 100, 0), (4, 1, 1), (60, 0, 0))
#: Beside the cases of the invariant matrix: defaults, published settings, compositions.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {})
        for name in (
            "dynamic_llava", "fastv", "h2o", "random", "sparsevlm", "structure", "uniform",
            "no_image",
        )
    },
    "fastv-keep": ("fastv", {"k": 3, "keep": 144}),
    "sparsevlm-128": ("sparsevlm", {"retain": 128}),
    "sparsevlm-2.0-64": ("sparsevlm", {"version": "2.0", "retain": 64}),
    "sparsevlm-rank-default": ("sparsevlm", {"version": "rank"}),
    "h2o-counts": ("h2o", {"heavy": 48, "recent": 16, "first_full_layers": 2}),
    "h2o-prefill": ("h2o", {"heavy": 0.1, "recent": 0.1, "phase": "prefill+decode"}),
    "sparsevlm+h2o": ("sparsevlm+h2o", {"h2o_first_full_layers": 2}),
    "fastv+structure": ("fastv+structure", {"fastv_k": 2, "structure_layer": 2}),
    "pyramiddrop-default": ("pyramiddrop", {}),
    "pyramiddrop-13b": ("pyramiddrop", {"strict_official": True}),
    "voco_llama-default": ("voco_llama", {}),
    "random+h2o": ("random+h2o", {"random_image_keep_rate": 0.4}),
}  # fmt: skip
OUTPUTS = (0, 1, 2, 9, 64)
BUDGETED = {
    "dynamic_llava": {}, "fastv": {"k": 2}, "random": {}, "uniform": {"layer": 1},
    "sparsevlm": {}, "h2o": {}, "pyramiddrop": {"layers": "1/3/5"},
    "fastv+h2o": {"fastv_k": 2, "h2o_heavy": 0.4},
}  # fmt: skip
SHARES = (0.7, 1 / 3)


def dims(layers: int) -> ModelDims:
    """Return sizes of a LLaVA-1.5 of other depths."""
    return ModelDims(layers, 4096, 32, 32, 128, 11008, 32064)


def runs(values: Any) -> list[list[Any]]:
    """Return [value, how often in a row] pairs."""
    return [[value, len(list(group))] for value, group in itertools.groupby(values)]


def entry(method: Any, shape: Any, layers: int) -> dict[str, Any] | None:
    """Return what a method promises for one prompt and depth, None where it refuses them."""
    try:
        schedule = method.schedule(shape, layers)
    except UserError:
        return None
    grouped: dict[tuple, list[int]] = {}
    for op in method.overhead(shape, dims(layers)):
        key = (op.phase, op.component, op.name, op.m, op.k, op.n, op.count)
        grouped.setdefault(key, []).append(op.layer)
    return {
        "rows": runs(schedule.prefill_rows),
        "kv": runs(schedule.prefill_kv),
        "drops": runs(schedule.drops_output),
        "limit": runs(schedule.kv_limit),
        "output_keep": schedule.output_keep,
        "kv_lengths": [sum(schedule.kv_lengths(outputs)) for outputs in OUTPUTS],
        "nocache_rows": [sum(schedule.nocache_rows(outputs)) for outputs in OUTPUTS],
        "operations": [[*key, [min(on), max(on)], len(on)] for key, on in sorted(grouped.items())],
    }


def budget(name: str, goal: float, shape: PromptShape, layers: int) -> dict[str, Any] | None:
    """Return what a budget of image tokens leaves in each layer, None where it is refused."""
    try:
        solved = solve(name, goal, shape, layers, **BUDGETED[name])
    except UserError:
        return None
    schedule = create(name, **solved).schedule(shape, layers)
    return {"rows": runs(schedule.prefill_rows), "kv": runs(schedule.prefill_kv)}


def entries() -> Iterator[tuple[str, Any]]:
    """Yield (key, entry) for every case, depth and prompt shape."""
    cases = {case.id: (case.name, case.parameters) for case in CASES}
    cases.update({f"{key} (more)": value for key, value in MORE.items()})
    for depth, numbers in itertools.product(DEPTHS, SHAPES):
        shape = PromptShape(*numbers)
        where = f"{depth} layers, {'-'.join(map(str, numbers))}"
        for key, (name, parameters) in cases.items():
            yield f"{key}, {where}", entry(create(name, **parameters), shape, depth)
        if shape.image < 2:
            continue
        for name, share in itertools.product(BUDGETED, SHARES):
            key = f"budget {name} {share:.2f}, {where}"
            yield key, budget(name, share * shape.image, shape, depth)


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries()]
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
