"""``dynllava check`` on hub names, against a hub on this machine: sizes, terms, login, names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import public_layouts as layouts
import pytest
import small_hub

from dynllava.models.layouts import inspect
from dynllava.preflight.findings import Preflight
from dynllava.preflight.resources import sizes

NAME, GATED = "liuhaotian/llava-v1.5-7b", "someone/gated-model"
#: One process for all commands: each is what a user types, and every start costs seconds.
COMMANDS = """
import contextlib, io, json, sys
from dynllava.cli import main
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Run the commands; return their answers, what the hub sent before and after, and folders."""
    root = tmp_path_factory.mktemp("hub")
    model = layouts.original(root / "model", layouts.Sizes())
    tower = layouts.clip_tower(root / "tower", layouts.Sizes())
    for name in ("LICENSE", "NOTICE", "USE_POLICY.md"):
        (model / name).write_text(f"terms of {name}\n")
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(root / "home"),
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        environment.pop(name, None)
    check = ["check", "--json", "--device", "cpu"]
    commands = [
        [*check, NAME], [*check, GATED], [*check, "someone/no-such-model"],
        ["compare", "--pretrained", GATED, "--methods", "full", "--out", str(root / "store")],
        ["convert", NAME, str(root / "out")], [*check, NAME],
    ]  # fmt: skip
    served = {NAME: model, layouts.TOWER: tower, GATED: model}
    with small_hub.serve(served, (GATED,)) as (address, sent):
        environment["HF_ENDPOINT"] = address
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            capture_output=True, text=True, env=environment, cwd=root, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return answers, sent, model, tower, root


def findings(answer):
    return {item["topic"]: item for item in json.loads(answer[1])["findings"]}


def test_a_check_says_what_loading_would_download(asked):
    answers, _, model, tower, _ = asked
    code, *_ = answers[0]
    found = findings(answers[0])
    assert code == 0
    shards = sorted(model.glob("*.bin"))
    total = sum(path.stat().st_size for path in [*shards, tower / "pytorch_model.bin"])
    text = found["download"]["text"]
    assert f"3 files, {total / 2**20:.1f} MiB" in text
    assert all(path.name in text for path in shards)
    assert f"{layouts.TOWER}: pytorch_model.bin" in text
    assert found["disk"]["text"].startswith("0.0 MiB")
    assert found["licence"]["text"] == "LICENSE, NOTICE, USE_POLICY.md"


def test_a_check_fetches_no_weights_and_the_run_does(asked):
    answers, sent, _, _, root = asked
    weights = [name for name in sent if name.endswith(".bin")]
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    # Each once, by the conversion, long after the small files of the first check.
    assert sorted(weights) == sorted([*shards, "pytorch_model.bin"])
    assert sent.index("config.json") < sent.index(weights[0])
    assert answers[4][0] == 0, answers[4]
    assert (root / "out" / "USE_POLICY.md").read_text() == "terms of USE_POLICY.md\n"
    after = findings(answers[5])
    assert "download" not in after
    assert not after["disk"]["text"].startswith("0.0")


def test_a_gated_model_without_a_login_says_how_to_log_in(asked):
    answers, _, _, _, root = asked
    code, *_ = answers[1]
    text = findings(answers[1])["checkpoint"]["text"]
    assert code == 1
    assert "is a gated model; accept its licence" in text
    assert "hf auth login" in text
    code, out, err = answers[3]
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert text in err
    assert not (root / "store").exists()


def test_a_name_that_the_hub_does_not_know(asked):
    code, *_ = asked[0][2]
    assert code == 1
    assert "someone/no-such-model: no such folder" in findings(asked[0][2])["checkpoint"]["text"]


def test_a_download_that_the_disk_cannot_hold_is_refused(asked):
    from dataclasses import replace

    checkpoint = replace(inspect(Path(asked[4]) / "out"), downloads={"model.safetensors": 10**18})
    found = Preflight()
    sizes(found, checkpoint)
    (refusal,) = [item.text for item in found.findings if item.level == "no"]
    assert "left: make room, or set HF_HOME" in refusal
