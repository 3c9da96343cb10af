"""Load a checkpoint of another family with stock transformers and wrap it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.output.files import read_json_object, reason

from .families import FAMILIES
from .hub import locate
from .wrapping import wrap

#: Families whose checkpoints have a loader of their own (LLaVA-1.5's several formats).
OWN_LOADER = ("llava",)


def is_stock_family(pretrained: str | Path) -> bool:
    """Return whether a folder or hub name is of a family that stock transformers loads."""
    config = locate(pretrained).folder / "config.json"
    if not config.is_file():
        return False
    kind = read_json_object(config).get("model_type")
    return kind in FAMILIES and kind not in OWN_LOADER


def load_stock(
    pretrained: str | Path,
    method: str | Method,
    parameters: dict[str, Any],
    dtype: torch.dtype,
    kernel: str,
    device: str | torch.device,
    device_map: str | dict[str, Any] | None,
) -> tuple[Any, Any]:
    """Return a wrapped model in eval mode, and its processor (None if there is no tokenizer).

    Parameters are those of :func:`dynllava.models.loading.load_model`.

    Raises
    ------
    UserError
        If transformers cannot read the checkpoint.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        stock = AutoModelForImageTextToText.from_pretrained(
            str(pretrained), dtype=dtype, attn_implementation=kernel, device_map=device_map
        )
    except Exception as error:
        # Files of any content are parsed by libraries with error classes of their own.
        raise UserError(f"{pretrained}: cannot be loaded ({reason(error)})") from None
    if device_map is None:
        stock.to(device)
    model = wrap(stock.eval(), method, **parameters)
    try:
        processor = AutoProcessor.from_pretrained(str(pretrained))
        processor.tokenizer.padding_side = "left"
    except Exception:
        # A folder of weights alone, as save_pretrained of a model writes it.
        processor = None
    return model, processor
