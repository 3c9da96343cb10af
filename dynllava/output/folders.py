"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynllava.errors import UserError

from .files import check_output_folder, reason


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write to; it becomes ``target`` at the end, or goes if anything fails.

    Raises
    ------
    UserError
        If ``target`` cannot be written, or holds something.
    """
    check_output_folder(target, "target")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: exists and is not empty")
    made = _make_folders(target.parent)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield scratch
        if target.exists():
            target.rmdir()
        scratch.chmod(0o755)
        os.replace(scratch, target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            folder.rmdir()
        # safetensors reports a full disk by an error of its own, which this module need not import.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise UserError(f"cannot write {target}: {reason(error)}", 1) from error
        raise


def _make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` with its parents; return what was made, the deepest first."""
    missing = [item for item in (folder, *folder.parents) if not item.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
