"""Synthetic run records; every number here is made up for the tests."""

from __future__ import annotations

import pytest

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


def make_record(method="full", task="synthetic_colour", value=0.8, **changes):
    """Return a synthetic evaluation record; ``changes`` override its parts."""
    budget = changes.pop("budget", None if method == "full" else 8.0)
    tokens = changes.pop("tokens", 16.0 if budget is None else budget)
    created = changes.pop("created", "2026-01-01T00:00:00+00:00")
    commit = changes.pop("commit", "a" * 40)
    dataset = changes.pop("dataset_hash", "sha256:synthetic")
    measured = changes.pop("measured", {"ttft": Measured(0.010, 0.001, 30, "s")})
    fields = {
        "kind": "evaluation",
        "model": ModelInfo(changes.pop("model", "synthetic-model"), "sha256:w", 4, 64, 16),
        "method": method
        if isinstance(method, MethodInfo)
        else MethodInfo(method, parameters={"seed": 0}, budget=budget),
        "task": TaskInfo(task, "synthetic", "test", dataset, "accuracy", True, 1.0, 40),
        "scores": {"accuracy": Score(value, 0.05, 40)},
        "counted": {
            "prefill_flops": Counted(1e6 * tokens, "FLOP", "counted", "prefill"),
            "kv_bytes": Counted(1024 * tokens, "byte", "counted", "decode"),
            "mean_image_tokens": Counted(tokens, "token", "counted", "prefill"),
        },
        "measured": measured,
        "environment": Environment(device="cpu", dtype="float32", commit=commit, dirty=False),
        "created": created,
    }
    return RunRecord(**(fields | changes))


def make_samples(scores):
    """Return synthetic per-sample results."""
    return [{"sample_id": str(i), "accuracy": float(v)} for i, v in enumerate(scores)]


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def samples():
    return make_samples


@pytest.fixture
def store(tmp_path):
    """Return a function that writes (record, scores or None) pairs to a new store's folder."""

    def write(name, items):
        target = RecordStore(tmp_path / name)
        for item, scores in items:
            target.append(item, None if scores is None else make_samples(scores))
        return tmp_path / name

    return write


@pytest.fixture
def small_store(store):
    """A synthetic study: dense and two methods at two budgets, two tasks, with samples."""
    items = []
    for task in ("synthetic_colour", "synthetic_shape"):
        items.append((make_record(task=task, value=0.8), [1] * 32 + [0] * 8))
        for method, loss in (("fastv", 2), ("dynamic_llava", 1)):
            for budget in (4.0, 8.0):
                right = int(32 - loss * 12 / budget * 2)
                scores = [1] * right + [0] * (40 - right)
                item = make_record(method, task, right / 40, budget=budget)
                items.append((item, scores))
    return store("study", items)
