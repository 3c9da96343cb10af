"""Engines that split the weights over processes: FSDP2 and DeepSpeed's ZeRO-3, on two CPUs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from dynllava.errors import UserError
from dynllava.training.config import CONFIGS
from dynllava.training.run import train
from dynllava.training.sharding import check_records

#: What each engine alone writes into a checkpoint.
SHARDS = {
    "fsdp": ["pytorch_model_fsdp.bin"],
    "zero3": ["global_step*/*rank_0*optim_states.pt", "global_step*/*rank_1*optim_states.pt"],
}


def launch(engine, config_file, folder, *overrides):
    """Start ``accelerate launch`` with the shipped configuration, on two CPU processes."""
    values = yaml.safe_load((CONFIGS / f"accelerate-{engine}.yaml").read_text())
    values |= {"num_processes": 2, "mixed_precision": "no", "use_cpu": True}
    file = folder.with_suffix(".accelerate.yaml")
    file.write_text(yaml.safe_dump(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file),
         "--main_process_port", str(port), "-m", "dynllava.training", str(config_file),
         f"run.output_dir={folder}", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == 0, output


def kill(process):
    """Kill a launcher and its processes, which have sessions of their own."""
    launcher = psutil.Process(process.pid)
    for one in (launcher, *launcher.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def with_images(file):
    records = [record for record in json.loads(file.read_text()) if "image" in record]
    images = file.with_name("images.json")
    # As many as a multiple of the global batch: the last step of an epoch is whole.
    images.write_text(json.dumps(records[: len(records) // 4 * 4]))
    return images


@pytest.mark.slow  # Three launches of two processes, and one process beside them.
@pytest.mark.parametrize("engine", sorted(SHARDS))
def test_two_processes_that_share_the_weights_equal_one(engine, tiny_config, data_file, tmp_path):
    """Loss curve and every weight within 2e-4; killed and resumed, to the bit."""
    steps = ["run.max_steps=6", "run.save_steps=1", "run.logging_steps=1"]
    if engine == "zero3":
        pytest.importorskip("deepspeed", reason="pip install deepspeed")
        steps.append(f"data.path={with_images(data_file)}")
    one, whole, killed = (tmp_path / name for name in ("one", "whole", "killed"))
    train(tiny_config(*steps, f"run.output_dir={one}"))
    finish(launch(engine, tiny_config.file, whole, *steps))
    for pattern in SHARDS[engine]:
        assert list((whole / "checkpoint-6").glob(pattern)), "the weights were not shared out"
    process = launch(engine, tiny_config.file, killed, *steps)
    while process.poll() is None and not (killed / "checkpoint-2" / "complete").exists():
        time.sleep(0.001)
    kill(process)
    output, _ = process.communicate()
    assert not (killed / "final").exists(), f"finished before it was killed: {output}"
    finish(launch(engine, tiny_config.file, killed, *steps, "--resume"))

    expected, shared, resumed = (
        load_file(folder / "final" / "model.safetensors") for folder in (one, whole, killed)
    )
    assert shared.keys() >= expected.keys()
    assert shared.keys() == resumed.keys()
    far = {name: float((shared[name] - value).abs().max()) for name, value in expected.items()}
    assert max(far.values()) < 2e-4, far
    different = [name for name, value in shared.items() if not resumed[name].equal(value)]
    assert not different, "a resumed run ends with other weights"
    curves = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (one, whole, killed)
    ]
    rows = [[row for row in curve if "loss" in row] for curve in curves]
    assert len(rows[0]) == 6
    for single, sharded, again in zip(*rows, strict=True):
        for name in ("loss", "loss_language", "loss_image_mask", "keep_rate_output", "grad_norm"):
            assert sharded[name] == pytest.approx(single[name], rel=2e-4), name
            assert again[name] == sharded[name], name


def test_zero3_refuses_records_on_which_its_processes_would_wait_for_ever():
    check_records([True, True], zero3=True, processes=2)
    check_records([True, False], zero3=False, processes=2)
    check_records([True, False], zero3=True, processes=1)
    with pytest.raises(UserError, match="1 of 2 records have no image") as caught:
        check_records([True, False], zero3=True, processes=2)
    assert "\n" not in str(caught.value)
