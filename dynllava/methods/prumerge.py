"""LLaVA-PruMerge and PruMerge+ (Shang et al. 2024): attention outliers, with what resembles them.

Class-token attention over the keys of the tower's layer behind the selected features, heads not
separated.  Its outliers stay (PruMerge+ adds patches at equal distances); the patches whose keys
resemble a kept one most are added to it, and one more token sums up all that did not stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.plan import NEXT, Cut, ModelDims, Operation, Plan, Rule, Shape, Stage, Tower
from dynllava.plan.keeps import TOLERANCE

from .base import Method, check_choice, check_fraction, share
from .patches import POSITIONS

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView, Rows

KEYS, QUERY = Tower("keys", NEXT), Tower("class_query", NEXT)
#: Patches that are added to each kept one.
NEIGHBOURS = 32
#: Mean shares of 576 tokens that the paper reports for the adaptive forms.
REPORTED = {False: 32 / 576, True: 144 / 576}


@dataclass(frozen=True)
class PruMerge(Method):
    """Keeps outliers of class-token attention and merges what resembles them into them.

    Parameters
    ----------
    plus : bool
        PruMerge+: patches at equal distances stay too.
    ratio : float or None
        None = adaptive, the outliers' number depends on the image.  A share fixes the number of
        patches chosen by attention (the official training path: 1/8); ``plus`` then adds as many
        at equal distances.
    positions : str
        ``"compact"`` (as the official program) or ``"original"``; tokens are in order of attention
        either way.
    strict_official : bool
        The fixed form of PruMerge+ lists a patch twice where attention and grid choose it, and
        loses as many of the first patches that did not stay; otherwise the next by attention
        stands in.
    """

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = "outliers of class-token attention, others merged into them"
    source: ClassVar[str] = "arXiv 2403.15388, official repository 42Shawn/LLaVA-PruMerge"
    certificate: ClassVar[str] = "golden/vision_side"

    plus: bool = False
    ratio: float | None = share(None)
    positions: str = "compact"
    strict_official: bool = False

    @property
    def title(self) -> str:
        """``prumerge``, ``prumerge+``; adaptive where the image sets the number of tokens."""
        form = f"{self.name}+" if self.plus else self.name
        return f"{form} adaptive" if self.ratio is None else form

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        if self.ratio is not None:
            check_fraction("ratio", self.ratio)
        check_choice("positions", self.positions, POSITIONS)
        keep = Rule(lambda view: len(self.kept(attention(view))) + 1, self._declared)
        looks = (KEYS, QUERY)
        cut = Cut(0, keep, by=looks, stage="features", positions=self.positions)
        return Plan((cut,), work=(self._work,))

    def _declared(self, shape: Shape, present: int) -> int:
        if not present:
            return 0
        if self.ratio is None:
            return max(1, round(REPORTED[self.plus] * present))
        return sum(self._fixed(present)) + 1

    def _fixed(self, patches: int) -> tuple[int, int]:
        """Return the patches by attention and at equal distances of the fixed form."""
        top = min(int(patches * (self.ratio or 0.0) + TOLERANCE), patches - 1)
        if not self.plus:
            return top, 0
        if self.strict_official:
            return top, len(self._official_grid(patches))
        return top, min(top, patches - 1 - top)

    def _official_grid(self, patches: int) -> range:
        step = int(1 / (self.ratio or 1.0))
        return range(step // 2, patches - 1, step)

    def kept(self, received: torch.Tensor) -> torch.Tensor:
        """Return the kept patches [K] in the order of the tokens, from their attention [N]."""
        import torch

        patches, device = len(received), received.device
        order = torch.argsort(received, descending=True, stable=True)
        if self.ratio is None:
            outliers = int((received > fence(received)).sum())
            ratio = outliers / patches
            top = order[: int(patches * ratio)]
            if not self.plus:
                return top
            # The last patch is never sampled; without outliers the first alone is.
            step = max(1, int(1 / ratio) // 3) if outliers else patches
            grid = torch.arange(0, patches - 1, step, device=device)
            return torch.cat([top, grid[~torch.isin(grid, top)]])
        first, more = self._fixed(patches)
        top = order[:first]
        if self.plus and self.strict_official:
            return torch.cat([top, torch.tensor(self._official_grid(patches), device=device)])
        grid = (2 * torch.arange(more, device=device) + 1) * patches // (2 * max(1, more))
        grid = grid[~torch.isin(grid, top)]
        spare = order[first:]
        spare = spare[~torch.isin(spare, grid)]
        return torch.cat([top, grid, spare[: more - len(grid)]])

    def rows(self, view: ImageView) -> Rows:
        """Return the kept patches, each with its neighbours, and the sum of the others."""
        import torch

        from dynllava.engine.rows import GROUP, Rows

        received = attention(view)
        kept = self.kept(received)
        cluster, rest = neighbours(view.tower[KEYS][1:], kept)
        weights = received.new_zeros(len(kept) + 1, len(received))
        # Sums, not averages: a neighbour weighs what the class token gives it.
        weights[:-1].scatter_add_(1, kept[:, None], torch.ones_like(received)[kept, None])
        weights[:-1].scatter_add_(1, cluster, received[cluster])
        weights[-1, rest] = received[rest]
        features = (weights @ view.features.float()).to(view.features)
        return Rows(features, torch.cat([kept, kept.new_tensor([GROUP])]), weights)

    def _work(
        self, shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]
    ) -> Iterator[Operation]:
        """Return class-token scores, cosines of the keys, and sums."""
        if dims.tower is None:
            return
        width = dims.tower.hidden
        # The stage's own rule: a ledger of realised lengths puts their number there.
        keep = next(stage.cut.keep for stage in stages if stage.cut.stage == "features")
        for image in shape.images:
            size, kept = image.patches, keep.count(shape, image.patches, image.patches) - 1
            sizes = {
                ("class_scores", "ranking"): (1, width, size + 1),
                ("cosines", "merging"): (kept, width, size),
                ("sums", "merging"): (kept + 1, size, width),
            }
            for (name, component), (m, k, n) in sizes.items():
                yield Operation(name, component, None, "prefill", m, k, n)


def attention(view: ImageView) -> torch.Tensor:
    """Return the class token's attention to the patches [N], one softmax over all channels."""
    keys, query = view.tower[KEYS].float(), view.tower[QUERY].float()
    scores = query[None] @ keys.T * keys.shape[-1] ** -0.5
    return scores.softmax(-1)[0, 1:]


def fence(received: torch.Tensor) -> torch.Tensor:
    """Return the bound above which attention is an outlier: Q3 + 1.5 (Q3 - Q1)."""
    low, high = received.quantile(received.new_tensor([0.25, 0.75]))
    return high + 1.5 * (high - low)


def neighbours(keys: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest patches of each kept one [K, 32], ascending, and those that do not stay.

    Parameters
    ----------
    keys : Tensor [N, C]
        Of the patches.
    kept : Tensor [K] int64
        A patch that is listed twice is a neighbour of itself, and one other patch less is seen.
    """
    import torch

    away = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    away[kept] = False
    rest = away.nonzero().flatten()
    rest = rest[len(rest) - (len(keys) - len(kept)) :]
    listed, order = torch.cat([kept, rest]).sort(stable=True)
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    cosine = unit[kept] @ unit[listed].T
    cosine.scatter_(1, order.argsort()[: len(kept), None], -torch.inf)
    most = min(NEIGHBOURS, len(listed) - 1)
    nearest = torch.argsort(cosine, dim=1, descending=True, stable=True)[:, :most]
    return listed[nearest].sort(1).values, rest
