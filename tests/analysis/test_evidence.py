"""Runs that are evidence about nothing: in tables of their own, on no front, in no verdict.

The numbers are made up; the checkpoint's hash is that of the shipped one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from dynllava.analysis.gate.policy import Policy
from dynllava.analysis.gate.regress import compare
from dynllava.analysis.pareto.data import panel
from dynllava.analysis.pareto.report import collections
from dynllava.analysis.points.evidence import CAVEAT, caveat
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.report.against_dense import against_dense
from dynllava.analysis.tables.paper import ours

from dynllava.embedded.untrained import UNTRAINED
from dynllava.evaluation.summary import summary
from dynllava.records import MethodInfo, ModelInfo, RecordStore
from dynllava.records.reading import read_stores

EMBEDDED = ModelInfo("embedded", next(iter(UNTRAINED)), 6, 128, 144)


def run(record, name, **parameters):
    budget = None if name == "full" else 67.0
    label = name if budget is None else f"{name} 67"
    made = record(method=MethodInfo(name, label, parameters, budget), budget=budget)
    return replace(made, model=EMBEDDED)


@pytest.fixture
def folder(store, record):
    """The class-token run beats all others, dense included."""
    good, best = [1] * 36 + [0] * 4, [1] * 40
    items = [(run(record, "full"), good), (run(record, "divprune", keep_ratio=0.4), good)]
    blind = replace(run(record, "fastervlm", keep_ratio=0.4))
    tokens = replace(blind.counted["mean_image_tokens"], value=0.5)
    blind = replace(blind, counted={**blind.counted, "mean_image_tokens": tokens})
    return store("runs", [*items, (blind, best)])


@pytest.mark.parametrize(
    ("name", "parameters", "checkpoint", "expected"),
    [
        ("fastervlm", {}, EMBEDDED.checkpoint_hash, CAVEAT),
        ("prumerge", {"plus": True}, EMBEDDED.checkpoint_hash, CAVEAT),
        ("fastervlm+h2o", {"h2o_heavy": 0.2}, EMBEDDED.checkpoint_hash, CAVEAT),
        ("divprune", {}, EMBEDDED.checkpoint_hash, ""),
        ("full", {}, EMBEDDED.checkpoint_hash, ""),
        ("fastervlm", {}, "sha256:llava", ""),
        ("fastervlm", {}, None, ""),
        ("gone_since", {"x": 1}, EMBEDDED.checkpoint_hash, ""),
    ],
)
def test_the_mark_follows_from_looks_and_checkpoint(record, name, parameters, checkpoint, expected):
    made = replace(
        run(record, name, **parameters), model=replace(EMBEDDED, checkpoint_hash=checkpoint)
    )
    assert caveat(made) == expected


def test_such_a_run_is_on_no_front_and_on_no_page(folder):
    points = measured_points(read_stores(folder)[0])
    assert [point.label for point in points if point.caveat] == ["fastervlm 67"]
    shown = panel(collections(points)["own", "embedded"], "synthetic_colour", "image_tokens")
    assert {mark.point.label for mark in shown.marks} == {"full", "divprune 67"}
    assert any(mark.on_front for mark in shown.marks)


def test_such_a_run_gets_no_verdict_against_dense(folder):
    found = against_dense(measured_points(read_stores(folder)[0]))
    assert [row.label for row in found] == ["divprune 67"]


def test_such_a_run_has_a_table_of_its_own_beside_dense(folder):
    first, apart = ours(measured_points(read_stores(folder)[0]))
    assert CAVEAT in apart.title
    assert CAVEAT not in first.title
    assert [row[0].text for row in first.rows] == ["full", "divprune 67"]
    assert [row[0].text for row in apart.rows] == ["full", "fastervlm 67"]


def test_the_table_at_the_end_of_a_sweep_sets_it_apart(folder):
    target = RecordStore(folder)
    lines = summary(target.read()[0], target).splitlines()
    mark = lines.index(f"{CAVEAT}:")
    first = [line.split()[0] for line in lines[2 : mark + 2]]
    assert first == ["full", "divprune", "class", "fastervlm"]
    assert "fastervlm" not in "\n".join(lines[mark + 2 :])


def test_the_gate_names_it_untested_and_still_counts_its_costs(folder):
    stored = read_stores(folder)[0]
    checks = compare(stored, stored, Policy())
    own = [check for check in checks if "fastervlm" in check.cell]
    assert [(item.verdict, item.detail) for item in own if item.family == "accuracy"] == [
        ("untested", CAVEAT)
    ]
    assert not [item for item in own if item.family == "method"]
    assert {item.verdict for item in own if item.family == "counted"} == {"ok"}
