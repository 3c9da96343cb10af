"""Pictures in, pixel values out: one rule for the plugin, training and ``show``.

Opening refuses what is no whole picture (torn files included, whatever Pillow's global switch
says), turns pictures upright by their EXIF tag, and scales 16-bit grey to 8 bit.  Preparation is
the paper's (pad to a square of the mean colour) or the image processor's own (centre crop).
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dynllava.errors import UserError
from dynllava.output.files import reason

ASPECTS = ("pad", "crop", "checkpoint")
LONGEST_SIDE = 13_000
"""Pixels: padded to a square, a picture stays below Pillow's limit of 178,956,970 pixels."""
LARGEST_RATIO = 200
"""Longer over shorter side: a thin strip would become a huge picture when resized."""
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""What Pillow raises for a file that is no image, is torn or absurdly large."""
_switch = threading.RLock()


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Refuse torn files while this is open.

    Task code of lmms-eval tells Pillow to fill what is missing with grey, for the whole process.
    """
    with _switch:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def open_image(source: Any) -> Image.Image:
    """Return a picture in RGB, upright.

    Parameters
    ----------
    source : PIL.Image.Image, bytes, str, Path or dict
        A picture, an encoded one, a file, or a Hugging Face image ``{"bytes", "path"}``.

    Raises
    ------
    UserError
        In one line: no picture, torn, too large, or values of unknown range.
    """
    if isinstance(source, dict):
        data = source.get("bytes")
        source = source.get("path") if data is None else data
    if not isinstance(source, Image.Image | bytes | bytearray | str | Path):
        raise UserError(f"{type(source).__name__} is no image: accepted are PIL images and files")
    name = f"{source}: " if isinstance(source, str | Path) else ""
    try:
        with strict_decoding(), warnings.catch_warnings():
            # Sizes are checked below, before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return _upright(source)
            data = io.BytesIO(source) if isinstance(source, bytes | bytearray) else source
            with Image.open(data) as image:
                return _upright(image)
    except UserError as error:
        raise UserError(f"{name}{error}") from None
    except UnidentifiedImageError as error:
        # Pillow's own text names the buffer, by its address.
        raise UserError(f"{name}not a readable image (of no known format)") from error
    except UNREADABLE as error:
        raise UserError(f"{name}not a readable image ({reason(error)})") from error


def _upright(image: Image.Image) -> Image.Image:
    short, long = sorted(image.size)
    if short < 1 or long > LONGEST_SIDE or long > LARGEST_RATIO * short:
        raise UserError(
            f"image of {image.width} x {image.height} pixels: accepted are sides from 1 to "
            f"{LONGEST_SIDE} and at most 1 to {LARGEST_RATIO}"
        )
    image.load()
    if image.mode[0] in "IF":
        return _grey(image)
    return ImageOps.exif_transpose(image).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Return a grey picture of more than 8 bits in RGB; Pillow's own conversion clips it."""
    values = np.asarray(image).astype(np.float64)
    top = float(values.max(initial=0.0))
    if not np.isfinite(values).all() or values.min(initial=0.0) < 0 or top > 65_535:
        raise UserError(f"grey image with values up to {top:g}: accepted are 0 to 65535")
    if image.mode.startswith("I;16") or top > 255:
        values = values / 257
    elif image.mode == "F" and top <= 1:
        values = values * 255
    upright = Image.fromarray(values.round().astype(np.uint8))
    upright.info = image.info
    return ImageOps.exif_transpose(upright).convert("RGB")


class ImagePreparation:
    """Turns a picture into pixel values.

    Parameters
    ----------
    image_processor : transformers image processor
    aspect : str
        ``"pad"``: to a square of the mean colour first, as LLaVA-1.5 was trained and evaluated;
        ``"crop"``: the centre square, as llava-hf's image processor does; ``"checkpoint"``: what
        the checkpoint's image processor does.
    """

    def __init__(self, image_processor: Any, aspect: str = "pad") -> None:
        if aspect not in ASPECTS:
            raise UserError(f"image_aspect={aspect!r}: accepted are {', '.join(ASPECTS)}")
        self.image_processor = image_processor
        self.aspect = aspect

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return float32 [3, H, W]."""
        options: dict[str, Any] = {}
        if self.aspect != "checkpoint" and getattr(self.image_processor, "do_pad", None):
            options["do_pad"] = False
        if self.aspect == "pad" and image.width != image.height:
            mean = self.image_processor.image_mean
            image = pad_to_square(image, tuple(int(value * 255) for value in mean))
        pixels = self.image_processor(image, return_tensors="np", **options)["pixel_values"]
        return np.asarray(pixels[0], dtype=np.float32)


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Return the image centred on a square of ``colour``."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
