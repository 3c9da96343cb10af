"""What the ledger declares against what the real model did: KV bytes and matrix products."""

import pytest
import torch
from embedding_methods import FROM_EMBEDDINGS

from dynllava import methods
from dynllava.costs import flops, kv, ledger
from dynllava.costs.counters import flop_counter
from dynllava.costs.spec import load_spec
from dynllava.timing import speed
from dynllava.timing.bench_model import build_bench
from dynllava.timing.speed import STOCK, Subject

OUTPUTS = 20
BATCH = 2

# The number of raters, and with it SparseVLM's own work, depends on the prompt.
PROMPT_DEPENDENT = {"sparsevlm": ("rating",)}


def run_model(subject, inputs, outputs):
    """Feed outputs - 1 tokens greedily; return the cache."""
    model = subject.prepare()
    with torch.inference_mode():
        out = model(inputs_embeds=inputs.embeds, image_mask=inputs.image_mask, logits_to_keep=1)
        for _ in range(outputs - 1):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, logits_to_keep=1)
    return out.past_key_values


@pytest.mark.parametrize("name", FROM_EMBEDDINGS)
def test_kv_bytes_of_a_real_run_equal_the_ledger(name, tiny_bench, tiny_spec):
    shape = tiny_spec.prompt(12)
    inputs = speed.make_inputs(tiny_bench, shape, BATCH)
    subject = Subject(tiny_bench, name, methods.create(name))
    for outputs in (1, OUTPUTS):
        cache = run_model(subject, inputs, outputs)
        decisions = [row.tolist() for row in cache.decisions]
        stored = 0
        for row in range(BATCH):
            kept = sum(step[row] for step in decisions) if decisions else None
            run = ledger.Run(tiny_spec, subject.method, shape, outputs, 1)
            state = kv.kv_state(run, outputs - 1, "float32", kept=kept)
            assert [int(n) for n in cache.kv_lengths()[:, row]] == state.lengths
            stored += state.total_stored
        assert cache.stored_bytes() == stored


def test_kv_bytes_of_the_embedded_model_equal_the_ledger():
    spec = load_spec("embedded")
    bench = build_bench("embedded", spec, "cpu", "float32", "sdpa")
    inputs = speed.make_inputs(bench, spec.prompt(20), BATCH)
    for name in ("full", "fastv", "sparsevlm", "structure", "h2o"):
        subject = Subject(bench, name, methods.create(name))
        cache = run_model(subject, inputs, 6)
        run = ledger.Run(spec, subject.method, inputs.shape, 6, BATCH)
        state = kv.kv_state(run, 5, "float32")
        assert cache.stored_bytes() == state.total_stored, name
        assert cache.allocated_bytes() == state.total_allocated, name


@pytest.mark.parametrize("chunk", [None, 4, 16, 128])
@pytest.mark.parametrize("name", ["full", "fastv", "structure", "h2o", "h2o:position=rolled"])
def test_allocated_bytes_follow_the_growth_rule(name, chunk, tiny_bench, tiny_spec):
    shape = tiny_spec.prompt(12)
    inputs = speed.make_inputs(tiny_bench, shape, BATCH)
    subject = Subject(tiny_bench, name, methods.create(name))
    before = tiny_bench.wrapped.kv_chunk
    tiny_bench.wrapped.kv_chunk = chunk
    try:
        for outputs in (1, 2, 9, OUTPUTS):
            cache = run_model(subject, inputs, outputs)
            run = ledger.Run(tiny_spec, subject.method, shape, outputs, BATCH)
            state = kv.kv_state(run, outputs - 1, "float32", chunk=chunk)
            assert cache.allocated_bytes() == state.total_allocated
            assert state.total_stored <= state.total_allocated <= state.peak
    finally:
        tiny_bench.wrapped.kv_chunk = before


@pytest.mark.parametrize("name", FROM_EMBEDDINGS)
def test_matrix_products_of_a_real_prefill_equal_the_ledger(name, tiny_bench, tiny_spec):
    shape = tiny_spec.prompt(12)
    inputs = speed.make_inputs(tiny_bench, shape, BATCH)
    model = Subject(tiny_bench, name, methods.create(name)).prepare()
    with torch.no_grad(), flop_counter() as counter:
        model(inputs_embeds=inputs.embeds, image_mask=inputs.image_mask, logits_to_keep=1)
    run = ledger.Run(tiny_spec, model.method, shape, 1, BATCH)
    declared = ledger.by_component(ledger.entries(run, "prefill"))
    own = sum(declared.get(part, 0) for part in PROMPT_DEPENDENT.get(name, ()))
    total = counter.get_total_flops() // 2
    if own:
        assert sum(declared.values()) - own <= total <= sum(declared.values()) + own
    else:
        assert total == sum(declared.values())


@pytest.mark.parametrize("name", ["full", "fastv", "h2o", "no_image"])
def test_matrix_products_of_real_decoding_equal_the_ledger(name, tiny_bench, tiny_spec):
    shape = tiny_spec.prompt(12)
    inputs = speed.make_inputs(tiny_bench, shape, BATCH)
    subject = Subject(tiny_bench, name, methods.create(name))
    counts = []
    for outputs in (1, 3):
        with flop_counter() as counter:
            run_model(subject, inputs, outputs)
        counts.append(counter.get_total_flops() // 2)
    run = ledger.Run(tiny_spec, subject.method, shape, 3, BATCH)
    assert counts[1] - counts[0] == ledger.total(ledger.entries(run, "decode"))


@pytest.mark.parametrize("name", ["full", "fastv", "structure", "dynamic_llava"])
def test_matrix_products_of_a_real_call_without_cache_equal_the_ledger(name, tiny_bench, tiny_spec):
    shape, fed, dims = tiny_spec.prompt(12), 5, tiny_spec.dims
    inputs = speed.make_inputs(tiny_bench, shape, 1)
    model = Subject(tiny_bench, name, methods.create(name)).prepare()
    longer = torch.cat([inputs.embeds, inputs.embeds[:, :fed]], 1)
    mask = torch.nn.functional.pad(inputs.image_mask, (0, fed))
    length = torch.tensor([shape.total])
    with torch.no_grad(), flop_counter() as counter:
        model(
            inputs_embeds=longer,
            image_mask=mask,
            prompt_length=length,
            use_cache=False,
            logits_to_keep=1,
        )
    run = ledger.Run(tiny_spec, model.method, shape, 2, 1)
    own = sum(
        operation.macs * (fed if operation.phase == "decode" else times)
        for operation, times in ledger.operation_calls(run, "decode_nocache")
    )
    rows = [row[0] for row in model.last_report.layer_tokens]
    layers = sum(sum(flops.decoder_layer(dims, n, n).values()) for n in rows)
    # One output token is in the ledger's scoring row.
    longer_row = dims.heads * dims.head_dim * (fed - 1) if name == "fastv" else 0
    declared = layers + own + flops.lm_head(dims, 1) + longer_row
    assert counter.get_total_flops() // 2 == declared
    if name != "dynamic_llava":
        assert rows == run.schedule.nocache_rows(fed)


def test_stock_and_full_do_the_same_work(tiny_bench, tiny_spec):
    inputs = speed.make_inputs(tiny_bench, tiny_spec.prompt(12), BATCH)
    with torch.no_grad(), flop_counter() as counter:
        tiny_bench.stock(inputs_embeds=inputs.embeds, logits_to_keep=1)
    run = Subject(tiny_bench, STOCK, None).run_of(inputs.shape, 1, BATCH, None)
    assert counter.get_total_flops() // 2 == ledger.total(ledger.entries(run, "prefill"))
