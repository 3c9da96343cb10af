"""Checks of what a checkpoint holds: sizes that make sense, tensors, finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError
from dynllava.output.files import reason

if TYPE_CHECKING:
    import torch

LARGEST = {
    "num_hidden_layers": 1_000,
    "num_layers": 100,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 4_096,
    "num_key_value_heads": 4_096,
    "head_dim": 8_192,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**30,
    "image_size": 2**14,
    "patch_size": 2**12,
    "num_channels": 1_024,
    "projection_dim": 2**17,
    "d_model": 2**17,
    "nhead": 4_096,
    "dim_feedforward": 2**20,
}
"""Configuration key -> largest size that is taken for one: building a model of a million layers
would not end."""


def check_sizes(values: dict[str, Any], where: Any) -> None:
    """Raise :class:`UserError` for a size in a ``config.json`` that is no size.

    Parameters
    ----------
    values : dict
        The configuration; ``text_config``, ``vision_config`` and ``sparse_config`` are looked
        into.  A key that is missing or null is left to its default.
    where : str or Path
        For the message.
    """
    for section in ("text_config", "vision_config", "sparse_config"):
        inner = values.get(section)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise UserError(f"{where}: {section} is no object")
        check_sizes(inner, f"{where}: {section}")
    for key, largest in LARGEST.items():
        value = values.get(key)
        if value is None:
            continue
        integer = isinstance(value, int) and not isinstance(value, bool)
        if not integer or not 1 <= value <= largest:
            raise UserError(f"{where}: {key}={value!r}: accepted is an integer from 1 to {largest}")
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if heads and hidden and hidden % heads:
        raise UserError(f"{where}: hidden_size={hidden} is no multiple of {heads} heads")
    image, patch = values.get("image_size"), values.get("patch_size")
    if image and patch and image < patch:
        raise UserError(f"{where}: image_size={image} is smaller than patch_size={patch}")


def build_config(kind: Any, values: dict[str, Any], where: Any) -> Any:
    """Return ``kind(**values)``, or raise :class:`UserError` where the values do not make one."""
    check_sizes(values, where)
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:
        # transformers checks each field in a way (and with an error class) of its own.
        raise UserError(f"{where}: not a model configuration ({reason(error)})") from None


def check_tensors(part: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one weight file; refuse anything else, and integer weights."""
    import torch

    if not isinstance(part, dict):
        raise UserError(f"{path}: holds a {type(part).__name__}, tensors by name are expected")
    for name, tensor in part.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {name!r} is a {type(tensor).__name__}, a tensor is expected")
        counter = name.endswith(("position_ids", "num_batches_tracked"))
        if not tensor.is_floating_point() and not counter:
            raise UserError(
                f"{path}: tensor {name!r} is of {str(tensor.dtype).removeprefix('torch.')}; "
                "accepted are floating-point weights (quantised checkpoints are not supported)"
            )
    return part


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: Any) -> None:
    """Raise :class:`UserError` naming the first tensor that holds NaN or infinities.

    A model with such weights still answers, with the same token for every question, so that its
    score looks like a bad model's.
    """
    import torch

    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        # The least and the largest value are finite only if all are; no copy of the tensor.
        low, high = torch.aminmax(tensor.detach())
        if not (math.isfinite(low) and math.isfinite(high)):
            count = int((~torch.isfinite(tensor)).sum())
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{where}: tensor {name!r} holds {count} values of {tensor.numel()} that are no "
                f"finite numbers in {kind}",
                1,
            )
