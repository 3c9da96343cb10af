"""Write-then-commit KV cache with a length per row.

A decode step writes the new K/V behind each row's entries, attends to them all, and then
advances the length only of the rows that keep the token.  A dropped token is overwritten by
the next one, so nothing is copied and nothing branches, and the current token always takes part in
its own step (paper Eq. 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

from dynllava.plan import Segment
from dynllava.plan.stores import DEFAULT_CHUNK, room

from . import flash
from .attention import ExtendCall, PromptCall, StepCall, attend, observe_cached
from .buffers import LayerBuffers

if TYPE_CHECKING:
    from .buffers import Buffers
    from .decoder import DecoderResult
    from .stream import TokenStream


@dataclass
class Lengths:
    """Entries per row, shared by consecutive layers that always hold the same tokens.

    Attributes
    ----------
    length : Tensor [B] int64
        Valid entries per row.
    bound : int
        Host-side upper bound of ``length``.
    exact : bool
        True if every row holds exactly ``bound`` entries (then no mask is needed).
    compact : bool
        A decode query's position is ``length`` instead of the place in the full sequence.
    tight : bool
        ``bound`` is the longest row's length.
    """

    length: torch.Tensor
    bound: int
    exact: bool
    compact: bool = False
    tight: bool = True

    def tighten(self) -> None:
        """Set the bound to the true maximum: where tokens are dropped, a host synchronisation."""
        if not self.exact and not self.tight:
            self.bound, self.tight = int(self.length.max()), True

    def advance(self, count: int, kept: torch.Tensor | None) -> None:
        """Commit ``count`` written tokens; ``kept`` [B] of them stay, None = all."""
        if kept is None:
            self.length = self.length + count
        else:
            self.length = self.length + kept.to(self.length)
            self.exact = self.tight = False
        self.bound += count

    def index(self, rows: torch.Tensor) -> None:
        """Reorder or repeat rows."""
        self.length = self.length.index_select(0, rows.to(self.length.device))
        self.tight = False


class LayerStore:
    """K and V of one layer, ``[B, Hkv, capacity, d]``.

    ``shares_lengths`` tells whether the decoder commits the group's lengths after a call (True), or
    the store keeps its own books (methods that evict per head).  ``masks_prompt``: the store hides
    keys from the prompt's own attention.
    """

    shares_lengths = True
    masks_prompt = False

    def __init__(self, lengths: Lengths, chunk: int | None = DEFAULT_CHUNK) -> None:
        self.lengths = lengths
        self.chunk = chunk
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None
        self.buffers: LayerBuffers | None = None

    def entries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K and V of a store that holds a prompt."""
        assert self.key is not None  # the prompt comes first
        assert self.value is not None
        return self.key, self.value

    @property
    def capacity(self) -> int:
        """Allocated entries per row."""
        return 0 if self.key is None else self.key.shape[2]

    def fill_prompt(self, key: torch.Tensor, value: torch.Tensor, call: PromptCall) -> None:
        """Store the first tokens, [B, Hkv, L, d]; entries past a row's length get overwritten."""
        if self.buffers is not None:
            capacity = key.shape[2] + self.buffers.behind
            self.key = self.buffers.placed("key", key, capacity)
            self.value = self.buffers.placed("value", value, capacity)
            return
        capacity = room(key.shape[2] + 1, self.chunk, grown=False)
        self.key, self.value = allocated(key, capacity), allocated(value, capacity)

    def step(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        call: StepCall,
    ) -> torch.Tensor:
        """Write one token [B, H, 1, d] behind each row's entries and attend to them and itself."""
        self.write(call.places, key, value)
        keys, values = self.entries()
        if call.probe is not None:
            seen = keys[:, :, : call.span]
            call.observed = observe_cached(query, seen, call.probe, scaling, call.mask)
        if call.kernel == flash.NAME:
            return flash.step(query, keys, values, scaling, self.lengths.length + 1)
        return attend(
            query,
            keys[:, :, : call.span],
            values[:, :, : call.span],
            scaling,
            mask=call.mask,
            kernel=call.kernel,
        )

    def extend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        call: ExtendCall,
    ) -> torch.Tensor:
        """Attend q tokens [B, H, q, d] to the cache and among themselves, then write them."""
        keys, values = self.entries()
        keys = torch.cat([keys[:, :, : call.span], key], 2)
        values = torch.cat([values[:, :, : call.span], value], 2)
        if call.probe is not None:
            call.observed = observe_cached(query, keys, call.probe, scaling, call.mask)
        out = attend(query, keys, values, scaling, mask=call.mask, kernel=call.kernel)
        self.write(call.places, key, value)
        return out

    def next_position(self) -> torch.Tensor:
        """Return [B] int64: position of the next token if positions are compact."""
        return self.lengths.length

    def grow(self, needed: int) -> None:
        """Allocate room for ``needed`` entries per row."""
        if needed > self.capacity:
            capacity = room(needed, self.chunk, grown=True)
            key, value = self.entries()
            # One after the other: what was copied is given back first.
            self.key = allocated(key, capacity)
            self.value = allocated(value, capacity)

    def prepare(self, count: int) -> None:
        """Do on the host what ``count`` further tokens need (stores with books of their own)."""

    def write(
        self, at: torch.Tensor | slice | None, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Write new entries.

        Parameters
        ----------
        at : Tensor [B * Hkv * q] int64, or slice
            Where each entry goes (:func:`places`), or the slots of every row and head.
        key, value : Tensor [B, Hkv, q, d]
            New entries.
        """
        keys, values = self.entries()
        if isinstance(at, slice):
            keys[:, :, at], values[:, :, at] = key, value
            return
        assert at is not None
        keys.view(-1, keys.shape[-1]).index_copy_(0, at, key.reshape(-1, keys.shape[-1]))
        values.view(-1, values.shape[-1]).index_copy_(0, at, value.reshape(-1, values.shape[-1]))

    def index(self, rows: torch.Tensor) -> None:
        """Reorder or repeat rows."""
        if self.key is not None and self.value is not None:
            rows = rows.to(self.key.device)
            self.key = self.key.index_select(0, rows)
            self.value = self.value.index_select(0, rows)

    def stored_bytes(self) -> torch.Tensor:
        """Return [B] int64: bytes of the valid entries, K and V."""
        if self.key is None:
            return torch.zeros_like(self.lengths.length)
        return self.lengths.length * self.entry_bytes()

    def entry_bytes(self) -> int:
        """Return the bytes of one entry, K and V of all heads; 0 before the prompt."""
        if self.key is None:
            return 0
        _, heads, _, dim = self.key.shape
        return 2 * heads * dim * self.key.element_size()

    def allocated_bytes(self) -> int:
        """Return bytes allocated for K and V, all rows."""
        if self.key is None:
            return 0
        return 2 * self.key.numel() * self.key.element_size()


class SparseCache(Cache):
    """The cache of one batch: a :class:`LayerStore` a layer and what must survive between calls.

    Parameters
    ----------
    chunk : int or None
        How it grows, see :func:`dynllava.plan.stores.room`.
    buffers : Buffers or None
        Taken by the prompt if no other cache holds them.

    Attributes
    ----------
    stores : list of LayerStore
        One a layer.
    groups : list of Lengths
        Shared lengths, in layer order.
    columns : int
        Input columns fed so far, padding included (what ``generate`` calls the sequence length).
    seen : Tensor [B] int64
        Tokens fed so far per row, padding not counted: the next token's position.
    sample_ids : Tensor [B] int64
        Stable identity of each row.
    outputs : Tensor [B] int64
        Output tokens fed so far per row.
    decisions : list of Tensor [B] bool
        One a fed output token: stored or not in the layers that drop.
    """

    def __init__(self, chunk: int | None = DEFAULT_CHUNK, buffers: Buffers | None = None) -> None:
        super().__init__(layers=[])
        self.chunk = chunk
        self.buffers = buffers
        self.stores: list[LayerStore] = []
        self.groups: list[Lengths] = []
        self.columns = 0
        self.seen: torch.Tensor | None = None
        self.sample_ids: torch.Tensor | None = None
        self.outputs: torch.Tensor | None = None
        self.decisions: list[torch.Tensor] = []
        self.method_state: dict = {}
        self.offset: torch.Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was stored yet."""
        return not self.stores

    @property
    def is_compileable(self) -> bool:
        """The stock static-cache path does not apply."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether a prompt was stored."""
        return not self.is_empty

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the input columns fed so far."""
        return self.columns

    def get_max_length(self, layer_idx: int = 0) -> int:
        """Return -1: the cache grows."""
        return -1

    def new_group(self, length: torch.Tensor, bound: int, *, exact: bool) -> Lengths:
        """Open a group of layers that hold the same tokens."""
        group = Lengths(length, bound, exact)
        self.groups.append(group)
        return group

    def add(self, store: LayerStore, prompt: int) -> LayerStore:
        """Add the next layer's store, of a prompt whose longest row has ``prompt`` tokens there."""
        if not self.stores and self.buffers is not None and not self.buffers.lend(self, prompt):
            self.buffers = None
        if self.buffers is not None:
            store.buffers = LayerBuffers(self.buffers, len(self.stores))
        self.stores.append(store)
        return store

    def make_room(self, count: int) -> None:
        """Let every layer prepare for ``count`` further tokens a row, before they are fed."""
        group: Lengths | None = None
        for store in self.stores:
            if not store.shares_lengths:
                store.prepare(count)
            elif store.lengths is not group:
                group = store.lengths
                # Dropped tokens of an extension share the first slot behind the kept ones, which
                # are fewer then: there is room for it.
                self.reserve(group, count)

    def reserve(self, group: Lengths, extra: int) -> None:
        """Make room for ``extra`` entries behind the longest row of ``group``'s layers."""
        members = (store for store in self.stores if store.lengths is group)
        if group.bound + extra <= next(members).capacity:
            return
        group.tighten()
        for store in self.stores:
            if store.lengths is group:
                store.grow(group.bound + extra)

    def kv_lengths(self) -> torch.Tensor:
        """Return [layers, B] int64: entries stored per layer and row."""
        return torch.stack([store.lengths.length.cpu() for store in self.stores])

    def stored_bytes(self) -> int:
        """Return the bytes of the valid entries, all layers and rows."""
        return int(sum(int(store.stored_bytes().sum()) for store in self.stores))

    def allocated_bytes(self) -> int:
        """Return the bytes allocated, all layers and rows."""
        return sum(store.allocated_bytes() for store in self.stores)

    def commit(
        self,
        result: DecoderResult,
        stream: TokenStream,
        sample_ids: torch.Tensor,
        columns: int,
        seen: torch.Tensor,
    ) -> None:
        """Note what a call fed.

        Parameters
        ----------
        result : DecoderResult
        stream : TokenStream
            What entered layer 0.
        sample_ids : Tensor [B] int64
        columns : int
            Input columns of the call.
        seen : Tensor [B] int64
            Tokens that a prompt counts for the positions of what follows.
        """
        continuing = self.columns > 0
        self.columns += columns
        outputs = stream.is_segment(Segment.OUTPUT).sum(1)
        if not continuing:
            self.seen, self.outputs = seen.clone(), outputs
            self.sample_ids = sample_ids.to(stream.length.device)
            if stream.axes is not None:
                there = stream.valid()[None].expand_as(stream.axes)
                last = torch.where(there, stream.axes, -1).amax(2).amax(0)
                self.offset = last + 1 - self.seen
            return
        self.seen = self.seen + stream.length
        self.outputs = self.outputs + outputs
        if stream.size == 1:
            kept = result.kept
            stored = torch.ones_like(outputs, dtype=torch.bool) if kept is None else kept[:, 0]
            self.decisions.append(stored)

    def fed(self) -> torch.Tensor:
        """Return [B] int64: tokens fed so far, of a cache that holds a prompt."""
        assert self.seen is not None  # the prompt comes first
        return self.seen

    def next_positions(self, count: int, device: Any) -> torch.Tensor:
        """Return rotary positions of the next ``count`` tokens a row: [B, count] or [3, B, count].

        Text moves along all axes at once, so the three are the same.
        """
        seen = self.fed() if self.offset is None else self.fed() + self.offset
        text = seen[:, None]
        if count > 1:
            text = text + torch.arange(count, device=seen.device)
        return text.to(device) if self.offset is None else text.to(device).expand(3, -1, -1)

    def _index(self, rows: torch.Tensor) -> None:
        for store in self.stores:
            store.index(rows)
        for group in self.groups:
            group.index(rows)
        for name in ("seen", "sample_ids", "outputs", "offset"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))
        self.decisions = [d.index_select(0, rows.to(d.device)) for d in self.decisions]
        self.method_state = {
            name: value.index_select(0, rows.to(value.device))
            if isinstance(value, torch.Tensor)
            else value
            for name, value in self.method_state.items()
        }

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follow beam search: row i becomes what row ``beam_idx[i]`` was."""
        self._index(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given rows."""
        self._index(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        if self.seen is not None:
            rows = torch.arange(self.seen.shape[0], device=self.seen.device)
            self._index(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.stores, self.groups, self.decisions = [], [], []
        self.columns = 0
        self.seen = self.sample_ids = self.outputs = self.offset = None
        self.method_state = {}


def allocated(entries: torch.Tensor, capacity: int) -> torch.Tensor:
    """Return ``entries`` [B, H, count, d] at the beginning of a buffer [B, H, capacity, d]."""
    batch, heads, count, dim = entries.shape
    out = entries.new_empty(batch, heads, capacity, dim)
    out[:, :, :count] = entries
    # Masked entries get weight 0, but 0 times whatever lay in memory may be NaN.
    out[:, :, count:] = 0
    return out


def places(slots: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return [B * Hkv * q] int64: slots [B, Hkv or 1, q] counted through a whole store.

    ``shape`` is the store's (B, Hkv, capacity).  A flat index costs a third of three axes' at a
    decode step, where every layer writes one entry a head.
    """
    batch, heads, capacity = shape
    count = batch * heads * capacity
    first = torch.arange(0, count, capacity, device=slots.device).view(batch, heads, 1)
    return (first + slots).flatten()
