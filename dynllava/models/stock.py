"""Load a checkpoint of another family with stock transformers and wrap it."""

from __future__ import annotations

from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.output.files import reason

from .family_processors import load_family_processor
from .layouts import Checkpoint, check_methods, download
from .sanity import check_finite
from .wrapping import wrap

_SHOWN = 3


def load_stock(
    checkpoint: Checkpoint,
    method: str | Method,
    parameters: dict[str, Any],
    dtype: torch.dtype,
    kernel: str,
    device: str | torch.device,
    device_map: str | dict[str, Any] | None,
    image_backend: str = "pil",
) -> tuple[Any, Any]:
    """Return a wrapped model in eval mode, and its processor (None if there is no tokenizer).

    Parameters are those of :func:`dynllava.models.loading.load_model`.

    Raises
    ------
    UserError
        If transformers cannot read the checkpoint, or tensors are missing or no numbers.
    """
    from transformers import AutoModelForImageTextToText

    check_methods(checkpoint, [method if isinstance(method, str) else method.name])
    folder = download(checkpoint).require().folder
    try:
        stock, loaded = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation=kernel,
            device_map=device_map,
            output_loading_info=True,
        )
    except Exception as error:
        # Files of any content are parsed by libraries with error classes of their own.
        raise UserError(f"{folder}: cannot be loaded ({reason(error)})") from None
    missing = sorted(loaded["missing_keys"])
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            f"{folder}: the weights lack {', '.join(missing[:_SHOWN])}{more}; download them again"
        )
    check_finite(stock.state_dict().items(), folder)
    if device_map is None:
        stock.to(device)
    model = wrap(stock.eval(), method, **parameters)
    return model, load_family_processor(folder, checkpoint.model_type, image_backend)
