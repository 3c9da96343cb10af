"""HiRED (Arif et al., AAAI 2025) for models with one crop an image (LLaVA-1.5).

There it is the rule of FasterVLM with ``int(N * rate)`` patches; ``alpha``, which shares a budget
between crops, has no effect.  An optional second rule adds patches at equal distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import Plan, Rule, Shape, Tower

from .base import check_fraction
from .patches import Patches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView

CLASS_ROW = Tower("class_row")


@dataclass(frozen=True)
class HiRED(Patches):
    """Keeps the patches with the highest class-token attention, and some at equal distances.

    Parameters
    ----------
    keep_ratio, keep, positions
        See :class:`Patches`; ``keep_ratio`` is the official ``token_budget_rate``.
    spatial : float
        Share b: every ``N // int(N * b)``-th patch is added (official ``spatial_budget``); how many
        of them are new depends on the image.
    """

    name: ClassVar[str] = "hired"
    summary: ClassVar[str] = "patches the tower's class token attends to, and a grid"
    source: ClassVar[str] = "arXiv 2408.10945, official repository hasanar1f/HiRED"
    certificate: ClassVar[str] = "golden/vision_side (LLaVA-1.5)"

    spatial: float = 0.0

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_fraction("spatial", self.spatial, low_open=False)
        keep = self.keeps("truncate")
        return self.before(Rule(self._count, self._declared) if self.spatial else keep, CLASS_ROW)

    def choose(self, view: ImageView) -> torch.Tensor:  # type: ignore[override]
        """Return [N] bool: the best patches, and those of the grid."""
        import torch

        scores = view.tower[CLASS_ROW].sum(0)
        number = self._best(scores.shape[0])
        best = torch.argsort(scores, descending=True, stable=True)[:number]
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[best] = True
        chosen[:: self._step(scores.shape[0])] |= self.spatial > 0
        return chosen

    def _best(self, patches: int) -> int:
        return self.keeps("truncate").count(Shape(()), patches, patches)

    def _step(self, patches: int) -> int:
        return patches // max(1, int(patches * self.spatial))

    def _count(self, view: ImageView) -> int:
        return int(self.choose(view).sum())

    def _declared(self, shape: Shape, present: int) -> int:
        """Return the patches kept, if the grid's are as often among the best as any other."""
        if not present:
            return 0
        best, grid = self._best(present), -(-present // self._step(present))
        return best + round(grid * (1 - best / present))
