"""K/V buffers that batches of one shape take one after the other, at fixed addresses.

A captured graph (CUDA graphs) replays on the addresses that it saw.  One cache holds the buffers at
a time: a second one that lives beside it gets room of its own.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .cache import SparseCache


class Buffers:
    """The buffers of one model.

    Parameters
    ----------
    capacity : int
        Tokens of a row, prompt and output, that there is room for.  A layer that some tokens of
        the prompt never reach has as much less.  A batch that outgrows it goes on in room of its
        own.

    Attributes
    ----------
    behind : int
        Tokens that the present batch has room for behind its prompt.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.behind = 0
        self._kept: dict[tuple[int, str], torch.Tensor] = {}
        self._holder: weakref.ref[SparseCache] | None = None

    def lend(self, cache: SparseCache, prompt: int) -> bool:
        """Give the buffers to a cache whose longest row has ``prompt`` tokens, if they are free."""
        holder = None if self._holder is None else self._holder()
        if holder is not None and holder is not cache and not holder.is_empty:
            return False
        if prompt >= self.capacity:
            return False
        self._holder, self.behind = weakref.ref(cache), self.capacity - prompt
        return True

    def placed(self, layer: int, name: str, entries: torch.Tensor, capacity: int) -> torch.Tensor:
        """Return ``entries`` [B, H, count, d] at the beginning of the layer's buffer.

        Rows, heads and width are those of ``entries``; the buffer is ``capacity`` entries long, or
        as long as the one that is there, and the rest of it is 0.
        """
        batch, heads, count, dim = entries.shape
        kept = self._kept.get((layer, name))
        fits = (
            kept is not None
            and (*kept.shape[:2], kept.shape[3]) == (batch, heads, dim)
            and kept.shape[2] >= capacity
            and (kept.dtype, kept.device) == (entries.dtype, entries.device)
        )
        if kept is None or not fits:
            kept = entries.new_empty(batch, heads, capacity, dim)
            self._kept[layer, name] = kept
        kept[:, :, :count] = entries
        # What another batch left must not be weighed, not even by 0.
        kept[:, :, count:] = 0
        return kept

    def addresses(self) -> tuple[int, ...]:
        """Return where the buffers lie."""
        return tuple(tensor.data_ptr() for tensor in self._kept.values())


class LayerBuffers:
    """One layer's part of them, for a cache that holds them."""

    def __init__(self, buffers: Buffers, layer: int) -> None:
        self.buffers, self.layer = buffers, layer

    @property
    def behind(self) -> int:
        """Tokens that there is room for behind the prompt."""
        return self.buffers.behind

    def placed(self, name: str, entries: torch.Tensor, capacity: int) -> torch.Tensor:
        """See :meth:`Buffers.placed`."""
        return self.buffers.placed(self.layer, name, entries, capacity)
