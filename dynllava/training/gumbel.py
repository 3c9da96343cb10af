"""Gumbel-softmax with straight-through gradients (Eq. 8-9), and noise that can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


def gumbel_keep(logits: torch.Tensor, noise: torch.Tensor, tau: float) -> torch.Tensor:
    """Sample hard keep decisions that pass the gradient of the soft ones.

    As in the official code the noise is added to the log-probabilities *before* the division by
    ``tau``; a tie keeps.

    Parameters
    ----------
    logits : Tensor [..., 2]
        Index 0 = keep, 1 = drop.
    noise : Tensor [..., 2]
        Standard Gumbel noise.
    tau : float
        Temperature, > 0.

    Returns
    -------
    Tensor [...] float32
        Exactly 0 or 1 forward, the gradient of the soft keep probability backward.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    soft = ((logits.to(dtype).log_softmax(-1) + noise) / tau).softmax(-1)
    keep = soft[..., 0]
    hard = (soft[..., 0] >= soft[..., 1]).to(dtype)
    # The bracket is exactly zero, so the sum is exactly 0 or 1.
    return hard + (keep - keep.detach())


class SampleNoise:
    """Gumbel noise as a pure function of (seed, step, sample, draw).

    Neither the batch a sample sits in, nor the process that holds it, nor how often a run was
    interrupted changes its noise; no generator state has to be saved.

    Parameters
    ----------
    seed, step : int
    sample_ids : sequence of int
        One a row.
    """

    def __init__(self, seed: int, step: int, sample_ids: Sequence[int]) -> None:
        self.seed = seed
        self.step = step
        self.sample_ids = list(sample_ids)

    def gumbel(self, name: str, count: int, device: torch.device) -> torch.Tensor:
        """Return float32 noise [B, count, 2]; a longer draw starts with the shorter one."""
        uniform = np.stack([rng.random((count, 2)) for rng in self._generators(name)])
        uniform = np.clip(uniform, 1e-12, 1 - 1e-12)
        return torch.from_numpy(-np.log(-np.log(uniform))).to(device, torch.float32)

    def uniform(self, name: str) -> np.ndarray:
        """Return one number in [0, 1) a row, float64 [B]."""
        return np.array([rng.random() for rng in self._generators(name)])

    def _generators(self, name: str) -> list[np.random.Generator]:
        keys = (f"{self.seed}/{self.step}/{sample}/{name}" for sample in self.sample_ids)
        digests = (hashlib.sha256(key.encode()).digest()[:16] for key in keys)
        return [
            np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
            for digest in digests
        ]


class RecordedNoise:
    """Noise that was recorded elsewhere, one tensor [B, count, 2] a draw."""

    def __init__(self, **draws: torch.Tensor) -> None:
        self.draws = draws

    def gumbel(self, name: str, count: int, device: torch.device) -> torch.Tensor:
        """Return the recorded draw ``name``; its size must be ``count``."""
        noise = self.draws[name]
        if noise.shape[1] != count:
            raise ValueError(f"recorded {name} noise has {noise.shape[1]} tokens, not {count}")
        return noise.to(device)

    def uniform(self, name: str) -> np.ndarray:
        """Return the recorded numbers of the draw ``name``, [B]."""
        return self.draws[name].double().numpy()
