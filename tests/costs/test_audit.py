"""Closed form, fvcore and FlopCounterMode agree exactly; a wrong number is noticed."""

import dataclasses

import pytest

from dynllava import methods
from dynllava.costs import audit, counters, flops, ledger
from dynllava.costs.spec import LLAVA_15_7B, LLAVA_15_13B, MID_SIZE, VisionDims
from dynllava.methods.base import Method
from dynllava.plan import ModelDims, Operation

pytest.importorskip("fvcore", reason="fvcore is not installed (the profile extra)")

TEXT_TOKENS = 60
OUTPUTS = 2


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("spec", [LLAVA_15_7B, LLAVA_15_13B], ids=lambda spec: spec.name)
@pytest.mark.parametrize("name", methods.names())
def test_three_counters_agree_exactly(name, spec, batch):
    run = ledger.Run(spec, methods.create(name), spec.prompt(TEXT_TOKENS), OUTPUTS, batch)
    for mode in ledger.MODES:
        findings = audit.audit(run, mode)
        assert all(finding.agrees for finding in findings), findings
        counted = {finding.component for finding in findings if finding.torch is not None}
        assert counted == {finding.component for finding in findings}


def test_published_sizes_of_the_vision_side():
    assert flops.vision_tower(LLAVA_15_7B.vision) == 190_959_108_096
    assert audit.count_vision_on_meta(LLAVA_15_7B.vision) == 190_959_108_096
    assert flops.projector(LLAVA_15_7B) == 12_079_595_520


def test_vision_tower_by_both_counters_on_real_tensors():
    small = VisionDims(hidden=32, layers=3, heads=4, intermediate=64, image_size=28, patch_size=14)
    closed = flops.vision_tower(small)
    assert audit.count_vision_on_cpu("fvcore", small) == closed
    assert audit.count_vision_on_cpu("torch", small) == closed


def test_grouped_query_attention_agrees():
    dims = ModelDims(2, 64, 8, 2, 8, 96, 50)
    for queries, keys in ((5, 5), (1, 9), (3, 9)):
        closed = flops.decoder_layer(dims, queries, keys, 2)
        for counter in audit.COUNTER_NAMES:
            counted = counters.layer_components(
                counters.count_layer(counter, dims, queries, keys, 2)
            )
            assert counted == closed


def test_closed_form_is_the_textbook_one():
    dims, n = dataclasses.replace(LLAVA_15_7B.dims, vocab=32064), 600
    macs = dims.layers * sum(flops.decoder_layer(dims, n, n).values())
    assert macs + flops.lm_head(dims, n) == 4_058_775_552_000


def test_a_wrong_closed_form_is_noticed(monkeypatch):
    right = flops.decoder_layer

    def wrong(dims, queries, keys, batch=1):
        macs = right(dims, queries, keys, batch)
        return {**macs, "mlp": macs["mlp"] + 1}

    run = ledger.Run(MID_SIZE, Method(), MID_SIZE.prompt(8), 2)
    entries = ledger.entries
    monkeypatch.setattr(
        audit.ledger, "entries", lambda run, mode: entries(run, mode, layer_counter=wrong)
    )
    off = [finding.component for finding in audit.audit(run, "prefill") if not finding.agrees]
    assert off == ["mlp"]


def test_a_wrong_predictor_operation_is_noticed():
    @dataclasses.dataclass(frozen=True)
    class Wrong(Method):
        def overhead(self, shape, dims):
            return [Operation("down", "output_predictor", 0, "decode", 1, dims.hidden, 3)]

    run = ledger.Run(MID_SIZE, Wrong(), MID_SIZE.prompt(8), 3)
    off = [finding.component for finding in audit.audit(run, "decode") if not finding.agrees]
    assert off == ["output_predictor"]


def test_long_decoding_by_the_verified_law_equals_the_closed_form():
    run = ledger.Run(MID_SIZE, Method(), MID_SIZE.prompt(56), 1000)
    counted = ledger.entries(run, "decode", layer_counter=counters.LayerMacs("torch"))
    assert counted == ledger.entries(run, "decode")


def test_a_counter_without_the_law_is_refused(monkeypatch):
    def odd(counter, dims, queries, keys, batch):
        macs = {"": keys**3, "layer.self_attn": keys**3, "layer.mlp": 0}
        macs |= {f"layer.self_attn.{name}_proj": 0 for name in "qkvo"}
        return counters.Count(macs, {}, {})

    monkeypatch.setattr(counters, "count_layer", odd)
    layer = counters.LayerMacs("torch", direct=2, stride=3)
    for keys in (1, 2, 3):
        layer(MID_SIZE.dims, 1, keys, 1)
    with pytest.raises(ArithmeticError, match="bilinear"):
        layer(MID_SIZE.dims, 1, 4, 1)


def test_what_is_not_counted_is_listed_with_sizes():
    run = ledger.Run(LLAVA_15_7B, Method(), LLAVA_15_7B.prompt(60), 2)
    listed = audit.uncounted(run)
    operations = " ".join(operation for _, operation, _ in listed)
    for name in ("softmax", "RMSNorm", "silu", "gather"):
        assert name in operations
    assert all(size for _, _, size in listed)
