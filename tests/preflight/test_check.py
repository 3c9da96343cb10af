"""``dynllava check``: yes for every public layout, no with the reason for every broken one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import public_layouts as layouts
from public_layouts import Sizes

from dynllava import cli
from dynllava.preflight import Preflight, Wanted, check_model, check_tasks
from dynllava.tasks.access import JUDGE_KEY

SIZES = Sizes()
BUILDERS = {
    "llava-hf newer": lambda folder: layouts.llava_hf(folder, SIZES),
    "llava-hf older": lambda folder: layouts.llava_hf(folder, SIZES, "older"),
    "original": lambda folder: layouts.original(folder, SIZES),
    "official": lambda folder: layouts.official(folder, SIZES),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def built(tmp_path):
    """Build a checkpoint with its vision tower beside it."""
    layouts.clip_tower(tmp_path / layouts.TOWER, SIZES)
    return lambda name: BUILDERS[name](tmp_path / "checkpoint")


def refusals(wanted):
    return [item.text for item in check_model(wanted).findings if item.level == "no"]


def said(found, topic):
    return [item.text for item in found.findings if item.topic == topic]


@pytest.mark.parametrize("name", list(BUILDERS))
def test_public_layouts_can_start_and_nothing_is_loaded(built, name, monkeypatch):
    import safetensors.torch
    import torch

    folder = built(name)

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    found = check_model(Wanted(str(folder), batch_size=4, device="cpu"))
    assert found.ready, found.text()
    assert "What is in the picture?" in said(found, "template")[0]
    patches = (SIZES.image // SIZES.patch) ** 2
    assert f" x {patches}]" in said(found, "tokens")[0]
    assert "batch 4" in said(found, "memory")[0]
    assert "weights" in said(found, "memory")[0]
    assert said(found, "licence")[0].startswith("no licence file")
    assert said(found, "time")[0].startswith("unknown")


def test_the_answer_of_the_command_and_its_exit_code(built, capsys):
    folder = built("official")
    (folder / "LICENSE").write_text("terms")
    assert cli.main(["check", str(folder), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.strip().endswith("the run can start")
    assert "LICENSE" in text
    assert "official Dynamic-LLaVA" in text
    assert cli.main(["check", str(folder), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True
    assert cli.main(["check", str(folder), "--method", "fastw"]) == 1
    assert "the run cannot start: 1 problem" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("dynamic_llava",)}, "no trained predictors"),
        ({"methods": ("fastv:k=99",)}, "k=99"),
        ({"attention": "flash_attention_2", "dtype": "float32"}, "accepted are float16"),
        ({"attention": "flash_attention_2", "dtype": "float16"}, "accepted is a CUDA device"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"image_aspect": "stretch"}, "image_aspect=stretch"),
        ({"conv_template": "v9"}, "conv_template=v9"),
        ({"batch_size": 10**9}, "use a smaller batch"),
    ],
)
def test_what_the_command_line_gets_wrong(built, changes, message):
    folder = built("llava-hf newer")
    problems = refusals(Wanted(str(folder), **{"device": "cpu", **changes}))
    assert len(problems) == 1, problems
    assert message in problems[0]


def test_departures_from_the_paper_are_notes(built):
    folder = built("official")
    wanted = Wanted(
        str(folder),
        device="cpu",
        image_aspect="crop",
        methods=("dynamic_llava:vision_keep_rate=0.5",),
    )
    found = check_model(wanted)
    assert found.ready
    notes = " ".join(item.text for item in found.findings if item.level == "note")
    assert "padded to a square" in notes
    assert "keeps 0.5 of the image, trained for 0.2" in notes
    assert "made in float16" in notes


def test_an_answer_beyond_the_positions_is_a_note(built):
    folder = built("original")
    found = check_model(Wanted(str(folder), device="cpu", max_new_tokens=600))
    assert found.ready
    assert "beyond them answers are unreliable" in said(found, "positions")[0]


def test_predicted_memory_is_that_of_the_loaded_model(built):
    from dynllava.models.layouts import inspect
    from dynllava.models.loading import load_model
    from dynllava.preflight.model import spec_of

    folder = built("llava-hf newer")
    checkpoint = inspect(str(folder))
    model, _ = load_model(str(folder))
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    predicted = spec_of(checkpoint).weight_bytes("float32")
    assert predicted == pytest.approx(held, rel=0.01)


def test_time_comes_from_records_of_this_device_and_these_sizes(tmp_path):
    from types import SimpleNamespace

    from dynllava.preflight.resources import run_time
    from dynllava.records import Measured, MethodInfo, ModelInfo, RecordStore, RunRecord, TaskInfo
    from dynllava.records.environment import capture

    times = {"ttft": Measured(2.0, None, 6, "s"), "tpot": Measured(0.1, None, 6, "s")}
    record = RunRecord(
        "bench",
        ModelInfo("m", layers=3, hidden=64),
        MethodInfo("full"),
        TaskInfo("speed-b1-t56-i144-o64"),
        measured=times,
        environment=capture("cpu"),
    )
    RecordStore(tmp_path).append(record)

    def answer(layers):
        found = Preflight()
        spec = SimpleNamespace(dims=SimpleNamespace(layers=layers, hidden=64))
        run_time(found, spec, "cpu", str(tmp_path))
        return found.findings[0].text

    assert answer(3).startswith("minutes for 1,000 answers")  # 3.5 s each: 58 minutes
    assert answer(4).startswith("unknown")


def test_a_bench_of_the_same_checkpoint_predicts_its_time(built, tmp_path, capsys):
    """From one command's records to the other's answer: names, units and sizes agree."""
    folder, store = built("llava-hf newer"), str(tmp_path / "bench")
    plan = ["--methods", "full", "--stock", "dynamic", "--repeats", "1", "--output-tokens", "4"]
    plan += ["--warmup", "0"]
    assert cli.main(["bench", "--model", str(folder), *plan, "--store", store, "--json"]) == 0
    capsys.readouterr()
    check = ["check", str(folder), "--device", "cpu"]
    assert cli.main([*check, "--records", store]) == 0
    assert (
        "minutes for 1,000 answers of 16 tokens (bench records of cpu)" in capsys.readouterr().out
    )
    assert cli.main([*check, "--records", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_tasks_say_judge_login_and_data(monkeypatch):
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    found = Preflight()
    check_tasks(found, ["embedded_digit", "pope", "textvqa", "mm_vet"])
    texts = {item.text.partition(":")[0]: item for item in found.findings}
    assert texts["embedded_digit"].level == "ok"
    assert "run hf auth login" in texts["pope"].text
    assert "the hub is not asked" in texts["textvqa"].text
    assert "--no-judge" in texts["mm_vet"].text
    assert not found.ready
    unknown = Preflight()
    check_tasks(unknown, ["popee"])
    assert "unknown task 'popee'" in unknown.findings[0].text
