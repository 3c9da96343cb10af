"""Limits in wrapped models: newline tokens of a picture are kept, and counted as such."""

from __future__ import annotations

import pytest
from tiny_families import FAMILIES, batch

from dynllava import wrap


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_wrapped_model_stays_within_its_limit(name):
    stock = FAMILIES[name].build()
    model = wrap(stock, "fastv:k=1")
    inputs = batch(stock, FAMILIES[name], [[(32, 64), (64, 32)], [(64, 64)], []])
    model.set_method("full")
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    dense = model.last_report.kv_bytes
    model.set_method("fastv:k=1")
    for share in (0.8, 0.9):
        model.set_limits(kv_bytes=share * dense)
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        report = model.last_report
        assert report.kv_bytes <= report.chosen.kv_bytes <= share * dense
        assert not report.chosen.highest
