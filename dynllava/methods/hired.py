"""HiRED (Arif et al., AAAI 2025): class-token attention chooses patches, and shares the budget.

With one crop an image (LLaVA-1.5) it is the rule of FasterVLM with ``int(N * rate)`` patches.  With
several (LLaVA-NeXT) a part of the budget goes to the whole picture; the crops get the rest, by the
attention of the tower's first layer to what each of them shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.errors import UserError
from dynllava.plan import Plan, Rule, Shape, Tower

from .base import check_fraction
from .crop_budgets import covered, official_order, official_voters, shared
from .patches import Patches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView, Rows

CLASS_ROW, FIRST = Tower("class_row"), Tower("class_row", 0, several=True)


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
    alpha : float
        Share of the budget that the whole picture gets where there are several crops (official
        scripts: 0.5).
    strict_official : bool
        Several crops as in the official program: the best patches of the first layer vote, each
        crop is taken for a horizontal strip of the picture, remainders are lost, rows and columns
        of crops change places, padding beyond the picture is chosen from and cut off, newline
        tokens leave.  Otherwise attention is summed over each crop's area and the budget is met.
    """

    name: ClassVar[str] = "hired"
    summary: ClassVar[str] = "patches the tower's class token attends to, and a grid"
    source: ClassVar[str] = "arXiv 2408.10945, official repository hasanar1f/HiRED"
    certificate: ClassVar[str] = "golden/vision_side"

    spatial: float = 0.0
    alpha: float = 0.5
    strict_official: bool = False

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_fraction("spatial", self.spatial, low_open=False)
        check_fraction("alpha", self.alpha, low_open=False)
        if self.strict_official and self.positions != "compact":
            raise UserError("hired: strict_official numbers positions anew: positions=compact")
        keep = self.keeps("truncate")
        rule = Rule(self._count, self._declared) if self.spatial else keep
        return self.before(rule, CLASS_ROW, FIRST, crops=True)

    def rows(self, view: ImageView) -> Rows:
        """Return the chosen patches in the order of the tokens."""
        import torch

        from dynllava.engine.rows import GROUP, Rows

        if not view.crops:
            return view.take(self.choose(view).nonzero().flatten())
        picture, patches = view.picture, view.crops[0].features.shape[0]
        chosen = torch.cat(list(self.masks(view)))
        packed = picture.places.to(chosen.device)
        if not self.strict_official:
            return view.take(chosen[packed].nonzero().flatten())
        order = torch.cat([torch.arange(patches), official_order(picture, patches)])
        order = order.to(chosen.device)
        order = order[chosen[order]]
        place = chosen.new_full(chosen.shape, GROUP, dtype=torch.int64)
        place[packed] = torch.arange(len(packed), device=chosen.device)
        features = torch.cat([crop.features for crop in view.crops])
        return Rows(features[order], place[order], alone=True)

    def choose(self, view: ImageView) -> torch.Tensor:  # type: ignore[override]
        """Return [N] bool, of one crop: the best patches, and those of the grid."""
        import torch

        scores = view.tower[CLASS_ROW].sum(0)
        number = self._best(scores.shape[0])
        best = ranked(scores)[:number]
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[best] = True
        chosen[:: self._step(scores.shape[0])] |= self.spatial > 0
        return chosen

    def masks(self, view: ImageView) -> torch.Tensor:
        """Return bool [crops, N]: the patches chosen in each crop of a picture."""
        import torch

        scores = torch.stack([crop.tower[CLASS_ROW].sum(0) for crop in view.crops])
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        flat, packed = chosen.view(-1), view.picture.places.to(scores.device)
        if not self.strict_official:
            # Padding is not chosen from.
            present = torch.zeros_like(flat)
            present[packed] = True
            scores = scores.masked_fill(~present.view_as(scores), -torch.inf)
        for crop, number in enumerate(self.budgets(view)):
            chosen[crop, ranked(scores[crop])[:number]] = True
        if self.spatial:
            flat[packed[:: self._step(len(packed))]] = True
        return chosen

    def budgets(self, view: ImageView) -> list[int]:
        """Return the patches that the whole picture and each crop keep."""
        first = view.crops[0].tower[FIRST].sum(0)
        size, crops = len(first), len(view.crops) - 1
        if self.strict_official:
            total = self._best((crops + 1) * size)
            full = min(int(total * self.alpha), size)
            rest = min(total - full, crops * size)
            # Each crop is taken for a strip of as many patches in raster order.
            votes = official_voters(ranked(first), self.alpha).view(crops, -1).sum(1).tolist()
            return [full, *(min(int(rest * part / max(1, sum(votes))), size) for part in votes)]
        total = self._best(len(view.features))
        room = (view.picture.places[size:] // size).bincount(minlength=crops + 1)[1:].tolist()
        full = max(min(int(total * self.alpha), size), total - sum(room))
        return [full, *shared(total - full, covered(first, view.picture, size), room)]

    def _best(self, patches: int) -> int:
        return self.keeps("truncate").count(Shape(()), patches, patches)

    def _step(self, patches: int) -> int:
        return patches // max(1, int(patches * self.spatial))

    def _count(self, view: ImageView) -> int:
        return len(self.rows(view).origin)

    def _declared(self, shape: Shape, present: int) -> int:
        """Return the patches kept, if the grid's are as often among the best as any other."""
        if not present:
            return 0
        best, grid = self._best(present), -(-present // self._step(present))
        return best + round(grid * (1 - best / present))


def ranked(scores: torch.Tensor) -> torch.Tensor:
    """Return the patches by falling score."""
    import torch

    return torch.argsort(scores, descending=True, stable=True)
