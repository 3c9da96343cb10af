"""How HiRED shares a picture's budget between its crops, and the official program's order of them.

The whole picture (the first crop) gets a part of the budget, the crops the rest, by the attention
that the tower's class token pays to the part of the whole picture that each of them covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import Picture


def shared(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """Return whole numbers in proportion to ``weights`` that add up to ``total``.

    None is larger than its ``room``; what is left over goes to the largest remainders.
    """
    given = [0] * len(room)
    while left := min(total, sum(room)) - sum(given):
        free = [index for index in range(len(room)) if given[index] < room[index]]
        weight = sum(weights[index] for index in free)
        parts = {i: left * weights[i] / weight if weight else left / len(free) for i in free}
        whole = {i: min(int(part), room[i] - given[i]) for i, part in parts.items()}
        if not any(whole.values()):
            # sorted() leaves equal remainders in order: the earlier crop is first.
            best = sorted(free, key=lambda index: parts[index], reverse=True)
            whole = dict.fromkeys(best[:left], 1)
        for index, number in whole.items():
            given[index] += number
    return given


def covered(scores: torch.Tensor, picture: Picture, patches: int) -> list[float]:
    """Return the sum of the whole picture's ``scores`` [patches] over the area of each crop.

    The map of crops shows the same picture without padding, so a patch of the whole picture lies
    where its centre falls on the map.
    """
    import torch

    rows, columns = picture.shape
    side = int(patches**0.5)
    centre = (torch.arange(side) + 0.5) / side
    crop = (picture.places[patches:] // patches).view(rows, columns)
    at = crop[(centre * rows).long()][:, (centre * columns).long()].flatten()
    found = torch.zeros(picture.crops, dtype=torch.float64)
    return found.index_add_(0, at, scores.double().cpu())[1:].tolist()


def official_voters(order: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return bool [N]: the first ``int(N * (1 - alpha))`` patches of ``order`` [N], which vote."""
    votes = order != order
    votes[order[: int(len(order) * (1 - alpha))]] = True
    return votes


def official_order(picture: Picture, patches: int) -> torch.Tensor:
    """Return the crops' patches, crop * patches + patch, as the official program reads them.

    Rows and columns of crops change places, and the padding of that map is cut off.
    """
    import torch

    (high, wide), (height, width) = picture.grid[::-1], picture.size or (1, 1)
    side = int(patches**0.5)
    marks = torch.arange(patches, picture.crops * patches).view(high, wide, side, side)
    found = marks.transpose(1, 2).reshape(high * side, wide * side)
    rows, columns = found.shape
    if width / height > columns / rows:
        cut = (rows - int(height * (columns / width))) // 2
        return found[cut : rows - cut].flatten()
    cut = (columns - int(width * (rows / height))) // 2
    return found[:, cut : columns - cut].flatten()
