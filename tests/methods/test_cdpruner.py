"""CDPruner: against its description in plain tensors, refusals, costs."""

from __future__ import annotations

import pytest
import torch
from tiny import batch, pixels, prompts, tiny_model
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from dynllava.costs import ledger
from dynllava.costs.counters import flop_counter
from dynllava.costs.spec import spec_from_config
from dynllava.errors import UserError
from dynllava.methods import cdpruner, create
from dynllava.plan import PromptShape

WORDS = ("is", "there", "a", "red", "circle", "what", "?")


def save_clip(folder, width=32):
    """Write a tiny random CLIP whose vision tower is as wide as the tiny model's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    text = {"vocab_size": 16, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 6, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    CLIPModel(config).save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate(("<s>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def run(model, count=2):
    with torch.no_grad():
        model(**batch(prompts()[:count], pixels()[:count]), logits_to_keep=1)
    return model.last_report.kept_image_indices


def test_relevance_is_the_scaled_mean_of_minus_the_cosine_over_segments(clip):
    """Seven words in segments of four, as a tower of six positions reads them."""
    question = "is there a red circle what ?"
    patches = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    model, tokenizer = cdpruner.towers(clip)
    ids = tokenizer(question, add_special_tokens=False).input_ids
    assert len(ids) == 7
    with torch.no_grad():
        rows = [[0, *part, 1, *[1] * (4 - len(part))] for part in (ids[:4], ids[4:])]
        texts = [model.get_text_features(torch.tensor([row])).pooler_output for row in rows]
        shared = model.visual_projection(model.vision_model.post_layernorm(patches))
    found = -sum(torch.cosine_similarity(shared, text, dim=-1) for text in texts) / 2
    expected = (found - found.min()) / (found.max() - found.min())
    method = create("cdpruner", text_tower=clip, question=question)
    torch.testing.assert_close(method.relevance(patches), expected, atol=1e-5, rtol=0)


def test_the_search_picks_at_each_step_the_largest_determinant():
    root = torch.randn(7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kernel = root @ root.T
    picked = cdpruner.determinantal(kernel, 5).tolist()
    for step in range(5):
        values = {
            item: float(torch.linalg.det(kernel[[*picked[:step], item]][:, [*picked[:step], item]]))
            for item in range(7)
            if item not in picked[:step]
        }
        assert picked[step] == max(values, key=values.__getitem__)


def test_duplicates_are_picked_last_and_nothing_twice():
    row = torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    picked = cdpruner.determinantal(row @ row.T, 6).tolist()
    assert picked[:3] == [0, 2, 4]
    assert sorted(picked) == list(range(6))


def test_the_question_decides_and_each_image_of_a_batch_has_its_own_choice(clip):
    model = tiny_model(kv_heads=2)
    kept = {}
    for question in ("red circle", "what ? what ?"):
        model.set_method("cdpruner", text_tower=clip, question=question, keep=5)
        kept[question] = run(model)
        assert all(len(row) == 5 and row == sorted(row) for row in kept[question])
    assert len(set(map(str, kept.values()))) == 2
    for row, (ids, image) in enumerate(zip(prompts()[:2], pixels()[:2], strict=True)):
        with torch.no_grad():
            model(**batch([ids], image[None]), logits_to_keep=1)
        assert model.last_report.kept_image_indices == [kept["what ? what ?"][row]]


def test_a_prompt_from_pixels_costs_exactly_what_the_ledger_says(clip):
    model = tiny_model(kv_heads=2)
    method = create("cdpruner", text_tower=clip, question="red circle", keep=6)
    model.set_method(method)
    cdpruner.question_of.cache_clear()
    inputs = batch(prompts()[:1], pixels()[:1])
    with torch.no_grad(), flop_counter() as counter:
        model(**inputs, logits_to_keep=1)
    spec = spec_from_config(model.config.to_dict(), "tiny")
    shape = PromptShape(3, 16, inputs["input_ids"].shape[1] - 19)
    told = ledger.total(ledger.entries(ledger.Run(spec, method, shape), "prefill"))
    assert counter.get_total_flops() // 2 == told


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "text_tower=None: accepted is the folder of a CLIP model"),
        ({"text_tower": "CLIP"}, "question=None: accepted is the text"),
    ],
)
def test_without_text_tower_or_question_it_is_refused_in_one_line(clip, parameters, message):
    parameters = {key: clip for key in parameters}
    with pytest.raises(UserError, match=message):
        tiny_model(kv_heads=2).set_method("cdpruner", **parameters)


def test_a_folder_without_the_tower_or_with_another_one_is_refused(tmp_path):
    model = tiny_model(kv_heads=2)
    model.set_method("cdpruner", text_tower=str(tmp_path), question="a")
    with pytest.raises(UserError, match="no CLIP model"):
        run(model)
    model.set_method("cdpruner", text_tower=save_clip(tmp_path / "wide", 64), question="a")
    with pytest.raises(UserError, match="64 wide, the model's is 32"):
        run(model)


def test_it_reads_the_question_before_layer_0():
    plan = create("cdpruner").plan(6)
    assert [look.reads_question for cut in plan.cuts for look in cut.looks] == [True]
    assert all(cut.early for cut in plan.cuts)
    assert not plan.looks_at_class_token
