"""FasterVLM (Zhang et al. 2024): keeps the patches that the tower's class token attends to.

Attention of the class token in the layer that produces the selected features, mean over heads; the
best ones stay in raster order and are projected.  The question plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import Plan, Tower

from .patches import Patches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView

CLASS_ROW = Tower("class_row")


@dataclass(frozen=True)
class FasterVLM(Patches):
    """Keeps the patches with the highest class-token attention; parameters: :class:`Patches`."""

    name: ClassVar[str] = "fastervlm"
    summary: ClassVar[str] = "patches the tower's class token attends to"
    source: ClassVar[str] = "arXiv 2412.01818, official repository Theia-4869/FasterVLM"
    certificate: ClassVar[str] = "golden/vision_side"

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        return self.before(self.keeps(), CLASS_ROW)

    def score(self, view: ImageView) -> torch.Tensor:  # type: ignore[override]
        """Return the class token's attention [N], mean over heads."""
        return view.tower[CLASS_ROW].mean(0)
