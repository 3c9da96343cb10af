"""Learned tokens between image and text: text behind them sees those, and nothing before them."""

from __future__ import annotations

import torch

from dynllava.errors import UserError
from dynllava.plan import Plan, Segment, Span

from .attention import PromptCall
from .cache import DEFAULT_CHUNK, LayerStore, Lengths
from .stream import TokenStream


def check_split(name: str, plan: Plan) -> None:
    """Refuse plans whose split prompt the engine does not run.

    Raises
    ------
    UserError
        If only one of prompt and store is split, or tokens are dropped beside it.
    """
    split = plan.prompt == "split"
    if split != isinstance(plan.store, Span):
        raise UserError(f"{name}: a split prompt needs a store of the span behind it, and it alone")
    if split and plan.cuts:
        raise UserError(f"{name}: learned tokens stand for the image: nothing else may be dropped")


def first_seen(stream: TokenStream) -> torch.Tensor:
    """Return [B] int64: the row's first learned token, 0 where it has none."""
    learned = stream.is_segment(Segment.VOCO)
    return torch.where(learned.any(1), learned.long().argmax(1), 0)


def split_mask(stream: TokenStream) -> torch.Tensor | None:
    """Return [B, 1, L, L] bool visibility, None where no row has a learned token (causal).

    Up to the last learned token everything before is visible; behind it, nothing before the first.
    """
    learned = stream.is_segment(Segment.VOCO)
    if not bool(learned.any()):
        return None
    rows = torch.arange(stream.size, device=learned.device)
    last = torch.where(learned, rows, -1).amax(1)
    behind = (rows > last[:, None]) & (last >= 0)[:, None]
    hidden = behind[:, :, None] & (rows < first_seen(stream)[:, None])[:, None, :]
    return ((rows <= rows[:, None]) & ~hidden)[:, None]


class SpanStore(LayerStore):
    """A layer's K and V from each row's first learned token on.

    Parameters
    ----------
    lengths : Lengths
        Of what is kept.
    first : Tensor [B] int64
        First row kept.
    """

    def __init__(
        self, lengths: Lengths, first: torch.Tensor, chunk: int | None = DEFAULT_CHUNK
    ) -> None:
        super().__init__(lengths, chunk)
        self.first = first

    def index(self, rows: torch.Tensor) -> None:
        """Reorder or repeat rows."""
        super().index(rows)
        self.first = self.first.index_select(0, rows.to(self.first.device))

    def fill_prompt(self, key: torch.Tensor, value: torch.Tensor, call: PromptCall) -> None:
        """See :meth:`LayerStore.fill_prompt`."""
        columns = torch.arange(self.lengths.bound, device=key.device)
        rows = (self.first.to(key.device)[:, None] + columns).clamp(max=key.shape[2] - 1)
        index = rows[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        super().fill_prompt(key.gather(2, index), value.gather(2, index), call)
