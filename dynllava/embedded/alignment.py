"""First training stage: every image token should resemble the words for what its patch shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .scenes import COLOURS, COLUMNS, PATCH_SIZE, PATCHES_PER_SIDE, ROWS, SHAPES, SIZES, Scene
from .tokenizer import DIGITS, vocabulary

if TYPE_CHECKING:
    import torch

IGNORED = -100
GROUPS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "digit": DIGITS,
    "row": ROWS,
    "column": COLUMNS,
    "kind": ("background", "object", "digit"),
    # One patch of each object, the one under its centre, says "one": that is what counting sums.
    "anchor": ("none", "one"),
}


def alignment_targets(scene: Scene) -> np.ndarray:
    """Which word of each group a patch shows.

    Returns
    -------
    numpy.ndarray
        int64 ``[144, 8]``: index within the group, -100 where the group says nothing.
    """
    patches = scene.patches
    targets = np.full((PATCHES_PER_SIDE, PATCHES_PER_SIDE, len(GROUPS)), IGNORED, np.int64)
    targets[..., 6] = 0
    targets[..., 7] = 0
    for index, item in enumerate(scene.objects):
        targets[patches == index] = (
            GROUPS["colour"].index(item.colour),
            SHAPES.index(item.shape),
            SIZES.index(item.size),
            IGNORED,
            item.row,
            item.column,
            1,
            0,
        )
        x, y = item.centre
        targets[y // PATCH_SIZE, x // PATCH_SIZE, 7] = 1
    if scene.digit is not None:
        digit = scene.digit
        shown = patches == len(scene.objects)
        targets[shown] = (*(IGNORED,) * 3, digit.value, digit.row, digit.column, 2, 0)
    return targets.reshape(-1, len(GROUPS))


def pixel_batch(scenes: Sequence[Scene]) -> torch.Tensor:
    """Normalised pixels as the processor makes them, float32 ``[B, 3, 96, 96]``."""
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def image_tokens(model, pixels: torch.Tensor) -> torch.Tensor:
    """Projected image tokens of a LLaVA, float32 ``[B, 144, d]``."""
    states = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    return model.model.multi_modal_projector(states)


def alignment_loss(
    tokens: torch.Tensor, words: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum over groups of the cross entropy between image tokens and word embeddings.

    Parameters
    ----------
    tokens : torch.Tensor
        ``[B, 144, d]`` projected image tokens.
    words : torch.Tensor
        ``[V, d]`` word embeddings.
    targets : torch.Tensor
        int64 ``[B, 144, groups]`` from :func:`alignment_targets`.

    Returns
    -------
    loss : torch.Tensor
    accuracy : dict of str to float
        Share of patches whose nearest word of the group is right.
    """
    import torch
    import torch.nn.functional as F

    order = vocabulary()
    normal = F.rms_norm(tokens, tokens.shape[-1:])
    loss = tokens.new_zeros(())
    accuracy = {}
    for index, (name, group) in enumerate(GROUPS.items()):
        goal = targets[..., index]
        shown = goal != IGNORED
        if not bool(shown.any()):
            continue
        ids = torch.tensor([order.index(word) for word in group])
        logits = normal[shown] @ words[ids].T
        goal = goal[shown]
        loss = loss + F.cross_entropy(logits, goal)
        right = logits.argmax(-1) == goal
        # Backgrounds are easy and many: report the recall of what is there.
        right = right[goal > 0] if name in ("kind", "anchor") else right
        accuracy[name] = float(right.float().mean()) if right.numel() else 1.0
    return loss, accuracy
