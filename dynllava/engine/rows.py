"""Rows of an image before layer 0: what a method sees of one image, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.plan import Cut, Rule, Shape, Tower

#: Origins of rows that are no single patch.
CLASS_TOKEN, GROUP = -2, -3


@dataclass(frozen=True)
class Rows:
    """Rows of one image that reach the language model, in order.

    Attributes
    ----------
    features : Tensor [K, C]
        Before the projector at the stage ``features``, behind it at ``embedded``.
    origin : Tensor [K] int64
        The patch that a row is (or is built around); :data:`CLASS_TOKEN` or :data:`GROUP` for a
        row that stands for no single patch.
    weights : Tensor [K, N] or None
        Weight of each patch in each row, where rows are merged.
    place : Tensor [K] int64 or None
        Raster index whose position a row takes where positions stay; default: its origin, for other
        rows the weighted mean of their patches' indices.
    alone : bool
        Tokens of the picture that are no patches (newlines) leave too.
    """

    features: torch.Tensor
    origin: torch.Tensor
    weights: torch.Tensor | None = None
    place: torch.Tensor | None = None
    alone: bool = False

    def places(self, patches: int) -> torch.Tensor:
        """Return [K] int64: the raster index whose position each row takes."""
        if self.place is not None:
            return self.place
        centre = torch.full_like(self.origin, (patches - 1) // 2)
        if self.weights is not None:
            weights = self.weights.abs().double()
            index = torch.arange(patches, device=weights.device).double()
            mean = (weights @ index) / weights.sum(1).clamp(min=1e-12)
            centre = mean.round().long().clamp(0, patches - 1)
        return torch.where(self.origin >= 0, self.origin, centre)


@dataclass(frozen=True)
class Picture:
    """How the tower's inputs for one picture become its patch tokens.

    Attributes
    ----------
    crops : int
        Inputs of the tower; of several, the first is the whole picture.
    packed : Tensor [P] int64 or None
        Each patch token in order: crop * patches of a crop + patch (padding has none); None = the
        only crop's patches in raster order.
    grid : tuple of int
        Rows and columns of crops, the whole picture left out.
    shape : tuple of int
        Rows and columns of patches of all crops together, without padding and the whole picture.
    size : tuple of int
        Height and width in pixels, where known.
    """

    crops: int = 1
    packed: torch.Tensor | None = None
    grid: tuple[int, int] = (1, 1)
    shape: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None

    @property
    def places(self) -> torch.Tensor:
        """:attr:`packed` of a picture of several crops."""
        assert self.packed is not None  # a picture of several crops has it
        return self.packed


@dataclass
class ImageView:
    """What a method may look at before layer 0: one image, or one crop of it.

    Attributes
    ----------
    features : Tensor [N, C]
        Its patches in raster order; before the projector or behind it, as the cut's stage says.
    class_token : Tensor [C] or None
        The tower's class token at the selected feature layer.
    tower : dict
        What the cut's :class:`~dynllava.plan.Tower` looks saw, by look.
    cut : Cut
        The cut that is being decided.
    number : int or None
        A crop's part of the picture's budget.
    question : str or None
        What is asked about the image, where the caller said so (``questions=``).
    crops : tuple of ImageView
        Where a cut takes all crops together (``Cut.crops``): each crop with all its patches,
        padding included.  ``features`` are then the picture's patch tokens in order, and there is
        neither class token nor ``tower`` beside those of the crops.
    picture : Picture
        How crops become tokens.
    """

    features: torch.Tensor
    cut: Cut
    class_token: torch.Tensor | None = None
    tower: dict[Tower, torch.Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    number: int | None = None
    crops: tuple[ImageView, ...] = ()
    picture: Picture = field(default_factory=Picture)
    question: str | None = None
    _memo: dict[str, Any] = field(default_factory=dict)

    def count(self) -> int:
        """Return how many rows the cut's keep rule wants of this image (or crop)."""
        if self.number is not None:
            return self.number
        keep, present = self.cut.keep, self.features.shape[0]
        if isinstance(keep, Rule):
            return int(keep.function(self))
        return keep.count(Shape(()), present, present)

    def states(self) -> torch.Tensor:
        """Return [N + 1, C]: the class token, then the patches."""
        if self.class_token is None:
            raise UserError("the vision tower has no class token")
        return torch.cat([self.class_token[None], self.features])

    def memo(self, name: str, build: Callable[[], Any]) -> Any:
        """Return what ``build`` returned when ``name`` was first asked for of this image."""
        if name not in self._memo:
            self._memo[name] = build()
        return self._memo[name]

    def take(self, index: torch.Tensor) -> Rows:
        """Return the given patches [K] as rows."""
        return Rows(self.features[index], index)


def decide_rows(method: Any, view: ImageView) -> Rows:
    """Return the rows of one image: a method's own, or the patches that it scores or chooses.

    Patches stay in raster order; of equal scores the earlier one stays.
    """
    if method.has("rows"):
        return method.rows(view)
    if method.has("score"):
        scores = method.score(view)
        order = torch.argsort(scores, descending=True, stable=True)[: view.count()]
        return view.take(order.sort().values)
    if method.has("choose"):
        return view.take(method.choose(view).nonzero().flatten())
    if view.count() == 0:
        return view.take(torch.zeros(0, dtype=torch.int64, device=view.features.device))
    raise UserError(f"{method.name}: a cut before layer 0 needs rows, score or choose")


def decide_all(method: Any, views: Sequence[ImageView]) -> list[Rows]:
    """Return the rows of several images, those that are alike chosen from together."""
    if method.has("rows") or method.has("score") or not method.has("choose"):
        return [decide_rows(method, view) for view in views]
    alike: dict[tuple[int, int], list[int]] = {}
    for number, view in enumerate(views):
        alike.setdefault((view.features.shape[0], view.count()), []).append(number)
    found: dict[int, Rows] = {}
    for numbers in alike.values():
        chosen = method.choose_all([views[number] for number in numbers])
        for number, mask in zip(numbers, chosen, strict=True):
            found[number] = views[number].take(mask.nonzero().flatten())
    return [found[number] for number in range(len(views))]


def decide_pictures(
    method: Any, pictures: Sequence[tuple[Sequence[ImageView], Picture]]
) -> list[Rows]:
    """Return the rows of several pictures; those of one crop are chosen from together."""
    single = [crops[0] for crops, picture in pictures if picture.packed is None]
    found = iter(decide_all(method, single))
    return [
        next(found) if picture.packed is None else decide_picture(method, crops, picture)
        for crops, picture in pictures
    ]


def decide_picture(method: Any, crops: Sequence[ImageView], picture: Picture) -> Rows:
    """Return the rows of one picture from what the tower saw of its crops.

    Several crops are decided together where the cut says so, otherwise each by itself: of the
    patches that are tokens, and with a part of the picture's budget that is as large as its part of
    the tokens.
    """
    if picture.packed is None:
        return decide_rows(method, crops[0])
    cut, patches = crops[0].cut, crops[0].features.shape[0]
    features = torch.cat([crop.features for crop in crops])
    packed = picture.packed.to(features.device)
    asked = crops[0].question
    whole = ImageView(features[packed], cut, crops=tuple(crops), picture=picture, question=asked)
    if cut.crops:
        return decide_rows(method, whole)
    fixed = getattr(cut.keep, "function", None) is None
    total, behind, given = whole.count() if fixed else 0, 0, 0
    chosen = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for number, crop in enumerate(crops):
        here = packed[packed // patches == number].sort().values - number * patches
        behind += len(here)
        upto = total * behind // max(1, len(packed))
        part = ImageView(
            crop.features[here],
            cut,
            crop.class_token,
            {look: _of_patches(look, seen, here) for look, seen in crop.tower.items()},
            crop.record,
            upto - given if fixed else None,
            question=crop.question,
        )
        given = upto
        chosen[here[decide_rows(method, part).origin] + number * patches] = True
    return whole.take(chosen[packed].nonzero().flatten())


def _of_patches(look: Tower, seen: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Return what a look saw of some patches alone."""
    if look.what == "class_row":
        return seen[:, patches]
    if look.what == "keys":
        return torch.cat([seen[:1], seen[1:][patches]])
    return seen
