"""Which methods a command, a study or a figure takes where nobody names any, and with what."""

from __future__ import annotations

from typing import Any

from dynllava.plan.names import FULL, LEARNED

MEASURED = (FULL, LEARNED, "fastv", "sparsevlm", "h2o")
"""Timed by ``dynllava bench``, the speed suites and the GPU campaign."""

LARGE_SHAPE = (LEARNED, "fastv", "visionzip", "pyramiddrop")
"""Held to a share of their counted saving at the large shape."""

LOOKING = ("visionzip", "vispruner", "prumerge", "fastervlm", "hired", "divprune")
"""Choose before layer 0; their looks and choices are timed beside the tower."""

COMPARED = (FULL, LEARNED)
"""``dynllava compare``."""

DEMO = (LEARNED, "fastv", "sparsevlm", "h2o", "uniform", "no_image")
"""``dynllava demo``, besides the dense model."""

DEMO_PARAMETERS: dict[str, dict[str, Any]] = {"fastv": {"k": 2}}
"""At the defaults of larger models these cut too late for a model of six layers."""

SERVED = ("fastervlm", "divprune", "uniform:layer=0")
"""``dynllava serve-check``, besides the dense model: three that choose before layer 0."""

SERVED_TIMED = ("divprune",)
"""Of those, what is timed."""

CONTROL = "random"
"""The method that draws: what a selection must beat."""

BLIND: tuple[str, dict[str, Any]] = ("no_image", {"layer": 0})
"""The run that never sees the image."""

KV_GROWTH: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (FULL, "Dense", {}),
    ("fastv", "FastV k=3, keep 25 %", {"k": 3, "keep_ratio": 0.25}),
    ("sparsevlm", "SparseVLM", {}),
    ("h2o", "H2O", {}),
    ("structure", "Structure", {}),
    (LEARNED, "Dynamic-LLaVA", {}),
)
"""(method, label, parameters) whose caches the figure of KV growth draws."""


def learned(rate: float, layer: int, output_rate: float = 1.0) -> dict[str, Any]:
    """Return the parameters with which the predictors keep these shares from ``layer`` on."""
    return {"sparse_layer": layer, "vision_keep_rate": rate, "output_keep_rate": output_rate}


def image_controls(rate: float, layer: int) -> dict[str, dict[str, Any]]:
    """Return what the learned choice of image tokens is compared with, at one budget."""
    static = {"image_keep_rate": rate, "layer": layer}
    return {"fastv": {"k": layer, "keep_ratio": rate}, CONTROL: static, "uniform": static}


def output_controls(rate: float, layer: int) -> dict[str, dict[str, Any]]:
    """Return what the learned choice of output tokens is compared with."""
    return {CONTROL: {"layer": layer, "output_keep_rate": rate}, "structure": {"layer": layer}}
