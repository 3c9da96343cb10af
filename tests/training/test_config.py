"""Configurations: shipped ones, overrides, errors, and what a resume compares."""

import argparse

import pytest
import yaml

from dynllava.commands import train as command
from dynllava.errors import UserError
from dynllava.training import checkpointing
from dynllava.training.config import CONFIGS, differing_keys, read_config
from dynllava.training.trainer import training_arguments


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_papers_recipe(size):
    config = read_config(f"llava-1.5-{size}")
    targets, optim, run = config.sparsity, config.optim, config.run
    assert config.sparse_layer == 2
    assert (targets.vision_keep_rate, targets.output_keep_rate) == (0.2, 0.5)
    assert (targets.mask_loss_weight, targets.min_answer_length) == (100, 50)
    assert (optim.learning_rate, optim.predictor_learning_rate) == (5e-6, 2e-4)
    assert (optim.scheduler, optim.warmup_ratio) == ("cosine", 0.03)
    assert (optim.tau_start, optim.tau_end) == (1.0, 0.1)
    assert not optim.train_projector
    assert (run.epochs, run.global_batch, run.bf16) == (1, 64, True)
    assert config.accumulation(8) == 1
    assert config.data.template == "vicuna_v1"
    assert config.predictor == {
        "d_model": 512, "nhead": 8, "dim_feedforward": 2048, "num_layers": 2,
    }  # fmt: skip


def test_every_shipped_configuration_is_valid():
    names = [file.stem for file in CONFIGS.glob("*.yaml")]
    assert {"llava-1.5-7b", "llava-1.5-13b", "embedded"} <= set(names)
    for name in names:
        if not name.startswith("accelerate-"):
            read_config(name)


@pytest.mark.parametrize(("name", "kind"), [("fsdp", "FSDP"), ("zero3", "DEEPSPEED")])
def test_accelerate_reads_its_configurations(name, kind):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"accelerate-{name}.yaml"))
    assert config.distributed_type == kind
    assert config.num_processes == 8


def test_overrides_reach_nested_keys(tiny_config):
    config = tiny_config("data.template=vicuna_v1", "optim.learning_rate=5e-6", "run.workers=3")
    assert config.data.template == "vicuna_v1"
    assert config.optim.learning_rate == 5e-6
    assert config.run.workers == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.batch=3", "unknown key run.batch"),
        ("run.worker=3", "did you mean run.workers"),
        ("run.workers=many", "run.workers='many': accepted is int"),
        ("run.bf16=3", "run.bf16=3: accepted is bool"),
        ("run.workers=true", "accepted is int"),
        ("optim=3", "optim: accepted is a section"),
        ("optim.warmup_ratio=1.5", "warmup_ratio"),
        ("optim.tau_end=0", "tau_end"),
        ("run.global_batch=0", "global_batch"),
        ("sparsity.vision_keep_rate=0", "vision_keep_rate"),
        ("model=", "model"),
        ("run.workers", "key=value"),
        ("data.path.x=1", "holds a value"),
    ],
)
def test_wrong_values_get_one_clear_line(override, message, tiny_config):
    with pytest.raises(UserError, match=message) as caught:
        tiny_config(override)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="one of embedded, embedded-elastic, llava"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"bad.yaml"):
        read_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="mapping"):
        read_config(tmp_path / "list.yaml")


def test_a_batch_that_does_not_divide_is_refused(tiny_config):
    with pytest.raises(UserError, match="no multiple of 6"):
        tiny_config().accumulation(3)


def test_arguments_follow_the_configuration(tiny_config):
    arguments = training_arguments(tiny_config("run.report_to=tensorboard"))
    assert arguments.gradient_accumulation_steps == 2
    assert arguments.report_to == ["tensorboard"]
    assert not arguments.ddp_find_unused_parameters


def test_differing_keys_are_dotted():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}
    assert differing_keys(old, new) == ["b.c", "e"]


def test_identity_ignores_what_cannot_change_the_weights(tiny_config):
    import dataclasses

    def identity(*overrides):
        return checkpointing.identity(dataclasses.asdict(tiny_config(*overrides)), {}, 1)

    assert identity("run.workers=2", "run.save_steps=9") == identity()
    assert identity("run.seed=2") != identity()


def test_only_complete_checkpoints_count(tmp_path):
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpointing.latest(tmp_path) is None
    checkpointing.mark_complete(tmp_path / "checkpoint-2")
    checkpointing.mark_complete(tmp_path / "checkpoint-10")
    assert checkpointing.latest(tmp_path).name == "checkpoint-10"
    assert checkpointing.remove_torn(tmp_path) == ["checkpoint-12"]


def test_the_command_prints_a_plan(tiny_config, capsys):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    arguments = parser.parse_args([str(tiny_config.file), "run.max_steps=7", "--dry-run"])
    assert command.run(arguments) == 0
    out = capsys.readouterr().out
    assert "steps          7" in out
    assert "memory" in out


def test_configurations_are_plain_yaml():
    for file in CONFIGS.glob("*.yaml"):
        assert isinstance(yaml.safe_load(file.read_text()), dict)
