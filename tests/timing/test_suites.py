"""Suites that time steps at a length and looks into the tower: what they record and refuse."""

from __future__ import annotations

import pytest

from dynllava.methods.presets import LOOKING
from dynllava.records import RecordStore
from dynllava.suites import looks, steps
from dynllava.timing.targets import LOOK


def test_steps_at_two_lengths_are_recorded_for_every_subject(tmp_path, capsys):
    arguments = ["--methods", "full", "fastv", "--output-tokens", "3,5", "--window", "2"]
    assert steps.main([*arguments, "--repeats", "2", "--store", str(tmp_path)]) == 0
    assert "wrote 4 records" in capsys.readouterr().out
    records = RecordStore(tmp_path).read()[0]
    assert [record.task_name[-2:] for record in records] == ["o3"] * 4 + ["o5"] * 4
    for record in records:
        assert record.task_name.startswith("step-b1-t56-i144-")
        rounds = record.measured["time_ratio_step_cpu"].rounds
        assert [len(values) for values in rounds.values()] == [2]


@pytest.mark.parametrize(
    ("suite", "arguments", "message"),
    [
        (steps, ["--window", "0"], "--window 0: accepted is a number from 1"),
        (steps, ["--repeats", "0"], "--repeats 0: accepted is a number from 1"),
        (looks, ["--layers", "1"], "--layers: accepted is a number from 2"),
        (looks, ["--methods", "fastv"], "accepted are methods that choose before layer 0"),
    ],
)
def test_what_cannot_be_timed_is_one_line(suite, arguments, message, tmp_path, capsys):
    store = tmp_path / "store"
    assert suite.main([*arguments, "--store", str(store)]) == 2
    assert message in capsys.readouterr().err
    assert not store.exists()


@pytest.mark.parametrize("name", LOOKING)
def test_a_look_is_at_most_a_fifth_of_a_percent_of_the_tower(name):
    assert looks.counted_share(name) <= 0.002


def test_looks_are_recorded_beside_a_tower_of_two_layers(tmp_path, capsys):
    arguments = ["--methods", "visionzip", "divprune", "--layers", "2", "--repeats", "1"]
    assert looks.main([*arguments, "--store", str(tmp_path)]) == 0
    assert "wrote 2 records" in capsys.readouterr().out
    for record in RecordStore(tmp_path).read()[0]:
        assert record.model.name.startswith("2 layers of CLIP-L")
        assert record.measured[LOOK].median > 0.5
        assert record.counted["look_share"].value <= 0.002
