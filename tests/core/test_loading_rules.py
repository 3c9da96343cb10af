"""What a checkpoint says is kept unless it is said otherwise: parameters, layers, tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from dynllava.models.checkpoints import convert, hf_config
from dynllava.models.loading import load_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dynamic_llava"


@pytest.fixture
def official(tmp_path):
    folder = tmp_path / "official"
    shutil.copytree(GOLDEN / "checkpoint", folder)
    shutil.copytree(GOLDEN / "tiny_clip_vision_tower", tmp_path / "tiny_clip_vision_tower")
    return folder


TRAINED = {"sparse_layer": 3, "vision_keep_rate": 0.35, "output_text_keep_rate": 0.6}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (None, {}),
        ({"vision_keep_rate": 0.1}, {"vision_keep_rate": 0.1}),
        ({"sparse_layer": 1}, {"sparse_layer": 1}),
        ({"output_keep_rate": 1.0}, {"output_keep_rate": 1.0}),
        (
            {"output_keep_rate": 0.2, "output_threshold": 0.5},
            {"output_keep_rate": 0.2, "output_threshold": 0.5},
        ),
    ],
)
def test_one_argument_leaves_the_checkpoints_other_parameters(tmp_path, given, changed):
    tiny_model(**TRAINED).save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, method_args=given)
    assert model.method.name == "dynamic_llava"
    expected = {"sparse_layer": 3, "vision_keep_rate": 0.35, "output_keep_rate": 0.6,
                "output_threshold": None}  # fmt: skip
    found = {name: model.method.parameters()[name] for name in expected}
    assert found == {**expected, **changed}


@pytest.mark.parametrize("layer", [-1, -2, -3, 1])
def test_the_vision_layer_is_the_one_that_the_checkpoint_names(official, tmp_path, layer):
    path = official / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "mm_vision_select_layer": layer}))
    model, _ = load_model(official)
    assert model.config.vision_feature_layer == layer
    size = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        wanted = model.model.multi_modal_projector(states[layer][:, 1:])
        found = model.model.get_image_features(pixel_values=pixels, return_dict=True)
    torch.testing.assert_close(torch.stack(list(found.pooler_output)), wanted)
    convert(official, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", "official")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["mm_vision_select_layer"] == layer


def test_a_checkpoint_that_names_no_vision_layer_uses_the_last_but_one():
    official = {"vocab_size": 9, "hidden_size": 4}
    vision = {"image_size": 28, "patch_size": 14, "hidden_size": 4}
    assert hf_config(official, vision)["vision_feature_layer"] == -2


@pytest.mark.parametrize("shipped", [True, False])
def test_the_vision_tower_goes_back_only_to_a_checkpoint_that_held_it(official, tmp_path, shipped):
    path = official / "model.safetensors"
    state = load_file(path)
    prefix = "model.vision_tower.vision_tower."
    tower = {name.removeprefix(prefix): value for name, value in state.items()
             if name.startswith(prefix)}  # fmt: skip
    assert tower
    if not shipped:
        save_file(tower, tmp_path / "tiny_clip_vision_tower" / "model.safetensors")
        state = {name: value for name, value in state.items() if not name.startswith(prefix)}
        save_file(state, path)
    loaded = load_model(official)[0].state_dict()
    convert(official, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", "official")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    whole = load_model(tmp_path / "hf")[0].state_dict()
    assert all(torch.equal(whole[name], loaded[name]) for name in loaded)
