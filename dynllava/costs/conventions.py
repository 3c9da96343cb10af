"""How published papers count the cost of a LLaMA prefill, and how this project does.

Four conventions are in use for the same model, and they differ by up to 2.7x.  All but
``counted`` look at image tokens only, leave out the vision tower, projector, predictors and lm
head, and are therefore never mixed with counted totals:

=============  ========================================  ======================  =====
name           one layer, n tokens                       tokens                  unit
=============  ========================================  ======================  =====
counted        q(2D^2 + 2D D_kv) + 2qkD + 3qDm           all                     MAC, FLOP
eq13           32nC^2 + 4n^2C                            image (or output)       "FLOP"
fastv          4nD^2 + 2n^2D + 2nDm                      image                   MAC
pyramiddrop    4nD^2 + 2n^2D + 3nDm                      image                   MAC
=============  ========================================  ======================  =====

Sources: Dynamic-LLaVA (arXiv 2412.00876), Eq. 13; FastV (arXiv 2403.06764), section 4;
PyramidDrop (arXiv 2410.17247), section 4.  The papers call all of these "FLOPs".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from dynllava.errors import UserError

TERA = 10**12

TABLE10_MISMATCHES = {
    "hired-7b": "Eq. 13 gives 1.983 for 32x115; 2.07 is printed",
    "tokenpacker-13b-144": "Eq. 13 gives 4.849 for 40x144; 4.9 is printed",
}
"""Rows of the Dynamic-LLaVA paper's table 10 that its own Eq. 13 does not reproduce."""


@dataclass(frozen=True)
class Convention:
    """One way of counting.

    Attributes
    ----------
    name : str
        What ``--convention`` accepts.
    unit : str
        ``"MAC"`` or ``"FLOP"``: what the formula's number really stands for.
    tokens : str
        Which tokens are counted.
    formula : str
        Cost of one decoder layer.
    source : str
        Where it is from.
    decoding : bool
        Whether the source also counts decoding this way.
    """

    name: str
    unit: str
    tokens: str
    formula: str
    source: str
    decoding: bool


CONVENTIONS = {
    item.name: item
    for item in (
        Convention(
            "counted", "MAC", "all", "q(2D^2 + 2D D_kv) + 2qkD + 3qDm", "this project", True
        ),
        Convention("eq13", "FLOP", "image", "32nC^2 + 4n^2C", "arXiv 2412.00876, Eq. 13", True),
        Convention(
            "fastv", "MAC", "image", "4nD^2 + 2n^2D + 2nDm", "arXiv 2403.06764, section 4", False
        ),
        Convention(
            "pyramiddrop",
            "MAC",
            "image",
            "4nD^2 + 2n^2D + 3nDm",
            "arXiv 2410.17247, section 4",
            False,
        ),
    )
}
"""All conventions by name; ``counted`` is the default everywhere."""


def convention(name: str) -> Convention:
    """Return the convention called ``name``.

    Raises
    ------
    UserError
        If there is none.
    """
    if name not in CONVENTIONS:
        raise UserError(f"convention {name!r}: accepted are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def layer_cost(name: str, tokens: int, hidden: int, intermediate: int) -> int:
    """Return the cost of one layer under a *paper's* convention.

    Parameters
    ----------
    name : str
        ``"eq13"``, ``"fastv"`` or ``"pyramiddrop"``.
    tokens : int
        Image tokens that the layer processes (output tokens when ``eq13`` counts decoding).
    hidden, intermediate : int
        Hidden size and MLP width; ``eq13`` has no MLP width of its own and ignores it.

    Returns
    -------
    int
        In the unit of :data:`CONVENTIONS`.
    """
    attention = 4 * tokens * hidden**2 + 2 * tokens**2 * hidden
    if name == "eq13":
        return 32 * tokens * hidden**2 + 4 * tokens**2 * hidden
    if name == "fastv":
        return attention + 2 * tokens * hidden * intermediate
    if name == "pyramiddrop":
        return attention + 3 * tokens * hidden * intermediate
    raise UserError(f"convention {name!r}: accepted are eq13, fastv, pyramiddrop")


def segments_cost(
    name: str, segments: Iterable[tuple[int, int]], hidden: int, intermediate: int = 0
) -> int:
    """Return the cost of ``segments`` = (layers, tokens) pairs under a paper's convention."""
    return sum(
        layers * layer_cost(name, tokens, hidden, intermediate) for layers, tokens in segments
    )


def eq13_prefill_tflops(hidden: int, segments: Iterable[tuple[int, int]], batch: int = 1) -> float:
    """Return the paper's prefill "TFLOPs": ``sum layers * (32 B N C^2 + 4 B N^2 C) / 1e12``.

    Parameters
    ----------
    hidden : int
        Hidden size C.
    segments : iterable of (int, int)
        (layers, image tokens) pairs, e.g. ``[(2, 576), (30, 115)]``.
    batch : int
        Batch size B.
    """
    return batch * segments_cost("eq13", segments, hidden) / TERA


def eq13_decode_tflops(
    hidden: int,
    layers: int,
    total_tokens: int,
    computing_tokens: int | None = None,
    dense_layers: int = 0,
    batch: int = 1,
) -> float:
    """Return the paper's decode "TFLOPs": Eq. 13 over *output* tokens instead of image tokens.

    ``dense_layers`` layers process ``total_tokens``, the others ``computing_tokens``.  The
    prompt's keys do not appear.  The published cells follow this only roughly (they are
    means over samples of a quadratic, tables hold only mean token counts); nothing is
    fitted here to make them agree.

    Parameters
    ----------
    hidden, layers : int
        Hidden size C and decoder layers.
    total_tokens : int
        Output tokens.
    computing_tokens : int, optional
        Output tokens that the sparse layers process; default: all.
    dense_layers : int
        Layers that process all output tokens (2 for Dynamic-LLaVA).
    batch : int
        Batch size B.
    """
    if not 0 <= dense_layers <= layers:
        raise UserError(f"dense_layers={dense_layers}: accepted is 0 to {layers}")
    kept = total_tokens if computing_tokens is None else computing_tokens
    segments = [(dense_layers, total_tokens), (layers - dense_layers, kept)]
    return batch * segments_cost("eq13", segments, hidden) / TERA


def parse_segments(text: str) -> list[tuple[int, int]]:
    """Return (layers, tokens) pairs of text such as ``"2x576+30x115"``."""
    try:
        pairs = [tuple(int(number) for number in part.split("x")) for part in text.split("+")]
        return [(layers, tokens) for layers, tokens in pairs]
    except ValueError:
        raise UserError(f"segments {text!r}: accepted is LAYERSxTOKENS+...") from None


def run_length_segments(tokens_per_layer: Sequence[int]) -> list[tuple[int, int]]:
    """Return (layers, tokens) pairs of equal neighbouring layers."""
    segments: list[tuple[int, int]] = []
    for tokens in tokens_per_layer:
        if segments and segments[-1][1] == tokens:
            segments[-1] = (segments[-1][0] + 1, tokens)
        else:
            segments.append((1, tokens))
    return segments


def agrees_as_printed(computed: float, printed: str) -> bool:
    """Return whether ``computed``, rounded half up to the digits of ``printed``, equals it."""
    target = Decimal(printed.strip())
    return Decimal(repr(computed)).quantize(target, rounding=ROUND_HALF_UP) == target
