"""VisPruner (Zhang et al., ICCV 2025): important patches, and different ones among the rest.

A part of the budget goes to the patches that the tower's class token attends to (see
:mod:`~dynllava.methods.fastervlm`); the other patches, ordered by falling attention, are thinned in
rounds that drop those of the even places that resemble one of the odd places most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import ModelDims, Operation, Plan, Shape, Stage, Tower

from .base import check_fraction
from .patches import AlikePatches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView

CLASS_ROW = Tower("class_row")
#: Most patches that a round drops.
ROUND = 8


@dataclass(frozen=True)
class VisPruner(AlikePatches):
    """Keeps important patches and diverse ones, in raster order.

    Parameters
    ----------
    keep_ratio, keep, positions
        See :class:`~.patches.Patches`.
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

    def choose_all(self, views: Sequence[ImageView]) -> Sequence[torch.Tensor]:
        """Return [images, N] bool: a round thins the patches of every image."""
        import torch

        scores = torch.stack([view.tower[CLASS_ROW].mean(0) for view in views])
        order = torch.argsort(scores, dim=1, descending=True, stable=True)
        count = views[0].count()
        important = int(count * self.important_ratio)
        features = torch.stack([view.features for view in views])
        others = thinned(features, order[:, important:], count - important)
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, others, True)
        return chosen.scatter(1, order[:, :important], True)

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
    """Return ``left`` of the listed patches of each image.

    Each round splits the very order that the one before it left.  Products are taken image by
    image: one of all at once may round otherwise.

    Parameters
    ----------
    features : Tensor [images, N, C]
        Of all patches.
    patches : Tensor [images, M] int64
    left : int
    """
    import torch

    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    for _, _, drop in rounds(patches.shape[1], left):
        even, odd = patches[:, ::2], patches[:, 1::2]
        pairs = zip(unit, even, odd, strict=True)
        closest = torch.stack([(own[one] @ own[two].T).amax(1) for own, one, two in pairs])
        order = torch.argsort(closest, dim=1, descending=True, stable=True)
        patches = torch.cat([even.gather(1, order[:, drop:]), odd], 1)
    return patches[:, :left]
