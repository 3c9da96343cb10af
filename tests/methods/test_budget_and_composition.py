"""The budget solver, and two methods in one pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch, pixels, prompts, tiny_model

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.budget import held, processed, solve, target
from dynllava.plan import PromptShape

SEVEN_B = PromptShape(35, 576, 40)


@pytest.mark.parametrize(("retain", "mean"), [(192, 206.5), (128, 145.4), (96, 114.1), (64, 82.25)])
def test_published_sparsevlm_settings_process_more_than_they_say(retain, mean):
    method = create("sparsevlm", retain=retain)
    assert processed(method, SEVEN_B, 32) == pytest.approx(mean, abs=0.05)
    listed = "/".join(str(round(budget * 576)) for budget in method.targets)
    assert target(listed, SEVEN_B, 32) == processed(method, SEVEN_B, 32)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["fastv", "dynamic_llava", "random", "uniform", "sparsevlm", "h2o"]),
    share=st.floats(0.45, 1.0),
    image=st.integers(64, 600),
    layers=st.sampled_from([6, 18, 32, 40]),
)
def test_a_solved_method_meets_its_budget(name, share, image, layers):
    shape, goal = PromptShape(9, image, 20), share * image
    fixed = {"k": 2} if name == "fastv" else {}
    parameters = solve(name, goal, shape, layers, **fixed)
    method = create(name, **parameters)
    method.validate(layers)
    reached = (held if name == "h2o" else processed)(method, shape, layers)
    # Whole tokens; SparseVLM always drops at least one token a stage.
    assert abs(reached - goal) <= (4 if name == "sparsevlm" else 1)


def test_lists_mean_what_sparsevlm_processes():
    assert solve("sparsevlm", "300/200/110", SEVEN_B, 32) == {"budgets": "300/200/110"}
    fastv = create("fastv", **solve("fastv", "300/200/110", SEVEN_B, 32))
    assert processed(fastv, SEVEN_B, 32) == pytest.approx(206.5, abs=0.5)


@pytest.mark.parametrize(
    ("name", "budget", "fixed", "message"),
    [
        ("fastv", 20, {"k": 3}, "out of reach"),
        ("fastv", 0, {}, "positive"),
        ("fastv", float("nan"), {}, "positive"),
        ("fastv", 600, {}, "up to 576"),
        ("structure", 100, {}, "no budget"),
        ("full", 100, {}, "no budget"),
        ("sparsevlm", 100, {"version": "rank"}, "adapts itself"),
        ("h2o", 100, {"first_full_layers": 31}, "out of reach"),
        ("structure+h2o", 100, {}, "no part drops image tokens"),
    ],
)
def test_impossible_budgets_get_one_line(name, budget, fixed, message):
    with pytest.raises(UserError, match=message) as error:
        solve(name, budget, SEVEN_B, 32, **fixed)
    assert "\n" not in str(error.value)


def test_a_composition_solves_its_image_part_and_keeps_its_name_and_parameters():
    parameters = solve("fastv+h2o", 100, PromptShape(5, 144, 12), 6, fastv_k=2, h2o_heavy=0.4)
    method = create("fastv+h2o", **parameters)
    assert method.name == "fastv+h2o"
    assert parameters["h2o_heavy"] == 0.4
    assert create(method.name, **method.parameters()) == method
    assert processed(method, PromptShape(5, 144, 12), 6) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fastv+sparsevlm", {"sparsevlm_pruning_layers": "0/1/2"}, "both parts drop image"),
        ("structure+h2o", {}, "both parts drop cache entries"),
        ("fastv+h2o", {"fastv_decoder": "rerank"}, "cannot work on a cache"),
        ("fastv+h2o", {"fastv_decoder": "reprune"}, "cannot work on a cache"),
        ("fastv+h2o", {"k": 2}, "prefix fastv_ or h2o_"),
        ("fastv+h2o", {"fastv_x": 2}, "no parameter 'x'"),
        ("fastv+fastv", {}, "two different methods"),
        ("fastv+h2o+random", {}, "two different methods"),
        ("fastv+nothing", {}, "accepted are"),
    ],
)
def test_impossible_compositions_get_one_line(name, parameters, message):
    with pytest.raises(UserError, match=message) as error:
        create(name, **parameters).validate(6)
    assert "\n" not in str(error.value)


COMPOSITIONS = [
    ("fastv+h2o", {"fastv_k": 2, "fastv_keep": 5, "h2o_heavy": 4, "h2o_recent": 4}),
    ("h2o+uniform", {"uniform_layer": 1, "h2o_first_full_layers": 1}),
    ("sparsevlm+h2o", {"sparsevlm_pruning_layers": "0/2", "sparsevlm_budgets": "9/5"}),
    (
        "sparsevlm+h2o",
        {
            "sparsevlm_pruning_layers": "0/2",
            "sparsevlm_budgets": "9/5",
            "h2o_position": "rolled",
            "h2o_first_full_layers": 2,
        },
    ),
    ("sparsevlm+structure", {"sparsevlm_pruning_layers": "1/2", "sparsevlm_budgets": "9/5"}),
    ("fastv+structure", {"fastv_k": 2, "structure_layer": 2}),
    ("random+h2o", {"random_output_keep_rate": 1.0, "random_image_keep_rate": 0.4}),
]


@pytest.mark.parametrize(("name", "parameters"), COMPOSITIONS, ids=str)
def test_compositions_batch_like_batch_one_and_keep_their_schedule(name, parameters):
    model = tiny_model(kv_heads=2)
    model.set_method(name, **parameters)
    ids, images = prompts(seed=2), pixels(seed=2)
    fed = torch.randint(3, 98, (4, 6), generator=torch.Generator().manual_seed(0))

    def run(rows):
        inputs = batch([ids[row] for row in rows], [images[row] for row in rows])
        cache = model.new_cache()
        with torch.no_grad():
            out = [model(**inputs, past_key_values=cache, logits_to_keep=1).logits]
            for column in range(6):
                token = fed[rows, column : column + 1]
                out.append(model(token, past_key_values=cache, logits_to_keep=1).logits)
        return torch.cat(out, 1), model.last_report

    together, report = run(list(range(4)))
    lengths, tokens = report.kv_lengths, report.layer_tokens
    for row in range(4):
        alone, _ = run([row])
        torch.testing.assert_close(together[row : row + 1], alone, atol=3e-5, rtol=0)
        where = (ids[row] == 99).nonzero().flatten()
        before = int(where[0]) if len(where) else len(ids[row])
        shape = PromptShape(before, len(where), len(ids[row]) - before - len(where))
        schedule = model.method.schedule(shape, 5)
        assert [layer[row] for layer in tokens] == list(schedule.prefill_rows)
        kept = 3 if any(schedule.drops_output) else None
        assert [layer[row] for layer in lengths] == schedule.kv_lengths(6, kept)
