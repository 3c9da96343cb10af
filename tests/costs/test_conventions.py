"""The papers' own formulas, against the numbers they print."""

import csv
from importlib import resources

import pytest

from dynllava.costs import conventions
from dynllava.errors import UserError


def paper_rows(name):
    text = resources.files("dynllava.paper").joinpath(name).read_text()
    return list(csv.DictReader(text.splitlines()))


def test_table10_reproduces_except_two_named_rows():
    rows = paper_rows("table10_flops_formula.csv")
    off = {}
    for row in rows:
        segments = conventions.parse_segments(row["segments"])
        computed = conventions.eq13_prefill_tflops(int(row["hidden_size"]), segments)
        if not conventions.agrees_as_printed(computed, row["tflops"]):
            off[row["model"]] = round(computed, 3)
    assert len(rows) == 20
    assert off == {"hired-7b": 1.983, "tokenpacker-13b-144": 4.849}
    assert set(off) == set(conventions.TABLE10_MISMATCHES)


def test_decode_follows_table3_only_roughly():
    rows = [row for row in paper_rows("table03_generation.csv") if row["decode_tflops_ppl"]]
    for row in rows:
        hidden, layers = (4096, 32) if row["model"].endswith("7b") else (5120, 40)
        if row["method"] != "full":
            continue
        computed = conventions.eq13_decode_tflops(hidden, layers, int(row["total_tokens_ppl"]))
        assert computed == pytest.approx(float(row["decode_tflops_ppl"]), rel=0.03)


def test_pyramiddrop_prints_382_for_dense_7b():
    macs = conventions.segments_cost("pyramiddrop", [(32, 576)], 4096, 11008)
    assert conventions.agrees_as_printed(macs / 1e12, "3.82")


def test_fastv_formula():
    assert conventions.layer_cost("fastv", 3, 5, 7) == 4 * 3 * 25 + 2 * 9 * 5 + 2 * 3 * 5 * 7


def test_segments_round_trip():
    assert conventions.run_length_segments([576, 576, 115]) == [(2, 576), (1, 115)]
    assert conventions.parse_segments("2x576+30x115") == [(2, 576), (30, 115)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: conventions.convention("eq12"),
        lambda: conventions.parse_segments("2*576"),
        lambda: conventions.layer_cost("counted", 1, 1, 1),
        lambda: conventions.eq13_decode_tflops(8, 2, 3, 2, dense_layers=3),
    ],
)
def test_bad_input_is_one_line(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "accepted" in str(caught.value)


def test_printed_precision_rounds_half_up():
    assert conventions.agrees_as_printed(2.15, "2.2")
    assert not conventions.agrees_as_printed(4.849, "4.9")
