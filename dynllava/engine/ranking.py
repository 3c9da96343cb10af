"""From scores to the tokens that stay: counts of a keep rule, ranks, ties to the earlier token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynllava.plan import Count, Cut, Rule, Share
from dynllava.plan.keeps import TOLERANCE

if TYPE_CHECKING:
    from .view import View


@dataclass(frozen=True)
class Dropped:
    """What a cut drops.

    Attributes
    ----------
    order : Tensor [B, L] int64
        Stream rows, the highest score first.
    kept, count : Tensor [B] int64
        Image tokens that stay and that go; the latter are ``order[:, kept : kept + count]``.
    new : Tensor [B] int64
        Tokens that are to stand for them.
    """

    order: torch.Tensor
    kept: torch.Tensor
    count: torch.Tensor
    new: torch.Tensor


def kept_counts(
    cut: Cut, view: View, original: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Return [B] int64: image tokens that stay.

    Parameters
    ----------
    cut : Cut
        Its keep rule counts.
    view : View
        What a rule that depends on the data looks at.
    original, present : Tensor [B] int64
        Image tokens that reached layer 0, and those at the cut.
    """
    keep = cut.keep
    if isinstance(keep, Share):
        base = original if keep.of == "original" else present
        wanted = base.double() * keep.rate
        if keep.rounding == "half_even":
            number = wanted.round().long()
        else:
            number = (wanted + (TOLERANCE if keep.rounding == "floor" else 0.0)).floor().long()
    elif isinstance(keep, Count):
        number = torch.full_like(present, keep.number)
    elif isinstance(keep, Rule):
        number = keep.function(view).to(present.device)
    else:
        number = (present + 1) // 2
    spare = getattr(keep, "spare", 0)
    return torch.minimum(number, present - spare).clamp(min=0)


def ranked(scores: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order [B, L] of the candidates, best first, and each column's rank [B, L].

    ``scores`` is [B, L] float, ``candidates`` [B, L] bool; of equal scores the earlier one is
    better, so that a choice never depends on the sort kernel.
    """
    masked = scores.masked_fill(~candidates.to(scores.device), float("-inf"))
    order = torch.argsort(masked, dim=1, descending=True, stable=True)
    columns = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(1, order, columns)


def keep_highest(
    scores: torch.Tensor, candidates: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Return [B, L] bool: everything but the candidates, and the best ``counts`` [B] of those."""
    _, rank = ranked(scores, candidates)
    best = (rank < counts.to(rank.device)[:, None]).to(candidates.device)
    return ~candidates | best


def left_aligned(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Return [B, width] int64: columns of the True entries first, in order."""
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :width]
