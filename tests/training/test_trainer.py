"""Runs of the trainer on a tiny model: it trains, stops, resumes and refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynllava.errors import UserError
from dynllava.models.loading import load_model
from dynllava.training import trainer as trainer_module
from dynllava.training.batches import Collator
from dynllava.training.gumbel import SampleNoise
from dynllava.training.plan import plan
from dynllava.training.policy import TrainingPolicy
from dynllava.training.prepare import prepare_data, prepare_model
from dynllava.training.run import train
from dynllava.training.step import policy_step
from dynllava.training.trainer import DynamicTrainer


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def log_of(config):
    lines = (Path(config.run.output_dir) / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def test_a_run_trains_predictors_and_language_model_and_can_be_loaded(tiny_config, tiny_folder):
    config = tiny_config("run.max_steps=2")
    (tiny_folder / "USE_POLICY.md").write_text("terms\n")
    final = train(config)
    assert (final / "USE_POLICY.md").read_text() == "terms\n", "terms travel with the weights"
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


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    tiny_config, monkeypatch
):
    def poisoned(model, batch, policy, layer):
        result = policy_step(model, batch, policy, layer)
        if policy.tau < 0.4:  # the third of four steps
            result.loss = result.loss * float("nan")
        return result

    monkeypatch.setattr(trainer_module, "policy_step", poisoned)
    with pytest.raises(UserError, match=r"nan at step 3 .*checkpoint-2"):
        train(tiny_config())
    assert (Path(tiny_config().run.output_dir) / "checkpoint-2" / "complete").is_file()


def test_weights_that_are_no_numbers_are_no_result(tiny_config, monkeypatch):
    honest = DynamicTrainer.train

    def last_update_fails(self, **options):
        honest(self, **options)
        # No loss is computed after the last update, so none can notice.
        with torch.no_grad():
            next(self.model.parameters()).view(-1)[0] = float("inf")

    monkeypatch.setattr(DynamicTrainer, "train", last_update_fails)
    config = tiny_config("run.max_steps=1", "run.save_steps=1")
    with pytest.raises(UserError, match="no finite numbers") as error:
        train(config)
    assert error.value.exit_code == 1
    assert not (Path(config.run.output_dir) / "final").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tiny_config, monkeypatch):
    honest = DynamicTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        honest(self, folder)

    monkeypatch.setattr(DynamicTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(UserError, match=r"No space left.*checkpoint-2"):
        train(tiny_config("run.save_limit=1"))
    monkeypatch.undo()
    assert train(tiny_config("run.save_limit=1"), resume=True).is_dir()


def test_an_unreadable_image_is_listed_in_the_output(tiny_config, data_file):
    (data_file.parent / "1.png").write_bytes(b"torn")
    # One epoch is three steps.
    config = tiny_config("run.max_steps=3", "run.save_steps=3")
    train(config)
    listed = (Path(config.run.output_dir) / "skipped_images.txt").read_text()
    assert listed.count("\n") == 1
    assert "1.png" in listed
    assert log_of(config)[-1]["images_skipped"] == 1


def test_gradient_checkpointing_changes_no_gradient(tiny_config, tiny_folder):
    config = tiny_config()
    gradients = []
    for checkpointed in (False, True):
        model, processor = prepare_model(config)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        data = prepare_data(config, processor, model.config.image_seq_length)
        batch = Collator(0)([data[0], data[1], data[3]])
        noise = SampleNoise(0, 0, [0, 1, 3])
        policy = TrainingPolicy(config.sparsity, 1.0, batch["labels"], noise)
        policy_step(model, batch, policy, 1).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)
