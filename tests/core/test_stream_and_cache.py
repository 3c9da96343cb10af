"""Property tests: packing, gathering, and the write-then-commit cache against plain lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava.engine.attention import (
    Probe,
    PromptCall,
    StepCall,
    observe,
    softmax_weights,
    summed_attention,
)
from dynllava.engine.cache import LayerStore, Lengths, SparseCache, places
from dynllava.engine.stream import Segment, align_left, one_output, restore_columns
from dynllava.methods.random import hash_uniform
from dynllava.timing.syncs import count_syncs

ROWS = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=4)


def prompt_call():
    return PromptCall("sdpa", torch.zeros(1, 1), None, torch.ones(1))


def stream_of(rows, side):
    width = max(len(row) for row in rows)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        valid[index, where] = True
    embeds = torch.arange(len(rows) * width, dtype=torch.float32).view(len(rows), width, 1)
    segment = torch.full(valid.shape, int(Segment.TEXT))
    start = torch.zeros(len(rows), dtype=torch.int64)
    return align_left(embeds, valid, segment, start), embeds, valid


@settings(deadline=None, max_examples=60)
@given(ROWS, st.sampled_from(["left", "right"]))
def test_gathering_keeps_order_and_restoring_undoes_it(rows, side):
    stream, embeds, valid = stream_of(rows, side)
    keep = torch.zeros_like(stream.valid())
    for index, row in enumerate(rows):
        keep[index, : len(row)] = torch.tensor(row)
    kept = stream.gather(keep)
    restored = restore_columns(kept.hidden, kept, embeds.shape[1])
    for index, row in enumerate(rows):
        columns = valid[index].nonzero().flatten().tolist()
        wanted = [c for c, stays in zip(columns, row, strict=True) if stays]
        assert kept.length[index] == len(wanted) == kept.host_lengths[index]
        assert kept.column[index, : len(wanted)].tolist() == wanted
        positions = [place for place, stays in enumerate(row) if stays]
        assert kept.position[index, : len(wanted)].tolist() == positions
        dropped = [c for c in range(embeds.shape[1]) if c not in wanted]
        assert torch.equal(restored[index, wanted], embeds[index, wanted])
        assert restored[index, dropped].abs().sum() == 0


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20),
    st.integers(1, 7),
)
def test_cache_equals_plain_lists(lengths, decisions, chunk):
    batch, width = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(batch, 2, width, 4, generator=generator)
    cache = SparseCache(chunk)
    exact = min(lengths) == max(lengths)
    group = cache.new_group(torch.tensor(lengths), width, exact=exact)
    store = LayerStore(group, chunk)
    cache.stores.append(store)
    store.fill_prompt(first, first, prompt_call())
    plain = [[first[row, :, slot] for slot in range(length)] for row, length in enumerate(lengths)]
    for keep in decisions:
        new = torch.randn(batch, 2, 1, 4, generator=generator)
        cache.reserve(group, 2)
        span = group.bound + 1
        mask = (torch.arange(span) <= group.length[:, None])[:, None, None, :]
        at = places(group.length[:, None, None], store.key.shape[:3])
        call = StepCall("eager", group.length[:, None], None, store, at, mask, span)
        query = torch.randn(batch, 2, 1, 4, generator=generator)
        out = store.step(query, new, new, 0.5, call)
        for row in range(batch):
            seen = torch.stack([*plain[row], new[row, :, 0]], 1)
            weights = softmax_weights(query[row : row + 1], seen[None], 0.5)
            torch.testing.assert_close(out[row : row + 1], weights @ seen[None])
            if keep[row]:
                plain[row].append(new[row, :, 0])
        group.advance(1, torch.tensor(keep[:batch]))
    assert group.length.tolist() == [len(row) for row in plain]
    assert group.bound >= max(group.length.tolist())
    for row in range(batch):
        if plain[row]:
            torch.testing.assert_close(
                store.key[row, :, : len(plain[row])], torch.stack(plain[row], 1)
            )
    assert store.stored_bytes().sum() == group.length.sum() * 2 * 2 * 4 * 4
    assert store.capacity <= width + len(decisions) + 2 * chunk + 2


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_entries_are_written_where_their_slots_say(batch, heads, count, per_head, seed):
    """The flat index is that of row, head and slot, whatever lies between the heads' vectors."""
    generator = torch.Generator().manual_seed(seed)
    capacity, dim = 7, 4
    store = LayerStore(Lengths(torch.full((batch,), 2), 2, exact=True), chunk=capacity)
    first = torch.randn(batch, heads, 2, dim, generator=generator)
    store.fill_prompt(first, first + 1, prompt_call())
    shape = (batch, heads if per_head else 1, capacity)
    slots = torch.rand(shape, generator=generator).argsort(2)[..., :count]
    # As attention modules hand them over: heads inside tokens.
    new = torch.randn(batch, count, heads, dim, generator=generator).transpose(1, 2)
    wanted = [store.key.clone(), store.value.clone()]
    for row in range(batch):
        for head in range(heads):
            for column in range(count):
                slot = slots[row, head if per_head else 0, column]
                wanted[0][row, head, slot] = new[row, head, column]
                wanted[1][row, head, slot] = -new[row, head, column]
    store.write(places(slots, store.key.shape[:3]), new, -new)
    assert torch.equal(store.key, wanted[0])
    assert torch.equal(store.value, wanted[1])


def test_slots_that_all_rows_share_are_written_as_one_slice():
    stores = []
    for _ in range(2):
        stores.append(LayerStore(Lengths(torch.full((2,), 2), 2, exact=True), chunk=7))
        stores[-1].fill_prompt(torch.zeros(2, 3, 2, 4), torch.ones(2, 3, 2, 4), prompt_call())
    new = torch.randn(2, 3, 2, 4)
    shared = torch.tensor([[[3, 4]]] * 2)
    stores[0].write(places(shared, stores[0].key.shape[:3]), new, -new)
    stores[1].write(slice(3, 5), new, -new)
    assert torch.equal(stores[0].key, stores[1].key)
    assert torch.equal(stores[0].value, stores[1].value)


@pytest.mark.parametrize("length", [50, 64, 69, 70, 201, 636])
def test_little_is_allocated_beyond_what_is_stored(length):
    """At most 10 % behind a prompt and 15 % at any length, for few copies a token."""
    cache = SparseCache()
    group = cache.new_group(torch.tensor([length]), length, exact=True)
    store = LayerStore(group, cache.chunk)
    cache.stores.append(store)
    entries = torch.randn(1, 1, length, 2)
    store.fill_prompt(entries, entries, prompt_call())
    assert cache.allocated_bytes() <= 1.10 * cache.stored_bytes()
    steps, copied = 600, 0
    for _ in range(steps):
        before = store.capacity
        cache.make_room(1)
        copied += group.bound if store.capacity > before else 0
        group.advance(1, None)
        assert cache.allocated_bytes() <= 1.15 * cache.stored_bytes()
    assert copied / steps <= 16
    assert torch.equal(store.key[:, :, :length], entries)
    assert not store.key[:, :, length:].any()


@pytest.mark.parametrize("valid", [[True, True], [True, False], [False, False]])
def test_the_stream_of_a_step_is_that_of_any_call(valid):
    embeds, start = torch.randn(2, 1, 4), torch.tensor([7, 3])
    valid = torch.tensor(valid)[:, None]
    segment = torch.full((2, 1), int(Segment.OUTPUT), dtype=torch.int8)
    axes = torch.tensor([[[7], [3]]] * 3)
    wanted, found = (
        align_left(embeds, valid, segment, start, axes),
        one_output(embeds, valid, start, axes),
    )
    assert found.host_lengths == wanted.host_lengths
    for name in ("hidden", "segment", "position", "column", "length", "axes", "image_index"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
        assert getattr(found, name).dtype == getattr(wanted, name).dtype, name


def test_rows_of_different_lengths_grow_without_asking_the_device():
    """Where nothing is dropped the host knows the longest row; where something is, it must ask."""
    cache = SparseCache()
    group = cache.new_group(torch.tensor([3, 9]), 9, exact=False)
    cache.stores.append(LayerStore(group, cache.chunk))
    entries = torch.randn(2, 1, 9, 2)
    cache.stores[0].fill_prompt(entries, entries, prompt_call())
    with count_syncs() as syncs:
        for _ in range(40):
            cache.make_room(1)
            group.advance(1, None)
    assert not syncs
    assert group.bound == 49
    for _ in range(40):
        cache.make_room(1)
        group.advance(1, torch.tensor([True, False]))
    assert group.length.tolist() == [83, 49]
    assert cache.stores[0].capacity < 83 * 1.15


def test_reordering_moves_every_tensor():
    cache = SparseCache()
    group = cache.new_group(torch.tensor([1, 2]), 2, exact=False)
    store = LayerStore(group)
    cache.stores.append(store)
    key = torch.arange(2 * 1 * 2 * 1, dtype=torch.float32).view(2, 1, 2, 1)
    store.fill_prompt(key, key + 10, prompt_call())
    cache.seen = torch.tensor([1, 2])
    cache.outputs = torch.tensor([3, 4])
    cache.sample_ids = torch.tensor([5, 6])
    cache.decisions = [torch.tensor([True, False])]
    cache.reorder_cache(torch.tensor([1, 1]))
    assert group.length.tolist() == [2, 2]
    assert torch.equal(store.key[0], store.key[1])
    assert store.key[0, 0, 0, 0] == 2
    assert cache.seen.tolist() == [2, 2]
    assert cache.outputs.tolist() == [4, 4]
    assert cache.sample_ids.tolist() == [6, 6]
    assert cache.decisions[0].tolist() == [False, False]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(0, 5))
def test_observed_rows_and_column_sums_equal_the_full_matrix(length, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, length, 8, generator=generator)
    key = torch.randn(2, 2, length, 8, generator=generator)
    valid = torch.tensor([length, max(1, length // 2)])
    full = softmax_weights(query, key.repeat_interleave(2, 1), 0.3, causal=True)
    rows = torch.tensor([[length - 1, 0], [int(valid[1]) - 1, 0]])
    seen = observe(query, key, Probe(query_rows=rows, column_sums=True), 0.3, valid)
    for row in range(2):
        torch.testing.assert_close(seen.rows[row], full[row][:, rows[row]])
        torch.testing.assert_close(seen.sums[row], full[row, :, : valid[row]].sum(1))


@pytest.mark.parametrize("count", [1, 5, 33])
def test_sums_and_output_of_one_pass_do_not_depend_on_the_block(monkeypatch, count):
    from dynllava.engine import attention

    query, key, value = torch.randn(3, 2, 4, count, 8, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([count, max(1, count // 2)])
    arguments = (query, key, value, 0.3, length)
    sums, output = summed_attention(*arguments)
    torch.testing.assert_close(output, attention.attend(query, key, value, 0.3, causal=True))
    monkeypatch.setattr(attention, "QUERY_BLOCK", 5)
    torch.testing.assert_close(summed_attention(*arguments), (sums, output))
    assert summed_attention(query, key, None, 0.3, length)[1] is None


def test_hash_is_uniform_and_independent_of_the_batch():
    draws = hash_uniform(0, torch.arange(50), torch.arange(2000).expand(50, -1))
    assert abs(float(draws.mean()) - 0.5) < 0.005
    assert abs(float((draws < 0.2).double().mean()) - 0.2) < 0.005
    alone = hash_uniform(0, torch.tensor([7]), torch.arange(2000)[None])
    assert torch.equal(alone[0], draws[7])
    assert not torch.equal(hash_uniform(1, torch.tensor([7]), torch.arange(2000)[None]), alone)


def test_groups_share_lengths():
    lengths = Lengths(torch.tensor([3, 5]), 5, exact=False)
    lengths.advance(1, torch.tensor([True, False]))
    assert lengths.length.tolist() == [4, 5]
    assert lengths.bound == 6
    lengths.tighten()
    assert lengths.bound == 5
