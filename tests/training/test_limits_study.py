"""Limits against a fixed rate: what is compared, and that the page says what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynllava.errors import UserError
from dynllava.records import MethodInfo, ModelInfo, RecordStore, RunRecord, Score, TaskInfo
from dynllava.studies import limits

ROOT = Path(__file__).parents[2]
STORE = ROOT / "results" / "limits"


def test_batches_hold_every_row_once_and_at_most_eight():
    rows = [{"row": number} for number in range(100)]
    parts = limits.batches(rows, 0)
    assert sorted(row["row"] for part in parts for row in part) == list(range(100))
    assert {len(part) for part in parts} <= set(range(1, 9))
    assert len({len(part) for part in parts}) > 3
    assert limits.batches(rows, 0) == parts != limits.batches(rows, 1)


def test_the_fixed_rate_is_that_of_the_tightest_batch():
    rungs = [f"fastv:k=2,keep_ratio={share}" for share in (0.5, 0.25, 1.0, 0.75)]
    assert limits.smallest(rungs, 144, 8).parameters()["keep_ratio"] == 0.25


def stored(folder, fixed, chosen, limit=1000):
    store = RecordStore(folder)
    for label, scores in ((limits.FIXED, fixed), (limits.CHOSEN, chosen)):
        mean = sum(scores) / len(scores)
        method = MethodInfo("fastv", label, {"run": "fastv:k=2", "kv_limit": limit})
        task = TaskInfo(limits.TASK, metric="exact_match", scale=1.0)
        scored = {"exact_match": Score(mean, None, len(scores))}
        record = RunRecord("training", ModelInfo("embedded"), method, task=task, scores=scored)
        store.append(record, ({"id": str(i), "exact": s} for i, s in enumerate(scores)))
    return str(folder)


def test_a_planted_loss_is_seen_in_the_right_direction(tmp_path):
    fixed = [1.0] * 300
    chosen = [0.0] * 60 + [1.0] * 240
    found, *_ = limits.compared(stored(tmp_path, fixed, chosen))
    assert found.difference == pytest.approx(-0.2)
    assert found.verdict.startswith("worse")
    text = limits.sentence(str(tmp_path))
    assert "80.0 % right with rates chosen for each, 100.0 % with the highest fixed" in text
    assert "-20.0 points" in text


def test_records_of_different_runs_are_not_compared(tmp_path):
    with pytest.raises(UserError, match="no records of this study"):
        limits.compared(str(tmp_path))
    stored(tmp_path, [1.0] * 20, [1.0] * 20)
    stored(tmp_path, [1.0] * 30, [1.0] * 30)
    newest = limits.compared(str(tmp_path))[0]
    assert newest.samples == 30


def test_the_page_says_what_the_records_say():
    page = " ".join((ROOT / "docs/models.md").read_text(encoding="utf-8").split())
    assert limits.sentence(str(STORE)) in page


@pytest.mark.slow
def test_the_study_runs(tmp_path):
    """Slow: 36 questions twice through the embedded model, about 20 s."""
    assert limits.main(["--out", str(tmp_path), "--limit", "6"]) == 0
    found, fixed, chosen = limits.compared(str(tmp_path))
    assert found.samples == 36
    assert (
        max(item.counted["kv_bytes"].value for item in (fixed, chosen))
        <= (fixed.method.parameters["kv_limit"])
    )
