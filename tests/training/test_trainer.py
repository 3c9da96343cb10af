"""Runs of the trainer on a tiny model: it trains, stops, resumes and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynllava.errors import UserError
from dynllava.loading import load_model
from dynllava.training.plan import plan
from dynllava.training.run import train


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def log_of(config):
    lines = (Path(config.run.output_dir) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if "loss" in line]


def test_a_run_trains_predictors_and_language_model_and_can_be_loaded(tiny_config, tiny_folder):
    config = tiny_config()
    final = train(config)
    model, processor = load_model(final)
    assert model.method.name == "dynamic_llava"
    assert model.method.parameters()["vision_keep_rate"] == 0.5
    assert model.config.sparsity().sparse_layer == 1
    assert processor is not None
    before = load_model(tiny_folder)[0].state_dict()
    changed = {name for name, value in before.items() if not value.equal(model.state_dict()[name])}
    assert any("language_model.layers" in name for name in changed)
    assert not any("vision_tower" in name or "projector" in name for name in changed)
    first = log_of(config)[0]
    assert {
        "tau",
        "keep_rate_image",
        "loss_image_mask",
        "grad_norm_image_predictor",
    } <= first.keys()


def test_resume_is_bit_identical(tiny_config, tmp_path):
    whole = train(tiny_config(f"run.output_dir={tmp_path / 'whole'}"))
    parted = tiny_config(f"run.output_dir={tmp_path / 'parted'}")
    other = Path(train(parted))
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(other.parent / name)
    resumed = train(parted, resume=True)
    expected, actual = weights(whole), weights(resumed)
    assert all(actual[name].equal(value) for name, value in expected.items())
    assert torch.isfinite(actual["image_predictor.output_mlp.4.weight"]).all()


@pytest.mark.parametrize("kind", ["full", "fastv"])
def test_other_methods_train_too(tiny_config, kind):
    from dynllava.methods import names

    if kind not in names():
        pytest.skip(f"method {kind} is not registered")
    arguments = "{}" if kind == "full" else "{k: 1, keep_ratio: 0.5}"
    config = tiny_config(f"method={kind}", f"method_args={arguments}", "run.max_steps=1")
    final = train(config)
    assert not any("predictor" in name for name in weights(final))


def test_plan_without_weights(tiny_config):
    text = "\n".join(plan(tiny_config()))
    assert "12 (9 with image, 3 text only)" in text
    assert "steps          4 of 4 samples" in text
    assert "predictors" in text


def test_the_folder_of_another_run_is_not_overwritten(tiny_config):
    train(tiny_config("run.max_steps=1"))
    with pytest.raises(UserError, match="--resume"):
        train(tiny_config("run.max_steps=1"))
    with pytest.raises(UserError, match=r"optim.learning_rate, run.max_steps"):
        train(tiny_config("optim.learning_rate=0.5"), resume=True)
