"""A method's own work, counted in real runs, against the ledger: exact, in every mode."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dynllava import methods
from dynllava.costs import flops, ledger
from dynllava.costs.counters import flop_counter
from dynllava.plan import Image, Shape, Text, Voco
from dynllava.timing import speed
from dynllava.timing.speed import Subject

BLOCK = 256
"""Queries that a column sum of the prompt's attention takes at once."""

CASES = {
    "fastv": {"k": 2, "keep_ratio": 0.3},
    "fastv-rerank": {"k": 3, "keep_ratio": 0.3, "decoder": "rerank"},
    "pyramiddrop": {"ratios": "0.5/0.25/0.125"},
    "random": {"image_keep_rate": 0.4},
    "uniform": {"image_keep_rate": 0.4},
    "h2o": {"heavy": 0.3, "recent": 0.1},
    "h2o-some-layers": {"first_full_layers": 3},
    "h2o-prompt": {"phase": "prefill+decode", "heavy": 0.3, "recent": 0.1},
    "dynamic_llava": {"vision_keep_rate": 0.3},
    "dynamic_llava-image": {"vision_keep_rate": 0.3, "output_keep_rate": 1.0},
    "dynamic_llava-output": {"vision_keep_rate": 1.0},
    "structure": {},
    "no_image": {},
    "fastv+h2o": {"fastv_k": 2, "fastv_keep_ratio": 0.3, "h2o_first_full_layers": 1},
    "fastv+h2o-prompt": {"fastv_k": 2, "h2o_phase": "prefill+decode"},
    "h2o+uniform": {"uniform_image_keep_rate": 0.3, "uniform_layer": 3},
    "structure+fastv": {"fastv_k": 3},
    "dynamic_llava+h2o": {"dynamic_llava_output_keep_rate": 1.0},
}


def subject_of(bench, case):
    return Subject(bench, case, methods.create(case.partition("-")[0], **CASES[case]))


def counted(subject, inputs, outputs):
    """MACs of matrix products of a prompt and ``outputs - 1`` decoding steps."""
    model = subject.prepare()
    with torch.inference_mode(), flop_counter() as counter:
        out = model(inputs_embeds=inputs.embeds, image_mask=inputs.image_mask, logits_to_keep=1)
        for _ in range(outputs - 1):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, logits_to_keep=1)
    return counter.get_total_flops() // 2


def declared(run, *modes):
    return sum(ledger.total(ledger.entries(run, mode)) for mode in modes)


def future_keys_skipped(subject, run):
    """Products that the ledger counts, as the full square, and a pass in blocks leaves out."""
    if "h2o" not in subject.name or "prompt" in subject.name:
        return 0
    dims, first = run.spec.dims, CASES[subject.name]
    full = first.get("first_full_layers", first.get("h2o_first_full_layers", 0))
    skipped = 0
    for rows in run.schedule.prefill_rows[full:]:
        for start in range(0, rows, BLOCK):
            stop = min(start + BLOCK, rows)
            skipped += (stop - start) * (rows - stop)
    return run.batch * 2 * dims.heads * dims.head_dim * skipped


@pytest.mark.parametrize(("text", "batch"), [(12, 1), (12, 4), (300, 2), (3, 2)])
@pytest.mark.parametrize("case", list(CASES))
def test_a_prompt_costs_exactly_what_the_ledger_says(case, text, batch, tiny_bench, tiny_spec):
    """Prompts of several blocks of queries, the last one not full, among them."""
    shape = tiny_spec.prompt(text)
    subject = subject_of(tiny_bench, case)
    run = ledger.Run(tiny_spec, subject.method, shape, 1, batch)
    total = counted(subject, speed.make_inputs(tiny_bench, shape, batch), 1)
    assert total == declared(run, "prefill") - future_keys_skipped(subject, run)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("case", list(CASES))
def test_every_decoding_step_costs_exactly_what_the_ledger_says(case, batch, tiny_bench, tiny_spec):
    shape, outputs = tiny_spec.prompt(12), 6
    subject = subject_of(tiny_bench, case)
    inputs = speed.make_inputs(tiny_bench, shape, batch)
    steps = counted(subject, inputs, outputs) - counted(subject, inputs, 1)
    run = ledger.Run(tiny_spec, subject.method, shape, outputs, batch)
    if any(run.schedule.drops_output):
        # Until room grows a step looks at the slots of dropped tokens too, masked.
        run = run.realised(output_keep=1.0)
    assert steps == declared(run, "decode")


@pytest.mark.parametrize("case", [case for case in CASES if "h2o" not in case])
def test_calls_without_a_cache_cost_exactly_what_the_ledger_says(case, tiny_bench, tiny_spec):
    if case == "fastv-rerank":
        pytest.skip("re-ranks on a cache; without one it is the golden mask_cache recording")
    shape, outputs, dims = tiny_spec.prompt(12), 6, tiny_spec.dims
    subject = subject_of(tiny_bench, case)
    inputs = speed.make_inputs(tiny_bench, shape, 1)
    model = subject.prepare()
    run = ledger.Run(tiny_spec, subject.method, shape, outputs, 1)
    difference = 0
    for fed in range(1, outputs):
        embeds = torch.cat([inputs.embeds, inputs.embeds[:, :fed]], 1)
        mask = torch.nn.functional.pad(inputs.image_mask, (0, fed))
        with torch.inference_mode(), flop_counter() as counter:
            model(
                inputs_embeds=embeds,
                image_mask=mask,
                prompt_length=torch.tensor([shape.total]),
                use_cache=False,
                logits_to_keep=1,
            )
        difference += counter.get_total_flops() // 2
        if any(run.schedule.drops_output):
            # What was kept of these tokens, in place of what is expected.
            real = [layer[0] for layer in model.last_report.layer_tokens]
            for seen, meant in zip(real, run.schedule.nocache_rows(fed), strict=True):
                difference += sum(flops.decoder_layer(dims, meant, meant).values())
                difference -= sum(flops.decoder_layer(dims, seen, seen).values())
    assert difference == declared(run, "decode_nocache")


@pytest.mark.parametrize("text", [4, 40])
@pytest.mark.parametrize(
    "parameters",
    [
        {"budgets": "20/9", "pruning_layers": "1/4"},
        {"budgets": "0.6/0.2", "pruning_layers": "0/3"},
        {"budgets": "20/9", "pruning_layers": "1/4", "version": "2.0"},
    ],
    ids=["numbers", "shares", "2.0"],
)
def test_rating_costs_what_the_ledger_says_where_half_of_the_text_rates(
    parameters, text, tiny_bench, tiny_spec
):
    """Their number depends on the prompt; among random prompts one has the assumed number."""
    shape = tiny_spec.prompt(text)
    subject = Subject(tiny_bench, "sparsevlm", methods.create("sparsevlm", **parameters))
    assumed = math.ceil(shape.text_after / 2)
    for seed in range(200):
        inputs = speed.make_inputs(tiny_bench, shape, 1, seed=seed)
        total = counted(subject, inputs, 1)
        raters = int(subject.bench.wrapped.last_report.record["sparsevlm.raters"].sum())
        if raters == assumed:
            break
    assert raters == assumed
    run = ledger.Run(tiny_spec, subject.method, shape, 1, 1)
    assert total + distances(subject, shape) == declared(run, "prefill")


def distances(subject, shape):
    """Products behind the distances of recycled tokens, which no counter knows (cdist)."""
    if subject.method.version == "2.0":
        return 0
    rows = [count for (count,) in subject.bench.wrapped.last_report.layer_tokens]
    products = 0
    for before, after in itertools.pairwise(rows):
        if after < before:
            image, left = (count - shape.total + shape.image for count in (before, after))
            kept = next(
                kept for kept in range(left)
                if kept + (int(0.3 * (image - kept)) + 1) // 10 + 1 == left
            )  # fmt: skip
            products += (int(0.3 * (image - kept)) + 1) ** 2
    return products * subject.bench.spec.dims.hidden


@pytest.mark.parametrize("case", list(CASES))
def test_a_prompt_without_an_image_costs_exactly_what_the_ledger_says(case, tiny_bench, tiny_spec):
    shape = tiny_spec.prompt(20, images=0)
    subject = subject_of(tiny_bench, case)
    run = ledger.Run(tiny_spec, subject.method, shape, 1, 2)
    total = counted(subject, speed.make_inputs(tiny_bench, shape, 2), 1)
    assert total == declared(run, "prefill")


def test_learned_tokens_cost_exactly_what_the_ledger_says(tiny_bench, tiny_spec):
    shape = Shape((Text(2), Image(6, 6), Voco(3), Text(9)))
    subject = Subject(tiny_bench, "voco", methods.create("voco_llama", token_id=7))
    model, outputs = subject.prepare(), 5
    embeds = torch.randn(2, shape.total, tiny_spec.dims.hidden)
    learned = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    learned[:, 38:41] = True
    seen = []
    with torch.inference_mode():
        for tokens in (1, outputs):
            with flop_counter() as counter:
                out = model(inputs_embeds=embeds, learned_mask=learned, logits_to_keep=1)
                for _ in range(tokens - 1):
                    token = out.logits[:, -1:].argmax(-1)
                    cache = out.past_key_values
                    out = model(input_ids=token, past_key_values=cache, logits_to_keep=1)
            seen.append(counter.get_total_flops() // 2)
    run = ledger.Run(tiny_spec, subject.method, shape, outputs, 2)
    assert seen == [declared(run, "prefill"), declared(run, "prefill", "decode")]
    assert set(model.last_report.kv_lengths[0]) == {3 + 9 + outputs - 1}
