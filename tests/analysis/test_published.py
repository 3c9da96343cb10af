import dataclasses

import pytest
from dynllava.analysis.points.published import published_points
from dynllava.analysis.points.values import (
    common_benchmarks,
    dense_of,
    relative_average,
    slower_than_dense,
)

from dynllava.errors import UserError
from dynllava.published import tables as published


@pytest.mark.parametrize("number", published.TABLES)
def test_every_table_loads_with_types_units_and_source(number):
    table = published.table(number)
    assert table.rows
    assert f"table {number}" in table.source
    for row in table:
        for column in table.columns:
            value = row[column.name]
            assert value is None or isinstance(
                value, str if column.kind == "text" else published.Printed
            )
    assert all(column.unit for column in table.columns if column.kind == "number")


def test_printed_digits_survive():
    row = published.table(3).rows[2]
    assert row["ppl"].text == "4.70"
    assert row["ppl"].decimals == 2
    assert published.table(3).unit("kv_mem_mb_ppl") == "MB"


def test_unknown_table_is_one_clear_line():
    with pytest.raises(UserError, match="accepted are 1 to 17"):
        published.table(18)


def test_published_points_have_computed_costs():
    points = published_points("dynamic-llava", "llava-1.5-7b")
    ours = next(item for item in points if item.label == "dynamic_llava I|T")
    assert ours.costs["prefill_flops"].value == pytest.approx(2.488, abs=1e-3)
    assert ours.costs["image_tokens"].value == pytest.approx((2 * 576 + 30 * 115) / 32)
    assert ours.scores["vizwiz"].value == 51.2


def test_dynamic_llava_has_a_curve_of_three_budgets():
    points = published_points("dynamic-llava", "llava-1.5-7b")
    curve = [item for item in points if item.curve == "dynamic_llava I|T"]
    assert len({item.costs["prefill_flops"].value for item in curve}) == 3


def test_studies_are_not_mixed():
    points = published_points("restore", "llava-1.5-7b")
    assert len(points) == 28
    assert {item.source for item in points} == {published.RESTORE}
    assert published_points("restore", "llava-1.5-13b") == []


def test_relative_average_needs_every_benchmark():
    points = published_points("dynamic-llava", "llava-1.5-7b")
    dense = next(item for item in points if item.is_dense)
    fastv = next(item for item in points if item.curve == "fastv")
    names = ["gqa", "pope"]
    value = relative_average(fastv, dense, names)
    assert value.value == pytest.approx(50 * (57.5 / 62.0 + 81.0 / 85.9))
    prumerge = next(item for item in points if item.curve == "prumerge+")
    assert relative_average(prumerge, dense, names) is None
    assert relative_average(dense, dense, names).value == 100


def test_relative_average_inverts_perplexity():
    points = published_points("dynamic-llava", "llava-1.5-7b")
    dense = points[0]
    better = dataclasses.replace(
        dense,
        curve="synthetic",
        scores={"ppl": dataclasses.replace(dense.scores["gqa"], value=4, higher_is_better=False)},
    )
    base = dataclasses.replace(
        dense,
        scores={"ppl": dataclasses.replace(dense.scores["gqa"], value=5, higher_is_better=False)},
    )
    assert relative_average(better, base, ["ppl"]).value == pytest.approx(125)


def test_common_benchmarks_are_reported_by_most_curves():
    names = common_benchmarks(published_points("dynamic-llava", "llava-1.5-13b"))
    assert "gqa" in names
    assert "realworldqa" not in names


def test_slower_than_dense_is_flagged():
    points = published_points("dynamic-llava", "llava-1.5-13b")
    dense = next(item for item in points if item.is_dense)
    ours = next(item for item in points if item.label == "dynamic_llava I|T")
    assert dense_of(points, ours) is dense
    assert slower_than_dense(points, ours) == []
    slow = dataclasses.replace(
        ours, costs=ours.costs | {"tpot": dataclasses.replace(ours.costs["tpot"], value=99.0)}
    )
    assert slower_than_dense([*points, slow], slow) == ["tpot"]
