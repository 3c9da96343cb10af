"""Attention under a differentiable key policy (MaskedSoftmax, Eq. 7 of the Dynamic-LLaVA paper).

During training nothing is removed from the sequence: a policy ``m`` (1 keep, 0 drop, one value a
key) weights the causal softmax of the layers behind the sparse layer, and every query always sees
itself::

    P_ij = m_ij exp(s_ij - lse_i),   m_ij = policy_j for j < i,  m_ii = 1,  m_ij = 0 for j > i
    lse_i = log sum_j m_ij exp(s_ij)

Everything is computed one block of queries at a time, forward and (recomputed) backward, so that
no tensor of sequence length squared outlives a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

EXPONENT_LIMIT = math.log(1e6)
"""Largest ``s_ij - lse_i`` in the gradient of the policy.

A dropped key may exceed every kept one by any amount, and ``exp`` of that excess is its gradient:
+40 gives 2e17 and +100 overflows float32.  The epsilon of the official softmax (1e-6) bounds the
same quantity by 1e6, so the exponent is clamped there.  Policy values in (0, 1e-6) lie outside
the clamp; sampled masks are 0 or 1."""

# Scores held at a time.  Small blocks stay in a CPU's cache; a GPU wants large matmuls.
_CPU_BLOCK_ELEMENTS = 2**20
_DEVICE_BLOCK_ELEMENTS = 2**25


def policy_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    policy: torch.Tensor,
    scaling: float,
    block_size: int | None = None,
    bounded: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention whose keys are weighted by a policy, the own key always by 1.

    Rows must be left-aligned: causality hides their padding.

    Parameters
    ----------
    query : Tensor [B, H, L, d]
    key, value : Tensor [B, Hkv, L, d]
        ``H`` is a multiple of ``Hkv``.
    policy : Tensor [B, L]
        1 = keep, 0 = drop; fractions weight the key.  Gets a gradient at every position, kept or
        dropped: ``dm_j = sum over heads and i > j of exp(s_ij - lse_i) (dP_ij - D_i)`` with
        ``dP_ij = dO_i . v_j``, ``D_i = dO_i . O_i`` and the exponent clamped at
        :data:`EXPONENT_LIMIT`.
    scaling : float
        Factor of the scores, usually ``d ** -0.5``.
    block_size : int, optional
        Queries per block; chosen from the shape and device by default.  The result does not
        depend on it beyond rounding.
    bounded : Tensor [B, L] bool, optional
        Keys that, where dropped, get the gradient of what keeping them would change, instead of
        the slope at 0: ``sigmoid(s_ij - lse_i)``, the weight that they would have, in place of
        ``exp(s_ij - lse_i)``.  The slope says up to 1e6 for a key that the others need, which
        drowns all the rest; the change is at most 1.  Beyond the paper.

    Returns
    -------
    Tensor [B, H, L, d]
        In the dtype of ``value``; scores and softmax are float32 (float64 for float64 input).
    """
    batch, heads, length, _ = query.shape
    if heads % key.shape[1]:
        raise ValueError(f"{heads} query heads are no multiple of {key.shape[1]} key heads")
    if policy.shape != (batch, length):
        raise ValueError(f"policy {tuple(policy.shape)} does not fit {batch} rows of {length} keys")
    if block_size is None:
        block_size = default_block_size(batch * heads * length, query.device)
    return _PolicyAttention.apply(query, key, value, policy, scaling, block_size, bounded)


def default_block_size(scores_per_query: int, device: torch.device) -> int:
    """Return how many queries to take at once (16 to 512) for so many scores each."""
    budget = _CPU_BLOCK_ELEMENTS if device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS
    return min(512, max(16, budget // max(1, scores_per_query)))


class _PolicyAttention(torch.autograd.Function):
    """Blockwise forward and recomputing backward of :func:`policy_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        policy: torch.Tensor,
        scaling: float,
        block_size: int,
        bounded: torch.Tensor | None,
    ) -> torch.Tensor:
        grouped = _grouped(query, key.shape[1])
        dtype = _compute_dtype(query.dtype)
        keys, values = key.to(dtype), value.to(dtype)
        weights = policy.detach().to(dtype)
        output = torch.empty_like(grouped, dtype=value.dtype)
        lse = torch.empty(grouped.shape[:-1], dtype=dtype, device=query.device)
        for start, stop in _blocks(query.shape[2], block_size):
            scores = _scores(grouped[..., start:stop, :].to(dtype), keys[..., :stop, :], scaling)
            weight = _block_weights(weights, start, stop)
            scores = scores.masked_fill_(weight == 0, -math.inf)
            highest = scores.amax(-1, keepdim=True)
            numerator = scores.sub_(highest).exp_().mul_(weight)
            total = numerator.sum(-1, keepdim=True)
            block = _times_values(numerator, values[..., :stop, :]).div_(total)
            output[..., start:stop, :] = block.to(value.dtype)
            lse[..., start:stop] = (highest + total.log()).squeeze(-1)
        ctx.save_for_backward(query, key, value, policy, output, lse)
        ctx.scaling, ctx.block_size, ctx.bounded = scaling, block_size, bounded
        return output.view_as(query)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, policy, output, lse = ctx.saved_tensors
        dtype = lse.dtype
        grouped, grad = _grouped(query, key.shape[1]), _grouped(grad, key.shape[1])
        keys, values, weights = key.to(dtype), value.to(dtype), policy.to(dtype)
        grad_query = torch.empty_like(grouped)
        grad_key, grad_value = torch.zeros_like(keys), torch.zeros_like(values)
        grad_policy = torch.zeros_like(weights)
        for start, stop in _blocks(query.shape[2], ctx.block_size):
            rows = grouped[..., start:stop, :].to(dtype)
            upstream = grad[..., start:stop, :].to(dtype)
            dot = (upstream * output[..., start:stop, :]).sum(-1, keepdim=True)  # D_i
            ratio = _scores(rows, keys[..., :stop, :], ctx.scaling)
            ratio = ratio.sub_(lse[..., start:stop, None]).clamp_(max=EXPONENT_LIMIT).exp_()
            # dP_ij - D_i, then times exp(s_ij - lse_i): the policy's gradient per score.
            centred = _scores(upstream, values[..., :stop, :], 1.0).sub_(dot)
            weight = _block_weights(weights, start, stop)
            if ctx.bounded is not None:
                # exp(x) / (1 + exp(x)) instead of exp(x).
                chosen = (weight == 0) & ctx.bounded[:, None, None, None, :stop]
                share = torch.where(chosen, ratio / (1 + ratio), ratio)
                per_key = (centred * share).sum((1, 2)).tril_(start - 1).sum(1)
                centred.mul_(ratio)
            else:
                centred.mul_(ratio)
                per_key = centred.sum((1, 2)).tril_(start - 1).sum(1)  # the own key has no policy
            grad_policy[:, :stop] += per_key
            grad_scores = centred.mul_(weight).mul_(ctx.scaling)
            grad_query[..., start:stop, :] = _times_values(grad_scores, keys[..., :stop, :])
            grad_key[..., :stop, :] += _transposed_times(grad_scores, rows)
            grad_value[..., :stop, :] += _transposed_times(ratio.mul_(weight), upstream)
        return (
            grad_query.view_as(query),
            grad_key.to(key.dtype),
            grad_value.to(value.dtype),
            grad_policy.to(policy.dtype),
            None,
            None,
            None,
        )


def official_masked_softmax(
    scores: torch.Tensor, policy: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """Return the official softmax with its epsilon, kept to check recorded tensors only.

    The row maximum runs over dropped keys too and the epsilon gives every key, even a future
    one, at least about ``eps / N``; when a dropped key exceeds the rest by about 40 the row is
    uniform over all keys.  :func:`policy_attention` has neither defect.

    Parameters
    ----------
    scores : Tensor [B, H, N, N] float32
        Scaled scores plus causal bias.
    policy : Tensor [B, N]
    eps : float, default 1e-6

    Returns
    -------
    Tensor [B, H, N, N]
    """
    count = scores.shape[-1]
    own = torch.eye(count, dtype=scores.dtype, device=scores.device)
    weight = policy[:, None, None, :] * (1 - own) + own
    numerator = (scores - scores.amax(-1, keepdim=True)).exp() * weight
    return (numerator + eps / count) / (numerator.sum(-1, keepdim=True) + eps)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(length: int, block_size: int) -> list[tuple[int, int]]:
    return [(start, min(start + block_size, length)) for start in range(0, length, block_size)]


def _grouped(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """View [B, H, L, d] as [B, Hkv, H / Hkv, L, d], contiguous."""
    batch, heads, length, width = tensor.shape
    return tensor.contiguous().view(batch, groups, heads // groups, length, width)


def _block_weights(weights: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return ``m`` [B, 1, 1, stop - start, stop] of the queries ``start`` to ``stop``."""
    block = weights[:, None, :stop].repeat(1, stop - start, 1)
    block.diagonal(offset=start, dim1=1, dim2=2).fill_(1)
    return block.tril_(start)[:, None, None]


def _scores(rows: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """[B, G, g, b, d] times [B, G, n, d] to [B, G, g, b, n]: the query heads of a key share it."""
    batch, groups, shared, count, width = rows.shape
    flat = (rows * scaling).reshape(batch, groups, shared * count, width)
    return (flat @ keys.mT).view(batch, groups, shared, count, keys.shape[2])


def _times_values(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[B, G, g, b, n] times [B, G, n, d] to [B, G, g, b, d]."""
    batch, groups, shared, count, keys = scores.shape
    flat = scores.reshape(batch, groups, shared * count, keys) @ values
    return flat.view(batch, groups, shared, count, values.shape[-1])


def _transposed_times(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[B, G, g, b, n] and [B, G, g, b, d] to [B, G, n, d], summed over the shared query heads."""
    return scores.flatten(2, 3).mT @ rows.flatten(2, 3)
