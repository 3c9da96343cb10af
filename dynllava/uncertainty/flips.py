"""What an equal accuracy can hide: answers lost and won against the dense model, and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Flips:
    """Samples on which a method scores otherwise than the dense model.

    Attributes
    ----------
    lost, won : int
        Samples with a lower and with a higher score than the dense model's.
    samples : int
    """

    lost: int
    won: int
    samples: int


def flips(dense: Sequence[float] | np.ndarray, method: Sequence[float] | np.ndarray) -> Flips:
    """Count the samples that changed, in both directions.

    Parameters
    ----------
    dense, method : sequence of float
        [n] scores of the same samples in the same order; a higher score is better.
    """
    first, second = np.asarray(dense, float), np.asarray(method, float)
    if first.shape != second.shape:
        raise ValueError("scores of the same samples are needed")
    return Flips(int((second < first).sum()), int((second > first).sum()), len(first))


def agreement(dense: Sequence[str], method: Sequence[str]) -> float | None:
    """Return the share of samples with the dense model's answer, None without samples.

    Answers agree if they are the same text but for case and space.
    """
    pairs = zip(dense, method, strict=True)
    same = [" ".join(a.split()).lower() == " ".join(b.split()).lower() for a, b in pairs]
    return sum(same) / len(same) if same else None
