"""A plain Hugging Face folder that stock engines load, and the method that selects before them.

The folder holds a stock LLaVA with the weight names of the llava-hf checkpoints (engines know
these; transformers reads them too), its processor, the terms of the checkpoint, and
``dynllava.json``: the method whose selection runs before the engine, on the tower and projector of
the same folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.base import Method
from dynllava.methods.parameters import parse, render
from dynllava.output.folders import new_folder
from dynllava.plan.names import FULL
from dynllava.plan.plan import SERVED

from .checkpoints import copy_files, save_tensors, write_json
from .families import MODEL_TYPE
from .layouts import download, inspect

METHOD_FILE = "dynllava.json"
OUTSIDE = ("A", "B")
"""Classes whose selection is done before the engine sees a token."""
_HEAD, _EMBEDDED = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def stock_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a LLaVA under the names of the llava-hf checkpoints.

    Predictors are left out: what they choose happens inside the layers.  Of an output matrix that
    is the embeddings' own, the embeddings alone are named: engines read a tied model from those.
    """
    found = {}
    for name, tensor in state.items():
        for old, new in _NAMES:
            if name.startswith(old):
                found[new + name.removeprefix(old)] = tensor.contiguous()
                break
    head, embedded = (found.get(name) for name in (_HEAD, _EMBEDDED))
    if head is not None and embedded is not None and head.data_ptr() == embedded.data_ptr():
        del found[_HEAD]
    return found


def served_class(text: str, method: Method, layers: int) -> str:
    """Return a method's class, A or B; of the others a stock engine runs none.

    Raises
    ------
    UserError
        If the method, written ``text``, chooses inside the layers or while decoding.
    """
    served = method.plan(layers).served
    if served not in OUTSIDE:
        raise UserError(
            f"{text} is of class {served} ({SERVED[served]}); a stock engine runs classes "
            f"{' and '.join(OUTSIDE)}, which choose before layer 0"
        )
    return served


def export(
    source: str | Path,
    target: Path,
    method: str = FULL,
    dtype: str | None = None,
    vision_tower: str | None = None,
) -> Path:
    """Write the folder; it appears whole or not at all.

    Parameters
    ----------
    source : str or Path
        Checkpoint: a folder, a hub name or ``embedded``.
    target : Path
        Folder to create; must not exist or be empty.
    method : str
        With its parameters: ``fastervlm:keep=64``.
    dtype : str, optional
        Of the written weights; default: the checkpoint's.
    vision_tower : str, optional
        Folder or hub name of the vision tower.

    Raises
    ------
    UserError
        If the method chooses inside the layers or while decoding, or the checkpoint is no
        LLaVA-1.5.
    """
    from .loading import load_model, parse_dtype

    chosen = parse(method)
    checkpoint = download(inspect(source, vision_tower)).require()
    layers = checkpoint.config.get("text_config", checkpoint.config).get("num_hidden_layers", 32)
    served = served_class(method, create(chosen.name, **chosen.parameters), layers)
    if checkpoint.packer is not None:
        raise UserError(f"{source}: a TokenPacker projector; stock engines know LLaVA-1.5's alone")
    stored = str(
        checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float32"
    )
    kind = parse_dtype(dtype or stored)
    model, processor = load_model(source, FULL, dtype=kind, vision_tower=vision_tower)
    if model.config.model_type not in ("llava", MODEL_TYPE):
        raise UserError(f"{source}: {model.config.model_type}; accepted are LLaVA-1.5 checkpoints")
    if processor is None:
        raise UserError(f"{source}: no tokenizer, which an engine needs")
    with new_folder(target) as scratch:
        _stock_config(model, kind).save_pretrained(scratch)
        save_tensors(stock_names(model.state_dict()), scratch)
        model.generation_config.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        write_json(
            scratch / METHOD_FILE,
            {
                "format": 1,
                "method": render(chosen.name, chosen.parameters),
                "class": served,
                "source": str(source),
                "dtype": str(kind).removeprefix("torch."),
            },
        )
        copy_files(checkpoint.licences, scratch)
    return target


def _stock_config(model: Any, dtype: torch.dtype) -> Any:
    from transformers import LlavaConfig

    values = model.config.to_dict()
    for key in ("model_type", "sparse_config", "token_packer", "transformers_version"):
        values.pop(key, None)
    config = LlavaConfig(**values)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = dtype
    return config
