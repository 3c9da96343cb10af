"""K/V at fixed addresses: the same answers batch after batch, never two caches in one place."""

from __future__ import annotations

import pytest
import torch
from method_cases import CASES
from tiny import batch, pixels, prompts, tiny_model

from dynllava.errors import UserError

NEW = 12
CACHED = [case for case in CASES if case.id != "fastv-reprune"]


@pytest.fixture(scope="module")
def model():
    return tiny_model(kv_heads=2)


def generate(model, seed=0, new=NEW, **more):
    torch.manual_seed(seed)
    shown = [x if x is None else x + 0.1 * torch.randn_like(x) for x in pixels()]
    out = model.generate(
        **batch(prompts(), shown),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **more,
    )
    return out.sequences, torch.stack(out.logits), model.last_report.kv_lengths


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CACHED])
def test_batches_share_addresses_and_answer_as_without(model, case):
    model.set_method(case.name, **case.parameters)
    model.set_compile(False)
    expected = [generate(model, seed) for seed in range(3)]
    model.set_compile(True, "eager", capacity=96)
    places = []
    for seed, (tokens, logits, lengths) in enumerate(expected):
        found, found_logits, found_lengths = generate(model, seed)
        assert torch.equal(found, tokens)
        torch.testing.assert_close(found_logits, logits, atol=2e-5, rtol=0)
        assert found_lengths == lengths
        places.append(model.compiled_steps.buffers.addresses())
    model.set_compile(False)
    assert len(places[0]) == 2 * model.config.text_config.num_hidden_layers
    assert places[1:] == places[:1] * 2


def test_a_step_of_a_shape_is_compiled_once(model):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    model.set_method("full")
    model.set_compile(True, backend, capacity=96)
    for seed in range(3):
        generate(model, seed)
    model.set_compile(False)
    assert len(seen) == 1


def test_two_caches_that_live_together_do_not_share(model):
    model.set_method("full")
    given = batch(prompts(), pixels())
    other = batch(prompts(), pixels()[::-1])
    model.set_compile(False)
    alone = model(**other, use_cache=True).past_key_values.stores[0].key[:, :, :4].clone()
    model.set_compile(True, "eager", capacity=96)
    first = model(**given, use_cache=True).past_key_values
    before = first.stores[0].key.clone()
    second = model(**other, use_cache=True).past_key_values
    assert second.buffers is None
    assert first.stores[0].key.data_ptr() != second.stores[0].key.data_ptr()
    assert torch.equal(first.stores[0].key, before)
    torch.testing.assert_close(second.stores[0].key[:, :, :4], alone)
    del first
    third = model(**given, use_cache=True).past_key_values
    assert third.buffers is not None
    model.set_compile(False)


def test_a_batch_that_outgrows_the_room_goes_on(model):
    model.set_method("full")
    model.set_compile(False)
    expected = generate(model, new=30)
    longest = max(max(row) for row in expected[2])
    for capacity in (4, longest - 20):
        model.set_compile(True, "eager", capacity=capacity)
        found = generate(model, new=30)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=0)
    model.set_compile(False)


def test_nothing_of_another_batch_is_weighed(model):
    model.set_method("full")
    model.set_compile(True, "eager", capacity=96)
    expected = generate(model)
    for tensor in model.compiled_steps.buffers._kept.values():
        tensor.fill_(float("nan"))
    found = generate(model)
    model.set_compile(False)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=0)


def test_a_capacity_that_holds_nothing_is_refused(model):
    with pytest.raises(UserError, match="accepted is a number of tokens from 2"):
        model.set_compile(True, capacity=0)
