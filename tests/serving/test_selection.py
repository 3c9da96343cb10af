"""What an engine is sent is what enters layer 0 of our own loop, numbered without holes."""

from __future__ import annotations

# ruff: noqa: I001 (what is missing is said before it is imported)
from tests.serving import needed  # noqa: F401

import base64
import io

import pytest
from clip_folder import save_clip
import torch

from dynllava import methods
from dynllava.cli import main
from dynllava.embedded import generate_scene
from dynllava.errors import UserError
from dynllava.images import open_image
from dynllava.methods.parameters import parse
from dynllava.models.encoding import LlavaEncoder
from dynllava.models.loading import load_model
from dynllava.plan import Plan, PromptShape, Segment
from dynllava.plan.plan import SERVED
from dynllava.prompts.templates import Turn
from dynllava.serving.check.prompts import png
from dynllava.serving.check.run import at_budgets
from dynllava.serving.prompt import Prompts
from dynllava.serving.selection import Bundle, Selector, compacted

SERVABLE = (
    "full", "fastervlm:keep=40", "visionzip:keep_ratio=0.25", "vispruner:keep=30", "prumerge",
    "hired:keep_ratio=0.3;spatial=0.1", "divprune:keep=36", "divprune:keep=36;positions=original",
    "uniform:layer=0;image_keep_rate=0.3", "random:layer=0;image_keep_rate=0.3", "no_image",
    "downsample", "pool",
)  # fmt: skip


@pytest.fixture(scope="module")
def loop(folder):
    return load_model(folder, "full")


@pytest.mark.parametrize("text", SERVABLE)
def test_the_engine_gets_the_rows_that_enter_layer_0_of_our_loop(text, loop, side, prompt):
    model, processor = loop
    model.set_method(compacted(parse(text).create()))
    image = open_image(prompt.picture)
    prompts = Prompts(side.processor)
    written = prompts.text([Turn("user", prompt.question, [prompt.picture])])
    inputs = LlavaEncoder(processor, "pad").encode([written], [[image]], ["one"])
    seen = {}

    def look(_module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        seen.setdefault("rows", states[0].detach().clone())

    # Behind a cut at layer 0 nothing but the stream says what entered it.
    handle = model.model.language_model.layers[0].input_layernorm.register_forward_pre_hook(
        look, with_kwargs=True
    )
    with torch.inference_mode():
        model(**inputs)
    handle.remove()
    stream = model.last_report.final_stream
    is_image = stream.is_segment(Segment.IMAGE)[0]
    length = model.last_report.layer_tokens[0][0]

    selector = Selector(side, text)
    rows = selector.rows(side.pixels(prompt.picture)[None])
    rows = selector.finish(prompts.ids(written, rows), rows)
    ids = prompts.ids(written, rows)
    assert len(ids) == length
    assert stream.position[0, :length].tolist() == list(range(length))
    own = seen["rows"][:length][is_image[:length]]
    torch.testing.assert_close(own, torch.cat(rows), atol=1e-6, rtol=0)


def test_rows_stand_where_the_placeholder_stood_behind_the_tokenizers_bos(side, picture):
    prompts = Prompts(side.processor)
    text = prompts.text([Turn("user", "how many ?", [picture])])
    rows = torch.randn(5, 8)
    parts = prompts.content(text, [rows])
    assert [part["type"] for part in parts] == ["text", "prompt_embeds", "text"]
    assert parts[0]["text"] == "<s>USER: "
    sent = torch.load(io.BytesIO(base64.b64decode(parts[1]["data"])), weights_only=True)
    assert torch.equal(sent, rows)
    tokenizer = side.processor.tokenizer
    pieces = [tokenizer(parts[i]["text"], add_special_tokens=False)["input_ids"] for i in (0, 2)]
    image = side.processor.image_token_id
    assert prompts.ids(text, [rows]) == [*pieces[0], *[image] * 5, *pieces[1]]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_served_or_refused_with_its_class(name, side):
    method = methods.create(name)
    served = method.plan(side.model.config.text_config.num_hidden_layers).served
    if served in "CD":
        with pytest.raises(UserError, match=f"{name} is of class {served}") as caught:
            Selector(side, name)
        assert SERVED[served] in str(caught.value)
    elif served == "A":
        assert Selector(side, name).shared


def test_positions_are_numbered_anew_whatever_the_method_says():
    for text in ("divprune:positions=original", "uniform:layer=0"):
        plan = compacted(methods.create(text)).plan(6)
        assert isinstance(plan, Plan)
        assert {cut.positions for cut in plan.cuts} == {"compact"}
        assert plan.served == "A"


def test_budgets_give_each_method_that_many_image_tokens(side):
    found = at_budgets(["full", "divprune", "uniform:layer=0"], [72, 36], 144, 6)
    assert found[0] == "full"
    assert len(found) == 5
    shape = PromptShape(1, 144, 9)
    kept = [methods.create(text).schedule(shape, 6).prefill_rows[0] - 10 for text in found]
    assert kept == [144, 72, 36, 72, 36]
    with pytest.raises(UserError, match="class C"):
        at_budgets(["fastv"], [72], 144, 6)


def test_a_folder_that_export_did_not_write_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="accepted is a folder of dynllava export"):
        Bundle.read(tmp_path)
    assert main(["serve", str(tmp_path)]) == 2
    assert "accepted is a folder of dynllava export" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_each_picture_of_a_batch_is_chosen_from_by_its_own_question(side, loop, tmp_path):
    width = side.model.config.vision_config.hidden_size
    text = f"cdpruner:text_tower={save_clip(tmp_path / 'clip', width)},keep=9"
    asked = ["red circle", "blue square", "red circle"]
    pixels = torch.stack([side.pixels(png(generate_scene(seed).image)) for seed in (1, 1, 2)])
    selector = Selector(side, text)
    assert selector.served == "B"
    together = selector.rows(pixels, asked)
    for index, question in enumerate(asked):
        alone = selector.rows(pixels[index : index + 1], [question])[0]
        torch.testing.assert_close(together[index], alone, atol=1e-4, rtol=1e-5)
    assert not torch.equal(together[0], together[1])
    model, _ = loop
    model.set_method(parse(text).create())
    ids = torch.full((1, 150), model.config.image_token_id)
    ids[0, :3], ids[0, 147:] = 7, 9
    with torch.inference_mode():
        model(input_ids=ids, pixel_values=pixels[1:2], questions=asked[1:2])
    kept = model.last_report.kept_image_indices[0]
    every = Selector(side, "full").rows(pixels[1:2])[0]
    torch.testing.assert_close(together[1], every[kept], atol=1e-4, rtol=1e-5)
