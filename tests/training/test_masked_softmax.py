"""The masked softmax of the paper's Eq. 7 against a plain reference, and its promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dynllava.engine.masked_softmax import (
    EXPONENT_LIMIT,
    default_block_size,
    official_masked_softmax,
    policy_attention,
)

SHAPES = st.tuples(
    st.integers(1, 2), st.sampled_from([(1, 1), (4, 4), (4, 2), (3, 1)]), st.integers(1, 9)
)
QUICK = settings(max_examples=25, deadline=None)


def reference(query, key, value, policy, scaling):
    """Eq. 7 word by word, N x N, differentiated by autograd."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    length = query.shape[2]
    own = torch.eye(length, dtype=query.dtype)
    weight = (policy[:, None, None, :] * (1 - own) + own).tril()
    scores = query @ key.mT * scaling
    highest = scores.masked_fill(weight == 0, -math.inf).amax(-1, keepdim=True).detach()
    excess = (scores - highest).masked_fill(weight.new_ones(own.shape).triu(1) > 0, 0)
    numerator = weight * excess.exp()
    return numerator / numerator.sum(-1, keepdim=True) @ value


def tensors(shape, seed, dtype=torch.float64, width=5):
    batch, (heads, kv_heads), length = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, length, width, dtype=dtype, generator=generator)
    key = torch.randn(batch, kv_heads, length, width, dtype=dtype, generator=generator)
    value = torch.randn(batch, kv_heads, length, width, dtype=dtype, generator=generator)
    return query, key, value


def hard_policy(shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + 1)
    return (torch.rand(shape[0], shape[2], generator=generator) > 0.5).to(dtype)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("block", [2, 5, 64])
def test_gradcheck_with_fractional_policy(heads, block):
    query, key, value = tensors((2, heads, 5), seed=3, width=3)
    policy = torch.rand(2, 5, dtype=torch.float64) * 0.9 + 0.05
    inputs = [tensor.requires_grad_() for tensor in (query, key, value, policy)]
    assert torch.autograd.gradcheck(lambda *x: policy_attention(*x, 0.6, block), inputs)


@QUICK
@given(SHAPES, st.integers(0, 10**6), st.booleans())
def test_equals_the_plain_reference_forward_and_backward(shape, seed, hard):
    base = [*tensors(shape, seed), hard_policy(shape, seed)]
    if not hard:
        base[3] = base[3] * 0.8 + 0.1
    grad = torch.randn(base[0].shape, dtype=torch.float64)
    results = []
    for function in (reference, lambda *x: policy_attention(*x, block_size=3)):
        inputs = [tensor.clone().requires_grad_() for tensor in base]
        output = function(*inputs, 0.4)
        output.backward(grad)
        results.append([output, *(tensor.grad for tensor in inputs)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@QUICK
@given(SHAPES, st.integers(0, 10**6))
def test_all_ones_is_plain_causal_attention(shape, seed):
    query, key, value = tensors(shape, seed)
    expected = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    )
    actual = policy_attention(query, key, value, torch.ones(shape[0], shape[2]), 0.3)
    torch.testing.assert_close(actual, expected)


@QUICK
@given(SHAPES, st.integers(0, 10**6))
def test_dropped_keys_are_as_good_as_removed(shape, seed):
    query, key, value = (tensor[:1] for tensor in tensors(shape, seed))
    policy = hard_policy(shape, seed)[:1]
    output = policy_attention(query, key, value, policy, 0.3)
    for row in range(shape[2]):
        seen = [j for j in range(row) if policy[0, j]] + [row]
        expected = functional.scaled_dot_product_attention(
            query[:, :, row : row + 1],
            key[:, :, seen],
            value[:, :, seen],
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(output[:, :, row : row + 1], expected)


@QUICK
@given(SHAPES, st.integers(0, 10**6), st.data())
def test_no_future_leak(shape, seed, data):
    query, key, value = tensors(shape, seed)
    policy = hard_policy(shape, seed)
    cut = data.draw(st.integers(0, shape[2] - 1))
    before = policy_attention(query, key, value, policy, 0.3, 4)
    query[:, :, cut + 1 :], key[:, :, cut + 1 :], value[:, :, cut + 1 :] = 9, -9, 1e6
    policy[:, cut + 1 :] = 1 - policy[:, cut + 1 :]
    after = policy_attention(query, key, value, policy, 0.3, 4)
    torch.testing.assert_close(after[:, :, : cut + 1], before[:, :, : cut + 1])


@QUICK
@given(SHAPES, st.integers(0, 10**6), st.integers(1, 12))
def test_block_size_does_not_matter(shape, seed, block):
    base = [*tensors(shape, seed), hard_policy(shape, seed)]
    results = []
    for size in (block, 64):
        inputs = [tensor.clone().requires_grad_() for tensor in base]
        output = policy_attention(*inputs, 0.5, size)
        output.square().sum().backward()
        results.append([output, *(tensor.grad for tensor in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_kept_and_dropped_positions_both_get_a_gradient():
    query, key, value = tensors((1, (2, 2), 6), seed=0)
    policy = torch.tensor([[1.0, 0, 1, 0, 1, 0]], dtype=torch.float64, requires_grad=True)
    policy_attention(query, key, value, policy, 0.5).square().sum().backward()
    assert (policy.grad[0, :-1] != 0).all()
    assert policy.grad[0, -1] == 0  # only its own query sees the last key, whatever the policy


@pytest.mark.parametrize("excess", [40.0, 100.0, 110.0, 300.0, 3000.0])
def test_a_dropped_key_far_above_the_rest_keeps_a_bounded_gradient(excess):
    query = torch.ones(1, 1, 3, 1)
    key = torch.tensor([excess, 0.0, 0.0]).view(1, 1, 3, 1).requires_grad_()
    value = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 3, 1)
    policy = torch.tensor([[0.0, 1.0, 1.0]], requires_grad=True)
    output = policy_attention(query, key, value, policy, 1.0)
    torch.testing.assert_close(output.flatten(), torch.tensor([1.0, 2.0, 3.0]))
    output.sum().backward()
    # Both later queries are at the bound: 1e6 x (v_0 - O_1) + 1e6 x (v_0 - O_2).
    expected = math.exp(EXPONENT_LIMIT) * ((1 - 2) + (1 - 3))
    torch.testing.assert_close(policy.grad[0, 0].item(), expected, rtol=1e-5, atol=0)
    assert key.grad[0, 0, 0, 0] == 0
    assert torch.isfinite(key.grad).all()


def test_half_precision_is_close_to_float32():
    query, key, value = tensors((2, (4, 2), 33), seed=5, dtype=torch.float32, width=16)
    policy = hard_policy((2, None, 33), 5, torch.float32)
    exact = policy_attention(query, key, value, policy, 0.25)
    low = policy_attention(*(x.bfloat16() for x in (query, key, value)), policy, 0.25)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.03, atol=0.03)


def test_no_square_tensor_is_kept_for_backward():
    query, key, value = (tensor.requires_grad_() for tensor in tensors((1, (1, 1), 96), 0, width=2))
    policy = torch.ones(1, 96, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.numel()) or x, lambda x: x
    ):
        policy_attention(query, key, value, policy, 1.0)
    assert max(saved) <= 96 * 2


def test_shapes_that_do_not_fit_are_refused():
    query, key, value = tensors((1, (3, 2), 4), 0)
    with pytest.raises(ValueError, match="no multiple"):
        policy_attention(query, key, value, torch.ones(1, 4), 1.0)
    with pytest.raises(ValueError, match="does not fit"):
        policy_attention(key, key, value, torch.ones(1, 5), 1.0)


def test_block_size_is_bounded():
    cpu = torch.device("cpu")
    assert default_block_size(1, cpu) == 512
    assert default_block_size(10**9, cpu) == 16


def test_official_softmax_has_the_leak_that_ours_has_not():
    scores = torch.zeros(1, 1, 3, 3).masked_fill(torch.ones(3, 3).triu(1) > 0, -math.inf)
    scores[..., 0] += 60
    weights = official_masked_softmax(scores, torch.tensor([[0.0, 1.0, 1.0]]))
    torch.testing.assert_close(weights[0, 0, 1], torch.full((3,), 1 / 3))
