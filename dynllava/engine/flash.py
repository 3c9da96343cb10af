"""FlashAttention's kernels, called directly: one for prompts, one for a step on a cache.

Rows are left-aligned, so causal order alone hides a prompt's padding, and a step needs no more than
the number of entries per row.
"""

from __future__ import annotations

import importlib.util

import torch

from dynllava.errors import UserError

NAME = "flash_attention_2"
DTYPES = (torch.float16, torch.bfloat16)


def prompt(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attend a prompt [B, H, L, d] causally to its own keys and values [B, Hkv, L, d].

    Raises
    ------
    UserError
        If the dtype is not one of :data:`DTYPES`.
    """
    check_dtype(query.dtype)
    from flash_attn import flash_attn_func

    out = flash_attn_func(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )
    return out.transpose(1, 2)


def step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Attend one token [B, H, 1, d] to the first ``lengths`` [B] entries of a cache.

    Parameters
    ----------
    query : Tensor [B, H, 1, d]
    key, value : Tensor [B, Hkv, capacity, d]
        Every row has at least one valid entry.
    scaling : float
        Softmax scale.
    lengths : Tensor [B] integer, on any device
        Valid entries per row, this token's included.

    Raises
    ------
    UserError
        If the dtype is not one of :data:`DTYPES`.
    """
    check_dtype(query.dtype)
    from flash_attn import flash_attn_with_kvcache

    out = flash_attn_with_kvcache(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        cache_seqlens=lengths.to(device=query.device, dtype=torch.int32),
        softmax_scale=scaling,
    )
    return out.transpose(1, 2)


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse what the kernels cannot compute with."""
    if dtype not in DTYPES:
        raise UserError(
            f"{NAME} with {str(dtype).removeprefix('torch.')}: accepted are float16 and bfloat16"
        )


def check_available(dtype: torch.dtype, device: str | torch.device) -> None:
    """Refuse, before anything is loaded, what could only fail at the first prompt.

    Raises
    ------
    UserError
        If the dtype, the device or the installation does not allow these kernels.
    """
    check_dtype(dtype)
    if torch.device(device).type != "cuda":
        raise UserError(f"{NAME} with device={device}: accepted is a CUDA device")
    if importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            f"{NAME}: the package flash-attn is not installed "
            '(pip install "dynllava[flash]"); accepted here are sdpa and eager'
        )
