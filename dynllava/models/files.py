"""A checkpoint's files, read without torch: JSON, index, shards, tensor names and shapes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.output.files import read_json_object

from .pickled import pickled_shapes

#: (single file, index) of each accepted format; the first that is there is used.
WEIGHT_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
#: Terms that travel with the weights (``LICENSE``, ``LICENSE.txt``, ``USE_POLICY.md`` ...).
LICENCE_PREFIXES = ("license", "licence", "notice", "use_policy", "usage_policy", "copying")
_LFS_MARK = b"version https://git-lfs"
_HEADER_LIMIT = 100_000_000


class NoWeights(UserError):
    """A folder holds no weights at all."""


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a checkpoint's tensors.

    Attributes
    ----------
    format : str
        ``"safetensors"`` or ``"bin"``.
    index : Path or None
        The index of a sharded checkpoint.
    files : tuple of Path
        Those that are there.
    missing : tuple of str
        Names that the index has and the folder has not.
    bytes : int
        On disk, of ``files``.
    names : frozenset of str or None
        Tensor names, from the index or the files; None: not known before they are loaded.
    shapes : mapping of str to tuple of int
        From the safetensors headers and the pickled dictionaries of ``.bin`` files, as far as
        they can be read.
    """

    format: str
    index: Path | None
    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    bytes: int = 0
    names: frozenset[str] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json, so not a checkpoint folder")
    return read_json_object(path)


def weight_files(folder: Path) -> WeightFiles:
    """Return the weight files of a folder.

    Raises
    ------
    NoWeights
        If there are none.
    UserError
        If the index or a file cannot be read.
    """
    for stem, suffix in WEIGHT_FORMATS:
        index = folder / f"{stem}.{suffix}.index.json"
        single = folder / f"{stem}.{suffix}"
        if index.is_file():
            places = _weight_map(index)
            names = sorted(set(places.values()))
            there = tuple(folder / name for name in names if (folder / name).is_file())
            missing = tuple(name for name in names if not (folder / name).is_file())
            return _described(suffix, index, there, missing, frozenset(places))
        if single.is_file():
            return _described(suffix, None, (single,), (), None)
    stray = sorted(path.name for path in folder.glob("*-of-*") if path.suffix != ".json")
    if stray:
        raise UserError(
            f"{folder}: has shards ({stray[0]} ...) but no index; copy "
            "model.safetensors.index.json or pytorch_model.bin.index.json beside them"
        )
    raise NoWeights(
        f"{folder}: no weights; accepted are model.safetensors or pytorch_model.bin, single or "
        "sharded with an index"
    )


def present(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the files of ``names`` that a folder has."""
    return tuple(folder / name for name in names if (folder / name).is_file())


def licence_files(folder: Path) -> tuple[Path, ...]:
    """Return the files with the weights' terms: licence, notice, use policy."""
    found = [
        path
        for path in folder.iterdir()
        if path.is_file() and path.name.lower().startswith(LICENCE_PREFIXES)
    ]
    return tuple(sorted(found))


def _weight_map(index: Path) -> dict[str, str]:
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: no object 'weight_map' that names the files")
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {tensor!r} lies in {name!r}, a file name is expected")
    return places


def _described(
    suffix: str,
    index: Path | None,
    files: tuple[Path, ...],
    missing: tuple[str, ...],
    names: frozenset[str] | None,
) -> WeightFiles:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with path.open("rb") as file:
            if file.read(len(_LFS_MARK)) == _LFS_MARK:
                raise UserError(
                    f"{path}: is a Git LFS pointer, not a {suffix} file; run 'git lfs pull' in the "
                    "folder it was cloned into"
                )
        own = _header(path) if suffix == "safetensors" else pickled_shapes(path)
        shapes |= own or {}
        if names is None and own is not None:
            names = frozenset(own)
    size = sum(path.stat().st_size for path in files)
    return WeightFiles(suffix, index, files, missing, size, names, shapes)


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return {tensor: shape} of a safetensors file, whose length must fit its header."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _HEADER_LIMIT):
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes, its header says {8 + length + end}")
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: truncated or not a safetensors file ({reason})") from None
