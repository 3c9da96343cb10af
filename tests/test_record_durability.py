"""Order in which the record store makes things durable, seen from its system calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynllava.records import MethodInfo, ModelInfo, RecordStore, RunRecord


def make_record():
    return RunRecord(kind="profile", model=ModelInfo("m"), method=MethodInfo("full"))


@pytest.fixture
def calls(monkeypatch):
    """Names of the durable steps in order, each with what the files held at that moment."""
    seen = []
    real = {name: getattr(os, name) for name in ("fsync", "write", "replace")}

    def path_of(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))

    def content(path):
        return path.read_bytes() if path.is_file() else b""

    def fsync(descriptor):
        path = path_of(descriptor)
        seen.append(("fsync", path, content(path)))
        real["fsync"](descriptor)

    def write(descriptor, data):
        seen.append(("write", path_of(descriptor), bytes(data)))
        return real["write"](descriptor, data)

    def replace(source, target):
        seen.append(("replace", Path(target), content(Path(source))))
        real["replace"](source, target)

    for name, patched in (("fsync", fsync), ("write", write), ("replace", replace)):
        monkeypatch.setattr(os, name, patched)
    return seen


def relevant(calls, folder):
    return [call for call in calls if call[1] == folder or folder in call[1].parents]


def test_samples_are_durable_before_their_record_and_the_record_before_append_returns(
    tmp_path, calls
):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name a descriptor's file")
    store = RecordStore(tmp_path / "store")
    record = store.append(make_record(), samples=[{"doc_id": 0}, {"doc_id": 1}])
    samples = store.folder / record.samples_file
    rows, line = b'{"doc_id": 0}\n{"doc_id": 1}\n', (record.to_json() + "\n").encode()
    steps = relevant(calls, store.folder)
    kinds = [kind for kind, _, _ in steps]
    first = kinds.index("fsync")
    # The whole of the samples is on disk under another name, then gets its own name,
    assert steps[first][1].parent == samples.parent
    assert steps[first][1] != samples
    assert steps[first][2] == rows
    renamed = kinds.index("replace")
    assert first < renamed
    assert steps[renamed][1:] == (samples, rows)
    # which survives a power failure before any line names it;
    written = kinds.index("write")
    assert any(
        kind == "fsync" and path == samples.parent for kind, path, _ in steps[renamed:written]
    )
    assert steps[written][1:] == (store.path, line)
    # the line, whole, is on disk before the caller hears of it, and so is the new file's name.
    after = steps[written + 1 :]
    assert ("fsync", store.path, line) in after
    assert ("fsync", store.folder, b"") in after


def test_every_line_is_synced_also_in_a_store_that_exists(tmp_path, calls):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name a descriptor's file")
    store = RecordStore(tmp_path)
    store.append(make_record())
    before = len(calls)
    second = store.append(make_record())
    steps = relevant(calls[before:], tmp_path)
    assert [kind for kind, path, _ in steps if path == store.path] == ["write", "fsync"]
    assert steps[-1][2].endswith((second.to_json() + "\n").encode())


def test_a_line_that_could_be_written_in_part_only_is_an_error(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)
    store.append(make_record())
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:20]))
    with pytest.raises(Exception, match="could be written"):
        store.append(make_record())
    monkeypatch.undo()
    last = store.append(make_record())
    found, problems = store.read()
    assert len(found) == 2
    assert found[-1] == last
    assert len(problems) == 1


def test_samples_that_cannot_get_their_name_leave_no_record(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)

    def refused(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(Exception, match="No space left"):
        store.append(make_record(), samples=[{"doc_id": 0}])
    assert not store.path.exists()
    assert list((tmp_path / "samples").iterdir()) == []
