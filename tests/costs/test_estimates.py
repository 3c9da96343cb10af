"""KV memory, devices, roofline, published comparison."""

import dataclasses
import json
from importlib import resources

import pytest

from dynllava import methods
from dynllava.costs import against_published as published
from dynllava.costs import devices as device
from dynllava.costs import kv, ledger, roofline
from dynllava.costs.spec import (
    LLAVA_15_7B,
    LLAVA_15_13B,
    MID_SIZE,
    dtype_bytes,
    load_spec,
    spec_from_config,
)
from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.plan import Schedule

A100 = device.load_device("a100-80g")


def run_of(spec=LLAVA_15_7B, outputs=101, batch=1, method="full", **parameters):
    return ledger.Run(spec, methods.create(method, **parameters), spec.prompt(60), outputs, batch)


def test_dense_kv_bytes_by_hand():
    state = kv.kv_state(run_of(batch=2), 100, "float16")
    assert state.total_stored == 2 * 32 * 736 * 2 * 4096 * 2
    # A tenth beyond the 636 of the prompt is 699; a seventh beyond the 700 that are needed then.
    assert state.total_allocated == 2 * 32 * 800 * 2 * 4096 * 2
    chunks = kv.kv_state(run_of(batch=2), 100, "float16", chunk=128)
    assert chunks.total_allocated == 2 * 32 * 768 * 2 * 4096 * 2
    assert kv.kv_state(run_of(batch=2), 100, "float32").total_stored == 2 * state.total_stored


def test_a_step_that_grows_the_cache_peaks_higher():
    run = run_of(outputs=400)
    # 699 entries are allocated behind the prompt of 636: the 64th token grows them.
    quiet, growing = kv.kv_state(run, 63, "float16"), kv.kv_state(run, 64, "float16")
    assert quiet.peak == quiet.total_allocated
    assert growing.peak > growing.total_allocated


def test_eviction_holds_one_full_layer_at_a_time_in_prefill():
    @dataclasses.dataclass(frozen=True)
    class Evicting(Method):
        def schedule(self, shape, num_layers):
            rows, kept = (shape.total,) * num_layers, (100,) * num_layers
            return Schedule(rows, kept, (False,) * num_layers, kept)

    run = ledger.Run(LLAVA_15_7B, Evicting(), LLAVA_15_7B.prompt(60), 1)
    state = kv.kv_state(run, 0, "float16")
    unit = kv.entry_bytes(LLAVA_15_7B.dims, "float16")
    assert state.total_stored == unit * 32 * 100
    beside = LLAVA_15_7B.dims.kv_heads * kv.EVICTION_BYTES
    assert state.total_allocated == 32 * 101 * (unit + beside)
    assert state.peak == state.total_allocated + unit * 636


def test_what_fits_is_the_largest_that_fits():
    run = run_of(LLAVA_15_13B, outputs=1000)
    batch = kv.max_batch(run, A100, "float16")
    assert kv.fits(dataclasses.replace(run, batch=batch), A100, "float16")
    assert not kv.fits(dataclasses.replace(run, batch=batch + 1), A100, "float16")
    assert kv.max_batch(run_of(LLAVA_15_13B), device.load_device("l4"), "float16") == 0


def test_sparsity_never_needs_more_kv_memory_than_dense():
    for name in methods.names():
        run = run_of(method=name)
        stored = kv.kv_state(run, 100, "float16").total_stored
        assert stored <= kv.kv_state(run.dense(), 100, "float16").total_stored


@pytest.mark.parametrize("name", device.device_names())
def test_every_device_has_its_numbers_and_source(name):
    found = device.load_device(name)
    assert found.name == name
    assert found.memory_bytes > 10 * device.GIB
    assert found.bandwidth_bytes_per_s > 1e11
    assert min(found.peak_flops.values()) > 1e12
    assert len(found.source) > 20


def test_device_files_hold_nothing_else():
    folder = resources.files("dynllava.costs").joinpath("device_specs")
    names = {field.name for field in dataclasses.fields(device.Device)}
    for item in folder.iterdir():
        assert set(json.loads(item.read_text())) == names


def test_decoding_one_sequence_is_bound_by_reading_the_weights():
    run = run_of(outputs=2)
    full = roofline.Efficiency(1.0, 1.0)
    estimate = roofline.estimate(run, "decode", A100, "float16", full)
    floor = roofline.bytes_moved(run, "decode", "float16") / A100.bandwidth_bytes_per_s
    assert estimate.per_call == pytest.approx(floor, rel=0.01)
    assert estimate.bound("mlp") == "bandwidth"


def test_prefill_is_bound_by_compute():
    run = run_of()
    full = roofline.Efficiency(1.0, 1.0)
    estimate = roofline.estimate(run, "prefill", A100, "float16", full)
    floor = 2 * ledger.total(ledger.entries(run, "prefill")) / A100.flops("float16")
    assert floor <= estimate.total < 1.1 * floor
    assert estimate.bound("mlp") == "compute"


def test_lower_efficiency_means_more_time():
    run = run_of()
    half = roofline.estimate(run, "prefill", A100, "float16", roofline.Efficiency(0.5, 0.5))
    full = roofline.estimate(run, "prefill", A100, "float16", roofline.Efficiency(1.0, 1.0))
    assert half.total == pytest.approx(2 * full.total)


def test_bytes_moved_by_hand():
    run = run_of(MID_SIZE, outputs=3, batch=2)
    dims = MID_SIZE.dims
    weights = dims.layers * (4 * 512 * 512 + 3 * 512 * 1376) + 512 * 2000
    keys = (60 + 144 + 1) + (60 + 144 + 2)
    assert roofline.bytes_moved(run, "decode", "float32") == 4 * (
        2 * weights + 2 * dims.layers * keys * 2 * 512
    )


def test_published_rows_are_all_compared():
    rows = published.compare()
    assert len(rows) == 3 * 2 + 3 * 7 + 5
    for row in rows:
        assert row.estimated > 0
        if row.measured is not None:
            assert row.ratio == pytest.approx(row.measured / row.estimated)
    noted = [row for row in rows if row.measured is None]
    assert [row.note.startswith("oom") for row in noted] == [True] * len(noted)


def test_methods_of_published_labels():
    method = published.method_of_label("fastv k=3,r=0.75")
    assert (method.k, method.keep_ratio) == (3, 0.25)
    assert published.method_of_label("dynamic_llava I|T").output_keep_rate == 0.5
    h2o = published.method_of_label("h2o r=0.5")
    assert (h2o.heavy, h2o.recent) == (0.25, 0.25)


def test_parameters_of_the_presets():
    assert LLAVA_15_7B.parameters()["vision_tower"] == 303_507_456
    # The Hugging Face checkpoint has 64 more vocabulary rows.
    assert sum(LLAVA_15_7B.parameters().values()) == 7_063_427_072 - 2 * 64 * 4096


def test_embedded_spec_matches_its_model():
    import torch
    from transformers import LlavaForConditionalGeneration

    from dynllava.embedded.model import build_config

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(build_config())
    parameters = {id(value): value.numel() for value in model.parameters()}
    assert sum(load_spec("embedded").parameters().values()) == sum(parameters.values())


def test_original_llava_config_is_read():
    raw = {
        "model_type": "llava_llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }
    spec = spec_from_config(raw, "folder")
    assert spec.dims == LLAVA_15_7B.dims
    assert spec.image_tokens == 576


@pytest.mark.parametrize(
    "call",
    [
        lambda: device.load_device("a100"),
        lambda: dtype_bytes("int3"),
        lambda: load_spec("llava-2"),
        lambda: device.load_device("cpu").flops("float8"),
    ],
)
def test_bad_names_list_what_is_accepted(call):
    with pytest.raises(UserError, match="accepted"):
        call()


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}', '{"text_config": 3}'])
def test_bad_configs_are_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as caught:
        load_spec(str(tmp_path))
    assert "\n" not in str(caught.value)
