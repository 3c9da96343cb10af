"""How published rows call their methods, and what follows from it.

A label is a method and its setting as a table prints them: ``"fastv k=3,r=0.75"``,
``"dynamic_llava I|T"``, ``"llava-fastv-7b k=3,r=0.75+h2o r=0.5"``.
"""

from __future__ import annotations

import re
from typing import Any

from dynllava.plan.names import FULL, LEARNED

SPARSE_LAYER = 2
"""Dense layers of the published Dynamic-LLaVA models."""

IMAGE_AND_TEXT = f"{LEARNED} I|T"
"""Dynamic-LLaVA that drops image and output tokens."""


def is_dense(name: str) -> bool:
    """Return whether a table's method (or context) column names the unpruned model."""
    return name == FULL


def is_learned(label: str) -> bool:
    """Return whether a row is one of Dynamic-LLaVA."""
    return "dynamic" in label


def evicts(label: str) -> bool:
    """Return whether a row drops cache entries only: every token is computed (H2O)."""
    return "h2o" in label


def cuts_at_its_k(label: str) -> bool:
    """Return whether a row drops image tokens at the layer that ``k`` names (FastV)."""
    return "fastv" in label


def curve(method: str, variant: str) -> str:
    """Return the curve that a row of a method belongs to."""
    if method == LEARNED:
        return f"{method} {variant}"
    return f"{method} (trained)" if "trained" in variant else method


def numbers(text: str | None) -> dict[str, float]:
    """Return the numbers of text such as ``"k=3,r=0.75"`` (empty for None)."""
    return {key: float(value) for key, value in re.findall(r"(\w+)=([0-9.]+)", text or "")}


def dense_layers(label: str) -> int:
    """Return the first layers, which compute all output tokens."""
    return SPARSE_LAYER if is_learned(label) else 0


def image_layers(label: str) -> int:
    """Return the first layers, which process all image tokens."""
    return int(numbers(label)["k"]) if cuts_at_its_k(label) else dense_layers(label)


def kept_image_tokens(label: str, base: int, keep: float) -> int:
    """Return the image tokens that a row of the generation tables keeps.

    Parameters
    ----------
    label : str
        FastV's ``r`` is the share that is removed.
    base : int
        Image tokens before sparsification.
    keep : float
        Keep rate of Dynamic-LLaVA's rows.
    """
    if cuts_at_its_k(label):
        return round(base * (1 - numbers(label.partition("+")[0])["r"]))
    return int(base * keep) if is_learned(label) else base


def method_of(label: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the parameters of the method that a row of the timing tables names.

    FastV's ``r`` is the share of image tokens removed; H2O's ``r`` the share of the cache kept.
    """
    name, _, rest = label.strip().partition(" ")
    given = numbers(rest)
    if name == LEARNED:
        return name, {"output_keep_rate": 0.5 if rest == "I|T" else 1.0}
    if cuts_at_its_k(name):
        return name, {"k": int(given["k"]), "keep_ratio": 1 - given["r"]}
    if evicts(name):
        return name, {"heavy": given["r"] / 2, "recent": given["r"] / 2}
    return name, {}
