"""The gradient against the change: counted as it says, and bounded where it should be."""

from __future__ import annotations

import pytest
import torch

from dynllava.models.loading import load_model
from dynllava.plan.names import FULL
from dynllava.studies.gradients import Probe, measure
from dynllava.studies.predictors import family_rows


@pytest.fixture(scope="module")
def loaded():
    model, processor = load_model("embedded", method=FULL)
    return model.requires_grad_(False), processor


def test_every_tried_token_is_counted_and_the_bound_holds(loaded):
    rows = family_rows("val", "attribute", 3)
    found = {
        kind: measure(*loaded, rows, kind, tried=5)
        for kind in ("masked softmax", "masked softmax, bounded gradient")
    }
    slope, bounded = found.values()
    assert (slope.samples, slope.tokens) == (3, 15)
    # The changes are the same; only the gradient differs.
    assert slope.mattering == bounded.mattering <= 15
    assert 0 <= bounded.interval[0] <= bounded.right_sign <= bounded.interval[1] <= 1
    assert bounded.largest < slope.largest


def test_keeping_a_token_changes_what_a_pass_with_it_says(loaded):
    probe = Probe(*loaded, family_rows("val", "attribute", 1)[0], 2)
    mask = torch.zeros(144)
    mask[:40] = 1
    more = mask.clone()
    more[100] = 1
    for kind in ("masked softmax", "hidden states times the mask"):
        change = probe.changes(mask, [100, 3], kind)
        losses = probe.losses(torch.stack([more, mask]), kind)
        assert change[0].item() == pytest.approx((losses[0] - losses[1]).item(), abs=1e-5)
        assert change[1] == pytest.approx(0, abs=1e-5)  # it was kept already
