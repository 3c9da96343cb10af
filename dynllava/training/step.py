"""The loss of one forward pass, with the sparsification that a method trains under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dynllava.engine.decoder import PolicyHook

from .losses import IGNORED, language_loss
from .policy import TrainingPolicy

NO_INPUTS = ("labels", "truncated", "skipped")
"""Entries of a batch that the model does not take."""


@dataclass
class StepResult:
    """Loss parts of a forward pass.

    Attributes
    ----------
    loss : Tensor []
        Language loss plus weighted keep-rate losses.
    language : Tensor []
        Mean cross-entropy over the labels of the batch.
    logits : Tensor [B, L, V]
    policy : TrainingPolicy or None
        Decisions and keep-rate losses of the predictors.
    """

    loss: torch.Tensor
    language: torch.Tensor
    logits: torch.Tensor
    policy: TrainingPolicy | None = None

    def metrics(self) -> dict[str, float]:
        """Return the parts as numbers; NaN where the batch had nothing of a kind."""
        values = {"loss_language": float(self.language.detach())}
        for name in ("image", "output"):
            decision = getattr(self.policy, name, None)
            if decision is not None:
                values[f"loss_{name}_mask"] = float(decision.loss.detach())
                values[f"keep_rate_{name}"] = float(decision.kept_share())
        return values


def policy_step(
    model: torch.nn.Module, batch: dict[str, Any], policy: TrainingPolicy, sparse_layer: int
) -> StepResult:
    """Run a batch under the masked softmax.

    Parameters
    ----------
    model : PreTrainedModel, or its data-parallel or sharded wrapper
        With predictors.
    batch : dict
        ``input_ids``, ``labels``, ``attention_mask`` [B, L], ``sample_ids`` [B], and the pictures
        as the model takes them.
    policy : TrainingPolicy
        Of this pass; holds the decisions afterwards.
    sparse_layer : int
        First layer under the policy.
    """
    hook = PolicyHook(sparse_layer, policy.build, policy.bounded)
    logits = model(**_inputs(batch), use_cache=False, policy_hook=hook).logits
    language = language_loss(_vocabulary(model, logits), batch["labels"])
    return StepResult(language + policy.mask_loss(), language, logits, policy)


def method_step(model: torch.nn.Module, batch: dict[str, Any]) -> StepResult:
    """Run a batch with the model's method active (FastV training, plain fine-tuning).

    The prompt of a conversation ends before its first answer: selection sees no more.
    """
    answered = batch["labels"] != IGNORED
    length = batch["attention_mask"].sum(1)
    first = torch.where(answered.any(1), answered.int().argmax(1), length)
    logits = model(**_inputs(batch), use_cache=False, prompt_length=first).logits
    language = language_loss(_vocabulary(model, logits), batch["labels"])
    return StepResult(language, language, logits)


def _vocabulary(model: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Leave out the row that conversion adds behind an official vocabulary for the placeholder."""
    config = getattr(model, "module", model).config
    if getattr(config, "official_config", None) is None:
        return logits
    return logits[..., : config.image_token_index]


def _inputs(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in NO_INPUTS}
