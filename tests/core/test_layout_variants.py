"""Checkpoints laid out otherwise than the samples answer as stock transformers and the loop do."""

from __future__ import annotations

from pathlib import Path

import layout_variants as variants
import public_layouts as layouts
import pytest
import stock_answers
import torch
from PIL import Image
from public_layouts import HF_TEMPLATE
from transformers import LlavaForConditionalGeneration

from dynllava.images import ImagePreparation
from dynllava.models.checkpoints import convert
from dynllava.models.loading import load_model
from dynllava.preflight import Wanted, check_model
from dynllava.prompts import Turn, batch, choose_template, prompt_ids, render
from dynllava.prompts.tokens import image_positions

QUESTION = "How many shapes are in the picture?"
TOKENS = 6
#: Stock transformers cannot read the processor of these, but can read the model.
OWN_PROCESSOR = (
    "older, no optional file", "tokenizer.model alone", "no preprocessor file",
    "template in tokenizer_config", "saved by transformers",
)  # fmt: skip


@pytest.fixture(scope="module")
def picture():
    noise = torch.randint(0, 256, (70, 110, 3), generator=torch.Generator().manual_seed(5))
    return Image.fromarray(noise.byte().numpy())


def ready(folder: Path) -> None:
    found = check_model(Wanted(str(folder), device="cpu"))
    assert found.ready, found.text()


def inputs_of(processor, picture):
    pixels = torch.from_numpy(ImagePreparation(processor.image_processor, "crop")(picture))
    text = render(choose_template(None, processor), [Turn("user", QUESTION, [picture])], processor)
    count = image_positions(processor, pixels)
    ids = prompt_ids(processor.tokenizer, text, processor.image_token_id, count)
    return {**batch([ids], 0), "pixel_values": pixels[None]}


def greedy(model, inputs):
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return out[0, length:].tolist()


def converted(folder: Path, picture, expected) -> None:
    """The converted folder answers the same."""
    model, processor = load_model(convert(folder, folder.parent / "converted"))
    assert greedy(model, inputs_of(processor, picture)) == expected


@pytest.mark.parametrize("name", list(variants.HF))
def test_llava_hf(name, tmp_path, picture):
    folder = variants.HF[name](tmp_path)
    ready(folder)
    model, processor = load_model(folder)
    inputs = inputs_of(processor, picture)
    stock = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if name not in OWN_PROCESSOR:
        theirs = stock_answers.LlavaHf(folder).inputs(QUESTION, picture, "crop")
        assert inputs["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert torch.equal(inputs["pixel_values"], theirs["pixel_values"])
    if name.startswith("template"):
        assert processor.chat_template == HF_TEMPLATE
    expected = greedy(stock, inputs)
    assert greedy(model, inputs) == expected
    converted(folder, picture, expected)


def tower_of(root: Path) -> Path:
    return next(path for path in (root / layouts.TOWER, root / "tower") if path.is_dir())


@pytest.mark.parametrize("name", list(variants.ORIGINAL))
def test_original(name, tmp_path, picture):
    folder = variants.ORIGINAL[name](tmp_path)
    ready(folder)
    model, processor = load_model(folder)
    inputs = inputs_of(processor, picture)
    reference = stock_answers.Original(folder, tower_of(tmp_path))
    ids = stock_answers.official_ids(folder, QUESTION)
    expected = reference.generate(ids, inputs["pixel_values"], TOKENS)
    assert greedy(model, inputs) == expected
    converted(folder, picture, expected)


@pytest.mark.parametrize("name", list(variants.OFFICIAL))
def test_official(name, tmp_path, picture):
    folder = variants.OFFICIAL[name](tmp_path)
    ready(folder)
    model, processor = load_model(folder)
    assert model.method.name == "dynamic_llava"
    inputs = inputs_of(processor, picture)
    loop = stock_answers.SparseLoop(folder, tower_of(tmp_path))
    ids = stock_answers.official_ids(folder, QUESTION)
    expected = loop.generate(ids, inputs["pixel_values"], TOKENS)
    assert greedy(model, inputs) == expected
    decided = [bool(kept) for kept in model.last_report.output_kept[0]]
    assert decided[: len(loop.kept_outputs)] == loop.kept_outputs or not loop.judges
    assert model.last_report.image_tokens[0] == len(loop.kept_images)
    model.set_method("full")
    dense = stock_answers.Original(folder, tower_of(tmp_path))
    assert greedy(model, inputs) == dense.generate(ids, inputs["pixel_values"], TOKENS)
    converted(folder, picture, expected)


@pytest.mark.parametrize("build", [variants.hf, variants.original, variants.official])
def test_the_terms_travel_with_the_weights(build, tmp_path):
    """Both ways: ``convert`` copies licence, notice and use policy byte by byte."""
    folder = build(tmp_path)
    terms = {
        name: f"terms of {name} ©\n".encode()
        for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "LICENSE-3RD-PARTY", "license.pdf")
    }
    for name, text in terms.items():
        (folder / name).write_bytes(text)
    out = convert(folder, tmp_path / "hf")
    assert {name: (out / name).read_bytes() for name in terms} == terms
    if build is not variants.hf:
        back = convert(out, tmp_path / "back", "official")
        assert {name: (back / name).read_bytes() for name in terms} == terms
