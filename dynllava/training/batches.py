"""Batches: right padding, and an order of samples that a resume repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .losses import IGNORED


class Collator:
    """Pads a batch on the right to its longest row.

    Parameters
    ----------
    pad_token_id : int
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return ``input_ids``, ``labels``, ``attention_mask`` [B, L], ``sample_ids`` [B], ...

        ``pixel_values`` [images, 3, H, W] is missing when no row has an image.
        """
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.full((len(items), longest), self.pad_token_id)
        labels = torch.full((len(items), longest), IGNORED)
        mask = torch.zeros(len(items), longest, dtype=torch.int64)
        for row, item in enumerate(items):
            size = len(item["input_ids"])
            ids[row, :size], labels[row, :size], mask[row, :size] = (
                item["input_ids"],
                item["labels"],
                1,
            )
        batch = {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "sample_ids": torch.tensor([item["sample_id"] for item in items]),
            "truncated": torch.tensor([item["truncated"] for item in items]),
            "skipped": [text for item in items for text in item["skipped"]],
        }
        pixels = [item["pixel_values"] for item in items if item["pixel_values"] is not None]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        return batch


class GroupedSampler(torch.utils.data.Sampler[int]):
    """Random order of an epoch as a pure function of (seed, epoch), so a resume repeats it.

    Parameters
    ----------
    lengths : sequence of int
    has_image : sequence of bool
    group : int
        Samples of one optimiser step.  With grouping, a step holds samples of similar length,
        and of one kind (image or text only) as far as the counts allow.
    seed : int
    by_length : bool
        False = plain random order.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        has_image: Sequence[bool],
        group: int,
        seed: int,
        by_length: bool = True,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.has_image = np.asarray(has_image)
        self.group = group
        self.seed = seed
        self.by_length = by_length
        self.epoch = 0

    def choose_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``.

        Not called ``set_epoch``: data loaders call a method of that name with their own count,
        which starts anew after a resume.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of one epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        if not self.by_length:
            return iter(rng.permutation(len(self)).tolist())
        groups, rest = [], []
        for kind in (True, False):
            order = rng.permutation(np.flatnonzero(self.has_image == kind))
            # Sort within chunks of many groups: similar lengths together, still random overall.
            for start in range(0, len(order), self.group * 32):
                chunk = order[start : start + self.group * 32]
                chunk = chunk[np.argsort(-self.lengths[chunk], kind="stable")]
                whole = len(chunk) // self.group * self.group
                groups += np.split(chunk[:whole], whole // self.group) if whole else []
                rest.append(chunk[whole:])
        shuffled = [groups[i] for i in rng.permutation(len(groups))]
        return iter(np.concatenate([*shuffled, *rest]).astype(int).tolist())
