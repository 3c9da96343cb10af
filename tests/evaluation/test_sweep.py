"""Sweeps with a scripted model: records, resume, failures, back-off, kill and several processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("lmms_eval")

import torch
from benchmark_fixtures import FIXTURES, write_parquet
from benchmark_scripted import ScriptedRunner
from scripted_sweep import ANSWERS, CELLS, TASKS

from dynllava.errors import UserError
from dynllava.evaluation.summary import summary
from dynllava.evaluation.sweep import Cell, run_sweep
from dynllava.records import RecordStore
from dynllava.tasks.overlays import write_overlay
from dynllava.tasks.registry import BENCHMARKS

SCRIPT = Path(__file__).with_name("scripted_sweep.py")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    for name in TASKS:
        data = write_parquet(FIXTURES[name].rows, root / "data" / f"{name}.parquet")
        write_overlay(root / "tasks", BENCHMARKS[name], data=data, name=name)
    return root / "tasks"


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    """Whoever edits the sources while tests run must not change what counts as finished."""
    monkeypatch.setattr("dynllava.records.environment.code_version", lambda: "test")


def _sweep(tasks, store, runner=None, cells=CELLS, names=TASKS, **options):
    runner = runner or ScriptedRunner(ANSWERS)
    options.setdefault("progress", False)
    found = run_sweep(
        "scripted", cells, names, store=store, folders=[tasks], runner=runner, **options
    )
    return found, runner


def _stored(store):
    records, problems = RecordStore(store).read()
    assert not problems
    return records


def test_records_hold_scores_samples_and_costs(tasks, tmp_path):
    records, runner = _sweep(tasks, tmp_path, suite="understanding", limit=4)
    assert len(records) == 9
    assert [record.record_id for record in _stored(tmp_path)] == [r.record_id for r in records]
    record = next(r for r in records if r.task.name == "gqa" and r.method.name == "random")
    assert record.method.parameters["output_keep_rate"] == 0.5
    assert (record.task.suite, record.task.split, record.task.samples) == (
        "understanding",
        "testdev",
        4,
    )
    # Right, right, wrong, right; two images with two questions each.
    score = record.scores["exact_match"]
    assert (score.value, score.n) == (0.75, 4)
    deviations = (0.25, 0.25, -0.75, 0.25)
    naive = sum(d * d for d in deviations) / 3 / 4
    within = 2 * (deviations[0] * deviations[1] + deviations[2] * deviations[3]) / 16
    assert score.stderr == pytest.approx((naive + within) ** 0.5)
    rows = RecordStore(tmp_path).samples(record)
    assert [row["doc_id"] for row in rows] == [0, 1, 2, 3]
    assert [row["score"] for row in rows] == [1, 1, 0, 1]
    assert rows[2]["answer"] == ["chair"]
    assert rows[2]["target"] == "table"
    assert record.counted["image_tokens_kept"].value == 10 + (0 + 1 + 2 + 3) / 4
    assert record.counted["output_keep_rate"].value == pytest.approx(6 / 16)
    assert record.counted["mean_image_tokens"].value == 576
    assert record.counted["prefill_flops"].unit == "FLOP"
    dense = next(r for r in records if r.task.name == "gqa" and r.method.name == "full")
    assert dense.counted["decode_flops"].value > record.counted["decode_flops"].value
    assert record.measured["evaluation_time"].median > 0
    assert len(runner.asked) == 9


def test_finished_runs_are_not_made_again(tasks, tmp_path):
    first, _ = _sweep(tasks, tmp_path)
    again, runner = _sweep(tasks, tmp_path)
    assert runner.asked == []
    assert again == first
    assert len(_stored(tmp_path)) == 9


class _Elsewhere(ScriptedRunner):
    """Runs in an environment with changes."""

    changes: ClassVar[dict] = {}

    def environment(self):
        return dataclasses.replace(super().environment(), **self.changes)


ELSEWHERE = {
    "device": {"device": "cuda (NVIDIA H100)"},
    "library": {"versions": {"dynllava": "test", "torch": "9.9"}},
    "image back-end": {"image_backend": "torchvision"},
}


@pytest.mark.parametrize(
    "change",
    ["parameters", "limit", "checkpoint", "code", "prompts", "data", *ELSEWHERE],
)
def test_what_changes_an_answer_is_run_again(tasks, tmp_path, monkeypatch, change):
    cells, names, options, runner = [Cell("random")], ["gqa"], {}, ScriptedRunner(ANSWERS)
    _sweep(tasks, tmp_path / "store", cells=cells, names=names)
    if change == "parameters":
        cells = [Cell("random", {"seed": 1})]
    elif change == "limit":
        options["limit"] = 3
    elif change in ELSEWHERE:
        runner = _Elsewhere(ANSWERS)
        runner.changes = ELSEWHERE[change]
    elif change == "checkpoint":
        runner = ScriptedRunner(ANSWERS, checkpoint="two")
    elif change == "code":
        monkeypatch.setattr("dynllava.records.environment.code_version", lambda: "other")
    elif change == "prompts":
        overlay = (tasks / "gqa.yaml").read_text()
        tasks = tmp_path / "tasks"
        tasks.mkdir()
        kwargs = "lmms_eval_specific_kwargs: {default: {pre_prompt: Look., post_prompt: ''}}\n"
        (tasks / "gqa.yaml").write_text(overlay + kwargs)
    elif change == "data":
        rows = [dict(row) for row in FIXTURES["gqa"].rows]
        rows[0]["image"] = FIXTURES["pope"].rows[0]["image"]
        data = write_parquet(rows, tmp_path / "data" / "gqa.parquet")
        write_overlay(tmp_path / "tasks", BENCHMARKS["gqa"], data=data)
        tasks = tmp_path / "tasks"
    _sweep(tasks, tmp_path / "store", runner, cells=cells, names=names, **options)
    assert len(runner.asked) == 1
    assert len(_stored(tmp_path / "store")) == 2


class _Failing(ScriptedRunner):
    """Fails on POPE with the method ``random``."""

    def adapter(self, batch_size):
        model = super().adapter(batch_size)
        if self.method.name == "random":
            model.answers = {name: own for name, own in model.answers.items() if name != "pope"}
        return model


def test_a_failed_run_is_recorded_and_the_others_go_on(tasks, tmp_path, capsys):
    records, _ = _sweep(tasks, tmp_path, _Failing(ANSWERS), progress=True)
    failed = [record for record in records if record.status == "failed"]
    assert [(r.method.name, r.task.name, r.error) for r in failed] == [
        ("random", "pope", "KeyError: 'pope'")
    ]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9
    assert lines[4].startswith("[5/9] random, pope: failed, KeyError: 'pope'; ")
    assert "full, gqa: done, exact_match 0.6 ± " in lines[0]
    assert "(n=5); " in lines[0]
    assert lines[-1].endswith("; 0 s left")
    table = summary(records)
    assert "failed: random, pope: KeyError: 'pope'" in table
    assert "0.6±" in table
    # Only the failed run is made again.
    again, runner = _sweep(tasks, tmp_path)
    assert runner.asked == [("random", "auto")]
    assert all(record.status == "ok" for record in again)


def test_impossible_parameters_fail_their_cells_only(tasks, tmp_path):
    cells = [Cell("uniform", {"layer": 99}), Cell("full")]
    records, _ = _sweep(tasks, tmp_path, cells=cells, names=["gqa"])
    assert [record.status for record in records] == ["failed", "ok"]
    assert "layer=99" in records[0].error
    assert records[0].scores == {}


def test_a_cell_that_json_cannot_hold_is_recorded_and_the_others_go_on(tasks, tmp_path):
    cells = [Cell("fastv", {"keep_ratio": float("nan")}), Cell("full")]
    records, _ = _sweep(tasks, tmp_path, cells=cells, names=["gqa"])
    assert [record.status for record in records] == ["failed", "ok"]
    assert "keep_ratio=nan: accepted is" in records[0].error
    assert [record.record_id for record in _stored(tmp_path)] == [r.record_id for r in records]


class _Small(ScriptedRunner):
    """Runs out of memory above four rows."""

    def adapter(self, batch_size):
        model = super().adapter(batch_size)
        if batch_size == "auto" or batch_size > 4:

            def generate_until(requests):
                raise torch.OutOfMemoryError("CUDA out of memory")

            model.generate_until = generate_until
        return model


def test_batch_size_auto_backs_off_and_a_fixed_one_does_not(tasks, tmp_path):
    cells, names = [Cell("full")], ["gqa"]
    records, runner = _sweep(tasks, tmp_path / "auto", _Small(ANSWERS), cells, names)
    assert records[0].status == "ok"
    assert [size for _, size in runner.asked] == ["auto", 16, 8, 4]
    fixed, runner = _sweep(tasks, tmp_path / "8", _Small(ANSWERS), cells, names, batch_size=8)
    assert fixed[0].status == "failed"
    assert "out of memory" in fixed[0].error
    assert len(runner.asked) == 1


def test_wrong_input_is_one_clear_line(tasks, tmp_path):
    with pytest.raises(UserError, match="unknown task 'nope': accepted are the suites paper12"):
        _sweep(tasks, tmp_path, names=["nope"])
    with pytest.raises(UserError, match="limit=0: accepted is a number from 1"):
        _sweep(tasks, tmp_path, limit=0)
    with pytest.raises(UserError, match="prompts='x': accepted are llava, lmms-eval"):
        _sweep(tasks, tmp_path, prompts="x")


def _environment():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_killed_half_way_and_resumed(tasks, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, str(SCRIPT), str(store), str(tasks), "1.0"]
    process = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    try:
        while len(RecordStore(store).read()[0]) < 3:
            assert process.poll() is None, "the sweep ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = RecordStore(store).read()[0]
    assert 3 <= len(before) < 9
    records, runner = _sweep(tasks, store)
    assert len(runner.asked) == 9 - len(before)
    assert records[: len(before)] == before
    assert len({record.record_id.partition("-")[0] for record in _stored(store)}) == 9
    assert all(record.status == "ok" for record in records)


def test_two_sweeps_on_one_folder_do_the_work_once(tasks, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, str(SCRIPT), str(store), str(tasks), "0.3"]
    process = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not RecordStore(store).read()[0]:
            assert process.poll() is None, "the sweep ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        records, runner = _sweep(tasks, store)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()
    stored = _stored(store)
    # Each saw all nine runs through, and together they made nine.
    assert len(records) == len(stored) == len({item.record_id for item in stored}) == 9
    assert 0 < len(runner.asked) < 9
    assert all(record.status == "ok" for record in records)


def _comparable(record, store):
    """What must not depend on the launch."""
    data = record.to_dict()
    for name in ("record_id", "created", "measured", "environment", "samples_file"):
        del data[name]
    return record.record_id.partition("-")[0], data, RecordStore(store).samples(record)


def test_two_processes_give_the_records_of_one(tasks, tmp_path):
    one, _ = _sweep(tasks, tmp_path / "one")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(SCRIPT), str(tmp_path / "two"), str(tasks), "0"]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = _stored(tmp_path / "two")
    assert len(two) == 9
    for first, second in zip(one, two, strict=True):
        assert _comparable(first, tmp_path / "one") == _comparable(second, tmp_path / "two")
