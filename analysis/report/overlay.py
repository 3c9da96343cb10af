"""What a method kept of one sample: patches of the image, words of the answer.

An overlay is a JSON file beside the records (``overlays/*.json``), so that the report can show it
without a model; :func:`draw` makes the picture of ``dynllava show``.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError
from dynllava.output.files import read_json_object, reason, write_text

from .. import style

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "overlays"
SCHEMA = 1
LARGEST_GRID = 256
"""Patches per side that a picture is drawn with."""


SHORT = 4
"""Words up to which a reference is an answer that is right or wrong as a whole."""


@dataclass(frozen=True)
class Overlay:
    """One sample under one method.

    Attributes
    ----------
    method, label : str
    model : str
    image : str
        The picture the model saw, PNG as base64 text.
    grid : int
        Patches per side; patch 0 is the upper left one, row by row.
    kept : tuple of int
        Patches that reached the last layer.
    question, answer : str
    words : tuple of (str, bool)
        Pieces of the answer and whether the dropping layers keep them.
    expected : str
        Reference answer; empty where there is none.
    cached : float or None
        Share of the entries that stayed in the cache at the end, mean over layers and heads;
        None where the method evicts none.
    """

    method: str
    label: str
    model: str
    image: str
    grid: int
    kept: tuple[int, ...]
    question: str
    answer: str
    words: tuple[tuple[str, bool], ...]
    expected: str = ""
    cached: float | None = None

    @property
    def right(self) -> bool | None:
        """Whether the answer is the reference, letters' case and a last stop aside.

        None without a reference, and for a description: other words may say the same.
        """
        if not self.expected or len(self.expected.split()) > SHORT:
            return None
        said, wanted = (text.strip().rstrip(".").lower() for text in (self.answer, self.expected))
        return said == wanted

    @property
    def dropped(self) -> str:
        """What left, in words: patches, or entries of the cache."""
        kept, total = len(set(self.kept)), self.grid**2
        if self.cached is not None:
            return f"all {total} patches read, {self.cached:.0%} of cache entries kept"
        return f"{kept} of {total} patches kept ({kept / total:.0%})"

    def write(self, path: Path) -> Path:
        """Write the overlay as JSON."""
        return write_text(path, json.dumps({"overlay": SCHEMA, **asdict(self)}) + "\n")


def read(path: Path) -> Overlay:
    """Read an overlay file.

    Raises
    ------
    UserError
        If the file is damaged or not an overlay.
    """
    try:
        data = read_json_object(path)
        if data.pop("overlay") != SCHEMA:
            raise ValueError("unknown version")
        data["kept"] = tuple(int(item) for item in data["kept"])
        data["words"] = tuple((str(text), bool(kept)) for text, kept in data["words"])
        _check_png(data["image"])
        found = Overlay(**data)
        for name in ("method", "label", "model", "question", "answer", "expected"):
            if not isinstance(getattr(found, name), str):
                raise ValueError(f"{name} is no text")
        if type(found.grid) is not int or not 1 <= found.grid <= LARGEST_GRID:
            raise ValueError(f"grid={found.grid!r}: accepted is 1 to {LARGEST_GRID}")
        if found.cached is not None and not 0 <= found.cached <= 1:
            raise ValueError(f"cached={found.cached!r}: accepted is a share")
        cells = range(found.grid**2)
        if not all(item in cells for item in found.kept):
            raise ValueError("a kept patch lies outside the grid")
        return found
    except UserError:
        raise
    except Exception as error:
        # One file that somebody else wrote must not cost the whole report.
        raise UserError(f"{path}: no overlay ({reason(error)})", 1) from None


def _check_png(text: str) -> None:
    """Raise unless ``text`` is a whole PNG in base64."""
    from PIL import Image as images

    data = base64.b64decode(text, validate=True)
    if not data.startswith(b"\x89PNG"):
        raise ValueError("the image is no PNG")
    with images.open(io.BytesIO(data)) as image:
        image.load()


def read_all(folder: Path) -> tuple[list[Overlay], list[str]]:
    """Return the overlays under ``folder``, and what could not be read."""
    found, notes = [], []
    for path in sorted(folder.rglob(f"{FOLDER}/*.json")) if folder.is_dir() else []:
        try:
            found.append(read(path))
        except UserError as error:
            notes.append(str(error))
    return found, notes


def encode(image: Image) -> str:
    """Return an image as PNG in base64 text."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def draw(overlay: Overlay) -> bytes:
    """Return a PNG: the image, the image with dropped patches veiled, question and words."""
    import matplotlib
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image as images

    picture = images.open(io.BytesIO(base64.b64decode(overlay.image))).convert("RGB")
    pixels = np.asarray(picture).astype(float) / 255
    with matplotlib.rc_context({**style.RC, "axes.grid": False}):
        figure = Figure(figsize=(7.6, 5.0))
        FigureCanvasAgg(figure)
        titles = ("Image", f"{overlay.dropped[0].upper()}{overlay.dropped[1:]}")
        for index, shown in enumerate((pixels, _veil(pixels, overlay))):
            axes = figure.add_axes((0.03 + 0.49 * index, 0.30, 0.45, 0.58))
            axes.imshow(shown, interpolation="nearest")
            axes.set_axis_off()
            axes.set_anchor("NW")
            axes.set_title(titles[index], pad=5)
        figure.text(0.03, 0.955, f"{overlay.label}, {overlay.model}", fontsize=11,
                    fontweight="bold", va="center")  # fmt: skip
        _write_words(figure, overlay)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
        return buffer.getvalue()


def veiled(overlay: Overlay) -> Any:
    """Return the image [H, W, 3] in [0, 1] with dropped patches faded."""
    import numpy as np
    from PIL import Image as images

    picture = images.open(io.BytesIO(base64.b64decode(overlay.image))).convert("RGB")
    return _veil(np.asarray(picture).astype(float) / 255, overlay)


def _veil(pixels: Any, overlay: Overlay) -> Any:
    """Return the pixels with dropped patches faded to grey."""
    import numpy as np

    keep = np.zeros(overlay.grid**2, bool)
    keep[list(overlay.kept)] = True
    rows = np.arange(pixels.shape[0]) * overlay.grid // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * overlay.grid // pixels.shape[1]
    mask = keep.reshape(overlay.grid, overlay.grid)[np.ix_(rows, columns)]
    grey = 0.82 + 0.10 * (pixels.mean(axis=2, keepdims=True) - 0.5)
    return np.where(mask[..., None], pixels, grey)


def _write_words(figure: Any, overlay: Overlay) -> None:
    """Write question, reference and answer; dropped words are grey and struck through."""
    import textwrap

    # A dollar sign would start matplotlib's formula mode.
    question = textwrap.shorten(overlay.question, 150).replace("$", r"\$")
    lines = textwrap.wrap(f"Q: {question}", 92)
    if overlay.expected:
        reference = textwrap.shorten(overlay.expected, 75).replace("$", r"\$")
        said = {True: " (answered right)", False: " (answered wrong)", None: ""}[overlay.right]
        lines.append(f"Reference answer: {reference}{said}")
    figure.text(0.03, 0.255, "\n".join(lines), fontsize=9, va="top", color=style.MUTED)
    renderer = figure.canvas.get_renderer()
    x, y = 0.03, 0.255 - 0.037 * len(lines) - 0.04
    pieces = overlay.words or ((overlay.answer or "(no answer)", True),)
    for text, kept in pieces[:160]:
        item = figure.text(
            x, y, text.replace("$", r"\$").strip() or " ", fontsize=9.5, va="center",
            color=style.INK if kept else "#8a929b",
        )  # fmt: skip
        box = item.get_window_extent(renderer).transformed(figure.transFigure.inverted())
        if box.x1 > 0.97 and x > 0.03:
            x, y = 0.03, y - 0.045
            item.set_position((x, y))
            box = item.get_window_extent(renderer).transformed(figure.transFigure.inverted())
        if not kept:
            from matplotlib.lines import Line2D

            figure.add_artist(Line2D([box.x0, box.x1], [y, y], lw=0.9, color="#8a929b"))
        x = box.x1 + 0.008
