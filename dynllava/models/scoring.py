"""Logits that predict a continuation with decode-time sparsification, and log-probabilities."""

from __future__ import annotations

from typing import Any

import torch

from dynllava.engine.cache import SparseCache


def logits_on_cache(
    model: Any, fed: torch.Tensor, mask: torch.Tensor, cache: SparseCache
) -> list[torch.Tensor]:
    """Return the logits behind each token of ``fed`` [B, T - 1] on a prompt's cache."""
    columns = range(fed.shape[1])
    if model.program.plan.stepwise:
        tokens = [fed[:, column : column + 1] for column in columns]
        return [model(ids, past_key_values=cache, logits_to_keep=1).logits for ids in tokens]
    if not fed.shape[1]:
        return []
    out = model(fed, attention_mask=mask[:, :-1], past_key_values=cache, outputs_fed=True)
    return [out.logits]


def logits_without_cache(
    model: Any,
    input_ids: torch.Tensor,
    continuation_ids: torch.Tensor,
    prompt: dict[str, Any],
) -> torch.Tensor:
    """Return the logits [B, T, V] that predict the continuation, one whole pass a token.

    Parameters
    ----------
    model : SparseGeneration
    input_ids, continuation_ids : Tensor [B, L], [B, T] int64
    prompt : dict
        The prompt's other arguments, ``attention_mask`` among them.
    """
    prompt = dict(prompt)
    prompt_mask = prompt.pop("attention_mask")
    kinds = prompt.pop("mm_token_type_ids", None)
    logits = []
    for count in range(continuation_ids.shape[1]):
        fed = continuation_ids[:, :count]
        if kinds is not None:
            text = torch.zeros_like(fed, dtype=kinds.dtype)
            prompt["mm_token_type_ids"] = torch.cat([kinds, text], 1)
        out = model(
            torch.cat([input_ids, fed], 1),
            attention_mask=torch.cat([prompt_mask, torch.ones_like(fed)], 1),
            prompt_length=prompt_mask.long().sum(1),
            use_cache=False,
            logits_to_keep=1,
            **prompt,
        )
        logits.append(out.logits)
    return torch.cat(logits, 1)


def chosen_scores(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, T]: log-probabilities of ``ids`` under ``logits``, 0 where masked."""
    scores = logits.float().log_softmax(-1)
    chosen = scores.gather(2, ids[..., None].to(scores.device))[..., 0]
    return chosen.masked_fill(~mask.bool().to(chosen.device), 0.0)
