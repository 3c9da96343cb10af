"""Colours, markers and lines: distinct for colour-blind readers and in grey."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Look:
    """How a curve is drawn: colour, matplotlib marker, dash pattern (on, off ...) in points."""

    colour: str
    marker: str
    dashes: tuple[float, ...]


INK, MUTED, GRID, FRONT = "#1f2328", "#5b636d", "#e4e7eb", "#c9ced6"

# Okabe and Ito's palette without yellow (unreadable on white), darkened where needed.
_BLUE, _SKY, _ORANGE, _GREEN = "#0072b2", "#3a9bd4", "#d55e00", "#00805f"
_PINK, _AMBER, _PURPLE, _GREY = "#c2598f", "#b57a00", "#6a4c9c", "#6e7781"
_SOLID, _DASH, _DOT, _DASHDOT, _LONG = (), (5.0, 2.0), (1.2, 1.8), (5.0, 1.6, 1.2, 1.6), (9.0, 2.0)

LOOKS = {
    "full": Look(INK, "s", _SOLID),
    "dynamic_llava": Look(_BLUE, "o", _SOLID),
    "dynamic_llava I|T": Look(_BLUE, "o", _SOLID),
    "dynamic_llava I": Look(_SKY, "D", _DASH),
    "dynamic_llava I|T, output keep rate": Look(_BLUE, "h", _DOT),
    "fastv": Look(_ORANGE, "^", _DASH),
    "fastv (trained)": Look(_ORANGE, ">", _DOT),
    "sparsevlm": Look(_GREEN, "v", _DASHDOT),
    "h2o": Look(_PINK, "P", _LONG),
    "random": Look(_GREY, "X", _DOT),
    "structure": Look(_AMBER, "<", _DASHDOT),
    "uniform": Look(_PURPLE, "s", _DOT),
    "no_image": Look(_GREY, "d", _DASH),
    "downsample": Look(_SKY, "*", _DASH),
    "pool": Look(_SKY, "<", _LONG),
    "prumerge": Look(_PURPLE, "H", _DASH),
    "prumerge+": Look(_PURPLE, "d", _DOT),
    "fastervlm": Look(_BLUE, "8", _DOT),
    "cdpruner": Look(_ORANGE, "*", _DASHDOT),
    "voco_llama": Look(_GREEN, "<", _DOT),
    "voco-llama": Look(_GREEN, "<", _DOT),
    "hired": Look(_PINK, "p", _DASH),
    "ivtp": Look(_AMBER, "*", _DOT),
    "trim": Look(_PURPLE, "X", _DASH),
    "pyramiddrop": Look(_AMBER, "s", _DOT),
    "tome": Look(_GREY, "X", _DASH),
    "visionzip": Look(_PURPLE, "D", _LONG),
    "divprune": Look(_PINK, "D", _DASHDOT),
    "vispruner": Look(_SKY, "p", _DOT),
    "holov": Look(_BLUE, "<", _DASH),
    "holov+restore": Look(_BLUE, "*", _SOLID),
}
_SPARE = tuple(
    Look(colour, marker, dashes)
    for colour, marker, dashes in zip(
        (_PURPLE, _AMBER, _GREY, _SKY, _PINK, _GREEN),
        ("H", "8", "d", ">", "*", "p"),
        (_DASH, _DOT, _LONG, _DASHDOT, _DASH, _DOT),
        strict=True,
    )
)


def look(curve: str) -> Look:
    """Return the look of a curve: always the same for the same name.

    A method with parameters (``fastv k=5``) has the method's colour and a marker of its own.
    """
    if curve in LOOKS:
        return LOOKS[curve]
    # crc32 and not hash(): the same in every process.
    spare = _SPARE[zlib.crc32(curve.encode()) % len(_SPARE)]
    base = LOOKS.get(_split(curve)[0])
    return replace(spare, colour=base.colour) if base else spare


def dark(colour: str) -> str:
    """Return a lighter shade of a hex colour for dark backgrounds."""
    parts = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    # Ink would vanish when merely lightened a little.
    share = 0.85 if colour == INK else 0.42
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def name(curve: str) -> str:
    """Return what legends call a curve."""
    base, beside = _split(curve)
    return _NAMES.get(curve) or _NAMES.get(base, base) + beside


def _split(curve: str) -> tuple[str, str]:
    """Return a curve's method, and what tells it from others of the same method."""
    end = next((place for place, letter in enumerate(curve) if letter in " ,"), len(curve))
    return curve[:end], curve[end:]


def model_name(model: str) -> str:
    """Return what titles call a model."""
    return _MODELS.get(model, model)


_MODELS = {"llava-1.5-7b": "LLaVA-1.5-7B", "llava-1.5-13b": "LLaVA-1.5-13B"}
_NAMES = {
    "full": "Dense", "dynamic_llava": "Dynamic-LLaVA", "dynamic_llava I": "Dynamic-LLaVA I",
    "dynamic_llava I|T": "Dynamic-LLaVA I|T",
    "dynamic_llava I|T, output keep rate": "Dynamic-LLaVA I|T, output keep rate",
    "fastv": "FastV", "fastv (trained)": "FastV (trained)", "sparsevlm": "SparseVLM",
    "h2o": "H2O", "random": "Random", "structure": "Structure", "prumerge": "PruMerge",
    "prumerge+": "PruMerge+", "fastervlm": "FasterVLM", "cdpruner": "CDPruner",
    "voco_llama": "VoCo-LLaMA",
    "uniform": "Uniform", "no_image": "No image", "downsample": "Downsample", "pool": "Pool",
    "voco-llama": "VoCo-LLaMA", "hired": "HiRED", "ivtp": "IVTP", "trim": "TRIM",
    "pyramiddrop": "PyramidDrop", "tome": "ToMe", "visionzip": "VisionZip",
    "divprune": "DivPrune", "vispruner": "VisPruner", "holov": "HoloV",
    "holov+restore": "HoloV + RESTORE",
}  # fmt: skip

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": "#9aa1a9",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "dynllava",
}
"""matplotlib settings, applied with ``rc_context`` only."""
