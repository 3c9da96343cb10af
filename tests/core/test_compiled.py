"""Compiled decode steps: the same tokens and logits as ordinary ones, for every method."""

from __future__ import annotations

import shutil

import pytest
import torch
from method_cases import CASES
from tiny import batch, pixels, prompts, tiny_model

from dynllava.errors import UserError

TRACING = "eager"  # the compiler's view of a step, without generated code
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def model():
    model = tiny_model(kv_heads=2)
    model.kv_chunk = 8  # several growths within a generation
    return model


@pytest.fixture
def whole_graphs(monkeypatch):
    """Let the compiler fail where a step breaks into several graphs."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, backend: compile(f, backend=backend, fullgraph=True)
    )


def generate(model, new_tokens=NEW_TOKENS):
    out = model.generate(
        **batch(prompts(), pixels()),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    report = model.last_report
    return out.sequences, torch.stack(out.logits), report.kv_lengths, report.output_kept


def assert_same(model, backend, **options):
    model.set_compile(False)
    tokens, logits, lengths, kept = generate(model)
    model.set_compile(True, backend, **options)
    compiled_tokens, compiled_logits, compiled_lengths, compiled_kept = generate(model)
    assert torch.equal(compiled_tokens, tokens)
    torch.testing.assert_close(compiled_logits, logits, atol=2e-5, rtol=0)
    assert (compiled_lengths, compiled_kept) == (lengths, kept)


COMPILED = [case for case in CASES if case.id != "fastv-reprune"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in COMPILED])
def test_compiled_steps_equal_ordinary_ones(model, whole_graphs, case):
    model.set_method(case.name, **case.parameters)
    assert_same(model, TRACING)


QUICK = ("dynamic_llava-I|T", "fastv", "sparsevlm", "pyramiddrop")
"""Methods whose selections are compiled in the quick tests too."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.id, marks=[] if case.id in QUICK else pytest.mark.slow)
        for case in COMPILED
    ],
)
def test_compiled_selections_equal_ordinary_ones(model, case):
    model.set_method(case.name, **case.parameters)
    assert_same(model, TRACING, selection=True)


@pytest.mark.parametrize("name", ["dynamic_llava", "fastv"])
def test_a_selection_is_compiled_once_for_prompts_of_one_shape(model, name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.set_method(name)
    given = batch(prompts(), pixels())
    ordinary = model(**given, use_cache=False).logits
    model.set_compile(True, backend, selection=True)
    first = model(**given, use_cache=False).logits
    once = len(graphs)
    again = model(**given, use_cache=False).logits
    model.set_compile(False)
    assert once == len(graphs) > 0
    assert torch.equal(first, ordinary)
    assert torch.equal(again, ordinary)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamic_llava", "fastv", "sparsevlm"])
def test_generated_kernels_select_the_same_tokens(model, name):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++)")
    model.set_method(name)
    assert_same(model, "inductor", selection=True)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=case.id, marks=[] if case.id == "dynamic_llava-I|T" else pytest.mark.slow
        )
        for case in COMPILED
    ],
)
def test_generated_kernels_equal_ordinary_steps(model, case):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++)")
    model.set_method(case.name, **case.parameters)
    assert_same(model, "inductor")


def test_a_step_is_compiled_once_a_method(model, monkeypatch):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    model.kv_chunk = 128
    model.set_compile(True, backend)
    for name in ("full", "no_image", "full", "no_image"):
        model.set_method(name)
        generate(model, 4)
    model.kv_chunk = 8
    assert len(seen) == 2


def test_steps_of_changing_shape_stay_ordinary(model):
    model.set_compile(True, "eager")
    model.set_method("fastv", k=2, keep_ratio=0.5, decoder="rerank")
    assert model.compiled_steps.of(model.program) is None


def test_a_backend_that_fails_is_one_clear_line(model):
    def broken(graph, inputs):
        raise ValueError("no compiler here")

    model.set_compile(True, broken)
    model.set_method("full")
    with pytest.raises(
        UserError, match=r"no compiled step \(ValueError: no compiler here\)"
    ) as error:
        generate(model, 3)
    assert "\n" not in str(error.value)
    model.set_compile(False)


def test_flash_attention_is_refused(model):
    model.kernel, before = "flash_attention_2", model.kernel
    try:
        with pytest.raises(UserError, match="accepted are sdpa and eager"):
            model.set_compile()
    finally:
        model.kernel = before
