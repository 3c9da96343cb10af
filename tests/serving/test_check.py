"""What serve-check calls wrong, and what its records say."""

from __future__ import annotations

# ruff: noqa: I001 (what is missing is said before it is imported)
from tests.serving import needed  # noqa: F401

import importlib.util
import json
import subprocess
import sys

import pytest

from dynllava.records import Environment, RecordStore
from dynllava.serving.check import results
from dynllava.serving.check.answers import Agreement, Answer, complaints
from dynllava.serving.check.faults import Killed, Mixed, _judge
from dynllava.serving.check.load import STOCK, Timing
from dynllava.serving.check.prompts import fresh, questions

HALF = "divprune:keep_ratio=0.5"


def answer(own=(5, 2), other=(5, 2), engine=90, declared=90, margin=None):
    return Answer("p", list(own), list(other), 90, engine, declared, 80, margin)


def agreement(*answers, exact=True):
    return Agreement("m", list(answers), exact)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([agreement(*[answer()] * 40)], []),
        ([agreement(*[answer()] * 99, answer(other=(6, 2), margin=5e-4))], []),
        ([agreement(*[answer()] * 99, answer(other=(6, 2), margin=2e-3))], ["margin of 0.002"]),
        ([agreement(*[answer()] * 99, answer(other=(5,)))], ["answers part at no"]),
        ([agreement(*[answer()] * 97, *[answer(other=(6,), margin=1e-5)] * 3)], ["3 of 100"]),
        # Over all methods together.
        ([agreement(*[answer()] * 150), agreement(*[answer()] * 48,
          *[answer(other=(6,), margin=1e-5)] * 2)], []),
        ([agreement(answer(engine=91))], ["91 prompt tokens in the engine, 90 in our loop"]),
        ([agreement(answer(declared=89))], ["89 declared"]),
        # A plan that depends on the picture declares an estimate.
        ([agreement(answer(declared=89), exact=False)], []),
    ],
)  # fmt: skip
def test_what_speaks_against_an_engine(found, said):
    lines = complaints(found)
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"health": 10.5}, ["/health was not 503 within 10 s"]),
        ({"health": None}, ["/health was not 503 within 10 s"]),
        ({"clients": [0.5]}, ["1 clients hang"]),
        ({"clients": [0.5, 11.0]}, ["1 clients waited up to 11.0 s"]),
        ({"outcomes": {"503": 1, "ReadTimeout": 1}}, ["clients got ReadTimeout"]),
        ({"outcomes": {"503": 1, "cut off": 1}}, ["clients got cut off"]),
        ({"again": None}, ["did not come back"]),
        ({"answered": 3}, ["3 of 4 answered afterwards"]),
    ],
)
def test_what_speaks_against_a_server_whose_engine_died(changes, said):
    good = {"clients": [0.4, 0.9], "outcomes": {"503": 2}, "health": 0.6, "again": 20.0,
            "asked": 4, "answered": 4}  # fmt: skip
    lines = _judge(Killed("core", **{**good, **changes}), 2, 0)
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line


def test_records_hold_paired_ratios_and_the_share_of_the_saving_that_became_time(folder, tmp_path):
    recorder = results.Recorder(folder, "sha256:0", Environment())
    dense, pruned, stock = (Timing(name, 4) for name in ("full", HALF, STOCK))
    for timing, factor in ((dense, 1.0), (pruned, 0.75), (stock, 0.5)):
        for turn in range(8):
            for name in ("ttft", "latency"):
                timing.rounds[name].append(factor * (1 + turn))
            timing.rounds["requests"].append(1 / (factor * (1 + turn)))
    made = recorder.load([dense, pruned, stock], 10, 16)
    store = RecordStore(tmp_path)
    for record in made:
        store.append(record)
    again, problems = store.read()
    assert problems == []
    own = again[1].measured
    assert own["ttft ratio"].median == pytest.approx(0.75)
    assert own["requests ratio"].median == pytest.approx(1 / 0.75)
    prefill = [record.counted["prefill_flops"].value for record in again[:2]]
    expected = 0.25 / (1 - prefill[1] / prefill[0])
    assert own["ttft realised share"].median == pytest.approx(expected, rel=1e-5)
    assert "ttft ratio" not in again[0].measured
    assert [record.method.shown for record in again] == ["full", HALF, "the engine's own tower"]
    assert "[" in results.load_table(again).rows[1][5]


def test_a_lost_request_makes_the_record_of_the_faults_a_failure(folder):
    recorder = results.Recorder(folder, "sha256:0", Environment())
    mixed = Mixed({"good": {200: 189, 0: 1}, "malformed": {400: 10}}, ["a good request got 0"])
    record = recorder.faults(mixed, [])
    record.validate()
    assert (record.status, record.error) == ("failed", "a good request got 0")
    assert record.counted["good 0"].value == 1


def test_the_questions_are_of_all_families_and_fresh_pictures_all_differ():
    found = questions(15)
    assert len({prompt.name.split("-")[0] for prompt in found}) == 7
    pictures = fresh("a", "what ?")
    assert len({next(pictures).picture for _ in range(20)}) == 20


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs stock vLLM: tox -e serve installs it"
)
def test_stock_vllm_serves_what_our_loop_computes(folder, tmp_path):
    """Minutes: an engine starts three times."""
    command = [sys.executable, "-m", "dynllava", "serve-check", str(folder), "--prompts", "7",
               "--rounds", "1", "--requests", "4", "--concurrency", "4", "--store",
               str(tmp_path / "store")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "store" / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"serving"}
