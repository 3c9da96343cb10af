"""Training for every rate: drawn rates, exact shares, an order that no common shift can move."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava.engine.masked_softmax import policy_attention
from dynllava.errors import UserError
from dynllava.methods.predictors import ImagePredictor, OutputPredictor, RateShift
from dynllava.models.loading import load_model
from dynllava.training.config import read_config
from dynllava.training.elastic import anchor_loss, drawn_rates, top_share
from dynllava.training.gumbel import SampleNoise
from dynllava.training.policy import SparsityTargets
from dynllava.training.run import train

RANGES = {"vision_keep_rates": [0.1, 0.8], "output_keep_rates": [0.3, 0.7]}


def noise_of(rows, columns, seed=0):
    return SampleNoise(seed, 0, range(rows)).gumbel("image", columns, torch.device("cpu"))


@given(
    seed=st.integers(0, 999),
    columns=st.integers(1, 40),
    rates=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_every_row_keeps_exactly_its_share(seed, columns, rates):
    generator = torch.Generator().manual_seed(seed)
    rows = len(rates)
    logits = torch.randn(rows, columns, 2, generator=generator)
    decided = torch.rand(rows, columns, generator=generator) < 0.7
    rate = torch.tensor(rates)
    noise = noise_of(rows, columns, seed)
    mask = top_share(logits, noise, decided, rate, 0.5)
    noisy = (logits + noise)[..., 0] - (logits + noise)[..., 1]
    for row in range(rows):
        count = int(decided[row].sum())
        wanted = max(1, round(rates[row] * count)) if count else 0
        kept = mask[row][decided[row]]
        assert set(kept.tolist()) <= {0.0, 1.0}
        assert abs(int(kept.sum()) - wanted) <= (abs(rates[row] * count % 1 - 0.5) < 1e-4)
        best = noisy[row][decided[row]].sort(descending=True).values
        if count and 0 < kept.sum() < count:
            number = int(kept.sum())
            assert noisy[row][decided[row]][kept == 0].max() <= best[number - 1]


def test_raising_all_margins_of_a_row_is_no_gradient():
    torch.manual_seed(0)
    logits = torch.randn(3, 12, 2, requires_grad=True)
    decided = torch.ones(3, 12, dtype=torch.bool)
    decided[1, 5:] = False
    mask = top_share(logits, noise_of(3, 12), decided, torch.tensor([0.2, 0.5, 0.9]), 1.0)
    (mask * torch.rand(3, 12) * decided).sum().backward()
    margin_gradient = logits.grad[..., 0] * decided
    assert margin_gradient.abs().max() > 1e-3
    torch.testing.assert_close(margin_gradient.sum(1), torch.zeros(3), atol=1e-6, rtol=0)
    # Two tokens of one row: what raises one lowers the other.
    assert not logits.grad[1, 5:].any()


def test_the_anchor_holds_the_mean_margin_of_the_rows_that_train():
    logits = torch.zeros(3, 4, 2)
    logits[0, :, 0], logits[1, :, 0] = 2.0, 4.0
    logits[0, 3, 0] = 100.0
    decided = torch.ones(3, 4, dtype=torch.bool)
    decided[0, 3] = False
    rows = torch.tensor([True, False, True])
    assert anchor_loss(logits, decided, rows).item() == pytest.approx(4.0 / 2)


def test_rates_are_log_uniform_within_their_range():
    uniform = (np.arange(10_000) + 0.5) / 10_000
    rates = drawn_rates([0.1, 0.8], uniform)
    assert rates.min() >= 0.1
    assert rates.max() <= 0.8
    assert rates.median().item() == pytest.approx((0.1 * 0.8) ** 0.5, rel=1e-3)


def test_a_told_rate_changes_nothing_at_first_and_shifts_rows_by_themselves():
    shift = RateShift(3)
    x = torch.randn(2, 5, 3)
    assert torch.equal(shift(x, 0.3), x)
    with torch.no_grad():
        shift.weight[0], shift.weight[1] = 2.0, 1.0
    moved = shift(x, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(moved[0], x[0] + 2.0)
    torch.testing.assert_close(moved[1], x[1] + 1.0 + float(np.log(0.5)))
    told = OutputPredictor(8, 8, told_rate=True)
    with pytest.raises(ValueError, match="told the keep rate"):
        told(torch.randn(1, 2, 8))
    plain = ImagePredictor(8, 8, 2, 16, 1)
    hidden = torch.randn(1, 4, 8)
    assert torch.equal(plain(hidden), plain(hidden, rate=0.1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"elastic": "rank"}, "together with a range"),
        ({"vision_keep_rates": [0.1, 0.8]}, "together with a range"),
        ({"elastic": "all", **RANGES}, "elastic='all': accepted are none, rank, condition"),
        ({"elastic": "rank", "vision_keep_rates": [0.8, 0.1]}, "0 < low < high < 1"),
        ({"elastic": "rank", "vision_keep_rates": [0.1]}, "0 < low < high < 1"),
        ({"elastic": "rank", "vision_keep_rates": ["a", "b"]}, "0 < low < high < 1"),
        ({"gradient": "steep"}, "accepted are slope, bounded, bounded_output"),
        ({"gradient": "bounded", "masking": "zero"}, "accepted is masking=softmax"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        SparsityTargets(**values).validate()


@pytest.mark.parametrize("elastic", ["rank", "condition"])
def test_a_run_of_drawn_rates_trains_and_loads(tiny_config, elastic):
    ranges = [f"sparsity.{name}={value}" for name, value in RANGES.items()]
    whole = train(tiny_config(f"sparsity.elastic={elastic}", *ranges), log=False)
    stored = json.loads((whole / "config.json").read_text())["sparse_config"]
    assert stored["elastic"] == elastic
    assert stored["vision_keep_rates"] == RANGES["vision_keep_rates"]
    model, _ = load_model(str(whole))
    told = elastic == "condition"
    assert (model.image_predictor.rate_shift is not None) == told
    assert (model.output_predictor.rate_shift is not None) == told
    if told:
        assert model.image_predictor.rate_shift.weight.abs().max() > 0


def test_the_bounded_gradient_is_what_keeping_a_key_changes():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    key[:, :, 3] *= 40  # a key that would win whole rows
    upstream = torch.randn(1, 2, 9, 4, dtype=torch.float64)
    policy = torch.ones(1, 9, dtype=torch.float64)
    policy[0, [1, 3]] = 0
    slopes = {}
    for bounded in (False, True):
        leaf = policy.clone().requires_grad_()
        keys = torch.ones(1, 9, dtype=torch.bool) if bounded else None
        out = policy_attention(query, key, value, leaf, 0.5, bounded=keys)
        (out * upstream).sum().backward()
        slopes[bounded] = leaf.grad[0]
    before = policy_attention(query, key, value, policy, 0.5)
    for token in (1, 3):
        kept = policy.clone()
        kept[0, token] = 1
        change = ((policy_attention(query, key, value, kept, 0.5) - before) * upstream).sum()
        assert slopes[True][token].item() == pytest.approx(change.item(), rel=1e-5)
    assert slopes[False][3].abs() > 100 * slopes[True][3].abs()
    rest = [0, 2, 4, 5, 6, 7, 8]
    torch.testing.assert_close(slopes[True][rest], slopes[False][rest])
    leaf, one = policy.clone().requires_grad_(), torch.arange(9)[None] == 3
    (policy_attention(query, key, value, leaf, 0.5, bounded=one) * upstream).sum().backward()
    assert leaf.grad[0, 3] == slopes[True][3]
    assert leaf.grad[0, 1] == slopes[False][1]


def test_the_shipped_configuration_is_the_recipe_but_for_its_rates():
    elastic, fixed = read_config("embedded-elastic"), read_config("embedded")
    assert elastic.optim == fixed.optim
    assert elastic.run.max_steps == 2 * fixed.run.max_steps
    assert (elastic.sparsity.elastic, elastic.sparsity.gradient) == ("rank", "bounded_output")
