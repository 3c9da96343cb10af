"""Everything broken about a checkpoint or a question is one line that says why and what to do.

``dynllava check`` says no, and the run itself ends with the same line before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import public_layouts as layouts
import pytest
import torch
from PIL import Image
from public_layouts import Sizes, edit_json
from public_tokenizers import sentencepiece_model, write_llava_hf
from safetensors.torch import load_file, save_file

from dynllava.cli import main

SIZES = Sizes()
BUILDERS = {
    "llava-hf": lambda folder: layouts.llava_hf(folder, SIZES),
    "llava-hf json": lambda folder: layouts.llava_hf(folder, SIZES, "json"),
    "llava-hf older": lambda folder: layouts.llava_hf(folder, SIZES, "older"),
    "original": lambda folder: layouts.original(folder, SIZES),
    "official": lambda folder: layouts.official(folder, SIZES),
}
#: A folder in, nothing out.
Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_index(folder: Path) -> None:
    next(folder.glob("*.index.json")).unlink()


def no_shard(folder: Path) -> None:
    sorted(folder.glob("*-of-*"))[0].unlink()


def no_weights(folder: Path) -> None:
    for path in [*folder.glob("*-of-*"), *folder.glob("*.index.json")]:
        path.unlink()


def no_tower(folder: Path) -> None:
    tower = folder.parent / layouts.TOWER
    for path in tower.iterdir():
        path.unlink()
    tower.rmdir()


def no_tower_weights(folder: Path) -> None:
    (folder.parent / layouts.TOWER / "pytorch_model.bin").unlink()


DEAF = "{% for m in messages %}USER: {% endfor %}ASSISTANT:"
BLIND = (
    "{% for m in messages %}USER: {% for p in m['content'] if p['type'] == 'text' %}"
    "{{ p['text'] }}{% endfor %}{% endfor %} {{ 'ASSISTANT:' if add_generation_prompt }}"
)
ENDLESS = (
    "{% for m in messages %}USER: {% for p in m['content'] %}"
    "{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}{% endfor %}"
)


def template(source: str, name: str = "chat_template.jinja") -> Damage:
    """Return a change of a checkpoint's template, in the file that its revision has."""

    def change(folder: Path) -> None:
        if name == "chat_template.jinja":
            (folder / name).write_text(source)
        else:
            edit_json(folder / name, chat_template=source)

    return change


def no_image_token(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    write_llava_hf(folder, sentencepiece_model(), with_image=False)


def config(**changes: object) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **changes)


def few_rows(folder: Path) -> None:
    """The tokenizer has ``<image>``; the embedding ends before it."""
    first = json.loads((folder / "config.json").read_text())["image_token_index"]
    for path in folder.glob("*.safetensors"):
        state = load_file(path)
        for name in state:
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                state[name] = state[name][:first].clone()
        save_file(state, path, metadata={"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def instruct_predictor(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    index = next(folder.glob("*.index.json"))
    places = json.loads(index.read_text())["weight_map"]
    state = load_file(path)
    name = next(name for name in state if "output_text_score_predictor" in name)
    new = name.replace("output_text_score", "instruct_score")
    save_file({**state, new: state[name].clone()}, path, metadata={"format": "pt"})
    edit_json(index, weight_map={**places, new: path.name})


def other_tower_inside(folder: Path) -> None:
    """The tower's own folder is gone; the public one of its name has other sizes."""
    no_tower(folder)


def no_tensor(folder: Path) -> None:
    path = sorted(folder.glob("*-of-*"))[0]
    index = next(folder.glob("*.index.json"))
    places = json.loads(index.read_text())["weight_map"]
    state = torch.load(path) if path.suffix == ".bin" else load_file(path)
    name = next(name for name in sorted(state) if ".layers.3." in name)
    del state[name], places[name]
    edit_json(index, weight_map=places)
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"format": "pt"})


def other_sizes(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config={**values["text_config"], "hidden_size": 128})


def other_tower(folder: Path) -> None:
    path = folder.parent / layouts.TOWER / "config.json"
    vision = json.loads(path.read_text())["vision_config"]
    edit_json(path, vision_config={**vision, "intermediate_size": 99})


INDEX = ("has shards (", "but no index; copy model.safetensors.index.json")
SHARD = ("named by the index but missing", "download it again")
DEPTH = "the vision tower has 3 layers"
BROKEN: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "no index, bin": ("original", no_index, INDEX),
    "no index, safetensors": ("llava-hf", no_index, INDEX),
    "no index, official": ("official", no_index, INDEX),
    "missing shard, bin": ("original", no_shard, SHARD),
    "missing shard, safetensors": ("llava-hf", no_shard, SHARD),
    "missing shard, official": ("official", no_shard, SHARD),
    "no weights": ("llava-hf", no_weights, ("no weights; accepted are model.safetensors",)),
    "no tower": (
        "original",
        no_tower,
        (f"vision tower '{layouts.TOWER}' not found", "HF_HUB_OFFLINE=1", "vision_tower=FOLDER"),
    ),
    "tower without weights": ("original", no_tower_weights, ("vision tower", "no weights")),
    "other tower inside": (
        "official",
        other_tower_inside,
        ("tower inside has hidden_size=32", "put a folder with the tower's own config.json"),
    ),
    "question dropped, jinja": (
        "llava-hf",
        template(DEAF),
        ("leaves the question out", "give conv_template=vicuna_v1"),
    ),
    "question dropped, json": (
        "llava-hf json",
        template(DEAF, "chat_template.json"),
        ("leaves the question out", "give conv_template=vicuna_v1"),
    ),
    "question dropped, tokenizer_config": (
        "llava-hf older",
        template(DEAF, "tokenizer_config.json"),
        ("leaves the question out", "give conv_template=vicuna_v1"),
    ),
    "image dropped": ("llava-hf", template(BLIND), ("0 image placeholders", "conv_template=")),
    "no generation prompt": (
        "llava-hf",
        template(ENDLESS),
        ("generation prompt", "conv_template="),
    ),
    "no <image>": (
        "llava-hf",
        no_image_token,
        ("has no <image> token", "take the tokenizer files of the same checkpoint"),
    ),
    "another <image>": ("llava-hf", config(image_token_index=7), ("one of the two is wrong",)),
    "image token beyond the vocabulary": (
        "llava-hf",
        config(image_token_index=99999),
        ("image token 99999 lies outside the vocabulary", "correct image_token_index"),
    ),
    "rows end before the image token": (
        "llava-hf",
        few_rows,
        ("lies outside the vocabulary", "resize the embeddings"),
    ),
    "no tokenizer": ("llava-hf", no_tokenizer, ("no tokenizer",)),
    "select layer, original": (
        "original",
        config(mm_vision_select_layer=-9),
        ("mm_vision_select_layer=-9", DEPTH, "accepted are -4 to 3"),
    ),
    "select layer, official": (
        "official",
        config(mm_vision_select_layer=4),
        ("mm_vision_select_layer=4", DEPTH, "accepted are -4 to 3"),
    ),
    "select layer, llava-hf": (
        "llava-hf",
        config(vision_feature_layer=-5),
        ("vision_feature_layer=-5", DEPTH, "accepted are -4 to 3"),
    ),
    "one of several select layers": (
        "llava-hf",
        config(vision_feature_layer=[-2, 7]),
        ("vision_feature_layer=7", DEPTH),
    ),
    "a tensor is missing, safetensors": ("llava-hf", no_tensor, ("missing tensor", "layers.3.")),
    "a tensor is missing, bin": ("original", no_tensor, ("missing tensor", "layers.3.")),
    "a tensor is missing, official": ("official", no_tensor, ("missing tensor", "layers.3.")),
    "sizes of another model": ("llava-hf", other_sizes, ("has shape (", "accepted is (")),
    "sizes of another tower": ("original", other_tower, ("fc1", "has shape (48,), accepted")),
    "layers are missing": ("original", config(num_hidden_layers=6), ("missing tensor", "layers.4")),
    "a predictor of question tokens": (
        "official",
        instruct_predictor,
        ("predictor of question tokens", "use_instruct_predictor=false"),
    ),
}


@pytest.fixture
def built(tmp_path):
    """Build a checkpoint with its vision tower's repository beside it."""
    layouts.clip_tower(tmp_path / layouts.TOWER, SIZES)
    return lambda name: BUILDERS[name](tmp_path / "checkpoint")


def refusal(folder: Path, capsys, *options: str) -> str:
    """Run ``check`` and return its only ``no``."""
    assert main(["check", str(folder), "--device", "cpu", *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("no ")]
    assert lines[-1] == "the run cannot start: 1 problem"
    return line.split(maxsplit=2)[2]


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_broken_checkpoint(built, case, capsys, tmp_path):
    layout, damage, parts = BROKEN[case]
    folder = built(layout)
    assert main(["check", str(folder), "--device", "cpu"]) == 0, "whole, it can start"
    capsys.readouterr()
    damage(folder)
    line = refusal(folder, capsys)
    assert [part for part in parts if part not in line] == [], line
    store = tmp_path / "store"
    command = ["compare", "--pretrained", str(folder), "--methods", "full", "--out", str(store)]
    assert main(command) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.endswith(line)
    assert not store.exists()


def test_a_placeholder_typed_by_the_user(built, capsys, tmp_path):
    folder = built("llava-hf")
    question = "Is <image> the same as <image>?"
    line = refusal(folder, capsys, "--question", question)
    assert "2 image placeholders (<image>) in the prompt for 1 images; leave them out" in line
    Image.new("RGB", (30, 20), "red").save(tmp_path / "p.png")
    command = ["show", str(tmp_path / "p.png"), question, "--pretrained", str(folder)]
    assert main([*command, "--device", "cpu"]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.endswith(line)
    assert [path.name for path in tmp_path.glob("p*.png")] == ["p.png"], "nothing was drawn"
