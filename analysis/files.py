"""Writing output files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dynllava.errors import UserError


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` to ``path`` through a temporary file and a rename.

    Missing parent folders are made.

    Raises
    ------
    UserError
        If ``path`` is a folder or cannot be written; nothing half-written stays behind.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target}: is a folder, a file name is expected")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            # mkstemp makes private files; an output file has the usual rights.
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", 1) from error
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` as UTF-8 (see :func:`write_bytes`)."""
    return write_bytes(path, text.encode("utf-8"))
