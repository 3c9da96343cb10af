"""Titles: methods of one table differ in theirs wherever their parameters do."""

from __future__ import annotations

import pytest

from dynllava.methods.titles import Named, titles


def of(*texts, shares=True):
    """Return the titles of (name, parameters[, budget]) items."""
    return titles([Named(*item) for item in texts], shares=shares)


def test_a_method_alone_is_called_by_its_name():
    assert of(("full", {}), ("fastv", {"k": 2, "keep_ratio": 0.3}, 67.0)) == ["full", "fastv"]


def test_published_forms_have_names_of_their_own():
    fixed = {"ratio": 0.4}
    assert of(
        ("prumerge", fixed), ("prumerge", {"plus": True, **fixed}), ("prumerge", {"plus": True})
    ) == ["prumerge", "prumerge+", "prumerge+ adaptive"]


def test_what_differs_and_is_no_default_tells_methods_apart():
    assert of(("fastv", {"k": 3}, 67.0), ("fastv", {"k": 2}, 67.0), ("random", {}, 67.0)) == [
        "fastv",
        "fastv k=2",
        "random",
    ]
    assert of(
        ("visionzip", {}, 67.0),
        ("visionzip", {"positions": "original", "contextual_ratio": 0.5}, 67.0),
    ) == ["visionzip", "visionzip contextual_ratio=0.5 positions=original"]


def test_what_a_budget_sets_tells_apart_only_where_none_was_asked_for():
    shares = [{"keep_ratio": 0.3}, {"keep_ratio": 0.4}]
    assert of(*(("fastv", own, 67.0) for own in shares)) == ["fastv", "fastv"]
    assert of(*(("fastv", own) for own in shares)) == [
        "fastv keep_ratio=0.3",
        "fastv keep_ratio=0.4",
    ]
    assert of(*(("fastv", own) for own in shares), shares=False) == ["fastv", "fastv"]


def test_seeds_are_draws_of_one_method():
    assert of(("random", {"seed": 0}), ("random", {"seed": 1})) == ["random", "random"]


def test_parts_of_a_composition_are_told_apart_with_their_prefix():
    first = {"fastv_k": 2, "h2o_heavy": 0.3}
    found = of(("fastv+h2o", first, 67.0), ("fastv+h2o", {**first, "h2o_recent": 0.1}, 67.0))
    assert found == ["fastv+h2o", "fastv+h2o"]
    found = of(("fastv+h2o", first, 67.0), ("fastv+h2o", {**first, "fastv_k": 4}, 67.0))
    assert found == ["fastv+h2o fastv_k=2", "fastv+h2o fastv_k=4"]


@pytest.mark.parametrize(
    ("name", "parameters"), [("gone_since", {"x": 1}), ("fastv", {"gone_since": 1})]
)
def test_a_record_of_what_is_no_longer_known_keeps_its_name(name, parameters):
    assert of((name, parameters, 67.0)) == [name]
