"""A layer's KV cache that evicts per head, by accumulated attention (H2O).

Every key/value head keeps its own ``heavy`` best entries and the ``recent`` newest ones.  All heads
of a row hold equally many entries, so the store has one length a row but a set of slots a head.
A decode step writes into the head's free slot, attends, adds the attention to the scores and frees
the slot of the loser: nothing moves, nothing is copied, and the host learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynllava.plan import PerHead, Plan
from dynllava.plan.stores import room

from .attention import ExtendCall, LayerCall, PromptCall, StepCall, softmax_weights
from .cache import LayerStore, Lengths, allocated

ABSENT = -1


@dataclass(frozen=True)
class Budget:
    """Entries that each head of each row keeps.

    Attributes
    ----------
    heavy : tuple of int
        [B] entries kept for their score.
    recent : tuple of int
        [B] newest entries, kept whatever their score.
    """

    heavy: tuple[int, ...]
    recent: tuple[int, ...]

    @property
    def total(self) -> tuple[int, ...]:
        """[B] heavy and recent entries."""
        return tuple(h + r for h, r in zip(self.heavy, self.recent, strict=True))


class EvictingStore(LayerStore):
    """Per-head cache of one layer under a budget.

    Parameters
    ----------
    budget : Budget
        What each row keeps.
    lengths : list of int
        Prompt tokens per row that enter this layer.
    compact : bool
        A decode query's position is the number of tokens the layer has seen.
    rolled : bool
        Keys and queries are re-rotated at every step: an entry's position is its rank among the
        entries present.  Otherwise the positions that RoPE gave them stay.
    masks_prompt : bool
        The prompt's own attention is restricted too: to the heavy keys of the whole prompt and
        to the ``recent`` nearest ones.
    chunk : int or None
        Growth of the allocation (:func:`dynllava.plan.stores.room`), up to the budget and one.

    Attributes
    ----------
    ordinal : Tensor [B, Hkv, capacity] int64
        Place of each entry among the tokens that the layer has seen; -1 = empty slot.
    score : Tensor [B, Hkv, capacity] float32
        Attention received since the entry arrived, summed over queries and over the query heads of
        the group.
    place : Tensor [B, Hkv, capacity] int64 or None
        Positions that RoPE gave the keys, where they are rolled.
    free : Tensor [B, Hkv, 1] int64
        The slot of each head's next entry.
    seen : Tensor [B] int64
        Tokens the layer has seen.
    missing : int
        Tokens after which every row is at its budget, at most.
    full : bool
        Whether this step's token takes the last slot of every head: none is empty then.
    """

    shares_lengths = False

    def __init__(
        self,
        budget: Budget,
        lengths: list[int],
        *,
        compact: bool = False,
        rolled: bool = False,
        masks_prompt: bool = False,
        chunk: int | None,
    ) -> None:
        held = [min(length, total) for length, total in zip(lengths, budget.total, strict=True)]
        own = Lengths(torch.tensor(held), max(held), exact=False, compact=compact)
        super().__init__(own, chunk)
        self.limit = max(budget.total)
        self.even = min(budget.total) == self.limit
        self.missing = max(total - count for total, count in zip(budget.total, held, strict=True))
        self.full = False
        self.heavy = torch.tensor(budget.heavy)
        self.recent = torch.tensor(budget.recent)
        self.seen = torch.tensor(lengths)
        self.rolled = rolled
        self.masks_prompt = masks_prompt
        self.ordinal = torch.empty(0)
        self.score = torch.empty(0)
        self.place: torch.Tensor | None = None
        self.free = torch.empty(0)

    @classmethod
    def of(cls, plan: Plan, lengths: list[int], compact: bool, chunk: int | None) -> EvictingStore:
        """Return the store of a layer that ``lengths`` prompt tokens per row enter."""
        rule = plan.store
        if not isinstance(rule, PerHead):
            raise TypeError(f"{rule}: a plan that evicts per head")
        heavy, recent = zip(*(rule.budget(length) for length in lengths), strict=True)
        return cls(
            Budget(heavy, recent),
            list(lengths),
            compact=compact,
            rolled=rule.rolled,
            masks_prompt=plan.prompt == "own_budget",
            chunk=chunk,
        )

    def next_position(self) -> torch.Tensor:
        """Return [B] int64: position of the next token if positions are compact."""
        return self.seen

    def fill_prompt(self, key: torch.Tensor, value: torch.Tensor, call: PromptCall) -> None:
        """Score the prompt's entries by their column sums and keep what the budget allows."""
        device, heads = key.device, key.shape[1]
        for name in ("heavy", "recent", "seen"):
            setattr(self, name, getattr(self, name).to(device))
        self.lengths.length = self.lengths.length.to(device)
        score = over_groups(call.received(), heads)
        columns = torch.arange(key.shape[2], device=device).expand(score.shape)
        ordinal = columns.masked_fill(columns >= self.seen[:, None, None], ABSENT)
        place = call.position.to(device)[:, None].expand(score.shape) if self.rolled else None
        keep = kept_entries(score, ordinal, self.seen, self.heavy, self.recent, by_age=True)
        if self.masks_prompt:
            call.mask = self._prompt_mask(score, ordinal, call)
        self._hold(keep, key, value, ordinal, score, place)

    def _prompt_mask(
        self, score: torch.Tensor, ordinal: torch.Tensor, call: PromptCall
    ) -> torch.Tensor:
        """Return [B, H, L, L] bool: causal, and heavy or within ``recent``."""
        none = torch.zeros_like(self.recent)
        heavy = kept_entries(score, ordinal, self.seen, self.heavy, none, by_age=True)
        rows = torch.arange(score.shape[2], device=score.device)
        distance = rows[:, None] - rows[None, :]
        near = (distance >= 0) & (distance <= self.recent[:, None, None])
        mask = (heavy[:, :, None] & (distance >= 0)) | near[:, None]
        if call.mask is not None:
            mask = mask & call.mask.to(mask.device)
        return mask.repeat_interleave(call.received().shape[1] // score.shape[1], 1)

    def prepare(self, count: int) -> None:
        """Make room for one token's step (an extension allocates anew), and bound the lengths."""
        if count == 1:
            self.grow(self.lengths.bound + 1)
            self.missing -= 1
        self.full = self.even and self.missing < 0 and self.capacity == self.limit + 1
        self.lengths.bound = min(self.lengths.bound + count, self.limit)

    def step(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        call: StepCall,
    ) -> torch.Tensor:
        """Write one token into each head's free slot, attend, score, evict one entry a head."""
        slot = self.free
        at = slot[..., None].expand_as(key)
        keys, values = self.entries()
        keys.scatter_(2, at, key)
        values.scatter_(2, at, value)
        self.ordinal.scatter_(2, slot, self.seen[:, None, None].expand_as(slot))
        self.score.scatter_(2, slot, 0.0)
        if self.place is not None:
            place = call.position.to(slot.device)[:, None].expand_as(slot)
            self.place.scatter_(2, slot, place)
        keys = self._rolled_keys(keys, self.ordinal, self.place, call)
        query = self._rolled_query(query, call)

        batch, heads, _, dim = query.shape
        groups = heads // key.shape[1]
        packed = query.reshape(batch, heads // groups, groups, dim)
        mask = None if self.full else (self.ordinal >= 0)[:, :, None]
        weights = softmax_weights(packed, keys, scaling, mask=mask)
        out = (weights.to(value.dtype) @ values).reshape(batch, heads, 1, dim)
        self.score += weights.sum(2) if groups > 1 else weights[:, :, 0]
        self.seen = self.seen + 1
        self._evict_one()
        return out

    def _evict_one(self) -> None:
        """Free a slot a head: the next empty one, or beyond the budget the loser's."""
        stays = self.ordinal >= (self.seen - self.recent)[:, None, None]
        if not self.full:
            stays |= self.ordinal < 0
        score = self.score.masked_fill(stays, torch.inf)
        # Of equal scores the earlier entry stays, as a stable top-k would have it.
        better = score != score.amin(2, keepdim=True)
        loser = self.ordinal.masked_fill(better | stays, ABSENT).argmax(2, keepdim=True)
        if self.full:
            self.ordinal.scatter_(2, loser, ABSENT)
            self.free = loser
            return
        count = self.lengths.length + 1
        over = (count > self.heavy + self.recent)[:, None, None]
        gone = self.ordinal.gather(2, loser).masked_fill(over, ABSENT)
        self.ordinal.scatter_(2, loser, gone)
        self.free = torch.where(over, loser, count[:, None, None])
        self.lengths.length = torch.where(over[:, 0, 0], self.lengths.length, count)

    def extend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        call: ExtendCall,
    ) -> torch.Tensor:
        """Attend q tokens to the cache and among themselves, then evict once, as one forward."""
        batch, heads, count, _ = query.shape
        device = query.device
        length = call.length.to(device)
        offset = torch.arange(count, device=device)
        fresh = (self.seen[:, None] + offset).masked_fill(offset >= length[:, None], ABSENT)
        spread = (batch, key.shape[1], count)
        ordinal = torch.cat([self.ordinal, fresh[:, None].expand(spread)], 2)
        place = None
        if self.place is not None:
            place = call.position.to(device)[:, None].expand(spread)
            place = torch.cat([self.place, place], 2)
        keys, values = torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)

        groups = heads // key.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool, device=device).tril()
        cached = (self.ordinal >= 0)[:, :, None].expand(-1, -1, count, -1)
        mask = torch.cat([cached, causal.expand(*spread[:2], -1, -1)], 3)
        rolled = self._rolled_keys(keys, ordinal, place, call).repeat_interleave(groups, 1)
        query = self._rolled_query(query, call)
        weights = softmax_weights(query, rolled, scaling, mask=mask.repeat_interleave(groups, 1))
        out = weights.to(value.dtype) @ values.repeat_interleave(groups, 1)

        real = (offset < length[:, None])[:, None, :, None]
        score = torch.nn.functional.pad(self.score, (0, count))
        score = score + over_groups((weights * real).sum(2), key.shape[1])
        self.seen = self.seen + length
        keep = kept_entries(score, ordinal, self.seen, self.heavy, self.recent)
        self.lengths.length = torch.minimum(self.lengths.length + length, self.heavy + self.recent)
        self._hold(keep, keys, values, ordinal, score, place)
        return out

    def _hold(
        self,
        keep: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ordinal: torch.Tensor,
        score: torch.Tensor,
        place: torch.Tensor | None,
    ) -> None:
        """Store the kept entries [B, Hkv, E], left-aligned, in newly allocated room."""
        width = self.lengths.bound
        order = torch.argsort((~keep).to(torch.uint8), dim=2, stable=True)[:, :, :width]
        more = self._room(width + 1, grown=False) - width
        pad = torch.nn.functional.pad

        def entries(tensor: torch.Tensor, empty: float = 0) -> torch.Tensor:
            return pad(tensor.gather(2, order), (0, more), value=empty)

        def vectors(tensor: torch.Tensor) -> torch.Tensor:
            return pad(tensor[(*row_and_head(tensor), order)], (0, 0, 0, more))

        self.key, self.value = vectors(key), vectors(value)
        if self.buffers is not None:
            capacity = width + more
            self.key = self.buffers.placed("key", self.key, capacity)
            self.value = self.buffers.placed("value", self.value, capacity)
        self.ordinal = entries(ordinal.masked_fill(~keep, ABSENT), ABSENT)
        self.score = entries(score)
        self.place = None if place is None else entries(place)
        self.free = self.lengths.length[:, None, None].expand(*keep.shape[:2], 1)

    def _room(self, needed: int, *, grown: bool) -> int:
        """Return the capacity for ``needed`` entries: if that will do, the budget and one."""
        if self.buffers is not None:
            return max(needed, self.limit + 1)
        return max(needed, min(room(needed, self.chunk, grown=grown), self.limit + 1))

    def grow(self, needed: int) -> None:
        """Allocate room for ``needed`` entries per head."""
        if needed <= self.capacity:
            return
        capacity = self._room(needed, grown=True)
        more, pad = capacity - self.capacity, torch.nn.functional.pad
        key, value = self.entries()
        self.key = allocated(key, capacity)
        self.value = allocated(value, capacity)
        self.ordinal = pad(self.ordinal, (0, more), value=ABSENT)
        self.score = pad(self.score, (0, more))
        self.place = None if self.place is None else pad(self.place, (0, more))

    def _rolled_keys(
        self,
        key: torch.Tensor,
        ordinal: torch.Tensor,
        place: torch.Tensor | None,
        call: LayerCall,
    ) -> torch.Tensor:
        """Return the keys at their rank among the entries present, if positions are rolled."""
        if place is None:
            return key
        by_age = ordinal.masked_fill(ordinal < 0, torch.iinfo(torch.int64).max).argsort(2)
        rank = torch.empty_like(by_age).scatter_(
            2, by_age, torch.arange(by_age.shape[2], device=key.device).expand_as(by_age)
        )
        shift = (rank - place).flatten(0, 1)
        return rotated(key.flatten(0, 1), shift, call.rotary).view_as(key)

    def _rolled_query(self, query: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """Return the queries at the ranks behind the entries held, if positions are rolled."""
        if not self.rolled:
            return query
        offset = torch.arange(query.shape[2], device=query.device)
        shift = self.lengths.length[:, None] + offset - call.position.to(query.device)
        return rotated(query, shift, call.rotary)

    def index(self, rows: torch.Tensor) -> None:
        """Reorder or repeat rows."""
        super().index(rows)
        self.lengths.index(rows)
        for name in ("heavy", "recent", "seen", "ordinal", "score", "place", "free"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))

    def allocated_bytes(self) -> int:
        """Return bytes allocated for K, V, scores and the entries' places, all rows."""
        books = [self.ordinal, self.score, *([] if self.place is None else [self.place])]
        return super().allocated_bytes() + sum(t.numel() * t.element_size() for t in books)


def kept_entries(
    score: torch.Tensor,
    ordinal: torch.Tensor,
    seen: torch.Tensor,
    heavy: torch.Tensor,
    recent: torch.Tensor,
    *,
    by_age: bool = False,
) -> torch.Tensor:
    """Return [B, H, E] bool: which entries stay.

    Parameters
    ----------
    score : Tensor [B, H, E] float
        Accumulated attention.
    ordinal : Tensor [B, H, E] int64
        Place among the tokens seen; -1 = no entry.
    seen : Tensor [B] int64
        Tokens seen so far.
    heavy, recent : Tensor [B] int64
        The budget: the ``recent`` newest entries, and of the others the ``heavy`` with the
        highest score, the earlier one first where scores are equal.  A row within its budget
        keeps everything.
    by_age : bool
        The entries are in the order of their ordinals already.
    """
    present = ordinal >= 0
    late = present & (ordinal >= (seen - recent)[:, None, None])
    ranked = score.masked_fill(~present | late, float("-inf"))
    if by_age:
        order = ranked.argsort(dim=2, descending=True, stable=True)
    else:
        ages = ordinal.argsort(dim=2, stable=True)
        ranked = ranked.gather(2, ages)
        order = ages.gather(2, ranked.argsort(dim=2, descending=True, stable=True))
    columns = torch.arange(order.shape[2], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(2, order, columns)
    best = present & ~late & (rank < heavy[:, None, None])
    within = present.sum(2, keepdim=True) <= (heavy + recent)[:, None, None]
    return torch.where(within, present, late | best)


def over_groups(values: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Return [B, Hkv, E]: ``values`` [B, H, E] summed over the query heads of each group."""
    if values.shape[1] == kv_heads:
        return values
    return values.unflatten(1, (kv_heads, -1)).sum(2)


def rotated(x: torch.Tensor, shift: torch.Tensor, rotary: Callable) -> torch.Tensor:
    """Return ``x`` ([B, H, q, d] or [B, q, d]) rotated by ``shift`` [B, q] further positions."""
    cos, sin = rotary(x.float(), shift)
    # Some rotary types scale their tables; a second rotation must not scale again.
    norm = (cos.square() + sin.square()).sqrt()
    cos, sin = cos / norm, sin / norm
    if x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], -1)
    return (x.float() * cos + turned * sin).to(x.dtype)


def row_and_head(entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices [B, 1, 1] and [1, H, 1] that address ``entries`` [B, H, ...]."""
    batch, heads = entries.shape[:2]
    rows = torch.arange(batch, device=entries.device)[:, None, None]
    return rows, torch.arange(heads, device=entries.device)[None, :, None]
