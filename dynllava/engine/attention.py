"""The one attention function of dynllava, registered under its own name.

Stock attention modules hand it q, k and v after RoPE.  It stores K/V, attends through a
standard kernel (sdpa, eager, flash) and adds only what a method asked to observe: a few query rows,
column sums, or the training policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from dynllava.errors import UserError
from dynllava.plan import QUERY_BLOCK

from . import flash

if TYPE_CHECKING:
    from .cache import LayerStore

NAME = "dynllava"
KERNELS = ("sdpa", "eager", flash.NAME)
FLOAT_PRODUCTS = "dtype" in torch.ops.aten.bmm.overloads()


@dataclass
class Probe:
    """What must be observed in one layer's attention; nothing else is computed.

    Attributes
    ----------
    query_rows : Tensor [B, R] int64 or None
        Query rows whose softmax probabilities over all keys are wanted.  Observed as
        ``rows`` float32 [B, H, R, L].  While decoding, rows count this call's tokens and L covers
        the cached entries, then this call's tokens.
    column_sums : bool
        Sum over the valid queries of the causal attention, per head.  Observed as ``sums``
        float32 [B, H, L].
    keys : bool
        The rotated keys as they are, observed as ``keys`` [B, Hkv, L, d].
    sizes : tuple of int
        How the query rows divide among those who asked.
    asked : bool
        Whether a cut asked (a store that evicts needs column sums of its own).
    """

    query_rows: torch.Tensor | None = None
    column_sums: bool = False
    keys: bool = False
    sizes: tuple[int, ...] = ()
    asked: bool = False


@dataclass
class Observed:
    """What a :class:`Probe` saw (see there for shapes).

    ``output`` [B, H, L, d] is the attention's output, where the column sums brought it along.
    """

    rows: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    output: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    def received(self) -> torch.Tensor:
        """Return the column sums [B, H, L] that the probe asked for."""
        assert self.sums is not None
        return self.sums


@dataclass
class PromptCall:
    """What one layer's attention must do with a prompt: the keys are this call's own.

    Attributes
    ----------
    kernel : str
        One of :data:`KERNELS`.
    position : Tensor [B, L] int64
        Rotary positions that queries and keys were given.
    rotary : callable
        ``rotary(x, position_ids) -> (cos, sin)``.
    length : Tensor [B] int64
        Valid tokens of this call per row.
    store : LayerStore or None
        Where K/V goes; None without a cache.
    mask : Tensor bool, broadcastable to [B, H, L, L], or None
        Visible keys; None = causal.
    probe, observed : Probe or None, Observed or None
        What to observe, and what was observed.
    policy : Tensor [B, L] float or None
        Training's key policy (masked softmax, paper Eq. 7).
    bounded : Tensor [B, L] bool or None
        Keys whose gradient is bounded where the policy drops them.
    """

    kernel: str
    position: torch.Tensor
    rotary: Rotary
    length: torch.Tensor
    store: LayerStore | None = None
    mask: torch.Tensor | None = None
    probe: Probe | None = None
    policy: torch.Tensor | None = None
    bounded: torch.Tensor | None = None
    observed: Observed | None = None

    def received(self) -> torch.Tensor:
        """Return :meth:`Observed.received` of this call."""
        assert self.observed is not None
        return self.observed.received()


@dataclass
class StepCall:
    """What one layer's attention must do with one further token a row.

    ``places`` say where the new entries go ([B * Hkv] int64 of :func:`.cache.places`, or the slots
    of every row and head; None: the store knows it),
    ``mask`` hides cached entries (None = all are visible), ``span`` is the number of entries looked
    at; the rest as in :class:`PromptCall`.
    """

    kernel: str
    position: torch.Tensor
    rotary: Rotary
    store: LayerStore
    places: torch.Tensor | slice | None = None
    mask: torch.Tensor | None = None
    span: int = 0
    probe: Probe | None = None
    observed: Observed | None = None

    def on(self, device: torch.device) -> None:
        """Move what the kernel reads to the layer's device."""
        _move(self, device)


@dataclass
class ExtendCall:
    """What one layer's attention must do with several further tokens a row.

    ``length`` [B] are the valid ones; the rest as in :class:`StepCall`.
    """

    kernel: str
    position: torch.Tensor
    rotary: Rotary
    length: torch.Tensor
    store: LayerStore
    places: torch.Tensor | slice | None = None
    mask: torch.Tensor | None = None
    span: int = 0
    probe: Probe | None = None
    observed: Observed | None = None

    def on(self, device: torch.device) -> None:
        """Move what the kernel reads to the layer's device."""
        _move(self, device)


def _move(call: StepCall | ExtendCall, device: torch.device) -> None:
    if isinstance(call.places, torch.Tensor):
        call.places = call.places.to(device)
    if call.mask is not None:
        call.mask = call.mask.to(device)


LayerCall = PromptCall | StepCall | ExtendCall
Rotary = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def check_kernel(name: str | None) -> str:
    """Return the attention kernel ``name``, refusing what the decoder cannot use."""
    name = name or "sdpa"
    if name not in KERNELS:
        raise UserError(f"attn_implementation={name!r}: accepted are {', '.join(KERNELS)}")
    return name


def register() -> None:
    """Register the attention function with transformers (idempotent)."""
    AttentionInterface.register(NAME, sparse_attention)


def sparse_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sparse_call: LayerCall | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as ``sparse_call`` says.

    Parameters
    ----------
    module : Module
        The stock attention module.
    query : Tensor [B, H, q, d]
        After RoPE.
    key, value : Tensor [B, Hkv, q, d]
        After RoPE.
    attention_mask : None
        Unused: the call carries the mask.
    scaling : float
        Softmax scale.
    dropout : float
        Attention dropout (prompt phase).
    sparse_call : LayerCall
        Set by the decoder.

    Returns
    -------
    tuple
        Output [B, q, H, d] and None.
    """
    call = sparse_call
    if call is None:
        raise RuntimeError("this attention runs inside dynllava's decoder only")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(call, PromptCall):
        out = _prompt(query, key, value, scaling, dropout, call)
    else:
        call.on(query.device)
        if isinstance(call, StepCall):
            out = call.store.step(query, key, value, scaling, call)
        else:
            out = call.store.extend(query, key, value, scaling, call)
    return out.transpose(1, 2).contiguous(), None


def _prompt(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    dropout: float,
    call: PromptCall,
) -> torch.Tensor:
    if call.policy is not None:
        # Training imports inference nowhere; the seam is this one lazily imported function.
        from .masked_softmax import policy_attention

        policy = call.policy.to(query.device)
        bounded = None if call.bounded is None else call.bounded.to(query.device)
        return policy_attention(query, key, value, policy, scaling, bounded=bounded)
    if call.probe is not None:
        own_mask = call.mask is not None or (call.store is not None and call.store.masks_prompt)
        call.observed = observe(
            query,
            key,
            call.probe,
            scaling,
            call.length.to(query.device),
            None if own_mask else value,
        )
    if call.store is not None:
        call.store.fill_prompt(key, value, call)
    if call.observed is not None and call.observed.output is not None:
        return call.observed.output
    mask = None if call.mask is None else call.mask.to(query.device)
    if call.kernel == flash.NAME and mask is None:
        return flash.prompt(query, key, value, scaling, dropout)
    return attend(query, key, value, scaling, mask=mask, causal=mask is None, kernel=call.kernel)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    kernel: str = "sdpa",
) -> torch.Tensor:
    """Plain attention with grouped-query support.

    Parameters
    ----------
    query : Tensor [B, H, q, d]
    key, value : Tensor [B, Hkv, k, d]
    scaling : float
        Softmax scale.
    mask : Tensor bool, broadcastable to [B, 1, q, k], optional
        True = visible.
    causal : bool
        Lower-triangular visibility (q == k).
    kernel : str
        ``"eager"`` computes the softmax explicitly in float32, anything else uses sdpa.

    Returns
    -------
    Tensor [B, H, q, d]
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.shape[2] == 1:
        # One query token: its heads become queries of their key/value head, nothing is copied.
        batch, heads, _, dim = query.shape
        packed = query.reshape(batch, heads // groups, groups, dim)
        out = attend(packed, key, value, scaling, mask=mask, kernel=kernel)
        return out.reshape(batch, heads, 1, dim)
    if groups > 1:
        key, value = per_query_head(key, query.shape[1]), per_query_head(value, query.shape[1])
    if kernel == "eager":
        weights = softmax_weights(query, key, scaling, mask=mask, causal=causal)
        return weights.to(query.dtype) @ value
    causal = causal and query.shape[2] > 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling
    )


def softmax_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    first_row: int = 0,
) -> torch.Tensor:
    """Return float32 attention probabilities [B, H, q, k]; heads of q and k already match.

    ``first_row`` is the row number of the first query, for blocks of a causal square.
    """
    scores = exact_scores(query, key, scaling)
    if causal:
        rows = torch.arange(query.shape[2], device=query.device) + first_row
        columns = torch.arange(key.shape[2], device=query.device)
        scores = scores.masked_fill(columns[None, :] > rows[:, None], float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


def exact_scores(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return float32 scores ``scaling * q.k`` [..., q, k] that were never rounded to half.

    Unscaled products of float16 may overflow, and rounded ones change which entries a method
    keeps.  On a GPU half-precision products are summed and returned in float32 by the matrix
    multiplication itself; elsewhere the operands are converted.
    """
    keys = key.transpose(-1, -2)
    if not _half_products(query):
        return (query.float() * scaling) @ keys.float()
    flat = torch.bmm(query.flatten(0, -3), keys.flatten(0, -3), out_dtype=torch.float32)
    return flat.mul_(scaling).view(*query.shape[:-1], keys.shape[-1])


def _half_products(query: torch.Tensor) -> bool:
    """Return whether half precision can be multiplied into float32 as it is.

    That needs a GPU and torch >= 2.8, and has neither a gradient nor a lowering in every compiler.
    """
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    return FLOAT_PRODUCTS and query.is_cuda and query.dtype in flash.DTYPES and eager


def observe(
    query: torch.Tensor,
    key: torch.Tensor,
    probe: Probe,
    scaling: float,
    length: torch.Tensor,
    value: torch.Tensor | None = None,
) -> Observed:
    """Compute what ``probe`` asks for, never a full attention matrix.

    Parameters
    ----------
    query : Tensor [B, H, L, d]
    key : Tensor [B, Hkv, L, d]
    length : Tensor [B] int64
        Valid tokens per row; padded queries are left out of the column sums.
    value : Tensor [B, Hkv, L, d], optional
        Where given, column sums bring the attention's output along.
    """
    own, key = key, per_query_head(key, query.shape[1])
    rows = sums = output = None
    if probe.query_rows is not None:
        index = probe.query_rows.to(query.device)
        chosen = query.gather(
            2, index[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
        )
        visible = torch.arange(key.shape[2], device=query.device) <= index[:, :, None]
        rows = softmax_weights(chosen, key, scaling, mask=visible[:, None])
    if probe.column_sums:
        value = None if value is None else per_query_head(value, query.shape[1])
        sums, output = summed_attention(query, key, value, scaling, length)
    return Observed(rows, sums, output, own if probe.keys else None)


def per_query_head(entries: torch.Tensor, heads: int) -> torch.Tensor:
    """Return keys or values [B, Hkv, L, d] once for each of ``heads`` query heads."""
    groups = heads // entries.shape[1]
    return entries.repeat_interleave(groups, 1) if groups > 1 else entries


def observe_cached(
    query: torch.Tensor,
    key: torch.Tensor,
    probe: Probe,
    scaling: float,
    mask: torch.Tensor | None,
) -> Observed:
    """Compute the query rows that ``probe`` asks for in a call on a cache.

    Parameters
    ----------
    query : Tensor [B, H, q, d]
    key : Tensor [B, Hkv, keys, d]
        Cached entries and this call's tokens.
    mask : Tensor bool, broadcastable to [B, 1, q, keys], or None
        True = visible.
    """
    heads = query.shape[1]
    key = per_query_head(key, heads)
    if probe.query_rows is None:
        return Observed()
    index = probe.query_rows.to(query.device)[:, None, :, None]
    chosen = query.gather(2, index.expand(-1, heads, -1, query.shape[-1]))
    if mask is not None:
        mask = mask.expand(query.shape[0], -1, query.shape[2], -1)
        mask = mask.gather(2, index.expand(-1, mask.shape[1], -1, mask.shape[-1]))
    return Observed(rows=softmax_weights(chosen, key, scaling, mask=mask))


def summed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    scaling: float,
    length: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the causal attention's column sums, and its output where values are given.

    Works in blocks of :data:`QUERY_BLOCK` queries: memory grows with L, not with its square.
    The probabilities are formed anyway, so the output costs one product more, which is less than
    a second, fused pass.

    Parameters
    ----------
    query, key : Tensor [B, H, L, d]
    value : Tensor [B, H, L, d] or None
    scaling : float
        Softmax scale.
    length : Tensor [B] int64
        Valid tokens per row; padded queries are left out of the sums.

    Returns
    -------
    tuple
        Sums [B, H, L] float32; output [B, H, L, d] in the query's dtype, or None.
    """
    batch, heads, count, dim = query.shape
    query, keys = query.reshape(-1, count, dim), key.reshape(-1, count, dim)
    if not _half_products(query):
        keys = keys.float()
    total = query.new_zeros(batch * heads, 1, count, dtype=torch.float32)
    real = (torch.arange(count, device=query.device) < length[:, None]).float()
    real = real.repeat_interleave(heads, 0)[:, None]
    parts = []
    for start in range(0, count, QUERY_BLOCK):
        block = query[:, start : start + QUERY_BLOCK]
        # Later keys are invisible to the whole block.
        end = start + block.shape[1]
        hidden = total.new_full((block.shape[1], end), float("-inf")).triu(start + 1)
        weights = exact_scores(block, keys[:, :end], scaling).add_(hidden).softmax(-1)
        total[:, :, :end] += real[:, :, start:end] @ weights
        if value is not None:
            parts.append(weights.to(value.dtype) @ value.reshape(-1, count, dim)[:, :end])
    sums = total.view(batch, heads, count)
    if not parts:
        return sums, None
    output = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return sums, output.view(batch, heads, count, dim)
