"""Images of training records: found before training, opened in the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from dynllava import images
from dynllava.errors import UserError


def inside(folder: Path, name: str, where: str) -> Path:
    """Return the path of an image in ``folder``; refuse one that lies outside of it."""
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise UserError(f"{where}: image {name!r} lies outside the image folder {folder}")
    return path


def open_image(source: Any, folder: Path | None, where: str) -> Image.Image:
    """Return a record's image as RGB.

    Parameters
    ----------
    source : str, dict or PIL.Image.Image
        A path relative to ``folder``, a Hugging Face image ``{"bytes", "path"}``, or an image.

    Raises
    ------
    UserError
        If it lies outside of ``folder`` or cannot be read (:func:`dynllava.images.open_image`).
    """
    stored = isinstance(source, dict) and source.get("bytes") is not None
    if isinstance(source, Image.Image) or stored:
        return images.open_image(source)
    name = source.get("path") if isinstance(source, dict) else source
    return images.open_image(inside(folder or Path(), str(name), where))


def missing_files(names: list[tuple[str, str]], folder: Path) -> list[str]:
    """Return the image names (of ``(where, name)`` pairs) that are not in ``folder``."""
    return [name for where, name in names if not inside(folder, name, where).is_file()]
