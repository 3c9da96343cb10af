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

        What the model takes as pictures (``pixel_values`` and so on) is missing when no row has an
        image.
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
        for name in {name for item in items for name in item["kinds"]}:
            kinds = torch.zeros_like(ids)
            for row, item in enumerate(items):
                kinds[row, : len(item["kinds"][name])] = item["kinds"][name]
            batch[name] = kinds
        for name in sorted({name for item in items for name in item["pictures"]}):
            parts = [item["pictures"][name] for item in items if item["pictures"]]
            batch[name] = joined(parts)
        return batch


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors of several rows' pictures behind each other.

    Where they differ in crops or pixels, zeros are added, as the stock processors do in a batch.
    """
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [most - size for most, size in zip(shape, part.shape[1:], strict=True)]
        # torch counts dimensions from the last one.
        padding = [side for count in reversed(missing) for side in (0, count)]
        padded.append(torch.nn.functional.pad(part, padding) if any(missing) else part)
    return torch.cat(padded)


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
