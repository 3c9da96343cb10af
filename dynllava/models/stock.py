"""Load a checkpoint of another family with stock transformers and wrap it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.base import Method
from dynllava.output.files import reason
from dynllava.plan.names import FULL

from .config import SparsityConfig
from .family_processors import load_family_processor
from .files import weight_files
from .layouts import Checkpoint, check_methods, download
from .sanity import check_finite
from .stored_predictors import PREFIXES, stored_sparsity, trained_method
from .tensors import stream
from .wrapping import wrap

_SHOWN = 3
UNTRAINED = (
    "this checkpoint has no predictors: dynamic_llava runs with fresh, untrained ones, which "
    "choose tokens arbitrarily; train them first (dynllava train)"
)


def load_stock(
    checkpoint: Checkpoint,
    method: str | Method | None,
    parameters: dict[str, Any],
    dtype: torch.dtype,
    kernel: str,
    device: str | torch.device,
    device_map: str | dict[str, Any] | None,
    image_backend: str = "pil",
    untrained: bool = False,
) -> tuple[Any, Any]:
    """Return a wrapped model in eval mode, and its processor (None if there is no tokenizer).

    Parameters are those of :func:`dynllava.models.loading.load_model`.

    Raises
    ------
    UserError
        If transformers cannot read the checkpoint, or tensors are missing or no numbers.
    """
    named = method.name if isinstance(method, Method) else method
    if named is not None and not untrained:
        check_methods(checkpoint, [named])
    folder = download(checkpoint).require().folder
    stock = load_alone(folder, dtype, kernel, device_map)
    check_finite(stock.state_dict().items(), folder)
    if device_map is None:
        stock.to(device)
    model = wrap(stock.eval(), FULL)
    sparsity = stored_sparsity(model.config)
    if method is None:
        chosen = create(FULL) if sparsity is None else trained_method(sparsity)
        method = create(chosen.name, **{**chosen.parameters(), **parameters})
    elif isinstance(method, str):
        method = create(method, **parameters)
    if method.learned and sparsity is None:
        warnings.warn(UNTRAINED, stacklevel=3)
        model.add_predictors(SparsityConfig())
    model.set_method(method)
    return model.eval(), load_family_processor(folder, checkpoint.model_type, image_backend)


def load_alone(
    folder: Path,
    dtype: torch.dtype,
    kernel: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
) -> Any:
    """Return the stock model of a folder, not wrapped; stored predictors are left where they are.

    Raises
    ------
    UserError
        If transformers cannot read the checkpoint, or tensors are missing.
    """
    from transformers import AutoModelForImageTextToText

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
    return stock


def family_state(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that a folder stores for a wrapped model, predictors included.

    Raises
    ------
    UserError
        If a tensor is missing or has another shape.
    """
    # Stored names differ from those of the module tree, by rules of transformers' own.
    stock = load_alone(folder, model.dtype)
    state = dict(stock.state_dict())
    for prefix in PREFIXES.values():
        state |= dict(stream(weight_files(folder), None, prefix))
    return state
