"""Is a method as good as dense to within a point: yes, no, or how many samples would say."""

import numpy as np
import pytest
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.report.against_dense import against_dense, lines
from dynllava.analysis.report.verdicts import p_text, verdict_tables
from dynllava.analysis.tables import render

from dynllava.cli import main
from dynllava.records import RecordStore
from dynllava.records.reading import read_stores


@pytest.fixture
def study(tmp_path, record):
    """Dense and three methods: nothing changes, 3 % change either way, 20 % are lost."""
    generator = np.random.default_rng(0)
    right = generator.random(1000) < 0.8
    changed = generator.permutation(1000)[:30]
    noisy, broken = right.copy(), right.copy()
    noisy[changed] = ~noisy[changed]
    broken[generator.random(1000) < 0.2] = False
    store = RecordStore(tmp_path / "study")
    for name, scores in (("full", right), ("h2o", right), ("uniform", noisy), ("fastv", broken)):
        store.append(
            record(name, budget=8.0),
            [{"doc_id": i, "score": float(v), "cluster": None} for i, v in enumerate(scores)],
        )
    return tmp_path / "study"


def test_the_three_answers(study):
    rows = against_dense(measured_points(read_stores(study)[0]))
    verdicts = {row.label.split()[0]: row.verdict for row in rows}
    assert verdicts == {
        "h2o": "not worse by more than margin",
        "uniform": "undecided",
        "fastv": "worse",
    }
    (open_,) = [row for row in rows if row.verdict == "undecided"]
    # 3 % of independent answers differ, a third of 0.05 each: between 1,905 and 3,756 samples.
    assert 2000 < open_.needed < 3700
    text = "\n".join(lines(rows))
    assert "undecided (1,000 samples; about" in text
    assert "not worse by more than 1 point" in text


def test_the_reports_table_says_what_each_comparison_found(study):
    points = measured_points(read_stores(study)[0])
    (table,) = verdict_tables(points)
    rows = {
        row[0].text.split()[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows
    }
    found = {row.label.split()[0]: row for row in against_dense(points)}
    assert {name: row["verdict"].text for name, row in rows.items()} == {
        "full": "reference", "h2o": "not worse", "uniform": "undecided", "fastv": "worse",
    }  # fmt: skip
    for name, row in found.items():
        shown = rows[name]
        # Corrected by Holm over the three runs.
        assert shown["p worse"].text == p_text(row.p_worse)
        assert row.p_worse == 1 or row.p_worse > row.comparison.p_worse
        low, high = (100 * value for value in row.comparison.interval)
        difference = 100 * row.comparison.difference
        assert shown["points [95 %]"].text == f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
        assert shown["samples"].text == "1,000"
    assert rows["uniform"]["would decide"].text == f"{found['uniform'].needed:,}"
    assert rows["h2o"]["would decide"].text == rows["fastv"]["would decide"].text == "-"
    # All cost the same: fastv, which lost a fifth, is never on the front, and the others share it.
    shares = {name: row["on the front"].text for name, row in rows.items()}
    assert shares["fastv"] == "0 %"
    assert all(shares[name].endswith(" %") and shares[name] != "0 %" for name in ("h2o", "uniform"))
    html = render.render(table, "html")
    assert '<div class="scroll"><table>' in html
    assert "corrected by Holm over the 3 runs" in html


def test_what_was_run_already_does_not_decide(study):
    """Where nothing differing would have been decided, the difference seen is planned for."""
    for row in against_dense(measured_points(read_stores(study)[0]), margin=0.02):
        assert row.needed is None or row.needed > row.comparison.samples


def test_without_samples_there_is_no_verdict(tmp_path, record):
    store = RecordStore(tmp_path / "bare")
    for name in ("full", "fastv"):
        store.append(record(name, budget=8.0))
    assert verdict_tables(measured_points(read_stores(tmp_path / "bare")[0])) == []


def test_a_lower_margin_needs_more(study):
    points = measured_points(read_stores(study)[0])
    needed = [
        next(row.needed for row in against_dense(points, margin) if row.label.startswith("unif"))
        for margin in (0.005, 0.01)
    ]
    assert needed[0] > 3 * needed[1]


def test_plan_samples_reads_a_store(study, capsys):
    assert main(["plan-samples", str(study), "--family", "1"]) == 0
    out = capsys.readouterr().out
    assert "uniform 8 (3 % differ)" in out
    # No difference at all: 0.99**299 < 0.05.
    assert [line.split()[-1] for line in out.splitlines() if line.strip().startswith("h2o")] == [
        "299"
    ]


def test_plan_samples_without_a_store(capsys):
    assert main(["plan-samples", "--discordance", "0.1", "--margin", "0.02"]) == 0
    alone = capsys.readouterr().out
    assert main(["plan-samples", "--discordance", "0.1", "--per-image", "10", "--icc", "0.3"]) == 0
    clustered = capsys.readouterr().out
    # A narrow terminal wraps the label in its column.
    assert "10 an image, ICC" in clustered
    assert "0.3" in clustered
    one, twelve, many = (int(cell.replace(",", "")) for cell in alone.split()[-3:])
    # (1.645 + 0.842)**2 x 0.1 / 0.02**2 = 1,546.
    assert one == pytest.approx(1546, rel=0.02)
    assert one < twelve < many


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--margin", "0"], "--margin"),
        (["--family", "0"], "--family"),
        (["--icc", "2"], "--icc"),
        (["--discordance", "1.5"], "--discordance"),
        (["somewhere", "--discordance", "0.1"], "--discordance"),
    ],
)
def test_impossible_plans_are_one_line(options, word, capsys):
    assert main(["plan-samples", *options]) == 2
    assert word in capsys.readouterr().err
