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
    MethodCase("random-output", "random", {"output_keep_rate": 0.5}),
    MethodCase("structure", "structure", {"layer": 0}),
    MethodCase(
        "uniform", "uniform", {"image_keep_rate": 0.25, "layer": 2}, {"image_keep_rate": 1.0}
    ),
    MethodCase("no_image", "no_image", {"layer": 2}),
]
