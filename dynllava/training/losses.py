"""Loss terms of a training step."""

from __future__ import annotations

import torch
from torch.nn import functional as F

IGNORED = -100
"""Label of a position that takes no part in the language-model loss."""


def keep_rate_loss(
    mask: torch.Tensor,
    counted: torch.Tensor,
    rate: float | torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Squared distance of the realised from the wanted keep rate, per sample (Eq. 10).

    Parameters
    ----------
    mask : Tensor [B, N] float
        Keep decisions with gradient.
    counted : Tensor [B, N] bool
        Tokens that were decided.  A row without any costs nothing but stays in the mean, as the
        official code has it for short answers.
    rate : float or Tensor [B]
        Wanted share of kept tokens.
    rows : Tensor [B] bool
        Rows that train the predictor; the others leave the mean.

    Returns
    -------
    Tensor []
        Mean over ``rows`` of ``(rate - mean mask) ** 2``, not weighted.
    """
    count = counted.sum(1)
    mean = (mask * counted).sum(1) / count.clamp(min=1)
    square = (rate - mean) ** 2 * ((count > 0) & rows)
    return square.sum() / rows.sum().clamp(min=1)


def language_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token over all labelled positions of the batch.

    Parameters
    ----------
    logits : Tensor [B, L, V]
    labels : Tensor [B, L] int64
        :data:`IGNORED` where nothing is to be predicted.

    Returns
    -------
    Tensor [] float32
        Tokens that the policy drops count too.  0 (with a gradient of 0) without any label.
    """
    target = labels[:, 1:].reshape(-1).to(logits.device)
    known = target != IGNORED
    # Only labelled rows are cast to float32: answers are a small part of the sequence.
    chosen = logits[:, :-1].reshape(-1, logits.shape[-1])[known]
    total = F.cross_entropy(chosen.float(), target[known], reduction="sum")
    return total / known.sum().clamp(min=1)
