"""The README's figure, and what a picture of kept tokens says beside the patches."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from dynllava.analysis.pareto import overview
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.report import html, overlay, summary
from PIL import Image

from dynllava.records.reading import read_stores


def shown(label="fastv 8", kept=(0, 3), answer="red", **more):
    picture = overlay.encode(Image.new("RGB", (32, 32), (200, 30, 30)))
    return overlay.Overlay(
        label.split()[0], label, "m", picture, 4, kept, "which colour?", answer, (), **more
    )


def test_an_answer_stands_beside_its_reference():
    assert shown(expected="Red.").right is True
    assert shown(expected="blue").right is False
    assert shown().right is None
    tile = html._samples([shown(expected="blue")])
    assert "Reference answer: blue" in tile
    assert "(wrong)" in tile
    # A description is not wrong because it says things in other words.
    assert shown(expected="a red circle beside a blue ring").right is None
    assert "2 of 16 patches kept (12%)" in tile


def test_the_picture_names_the_reference(monkeypatch):
    from matplotlib.figure import Figure

    said = []
    write = Figure.text
    monkeypatch.setattr(
        Figure, "text", lambda self, x, y, s, **more: said.append(s) or write(self, x, y, s, **more)
    )
    overlay.draw(shown(expected="blue"))
    assert any("Reference answer: blue (answered wrong)" in text for text in said)
    said.clear()
    overlay.draw(shown())
    assert not any("Reference" in text for text in said)


def test_evicted_entries_are_not_drawn_as_kept_patches():
    item = shown("h2o 8", tuple(range(16)), cached=0.35)
    tile = html._samples([item])
    assert "all 16 patches read, 35% of cache entries kept" in tile
    assert "16 / 16" not in tile
    assert overlay.draw(item).startswith(b"\x89PNG")


def test_both_survive_a_file(tmp_path):
    item = shown("h2o 8", cached=0.35, expected="red")
    assert overlay.read(item.write(tmp_path / "a.json")) == item


def test_the_figure_needs_pictures_and_points(small_store, tmp_path):
    points = measured_points(read_stores(small_store)[0])
    path = tmp_path / "figure.png"
    assert overview.write_overview(path, points, []) is None
    items = [shown(f"fastv {number}", tuple(range(number)), expected="red") for number in (4, 8)]
    assert overview.write_overview(path, points, items) == path
    assert Image.open(io.BytesIO(path.read_bytes())).width > 1000


def test_a_run_that_is_no_evidence_is_not_in_the_figure(small_store):
    points = measured_points(read_stores(small_store)[0])
    curves = {point.curve for point, _, _ in overview._scores(points)}
    assert {"fastv", "dynamic_llava"} <= curves
    without = [replace(p, caveat="untrained") if p.curve == "fastv" else p for p in points]
    assert "fastv" not in {point.curve for point, _, _ in overview._scores(without)}


@pytest.mark.parametrize("extra", [{"cached": 2.0}, {"expected": 5}])
def test_a_damaged_file_is_one_note(tmp_path, extra):
    path = shown().write(tmp_path / "overlays" / "a.json")
    path.write_text(
        path.read_text()
        .replace('"cached": null', f'"cached": {extra.get("cached", "null")}')
        .replace('"expected": ""', f'"expected": {extra.get("expected", chr(34) * 2)}')
    )
    found, notes = overlay.read_all(tmp_path)
    assert (found, len(notes)) == ([], 1)


def test_the_headline_is_a_verdict_not_a_maximum(small_store):
    points = measured_points(read_stores(small_store)[0])
    figure, words = summary._own("m", points)[0]
    assert figure.endswith(" of 4")
    assert "shown to be at most a point below dense" in words
    assert "best of" not in words
