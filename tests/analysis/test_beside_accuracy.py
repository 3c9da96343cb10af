"""Flips, agreement, visual gain and strata of own runs, through records and samples files."""

from __future__ import annotations

import numpy as np
import pytest
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.report.beside_accuracy import beside_accuracy
from dynllava.analysis.report.hardness import strata_table
from dynllava.analysis.tables import paper as tables

from dynllava.evaluation.summary import summary
from dynllava.records import MethodInfo, ModelInfo, RecordStore, RunRecord, Score, TaskInfo
from dynllava.records.reading import read_stores

ITEMS = 300


def _store(folder, runs):
    """Write one record per (method, parameters, budget, weights, scores, answers)."""
    store = RecordStore(folder)
    for name, parameters, budget, weights, scores in runs:
        rows = [
            {"doc_id": item, "score": float(value), "cluster": item // 3, "answer": [str(value)]}
            for item, value in enumerate(scores)
        ]
        record = RunRecord(
            "evaluation",
            ModelInfo("pair", f"sha256:{weights}", weights=weights),
            MethodInfo(name, "", parameters, budget),
            TaskInfo("gqa", "s", "test", "hash", "exact_match", True, 1.0, len(rows)),
            scores={"exact_match": Score(float(np.mean(scores)), 0.01, len(rows))},
        )
        store.append(record, rows)
    return read_stores(folder)[0]


def _draws(seed=0):
    rng = np.random.default_rng(seed)
    chance = rng.choice([0.2, 0.9], size=ITEMS // 3).repeat(3)
    return lambda: (rng.random(ITEMS) < chance).astype(int)


@pytest.fixture
def stored(tmp_path):
    draw = _draws()
    dense = (np.arange(ITEMS) % 10 < 8).astype(int)
    blind = (np.arange(ITEMS) % 10 < 3).astype(int)
    swapped = dense.copy()
    # As accurate as dense: three answers of ten lost, and as many won.
    swapped[np.arange(ITEMS) % 10 == 0] = 0
    swapped[np.arange(ITEMS) % 10 == 9] = 1
    tuned = np.ones(ITEMS, int)
    return _store(
        tmp_path,
        [
            ("full", {}, None, "tuned", tuned),
            ("full", {}, None, "dense", dense),
            ("no_image", {"layer": 0}, None, "dense", blind),
            ("no_image", {"layer": 2}, None, "dense", dense),
            ("fastv", {"k": 2}, 96.0, "dense", swapped),
            *[("random", {"seed": seed}, 96.0, "dense", draw()) for seed in range(5)],
            ("uniform", {}, 96.0, "dense", draw()),
        ],
    )


def test_an_equal_accuracy_shows_its_flips_against_the_dense_weights(stored):
    points = {point.label: point for point in measured_points(stored)}
    fastv = points["fastv 96"]
    assert fastv.scores["gqa"].value == pytest.approx(80.0)
    assert fastv.beside[:2] == ("10.0 / 10.0", "80.0")
    dense = next(p for p in points.values() if p.curve == "full" and p.weights == "dense")
    assert dense.beside == ("0.0 / 0.0", "100.0", "100 [100, 100]")


def test_visual_gain_is_formed_with_no_image_at_layer_0_on_the_dense_weights(stored):
    figures = {
        (item.record.method.name, item.record.model.weights): beside
        for item in stored
        for key, beside in beside_accuracy(stored).items()
        if f'"{item.record.method.name}"' in key and f'"{item.record.model.weights}"' in key
    }
    assert figures["fastv", "dense"].retained.share == pytest.approx(1.0)
    assert figures["full", "tuned"].retained.share == pytest.approx(0.7 / 0.5)
    blind = [item for item in stored if item.record.method.parameters.get("layer") != 0]
    assert all(item.retained is None for item in beside_accuracy(blind).values())
    assert "no run of no_image at layer 0" in str(measured_points(blind)[0].beside)


def test_seeds_are_one_row_with_their_mean_and_range(stored):
    found = [point for point in measured_points(stored) if point.curve == "random"]
    assert len(found) == 1
    draws = found[0].scores["gqa"].draws
    assert len(draws) == 5
    assert found[0].scores["gqa"].value == pytest.approx(sum(draws) / 5)
    # One store file for all: the summary pairs the same rows.
    text = summary([item.record for item in stored], stored[0].store)
    assert "5 seeds]" in text
    assert "10.0 / 10.0" in text
    (table,) = tables.ours(measured_points(stored))
    assert table.headers[1] == "weights"
    row = next(row for row in table.rows if row[0].text == "random 96")
    assert f"[{min(draws):.1f}, {max(draws):.1f}]" in " ".join(cell.text for cell in row)


def test_strata_of_a_method_equal_to_random_hold_no_gain(stored):
    table = strata_table(stored)
    rows = {row[0].text: [cell.text for cell in row[2:]] for row in table.rows}
    assert set(rows) == {"fastv 96", "uniform 96"}
    for text in rows["uniform 96"]:
        low, high = (float(item) for item in text.partition("[")[2].partition("]")[0].split(","))
        assert low < 0 < high
    # A method that does not care about the control's difficulty gains where the control is weak.
    hard, easy = (float(text.split()[0]) for text in rows["fastv 96"])
    assert hard > 40 > easy
