"""PyramidDrop: what it looks at, and where the official program cannot go or answers otherwise."""

from __future__ import annotations

import pytest
import torch
from tiny import batch, pixels, prompts, tiny_model
from transformers import AutoModel, LlamaConfig, Qwen3Config

from dynllava.engine.own_input import own_attention
from dynllava.engine.stream import align_left
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.budget import processed, solve
from dynllava.plan import PromptShape, Segment

STAGES = {"layers": "1/2/4", "ratios": "0.6/0.3/0.1"}


@pytest.fixture(scope="module")
def model():
    return tiny_model(kv_heads=2)


@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_look_at_a_layers_own_input_is_the_layers_own_attention(family, kv_heads):
    config = family(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=12,
        vocab_size=50,
    )
    torch.manual_seed(0)
    stock = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2.0)
            else:
                parameter.normal_(0, 0.4)
        ids = torch.randint(0, 50, (2, 11))
        # Positions with holes: the look takes the stream's, not the rows' ranks.
        position = torch.tensor([[0, 1, 2, 5, 6, 9, 10, 11, 14, 15, 20]]).expand(2, -1)
        out = stock(ids, position_ids=position, output_attentions=True, output_hidden_states=True)
        segment = torch.full(ids.shape, int(Segment.TEXT), dtype=torch.int8)
        valid = torch.ones_like(ids, dtype=torch.bool)
        for number, layer in enumerate(stock.layers):
            hidden = out.hidden_states[number]
            stream = align_left(hidden, valid, segment, torch.zeros(2, dtype=torch.int64))
            stream.position = position
            rows = torch.tensor([[10, 4], [7, 0]])
            tables = stock.rotary_emb(hidden, position)
            seen = own_attention(layer, stream, rows, tables)
            index = rows[:, None, :, None].expand(-1, 4, -1, 11)
            torch.testing.assert_close(
                seen, out.attentions[number].gather(2, index), atol=1e-6, rtol=0
            )


def test_the_scores_are_those_of_the_cuts_own_layer_and_not_of_the_one_before(model):
    ids, image = prompts(seed=2)[0], pixels(seed=2)[0]
    inputs = batch([ids], [image])
    for layer in (1, 3):
        model.set_method("pyramiddrop", layers=str(layer), ratios="1")
        model(**inputs)
        own = model.last_report.record[f"L{layer}.scores"]
        for k, same in ((layer + 1, True), (layer, False)):
            model.set_method("fastv", k=k, keep_ratio=1.0)
            model(**inputs)
            there = model.last_report.record[f"L{k}.scores"]
            assert torch.allclose(own, there, atol=1e-6) is same


def test_counts_are_truncated_shares_of_the_original_number():
    method = create("pyramiddrop", layers="1/3/6", ratios="0.5/0.25/0.125")
    rows = method.schedule(PromptShape(4, 45, 7), 8).prefill_rows
    assert [count - 11 for count in rows] == [45, 22, 22, 11, 11, 11, 5, 5]


def test_default_stages_are_quarters_of_the_depth_and_officially_fixed():
    shape = PromptShape(5, 576, 5)
    mean = {
        (layers, strict): processed(create("pyramiddrop", strict_official=strict), shape, layers)
        for layers in (32, 40)
        for strict in (False, True)
    }
    assert mean[32, False] == mean[32, True] == mean[40, False] == 270
    # The scripts of the 13B model name layers 8, 16 and 24 of its 40 too.
    assert mean[40, True] == (576 * 8 + 288 * 8 + 144 * 8 + 72 * 16) / 40


@pytest.mark.parametrize("goal", [192, 128, 64])
def test_a_budget_is_met_and_keeps_the_proportions(goal):
    shape = PromptShape(35, 576, 40)
    solved = solve("pyramiddrop", goal, shape, 32, layers="2/8/16")
    assert abs(processed(create("pyramiddrop", **solved), shape, 32) - goal) < 0.5
    first, second, third = map(int, solved["budgets"].split("/"))
    assert abs(second - first / 2) <= 1
    assert abs(third - first / 4) <= 32  # the last takes up what whole tokens leave
    with pytest.raises(UserError, match="ratios is given"):
        solve("pyramiddrop", goal, shape, 32, ratios="0.5/0.2/0.1")


def test_a_budget_below_what_the_dense_layers_process_is_refused():
    with pytest.raises(UserError, match="out of reach"):
        solve("pyramiddrop", 64, PromptShape(35, 576, 40), 32)


def test_two_images_are_ranked_together(model):
    """The official program ranks and drops the first image only."""
    torch.manual_seed(0)
    embeds = torch.randn(1, 40, 64)
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, 3:15] = mask[:, 20:34] = True
    model.set_method("pyramiddrop", **STAGES)
    model(inputs_embeds=embeds, image_mask=mask)
    counts = [layer[0] - 14 for layer in model.last_report.layer_tokens]
    assert counts == [26, int(26 * 0.6), int(26 * 0.3), int(26 * 0.3), int(26 * 0.1)]


def test_nothing_of_an_image_prompt_survives_into_a_text_prompt(model):
    """The official program keeps the spans of the prompt before on the model, and fails."""
    model.set_method("pyramiddrop", **STAGES)
    text = torch.randint(3, 98, (1, 9), generator=torch.Generator().manual_seed(3))
    alone = model(text).logits
    model(**batch([prompts()[0]], [pixels()[0]]))
    torch.testing.assert_close(model(text).logits, alone, atol=0, rtol=0)


def test_long_prompts_are_not_cut(model):
    """The official program cuts sequences at 2048 tokens after every stage."""
    model.set_method("pyramiddrop", layers="1", ratios="0.5")
    embeds = torch.randn(1, 2200, 64)
    mask = torch.zeros(1, 2200, dtype=torch.bool)
    mask[:, :4] = True
    with torch.no_grad():
        model(inputs_embeds=embeds, image_mask=mask, logits_to_keep=1)
    assert [layer[0] for layer in model.last_report.layer_tokens] == [2200] + [2198] * 4


def test_original_positions_keep_holes_and_compact_ones_do_not(model):
    inputs = batch([prompts()[0]], [pixels()[0]])
    ends = {}
    for positions in ("compact", "original"):
        model.set_method("pyramiddrop", **STAGES, positions=positions)
        with torch.no_grad():
            model(**inputs)
        stream = model.last_report.final_stream
        ends[positions] = int(stream.position[0, -1])
        assert ends["compact"] == stream.length[0] - 1
    assert ends["original"] == inputs["input_ids"].shape[1] - 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layers": "2/2/4"}, "rising layers from 0 to 4"),
        ({"layers": "1/2/5"}, "rising layers from 0 to 4"),
        ({"layers": "1/2.5/4"}, "whole numbers"),
        ({"layers": "1/2"}, "3 ratios for 2 layers"),
        ({"ratios": "0.2/0.5/0.1"}, "cannot keep more than an earlier one"),
        ({"ratios": "2/1/0.5"}, "shares up to 1"),
        ({"budgets": "8/x"}, "budgets="),
        ({"budgets": "17/5/2"}, "image tokens"),
        ({"positions": "new"}, "compact, original"),
        ({"strict_official": True}, "rising layers from 0 to 4"),
    ],
)
def test_parameters_that_cannot_work_are_refused(model, parameters, message):
    with pytest.raises(UserError, match=message):
        model.set_method("pyramiddrop", **parameters)
