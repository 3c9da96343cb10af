"""Images of training records: found before training, opened in the workers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dynllava.errors import UserError

ASPECTS = ("pad", "crop")
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""What Pillow raises for a file that is no image, is torn or absurdly large."""


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
    one of :data:`UNREADABLE`
        If it cannot be decoded.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, dict) and source.get("bytes"):
        with Image.open(io.BytesIO(source["bytes"])) as image:
            return image.convert("RGB")
    name = source.get("path") if isinstance(source, dict) else source
    with Image.open(inside(folder or Path(), str(name), where)) as image:
        return image.convert("RGB")


def missing_files(names: list[tuple[str, str]], folder: Path) -> list[str]:
    """Return the image names (of ``(where, name)`` pairs) that are not in ``folder``."""
    return [name for where, name in names if not inside(folder, name, where).is_file()]


class ImagePreparation:
    """Turns an image into pixel values, with LLaVA's ``image_aspect_ratio``.

    Parameters
    ----------
    image_processor : transformers image processor
    aspect : str
        ``"pad"`` to a square of the mean colour first (LLaVA-1.5's training), or ``"crop"``:
        what the image processor does by itself.
    """

    def __init__(self, image_processor: Any, aspect: str = "pad") -> None:
        if aspect not in ASPECTS:
            raise UserError(f"image_aspect={aspect!r}: accepted are {', '.join(ASPECTS)}")
        self.image_processor = image_processor
        self.aspect = aspect

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return float32 [3, H, W]."""
        if self.aspect == "pad" and image.width != image.height:
            mean = self.image_processor.image_mean
            image = pad_to_square(image, tuple(int(value * 255) for value in mean))
        pixels = self.image_processor(image, return_tensors="np")["pixel_values"]
        return np.asarray(pixels[0], dtype=np.float32)


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Return the image centred on a square of ``colour``."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
