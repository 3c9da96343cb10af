"""Training for every keep rate of a range: a rate is drawn for each sample and step.

Beyond the paper, which trains one checkpoint for one rate.  Two ways are offered
(``sparsity.elastic``):

* ``"rank"``: one head whose order counts.  A sample keeps exactly the drawn share, the tokens whose
  noisy margin is highest, so that every prefix of the order is trained and no keep-rate loss is
  needed.
* ``"condition"``: the predictor is told the rate, and Eq. 8-10 hold with that rate as the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dynllava.errors import UserError

ELASTIC = ("none", "rank", "condition")


def check_range(name: str, rates: Any) -> None:
    """Raise :class:`UserError` unless ``rates`` are two numbers, 0 < low < high < 1."""
    numbers = isinstance(rates, list | tuple) and all(
        isinstance(rate, int | float) and not isinstance(rate, bool) for rate in rates
    )
    if not numbers or len(rates) != 2 or not 0 < rates[0] < rates[1] < 1:
        raise UserError(f"{name}={rates!r}: accepted is [low, high] with 0 < low < high < 1")


def drawn_rates(rates: Sequence[float], uniform: np.ndarray) -> torch.Tensor:
    """Return a keep rate a sample, float32 [B], log-uniform between the two ``rates``.

    Parameters
    ----------
    rates : sequence of float
        Lowest and highest.
    uniform : ndarray [B] float64
        In [0, 1).
    """
    low, high = rates
    return torch.from_numpy(low * (high / low) ** uniform).float()


def top_share(
    logits: torch.Tensor,
    noise: torch.Tensor,
    decided: torch.Tensor,
    rate: torch.Tensor,
    tau: float,
) -> torch.Tensor:
    """Keep each row's best share by noisy margins, with the gradient of the soft decision.

    With s the noisy margin and t midway between the last kept and the first dropped one, the
    decision is ``s > t`` and its gradient that of ``sigmoid((s - t) / tau)``: Gumbel-softmax with
    the drop logit moved to where exactly the wanted share stays.  Raising every margin of a row
    changes nothing, so its gradient has no such part: left in, it moved all margins by thousands
    and turned the order around.

    Parameters
    ----------
    logits, noise : Tensor [B, K, 2]
        Index 0 = keep; standard Gumbel noise.
    decided : Tensor [B, K] bool
        Tokens among which is chosen.
    rate : Tensor [B] float
        Share that stays; at least one token does.
    tau : float

    Returns
    -------
    Tensor [B, K] float32
        Exactly 0 or 1 forward; what undecided tokens hold means nothing.
    """
    margin = (logits[..., 0] - logits[..., 1]).float()
    count = decided.sum(1)
    mean = (margin * decided).sum(1, keepdim=True) / count.clamp(min=1)[:, None]
    margin = margin - (mean - mean.detach()) + noise[..., 0] - noise[..., 1]
    ranked = margin.detach().masked_fill(~decided, -math.inf).sort(1, descending=True)
    kept = (rate.to(margin.device) * count).round().long().clamp(min=1)
    kept = torch.minimum(kept, count)
    last = _at(ranked.values, kept - 1)
    # Where all stay (or a row decides nothing) there is no first dropped one.
    first_out = torch.where(kept < count, _at(ranked.values, kept), last - 1)
    threshold = (last + first_out) / 2
    distance = margin - torch.where(count > 0, threshold, torch.zeros_like(threshold))[:, None]
    soft = torch.sigmoid(distance / tau)
    place = ranked.indices.argsort(1)
    hard = (place < kept[:, None]).to(soft.dtype)
    return hard + (soft - soft.detach())


def anchor_loss(logits: torch.Tensor, decided: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the squared mean margin of a row, mean over ``rows`` [B] bool.

    An order does not say where margins lie; held near 0 they can be compared between samples, as
    one threshold for all must.
    """
    margin = (logits[..., 0] - logits[..., 1]).float()
    count = decided.sum(1)
    mean = (margin * decided).sum(1) / count.clamp(min=1)
    return (mean**2 * ((count > 0) & rows)).sum() / rows.sum().clamp(min=1)


def _at(values: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    last = values.shape[1] - 1
    return values.gather(1, column.clamp(0, last)[:, None])[:, 0]
