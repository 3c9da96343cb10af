"""FastV (Chen et al., ECCV 2024): drops the image tokens that the last prompt token ignores.

Layers 0..k-1 are dense.  The attention of layer k-1, last query row, averaged over heads, ranks
the image tokens; the best ones go on into layer k at their original positions.  Only that row of
the attention is computed, next to whatever kernel runs the layer.

The official repositories hold three decoders that answer differently; they are named options
here, and a FastV number must say which it used:

``static``
    Ranks once, in prefill; layers from k on store the pruned cache (llava-hf fork, lmms-eval).
``rerank``
    Drops nothing: ranks again at every step with that step's query and hides the losers from it
    (4.31 fork, mask variant).  It saves no compute and no memory.
``reprune``
    No cache: every step runs the whole sequence and prunes by its newest token (4.31 fork, in-place
    variant).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import Attention, Count, Cut, Plan, Share

from .base import Method, check_choice, check_fraction, check_layer, check_number, instead, share

if TYPE_CHECKING:
    import torch

    from dynllava.engine.view import View

#: Option -> how the plan decodes.
DECODERS = {"static": "static", "rerank": "rerank", "reprune": "recompute"}


@dataclass(frozen=True)
class FastV(Method):
    """Keeps the image tokens that the last token of layer k-1 attends to most.

    Parameters
    ----------
    k : int
        First layer (from 0) that sees the reduced set; at least 1.
    keep_ratio : float
        Share of image tokens *kept*, ``int(n * keep_ratio)`` (the official ``fastv_r`` is the
        dropped share).
    keep : int or None
        Number of image tokens kept; replaces ``keep_ratio``.
    decoder : str
        ``static``, ``rerank`` or ``reprune``, see the module's description.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "image tokens the last prompt token attends to at layer k-1"
    source: ClassVar[str] = "arXiv 2403.06764, official repository pkunlp-icler/FastV"
    certificate: ClassVar[str] = "golden/baselines"

    k: int = 3
    keep_ratio: float = share(0.5)
    keep: int | None = instead(None)
    decoder: str = "static"

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_layer("k", self.k, layers, first=1)
        check_fraction("keep_ratio", self.keep_ratio)
        check_number("keep", self.keep, optional=True)
        check_choice("decoder", self.decoder, tuple(DECODERS))
        keep = Share(self.keep_ratio) if self.keep is None else Count(self.keep, name="keep")
        rows = "last_prompt" if self.decoder == "static" else "newest"
        return Plan((Cut(self.k, keep, by=Attention(rows)),), decode=DECODERS[self.decoder])

    def score(self, view: View) -> torch.Tensor:
        """Return the row's attention, mean over heads."""
        return view.attention[:, :, 0].mean(1)
