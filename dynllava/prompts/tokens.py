"""Token ids of prompts, cut at the image as LLaVA's official code cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError

from .templates import IMAGE

if TYPE_CHECKING:
    import torch


def prompt_ids(tokenizer: Any, text: str, image_id: int | None, image_tokens: int) -> list[int]:
    """Return the ids of a rendered prompt.

    The text is split at ``<image>`` and every piece is tokenised by itself, its own BOS dropped
    from the second on (official ``tokenizer_image_token``).  Tokenising the whole text at once
    gives other ids where a tokenizer treats the beginning of a text differently from what
    follows a special token.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
    text : str
    image_id : int or None
        Id of an image position; None: the text has no image.
    image_tokens : int
        Positions of one image.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    ids: list[int] = []
    for index, piece in enumerate(text.split(IMAGE)):
        if index and image_id is None:
            raise UserError("the prompt has an image placeholder but no image was given")
        ids += [image_id] * image_tokens if index else []  # type: ignore[list-item]
        own = list(tokenizer(piece)["input_ids"])
        if not index and bos is not None and own[:2] == [bos, bos]:
            # A template that writes the BOS itself, before a tokenizer that adds one.
            own = list(tokenizer(piece.removeprefix(tokenizer.bos_token))["input_ids"])
        if index and bos is not None and own[:1] == [bos]:
            own = own[1:]
        ids += own
    return ids


def image_positions(processor: Any, pixel_values: torch.Tensor) -> int:
    """Return the token positions of one image.

    Parameters
    ----------
    processor : LlavaProcessor
    pixel_values : Tensor [..., 3, H, W]
    """
    height, width = pixel_values.shape[-2:]
    patches = (height // processor.patch_size) * (width // processor.patch_size)
    count = patches + processor.num_additional_image_tokens
    return count - (processor.vision_feature_select_strategy == "default")


def batch(rows: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Return left-padded ``input_ids`` and ``attention_mask`` [B, L], int64."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[index, width - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}
