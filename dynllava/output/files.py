"""Reading JSON that others wrote, and writing output files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from dynllava.errors import UserError

DEEPEST = 64
"""Levels of nesting that a JSON document of ours or of a checkpoint may have."""


def reason(error: BaseException) -> str:
    """Return what went wrong in one line, for a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__


def read_json(path: Path) -> Any:
    """Return the value of a JSON file (UTF-8).

    Raises
    ------
    UserError
        If it cannot be read, is no UTF-8 or no JSON, or is nested beyond reason.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({reason(error)})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({reason(error)})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; see :func:`read_json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return value


def check_output_folder(folder: str | os.PathLike[str], what: str) -> None:
    """Raise :class:`UserError` unless files can be made in ``folder``; nothing is left behind.

    Long work asks this first: a target that cannot be written must not cost an hour.

    Parameters
    ----------
    folder : str or Path
        Need not exist.
    what : str
        The argument that named it, for the message.
    """
    target = Path(folder)
    existing = target
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{what} {target}: {existing} is a file, a folder is expected")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0")
    except OSError as error:
        raise UserError(f"{what} {target}: cannot be written ({reason(error)})", 1) from None


def check_output_file(path: str | os.PathLike[str], what: str) -> None:
    """Raise :class:`UserError` unless ``path`` can become a file, before long work for it."""
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{what} {target}: is a folder, a file name is expected")
    check_output_folder(target.parent, what)


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
            os.chmod(temporary, 0o666 & ~current_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot write {target}: {reason(error)}", 1) from error
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` as UTF-8 (see :func:`write_bytes`)."""
    return write_bytes(path, text.encode("utf-8"))


def current_umask() -> int:
    """Return the rights that new files do not get."""
    # There is no call that only asks; a child's value would not be ours.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("Umask:")[2].split()[0], 8)
    except (OSError, ValueError, IndexError):
        mask = os.umask(0o022)
        os.umask(mask)
        return mask
