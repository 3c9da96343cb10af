"""The GPU campaign, rehearsed on a CPU: all parts, a kill, resuming, the time, the records.

Runs without lmms-eval and with the oldest supported transformers (``tox -e floor``).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.methods.presets import MEASURED
from dynllava.records import RecordStore
from dynllava.records.pooling import pooled
from dynllava.suites import page as summary
from dynllava.timing import bench, speed
from dynllava.timing.campaign import runner, session, smoke, steps, worker
from dynllava.timing.campaign.journal import Journal
from dynllava.timing.campaign.shapes import SHAPES, load_shape
from dynllava.timing.speed import Times

ROOT = Path(__file__).parents[2]
TINY = SHAPES["tiny"]


def command(folder):
    arguments = ["bench", "--campaign", str(folder), "--shape", "tiny", "--minutes", "20"]
    return [sys.executable, "-m", "dynllava", *arguments]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A campaign whose runner is killed in the middle of a cell, then resumed to its end."""
    folder = tmp_path_factory.mktemp("campaign")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command(folder), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        until = time.time() + 600
        while len(Journal(folder).rounds("prefill-b2/0", "prefill-b2")) < 2:
            assert first.poll() is None
            assert time.time() < until
            time.sleep(0.05)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    # Its worker sees that and stops; the lock that it inherited is free then.
    with (folder / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    before = Journal(folder).events
    with Journal(folder).path.open("a") as file:
        file.write('{"event": "round", "step": "prefill-b2/0", "ce')  # torn by a kill
    done = subprocess.run(
        command(folder), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return folder, before, done


@pytest.mark.slow  # the rehearsal: about a minute of five processes
@pytest.mark.timeout(1800)
def test_everything_runs_and_a_kill_loses_nothing(rehearsal):
    folder, before, done = rehearsal
    assert done.returncode == 0, done.stdout + done.stderr
    journal = Journal(folder)
    assert journal.events[: len(before)] == before
    planned = steps.planned(TINY)
    assert journal.finished() == {step.key for step in planned}
    assert {step.part for step in planned} == set(steps.PARTS)
    assert not journal.of("failed")
    assert not journal.of("dropped")
    # No step that was done before the kill was begun again, and no round was made twice.
    starts = Counter(entry["step"] for entry in journal.of("start"))
    finished = {entry["step"] for entry in before if entry["event"] == "done"}
    assert finished
    assert all(starts[key] == 1 for key in finished)
    rounds = Counter((entry["step"], entry["cell"]) for entry in journal.of("round"))
    assert set(rounds.values()) == {6}
    assert "same command goes on" not in done.stdout


@pytest.mark.slow  # the rehearsal: about a minute of five processes
@pytest.mark.timeout(1800)
def test_checks_are_passed_or_say_why_they_did_not_run(rehearsal):
    folder, _, _ = rehearsal
    found = {entry["name"]: entry for entry in Journal(folder).of("check")}
    assert all(entry["passed"] is not False for entry in found.values())
    not_run = {name for name, entry in found.items() if entry["passed"] is None}
    assert not_run == {"flash_attention_2", "pytest -m gpu"}
    assert all(found[name]["detail"] for name in not_run)
    assert "sdpa: full = stock" in found
    assert "compiled, dynamic_llava: steps = eager steps" in found
    assert {f"eager, {name}: ragged batch = single" for name in MEASURED} <= set(found)


@pytest.mark.slow  # the rehearsal: about a minute of five processes
@pytest.mark.timeout(1800)
def test_records_hold_every_round_with_its_process(rehearsal):
    folder, before, _ = rehearsal
    records, problems = RecordStore(folder).read()
    assert not problems
    tasks = {record.task.name for record in records}
    assert {
        "speed-b1-t12-i36-o1", "speed-b2-t12-i36-o1", "step-b1-t12-i36-o3", "step-b2-t12-i36-o20",
        "nocache-b1-t12-i36-o20", "memory-b2-t12-i36-o16", "generation-b16",
    } <= tasks  # fmt: skip
    assert any(task.startswith("training-") for task in tasks)
    assert any(record.model.name.startswith("tiny-wide") for record in records)
    assert any(record.method.name not in MEASURED for record in records)
    found = {
        (one.model.name, one.task.name, one.method.label or one.method.name): one
        for one in pooled(records)
    }
    # The killed worker's rounds, those of the one that went on, and those of the second pass.
    killed = found["tiny (random weights)", "speed-b2-t12-i36-o1", "fastv"].measured["prefill"]
    assert len(killed.rounds) == 3
    assert killed.repeats == 12
    processes = [entry["subjects"]["fastv"]["process"] for entry in before
                 if entry["event"] == "round" and entry["cell"] == "prefill-b2"]  # fmt: skip
    assert len(killed.rounds[processes[0]]) == len(processes) >= 2
    step = found["tiny (random weights)", "step-b1-t12-i36-o20", "dynamic_llava"].measured
    assert {"step", "time_ratio_step", "tokens_per_second"} <= set(step)
    compiled = found["tiny (random weights)", "step-b1-t12-i36-o20", "full, compiled"]
    assert "time_ratio_to_compiled_step" in compiled.measured
    assert all(item.higher_is_better is not None for item in compiled.measured.values())
    fit = json.loads((folder / "memory_fit.json").read_text())
    assert fit["measurements"] >= 3


@pytest.mark.slow  # the rehearsal: about a minute of five processes
@pytest.mark.timeout(1800)
def test_the_page_takes_the_records_up_by_itself(rehearsal, tmp_path):
    folder, _, _ = rehearsal
    page = tmp_path / "page.md"
    assert summary.main(["--store", str(folder.parent), "--out", str(page)]) == 0
    assert "| tiny (random weights) | cpu | 1 | dynamic_llava |" in page.read_text("utf-8")


def test_a_worker_measures_and_goes_on_where_rounds_are_missing(tmp_path):
    """In this process, two steps: rounds, records by process; run again it only adds its words."""
    steps_to_do = ["--steps", "prefill-b1/0", "step-b1/0"]
    arguments = ["--folder", str(tmp_path), "--shape", "tiny", "--device", "cpu"]
    arguments += ["--dtype", "float32", "--parent", str(os.getppid())]
    late = ["--deadline", "0", *steps_to_do]
    assert worker.main([*arguments, *late]) == worker.STOPPED
    assert not Journal(tmp_path).of("round")
    cells = {"prefill-b1": "prefill-b1/0", "step-b1-o3": "step-b1/0", "step-b1-o20": "step-b1/0"}
    ahead = ["--deadline", str(time.time() + 1000), *steps_to_do]
    for _ in range(2):
        assert worker.main([*arguments, *ahead]) == 0
        assert all(len(Journal(tmp_path).rounds(key, cell)) == 6 for cell, key in cells.items())
    records, problems = RecordStore(tmp_path).read()
    assert not problems
    assert len(records) == 6 + 2 * 7  # two dense caches where steps are timed
    found = {(one.task.name, one.method.label or one.method.name): one for one in records}
    step = found["step-b1-t12-i36-o20", "dynamic_llava"]
    assert step.measured["time_ratio_step"].rounds.keys() == {speed.process_name()}
    assert step.counted["cost_ratio_step"].value < 1
    assert found["step-b1-t12-i36-o20", "full"].counted["cost_ratio_step"].value == 1


def test_the_time_is_kept_even_if_a_worker_does_not_stop(tmp_path, monkeypatch, capsys):
    stuck = (sys.executable, "-c", "import time; time.sleep(100)")
    monkeypatch.setattr(runner, "WORKER", stuck)
    monkeypatch.setattr(runner, "STARTING", 0.5)
    start = time.time()
    assert runner.run(tmp_path, 0.05, shape="tiny") == 0
    assert 3 <= time.time() - start < 3 + 10
    out = capsys.readouterr().out
    assert out.startswith("0 of ")
    assert "next: smoke/0" in out
    assert Journal(tmp_path).of("failed") == []


def test_a_step_that_kills_its_process_is_given_up_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
    """A worker that starts a step and dies: tried twice, then left out, and told."""
    code = (
        "import sys; from pathlib import Path\n"
        "from dynllava.timing.campaign.journal import Journal\n"
        "j = Journal(Path(sys.argv[sys.argv.index('--folder') + 1]))\n"
        "for key in sys.argv[sys.argv.index('--steps') + 1:]:\n"
        "    j.add('start', key)\n"
        "    if key == 'smoke/0': sys.exit(9)\n"
        "    j.add('done', key)\n"
    )
    monkeypatch.setattr(runner, "WORKER", (sys.executable, "-c", code))
    assert runner.run(tmp_path, 2, shape="tiny") == 1
    out = capsys.readouterr().out
    assert "given up: smoke/0: the process ended with code 9" in out
    assert len(Journal(tmp_path).of("failed", "smoke/0")) == 2
    assert len(Journal(tmp_path).of("done")) == len(steps.planned(TINY)) - 1


def test_no_round_begins_that_would_not_end_in_time(tmp_path, monkeypatch):
    """A fake clock: rounds of 4 s with 10 s left are two, stored, and the third is not begun."""
    now = [100.0]
    monkeypatch.setattr(session.time, "time", lambda: now[0])
    found = session.Session(
        tmp_path, TINY, "cpu", "float32", 110.0, os.getppid(), Journal(tmp_path)
    )

    def one(number):
        now[0] += 4.0
        return {"full": Times({"step": 1.0})}

    with pytest.raises(session.Stopped):
        found.rounds("step-b1/0", bench.Plan(None, 1, 1, repeats=6), "cell", [], one)
    assert len(Journal(tmp_path).rounds("step-b1/0", "cell")) == 2
    orphan = session.Session(tmp_path, TINY, "cpu", "float32", 1e12, -1, Journal(tmp_path))
    with pytest.raises(session.Stopped):
        orphan.check()


def test_a_wrong_result_fails_a_check_and_nan_does_too():
    one = torch.ones(2, 3)
    assert smoke._checked("same", "bfloat16", lambda: (one, one)).passed is True
    assert smoke._checked("off", "bfloat16", lambda: (one * 1.1, one)).passed is False
    assert smoke._checked("nan", "float32", lambda: (one * float("nan"), one)).passed is False
    broken = smoke._checked("error", "float32", lambda: 1 / 0)
    assert (broken.passed, broken.detail) == (False, "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_end_before_the_next_length_begins(shape):
    """Caches go on from length to length: a window must not run past where the next one starts."""
    found = load_shape(shape)
    behind = (found.rounds["step"] + 1) * found.window
    for early, late in zip(found.lengths, found.lengths[1:], strict=False):
        assert early + behind <= late
    timed = {"prefill", "step", "nocache"} if shape == "tiny" else set(found.rounds)
    assert min(found.rounds[kind] for kind in timed) >= 6


def test_order_of_worth_and_parts():
    for shape in SHAPES.values():
        found = steps.planned(shape)
        assert len({step.key for step in found}) == len(found)
        first = [step.part for step in found if step.number == 0]
        assert first == sorted(first)
        assert {step.part for step in found if step.number} == set(shape.repeated)
    assert {step.part for step in steps.planned(TINY, 3)} == {3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "70b"], "--shape 70b: accepted are 7b, 13b, tiny"),
        (["--part", "9"], "--part 9: accepted are 1: smoke"),
        (["--minutes", "0"], "--minutes 0: accepted is more than 0"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, arguments, message):
    shape = [] if "--shape" in arguments else ["--shape", "tiny"]
    assert main(["bench", "--campaign", str(tmp_path / "c"), *shape, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_two_campaigns_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE", 0.0)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another campaign is running there"):
            runner.run(tmp_path, 1, shape="tiny")


def test_filled_caches_have_the_lengths_that_stepping_leaves():
    """Blocks instead of steps, where that is allowed, change no cache's size."""
    from dynllava.timing.bench_model import random_bench
    from dynllava.timing.campaign import windows

    place = random_bench(TINY.spec, "cpu", "float32")
    prompt = TINY.spec.prompt(TINY.text)
    inputs = speed.make_inputs(place, prompt, 2, 40)
    for subject in bench.make_subjects(lambda: place, MEASURED, TINY.spec):
        subject = speed.calibrate_keep_rate(subject, inputs, 40)
        assert windows.drops_outputs(subject, inputs) == (subject.name == "dynamic_llava")
        track = windows.filled(subject, inputs, 30, 40, lambda: None)
        model = subject.prepare()
        with torch.inference_mode():
            token, cache = subject.prefill(model, inputs, inputs.embeds, 40)
            subject.decode(model, token, cache, inputs.fed, 0, 30)
        # Growing once leaves other room than growing step by step, but no more than 15 %.
        room = speed.allocated_bytes(track.cache) / speed.allocated_bytes(cache)
        assert 1 / 1.15 <= room <= 1.15
        if subject.method is not None:
            last = {"use_cache": True, "logits_to_keep": 1}
            lengths = []
            for one in (track.cache, cache):
                with torch.inference_mode():
                    model(input_ids=inputs.fed[:, 30:31], past_key_values=one, **last)
                lengths.append([list(map(int, row)) for row in model.last_report.kv_lengths])
            assert lengths[0] == lengths[1]
