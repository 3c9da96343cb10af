"""Times in the regression gate: processes, families, directions, records of schema 1."""

import dataclasses

import numpy as np
import pytest
from dynllava.analysis.gate import regress
from dynllava.analysis.gate import timing as timing_gate
from dynllava.analysis.gate.checks import exit_code
from dynllava.analysis.gate.policy import Policy

from dynllava.cli import main
from dynllava.records import Measured, RecordStore
from dynllava.records.reading import read_stores


def rounds(values, offset=0):
    """One process a value, six equal rounds each; base and candidate take turns."""
    return {f"20261121T12{2 * i + offset:02d}00-{i}": [float(v)] * 6 for i, v in enumerate(values)}


def spread_of(centre, seed, processes=8, between=0.02):
    return centre * (1 + between * np.random.default_rng(seed).standard_normal(processes))


def quantity(values, offset=0, unit="s", higher_is_better=False):
    found = rounds(values, offset)
    return Measured(float(np.median(values)), 0.0, 6 * len(found), unit, higher_is_better, found)


def gate(store, record, base, candidate, policy=None):
    sides = [
        store(name, [(record(measured=side), None)])
        for name, side in zip("ab", (base, candidate), strict=True)
    ]
    checks = regress.compare(*(read_stores(side)[0] for side in sides), policy or Policy())
    return [check for check in checks if check.family == "measured"]


@pytest.mark.parametrize(
    ("centre", "unit", "higher_is_better", "verdict"),
    [
        (1.2, "s", False, "regression"),
        (0.8, "s", False, "improvement"),
        (1.2, "sample/s", True, "improvement"),
        (0.8, "sample/s", True, "regression"),
        (1.0, "s", False, "ok"),
    ],
)
def test_the_stored_direction_decides(store, record, centre, unit, higher_is_better, verdict):
    """The name says "per second" in both: only what the record says may matter."""
    base = {"samples_per_second": quantity(spread_of(1.0, 1), 0, unit, higher_is_better)}
    new = {"samples_per_second": quantity(spread_of(centre, 2), 1, unit, higher_is_better)}
    (check,) = gate(store, record, base, new)
    assert check.verdict == verdict


def test_a_single_slow_timing_of_fifty_is_the_only_one_flagged(store, record):
    base = {f"time{i}": quantity(spread_of(1.0, i)) for i in range(50)}
    new = {f"time{i}": quantity(spread_of(1.0, 100 + i), 1) for i in range(50)}
    new["time7"] = quantity(spread_of(1.15, 107), 1)
    checks = gate(store, record, base, new)
    assert [check.quantity for check in checks if check.verdict == "regression"] == ["time7"]
    assert exit_code(checks) == 1


@pytest.mark.parametrize(
    ("family", "processes", "needed"), [(1, 7, 8), (100, 8, None), (101, 8, 10)]
)
def test_a_family_too_large_for_its_processes_is_refused(store, record, family, processes, needed):
    base = {f"t{i}": quantity(spread_of(1.0, i, processes)) for i in range(family)}
    new = {f"t{i}": quantity(spread_of(1.0, 999 + i, processes), 1) for i in range(family)}
    checks = gate(store, record, base, new)
    refused = [check for check in checks if check.verdict == "refused"]
    assert len(refused) == (0 if needed is None else family)
    for check in refused:
        assert f"needs {needed} processes a side (has {processes})" in check.detail
    assert exit_code(checks) == (0 if needed is None else 2)


def test_a_refused_timing_still_counts_in_the_family():
    """Otherwise leaving out processes of some timings would loosen the test of the others."""
    good = [
        timing_gate.Timing("c", f"t{i}", "s", False, *_sides(1.0, 1.08, i, 8)) for i in range(2)
    ]
    short = [
        timing_gate.Timing("c", f"u{i}", "s", False, *_sides(1.0, 1.0, i, 5)) for i in range(30)
    ]
    alone, together = timing_gate.judge(good), timing_gate.judge([*good, *short])
    for left, right in zip(alone, together[:2], strict=True):
        assert left.raw_p == right.raw_p
        assert right.p > 5 * left.p


def _sides(old, new, seed, processes):
    sides = (spread_of(old, seed, processes), spread_of(new, 50 + seed, processes))
    return [
        {name: values[0] for name, values in rounds(side, offset).items()}
        for offset, side in enumerate(sides)
    ]


def test_a_slow_down_within_the_margin_passes(store, record):
    base, new = {"t": quantity(spread_of(1.0, 1))}, {"t": quantity(spread_of(1.15, 2), 1)}
    (check,) = gate(store, record, base, new)
    assert check.verdict == "regression"
    (check,) = gate(store, record, base, new, Policy(measured_rise=0.2))
    assert check.verdict == "ok"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"higher_is_better": None}, "does not say which direction"),
        ({"rounds": {}}, "one process, or its rounds are not stored"),
        ({"rounds": rounds([1.0])}, "one process"),
        ({"rounds": rounds([-1.0] * 8)}, "zero or negative"),
        ({"rounds": {f"1{key}": v for key, v in rounds([1.0] * 8).items()}}, "take turns"),
    ],
)
def test_what_cannot_be_tested_says_why_and_does_not_fail(store, record, change, reason):
    old = quantity(spread_of(1.0, 1), 1)
    if "higher_is_better" in change:
        old = dataclasses.replace(old, **change)
    new = dataclasses.replace(quantity(spread_of(2.0, 2)), **change)
    checks = gate(store, record, {"t": old}, {"t": new})
    assert [check.verdict for check in checks] == ["untested"]
    assert reason in checks[0].detail
    assert exit_code(checks) == 0


def test_records_of_schema_1_are_untested(store, record):
    """A rise of 30 % is shown, no more: what such records hold cannot be tested."""
    (check,) = gate(
        store,
        record,
        {"ttft": Measured(1.0, 0.01, 30, "s")},
        {"ttft": Measured(1.3, 0.01, 30, "s")},
    )
    assert check.verdict == "untested"


def test_processes_in_several_records_are_pooled(tmp_path, record, capsys):
    """As `dynllava bench` run in turns leaves them: one record a process, read by the command."""
    # An older commit in the same store is another version: it is not pooled.
    stray = record(
        measured={"tpot": quantity([9.0] * 8)}, commit="b" * 40, created="2026-01-01T00:00:00+00:00"
    )
    RecordStore(tmp_path / "a").append(stray)
    slow = spread_of(1.2, 2)
    for i in range(8):
        for offset, (name, value) in enumerate((("a", spread_of(1.0, 1)[i]), ("b", slow[i]))):
            process = f"20261121T12{2 * i + offset:02d}00-1"
            item = Measured(float(value), 0.0, 6, "s", False, {process: [float(value)] * 6})
            made = record(measured={"tpot": item}, created=f"2026-11-21T12:{2 * i:02d}:00+00:00")
            RecordStore(tmp_path / name).append(made)
    assert main(["regress", str(tmp_path / "a"), str(tmp_path / "b"), "--markdown"]) == 1
    assert "8 and 8 processes in turns" in capsys.readouterr().out


def test_compiled_and_eager_records_of_one_method_are_two_cells(store, record):
    def bench(label, values, offset):
        one = record("fastv", measured={"tpot": quantity(values, offset)}, kind="bench")
        return dataclasses.replace(one, method=dataclasses.replace(one.method, label=label))

    base = [
        (bench("", spread_of(1.0, 1), 0), None),
        (bench("fastv, compiled", spread_of(0.5, 2), 0), None),
    ]
    new = [
        (bench("", spread_of(1.0, 3), 1), None),
        (bench("fastv, compiled", spread_of(0.7, 4), 1), None),
    ]
    sides = [read_stores(store("a", base))[0], read_stores(store("b", new))[0]]
    checks = [c for c in regress.compare(*sides, Policy()) if c.family == "measured"]
    assert [check.verdict for check in checks] == ["ok", "regression"]
