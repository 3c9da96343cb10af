"""Gumbel sampling, schedules, loss terms and the training policy."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava.engine.stream import Segment, align_left
from dynllava.errors import UserError
from dynllava.methods.predictors import ImagePredictor, OutputPredictor
from dynllava.training.gumbel import RecordedNoise, SampleNoise, gumbel_keep
from dynllava.training.losses import keep_rate_loss, language_loss
from dynllava.training.policy import SparsityTargets, TrainingPolicy
from dynllava.training.schedules import gumbel_tau

CPU = torch.device("cpu")
WIDTH = 8


def test_forward_is_exactly_hard_and_backward_is_that_of_the_soft_sample():
    logits = torch.randn(50, 2, requires_grad=True)
    noise = SampleNoise(0, 0, [0]).gumbel("image", 50, CPU)[0]
    mask = gumbel_keep(logits, noise, tau=0.7)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    weight = torch.randn(50)
    (mask * weight).sum().backward()
    twin = logits.detach().clone().requires_grad_()
    soft = ((twin.log_softmax(-1) + noise) / 0.7).softmax(-1)[:, 0]
    (soft * weight).sum().backward()
    torch.testing.assert_close(logits.grad, twin.grad)
    assert torch.equal(mask, (soft >= 0.5).float())


def test_noise_is_added_before_the_temperature():
    logits, noise = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    twin = logits.clone().requires_grad_()
    gumbel_keep(twin, noise, tau=0.5).sum().backward()
    keep = torch.sigmoid(torch.tensor(1.0 / 0.5))  # (0 + 1 - 0 - 0) / tau
    torch.testing.assert_close(twin.grad[0, 0], keep * (1 - keep) / 0.5)


def test_noise_depends_on_seed_step_and_sample_only():
    together = SampleNoise(1, 5, [7, 9]).gumbel("image", 6, CPU)
    alone = SampleNoise(1, 5, [9]).gumbel("image", 4, CPU)
    assert torch.equal(together[1, :4], alone[0])
    for other in (SampleNoise(2, 5, [9]), SampleNoise(1, 6, [9]), SampleNoise(1, 5, [8])):
        assert not torch.equal(other.gumbel("image", 4, CPU), alone)
    assert not torch.equal(SampleNoise(1, 5, [9]).gumbel("output", 4, CPU), alone)


def test_noise_is_standard_gumbel():
    noise = SampleNoise(0, 0, [0]).gumbel("image", 50_000, CPU)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


@given(st.integers(1, 10**6), st.data())
@settings(max_examples=30, deadline=None)
def test_tau_falls_from_start_to_end(steps, data):
    step = data.draw(st.integers(0, steps - 1))
    assert gumbel_tau(0, steps) == 1.0
    assert gumbel_tau(steps, steps) == pytest.approx(0.1)
    assert gumbel_tau(step, steps) > gumbel_tau(step + 1, steps) > 0.099


def test_keep_rate_loss_is_a_squared_error_per_sample():
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    counted = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    rows = torch.tensor([True, True, False])
    # Row 1 has nothing to count but stays in the mean; row 2 does not train the predictor.
    loss = keep_rate_loss(mask, counted, 0.2, rows)
    assert loss.item() == pytest.approx((0.5 - 0.2) ** 2 / 2)
    assert keep_rate_loss(mask, counted, 0.2, rows & False).item() == 0


def test_language_loss_is_the_mean_over_labelled_positions():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, -100, -100]])
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(language_loss(logits, labels), expected)
    nothing = language_loss(logits, torch.full_like(labels, -100))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def context(segments, labels, seed=0):
    """Rows of segment letters (i image, t text, o answer, . padding) as a decoder context."""
    torch.manual_seed(seed)
    letters = {"i": Segment.IMAGE, "t": Segment.TEXT, "o": Segment.TEXT, ".": Segment.PAD}
    kinds = torch.tensor([[int(letters[x]) for x in row] for row in segments])
    hidden = torch.randn(*kinds.shape, WIDTH)
    start = torch.zeros(len(segments), dtype=torch.int64)
    predictors = {"image": ImagePredictor(WIDTH, 8, 2, 16, 1), "output": OutputPredictor(WIDTH, 8)}
    return SimpleNamespace(
        stream=align_left(hidden, kinds != Segment.PAD, kinds, start),
        predictors=predictors,
        predictor=predictors.__getitem__,
    ), torch.tensor([[5 if x == "o" else -100 for x in row] for row in labels])


def build(rows, dense=None, **targets):
    ctx, labels = context(rows, rows)
    noise = SampleNoise(0, 0, range(len(rows)))
    policy = TrainingPolicy(SparsityTargets(**targets), 1.0, labels, noise, dense)
    return policy, policy.build(ctx), ctx


def test_only_image_tokens_and_long_answers_are_decided():
    rows = ["tiiiitoooooo", "tiiiittto...", "tttttoooooo."]
    policy, keys, _ = build(rows, min_answer_length=3)
    assert policy.image.decided.tolist() == [[True] * 4, [True] * 4, [False] * 4]
    assert policy.output.decided.tolist() == [[True] * 6, [False] * 6, [False] * 6]
    free = torch.tensor([[x not in "io" for x in row] for row in rows])
    free[1, 8] = True  # an answer shorter than LEN_OT
    free[2] = True  # a text-only record
    assert (keys[free] == 1).all()
    assert policy.output.mask[0].tolist() == keys[0, 6:].tolist()
    assert policy.image.mask[:2].tolist() == keys[:2, 1:5].tolist()


def test_last_answer_or_all_answers():
    rows = ["iitooottoooo"]
    last, _, _ = build(rows, min_answer_length=3)
    assert last.output.decided.sum() == 4
    every, keys, _ = build(rows, min_answer_length=3, answers="all")
    assert every.output.decided.sum() == 7
    assert (keys[0, 6:8] == 1).all()
    long, _, _ = build(rows, min_answer_length=4, answers="all")
    assert long.output.decided[0].tolist() == [False] * 3 + [True] * 4


def test_dense_rows_are_not_masked_and_cost_nothing():
    rows = ["iiiioooo", "iiiioooo"]
    policy, keys, _ = build(rows, torch.tensor([True, True]), min_answer_length=1)
    assert (keys == 1).all()
    assert float(policy.mask_loss()) == 0
    one, keys, _ = build(rows, torch.tensor([True, False]), min_answer_length=1)
    assert (keys[0] == 1).all()
    assert one.image.decided.any(1).tolist() == [False, True]


def test_rate_one_leaves_a_predictor_out():
    policy, keys, _ = build(["iiiioooo"], vision_keep_rate=1.0, min_answer_length=1)
    assert policy.image is None
    assert (keys[0, :4] == 1).all()
    policy, keys, _ = build(["iiiioooo"], output_keep_rate=1.0)
    assert policy.output is None
    assert (keys[0, 4:] == 1).all()


def test_every_predictor_parameter_gets_a_gradient_even_from_text_only_batches():
    """Sharded and data-parallel runs need all parameters in every batch."""
    policy, keys, ctx = build(["tttooo", "tttto."], min_answer_length=1)
    (keys.sum() + policy.mask_loss()).backward()
    for predictor in (ctx.predictors["image"], ctx.predictors["output"]):
        for parameter in predictor.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()


def test_gradients_reach_the_predictors_through_the_policy():
    _, keys, ctx = build(["iiiitoooooo"], min_answer_length=1)
    (keys * torch.randn(keys.shape)).sum().backward()
    for predictor in (ctx.predictors["image"], ctx.predictors["output"]):
        assert any(parameter.grad.any() for parameter in predictor.parameters())


def test_without_masked_softmax_hidden_states_are_multiplied():
    rows = ["iiiitoooooo"]
    ctx, labels = context(rows, rows)
    before = ctx.stream.hidden
    policy = TrainingPolicy(
        SparsityTargets(min_answer_length=1, masking="zero"), 1.0, labels, SampleNoise(0, 0, [0])
    )
    assert policy.build(ctx) is None
    torch.testing.assert_close(ctx.stream.hidden, before * policy.policy[..., None])
    assert (policy.policy == 0).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vision_keep_rate", 0.0),
        ("output_keep_rate", float("nan")),
        ("answers", "first"),
        ("masking", "drop"),
        ("mask_loss_weight", -1),
        ("min_answer_length", "long"),
        ("dense_share", 2.0),
    ],
)
def test_impossible_targets_are_named(name, value):
    with pytest.raises(UserError, match=name):
        SparsityTargets(**{name: value}).validate()


def test_recorded_noise_of_another_size_is_refused():
    with pytest.raises(ValueError, match="3 tokens, not 4"):
        RecordedNoise(image=torch.zeros(1, 3, 2)).gumbel("image", 4, CPU)
