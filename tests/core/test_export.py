"""An exported folder is a stock LLaVA with the same answers, and the method beside it."""

from __future__ import annotations

import json

import layout_variants as variants
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from dynllava import methods, wrap
from dynllava.cli import main
from dynllava.embedded import load_split
from dynllava.methods.parameters import parse
from dynllava.models.export import METHOD_FILE, export
from dynllava.models.loading import load_model

TERMS = ("LICENSE", "NOTICE", "USE_POLICY.md")


@pytest.mark.parametrize("build", [variants.hf, variants.original, variants.official])
def test_every_public_layout_becomes_a_stock_model_with_equal_logits(build, tmp_path):
    source = build(tmp_path)
    for name in TERMS:
        (source / name).write_text(f"terms of {name}\n")
    folder = export(
        source, tmp_path / "out", "uniform:layer=0;image_keep_rate=0.5", dtype="float32"
    )
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    assert type(stock) is LlavaForConditionalGeneration
    ours, processor = load_model(source, "full")
    ids = torch.randint(3, 20, (2, 60), generator=torch.Generator().manual_seed(1))
    size = processor.image_processor.crop_size["height"]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    patches = ours.model.get_image_features(pixels).pooler_output[0].shape[0]
    ids[:, 4 : 4 + patches] = processor.image_token_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=0)
    assert [(folder / name).read_text() for name in TERMS] == [f"terms of {n}\n" for n in TERMS]
    assert AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    names = {name.split(".")[0] for name in load_file(folder / "model.safetensors")}
    assert names == {"language_model", "vision_tower", "multi_modal_projector"}


def test_the_folder_under_its_method_answers_as_the_source_under_it(tmp_path):
    folder = export("embedded-dense", tmp_path / "out", "divprune:keep=48", dtype="float32")
    saved = json.loads((folder / METHOD_FILE).read_text())
    assert saved == {
        "format": 1,
        "method": "divprune:keep=48",
        "class": "A",
        "source": "embedded-dense",
        "dtype": "float32",
    }
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    chosen = parse(saved["method"])
    ours, processor = load_model("embedded-dense", chosen.name, chosen.parameters)
    inputs = processor(
        images=load_split("test", "attribute", limit=1)[0]["image"],
        text="USER: <image>\nwhat colour is the circle ? ASSISTANT:",
        return_tensors="pt",
    )
    wrapped = wrap(stock, chosen.name, **chosen.parameters)
    answers = [m.generate(**inputs, max_new_tokens=6).tolist() for m in (wrapped, ours)]
    assert answers[0] == answers[1]
    assert wrapped.last_report.kept_image_indices == ours.last_report.kept_image_indices


def test_of_tied_matrices_the_embeddings_are_written_which_engines_read(tmp_path):
    folder = export("embedded-dense", tmp_path / "out", dtype="float32")
    stored = load_file(folder / "model.safetensors")
    assert "language_model.model.embed_tokens.weight" in stored
    assert "language_model.lm_head.weight" not in stored
    again, source = (load_model(item, "full")[0] for item in (folder, "embedded-dense"))
    ids = torch.randint(5, 90, (1, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, source(input_ids=ids).logits)


@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "pyramiddrop", "h2o", "dynamic_llava"])
def test_what_chooses_inside_the_layers_is_refused_with_its_class(method, tmp_path, capsys):
    assert main(["export", "embedded", str(tmp_path / "out"), "--method", method]) == 2
    served = methods.create(method).plan(4).served
    assert f"{method} is of class {served}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uniform:layer=0", "A"), ("uniform:layer=1", "C"), ("no_image:layer=0", "A"),
        ("full", "A"), ("divprune", "A"), ("fastv:k=1", "C"), ("h2o", "D"),
    ],
)  # fmt: skip
def test_at_layer_0_a_blind_choice_needs_no_engine_of_its_own(text, expected):
    chosen = parse(text)
    assert methods.create(chosen.name, **chosen.parameters).plan(4).served == expected


def test_a_target_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["export", "embedded", str(tmp_path)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
