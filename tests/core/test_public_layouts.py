"""Checkpoints as they are published: recognised, loaded, converted, equal to stock transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import public_layouts as layouts
import pytest
import sentencepiece
import torch
from PIL import Image
from public_tokenizers import pieces_of
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.images import ImagePreparation
from dynllava.models.checkpoints import convert
from dynllava.models.layouts import Layout, check_methods, inspect
from dynllava.models.loading import load_model
from dynllava.models.tensors import stream
from dynllava.prompts import Turn, batch, choose_template, prompt_ids, render
from dynllava.prompts.tokens import image_positions
from dynllava.wrapping import wrap

SIZES = layouts.Sizes()
QUESTION = "How many shapes are in the picture?"
FULL = {"original": layouts.original, "official": layouts.official, "llava-hf": layouts.llava_hf}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One folder of each layout, and the tower's repository."""
    root = tmp_path_factory.mktemp("public")
    folders = {name: build(root / name, SIZES) for name, build in FULL.items()}
    folders["tower"] = layouts.clip_tower(root / "clip-vit-large-patch14-336", SIZES)
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        (folders["original"] / name).write_text(f"terms of {name}\n")
    return folders


@pytest.fixture(scope="module")
def picture():
    noise = torch.randint(0, 256, (70, 110, 3), generator=torch.Generator().manual_seed(5))
    return Image.fromarray(noise.byte().numpy())


def inputs_of(processor, picture, question=QUESTION, aspect="pad", template=None):
    """What the plugin and ``show`` feed: ids round the image, pixels of the protocol."""
    pixels = torch.from_numpy(ImagePreparation(processor.image_processor, aspect)(picture))
    chosen = choose_template(template, processor)
    text = render(chosen, [Turn("user", question, [picture])], processor)
    count = image_positions(processor, pixels)
    ids = prompt_ids(processor.tokenizer, text, processor.image_token_id, count)
    return {**batch([ids], 0), "pixel_values": pixels[None]}


def greedy(model, inputs, tokens=6):
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, length:].tolist()


def official_loop(folder: Path, tower: Path | None, ids: list[int], pixels, tokens=6) -> list[int]:
    """LLaVA's own forward on stock Llama and CLIP: features spliced between embedded pieces."""
    config = json.loads((folder / "config.json").read_text())
    state = {}
    for path in sorted(folder.glob("*-of-*")):
        if path.suffix == ".bin":
            state |= torch.load(path, weights_only=True)
        else:
            from safetensors.torch import load_file

            state |= load_file(path)
    state = {name: value.float() for name, value in state.items()}
    inside = "model.vision_tower.vision_tower."
    if tower is not None:
        vision = CLIPVisionModel.from_pretrained(tower)
    else:
        from transformers import CLIPVisionConfig

        vision = CLIPVisionModel(CLIPVisionConfig(**layouts.vision_values(SIZES)))
        own = {k.removeprefix(inside + "vision_model."): v for k, v in state.items() if inside in k}
        vision.load_state_dict(own, strict=False)
    text = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    found = text.load_state_dict(state, strict=False)
    assert not found.missing_keys
    with torch.no_grad():
        hidden = vision.eval()(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        for index in (0, 2):
            at = f"model.mm_projector.{index}."
            hidden = torch.nn.functional.linear(hidden, state[at + "weight"], state[at + "bias"])
            hidden = torch.nn.functional.gelu(hidden) if index == 0 else hidden
        at = ids.index(-200)
        embed = text.eval().get_input_embeddings()
        pieces = [embed(torch.tensor(part)) for part in (ids[:at], ids[at + 1 :])]
        embeds = torch.cat([pieces[0], hidden[0], pieces[1]])[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        out = text.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=tokens, do_sample=False
        )
    return out[0].tolist()


def official_ids(processor, text: str) -> list[int]:
    """``tokenizer_image_token`` of the official code, -200 for the image."""
    chunks = [processor.tokenizer(chunk).input_ids for chunk in text.split("<image>")]
    ids = [chunks[0][0]]
    for index, chunk in enumerate(chunks):
        ids += ([-200] if index else []) + chunk[1:]
    return ids


def test_every_layout_is_recognised_with_its_files_and_sizes(made):
    plain = inspect(made["original"])
    assert plain.layout is Layout.ORIGINAL
    assert plain.predictors == ()
    assert plain.tower.source == "folder"
    assert plain.weights.format == "bin"
    assert len(plain.weights.files) == 2
    assert [path.name for path in plain.licences] == ["LICENSE", "NOTICE.txt", "USE_POLICY.md"]
    trained = inspect(made["official"])
    assert trained.layout is Layout.OFFICIAL
    assert trained.predictors == ("image", "output")
    assert trained.tower.inside
    hf = inspect(made["llava-hf"])
    assert hf.layout is Layout.LLAVA_HF
    assert hf.vocabulary > hf.image_token_id
    for name in FULL:
        found = inspect(made[name])
        assert found.problems == ()
        assert (found.select_layer, found.tower_layers) == (-2, SIZES.vision_layers)


def test_inspecting_needs_no_torch(made):
    code = (
        "import sys; from dynllava.models.layouts import inspect;"
        f"print(inspect({str(made['original'])!r}).layout.value, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "original LLaVA False"


@pytest.mark.parametrize("aspect", ["pad", "crop"])
@pytest.mark.parametrize("name", ["original", "official"])
def test_the_original_format_answers_as_the_official_code(made, picture, name, aspect, tmp_path):
    model, processor = load_model(made[name], method="full")
    inputs = inputs_of(processor, picture, aspect=aspect)
    text = render(choose_template(None, processor), [Turn("user", QUESTION, [1])], processor)
    ids = official_ids(processor, text)
    tower = made["tower"] if name == "original" else None
    expected = official_loop(made[name], tower, ids, inputs["pixel_values"])
    assert greedy(model, inputs) == expected
    converted = convert(made[name], tmp_path / "out")
    again, processor = load_model(converted, method="full")
    assert greedy(again, inputs_of(processor, picture, aspect=aspect)) == expected


@pytest.mark.parametrize("revision", ["newer", "json", "older"])
def test_llava_hf_answers_as_stock_transformers(tmp_path, picture, revision):
    folder = layouts.llava_hf(tmp_path / "hf", SIZES, revision)
    model, processor = load_model(folder, method="full")
    stock = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    inputs = inputs_of(processor, picture, aspect="crop")
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    own = images(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], own)
    if revision != "older":
        parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = AutoProcessor.from_pretrained(folder).apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        ids = AutoProcessor.from_pretrained(folder)(picture, text, return_tensors="pt").input_ids
        assert inputs["input_ids"].tolist() == ids.tolist()
    assert greedy(model, inputs) == greedy(stock, inputs)
    padded = inputs_of(processor, picture)
    assert not torch.equal(padded["pixel_values"], own)
    assert greedy(model, padded) == greedy(stock, padded)


def test_fastv_on_a_public_layout_equals_the_model_wrapped_in_memory(made, picture):
    model, processor = load_model(
        made["llava-hf"], method="fastv", method_args={"k": 2, "keep_ratio": 0.5}
    )
    stock = LlavaForConditionalGeneration.from_pretrained(made["llava-hf"], dtype=torch.float32)
    wrapped = wrap(stock, "fastv", k=2, keep_ratio=0.5)
    inputs = inputs_of(processor, picture)
    assert greedy(model, inputs) == greedy(wrapped, inputs)
    assert (
        0 < model.last_report.image_tokens[0] < image_positions(processor, inputs["pixel_values"])
    )


def test_a_converted_folder_opens_with_stock_transformers(made, picture, tmp_path):
    converted = convert(made["original"], tmp_path / "out")
    names = {path.name for path in converted.iterdir()}
    assert {"LICENSE", "NOTICE.txt", "USE_POLICY.md", "processor_config.json"} <= names
    stock = AutoModelForImageTextToText.from_pretrained(converted, dtype=torch.float32)
    assert type(stock) is LlavaForConditionalGeneration
    processor = AutoProcessor.from_pretrained(converted)
    model, own = load_model(made["original"])
    assert processor.image_token_id == model.config.image_token_id == own.image_token_id
    text = render(choose_template(None, own), [Turn("user", QUESTION, [1])], own)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    stock_text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    assert stock_text == text
    # Where torchvision can be imported, AutoProcessor resizes with it.
    images = AutoImageProcessor.from_pretrained(converted, backend="pil")
    pixels = images(picture, return_tensors="pt")["pixel_values"]
    inputs = inputs_of(own, picture)
    # The tower is square: padding before resizing is what the stored processor does.
    torch.testing.assert_close(pixels, inputs["pixel_values"], atol=1e-6, rtol=0)
    assert greedy(stock, inputs) == greedy(model, inputs)


def test_there_and_back_gives_the_published_files(made, tmp_path):
    convert(made["official"], tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", "official")
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (made["official"] / name).read_bytes()
    configs = [
        json.loads((f / "config.json").read_text()) for f in (made["official"], tmp_path / "back")
    ]
    assert configs[0] == configs[1]
    first, second = load_model(made["official"])[0], load_model(tmp_path / "back")[0]
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_snapshot_finds_its_tower_in_the_same_cache(made, tmp_path):
    hub = tmp_path / "hub"
    snapshot = layouts.into_cache(hub, "liuhaotian/llava-v1.5-7b", made["original"])
    layouts.into_cache(hub, layouts.TOWER, made["tower"])
    for given in (snapshot, snapshot.parents[1]):
        found = inspect(given)
        assert found.problems == ()
        assert found.folder == snapshot
        assert found.tower.source == "hub"
        assert found.tower.folder.is_relative_to(hub)
    elsewhere = inspect(shutil.copytree(made["original"], tmp_path / "x" / "y"), made["tower"])
    assert elsewhere.problems == ()


def test_a_tower_of_small_files_alone_says_what_to_download(made, tmp_path, monkeypatch):
    """As an interrupted download, or a check while online, leaves the hub's cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub = tmp_path / "hub"
    snapshot = layouts.into_cache(hub, "liuhaotian/llava-v1.5-7b", made["original"])
    tower = shutil.copytree(made["tower"], tmp_path / "tower")
    (tower / "pytorch_model.bin").unlink()
    layouts.into_cache(hub, layouts.TOWER, tower)
    (problem,) = inspect(snapshot).problems
    assert "no weights" in problem
    assert problem.endswith(f"download them with 'hf download {layouts.TOWER}'")


@pytest.mark.slow  # Four cold starts of the command line: a minute and more.
def test_a_hub_name_resolves_in_the_cache_alone(made, tmp_path):
    """``compare`` and ``convert`` with hub names, as typed, where the network must not be asked."""
    hub = tmp_path / "home" / "hub"
    layouts.into_cache(hub, "liuhaotian/llava-v1.5-7b", made["original"])
    layouts.into_cache(hub, layouts.TOWER, made["tower"])
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dynllava.cli", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
        )

    done = run("convert", "liuhaotian/llava-v1.5-7b", "out")
    assert done.returncode == 0, done.stderr
    ours, theirs = load_model(tmp_path / "out")[0], load_model(made["original"])[0]
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    arguments = "--methods full fastv --tasks embedded_attribute --limit 2 --out store --quiet"
    done = run("compare", "--pretrained", "liuhaotian/llava-v1.5-7b", *arguments.split())
    assert done.returncode == 0, done.stderr
    assert "wrote 2 records to store" in done.stdout
    done = run("convert", "someone/not-here", "out2")
    assert done.returncode == 2
    assert "hf download someone/not-here" in done.stderr


def test_a_method_without_predictors_is_refused_before_anything_is_loaded(made, capsys, tmp_path):
    for path in made["original"].glob("*.bin"):
        assert path.is_file()
    with pytest.raises(UserError, match="no trained predictors"):
        check_methods(inspect(made["original"]), ["full", "fastv+dynamic_llava:sparse_layer=2"])
    command = ["compare", "--pretrained", str(made["original"]), "--out", str(tmp_path / "s")]
    assert main([*command, "--methods", "full", "dynamic_llava"]) == 2
    assert "no trained predictors" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_ids_are_those_of_the_official_call(made):
    """Chunk by chunk: the whole text at once gives other ids with ``tokenizer.model`` alone."""
    _, processor = load_model(made["original"])
    text = render(choose_template("vicuna_v1", processor), [Turn("user", QUESTION, [1])], processor)
    expected = official_ids(processor, text)
    assert prompt_ids(processor.tokenizer, text, -200, 1) == expected
    assert processor.tokenizer(text).input_ids != [
        processor.image_token_id if token == -200 else token for token in expected
    ]
    doubled = prompt_ids(processor.tokenizer, "<s>" + text, -200, 1)
    assert doubled == expected


def test_tokenizer_model_alone_gives_the_ids_of_sentencepiece(made):
    """The official code's tokenizer is sentencepiece with a BOS in front."""
    _, processor = load_model(made["original"])
    reader = sentencepiece.SentencePieceProcessor(
        model_file=str(made["original"] / "tokenizer.model")
    )
    assert type(processor.tokenizer).__name__ == "LlamaTokenizer"
    for text in (QUESTION, "USER: ", "a b  c\n d", "Ünïcode 漢字 😀", "", "tab\tx"):
        assert processor.tokenizer(text).input_ids == [1, *reader.encode(text)], text
    assert processor.tokenizer.padding_side == "right"
    assert processor.tokenizer.pad_token_id == 0


def test_shards_are_cast_one_tensor_at_a_time(made):
    """A stream, not a dictionary: the caller decides what stays in memory."""
    checkpoint = inspect(made["original"])
    found = stream(checkpoint.weights, torch.float32)
    assert iter(found) is found
    names = []
    for name, tensor in found:
        assert tensor.dtype == torch.float32
        names.append(name)
    assert set(names) == {name for name in checkpoint.weights.names if "inv_freq" not in name}


TEXT_ONLY = (
    "{% for p in messages[0]['content'] %}{{ p['text'] }}{% endfor %}"
    "{{ 'A' if add_generation_prompt }}"
)
BROKEN = {
    "no index": "shards .* but no index",
    "missing shard": "named by the index but missing",
    "no tower": "vision tower 'openai/clip-vit-large-patch14-336' not found",
    "select layer": "mm_vision_select_layer=-5: the vision tower has 3 layers",
    "projector": "mm_projector_type='tokenpacker'",
    "llava 1.6": "LLaVA-1.6",
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_original_is_one_line(made, tmp_path, name, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = shutil.copytree(made["original"], tmp_path / "model")
    if name != "no tower":
        shutil.copytree(made["tower"], tmp_path / made["tower"].name)
    config = folder / "config.json"
    if name == "no index":
        (folder / "pytorch_model.bin.index.json").unlink()
    elif name == "missing shard":
        (folder / "pytorch_model-00002-of-00002.bin").unlink()
    elif name == "select layer":
        layouts.edit_json(config, mm_vision_select_layer=-5)
    elif name == "projector":
        layouts.edit_json(config, mm_projector_type="tokenpacker")
    elif name == "llava 1.6":
        layouts.edit_json(config, mm_patch_merge_type="spatial_unpad")
    found = inspect(folder)
    assert len(found.problems) == 1
    assert "\n" not in found.problems[0]
    with pytest.raises(UserError, match=BROKEN[name]):
        load_model(folder)


def test_broken_llava_hf_folders_are_one_line(tmp_path):
    folder = layouts.llava_hf(tmp_path / "rows", SIZES)
    first = json.loads((folder / "config.json").read_text())["image_token_index"]
    layouts.edit_json(folder / "config.json", image_token_index=9999)
    with pytest.raises(UserError, match="image token 9999 lies outside the vocabulary"):
        load_model(folder)
    layouts.edit_json(folder / "config.json", image_token_index=first)
    layouts.write_llava_hf(folder, layouts.sentencepiece_model(), with_image=False)
    with pytest.raises(UserError, match="tokenizer has no <image> token"):
        load_model(folder)
    assert first == len(pieces_of(layouts.sentencepiece_model()))


def test_a_template_that_loses_the_question_is_refused(tmp_path):
    folder = layouts.llava_hf(tmp_path / "template", SIZES)
    _, processor = load_model(folder)
    for source, message in (
        ("USER: {% if add_generation_prompt %}ASSISTANT:{% endif %}", "leaves the question out"),
        (TEXT_ONLY, "0 image placeholders"),
        ("{% for p in messages[0]['content'] %}{{ p['text'] or '<image>' }}{% endfor %}", "prompt"),
        ("{{ raise_exception('no') }}", "fails"),
    ):
        processor.chat_template = source
        with pytest.raises(UserError, match=message):
            choose_template(None, processor)
        assert choose_template("vicuna_v1", processor).name == "vicuna_v1"


def test_a_template_that_cuts_a_longer_question_or_forgets_a_turn_is_refused(tmp_path):
    """The trial question passes; the prompt that is asked does not."""
    _, processor = load_model(layouts.llava_hf(tmp_path / "cut", SIZES))
    body = (
        "{{% for p in {turn}['content'] %}}{{% if p['type'] == 'text' %}}{{{{ p['text']{cut} }}}}"
        "{{% else %}}<image>{{% endif %}}{{% endfor %}}{{{{ 'A:' if add_generation_prompt }}}}"
    )
    for turn, cut, turns in (
        ("messages[0]", "[:40]", [Turn("user", "How many? " * 10, [1])]),
        ("messages[-1]", "", [Turn("user", "First."), Turn("user", "Second.", [1])]),
    ):
        processor.chat_template = body.format(turn=turn, cut=cut)
        template = choose_template(None, processor)
        with pytest.raises(UserError, match=r"leaves out or changes .*; give conv_template="):
            render(template, turns, processor)


def test_a_placeholder_typed_by_the_user_is_one_line(tmp_path):
    _, processor = load_model(layouts.llava_hf(tmp_path / "typed", SIZES))
    template = choose_template(None, processor)
    for images in ([], [1, 2]):
        with pytest.raises(UserError, match=r"image placeholders .*leave them out"):
            render(template, [Turn("user", "What is <image>?", images)], processor)
