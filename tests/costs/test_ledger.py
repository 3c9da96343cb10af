"""The ledger: modes, totals, realised counts."""

import pytest

from dynllava import methods
from dynllava.costs import flops, ledger
from dynllava.costs.spec import LLAVA_15_7B, MID_SIZE
from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.plan import PromptShape

SHAPE = PromptShape(5, 144, 51)


def run_of(name="full", outputs=9, batch=1, **parameters):
    return ledger.Run(MID_SIZE, methods.create(name, **parameters), SHAPE, outputs, batch)


def test_decode_sums_over_steps_that_feed_all_but_the_first_token():
    run, dims = run_of(outputs=4), MID_SIZE.dims
    expected = sum(
        dims.layers * sum(flops.decoder_layer(dims, 1, 200 + fed + 1).values())
        + flops.lm_head(dims, 1)
        for fed in range(3)
    )
    assert ledger.total(ledger.entries(run, "decode")) == expected


def test_nocache_sums_over_growing_calls():
    run, dims = run_of(outputs=4), MID_SIZE.dims
    expected = sum(
        dims.layers * sum(flops.decoder_layer(dims, 200 + fed, 200 + fed).values())
        + flops.lm_head(dims, 1)
        for fed in (1, 2, 3)
    )
    assert ledger.total(ledger.entries(run, "decode_nocache")) == expected


def test_one_generated_token_needs_no_decoding():
    run = run_of(outputs=1)
    assert ledger.total(ledger.entries(run, "decode")) == 0
    assert ledger.total(ledger.entries(run, "decode_nocache")) == 0


@pytest.mark.parametrize("name", methods.names())
def test_batch_multiplies_everything(name):
    for mode in ledger.MODES:
        one = ledger.total(ledger.entries(run_of(name), mode))
        assert ledger.total(ledger.entries(run_of(name, batch=8), mode)) == 8 * one


@pytest.mark.parametrize("name", methods.names())
def test_layers_and_the_rest_make_the_total(name):
    for mode in ledger.MODES:
        entries = ledger.entries(run_of(name), mode)
        outside = sum(item.macs for item in entries if item.layer is None)
        assert sum(ledger.by_layer(entries, 8)) + outside == ledger.total(entries)
        assert sum(ledger.by_component(entries).values()) == ledger.total(entries)


def test_dynamic_llava_prefill_by_hand():
    run, dims = run_of("dynamic_llava"), MID_SIZE.dims
    layer = [sum(flops.decoder_layer(dims, n, n).values()) for n in (200, 56 + int(144 * 0.2))]
    own = sum(item.macs for item in run.method.overhead(SHAPE, dims) if item.phase == "prefill")
    expected = 2 * layer[0] + 6 * layer[1] + own + flops.lm_head(dims, 1)
    assert own > 0
    assert ledger.total(ledger.entries(run, "prefill")) == expected


def test_realised_counts_replace_declared_ones():
    run = run_of("dynamic_llava")
    assert ledger.total(ledger.entries(run.realised(output_keep=1.0), "decode")) > ledger.total(
        ledger.entries(run, "decode")
    )
    rows = (200,) * 4 + (100,) * 4
    changed = run.realised(prefill_rows=rows, prefill_kv=rows)
    assert ledger.image_tokens_per_layer(changed) == [144] * 4 + [44] * 4


def test_vision_side_is_in_prefill_only_and_only_with_an_image():
    spec = LLAVA_15_7B
    run = ledger.Run(spec, Method(), spec.prompt(60), 3)
    assert ledger.by_component(ledger.entries(run, "prefill"))["vision_tower"] == 190_959_108_096
    assert ledger.by_component(ledger.entries(run, "decode"))["vision_tower"] == 0
    text = ledger.Run(spec, Method(), spec.prompt(60, images=0), 3)
    assert ledger.by_component(ledger.entries(text, "prefill"))["vision_tower"] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: run_of(outputs=0),
        lambda: run_of(batch=0),
        lambda: ledger.entries(run_of(), "training"),
        lambda: MID_SIZE.prompt(0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(UserError, match="accepted"):
        call()
