"""Inputs that would give a wrong result without a word, and what records say made them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from tiny import batch, pixels, prompts, tiny_model

from dynllava.errors import UserError
from dynllava.evaluation.claims import Claims
from dynllava.models.finite_logits import FiniteLogits
from dynllava.output.cells import csv_cell, one_line
from dynllava.records import MethodInfo, ModelInfo, RecordStore, RunRecord
from dynllava.records import environment as environment_module
from dynllava.records.schema import storable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_record(**changes):
    return RunRecord(kind="profile", model=ModelInfo("m"), method=MethodInfo("full"), **changes)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one package file that the environment takes for its own."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "records").mkdir()
    (package / "records" / "environment.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment_module, "PACKAGE", package)
    return package


def test_an_untracked_package_file_is_dirty_and_one_elsewhere_is_not(checkout):
    assert len(environment_module.git_commit()) == 40
    assert environment_module.git_dirty() is False
    (checkout.parent / "notes.txt").write_text("mine")
    assert environment_module.git_dirty() is False
    (checkout / "method.py").write_text("k = 2\n")
    assert environment_module.git_dirty() is True


def test_the_commit_of_a_build_counts_where_there_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(environment_module, "PACKAGE", tmp_path)
    monkeypatch.setattr(environment_module, "_installed_commit", lambda: None)
    for variable, repository in environment_module._BUILDS:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(repository, raising=False)
    assert environment_module.git_commit() is None
    monkeypatch.setenv("GITHUB_SHA", COMMIT)
    assert environment_module.git_commit() == COMMIT
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/dynllava")
    assert environment_module.git_commit() == COMMIT
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/thesis")
    assert environment_module.git_commit() is None


def test_samples_can_be_read_by_whoever_reads_the_store(tmp_path):
    store = RecordStore(tmp_path)
    old = os.umask(0o022)
    try:
        record = store.append(make_record(), samples=[{"doc_id": 0}])
    finally:
        os.umask(old)
    assert (tmp_path / record.samples_file).stat().st_mode & 0o777 == 0o644


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    dead, young, living = (folder / f"tmp{name}.tmp" for name in ("dead", "young", "living"))
    for path in (dead, young, living):
        path.write_text("half")
    for path in (dead, living):
        os.utime(path, (time.time() - 3600,) * 2)
    import fcntl

    with living.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        RecordStore(tmp_path).append(make_record(), samples=[])
    assert not dead.exists()
    assert young.exists()
    assert living.exists()


def test_parameters_that_json_cannot_hold_are_stored_with_a_failure(tmp_path):
    method = MethodInfo("fastv", parameters=storable({"keep_ratio": float("nan"), "x": (1, "a")}))
    record = dataclasses.replace(make_record(), method=method, status="failed", error="nan")
    RecordStore(tmp_path).append(record)
    assert RecordStore(tmp_path).read()[0][0].method.parameters == {
        "keep_ratio": "nan",
        "x": [1, "a"],
    }


def test_a_claimed_run_is_another_process_s_until_it_ends(tmp_path):
    fingerprint = "ab" * 16
    code = (
        "import sys, pathlib; from dynllava.evaluation.claims import Claims;"
        "claims = Claims(pathlib.Path(sys.argv[1]));"
        "print(claims.claim(sys.argv[2]), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), fingerprint],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline().strip() == "True"
        own = Claims(tmp_path)
        assert not own.claim(fingerprint)
        assert own.claim("cd" * 16)
    finally:
        process.kill()
        process.wait()
    assert own.claim(fingerprint)
    own.close()


def test_text_for_spreadsheets_and_documents_is_text():
    for formula in ("=1+1", "+cmd", "-cmd", "@sum", "\t=1", " =1"):
        assert csv_cell(formula).startswith("'")
    for value in ("-3.1", "+2", "1e-5", "fastv", -3.1, "-5%"):
        assert csv_cell(value) == value
    assert one_line("a\n\\input{x}\r b") == "a \\input{x} b"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_every_thread_has_its_own_report(model):
    inputs = batch(prompts(), pixels())
    model(**inputs)
    own = model.last_report
    assert own is not None
    seen = []
    thread = threading.Thread(target=lambda: seen.append(model.last_report))
    thread.start()
    thread.join()
    assert seen == [None]
    assert model.last_report is own


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda i: i["input_ids"].__setitem__((0, -1), 10**6), "accepted are tokens from 0 to"),
        (lambda i: i["input_ids"].__setitem__((0, -1), -200), "input_ids run from -200"),
        (lambda i: i.update(attention_mask=torch.ones(4, 2)), r"attention_mask has shape \(4, 2\)"),
        (lambda i: i.update(attention_mask=torch.ones(3, 99)), "attention_mask has shape"),
        (lambda i: i.update(attention_mask=torch.ones(4)), "attention_mask has shape"),
        (lambda i: i.update(sample_ids=torch.zeros(2)), r"sample_ids has shape \(2,\)"),
        (lambda i: i.update(prompt_length=torch.zeros(2)), r"prompt_length has shape \(2,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_one_clear_line(model, change, line):
    inputs = batch(prompts(), pixels())
    change(inputs)
    with pytest.raises(UserError, match=line):
        model(**inputs)


def test_another_batch_on_a_cache_is_refused(model):
    cache = model.new_cache()
    model(**batch(prompts(), pixels()), past_key_values=cache)
    with pytest.raises(UserError, match="a batch of 3 on a cache of 4 rows"):
        model(torch.full((3, 1), 5), past_key_values=cache)


def test_logits_that_are_no_numbers_are_counted_by_row():
    finite = FiniteLogits()
    scores = torch.zeros(4, 7)
    scores[1, 2] = float("nan")
    scores[2, :] = -float("inf")
    scores[3, 0] = -float("inf")
    finite(torch.zeros(4, 1), scores)
    finite(torch.zeros(4, 1), torch.zeros(4, 7))
    assert finite.rows == [1, 2]
    with pytest.raises(UserError, match="x: 2 of 4 rows have logits that are no finite numbers"):
        finite.check("x")


def test_one_bad_position_of_a_row_counts_for_the_row():
    finite = FiniteLogits()
    logits = torch.zeros(3, 5, 7)
    logits[1, 4, 2] = float("nan")
    logits[2, 0, 0] = float("inf")
    finite.add(logits)
    assert finite.rows == [1, 2]
