"""VisPruner (Zhang et al., ICCV 2025): important patches, and different ones among the rest.

A part of the budget goes to the patches that the tower's class token attends to (see
:mod:`~dynllava.methods.fastervlm`); the other patches, ordered by falling attention, are thinned in
rounds that drop those of the even places that resemble one of the odd places most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import ModelDims, Operation, Plan, Shape, Stage, Tower

from .base import check_fraction
from .patches import Patches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView

CLASS_ROW = Tower("class_row")
#: Most patches that a round drops.
ROUND = 8


@dataclass(frozen=True)
class VisPruner(Patches):
    """Keeps important patches and diverse ones, in raster order.

    Parameters
    ----------
    keep_ratio, keep, positions
        See :class:`Patches`.
    important_ratio : float
        Share of the kept patches that class-token attention chooses, ``int(k * ratio)``.
    """

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "patches the tower's class token attends to, and diverse others"
    source: ClassVar[str] = "arXiv 2412.01818 v2, official repository Theia-4869/VisPruner"
    certificate: ClassVar[str] = "golden/vision_side"

    important_ratio: float = 0.5

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_fraction("important_ratio", self.important_ratio, low_open=False)
        return self.before(self.keeps(), CLASS_ROW, work=(self._work,))

    def choose(self, view: ImageView) -> torch.Tensor:  # type: ignore[override]
        """Return [N] bool."""
        import torch

        scores = view.tower[CLASS_ROW].mean(0)
        order = torch.argsort(scores, descending=True, stable=True)
        count = view.count()
        important = int(count * self.important_ratio)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[order[:important]] = True
        chosen[thinned(view.features, order[important:], count - important)] = True
        return chosen

    def _work(
        self, shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]
    ) -> Iterator[Operation]:
        """Return the cosines of every round."""
        if dims.tower is None:
            return
        for image in shape.images:
            kept = self.keeps().count(shape, image.patches, image.patches)
            important = int(kept * self.important_ratio)
            for even, odd, _ in rounds(image.patches - important, kept - important):
                width = dims.tower.hidden
                yield Operation("cosines", "ranking", None, "prefill", even, width, odd)


def rounds(count: int, left: int) -> Iterator[tuple[int, int, int]]:
    """Yield (even places, odd places, dropped) of each round that leaves ``left`` of ``count``."""
    while count > left > 0:
        even, odd = (count + 1) // 2, count // 2
        drop = min(ROUND, count - left, even)
        yield even, odd, drop
        count -= drop


def thinned(features: torch.Tensor, patches: torch.Tensor, left: int) -> torch.Tensor:
    """Return ``left`` of the listed patches; ``features`` [N, C], of all patches."""
    import torch

    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    for _, _, drop in rounds(len(patches), left):
        even, odd = patches[::2], patches[1::2]
        closest = (unit[even] @ unit[odd].T).amax(1)
        order = torch.argsort(closest, descending=True, stable=True)
        # The next round splits this very order.
        patches = torch.cat([even[order[drop:]], odd])
    return patches[:left]
