"""What a layer would attend to at its own input: a few query rows, its own norm and projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .attention import per_query_head, softmax_weights
from .stream import TokenStream, take_rows


def own_attention(
    layer: nn.Module,
    stream: TokenStream,
    rows: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return the attention probabilities of query rows, float32 [B, H, R, L].

    Parameters
    ----------
    layer : Module
        Stock decoder layer.
    stream : TokenStream
        Its input.
    rows : Tensor [B, R] int64
        Query rows.
    tables : tuple of Tensor [B, L, d]
        Rotary cosines and sines of the stream's positions.
    """
    attention: Any = layer.self_attn
    hidden = layer.input_layernorm(stream.hidden)
    rows = rows.to(hidden.device)
    cos, sin = (part.to(hidden.device) for part in tables)
    query = _heads(attention, attention.q_proj(take_rows(hidden, rows)), "q_norm")
    key = _heads(attention, attention.k_proj(hidden), "k_norm")
    query = _rotated(query, take_rows(cos, rows), take_rows(sin, rows))
    key = per_query_head(_rotated(key, cos, sin), query.shape[1])
    visible = torch.arange(key.shape[2], device=hidden.device) <= rows[:, :, None]
    return softmax_weights(query, key, attention.scaling, mask=visible[:, None])


def _heads(attention: Any, projected: torch.Tensor, norm: str) -> torch.Tensor:
    """Return [B, H, R, d] of projected rows [B, R, H d], normalised where the model does so."""
    split = projected.unflatten(-1, (-1, attention.head_dim))
    own = getattr(attention, norm, None)
    return (split if own is None else own(split)).transpose(1, 2)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
