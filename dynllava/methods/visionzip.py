"""VisionZip (Yang et al., CVPR 2025): dominant patches, and groups of the others.

The class token itself and the patches that it attends to stay; targets at equal distances among
the other patches each take in the patches whose keys resemble theirs most.  All of it happens on
the tower's features before the projector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from dynllava.errors import UserError
from dynllava.plan import Count, Cut, ModelDims, Operation, Plan, Shape, Share, Stage, Tower

from .base import Method, check_choice, check_fraction, check_number, instead, share
from .patches import POSITIONS

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView, Rows

CLASS_ROW, KEYS = Tower("class_row"), Tower("keys")


class Groups(NamedTuple):
    """Which patches stay, which are targets, and what the targets take in.

    Attributes
    ----------
    dominant : Tensor [d - 1] int64
        By falling attention.
    target, members : Tensor [m], [R] int64
        Patches, ascending.
    nearest : Tensor [R] int64
        Each member's target, counted among the targets.
    cosine : Tensor [R]
        Cosine of their keys.
    """

    dominant: torch.Tensor
    target: torch.Tensor
    members: torch.Tensor
    nearest: torch.Tensor
    cosine: torch.Tensor


@dataclass(frozen=True)
class VisionZip(Method):
    """Keeps dominant tokens, the class token among them, and contextual ones.

    Parameters
    ----------
    keep_ratio : float
        Tokens that are left, as a share of the patches.
    contextual_ratio : float
        Share of them that is contextual (published settings: 10 of 64, 20 of 128, 30 of 192).
    dominant, contextual : int or None
        Their numbers instead of the two shares; ``dominant`` counts the class token.
    positions : str
        ``"compact"`` (as the official program) or ``"original"``: a contextual token takes its
        target's position, the class token the middle patch's.
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "class token, patches it attends to, groups of the others"
    source: ClassVar[str] = "arXiv 2412.04467, official repository dvlab-research/VisionZip"
    certificate: ClassVar[str] = "golden/vision_side"

    keep_ratio: float = share(0.25)
    contextual_ratio: float = 0.15625
    dominant: int | None = instead(None)
    contextual: int | None = instead(None)
    positions: str = "compact"

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_fraction("keep_ratio", self.keep_ratio)
        check_fraction("contextual_ratio", self.contextual_ratio, low_open=False)
        check_number("dominant", self.dominant, optional=True)
        check_number("contextual", self.contextual, first=0, optional=True)
        check_choice("positions", self.positions, POSITIONS)
        if (self.dominant is None) is not (self.contextual is None):
            raise UserError("visionzip: dominant and contextual are given together or not at all")
        keep: Share | Count = Share(self.keep_ratio)
        if self.dominant is not None and self.contextual is not None:
            keep = Count(self.dominant + self.contextual, name="dominant + contextual")
        looks = (CLASS_ROW, KEYS)
        cut = Cut(0, keep, by=looks, stage="features", positions=self.positions)
        return Plan((cut,), work=(self._work,))

    def split(self, kept: int) -> tuple[int, int]:
        """Return how many of ``kept`` tokens are dominant and contextual."""
        if self.contextual is not None:
            return max(0, kept - self.contextual), min(self.contextual, kept)
        contextual = round(kept * self.contextual_ratio)
        return kept - contextual, contextual

    def groups(self, view: ImageView) -> Groups:
        """Return what happens to each patch of an image."""
        import torch

        row, keys = view.tower[CLASS_ROW], view.tower[KEYS]
        dominant, contextual = self.split(view.count())
        order = torch.argsort(row.sum(0), descending=True, stable=True)
        best, others = order.tensor_split([max(0, dominant - 1)])
        others = others.sort().values
        # The step is rounded down: the end of the picture may hold no target.
        step = max(1, len(others) // max(1, contextual))
        is_target = torch.zeros_like(others, dtype=torch.bool)
        is_target[: step * contextual : step] = True
        target, members = others[is_target], others[~is_target]
        metric = keys[1:].float().unflatten(-1, (row.shape[0], -1)).mean(1)
        unit = torch.nn.functional.normalize(metric, dim=-1)
        if contextual == 0:
            return Groups(best, target, members[:0], members[:0], unit.new_zeros(0))
        cosine = unit[members] @ unit[target].T
        # argmax names the first of equal ones.
        nearest = cosine.argmax(1)
        return Groups(best, target, members, nearest, cosine.gather(1, nearest[:, None])[:, 0])

    def rows(self, view: ImageView) -> Rows:
        """Return class token, dominant patches in raster order, then the groups."""
        import torch

        from dynllava.engine.rows import CLASS_TOKEN, Rows

        found, x = self.groups(view), view.features
        first = self.split(view.count())[0] > 0
        sent = x[:0] if view.class_token is None or not first else view.class_token[None]
        kept = found.dominant.sort().values
        merged = x[found.target].float()
        if len(found.target):
            one_hot = torch.nn.functional.one_hot(found.nearest, len(found.target)).T.float()
            # A mean of the members added to the target, not an average of all of them.
            total = one_hot @ x[found.members].float()
            merged = merged + total / one_hot.sum(1, keepdim=True).clamp(min=1)
        features = torch.cat([sent, x[kept], merged.to(x)])
        origin = torch.cat([kept.new_full((len(sent),), CLASS_TOKEN), kept, found.target])
        return Rows(features, origin)

    def _work(
        self, shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]
    ) -> Iterator[Operation]:
        """Return the cosines of members and targets, and the sums of the groups."""
        tower = dims.tower
        if tower is None:
            return
        keep = self.plan(dims.layers).cuts[0].keep
        for image in shape.images:
            dominant, groups = self.split(keep.count(shape, image.patches, image.patches))
            members = image.patches - max(0, dominant - 1) - groups
            sizes = (members, tower.hidden // tower.heads, groups)
            yield Operation("cosines", "ranking", None, "prefill", *sizes)
            yield Operation("groups", "merging", None, "prefill", groups, members, tower.hidden)
