"""The report of a call keeps numbers, never K and V, and is read with few device reads."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tiny import batch, pixels, prompts, tiny_model
from torch.overrides import TorchFunctionMode

METHODS = ["full", "fastv", "dynamic_llava", "h2o"]
READS = {"tolist", "item", "cpu", "numpy", "__int__", "__bool__", "__float__", "__index__"}


class Reads(TorchFunctionMode):
    """Counts what would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model():
    return tiny_model(kv_heads=2, layers=6)


def answer(model, rows=4, cache=None):
    extra = {} if cache is None else {"past_key_values": cache}
    inputs = batch(prompts(rows=rows), pixels(rows=rows))
    model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **extra)
    return model.last_report


@pytest.mark.parametrize("method", METHODS)
def test_the_cache_is_gone_when_generate_returns(model, method, monkeypatch):
    model.set_method(method)
    made = []
    new_cache = model.new_cache

    def remembered():
        cache = new_cache()
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(model, "new_cache", remembered)
    gc.disable()  # reference counts alone must free it: a collection may come too late
    try:
        report = answer(model)
        assert len(made) == 1
        assert made[0]() is None
        assert report.cache is None
    finally:
        gc.enable()


@pytest.mark.parametrize("method", METHODS)
def test_numbers_of_a_released_cache_are_those_of_a_live_one(model, method):
    model.set_method(method)
    cache = model.new_cache()
    alive = answer(model, cache=cache)
    assert alive.cache is cache
    lengths = cache.kv_lengths().tolist()
    assert alive.kv_lengths == lengths
    assert alive.kv_bytes == cache.stored_bytes() == sum(alive.kv_bytes_per_row)
    assert alive.kv_bytes_allocated == cache.allocated_bytes() >= alive.kv_bytes
    expected = (alive.kv_lengths, alive.kv_bytes_per_row, alive.kv_bytes_allocated)
    alive = cache = None
    released = answer(model)
    assert released.cache is None
    assert (
        released.kv_lengths,
        released.kv_bytes_per_row,
        released.kv_bytes_allocated,
    ) == expected


def test_reading_costs_does_not_grow_with_rows_or_layers():
    from lmms_eval_dynllava.efficiency import request_costs

    counts = []
    for layers, rows in ((3, 2), (6, 8)):
        model = tiny_model(layers=layers)
        model.set_method("dynamic_llava", sparse_layer=1)
        report = answer(model, rows)
        with Reads() as reads:
            costs = request_costs(report, range(rows), [5] * rows)
        assert len(costs) == rows
        assert all(item["kv_bytes"] > 0 for item in costs)
        counts.append(reads.count)
    assert counts[0] == counts[1] <= 5


def test_counts_of_layers_on_several_devices_are_read_together():
    from dynllava.engine.report import _read

    assert _read([torch.tensor([1, 2]), torch.tensor([3, 4])]) == [[1, 2], [3, 4]]
    assert _read([]) == []
