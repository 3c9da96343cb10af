"""CDPruner: against its description in plain tensors, refusals, costs."""

from __future__ import annotations

import pytest
import torch
from clip_folder import save_clip
from tiny import batch, pixels, prompts, stock_model, tiny_model

import dynllava
from dynllava.costs import ledger
from dynllava.costs.counters import flop_counter
from dynllava.costs.spec import spec_from_config
from dynllava.errors import UserError
from dynllava.methods import cdpruner, create
from dynllava.plan import PromptShape


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
    relevance = method.relevance(patches, question)
    torch.testing.assert_close(relevance, expected, atol=1e-5, rtol=0)


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


def test_without_text_tower_or_question_it_is_refused_in_one_line(clip):
    model = tiny_model(kv_heads=2)
    with pytest.raises(UserError, match="text_tower=None: accepted is the folder of a CLIP model"):
        model.set_method("cdpruner", question="red")
    model.set_method("cdpruner", text_tower=clip)
    with pytest.raises(UserError, match="no question was given"):
        run(model)
    inputs = batch(prompts()[:2], pixels()[:2])
    for wrong in (["red"], "red"):
        with pytest.raises(UserError, match="one text a row, 2 in all"), torch.no_grad():
            model(**inputs, questions=wrong)


QUESTIONS = ["red circle", "what ? what ?", "is there"]


@pytest.mark.parametrize("way", ["forward", "generate", "beams", "score", "stock"])
def test_every_row_has_its_own_question(clip, way):
    """A batch with a question a row chooses what each row alone chooses with its own."""
    model = stock_model() if way == "stock" else tiny_model(kv_heads=2)
    if way == "stock":
        model = dynllava.wrap(model, "cdpruner", text_tower=clip, keep=5)
    else:
        model.set_method("cdpruner", text_tower=clip, keep=5)
    ids, images = prompts()[:3], pixels()[:3]

    def kept(inputs, **more):
        with torch.no_grad():
            if way in ("generate", "beams", "stock"):
                beams = 2 if way == "beams" else 1
                options = {"max_new_tokens": 2, "num_beams": beams, "do_sample": False}
                model.generate(**inputs, **options, **more)
                return model.last_report.kept_image_indices[::beams]
            if way == "score":
                answers = torch.full((len(inputs["input_ids"]), 2), 7)
                model.score(**inputs, continuation_ids=answers, **more)
            else:
                model(**inputs, logits_to_keep=1, **more)
            return model.last_report.kept_image_indices

    found = kept(batch(ids, images), questions=QUESTIONS)
    assert len(set(map(str, found))) == 3
    for row, question in enumerate(QUESTIONS):
        alone = batch([ids[row]], [images[row]])
        assert kept(alone, questions=[question]) == [found[row]]
    same = kept(batch(ids, images), questions=[QUESTIONS[0]] * 3)
    assert same[0] == found[0]
    assert same[1:] != found[1:]


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
