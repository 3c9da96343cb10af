"""DivPrune (Alvar et al., CVPR 2025): keeps the image tokens that differ most from each other.

Max-min diversity over the projected tokens of an image, greedily.  Written from a description of
the rule; distances are float32 whatever the model's dtype, since 1 - cosine has steps of 5e-4 in
float16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import Hidden, ModelDims, Operation, Plan, Shape, Stage

from .patches import AlikePatches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView


@dataclass(frozen=True)
class DivPrune(AlikePatches):
    """Keeps ``round(N * keep_ratio)`` tokens (halves to even); parameters: ``Patches``."""

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "projected image tokens that differ most from each other"
    source: ClassVar[str] = "arXiv 2503.02175, official repository vbdi/divprune"
    certificate: ClassVar[str] = "golden/vision_side"

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        keep = self.keeps("half_even")
        return self.before(keep, Hidden(), stage="embedded", work=(operations,))

    def choose_all(self, views: Sequence[ImageView]) -> Sequence[torch.Tensor]:
        """Return [images, N] bool: a step picks one patch of every image."""
        import torch

        distance = torch.stack([distances(view.features) for view in views])
        picked, _ = diverse(distance, views[0].count())
        chosen = torch.zeros(distance.shape[:2], dtype=torch.bool, device=distance.device)
        return chosen.scatter(1, picked, True)


def distances(features: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine of all pairs of rows [N, D], float32 [N, N]."""
    import torch

    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return 1 - unit @ unit.T


def diverse(distance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` rows in the order in which they are picked, and their scores.

    Distances are [N, N] of one image, or [images, N, N]; what is returned has a first dimension
    for the images then.

    The first is the row whose nearest other row is farthest; then the one that is farthest from
    all picked ones.  Of equal ones the first is picked, none twice.
    """
    import torch

    if distance.dim() == 2:
        order, scores = diverse(distance[None], count)
        return order[0], scores[0]
    images, size, _ = distance.shape
    every = torch.arange(images, device=distance.device)
    taken = torch.zeros(images, size, dtype=torch.bool, device=distance.device)
    # The smallest entry of a column is the row itself.
    nearest = distance.kthvalue(min(2, size), dim=1).values
    picks = torch.zeros(images, count, dtype=torch.int64, device=distance.device)
    gaps = distance.new_zeros(images, count)
    for step in range(count):
        # argmax names the first of equal ones.
        pick = nearest.masked_fill(taken, -torch.inf).argmax(1)
        picks[:, step], gaps[:, step] = pick, nearest[every, pick]
        row = distance[every, pick]
        nearest = torch.minimum(nearest, row) if step else row
        taken[every, pick] = True
    return picks, gaps


def operations(shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]) -> Iterator[Operation]:
    """Return the products of all pairs of an image's tokens."""
    for image in shape.images:
        size = image.patches
        yield Operation("distances", "ranking", None, "prefill", size, dims.hidden, size)
