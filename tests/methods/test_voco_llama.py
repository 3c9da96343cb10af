"""VoCo-LLaMA: one pass = two stages = no cache, in any batch; what the official one cannot."""

from __future__ import annotations

import pytest
import torch
from tiny import IMAGE_TOKEN, IMAGE_TOKENS, batch, pixels, stock_model, tiny_model

from dynllava import wrap
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.plan import Image, Shape, Text, Voco

VOCO = 98
TOLERANCE = 2e-5
#: (text before, image tokens, learned tokens, text behind); none, one and many of each.
ROWS = ((1, 1, 2, 9), (3, 1, 8, 4), (5, 0, 0, 6), (1, 1, 1, 12), (2, 1, 0, 5))


@pytest.fixture(scope="module")
def model():
    model = tiny_model(kv_heads=2)
    model.set_method("voco_llama", token_id=VOCO)
    return model


def prompt(before, images, learned, behind, seed=0):
    text = torch.randint(3, 98, (before + behind,), generator=torch.Generator().manual_seed(seed))
    image = torch.full((images * IMAGE_TOKENS,), IMAGE_TOKEN)
    return torch.cat([text[:before], image, torch.full((learned,), VOCO), text[before:]])


def shape_of(before, images, learned, behind):
    spans = [Text(before), *[Image(4, 4)] * images, Text(behind)]
    spans[-1:-1] = [Voco(learned)] if learned else []
    return Shape(tuple(spans))


@pytest.fixture(scope="module")
def rows():
    ids = [prompt(*numbers, seed=index) for index, numbers in enumerate(ROWS)]
    images = [
        image if numbers[1] else None
        for image, numbers in zip(
            torch.randn(len(ROWS), 3, 56, 56, generator=torch.Generator().manual_seed(9)),
            ROWS,
            strict=True,
        )
    ]
    return ids, images


@torch.no_grad()
def run(model, inputs, fed, *, cached=True):
    """Return logits [T + 1, B, V] of the prompt's last row and of each fed token."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    lengths = mask.sum(1)
    if cached:
        out = model(**inputs, logits_to_keep=1, use_cache=True)
        found = [out.logits[:, -1]]
        for step in range(fed.shape[1]):
            out = model(fed[:, step : step + 1], past_key_values=out.past_key_values)
            found.append(out.logits[:, -1])
        return torch.stack(found)
    found = []
    for step in range(fed.shape[1] + 1):
        more = {
            "input_ids": torch.cat([ids, fed[:, :step]], 1),
            "attention_mask": torch.cat([mask, torch.ones_like(fed[:, :step])], 1),
        }
        out = model(**{**inputs, **more}, prompt_length=lengths, use_cache=False, logits_to_keep=1)
        found.append(out.logits[:, -1])
    return torch.stack(found)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_rows_alone_and_the_cache_gives_what_whole_sequences_give(
    model, rows, side, kernel
):
    """The official one: right padding and text rows misplace the mask, the cached step raises."""
    ids, images = rows
    # A fed token may be the learned token's id: behind the prompt it is an output like any other.
    fed = torch.randint(3, 98, (len(ids), 4), generator=torch.Generator().manual_seed(5))
    fed[:, 1] = VOCO
    model.set_attn_implementation(kernel)
    try:
        together = run(model, batch(ids, images, side), fed)
        assert model.last_report.kv_lengths[0] == [
            model.method.schedule(shape_of(*numbers), 5).kv_lengths(4)[0] for numbers in ROWS
        ]
        for row in range(len(ids)):
            alone = batch([ids[row]], [images[row]])
            one = slice(row, row + 1)
            whole = run(model, alone, fed[one], cached=False)
            torch.testing.assert_close(together[:, one], whole, atol=TOLERANCE, rtol=0)
    finally:
        model.set_attn_implementation("sdpa")


def test_text_sees_the_learned_tokens_and_nothing_before_them(rows):
    ids = rows[0][0]
    learned = (ids == VOCO)[None]
    behind = int(learned[0].nonzero()[-1]) + 1
    # In a single layer nothing else can carry what lies before.
    model = tiny_model(kv_heads=2, layers=1, sparse_layer=0)
    model.set_method("voco_llama", token_id=VOCO)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)[None]

        def answers(moved):
            out = model(inputs_embeds=moved, learned_mask=learned, use_cache=False)
            return out.logits[0, behind:]

        for column in range(behind):
            moved = embeds.clone()
            moved[:, column] += 1.0
            seen = not torch.allclose(answers(embeds), answers(moved), atol=1e-6)
            assert seen is bool(learned[0, column])


def test_two_stages_are_one_pass_and_the_cached_image_serves_many_questions(model, rows):
    ids, image = rows[0][1], rows[1][1]
    split = int((ids == VOCO).nonzero()[-1]) + 1
    inputs = batch([ids], [image])
    for seed in range(2):
        text = torch.randint(3, 98, (1, 7), generator=torch.Generator().manual_seed(seed))
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"][:, :split], text], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        with torch.no_grad():
            once = model(**whole).logits[:, split:]
            cache = model.new_cache()
            model(ids[None, :split], pixel_values=inputs["pixel_values"], past_key_values=cache)
            assert cache.kv_lengths()[:, 0].tolist() == [8] * 5
            later = model(text, past_key_values=cache).logits
        torch.testing.assert_close(later, once, atol=TOLERANCE, rtol=0)


def test_a_prompt_without_learned_tokens_is_the_stock_model():
    stock = stock_model(kv_heads=2)
    inputs = batch([prompt(3, 1, 0, 8)], [pixels()[0]])
    with torch.no_grad():
        expected = stock(**inputs).logits
        ours = wrap(stock, "voco_llama", token_id=VOCO)(**inputs).logits
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_the_closed_form_keeps_what_lies_between_two_groups():
    spans = (Text(2), Image(3, 4), Voco(2), Text(1), Image(2, 5), Voco(2), Text(8))
    schedule = create("voco_llama").schedule(Shape(spans), 3)
    assert schedule.prefill_rows == (37, 37, 37)
    assert schedule.prefill_kv == (23, 23, 23)
    assert schedule.kv_lengths(4) == [27, 27, 27]


def test_what_cannot_work_is_refused(model, rows):
    inputs = batch([rows[0][0]], [rows[1][0]])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(UserError, match="start anew"):
            model(torch.tensor([[5, VOCO, 6]]), past_key_values=cache)
    other = tiny_model(kv_heads=2)
    for token, message in ((32000, "vocabulary has 100"), (IMAGE_TOKEN, "stands for the image")):
        other.set_method("voco_llama", token_id=token)
        with pytest.raises(UserError, match=message):
            other(**inputs)
    for name in ("fastv+voco_llama", "voco_llama+h2o", "pool+voco_llama"):
        with pytest.raises(UserError, match=r"drop|change"):
            other.set_method(create(name))
