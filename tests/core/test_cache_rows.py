"""Rows of a cache move as one: what is reordered, selected or repeated decodes like its own row."""

from __future__ import annotations

import pytest
import torch
from method_cases import CASES
from tiny import batch, pixels, prompts, tiny_model

from dynllava.engine.cache import LayerStore, Lengths

RUNNING = [case for case in CASES if case.id != "fastv-reprune"]


@pytest.fixture(scope="module")
def model():
    model = tiny_model(kv_heads=2)
    model.kv_chunk = 8
    return model


def reordered(cache, order):
    cache.reorder_cache(torch.tensor(order))


def selected(cache, order):
    cache.batch_select_indices(torch.tensor(order))


def repeated(cache, order):
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]
    cache.batch_repeat_interleave(2)


MOVES = {
    "reorder": (reordered, [2, 0, 3, 0]),
    "reorder-swap": (reordered, [3, 2, 1, 0]),
    "select": (selected, [1, 3]),
    "repeat": (repeated, [0, 0, 1, 1, 2, 2, 3, 3]),
}


@pytest.mark.parametrize("move", list(MOVES))
@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in RUNNING])
def test_moved_rows_go_on_as_the_rows_they_were(model, case, move):
    """Rows have prompts of their own, so whatever stays behind belongs to another prompt."""
    model.set_method(case.name, **case.parameters)
    act, order = MOVES[move]
    ids, images = prompts(seed=12), pixels(seed=12)
    fed = torch.randint(3, 98, (4, 8), generator=torch.Generator().manual_seed(3))
    sample_ids = torch.tensor([11, 12, 13, 14])

    def step(cache, tokens):
        with torch.no_grad():
            return model(tokens, past_key_values=cache, logits_to_keep=1).logits

    def start(rows):
        cache = model.new_cache()
        inputs = batch([ids[row] for row in rows], [images[row] for row in rows])
        with torch.no_grad():
            model(**inputs, sample_ids=sample_ids[rows], past_key_values=cache, logits_to_keep=1)
        for column in range(4):
            step(cache, fed[rows, column : column + 1])
        return cache

    moved = start([0, 1, 2, 3])
    act(moved, order)
    own = start(order)
    for column in range(4, 8):
        tokens = fed[order, column : column + 1]
        torch.testing.assert_close(step(moved, tokens), step(own, tokens), atol=3e-5, rtol=0)
    assert moved.kv_lengths().tolist() == own.kv_lengths().tolist()
    assert moved.stored_bytes() == own.stored_bytes()
    assert moved.seen.tolist() == own.seen.tolist()
    assert moved.outputs.tolist() == own.outputs.tolist()
    assert moved.sample_ids.tolist() == own.sample_ids.tolist()
    assert [row.tolist() for row in moved.decisions] == [row.tolist() for row in own.decisions]


def tensors_of(thing, path="cache", seen=None):
    """Yield (path, tensor) of every tensor that an object holds, at any depth."""
    seen = set() if seen is None else seen
    if isinstance(thing, torch.Tensor):
        yield path, thing
        return
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, dict):
        items = thing.items()
    elif isinstance(thing, (list, tuple)):
        items = enumerate(thing)
    else:
        items = getattr(thing, "__dict__", {}).items()
    for name, value in items:
        yield from tensors_of(value, f"{path}.{name}", seen)


@pytest.mark.parametrize("move", list(MOVES))
@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in RUNNING])
def test_every_tensor_of_the_cache_moves(model, case, move):
    model.set_method(case.name, **case.parameters)
    act, order = MOVES[move]
    cache = model.new_cache()
    with torch.no_grad():
        model(**batch(prompts(seed=12), pixels(seed=12)), past_key_values=cache, logits_to_keep=1)
        model(torch.tensor([[5], [6], [7], [8]]), past_key_values=cache, logits_to_keep=1)
    before = {path: tensor.clone() for path, tensor in tensors_of(cache)}
    assert {"cache.seen", "cache.sample_ids", "cache.outputs"} <= set(before)
    act(cache, order)
    after = dict(tensors_of(cache))
    assert after.keys() == before.keys()
    for path, tensor in after.items():
        assert before[path].shape[0] == 4, path
        assert torch.equal(tensor, before[path][order]), path


def test_a_reset_cache_is_empty(model):
    model.set_method("fastv", k=2, decoder="rerank")
    cache = model.new_cache()
    with torch.no_grad():
        model(**batch(prompts(), pixels()), past_key_values=cache, logits_to_keep=1)
    cache.reset()
    assert cache.is_empty
    assert list(tensors_of(cache)) == []
    assert (cache.columns, cache.decisions, cache.get_seq_length()) == (0, [], 0)


@pytest.mark.parametrize(("chunk", "count"), [(8, 8), (8, 3), (8, 1), (4, 9), (128, 5)])
def test_an_extension_needs_no_more_room_than_its_tokens(model, chunk, count):
    """Dropped tokens share the slot behind the kept ones, of which there are fewer then."""
    for method in ({"name": "full"}, {"name": "structure", "layer": 0}):
        model.set_method(method.pop("name"), **method)
        model.kv_chunk, before = chunk, model.kv_chunk
        cache = model.new_cache()
        ids = torch.randint(3, 98, (2, 8), generator=torch.Generator().manual_seed(0))
        more = torch.randint(3, 98, (2, count), generator=torch.Generator().manual_seed(1))
        try:
            with torch.no_grad():
                model(ids, past_key_values=cache, logits_to_keep=1)
                first = -(-9 // chunk) * chunk  # room for one token beyond the prompt
                assert {store.capacity for store in cache.stores} == {first}
                model(more, past_key_values=cache, outputs_fed=True)
        finally:
            model.kv_chunk = before
        needed = -(-(8 + count) // chunk) * chunk
        assert {store.capacity for store in cache.stores} == {max(first, needed)}


@pytest.mark.parametrize("kept", [None, [True, False, True], [False] * 3])
def test_lengths_advance_by_what_is_kept_and_the_bound_by_what_may_be(kept):
    lengths = Lengths(torch.tensor([3, 5, 5]), 5, exact=False)
    lengths.advance(1, None if kept is None else torch.tensor(kept))
    grown = [1, 1, 1] if kept is None else [int(value) for value in kept]
    assert lengths.length.tolist() == [3 + grown[0], 5 + grown[1], 5 + grown[2]]
    assert lengths.bound == 6
    lengths.tighten()
    assert lengths.bound == int(lengths.length.max())


def test_bytes_of_a_store_are_those_of_its_entries():
    """K and V, of both heads, in the dtype they are kept in; allocated by whole chunks."""
    store = LayerStore(Lengths(torch.tensor([3, 7]), 7, exact=False), chunk=8)
    assert store.stored_bytes().tolist() == [0, 0]
    assert store.allocated_bytes() == 0
    key = torch.randn(2, 2, 7, 4).half()
    store.fill_prompt(key, key, None)
    assert store.stored_bytes().tolist() == [2 * 2 * 4 * 2 * 3, 2 * 2 * 4 * 2 * 7]
    assert store.allocated_bytes() == 2 * 2 * 2 * 8 * 4 * 2
    store.grow(9)
    assert store.allocated_bytes() == 2 * 2 * 2 * 16 * 4 * 2
    assert not store.key[:, :, 7:].any()
