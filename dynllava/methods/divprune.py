"""DivPrune (Alvar et al., CVPR 2025): keeps the image tokens that differ most from each other.

Max-min diversity over the projected tokens of an image, greedily.  Written from a description of
the rule; distances are float32 whatever the model's dtype, since 1 - cosine has steps of 5e-4 in
float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import Hidden, ModelDims, Operation, Plan, Shape, Stage

from .patches import Patches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView


@dataclass(frozen=True)
class DivPrune(Patches):
    """Keeps ``round(N * keep_ratio)`` tokens (halves to even); parameters: :class:`Patches`."""

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "projected image tokens that differ most from each other"
    source: ClassVar[str] = "arXiv 2503.02175, official repository vbdi/divprune"
    certificate: ClassVar[str] = "golden/vision_side"

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        keep = self.keeps("half_even")
        return self.before(keep, Hidden(), stage="embedded", work=(operations,))

    def choose(self, view: ImageView) -> torch.Tensor:  # type: ignore[override]
        """Return [N] bool: the greedy picks."""
        import torch

        chosen = torch.zeros(len(view.features), dtype=torch.bool, device=view.features.device)
        picked, _ = diverse(distances(view.features), view.count())
        chosen[picked] = True
        return chosen


def distances(features: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine of all pairs of rows [N, D], float32 [N, N]."""
    import torch

    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return 1 - unit @ unit.T


def diverse(distance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` rows in the order in which they are picked, and their scores.

    The first is the row whose nearest other row is farthest; then the one that is farthest from
    all picked ones.  Of equal ones the first is picked, none twice.
    """
    import torch

    taken = torch.zeros(len(distance), dtype=torch.bool, device=distance.device)
    # The smallest entry of a column is the row itself.
    nearest = distance.kthvalue(min(2, len(distance)), dim=0).values
    order, scores = [], []
    for _ in range(count):
        # argmax names the first of equal ones.
        pick = nearest.masked_fill(taken, -torch.inf).argmax()
        order.append(pick)
        scores.append(nearest[pick])
        nearest = torch.minimum(nearest, distance[pick]) if len(order) > 1 else distance[pick]
        taken[pick] = True
    if not order:
        return torch.zeros(0, dtype=torch.int64, device=distance.device), distance.new_zeros(0)
    return torch.stack(order), torch.stack(scores)


def operations(shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]) -> Iterator[Operation]:
    """Return the products of all pairs of an image's tokens."""
    for image in shape.images:
        size = image.patches
        yield Operation("distances", "ranking", None, "prefill", size, dims.hidden, size)
