"""The speed measurements' own logic: targets, verdicts, breakdowns.  No test depends on a time."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from dynllava.records import (
    Counted,
    Environment,
    Measured,
    MethodInfo,
    ModelInfo,
    RecordStore,
    RunRecord,
    TaskInfo,
)
from dynllava.suites import breakdown
from dynllava.suites import page as summary
from dynllava.timing.intervals import interval
from dynllava.timing.targets import MID, RATIO, SHARE, TARGETS, Target, verdict

ROOT = Path(__file__).parents[2]
AT_LEAST = Target("share", "speed-b1-*-o1", "fastv", SHARE, 0.7, True, MID)
AT_MOST = Target("ratio", "speed-b*-o1", "h2o", RATIO, 1.1, False)


def record(task, method, label="", counted=None, **measured):
    return RunRecord(
        kind="bench",
        model=ModelInfo("mid-size (random weights)", None, 8, 512, 144),
        method=MethodInfo(method, label=label),
        task=TaskInfo(task, suite="speed"),
        counted={key: Counted(value, "1", "", "prefill") for key, value in (counted or {}).items()},
        measured={key: Measured(*value, "1") for key, value in measured.items()},
        environment=Environment(device="cpu", commit="0123456789", dirty=False),
    )


def processes(*medians, rounds=3):
    """A ratio measured in several processes, each round at its process's median."""
    by_process = {f"p{index}": [value] * rounds for index, value in enumerate(medians)}
    values = [value for found in by_process.values() for value in found]
    return Measured(statistics.median(values), 0.1, len(values), "1", False, by_process)


@pytest.mark.parametrize(
    ("target", "item", "says"),
    [
        (AT_LEAST, processes(*[0.8, 0.9] * 4), "yes"),
        (AT_LEAST, processes(*[0.8, 0.65] * 4), "open: bound within the interval (median: yes)"),
        (AT_LEAST, processes(*[0.71, 0.6] * 4), "open: bound within the interval (median: no)"),
        (AT_LEAST, processes(*[0.5, 0.6] * 4), "**not reached**"),
        (AT_MOST, processes(*[1.04, 1.05] * 4), "yes"),
        (AT_MOST, processes(*[1.2, 1.3] * 4), "**not reached**"),
        # Between processes it varies more than within one: many rounds of two decide nothing.
        (AT_LEAST, processes(0.8, 0.9, rounds=50), "open: bound within the interval (median: yes)"),
        (AT_LEAST, processes(0.9, rounds=6), "open: one process (its interval: yes)"),
        (AT_LEAST, processes(0.5, rounds=6), "open: one process (its interval: no)"),
        (AT_LEAST, processes(0.9, rounds=5), "open: 5 rounds, 6 are needed"),
        # Schema 1: no rounds, a factor on the spread.
        (AT_LEAST, Measured(0.9, 0.1, 12, "1"), "open: one process (its interval: yes)"),
        (AT_LEAST, Measured(0.9, 0.1, 5, "1"), "open: 5 rounds, 6 are needed"),
        (AT_LEAST, Measured(0.9, None, 12, "1"), "open: 12 rounds, 6 are needed"),
    ],
)
def test_verdicts_respect_the_interval(target, item, says):
    assert verdict(target, item) == says


@pytest.mark.parametrize("count", [2, 3, 5, 6, 8, 12])
def test_intervals_over_processes_cover_the_true_median(count):
    """Drift of 5 % between processes, ten rounds each: 0.94 or more of 2,000 intervals cover."""
    generator = np.random.default_rng(count)
    inside = 0
    for _ in range(2000):
        place = 1 + generator.normal(0, 0.05, count)
        rounds = {
            f"p{i}": list(at * (1 + generator.normal(0, 0.03, 10))) for i, at in enumerate(place)
        }
        found = interval(Measured(1.0, 0.1, 10 * count, "1", False, rounds))
        inside += found.low <= 1 <= found.high
    assert inside / 2000 >= 0.94


def test_targets_take_their_own_records_only():
    rows = [
        record("speed-b1-t56-i144-o1", "fastv", **{SHARE: (0.9, 0.0, 12)}),
        record("speed-b8-t56-i144-o1", "fastv", **{SHARE: (0.8, 0.0, 5)}),
        record("speed-b1-t56-i144-o11", "fastv", **{SHARE: (0.7, 0.0, 5)}),
        record("speed-b1-t56-i144-o1", "fastv", "fastv, compiled", **{SHARE: (0.6, 0.0, 5)}),
    ]
    found = summary.target_rows(AT_LEAST, rows)
    assert [row[3] for row in found] == ["0.90 [0.90, 0.90] (12 rounds, one process)"]
    assert summary.target_rows(AT_MOST, rows)[0][3] == "not measured"


SLACK = Target("t", "speed-b1-*-o1", "fastv", SHARE, 0.80, True, slack=0.03)


@pytest.mark.parametrize(
    ("centre", "spread", "processes", "rounds", "says"),
    [
        (0.82, 0.02, 8, 8, "yes"),
        (0.81, 0.06, 8, 8, "open: the interval misses the bound by more than 3% (median: yes)"),
        (0.79, 0.02, 8, 8, "open: the interval misses the bound by more than 3% (median: no)"),
        (0.75, 0.02, 8, 8, "**not reached**"),
        (0.82, 0.01, 7, 8, "open: 7 processes of 8 rounds or more, 8 of 8 are needed"),
        (0.82, 0.01, 8, 7, "open: 8 processes of 7 rounds or more, 8 of 8 are needed"),
    ],
)
def test_a_target_with_a_slack_takes_its_median_and_an_end_close_by(
    centre, spread, processes, rounds, says
):
    step = 2 * spread / (processes - 1)
    medians = [centre - spread + step * number for number in range(processes)]
    found = Measured(
        centre, 0.01, processes * rounds, "1",
        rounds={str(number): [value] * rounds for number, value in enumerate(medians)},
    )  # fmt: skip
    assert verdict(SLACK, found) == says


def test_a_missed_target_names_the_class_that_costs_too_much():
    times = dict.fromkeys(breakdown.names(), (0.010, 0.0, 5))
    task = "breakdown-prefill-b1"
    rows = [
        record(task, "full", "dense, stock transformers", **times),
        record(task, "fastv", **{**times, "softmax": (0.013, 0.0, 5)}),
        record(
            "speed-b1-t56-i144-o1",
            "fastv",
            counted={"cost_ratio_prefill": 0.5},
            **{SHARE: (0.2, 0.0, 12)},
        ),
    ]
    (found,) = summary.target_rows(AT_LEAST, rows)
    assert found[4] == "open: one process (its interval: no)"
    assert found[-1] == "softmax +8.0 ms (in all +38.0)"


def test_faster_from_needs_every_longer_length():
    def ratios(*medians):
        return {8 * 2**i: Measured(median, 0.0, 6, "1") for i, median in enumerate(medians)}

    assert summary.faster_from(ratios(1.1, 0.9, 0.8)) == "16"
    assert summary.faster_from(ratios(0.9, 1.1, 0.8)) == "32"
    assert summary.faster_from(ratios(0.9, 1.1)) == "-"
    few = {8: Measured(0.5, 0.0, 5, "1")}
    assert summary.faster_from(few) == "-"


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("aten::mm", "matrix products"),
        ("aten::baddbmm", "matrix products"),
        ("aten::mul", breakdown.OTHERS),
        ("aten::_softmax", "softmax"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "fused attention"),
        ("aten::index_put_", "gathering, sorting"),
        ("aten::copy_", "copying, allocating"),
    ],
)
def test_operators_are_grouped(operator, name):
    assert breakdown.class_of(operator) == name


@pytest.mark.parametrize("mode", breakdown.MODES)
def test_breakdown_runs_and_records(mode, tmp_path, capsys):
    arguments = ["--mode", mode, "--methods", "h2o", "--repeats", "1", "--fed", "2"]
    assert breakdown.main([*arguments, "--store", str(tmp_path)]) == 0
    assert mode in capsys.readouterr().out
    records, problems = RecordStore(tmp_path).read()
    assert not problems
    # Two dense caches while decoding; H2O has nothing to evict from without a cache.
    subjects = {"prefill": 2, "decode": 3, "decode_nocache": 1}
    assert len(records) == subjects[mode]
    for found in records:
        assert set(found.measured) == set(breakdown.names())
        assert found.measured["matrix products"].median > 0


PERFORMANCE_LOG = "results/bench/performance_log.md"


def test_the_page_begins_with_lines_that_a_reader_can_use():
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    lines = [line for line in page.partition("\n## ")[0].splitlines() if line.startswith("- ")]
    assert 3 <= len(lines) <= 5
    # Names as a reader says them: no task's own name, no sentinel value.
    assert not re.search(r"-b\d+-|output_threshold=-", page)
    assert page.index("- **Prefill**") < 400


def test_a_headline_says_what_its_records_say():
    from dynllava.suites.headline import headline

    found = [
        record("speed-b8-t56-i144-o1", "fastv", time_ratio_prefill=(0.76, 0.0, 12)),
        record("speed-b8-t56-i144-o1", "h2o", time_ratio_prefill=(1.06, 0.0, 12)),
        record("speed-b1-t56-i144-o64", "fastv", time_ratio_decode=(0.95, 0.0, 12)),
        record("speed-b1-t56-i144-o64", "fastv, compiled", time_ratio_decode=(0.81, 0.0, 12)),
    ]
    text = "\n".join(headline(found))
    assert "batch 8: fastv 0.76x, h2o 1.06x" in text
    assert "fastv at batch 1 0.95x over 64 tokens" in text
    assert "0.81x to 0.81x where the same runs take 0.95x to 0.95x" in text
    assert "Evaluation" not in text
    assert headline([])[0].startswith("- **Targets**: 0 reached")


def test_the_page_is_what_the_records_say(tmp_path):
    out, log = (tmp_path / name for name in ("docs/performance.md", PERFORMANCE_LOG))
    store = str(ROOT / "results")
    assert summary.main(["--store", store, "--out", str(out), "--log", str(log)]) == 0
    page = out.read_text(encoding="utf-8")
    assert page == (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert log.read_text(encoding="utf-8") == (ROOT / PERFORMANCE_LOG).read_text(encoding="utf-8")
    assert all(target.text in page for target in TARGETS)
    assert not re.search(r"\bnan\b", page)
