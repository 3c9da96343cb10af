"""Counts of methods whose number of image tokens the image sets: the realised mean, or none."""

from __future__ import annotations

import pytest

from dynllava.costs.spec import LLAVA_15_7B
from dynllava.evaluation.results import counted
from dynllava.methods import create


def rows(*kept):
    return [{"costs": {"input_tokens": 650, "output_tokens": 3, **own}} for own in kept]


def test_the_realised_mean_is_its_budget_and_what_its_flops_are_counted_at():
    method = create("prumerge", plus=True)
    seen = rows({"image_tokens_kept": 100}, {"image_tokens_kept": 120})
    found = counted(seen, method, LLAVA_15_7B)
    assert found["mean_image_tokens"].value == 110
    assert "realised" in found["mean_image_tokens"].convention
    fixed = counted(seen, create("fastervlm", keep=110), LLAVA_15_7B)
    ratio = found["prefill_flops"].value / fixed["prefill_flops"].value
    assert ratio == pytest.approx(1, rel=1e-3)


def test_where_no_number_was_reported_none_is_given():
    found = counted(rows({}, {}), create("prumerge", plus=True), LLAVA_15_7B)
    assert not found.keys() & {"mean_image_tokens", "prefill_flops"}
    assert counted(rows({}), create("fastervlm"), LLAVA_15_7B)["mean_image_tokens"].value == 144
