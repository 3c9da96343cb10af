"""Damaged, foreign, empty and one-sided stores: one clear outcome each."""

import json

import pytest
from dynllava.analysis import style
from dynllava.analysis.pareto.data import groups, panel
from dynllava.analysis.points.measured import measured_points

from dynllava import methods
from dynllava.cli import main
from dynllava.records import Measured, MethodInfo
from dynllava.records.reading import latest, read_stores, sample_score


def append(folder, line):
    with (folder / "records.jsonl").open("ab") as file:
        file.write(line)


def test_torn_and_foreign_lines_are_skipped_and_named(small_store, capsys):
    append(small_store, b'{"foreign": 1}\n\xff\xfe\n{"schema_version": 1, "kind": "eval')
    stored, notes = read_stores(small_store)
    assert len(stored) == 10
    assert len(notes) == 3
    assert all("line skipped" in note for note in notes)
    assert main(["table", "ours", "--results", str(small_store)]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("warning:") == 3
    assert "fastv 4" in captured.out


def test_nan_metric_is_a_named_bad_line(store, record, capsys):
    folder = store("nan", [(record(), None)])
    data = json.loads((folder / "records.jsonl").read_text())
    data["scores"]["accuracy"]["value"] = float("nan")
    data["record_id"] = "feed"
    append(folder, (json.dumps(data) + "\n").encode())
    stored, notes = read_stores(folder)
    assert len(stored) == 1
    assert "finite number is expected" in notes[0]


def test_nan_samples_are_left_out_of_tests(store, record):
    folder = store("nans", [(record(), [1, float("nan"), 0, 1])])
    point = measured_points(read_stores(folder)[0])[0]
    assert sorted(point.samples["synthetic_colour"]) == ["0", "2", "3"]


def test_unknown_schema_version_is_refused(store, record, capsys):
    folder = store("new", [(record(), None)])
    append(folder, b'{"schema_version": 999}\n')
    assert main(["table", "ours", "--results", str(folder)]) == 1
    assert "schema_version 999 is unknown" in capsys.readouterr().err


def test_empty_store(tmp_path, capsys):
    (tmp_path / "records.jsonl").write_text("")
    assert read_stores(tmp_path) == ([], [])
    assert main(["table", "ours", "--results", str(tmp_path)]) == 1
    assert "no evaluation record" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "r.html"), "--results", str(tmp_path)]) == 0


def test_missing_baseline_gives_scores_but_no_relative_average(store, record):
    folder = store("alone", [(record("fastv"), [1, 0] * 20)])
    points = measured_points(read_stores(folder)[0])
    assert panel(points, "synthetic_colour", "image_tokens").marks
    assert panel(points, "average", "image_tokens").marks == ()
    found, reason = groups(points, "synthetic_colour")
    assert found is None
    assert "fewer than two runs" in reason


def test_failed_records_are_left_out_and_counted(store, record, capsys):
    import dataclasses

    failed = dataclasses.replace(record("fastv"), status="failed", error="synthetic", scores={})
    folder = store("failed", [(record(), None), (failed, None)])
    assert len(latest(read_stores(folder)[0])) == 1
    assert main(["table", "ours", "--results", str(folder)]) == 0
    assert "1 failed runs are left out" in capsys.readouterr().err


def test_the_last_record_of_a_store_is_the_newest_whatever_its_clock_says(store, record):
    items = [
        (record(value=0.5, created="2026-02-01T00:00:00+00:00"), None),
        (record(value=0.9, created="2026-01-01T00:00:00+00:00"), None),
    ]
    point = measured_points(read_stores(store("two", items))[0])[0]
    assert point.scores["synthetic_colour"].value == 90


def test_between_stores_the_later_record_is_the_newest(store, record, tmp_path):
    for name, value, month in (("a", 0.5, 2), ("b", 0.9, 1)):
        created = f"2026-0{month}-01T00:00:00+00:00"
        store(f"all/{name}", [(record(value=value, created=created), None)])
    point = measured_points(read_stores(tmp_path / "all")[0])[0]
    assert point.scores["synthetic_colour"].value == 50


def test_bench_records_add_times_at_batch_1_only(store, record):
    import dataclasses

    items = [(record(measured={}), None), (record("fastv", measured={}), None)]
    for batch, seconds in ((8, 9.0), (1, 0.02)):
        bench = record("fastv", measured={"tpot": Measured(seconds, 0.001, 30, "s")})
        task = dataclasses.replace(bench.task, name=f"speed-b{batch}-t10-i16-o4", metric=None)
        items.append((dataclasses.replace(bench, kind="bench", scores={}, task=task), None))
    points = measured_points(read_stores(store("bench", items))[0])
    fastv = next(point for point in points if point.curve == "fastv")
    assert fastv.costs["tpot"].value == pytest.approx(20)


def test_missing_samples_file_is_one_clear_line(store, record, capsys):
    folder = store("gone", [(record(), [1, 0]), (record("fastv"), [1, 1])])
    for path in (folder / "samples").iterdir():
        path.unlink()
    assert main(["report", str(folder / "r.html"), "--results", str(folder)]) == 1
    assert "cannot read the samples" in capsys.readouterr().err
    assert not (folder / "r.html").exists()


@pytest.mark.parametrize(
    ("sample", "score"),
    [
        ({"score": True}, 1.0),
        ({"accuracy": 0.5}, 0.5),
        ({"scores": {"accuracy": 2}}, 2.0),
        ({"score": None}, None),
        ({}, None),
    ],
)
def test_sample_scores(sample, score):
    assert sample_score(sample, "accuracy") == score


def test_runs_whose_parameters_differ_are_curves_of_their_own_whatever_their_labels(store, record):
    """Each came from a run of its own, which had nothing to tell it from."""
    parameters = [{"k": 2, "keep_ratio": 0.3}, {"k": 2, "keep_ratio": 0.2}, {"k": 5}]
    methods = [
        MethodInfo("fastv", label, own, budget)
        for label, own, budget in zip(
            ("fastv 8", "fastv 6", "fastv 8"), parameters, (8.0, 6.0, 8.0), strict=True
        )
    ]
    other = MethodInfo("fastv", "by hand", {"k": 4}, 8.0)
    folder = store("one", [(record(method=item), None) for item in (*methods, other)])
    points = measured_points(read_stores(folder)[0])
    assert [(point.curve, point.label) for point in points] == [
        ("fastv k=2", "fastv k=2 8"),
        ("fastv k=2", "fastv k=2 6"),
        ("fastv k=5", "fastv k=5 8"),
        ("fastv k=4", "by hand"),
    ]


def test_forms_of_a_method_have_its_colour_and_differ_in_their_marks():
    plain, other = style.look("fastv"), style.look("fastv k=5")
    assert other.colour == plain.colour
    assert (other.marker, other.dashes) != (plain.marker, plain.dashes)
    assert style.name("fastv k=5") == "FastV k=5"
    assert style.look("prumerge") != style.look("prumerge+")


def test_no_two_methods_look_alike_and_all_have_a_name():
    looks = {name: style.look(name) for name in methods.names()}
    marks = [(look.colour, look.marker) for look in looks.values()]
    assert len(set(marks)) == len(marks)
    assert all(style.name(name) != name for name in looks)
