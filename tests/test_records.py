"""Invariants of the run-record schema and of its append-only store."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dynllava.errors import UserError
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
    hash_files,
    hash_rows,
    import_lmms_eval,
    read_tree,
)
from dynllava.records import environment as environment_module
from dynllava.records.environment import capture, code_version, image_backend
from dynllava.records.lmms_eval_results import lmms_eval_samples


def make_record(**changes) -> RunRecord:
    record = RunRecord(
        kind="evaluation",
        model=ModelInfo("embedded", "sha256:ab", layers=6, hidden=128, image_tokens=144),
        method=MethodInfo("fastv", "FastV", {"k": 2, "layers": (1, 2)}, budget=52.8),
        task=TaskInfo("pope", "paper12", "test", "sha256:cd", "accuracy", True, 1.0, 500),
        scores={"accuracy": Score(0.86, 0.01, 500)},
        counted={"flops": Counted(4.1e9, "FLOP", "counted", "prefill")},
        measured={"ttft": Measured(12.5, 0.3, 9, "ms")},
    )
    return dataclasses.replace(record, **changes)


finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
maybe_int = st.none() | st.integers(0, 10**15)
records = st.builds(
    RunRecord,
    kind=st.sampled_from(["profile", "bench", "training"]),
    model=st.builds(ModelInfo, text, st.none() | text, maybe_int, maybe_int, maybe_int),
    method=st.builds(
        MethodInfo, text, text, st.dictionaries(text, plain, max_size=3), st.none() | finite
    ),
    scores=st.dictionaries(text, st.builds(Score, finite, st.none() | finite, maybe_int)),
    counted=st.dictionaries(text, st.builds(Counted, finite, text, text, text), max_size=3),
    measured=st.dictionaries(
        text, st.builds(Measured, finite, finite, maybe_int.map(bool).map(int), text)
    ),
    environment=st.builds(
        Environment,
        versions=st.dictionaries(text, text, max_size=3),
        device=st.none() | text,
        dirty=st.none() | st.booleans(),
    ),
)


@given(records)
@settings(max_examples=150, deadline=None)
def test_json_round_trip_is_exact_and_one_line(record):
    line = record.to_json()
    assert "\n" not in line
    assert RunRecord.from_json(line) == record


def test_line_separators_inside_text_do_not_split_a_line(tmp_path):
    record = make_record(method=MethodInfo("full", label="a\u2028b\x85c\x0b\r\nd"))
    store = RecordStore(tmp_path)
    store.append(record)
    assert store.read() == ([record], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "guess"}, "record.kind='guess'"),
        ({"status": "failed"}, "record.error"),
        ({"error": "boom"}, "record.error"),
        ({"record_id": "../../etc"}, "record.record_id"),
        ({"task": None}, "record.task"),
        ({"scores": {}}, "record.task.metric='accuracy'"),
        ({"scores": {"accuracy": Score(float("nan"))}}, "record.scores.accuracy.value"),
        ({"scores": {"accuracy": Score(True)}}, "record.scores.accuracy.value"),
        ({"model": ModelInfo("m", layers=2.5)}, "record.model.layers"),
        ({"method": MethodInfo("m", parameters={"x": object()})}, "record.method.parameters.x"),
        ({"method": MethodInfo("m", parameters={"x": [float("inf")]})}, r"parameters.x\[0\]"),
        ({"model": "embedded"}, "record.model"),
    ],
)
def test_invalid_record_is_refused_by_field_and_nothing_is_written(tmp_path, changes, message):
    record = make_record(**changes)
    with pytest.raises(UserError, match=message):
        record.validate()
    with pytest.raises(UserError, match=message):
        RecordStore(tmp_path).append(record, samples=[{"doc_id": 0}])
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_missing_fields_are_named():
    data = make_record().to_dict()
    del data["scores"]
    data["model"]["colour"] = "red"
    with pytest.raises(UserError, match="missing scores"):
        RunRecord.from_dict(data)
    data["scores"] = {"accuracy": {"value": 1, "stderr": None, "n": None}}
    with pytest.raises(UserError, match=r"record\.model: unknown colour"):
        RunRecord.from_dict(data)


def test_unknown_schema_version_is_refused_by_name_not_skipped(tmp_path):
    store = RecordStore(tmp_path)
    store.append(make_record())
    newer = {**make_record().to_dict(), "schema_version": 99, "shiny": 1}
    with store.path.open("a") as file:
        file.write(json.dumps(newer) + "\n")
    with pytest.raises(UserError, match=r"records\.jsonl:2: schema_version 99 is unknown"):
        store.read()


def test_torn_and_foreign_lines_are_skipped_and_reported_with_line_numbers(tmp_path):
    store = RecordStore(tmp_path)
    first, second = make_record(), make_record()
    store.append(first)
    with store.path.open("ab") as file:
        file.write(b'{"some": "other tool"}\n[1, 2]\n\xff\xfe\n')
        file.write(first.to_json().encode()[:100])  # a writer killed in the middle of its line
    store.append(second)
    found, problems = store.read()
    assert found == [first, second]
    assert [problem.line for problem in problems] == [2, 3, 4, 5]


def test_duplicate_record_id_is_reported_once_kept(tmp_path):
    store = RecordStore(tmp_path)
    record = make_record()
    store.append(record)
    store.append(record)
    found, problems = store.read()
    assert found == [record]
    assert "occurs twice" in problems[0].message


def test_path_may_be_a_folder_or_a_file_and_a_tree_is_read_by_path(tmp_path):
    one = RecordStore(tmp_path / "a" / "records.jsonl").append(make_record())
    two = RecordStore(tmp_path / "b").append(make_record())
    assert read_tree(tmp_path)[0] == [one, two]
    assert RecordStore(tmp_path / "nothing").read() == ([], [])
    with pytest.raises(UserError, match="no such file or folder"):
        read_tree(tmp_path / "nothing")


def test_samples_lie_beside_the_record_and_never_outside_the_store(tmp_path):
    store = RecordStore(tmp_path / "store")
    rows = [{"doc_id": i, "answer": "ü\u2028"} for i in range(3)]
    record = store.append(make_record(), samples=rows)
    assert record.samples_file == f"samples/{record.record_id}.jsonl"
    assert store.samples(store.read()[0][0]) == rows
    assert store.samples(make_record()) == []
    (tmp_path / "secret.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="outside the store"):
        store.samples(make_record(samples_file="../secret.jsonl"))


def test_failing_samples_leave_no_record_and_no_file(tmp_path):
    def broken():
        yield {"doc_id": 0}
        raise RuntimeError("stopped")

    store = RecordStore(tmp_path)
    with pytest.raises(RuntimeError):
        store.append(make_record(), samples=broken())
    assert store.read() == ([], [])
    assert list((tmp_path / "samples").iterdir()) == []


def test_unwritable_store_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write|a folder is expected"):
        RecordStore(tmp_path / "file" / "records.jsonl").append(make_record())


def _append_many(path, tag, count):
    store = RecordStore(path)
    for index in range(count):
        store.append(make_record(record_id=f"{tag}-{index}"))


def test_two_processes_appending_1000_records_each_lose_none(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(tmp_path, t, 1000)) for t in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found, problems = RecordStore(tmp_path).read()
    assert problems == []
    ids = [record.record_id for record in found]
    assert sorted(ids) == sorted(f"{tag}-{index}" for tag in ("a", "b") for index in range(1000))
    # Each writer's own order is kept.
    assert [i for i in ids if i[0] == "a"] == [f"a-{index}" for index in range(1000)]


def _append_forever(path, acknowledged):
    store = RecordStore(path)
    for index in range(10**9):
        store.append(make_record(record_id=f"c-{index}"), samples=[{"doc_id": index}])
        os.write(acknowledged, b"x")


@pytest.mark.parametrize("delay", [0.05, 0.11, 0.2])
def test_kill_9_while_writing_leaves_every_acknowledged_record_readable(tmp_path, delay):
    receive, send = os.pipe()
    writer = multiprocessing.get_context("fork").Process(
        target=_append_forever, args=(tmp_path, send)
    )
    writer.start()
    os.close(send)
    acknowledged = len(os.read(receive, 1))
    time.sleep(delay)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    while chunk := os.read(receive, 1 << 16):
        acknowledged += len(chunk)
    os.close(receive)
    store = RecordStore(tmp_path)
    found, problems = store.read()
    # At most the record being written may be torn, at most one may be stored unacknowledged.
    assert len(problems) <= 1
    assert acknowledged <= len(found) <= acknowledged + 1
    assert all(store.samples(record) for record in found)
    store.append(make_record())
    assert len(store.read()[0]) == len(found) + 1


def test_file_hash_follows_content_and_names_not_the_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "b" / "README.md").write_text("does not count")
    before = hash_files(tmp_path / "a")
    assert before == hash_files(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{ }")
    assert before != hash_files(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file to hash"):
        hash_files(tmp_path / "empty")


def test_row_hash_sees_pixels_and_order_but_not_key_order():
    pixels = np.zeros((4, 4, 3), np.uint8)
    rows = [{"q": "a", "image": Image.fromarray(pixels)}, {"q": "b", "raw": b"x"}]
    reordered = [dict(reversed(row.items())) for row in rows]
    assert hash_rows(rows) == hash_rows(reordered)
    assert hash_rows(rows) != hash_rows(rows[::-1])
    pixels[0, 0, 0] = 1
    changed = [{"q": "a", "image": Image.fromarray(pixels)}, rows[1]]
    assert hash_rows(rows) != hash_rows(changed)


def lmms_eval_result() -> dict:
    return {
        "results": {
            "pope": {
                "alias": "pope",
                "pope_accuracy,none": 0.86,
                "pope_accuracy_stderr,none": 0.01,
                "pope_f1_score,none": 0.85,
                "pope_f1_score_stderr,none": "N/A",
                "submission,none": None,
                "samples": 500,
            },
            "a_group": {"alias": "a_group", "acc,none": 0.5},
        },
        "configs": {"pope": {"task": "pope", "test_split": "test"}},
        "higher_is_better": {"pope": {"pope_accuracy": True}},
        "n-samples": {"pope": {"original": 9000, "effective": 500}},
        "config": {
            "model": "dynamic_llava",
            "model_args": "pretrained=embedded,method=fastv,k=2,keep_ratio=0.25,"
            "dtype=float32,conv_template=vicuna_v1,vision_tower=x,max_new_tokens=9",
            "device": "cpu",
        },
        "lmms_eval_version": "0.7.3",
        "date": "20260101_000000",
    }


def test_import_of_an_lmms_eval_folder(tmp_path):
    folder = tmp_path / "out" / "embedded"
    folder.mkdir(parents=True)
    (folder / "20260101_results.json").write_text(json.dumps(lmms_eval_result()))
    (folder / "20260101_samples_pope.jsonl").write_text('{"doc_id": 0}\n')
    (record,) = import_lmms_eval(tmp_path / "out")
    record.validate()
    assert record.task == TaskInfo("pope", split="test", metric="pope_accuracy", samples=500)
    assert record.scores["pope_accuracy"] == Score(0.86, 0.01, 500)
    assert record.scores["pope_f1_score"] == Score(0.85, None, 500)
    assert record.model.name == "embedded"
    assert record.method == MethodInfo("fastv", parameters={"k": 2, "keep_ratio": 0.25})
    assert record.environment.dtype == "float32"
    assert (record.environment.image_aspect, record.environment.image_backend) == ("pad", "PIL")
    assert import_lmms_eval(tmp_path / "out")[0].record_id == record.record_id
    assert lmms_eval_samples(folder / "20260101_results.json", "pope") == [{"doc_id": 0}]


def test_import_without_results_or_from_a_damaged_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no lmms-eval results"):
        import_lmms_eval(tmp_path)
    (tmp_path / "x_results.json").write_text('{"results": {')
    with pytest.raises(UserError, match="no complete lmms-eval result"):
        import_lmms_eval(tmp_path)


def test_environment_names_versions_commit_and_settings():
    environment = capture("cpu", dtype="torch.float32", attention="sdpa")
    make_record(environment=environment).validate()
    assert environment.dtype == "float32"
    assert environment.device == "cpu"
    assert {"python", "dynllava", "torch"} <= environment.versions.keys()
    assert environment.image_backend in ("PIL", "torchvision")
    assert (environment.commit is None) == (environment.dirty is None)


def test_image_backend_follows_the_processor_that_made_the_pixels():
    class CLIPImageProcessorPil: ...

    class CLIPImageProcessor: ...

    assert image_backend(CLIPImageProcessorPil()) == "PIL"
    assert image_backend(CLIPImageProcessor()) == "torchvision"


def test_a_copy_outside_a_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(environment_module, "PACKAGE", tmp_path)
    assert environment_module.git_commit() is None
    assert environment_module.git_dirty() is None


def test_code_version_changes_with_the_code_and_only_then(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "analysis").mkdir()
    source = tmp_path / "methods" / "fastv.py"
    source.write_text("k = 2\n")
    monkeypatch.setattr(environment_module, "PACKAGE", tmp_path)
    monkeypatch.setattr(environment_module, "_plugin_folders", lambda: [])
    before = code_version()
    (tmp_path / "analysis" / "plots.py").write_text("colour = 1\n")
    assert code_version() == before
    source.write_text("k = 3\n")
    assert code_version() != before


def test_records_of_schema_1_are_read_with_defaults_and_say_so():
    """A line as schema 1 wrote it: no direction, no rounds, and neither is made up."""
    data = make_record(measured={"samples_per_second": Measured(2.0, 0.1, 5, "sample/s")}).to_dict()
    data["schema_version"] = 1
    for name in ("higher_is_better", "rounds"):
        del data["measured"]["samples_per_second"][name]
    found = RunRecord.from_dict(data)
    assert found.schema_version == 3
    assert found.measured["samples_per_second"] == Measured(2.0, 0.1, 5, "sample/s", None, {})
    assert RunRecord.from_json(found.to_json()) == found
    with pytest.raises(UserError, match="missing higher_is_better, missing rounds"):
        RunRecord.from_dict({**data, "schema_version": 2})
    older = make_record().to_dict() | {"schema_version": 2}
    for name in ("image_aspect", "template"):
        del older["environment"][name]
    assert RunRecord.from_dict(older).environment.image_aspect is None
    with pytest.raises(UserError, match="missing image_aspect, missing template"):
        RunRecord.from_dict({**older, "schema_version": 3})
    with pytest.raises(UserError, match="schema_version True"):
        RunRecord.from_dict({**data, "schema_version": True})


def test_rounds_are_stored_by_process_and_checked():
    rounds = {"20261121T120000-7": [1.0, 2.0], "20261121T120100-9": [3.0]}
    record = make_record(measured={"tpot": Measured(2.0, 1.0, 3, "s", False, rounds)})
    assert RunRecord.from_json(record.to_json()) == record
    wrong = make_record(measured={"tpot": Measured(2.0, 1.0, 3, "s", False, {"p": [float("nan")]})})
    with pytest.raises(UserError, match=r"record\.measured\.tpot\.rounds\.p\[0\]"):
        wrong.validate()


STORED = sorted((Path(__file__).parents[1] / "results").rglob("records.jsonl"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_the_records_of_the_repository_can_be_read(path):
    records, problems = RecordStore(path).read()
    assert problems == []
    assert records
