"""Estimates and timed parts, each component by hand, at batch 1 and 4."""

from __future__ import annotations

import pytest
import torch

from dynllava import methods
from dynllava.costs import devices as device
from dynllava.costs import flops, kv, ledger, roofline
from dynllava.costs.spec import load_spec
from dynllava.timing import speed
from dynllava.timing.speed import Subject

FULL = roofline.Efficiency(1.0, 1.0)


def run_of(spec, outputs=3, batch=1, name="full", **parameters):
    return ledger.Run(spec, methods.create(name, **parameters), spec.prompt(12), outputs, batch)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [2, 4])
def test_work_of_a_layer_by_hand(batch, size, tiny_spec):
    """FLOPs are two a MAC; bytes are the weights once and the activations of every row."""
    dims, queries, keys = tiny_spec.dims, 5, 9
    hidden, wide, inner, kv_wide = 64, 4 * 16, 96, 2 * 16
    work = roofline.layer_work(dims, queries, keys, batch, size)
    rows = batch * queries
    projections = 2 * hidden * wide + 2 * hidden * kv_wide
    assert work["attention_projections"].flop == 2 * rows * projections
    assert work["attention_scores"].flop == 2 * rows * 2 * keys * wide
    assert work["mlp"].flop == 2 * rows * 3 * hidden * inner
    assert work["attention_projections"].bytes == size * (
        projections + rows * (2 * hidden + 2 * wide + 2 * kv_wide)
    )
    assert work["attention_scores"].bytes == size * (rows * 2 * wide + batch * keys * 2 * kv_wide)
    assert work["mlp"].bytes == size * (3 * hidden * inner + rows * (2 * hidden + 3 * inner))


@pytest.mark.parametrize("batch", [1, 4])
def test_work_of_the_head_and_of_a_methods_operation_by_hand(batch, tiny_spec):
    head = roofline.head_work(tiny_spec.dims, batch, 2)
    assert head.flop == 2 * batch * 64 * 50
    assert head.bytes == 2 * (64 * 50 + batch * (64 + 50))
    item = ledger.Operation("x", "part", 0, "prefill", 3, 5, 7, 2)
    own = roofline.operation_work(item, batch, 4)
    assert own.flop == 2 * batch * 2 * 3 * 5 * 7
    assert own.bytes == 4 * 2 * (5 * 7 + batch * (3 * 5 + 3 * 7))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("mode", ["prefill", "decode", "decode_nocache"])
def test_flops_of_all_work_are_twice_the_ledgers_macs(mode, batch, tiny_spec):
    for name in ("full", "fastv", "dynamic_llava", "sparsevlm"):
        run = run_of(tiny_spec, batch=batch, name=name)
        work = roofline.work_calls(run, mode, "float16")
        flop = sum(item.flop * times for items in work.values() for item, times in items)
        assert flop == 2 * ledger.total(ledger.entries(run, mode))


@pytest.mark.parametrize("batch", [1, 4])
def test_time_is_the_slower_of_computing_and_moving_at_the_assumed_efficiency(batch, tiny_spec):
    a100 = device.load_device("a100-80g")
    run = run_of(tiny_spec, batch=batch)
    efficiency = roofline.Efficiency(0.5, 0.25)
    found = roofline.estimate(run, "decode", a100, "float16", efficiency)
    for component, items in roofline.work_calls(run, "decode", "float16").items():
        seconds = sum(
            times
            * max(
                item.flop / (0.5 * a100.flops("float16")),
                item.bytes / (0.25 * a100.bandwidth_bytes_per_s),
            )
            for item, times in items
        )
        assert found.seconds[component] == pytest.approx(seconds)
    assert found.calls == 2
    assert found.per_call == pytest.approx(found.total / 2)


@pytest.mark.parametrize("batch", [1, 4])
def test_activations_and_cache_grow_with_the_batch_and_weights_do_not(batch, tiny_spec):
    run = run_of(tiny_spec, batch=batch)
    rows = tiny_spec.prompt(12).total
    assert kv.activation_bytes(run, "float16") == batch * (rows * (3 * 96 + 3 * 64) * 2 + 50 * 4)
    one = run_of(tiny_spec)
    parts = [
        max(kv.kv_state(item, fed, "float16").peak for fed in (0, 2))
        + kv.activation_bytes(item, "float16")
        for item in (one, run)
    ]
    assert parts[1] == batch * parts[0]
    for item, part in zip((one, run), parts, strict=True):
        assert kv.memory_bytes(item, "float16") - part == tiny_spec.weight_bytes("float16")


def test_what_fits_leaves_the_share_of_memory_that_is_not_for_tensors(tiny_spec):
    import dataclasses

    run = run_of(tiny_spec, batch=4)
    needed = kv.memory_bytes(run, "float16")
    a100 = device.load_device("a100-80g")
    for memory, fits in ((needed, False), (int(needed / 0.95), False), (int(needed / 0.9), True)):
        sized = dataclasses.replace(a100, memory_gib=memory / device.GIB)
        assert kv.fits(run, sized, "float16") is fits


class FakeClock:
    """Seconds pass only while the model works: 100 for a prompt, 1, 2, 3 ... for the steps."""

    def __init__(self):
        self.wall = 0.0

    def now(self):
        return self.wall, 10 * self.wall


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 7])
def test_times_are_means_over_the_calls_that_were_made(outputs, tiny_bench, tiny_spec, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(speed, "Clock", lambda device: clock)
    subject = Subject(tiny_bench, "full", methods.create("full"))
    inputs = speed.make_inputs(tiny_bench, tiny_spec.prompt(12), 2, max(outputs, 2))
    model, calls = subject.prepare(), []
    inner = type(model).forward

    def forward(self, *arguments, **options):
        cached = options.get("use_cache")
        columns = (options.get("input_ids") if "input_ids" in options
                   else options["inputs_embeds"]).shape[1]  # fmt: skip
        calls.append(columns)
        if columns == 1:
            clock.wall += sum(length == 1 for length in calls)
        else:
            clock.wall += 100 if cached else columns
        return inner(self, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", forward)
    total = inputs.shape.total
    times = subject.time(inputs, outputs, nocache_fed=(1, 2)).seconds
    steps = outputs - 1
    assert calls == [total] + [1] * steps + [total + 1, total + 2]
    assert times["prefill"] == times["ttft"] == 100
    assert times["nocache_call"] == total + 1.5
    if not steps:
        assert "tpot" not in times
        return
    taken = list(range(1, outputs))
    assert times["tpot"] == pytest.approx(sum(taken) / steps)
    late = taken[steps - outputs // 2 :]
    assert times["tpot_late"] == pytest.approx(sum(late) / len(late))
    assert times["tpot_cpu"] == pytest.approx(10 * times["tpot"])


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_untrained_predictors_are_calibrated_to_the_rate_itself(rate, tiny_bench, tiny_spec):
    method = methods.create("dynamic_llava", output_keep_rate=rate)
    inputs = speed.make_inputs(tiny_bench, tiny_spec.prompt(12), 4, 33)
    subject = speed.calibrate_keep_rate(Subject(tiny_bench, "x", method), inputs, 33)
    kept = subject.time(inputs, 33).output_keep
    assert kept == pytest.approx(rate, abs=0.1)
    given = methods.create("dynamic_llava", output_keep_rate=rate, output_threshold=0.25)
    same = speed.calibrate_keep_rate(Subject(tiny_bench, "x", given), inputs, 33)
    assert same.method.output_threshold == 0.25
    assert torch.is_tensor(inputs.fed)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.4, "bandwidth"), (0.5, "bandwidth"), (0.6, "compute")]
)
def test_a_component_is_bound_by_what_takes_more_than_half_of_its_time(share, expected):
    found = roofline.Estimate("prefill", 1, {"mlp": 2.0}, {"mlp": 2.0 * share})
    assert found.bound("mlp") == expected
    assert roofline.Estimate("prefill", 1, {"mlp": 2.0}, {}).bound("mlp") == "bandwidth"


def test_seconds_bound_by_compute_are_those_whose_computing_takes_longest(tiny_spec):
    """With no bandwidth to wait for all time is computing, with no computing none is."""
    a100, run = device.load_device("a100-80g"), run_of(tiny_spec, batch=4)
    fast_memory = roofline.estimate(run, "decode", a100, "float16", roofline.Efficiency(1e-9, 1.0))
    assert fast_memory.compute_bound == pytest.approx(fast_memory.seconds)
    slow_memory = roofline.estimate(run, "decode", a100, "float16", roofline.Efficiency(1.0, 1e-9))
    assert slow_memory.compute_bound == {}
    mixed = roofline.estimate(run, "prefill", a100, "float16", FULL)
    for component, items in roofline.work_calls(run, "prefill", "float16").items():
        by_compute = sum(
            times * item.flop / a100.flops("float16")
            for item, times in items
            if item.flop / a100.flops("float16") >= item.bytes / a100.bandwidth_bytes_per_s
        )
        assert mixed.compute_bound.get(component, 0.0) == pytest.approx(by_compute)


@pytest.mark.parametrize("batch", [1, 4])
def test_work_of_tower_and_projector_by_hand(batch):
    """Bytes: each part's weights once, and what one image's layers read and write, times images."""
    spec = load_spec("llava-1.5-7b")
    vision, parts, size = spec.vision, spec.parameters(), 2
    work = roofline.vision_work(spec, batch, size)
    inner = vision.layers * vision.tokens * (8 * vision.hidden + 2 * vision.intermediate)
    assert work["vision_tower"].bytes == size * (parts["vision_tower"] + batch * inner)
    rows = batch * 576
    assert work["projector"].bytes == size * (parts["projector"] + rows * (1024 + 3 * 4096))
    assert work["vision_tower"].flop == 2 * flops.vision_tower(vision, batch)
    assert work["projector"].flop == 2 * flops.projector(spec, batch)


@pytest.mark.parametrize("name", ["full", "fastv", "sparsevlm"])
def test_bytes_moved_are_weights_once_a_call_and_every_attended_entry(name, tiny_spec):
    run = run_of(tiny_spec, outputs=3, batch=2, name=name)
    dims, layer = tiny_spec.dims, tiny_spec.layer_parameters()
    weights = dims.layers * (layer["attention"] + layer["mlp"]) + dims.hidden * dims.vocab
    kv_elements = sum(
        times * keys * 2 * dims.kv_heads * dims.head_dim
        for (_, keys), times in ledger.shape_calls(run, "decode").items()
    )
    own = sum(
        times * item.count * item.k * item.n
        for item, times in ledger.operation_calls(run, "decode")
    )
    expected = 2 * (2 * (weights) + own + 2 * kv_elements)
    assert roofline.bytes_moved(run, "decode", "float16") == expected
