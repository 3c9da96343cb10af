import csv
import io

import numpy as np
import pytest
from dynllava.analysis.pareto import data as pareto_data
from dynllava.analysis.pareto import front as pareto
from dynllava.analysis.pareto.report import collections, in_paper_units, write_pages
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.points.published import published_points
from dynllava.analysis.points.values import AXES, Cost, Point, Value

from dynllava.errors import UserError
from dynllava.records.reading import read_stores


def test_front_by_hand():
    pairs = [(1, 5), (2, 4), (2, 7), (3, 7), (4, 9), (4, 9)]
    assert pareto.front(pairs) == [0, 2, 4, 5]
    assert pareto.front([]) == []


def test_hypervolume_by_hand():
    assert pareto.hypervolume([(0.5, 0.9), (0.25, 0.7)], (1.0, 0.5)) == pytest.approx(
        0.75 * 0.2 + 0.5 * 0.2
    )
    assert pareto.hypervolume([(2.0, 0.9)], (1.0, 0.5)) == 0


def test_area_is_a_mean_score():
    assert pareto.area_under_front([(0.0, 0.5), (1.0, 1.0)], 0.0, 1.0) == pytest.approx(0.75)
    assert pareto.area_under_front([(0.5, 0.5), (1.0, 1.0)], 0.0, 1.0) is None
    assert pareto.area_under_front([], 0, 1) is None


def test_indistinguishable_methods_share_a_letter():
    samples = {
        "good": {str(i): 1.0 for i in range(60)},
        "almost": {str(i): float(i > 1) for i in range(60)},
        "bad": {str(i): float(i > 30) for i in range(60)},
    }
    found = pareto.group(samples)
    assert set(found.letters["good"]) & set(found.letters["almost"])
    assert not set(found.letters["good"]) & set(found.letters["bad"])
    assert found.samples == 60
    assert pareto.group({"one": {"0": 1.0}}) is None
    assert pareto.group({"a": {"0": 1.0, "1": 0.0}, "b": {"8": 1.0, "9": 0.0}}) is None


@pytest.mark.parametrize("axis", [name for name in AXES if name not in ("ttft", "tpot")])
def test_published_numbers_alone_give_a_panel(axis):
    points = published_points("dynamic-llava", "llava-1.5-7b")
    shown = pareto_data.panel(points, "gqa", axis)
    assert shown.curves()
    assert shown.dense[0].value.value == 62.0
    assert any(mark.on_front for mark in shown.marks)


def test_points_without_the_cost_are_named():
    points = published_points("dynamic-llava", "llava-1.5-13b")
    shown = pareto_data.panel(points, "gqa", "ttft")
    assert any("no time to first token" in text for text in shown.missing)
    assert {mark.point.label for mark in shown.marks} == {"full", "dynamic_llava I|T"}


def test_missing_dense_reference_has_no_area_but_says_so():
    points = [
        Point("measured", "synthetic", "m", "fastv", "fastv", {"t": Value(50)}, {"ttft": Cost(1)})
    ]
    shown = pareto_data.panel(points, "t", "ttft")
    row = pareto_data.summarise(shown)[0]
    assert row.hypervolume is None
    assert "no dense reference" in row.note


def test_pages_from_published_numbers(tmp_path):
    pages = collections([], ["dynamic-llava"], ["llava-1.5-7b"])
    paths = write_pages(pages, tmp_path, ["prefill_flops"])
    names = {path.name for path in paths}
    for kind in ("png", "svg"):
        assert f"dynamic-llava-llava-1.5-7b-prefill_flops-average.{kind}" in names
        assert f"dynamic-llava-llava-1.5-7b-prefill_flops-benchmarks.{kind}" in names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "pareto.csv").read_text())))
    assert {row["benchmark"] for row in rows} >= {"average", "gqa", "cvbench_2d"}
    assert all(float(row["cost"]) > 0 for row in rows)
    assert "Holm" not in (tmp_path / "summary.md").read_text()
    assert "published numbers come without samples" in (tmp_path / "summary.md").read_text()


def test_own_runs_get_a_page_with_groups_and_intervals(small_store, tmp_path):
    stored, notes = read_stores(small_store)
    assert notes == []
    points = measured_points(stored)
    pages = collections(points, [])
    assert list(pages) == [("own", "synthetic-model")]
    write_pages(pages, tmp_path / "out", ["image_tokens"])
    rows = list(csv.DictReader((tmp_path / "out" / "pareto.csv").open()))
    fastv = [row for row in rows if row["curve"] == "fastv" and row["benchmark"] != "average"]
    assert all(float(row["ci_low"]) < float(row["score"]) < float(row["ci_high"]) for row in fastv)
    assert "not distinguishable" in (tmp_path / "out" / "summary.md").read_text()


def test_one_method_only_still_draws(store, record, tmp_path):
    folder = store("one", [(record("fastv"), None)])
    points = measured_points(read_stores(folder)[0])
    write_pages(collections(points, []), tmp_path / "out", ["kv_bytes"])
    assert "no dense reference" in (tmp_path / "out" / "summary.md").read_text()


def test_counted_totals_never_share_an_axis_with_equation_13():
    costs = {"prefill_flops": Cost(9.0), "prefill_eq13": Cost(2.5), "decode_flops": Cost(1.0)}
    point = Point("measured", "own", "llava-1.5-7b", "fastv", "fastv", {}, costs)
    shown = in_paper_units(point).costs
    assert shown["prefill_flops"] == Cost(2.5)
    assert "decode_flops" not in shown


@pytest.mark.parametrize(
    ("sources", "models"), [(["nowhere"], []), (["restore"], ["no-such-model"])]
)
def test_unknown_names_are_one_line(sources, models):
    with pytest.raises(UserError, match="accepted are"):
        collections([], sources, models)


def test_nothing_to_plot_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="nothing to plot"):
        write_pages({}, tmp_path / "out", ["ttft"])
    assert not (tmp_path / "out").exists()


def test_letters_know_that_a_picture_is_one_observation():
    """Ten lost questions about two pictures: two signs, whatever the number of questions."""
    samples = {
        "good": {str(i): 1.0 for i in range(60)},
        "worse": {str(i): float(i > 9) for i in range(60)},
    }
    alone = pareto.group(samples)
    assert not set(alone.letters["good"]) & set(alone.letters["worse"])
    images = {str(i): i // 5 for i in range(60)}
    together = pareto.group(samples, images)
    assert together.letters["good"] == together.letters["worse"]
    assert together.adjusted["good", "worse"] == pytest.approx(0.5)


def own(label, curve, cost, scores):
    samples = {"task": {str(i): float(score) for i, score in enumerate(scores)}}
    value = Value(100 * sum(scores) / len(scores), None, len(scores))
    clusters = {"task": {key: f"image:{key}" for key in samples["task"]}}
    return Point(
        "measured", "own", "m", curve, label, {"task": value}, {"kv_bytes": Cost(cost)}, samples,
        clusters=clusters,
    )  # fmt: skip


def test_the_front_comes_with_a_probability():
    """Cheapest: always on it. Far better: always. Equal in truth: about half. Dominated: never."""
    half = [1, 0] * 50
    points = [
        own("cheap", "a", 1.0, half),
        own("same", "b", 2.0, [0, 1] * 50),
        own("best", "c", 3.0, [1] * 90 + [0] * 10),
        own("full", "full", 4.0, [1] * 80 + [0] * 20),
    ]
    shown = pareto_data.panel(points, "task", "kv_bytes")
    share = {mark.point.label: mark.front_share for mark in shown.marks}
    assert share["cheap"] == 1
    assert share["best"] == 1
    assert 0.3 < share["same"] < 0.6
    assert share["full"] == 0
    average = pareto_data.panel(points, "average", "kv_bytes")
    assert {mark.point.label: mark.front_share for mark in average.marks} == share


def test_published_points_have_no_front_probability():
    shown = pareto_data.panel(published_points("dynamic-llava", "llava-1.5-7b"), "gqa", "kv_bytes")
    assert {mark.front_share for mark in shown.marks} == {None}


def test_a_point_says_its_budget():
    from dynllava.analysis.points.names import budget

    labels = {
        "fastv 67, tuned weights": "67", "divprune positions=original 54": "54", "hired-7b": "",
        "fastv k=3,r=0.75,trained one epoch": "r=0.75", "full": "", "prumerge+ adaptive": "",
        "dynamic_llava I|T, vision keep rate 0.5 (tables 5, 16)": "0.5",
    }  # fmt: skip
    assert {label: budget(label) for label in labels} == labels


def test_no_two_curves_of_one_study_look_alike():
    from dynllava.analysis import style
    from dynllava.analysis.points.published import MODELS, SOURCES, published_points

    from dynllava.methods.presets import DEMO

    groups = [("full", *DEMO, "random", "pool", "downsample", "pyramiddrop", "divprune")]
    groups += [{p.curve for p in published_points(s, m)} for s in SOURCES for m in MODELS]
    for curves in groups:
        looks = [(style.look(name).colour, style.look(name).marker) for name in set(curves)]
        assert len(set(looks)) == len(looks), sorted(curves)


def test_budgets_at_points_cover_neither_marks_nor_each_other():
    from dynllava.analysis.pareto.labels import HEIGHT, LETTER, placed

    rng = np.random.default_rng(3)
    points = [tuple(map(float, xy)) for xy in rng.uniform(0, 90, (40, 2))]
    texts = ["192", "64", "", "r=0.75"] * 10
    found = placed(texts, points, 6.5, 4.0)
    assert found
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for item in found:
        (x, y), text = points[item.index], texts[item.index]
        wide = LETTER * 6.5 * len(text)
        left = x + item.right - {"left": 0, "center": wide / 2, "right": wide}[item.align]
        low = y + item.up - 0.2 * HEIGHT * 6.5
        boxes.append((left, low, left + wide, low + HEIGHT * 6.5))
    texts_from = len(points)
    for i, a in enumerate(boxes):
        for b in boxes[max(texts_from, i + 1) :]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def test_benchmarks_without_a_point_are_named_not_drawn():
    """Five of RESTORE's twelve panels were empty, and an empty last one hid the log scale."""
    from dynllava.analysis.pareto.plot import draw_many

    points = published_points("restore", "llava-1.5-7b")
    panels = [
        pareto_data.panel(points, name, "prefill_flops")
        for name in ("vqav2", "vizwiz", "gqa", "mm_vet")
    ]
    svg = draw_many(panels, "title", "from there")["svg"].decode()
    assert svg.count(">VizWiz<") == 0
    assert "from there. Without a point: VizWiz, MM-Vet" in svg
    assert "log scale" in svg
    assert svg.count("score, 0-100") == 2
