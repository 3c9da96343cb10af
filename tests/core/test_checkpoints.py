"""Conversion: there and back bit-exact; every broken checkpoint gets one line."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.models.checkpoints import convert
from dynllava.models.loading import load_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dynamic_llava"


@pytest.fixture
def official(tmp_path):
    folder = tmp_path / "official"
    shutil.copytree(GOLDEN / "checkpoint", folder)
    shutil.copytree(GOLDEN / "tiny_clip_vision_tower", tmp_path / "tiny_clip_vision_tower")
    return folder


def same_tensors(one: Path, two: Path) -> bool:
    a, b = load_file(one), load_file(two)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


@pytest.mark.parametrize("config", ["config.json", "config_alt.json"])
def test_there_and_back_is_bit_exact(official, tmp_path, config):
    if config != "config.json":
        shutil.copy(official / config, official / "config.json")
    convert(official, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", "official")
    assert same_tensors(official / "model.safetensors", tmp_path / "back" / "model.safetensors")
    for name in ("config.json", "generation_config.json"):
        original = json.loads((official / name).read_text())
        assert json.loads((tmp_path / "back" / name).read_text()) == original
    convert(tmp_path / "back", tmp_path / "again")
    assert same_tensors(tmp_path / "hf/model.safetensors", tmp_path / "again/model.safetensors")


def test_every_format_gives_the_same_model(official, tmp_path):
    state = load_file(official / "model.safetensors")
    names = sorted(state)
    half = len(names) // 2
    variants = {}
    for kind in ("safetensors-sharded", "bin", "bin-sharded", "hf"):
        folder = tmp_path / kind
        shutil.copytree(official, folder)
        (folder / "model.safetensors").unlink()
        variants[kind] = folder
    parts = {"1": names[:half], "2": names[half:]}
    index = {"weight_map": {n: f"model-{k}.safetensors" for k, ns in parts.items() for n in ns}}
    (variants["safetensors-sharded"] / "model.safetensors.index.json").write_text(json.dumps(index))
    index = {"weight_map": {n: f"part-{k}.bin" for k, ns in parts.items() for n in ns}}
    (variants["bin-sharded"] / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for key, part in parts.items():
        chosen = {name: state[name] for name in part}
        save_file(chosen, variants["safetensors-sharded"] / f"model-{key}.safetensors")
        torch.save(chosen, variants["bin-sharded"] / f"part-{key}.bin")
    torch.save(state, variants["bin"] / "pytorch_model.bin")
    shutil.rmtree(variants["hf"])
    convert(official, variants["hf"])
    expected = load_model(official)[0].state_dict()
    for folder in variants.values():
        ours = load_model(folder)[0].state_dict()
        assert all(torch.equal(expected[name], ours[name]) for name in expected)


def test_the_added_placeholder_row_is_never_generated(official):
    model, _ = load_model(official)
    token = model.config.image_token_index
    with torch.no_grad():
        model.lm_head.weight[token] = 100 * model.lm_head.weight[:token].abs().max()
    ids = torch.tensor([[1, 5, 6, 7]])
    out = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert token not in out[0].tolist()


def broken(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    if name == "truncated":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif name == "missing tensor":
        del state["model.norm.weight"]
        save_file(state, path)
    elif name == "extra tensor":
        state["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
        save_file(state, path)
    elif name == "foreign tensor":
        state["something.else"] = torch.zeros(2)
        save_file(state, path)
    elif name == "misshaped tensor":
        state["model.norm.weight"] = torch.zeros(7)
        save_file(state, path)
    elif name == "pickled code":
        path.unlink()
        with open(folder / "pytorch_model.bin", "wb") as file:
            pickle.dump({"weight": print}, file)
    elif name == "no weights":
        path.unlink()
    elif name == "no config":
        (folder / "config.json").unlink()
    elif name == "torn config":
        (folder / "config.json").write_text('{"model_type": "lla')
    elif name == "foreign model type":
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, "model_type": "gpt2"}))
    elif name == "unknown tower":
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, "mm_vision_tower": "nowhere"}))
    elif name == "other projector":
        values = json.loads((folder / "config.json").read_text())
        values["mm_projector_type"] = "linear"
        (folder / "config.json").write_text(json.dumps(values))


BROKEN = {
    "truncated": "truncated",
    "missing tensor": "missing tensor 'model.language_model.norm.weight'",
    "extra tensor": "unexpected tensor 'model.language_model.layers.9",
    "foreign tensor": "'something.else'",
    "misshaped tensor": r"shape \(7,\), accepted is \(64,\)",
    "pickled code": "pickled objects",
    "no weights": "no weights",
    "no config": "no config.json",
    "torn config": "not valid JSON",
    "foreign model type": "'gpt2'",
    "unknown tower": "'nowhere' not found",
    "other projector": "'linear'",
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_checkpoint_gets_one_line_and_leaves_nothing(official, tmp_path, name, capsys):
    broken(official, name)
    for action in (lambda: load_model(official), lambda: convert(official, tmp_path / "out")):
        with pytest.raises(UserError, match=BROKEN[name]) as caught:
            action()
        assert "\n" not in str(caught.value)
    assert main(["convert", str(official), str(tmp_path / "out")]) == 2
    assert "error:" in capsys.readouterr().err
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"official", "tiny_clip_vision_tower"}


def test_a_target_that_is_not_empty_is_refused(official, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        convert(official, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_unreachable_names_get_one_line(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("./nowhere", "someone/does-not-exist"):
        with pytest.raises(UserError, match=name):
            load_model(name)
