"""What a call did: kept tokens, decisions, tokens per layer, KV bytes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dynllava.plan import Segment

from .cache import LayerStore, Lengths, SparseCache
from .decoder import DecoderResult
from .stream import TokenStream


@dataclass(frozen=True)
class LayerBooks:
    """What a layer's cache holds, without what it holds.

    Attributes
    ----------
    lengths : Lengths
        The store's own: entries per row, kept up to date while it lives.
    entry_bytes : int
        Bytes of one entry, K and V of all heads.
    """

    lengths: Lengths
    entry_bytes: int

    @classmethod
    def of(cls, store: LayerStore) -> LayerBooks:
        """Return the books of a filled store."""
        return cls(store.lengths, store.entry_bytes())


@dataclass
class CallReport:
    """What the latest ``generate()`` or ``forward()`` did.

    Everything is kept as tensors and turned into lists on access, so that asking is what
    synchronises, not decoding.  The cache itself is not kept alive: K and V of one batch must be
    gone before the next one's prompt.
    """

    layer_counts: list[torch.Tensor] = field(default_factory=list)
    selections: list[tuple[int, TokenStream]] = field(default_factory=list)
    final_stream: TokenStream | None = None
    record: dict[str, Any] = field(default_factory=dict)
    decisions: list[torch.Tensor] = field(default_factory=list)
    books: tuple[LayerBooks, ...] = ()
    kv_bytes_allocated: int = 0
    chosen: Any = None
    """What limits made of the method (:class:`dynllava.models.limits.Chosen`), None without."""
    _cache: weakref.ref[SparseCache] | None = None

    @classmethod
    def of_prompt(
        cls, result: DecoderResult, record: dict[str, Any], cache: SparseCache | None
    ) -> CallReport:
        """Return the report of a prompt pass; hidden states and gradients are let go."""
        return cls(
            result.layer_tokens,
            [(layer, _without_hidden(stream)) for layer, stream in result.selections],
            _without_hidden(result.stream),
            detached(record),
            books=() if cache is None else tuple(LayerBooks.of(store) for store in cache.stores),
            _cache=None if cache is None else weakref.ref(cache),
        )

    @property
    def cache(self) -> SparseCache | None:
        """The call's cache, None if there was none or nobody holds it any more."""
        return None if self._cache is None else self._cache()

    @property
    def image_tokens(self) -> list[int]:
        """Image tokens per row that reached the last layer, merged ones included."""
        if self.final_stream is None:
            return []
        return self.final_stream.is_segment(Segment.IMAGE).sum(1).tolist()

    @property
    def kept_image_indices(self) -> list[list[int]]:
        """Per row: image-relative indices (0 = first image token) that reached the last layer."""
        return _image_indices(self.final_stream)

    def kept_image_indices_by_layer(self) -> dict[int, list[list[int]]]:
        """Return layer -> per row: image-relative indices that entered it after a dropping."""
        return {layer: _image_indices(stream) for layer, stream in self.selections}

    @property
    def output_kept(self) -> list[list[bool]]:
        """Per row: for each fed output token, whether the dropping layers store it."""
        if not self.decisions:
            return []
        return torch.stack(self.decisions, 1).tolist()

    @property
    def layer_tokens(self) -> list[list[int]]:
        """Per layer, per row: tokens that entered the layer in the prompt pass."""
        return _read(self.layer_counts)

    @property
    def kv_lengths(self) -> list[list[int]]:
        """Per layer, per row: cache entries stored now."""
        return _read([book.lengths.length for book in self.books])

    @property
    def kv_bytes(self) -> int:
        """Bytes of the stored K and V, all layers and rows."""
        return sum(self.kv_bytes_per_row)

    @property
    def kv_bytes_per_row(self) -> list[int]:
        """Bytes of the stored K and V per row, all layers."""
        layers = _read([book.lengths.length * book.entry_bytes for book in self.books])
        return [sum(row) for row in zip(*layers, strict=True)]


def detached(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with its tensors cut from the autograd graph."""
    return {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in record.items()
    }


def _without_hidden(stream: TokenStream) -> TokenStream:
    return replace(stream, hidden=stream.hidden.detach()[..., :0])


def _read(counts: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return tensors [B] of equal length as lists, in one transfer."""
    if not counts:
        return []
    return torch.stack([count.to(counts[0].device) for count in counts]).tolist()


def _image_indices(stream: TokenStream | None) -> list[list[int]]:
    if stream is None:
        return []
    rows = stream.image_index.tolist()
    return [[index for index in row if index >= 0] for row in rows]
