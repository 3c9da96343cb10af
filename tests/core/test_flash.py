"""FlashAttention is called as its own signatures say, and computes what sdpa computes.

No CPU can run the real kernels: a stub module has their names and parameters, checks what they
would check, and computes with sdpa.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from method_cases import CASES
from tiny import batch, pixels, prompts, tiny_model
from torch.nn import functional as F

from dynllava.engine import flash
from dynllava.engine.attention import Probe, exact_scores, observe, summed_attention
from dynllava.errors import UserError
from dynllava.models.loading import load_model


def _attend(query, key, value, scale, mask=None, causal=False):
    groups = query.shape[2] // key.shape[2]
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale
    )
    return out.transpose(1, 2)


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype in flash.DTYPES
    assert q.shape[2] % k.shape[2] == 0
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    calls.append(("prompt", q.shape[1]))
    return _attend(q, k, v, softmax_scale, causal=causal and q.shape[1] > 1)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    assert q.dtype == k_cache.dtype == v_cache.dtype
    assert q.dtype in flash.DTYPES
    assert cache_seqlens.dtype == torch.int32
    assert cache_seqlens.device == q.device
    assert cache_seqlens.shape == q.shape[:1]
    assert int(cache_seqlens.min()) > 0
    calls.append(("step", cache_seqlens.tolist()))
    columns = torch.arange(k_cache.shape[1], device=q.device)
    mask = (columns < cache_seqlens[:, None])[:, None, None]
    return _attend(q, k_cache, v_cache, softmax_scale, mask=mask)


calls: list[tuple[str, object]] = []


@pytest.fixture
def stub(monkeypatch):
    module = types.ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    calls.clear()
    return calls


@pytest.fixture(scope="module", params=[4, 2], ids=["one head a group", "two heads a group"])
def model(request):
    return tiny_model(kv_heads=request.param).to(torch.bfloat16)


def generate(model, kernel):
    model.kernel = kernel
    inputs = batch(prompts(), pixels())
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    out = model.generate(
        **inputs,
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        sample_ids=torch.arange(4),
    )
    return torch.stack(out.logits).float(), out.sequences, model.last_report.kv_lengths


@pytest.mark.parametrize("name", ["full", "fastv", "dynamic_llava"])
def test_ragged_rows_give_the_logits_of_sdpa(model, stub, name):
    model.set_method(name)
    expected, tokens, lengths = generate(model, "sdpa")
    assert not stub
    logits, own_tokens, own_lengths = generate(model, flash.NAME)
    same = (own_tokens == tokens)[:, -8:].cumprod(1).bool().T
    # The token that a row's first difference leads to is still comparable.
    same = torch.cat([torch.ones_like(same[:1]), same[:-1]])
    torch.testing.assert_close(logits[same], expected[same], atol=0.06, rtol=0)
    assert own_lengths[0] == lengths[0]
    assert same.float().mean() > 0.7
    layers = len(model.model.language_model.layers)
    assert [kind for kind, _ in stub].count("prompt") == layers
    assert [kind for kind, _ in stub].count("step") == 7 * layers
    assert any(len(set(seen)) > 1 for kind, seen in stub if kind == "step")  # ragged


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_every_method_runs_on_it(stub, case):
    if case.parameters.get("decoder") == "reprune":
        pytest.skip("runs without a cache only")
    model = tiny_model(kv_heads=2).to(torch.bfloat16)
    model.set_method(case.name, **case.parameters)
    logits, _, _ = generate(model, flash.NAME)
    assert torch.isfinite(logits).all()
    # H2O needs every weight: it forms them itself wherever it evicts, which is everywhere here.
    assert stub or "h2o" in case.name


def test_lengths_on_another_device_are_moved_and_cast(stub):
    query = torch.ones(2, 4, 1, 8, dtype=torch.float16)
    cache = torch.ones(2, 2, 16, 8, dtype=torch.float16)
    out = flash.step(query, cache, cache, 1.0, torch.tensor([3, 16]))
    assert out.shape == query.shape


@pytest.mark.parametrize("kind", ["prompt", "step"])
def test_float32_is_refused_before_the_kernel(stub, kind):
    tensor = torch.ones(1, 4, 1, 8)
    extra = (torch.tensor([1]),) if kind == "step" else ()
    with pytest.raises(UserError, match="float32: accepted are float16 and bfloat16"):
        getattr(flash, kind)(tensor, tensor, tensor, 1.0, *extra)
    assert not stub


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "float32: accepted are float16 and bfloat16"),
        ({"dtype": "float16"}, "device=cpu: accepted is a CUDA device"),
    ],
)
def test_loading_refuses_what_could_only_fail_later(options, message):
    with pytest.raises(UserError, match=message):
        load_model("embedded", attn_implementation=flash.NAME, **options)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(UserError, match="flash-attn is not installed"):
        flash.check_available(torch.float16, "cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_not_rounded_before_the_softmax(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 300, 16, generator=generator).to(dtype) * 4 for _ in "qk")
    value = torch.randn(1, 2, 300, 16, generator=generator).to(dtype)
    exact = (query.double() @ key.double().transpose(-1, -2)) * 0.25
    torch.testing.assert_close(exact_scores(query, key, 0.25).double(), exact, atol=1e-4, rtol=0)
    weights = exact.masked_fill(torch.ones(300, 300).triu(1).bool(), float("-inf")).softmax(-1)
    sums, _ = summed_attention(query, key, value, 0.25, torch.tensor([300]))
    torch.testing.assert_close(sums.double(), weights.sum(2), atol=1e-3, rtol=1e-4)
    rows = observe(query, key, Probe(query_rows=torch.tensor([[299]])), 0.25, torch.tensor([300]))
    torch.testing.assert_close(rows.rows.double(), weights[:, :, 299:], atol=1e-5, rtol=1e-4)


def test_unscaled_products_beyond_half_precision_stay_finite():
    query = torch.full((1, 1, 1, 64), 60.0, dtype=torch.float16)  # q.k = 230,400 > 65,504
    assert torch.isfinite(exact_scores(query, query, 64**-0.5)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_float32_scores_from_half_precision_on_a_gpu():
    query = torch.randn(2, 4, 40, 64, device="cuda", dtype=torch.float16) * 8
    key = torch.randn(2, 4, 90, 64, device="cuda", dtype=torch.float16) * 8
    exact = (query.double() @ key.double().transpose(-1, -2)) * 0.125
    torch.testing.assert_close(exact_scores(query, key, 0.125).double(), exact, atol=2e-2, rtol=0)
