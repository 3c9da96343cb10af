"""The shipped model: its processor, its files and what it really answers."""

import json

import pytest
import torch

from dynllava.embedded import FAMILIES, data, generate_scene, model_path
from dynllava.embedded.evaluate import evaluate, format_table
from dynllava.embedded.tokenizer import build_tokenizer, split_words, vocabulary

# Accuracy that a small sample must reach, and how far dropping the image must bring it down.
MARGIN_OVER_MAJORITY = 0.2


@pytest.fixture(scope="module")
def processor():
    from transformers import LlavaProcessor

    return LlavaProcessor.from_pretrained(model_path())


@pytest.fixture(scope="module")
def model():
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(1)
    loaded = LlavaForConditionalGeneration.from_pretrained(model_path(), dtype=torch.float32)
    return loaded.eval()


def test_tokenizer_round_trip():
    tokenizer = build_tokenizer()
    text = "what shape is the red object?\nA. circle\nB. ring"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]).split() == split_words(text)
    assert len(vocabulary()) == len(set(vocabulary())) == len(tokenizer)
    assert tokenizer("aardvark", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_processor_gives_144_image_tokens_and_the_pixels(processor):
    image = generate_scene(0).image
    for template in ("chat", "plain"):
        if template == "chat":
            content = [{"type": "image"}, {"type": "text", "text": "which digit is shown?"}]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        else:
            text = "USER: <image>\nwhich digit is shown? ASSISTANT:"
        batch = processor(images=image, text=text, return_tensors="pt")
        ids = batch["input_ids"][0]
        assert (ids == processor.image_token_id).sum() == 144
        assert (ids == processor.tokenizer.bos_token_id).sum() == 1
        assert processor.tokenizer.unk_token_id not in ids
    from dynllava.embedded.alignment import pixel_batch

    expected = pixel_batch([generate_scene(0)])
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-5, rtol=0)


def test_checkpoint_is_small_and_complete():
    folder = model_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert config["vision_feature_layer"] == -1
    assert config["image_token_index"] == vocabulary().index("<image>")
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert {entry["stage"] for entry in log} >= {"language"}


def test_generate_gives_the_teacher_forced_answers(model, processor):
    """Stock ``generate`` agrees with the scores of the controls."""
    pairs = list(data.split_questions("val", "attribute", 16))
    texts = [f"USER: <image>\n{question.text} ASSISTANT:" for _, question in pairs]
    batch = processor(
        images=[scene.image for scene, _ in pairs], text=texts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=4, do_sample=False)
    said = processor.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    generated = [
        text.strip() == question.answer for text, (_, question) in zip(said, pairs, strict=True)
    ]
    table = evaluate(model, "val", 16, ["attribute"], ["full"])
    assert sum(generated) / 16 == table["attribute"]["full"]
    assert sum(generated) >= 8  # chance is under 2 of 16


@pytest.fixture(scope="module")
def table(model):
    return evaluate(model, "val", 40)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "caption"])
def test_model_beats_the_majority_answer(table, family):
    entry = table[family]
    assert entry["full"] >= entry["majority"] + MARGIN_OVER_MAJORITY, format_table(table)


def test_no_image_after_layer_two_brings_it_down(table):
    short = [entry for family, entry in table.items() if family != "caption"]
    full = sum(entry["full"] for entry in short) / len(short)
    dropped = sum(entry["dropped"] for entry in short) / len(short)
    majority = sum(entry["majority"] for entry in short) / len(short)
    assert dropped < majority + 0.1, format_table(table)
    assert full > dropped + 0.3, format_table(table)


def test_caption_depends_on_the_image(table):
    entry = table["caption"]
    assert entry["full"]["perplexity"] < 0.7 * entry["dropped"]["perplexity"]
    assert entry["full"]["words"] > entry["blind"]["words"] + 0.3
