"""From what a caller passes to a token stream: checks, segments, identities."""

from __future__ import annotations

from typing import Any

import torch

from dynllava.engine.cache import SparseCache
from dynllava.engine.stream import Segment, TokenStream, align_left, one_output
from dynllava.errors import UserError

SAMPLE_ID_MODULUS = 2_147_483_647


def check_call(
    first: torch.Tensor,
    vocabulary: int | None,
    attention_mask: torch.Tensor | None,
    cache: SparseCache | None,
    **others: torch.Tensor | None,
) -> None:
    """Refuse inputs whose shapes do not fit each other, and tokens outside the vocabulary.

    Parameters
    ----------
    first : Tensor [B, L] int64 or [B, L, D]
        Tokens or embeddings.
    vocabulary : int or None
        Rows of the embedding; None: tokens are not looked at (it makes a GPU wait, which a decode
        step must not).
    attention_mask : Tensor [B, L or more], optional
    cache : SparseCache, optional
        Of as many rows, if it is not empty.
    **others : Tensor, optional
        By name: [B], or [B, L] for ``labels`` and the masks.
    """
    batch, columns = first.shape[:2]
    if attention_mask is not None:
        shape = tuple(attention_mask.shape)
        if len(shape) != 2 or shape[0] != batch or shape[1] < columns:
            raise UserError(
                f"attention_mask has shape {shape}: accepted is ({batch}, {columns} or more)"
            )
    for name, tensor in others.items():
        wanted = (batch, columns) if name in ("labels", "image_mask", "learned_mask") else (batch,)
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise UserError(f"{name} has shape {tuple(tensor.shape)}: accepted is {wanted}")
    if cache is not None and not cache.is_empty and cache.fed().shape[0] != batch:
        raise UserError(f"a batch of {batch} on a cache of {cache.fed().shape[0]} rows")
    if first.dim() == 2 and vocabulary is not None:
        low, high = torch.stack(torch.aminmax(first)).tolist()
        if low < 0 or high >= vocabulary:
            raise UserError(
                f"input_ids run from {low} to {high}: accepted are tokens from 0 to "
                f"{vocabulary - 1}"
            )


def check_continuation(
    input_ids: torch.Tensor, continuation_ids: torch.Tensor, mask: torch.Tensor
) -> None:
    """Refuse continuations [B, T] that fit neither the prompts [B, L] nor their mask [B, T]."""
    shape = tuple(continuation_ids.shape)
    if len(shape) != 2 or shape[0] != input_ids.shape[0] or shape[1] == 0:
        raise UserError(
            f"continuation_ids has shape {shape}: accepted is ({input_ids.shape[0]}, 1 or more)"
        )
    if tuple(mask.shape) != shape:
        raise UserError(f"continuation_mask has shape {tuple(mask.shape)}: accepted is {shape}")


def learned_positions(model: Any, input_ids: torch.Tensor, token: int | None) -> Any:
    """Return [B, L] bool, True at learned tokens that stand for an image; None without any.

    Raises
    ------
    UserError
        If the model has no such token, or uses it for images.
    """
    if token is None:
        return None
    rows, image = model.get_input_embeddings().num_embeddings, model.config.image_token_id
    if token >= rows or token == image:
        what = f"its vocabulary has {rows} tokens" if token >= rows else "it stands for the image"
        raise UserError(f"token_id={token} is no learned token of this model: {what}")
    return input_ids == token


def build_stream(
    embeds: torch.Tensor,
    valid: torch.Tensor,
    is_image: torch.Tensor | None,
    prompt_length: torch.Tensor | None,
    cache: SparseCache | None,
    outputs_fed: bool | None,
    is_learned: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    axes: int = 1,
) -> TokenStream:
    """Return the left-aligned stream of one call.

    Parameters
    ----------
    embeds : Tensor [B, L, D]
    valid : Tensor [B, L] bool
    is_image : Tensor [B, L] bool or None
        None = no image tokens.
    prompt_length : Tensor [B] int64, optional
        Tokens after it are output tokens (no-cache decoding).
    cache : SparseCache, optional
        Continued if not empty: positions go on where its rows ended.
    outputs_fed : bool, optional
        Whether tokens fed on a cache are output tokens; default: one column is, several are not.
    is_learned : Tensor [B, L] bool, optional
        Learned tokens that stand for an image.
    position_ids : Tensor [axes or axes + 1, B, L] int64, optional
        Rotary positions where they have several axes (a first row of text positions is left out).
    axes : int
        How many axes rotary positions have.

    Raises
    ------
    UserError
        If learned tokens are fed on a cache.
    """
    batch, columns = valid.shape
    if continuing := cache is not None and not cache.is_empty:
        start = cache.fed().to(embeds.device)
    else:
        start = torch.zeros(batch, dtype=torch.int64, device=embeds.device)
    are_outputs = outputs_fed if outputs_fed is not None else columns == 1
    rotary = None
    if axes > 1:
        if position_ids is None or position_ids.ndim == 2:
            rank = (valid.cumsum(1) - 1).clamp(min=0) + start[:, None]
            position_ids = rank.expand(axes, -1, -1)
        rotary = position_ids[-axes:].to(embeds.device)
    if continuing and are_outputs and columns == 1:
        return one_output(embeds, valid, start, rotary)
    segment = torch.full_like(valid, int(Segment.TEXT), dtype=torch.int64)
    if is_image is not None:
        segment = segment.masked_fill(is_image.to(segment.device), int(Segment.IMAGE))
    if is_learned is not None:
        segment = torch.where(is_learned.to(segment.device), int(Segment.VOCO), segment)
    if continuing:
        if are_outputs:
            segment = torch.full_like(segment, int(Segment.OUTPUT))
        elif is_learned is not None and bool((is_learned & valid).any()):
            raise UserError("learned tokens on an existing cache are not supported: start anew")
    elif prompt_length is not None:
        rank = valid.cumsum(1) - 1
        is_output = rank >= prompt_length.to(rank.device)[:, None]
        segment = torch.where(is_output, int(Segment.OUTPUT), segment)
    return align_left(embeds, valid, segment, start, rotary)


def prompt_hash(
    input_ids: torch.Tensor | None, stream: TokenStream, is_prompt: torch.Tensor
) -> torch.Tensor:
    """Return [B] int64 identities of the rows' prompts.

    They depend on the prompt's tokens alone: not on padding, on the batch, or on output tokens.
    """
    if input_ids is None:
        return torch.zeros_like(stream.length)
    ids = input_ids.to(stream.column.device).gather(1, stream.column.clamp(min=0))
    weight = (stream.position * 2_654_435_761 + 40_503) % SAMPLE_ID_MODULUS
    mixed = ((ids + 1) * weight) % SAMPLE_ID_MODULUS
    return (mixed * is_prompt).sum(1) % SAMPLE_ID_MODULUS
