"""The training policy: which keys the layers behind the sparse layer may see, with gradient.

Built at the input of the sparse layer from the predictors' logits (paper section 3.3):

* image tokens: one hard Gumbel sample each,
* tokens of an answer of at least ``min_answer_length`` tokens (LEN_OT): one each,
* everything else, padding included: 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from dynllava.engine.stream import Segment, take_rows
from dynllava.errors import UserError
from dynllava.methods.base import check_fraction

from .elastic import ELASTIC, anchor_loss, check_range, drawn_rates, top_share
from .gumbel import gumbel_keep
from .losses import IGNORED, keep_rate_loss

ANSWERS = ("last", "all")
MASKINGS = ("softmax", "zero")
GRADIENTS = ("slope", "bounded", "bounded_output")
ANCHOR = 1e-4
"""Weight of :func:`~dynllava.training.elastic.anchor_loss`, times lambda."""
CHOICES = {"answers": ANSWERS, "masking": MASKINGS, "gradient": GRADIENTS, "elastic": ELASTIC}


@dataclass(frozen=True)
class SparsityTargets:
    """What the predictors are trained for.

    Attributes
    ----------
    vision_keep_rate, output_keep_rate : float
        Wanted shares of kept tokens; 1 leaves the predictor out.
    mask_loss_weight : float
        Lambda of Eq. 10.
    min_answer_length : int
        LEN_OT: shorter answers are not masked (equal length is).
    answers : str
        ``"last"`` masks the last answer of a conversation (official), ``"all"`` every one.
    dense_share : float
        Share of samples that run without any masking, to protect the dense model.
    masking : str
        ``"softmax"`` is the masked softmax; ``"zero"`` multiplies hidden states by the mask
        and attends plainly (the ablation of the paper's table 7).
    gradient : str
        Of the masked softmax at dropped keys: ``"slope"`` (the derivative at 0, the paper's) or
        ``"bounded"`` (what keeping the key would change); ``"bounded_output"`` bounds it for
        output tokens alone.
    elastic : str
        ``"rank"`` or ``"condition"`` train for every rate of a range, see
        :mod:`dynllava.training.elastic`; ``"none"`` for the two rates above, which stay what the
        checkpoint uses where nobody names a rate.
    vision_keep_rates, output_keep_rates : list of float or None
        The range, lowest and highest; None: that predictor has its one rate.
    """

    vision_keep_rate: float = 0.2
    output_keep_rate: float = 0.5
    mask_loss_weight: float = 100.0
    min_answer_length: int = 50
    answers: str = "last"
    dense_share: float = 0.0
    masking: str = "softmax"
    gradient: str = "slope"
    elastic: str = "none"
    vision_keep_rates: list[float] | None = None
    output_keep_rates: list[float] | None = None

    def validate(self) -> None:
        """Raise :class:`UserError` naming the first value that is not accepted."""
        check_fraction("vision_keep_rate", self.vision_keep_rate)
        check_fraction("output_keep_rate", self.output_keep_rate)
        check_fraction("dense_share", self.dense_share, low_open=False)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r}: accepted are {', '.join(known)}")
        ranges = {
            "vision_keep_rates": self.vision_keep_rates,
            "output_keep_rates": self.output_keep_rates,
        }
        for name, rates in ranges.items():
            if rates is not None:
                check_range(name, rates)
        if (self.elastic != "none") != any(rates is not None for rates in ranges.values()):
            raise UserError(
                f"elastic={self.elastic}: accepted are rank and condition together with a range "
                "(vision_keep_rates, output_keep_rates), none without"
            )
        if self.gradient != "slope" and self.masking != "softmax":
            raise UserError(
                f"gradient={self.gradient} with masking={self.masking}: accepted is masking=softmax"
            )
        for name in ("mask_loss_weight", "min_answer_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise UserError(f"{name}={value!r}: accepted is a number from 0")


class Noise(Protocol):
    """Where the Gumbel noise comes from."""

    def gumbel(self, name: str, count: int, device: torch.device) -> torch.Tensor:
        """Return noise [B, count, 2] of the draw ``name`` (``image`` or ``output``)."""

    def uniform(self, name: str) -> np.ndarray:
        """Return one number in [0, 1) a row, float64 [B], of the draw ``name``."""


@dataclass
class Decision:
    """One predictor's part of a step.

    Attributes
    ----------
    logits : Tensor [B, K, 2]
        Of the row's tokens, in order; index 0 = keep.
    mask : Tensor [B, K] float32
        Sampled decisions, 1 where none was taken.
    decided : Tensor [B, K] bool
        Tokens that were really decided.
    loss : Tensor []
        Unweighted keep-rate loss (of ranks: what holds their margins near 0).
    """

    logits: torch.Tensor
    mask: torch.Tensor
    decided: torch.Tensor
    loss: torch.Tensor

    def kept_share(self) -> torch.Tensor:
        """Return the share of kept among the decided tokens, NaN where there were none."""
        return (self.mask.detach() * self.decided).sum() / self.decided.sum()


class TrainingPolicy:
    """Builds the policy of one forward pass and keeps what the loss needs.

    Parameters
    ----------
    targets : SparsityTargets
    tau : float
        Gumbel temperature.
    labels : Tensor [B, columns] int64
        In the caller's columns; answers are where they are not -100.
    noise : Noise
    dense : Tensor [B] bool, optional
        Rows that run without masking.
    """

    def __init__(
        self,
        targets: SparsityTargets,
        tau: float,
        labels: torch.Tensor,
        noise: Noise,
        dense: torch.Tensor | None = None,
    ) -> None:
        self.targets = targets
        self.tau = tau
        self.labels = labels
        self.noise = noise
        self.dense = dense
        self.image: Decision | None = None
        self.output: Decision | None = None
        self.policy: torch.Tensor | None = None

    def build(self, view: Any) -> torch.Tensor | None:
        """Return the key policy [B, L] float32 for the stream of ``view`` (see ``PolicyHook``).

        None where the masking is ``"zero"``: the stream of ``view`` is then masked instead.
        """
        stream = view.stream
        image = stream.is_segment(Segment.IMAGE)
        # Only records with an image train the predictors.
        rows = image.any(1)
        if self.dense is not None:
            rows = rows & ~self.dense.to(rows.device)
        policy = torch.ones(image.shape, dtype=torch.float32, device=image.device)
        if self.targets.vision_keep_rate < 1:
            self.image, policy = self._decide_image(view, policy, image, rows)
        if self.targets.output_keep_rate < 1:
            self.output, policy = self._decide_output(view, policy, rows)
        self.policy = policy
        if self.targets.masking == "softmax":
            return policy
        hidden = stream.hidden * policy[..., None].to(stream.hidden.dtype)
        view.stream = replace(stream, hidden=hidden)
        return None

    def bounded(self, view: Any) -> torch.Tensor | None:
        """Return the keys [B, L] bool whose gradient is bounded, None = none."""
        if self.targets.gradient == "slope":
            return None
        image = view.stream.is_segment(Segment.IMAGE)
        return ~image if self.targets.gradient == "bounded_output" else torch.ones_like(image)

    def mask_loss(self) -> torch.Tensor | float:
        """Return the weighted sum of the keep-rate losses."""
        terms = [part.loss for part in (self.image, self.output) if part is not None]
        return self.targets.mask_loss_weight * sum(terms)

    def _decide_image(
        self, view: Any, policy: torch.Tensor, image: torch.Tensor, rows: torch.Tensor
    ) -> tuple[Decision, torch.Tensor]:
        order, present = gather_order(image)
        hidden = take_rows(view.stream.hidden, order)
        # A row without image would mask every key of the predictor: let it see what is there.
        seen = present | ~present.any(1, keepdim=True)
        targets = self.targets
        rate = self._rates("image", targets.vision_keep_rate, targets.vision_keep_rates, hidden)
        mask = None if bool(present.all()) else seen
        logits = view.predictor("image")(hidden, mask, rate=rate)
        decided = present & rows[:, None]
        decision = self._decision("image", logits, decided, rows, rate, targets.vision_keep_rates)
        return decision, spread(policy, order, present, decision.mask)

    def _decide_output(
        self, view: Any, policy: torch.Tensor, rows: torch.Tensor
    ) -> tuple[Decision, torch.Tensor]:
        spans = self._answers(view.stream)
        targets = self.targets
        if targets.answers == "last":
            spans = spans * (spans == spans.amax(1, keepdim=True))
        order, present = gather_order(spans > 0)
        hidden = take_rows(view.stream.hidden, order)
        rate = self._rates("output", targets.output_keep_rate, targets.output_keep_rates, hidden)
        logits = view.predictor("output")(hidden, rate=rate)
        long = answer_lengths(spans) >= max(1, targets.min_answer_length)
        decided = present & long.gather(1, order) & rows[:, None]
        decision = self._decision("output", logits, decided, rows, rate, targets.output_keep_rates)
        return decision, spread(policy, order, present, decision.mask)

    def _rates(
        self, name: str, rate: float, rates: list[float] | None, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Return the keep rate of each row, float32 [B]."""
        if rates is None:
            return torch.full(hidden.shape[:1], rate, device=hidden.device)
        return drawn_rates(rates, self.noise.uniform(f"{name} rate")).to(hidden.device)

    def _decision(
        self,
        name: str,
        logits: torch.Tensor,
        decided: torch.Tensor,
        rows: torch.Tensor,
        rate: torch.Tensor,
        rates: list[float] | None,
    ) -> Decision:
        noise = self.noise.gumbel(name, logits.shape[1], logits.device)
        ranks = self.targets.elastic == "rank" and rates is not None
        if ranks:
            sample = top_share(logits, noise, decided, rate, self.tau)
        else:
            sample = gumbel_keep(logits, noise, self.tau)
        # Multiplying instead of selecting keeps the predictor in the graph of every batch, with
        # a gradient of zero where nothing was decided: sharded runs need all parameters.
        chosen = decided.to(sample.dtype)
        mask = sample * chosen + (1 - chosen)
        if ranks:
            # The share is exact by construction; what needs a loss is where margins lie.
            return Decision(logits, mask, decided, ANCHOR * anchor_loss(logits, decided, rows))
        return Decision(logits, mask, decided, keep_rate_loss(mask, decided, rate, rows))

    def _answers(self, stream: Any) -> torch.Tensor:
        """Return [B, L] int64: 1-based number of the answer a token belongs to, else 0."""
        column = stream.column.clamp(min=0)
        labels = self.labels.to(column.device).gather(1, column)
        labelled = (labels != IGNORED) & (stream.column >= 0)
        starts = labelled.clone()
        starts[:, 1:] &= ~labelled[:, :-1]
        return starts.cumsum(1) * labelled


def gather_order(member: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each row's members are, left-aligned.

    Parameters
    ----------
    member : Tensor [B, L] bool

    Returns
    -------
    order : Tensor [B, K] int64
        Columns, members first; K is the largest count, at least 1.
    present : Tensor [B, K] bool
        False behind a row's last member.
    """
    count = member.sum(1)
    width = max(int(count.max()), 1)
    order = torch.argsort((~member).to(torch.uint8), dim=1, stable=True)[:, :width]
    return order, torch.arange(width, device=member.device) < count[:, None]


def spread(
    policy: torch.Tensor, order: torch.Tensor, present: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the policy [B, L] with a mask [B, K] at its tokens (see :func:`gather_order`)."""
    # Absent tokens point at columns of others: they write back what stands there.
    return policy.scatter(1, order, torch.where(present, mask, policy.gather(1, order)))


def answer_lengths(spans: torch.Tensor) -> torch.Tensor:
    """Return [B, L] int64: the length of the answer each token belongs to, 0 outside."""
    size = spans.shape[1] + 1
    counts = torch.zeros(spans.shape[0], size, dtype=torch.int64, device=spans.device)
    counts.scatter_add_(1, spans, torch.ones_like(spans))
    counts[:, 0] = 0
    return counts.gather(1, spans)
