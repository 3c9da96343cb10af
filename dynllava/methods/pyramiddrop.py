"""PyramidDrop (Xing et al., CVPR 2025): image tokens leave in stages, fewer at each.

At the input of each stage's layer the attention that this very layer would pay from the last prompt
token (its own norm, projections and positions; softmax over all tokens, mean over heads) ranks the
image tokens that are left.  Each stage keeps a share of the *original* number.  Only that one query
row and the keys are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.errors import UserError
from dynllava.plan import Attention, Cut, Keep, Plan

from .base import Method, check_choice, instead, share
from .checks import check_rising, check_stages, keeps, numbers

if TYPE_CHECKING:
    import torch

    from dynllava.engine.view import View

#: First short layer of each stage in a 32-layer model.
LAYERS = (8, 16, 24)


@dataclass(frozen=True)
class PyramidDrop(Method):
    """Keeps the image tokens that the last prompt token attends to, fewer from stage to stage.

    Parameters
    ----------
    layers : str, sequence or None
        First short layer of each stage, e.g. ``"8/16/24"`` (the default, scaled to the depth).
    ratios : str or sequence
        Share of the prompt's image tokens kept from each stage on, ``int(n * ratio)``.
    budgets : str, sequence or None
        Tokens kept from each stage on, e.g. ``"288/144/72"``; numbers below 1 are shares.
        Replaces ``ratios``.
    positions : str
        ``compact``: numbered anew in every stage, as the official code does.  ``original``: holes
        stay; not part of the published method.
    strict_official : bool
        Layers 8, 16 and 24 whatever the depth, as in the official scripts for the 13B model.
    """

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "image tokens in stages, by the attention of each stage's own layer"
    source: ClassVar[str] = "arXiv 2410.17247, official repository Cooperx521/PyramidDrop"
    certificate: ClassVar[str] = "golden/projectors_and_stages"

    layers: str | Sequence[int] | None = None
    ratios: str | Sequence[float] = instead("0.5/0.25/0.125")
    budgets: str | Sequence[float] | None = share(None)
    positions: str = "compact"
    strict_official: bool = False

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_choice("positions", self.positions, ("compact", "original"))
        places = self._places(layers)
        check_rising("layers", places, layers - 1)
        look = Attention("last_prompt", of="own_input")
        pairs = zip(places, self._keeps(len(places)), strict=True)
        return Plan(tuple(Cut(at, keep, by=look, positions=self.positions) for at, keep in pairs))

    def _places(self, layers: int) -> tuple[int, ...]:
        if self.layers is not None:
            listed = numbers("layers", self.layers, zero=True)
            if any(place != int(place) for place in listed):
                raise UserError(f"layers={self.layers!r}: accepted are whole numbers")
            return tuple(map(int, listed))
        return LAYERS if self.strict_official else tuple(round(n * layers / 32) for n in LAYERS)

    def _keeps(self, stages: int) -> list[Keep]:
        name = "ratios" if self.budgets is None else "budgets"
        listed = numbers(name, getattr(self, name), zero=True)
        check_stages(name, listed, stages)
        if name == "ratios" and listed[0] > 1:
            raise UserError(f"ratios={self.ratios!r}: accepted are shares up to 1")
        return keeps(name, listed, shares=name == "ratios", rounding="truncate")

    def score(self, view: View) -> torch.Tensor:
        """Return the row's attention, mean over heads."""
        return view.attention[:, :, 0].mean(1)
