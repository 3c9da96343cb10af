"""Content hashes of checkpoints and data sets: equal content, equal hash, whatever the path."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynllava.errors import UserError

CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".jinja")


def hash_files(path: str | os.PathLike[str], suffixes: Iterable[str] = CHECKPOINT_SUFFIXES) -> str:
    """Return ``sha256:<hex>`` over the names and contents of a checkpoint's files.

    Parameters
    ----------
    path : str or Path
        A file, or a folder whose files with one of ``suffixes`` count (sub-folders included;
        names are relative to ``path``, so a moved folder keeps its hash).
    suffixes : iterable of str
        Other files (README, logs) do not change what a checkpoint computes.

    Raises
    ------
    UserError
        If there is nothing to hash.
    """
    root = Path(path)
    accepted = tuple(suffixes)
    if root.is_file():
        files = [root]
    else:
        files = [item for item in root.rglob("*") if item.name.endswith(accepted)]
        files = sorted(item for item in files if item.is_file())
    if not files:
        raise UserError(f"{root}: no file to hash (looked for {', '.join(accepted)})", 1)
    total = hashlib.sha256()
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        _add(total, name.encode())
        _add(total, _file_digest(file))
    return f"sha256:{total.hexdigest()}"


def hash_rows(rows: Iterable[Any]) -> str:
    """Return ``sha256:<hex>`` over data set rows in order.

    Rows are what a data set yields: nested dicts and lists of plain values, bytes, PIL images
    (their pixels count, not their encoding) and NumPy arrays.  The order of a dict's keys does
    not count.
    """
    total = hashlib.sha256()
    for row in rows:
        _add(total, json.dumps(_describe(row), sort_keys=True).encode())
    return f"sha256:{total.hexdigest()}"


def _add(total: Any, data: bytes) -> None:
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    total.update(len(data).to_bytes(8, "big"))
    total.update(data)


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _describe(value: Any) -> Any:
    """Return JSON data that stands for ``value``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if hasattr(value, "tobytes") and hasattr(value, "mode"):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return {"image": [value.mode, list(value.size), digest]}
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return {"array": [str(value.dtype), list(value.shape), digest]}
    return {"text": str(value)}
