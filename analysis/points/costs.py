"""Costs of published rows, computed from their token counts (never copied from the tables)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dynllava.costs.conventions import eq13_decode_tflops, eq13_prefill_tflops
from dynllava.errors import UserError
from dynllava.published import labels

Segments = list[tuple[int, int]]

KV_BYTES_PER_ELEMENT = 2
"""The published models run in half precision."""


@dataclass(frozen=True)
class Size:
    """Hidden size and layers of a published model."""

    hidden: int
    layers: int


SIZES = {"7b": Size(4096, 32), "13b": Size(5120, 40)}


def size_of(name: str) -> Size:
    """Return the size that a row's name states (``...7b...`` or ``...13b...``)."""
    match = re.search(r"(?<![0-9.])(7b|13b)", name)
    if match is None:
        raise UserError(f"{name!r}: the model size is not known (accepted: 7b, 13b)")
    return SIZES[match.group(1)]


def image_segments(method: str, size: Size, image_tokens: int, base: int = 576) -> Segments:
    """Return (layers, image tokens) of a published row.

    Parameters
    ----------
    method : str
        Method with its parameters, e.g. ``"fastv k=3,r=0.75"`` or ``"dynamic_llava I|T"``.
    size : Size
    image_tokens : int
        The row's image tokens after sparsification.
    base : int
        Image tokens before sparsification (144 for TokenPacker).
    """
    dense = labels.image_layers(method)
    return [(dense, base)] * bool(dense) + [(size.layers - dense, image_tokens)]


def prefill_tflops(size: Size, segments: Segments) -> float:
    """Return Eq. 13's TFLOPs of the image tokens."""
    return eq13_prefill_tflops(size.hidden, segments)


def decode_tflops(method: str, size: Size, total: float, computing: float) -> float:
    """Return Eq. 13's TFLOPs of the output tokens.

    Dynamic-LLaVA's first layers compute all output tokens; the static baselines drop them in
    every layer.
    """
    dense = labels.dense_layers(method)
    return eq13_decode_tflops(size.hidden, size.layers, int(total), int(computing), dense)


def output_kv_bytes(method: str, size: Size, total: float, computing: float) -> int:
    """Return the bytes of the keys and values stored for the output tokens."""
    dense = labels.dense_layers(method)
    tokens = dense * int(total) + (size.layers - dense) * int(computing)
    return 2 * size.hidden * KV_BYTES_PER_ELEMENT * tokens


def context_kv_bytes(size: Size, segments: Segments, text: int, outputs: Segments) -> int:
    """Return the bytes of a whole context's keys and values.

    Parameters
    ----------
    size : Size
    segments, outputs : list of (int, int)
        (layers, image tokens) and (layers, output tokens).
    text : int
        Text tokens of the prompt, stored in every layer.
    """
    tokens = sum(layers * count for layers, count in [*segments, *outputs])
    return 2 * size.hidden * KV_BYTES_PER_ELEMENT * (tokens + size.layers * text)


def mean_tokens(segments: Segments) -> float:
    """Return the mean image tokens processed per layer."""
    return sum(layers * count for layers, count in segments) / sum(item[0] for item in segments)
