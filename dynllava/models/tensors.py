"""Tensors of a checkpoint, one by one: at most one copy and one shard in memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dynllava.errors import UserError
from dynllava.output.files import reason

from .files import WeightFiles
from .sanity import check_tensors

#: :func:`stream` or :func:`outlines`.
Reader = Callable[..., Iterator[tuple[str, torch.Tensor]]]
#: Tables that old versions of transformers stored and that are computed today.
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")


def stream(
    weights: WeightFiles, dtype: torch.dtype | None = None, prefix: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of all files; stored tables (:data:`BUFFERS`) are left out.

    ``.bin`` files are read with ``weights_only=True``: code in them is never executed.  Where the
    file format allows it they are mapped into memory, so that a shard costs no memory of its own.

    Parameters
    ----------
    weights : WeightFiles
    dtype : torch.dtype, optional
        Floating-point tensors are cast to it as they are read; default: as stored.
    prefix : str
        Only tensors whose names start with it.

    Raises
    ------
    UserError
        If a file is missing, torn, or holds anything but tensors.
    """
    if weights.missing:
        raise UserError(f"{weights.missing[0]}: named by the index but missing")
    for path in weights.files:
        read = _safetensors if path.suffix == ".safetensors" else _pickled
        for name, tensor in read(path, prefix):
            if name.endswith(BUFFERS):
                continue
            check_tensors({name: tensor}, path)
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            yield name, tensor


def outlines(
    weights: WeightFiles, dtype: torch.dtype | None = None, prefix: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what :func:`stream` yields, as tensors without memory: no weights are read.

    Only the shapes are the files' own.
    """
    for name, shape in weights.shapes.items():
        if name.startswith(prefix) and not name.endswith(BUFFERS):
            yield name, torch.empty(shape, dtype=dtype, device="meta")


def _safetensors(path: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({reason(error)})") from None


def _pickled(path: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    tensors = check_tensors(_load(path), path)
    for name in list(tensors):
        # Popped, so that a tensor cast by the caller does not stay in memory twice.
        tensor = tensors.pop(name)
        if name.startswith(prefix):
            yield name, tensor


def _load(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Files of torch before 1.6 cannot be mapped.
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused, it holds pickled objects other than tensors") from None
    except Exception as error:
        # A torn archive fails in many ways: zip, pickle and storage errors.
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
