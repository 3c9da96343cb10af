"""Whole processes: killed at a random step and resumed, and two that share the work."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dynllava.training.run import train


def start(config_file, *overrides, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "dynllava.training", str(config_file), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_at_a_random_step_and_resumed_equals_an_uninterrupted_run(tiny_config, tmp_path):
    steps = ("run.max_steps=6", "run.save_steps=1")
    whole = train(tiny_config(*steps, f"run.output_dir={tmp_path / 'whole'}"))
    folder = tmp_path / "killed"
    chosen = random.Random()
    step = chosen.randint(1, 4)
    process = start(tiny_config.file, *steps, f"run.output_dir={folder}")
    while process.poll() is None and not (folder / f"checkpoint-{step}").exists():
        time.sleep(0.001)
    time.sleep(chosen.random() * 0.1)
    os.kill(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert not (folder / "final").exists(), f"finished before it was killed: {output}"
    final = train(tiny_config(*steps, f"run.output_dir={folder}"), resume=True)
    expected = load_file(whole / "model.safetensors")
    actual = load_file(final / "model.safetensors")
    assert expected.keys() == actual.keys()
    different = [name for name, value in expected.items() if not actual[name].equal(value)]
    assert not different, f"killed around step {step}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(folder):
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def test_two_processes_follow_the_curve_of_one(tiny_config, tmp_path):
    """gloo; one process accumulates what two share."""
    one = tmp_path / "one"
    train(tiny_config(f"run.output_dir={one}", "run.max_steps=2"))
    two, port = tmp_path / "two", str(free_port())
    ranks = [
        start(
            tiny_config.file,
            f"run.output_dir={two}",
            "run.max_steps=2",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    expected, actual = losses(one), losses(two)
    assert len(expected) == len(actual) == 2
    for left, right in zip(expected, actual, strict=True):
        for name in ("loss", "loss_language", "keep_rate_image", "grad_norm", "tau"):
            assert right[name] == pytest.approx(left[name], rel=2e-4), name
