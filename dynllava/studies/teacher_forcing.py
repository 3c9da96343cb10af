"""Answers under teacher forcing: what is right, how likely it is, and what was kept.

Greedy decoding gives exactly the answer if and only if every token of it is the most likely one,
since up to the first miss both have the same past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dynllava.prompts import PLAIN_QUESTION


@dataclass
class Batch:
    """Samples ready for the model.

    Attributes
    ----------
    rows : list of int
        Their numbers in the task.
    inputs : dict
        ``input_ids``, ``attention_mask`` [B, L], ``pixel_values``.
    ids, mask : Tensor [B, T] int64
        Answer tokens with the end token, right-padded.
    features : dict
        Projected pictures [B, tokens, D] by the hash of the tower that made them.
    """

    rows: list[int]
    inputs: dict[str, torch.Tensor]
    ids: torch.Tensor
    mask: torch.Tensor
    features: dict[str, torch.Tensor] = field(default_factory=dict)

    def pictures(self, model: Any) -> dict[str, Any]:
        """Return the prompt with its pictures, as any model takes it."""
        return {**self.inputs, "pixel_values": self.inputs["pixel_values"].to(model.dtype)}


def prepared(rows: Sequence[dict[str, Any]], part: Sequence[int], processor: Any) -> Batch:
    """Return the samples ``part`` of ``rows`` (``image``, ``question``, ``answer``)."""
    tokenizer = processor.tokenizer
    inputs = processor(
        images=[rows[index]["image"] for index in part],
        text=[PLAIN_QUESTION.format(rows[index]["question"]) for index in part],
        padding=True,
        return_tensors="pt",
    )
    answers = tokenizer(
        [f"{rows[index]['answer']}{tokenizer.eos_token}" for index in part],
        add_special_tokens=False,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    return Batch(list(part), dict(inputs), answers["input_ids"], answers["attention_mask"])


@torch.inference_mode()
def forced(model: Any, batch: Batch, prompt: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Score a batch's answers under the model's method, its sparsification of decoding active.

    Parameters
    ----------
    model : SparseGeneration
    batch : Batch
    prompt : dict
        The prompt as the model takes it.

    Returns
    -------
    dict
        By sample [B]: ``exact`` (1 or 0), ``nll`` (summed, nats), ``tokens`` (the end included),
        ``image_share`` and ``output_share`` (kept, of the image tokens and of the judged output
        tokens).
    """
    logits = model.score(
        continuation_ids=batch.ids,
        continuation_mask=batch.mask,
        sample_ids=torch.tensor(batch.rows),
        return_logits=True,
        **prompt,
    ).float()
    losses = -logits.log_softmax(-1).gather(2, batch.ids[..., None])[..., 0] * batch.mask
    right = ((logits.argmax(-1) == batch.ids) | (batch.mask == 0)).all(1)
    report = model.last_report
    first, last = torch.tensor(report.kv_lengths[0]), torch.tensor(report.kv_lengths[-1])
    kept = torch.tensor(report.image_tokens)
    images = model.config.image_seq_length
    # The last answer token is never fed, so it is not judged.
    fed = batch.mask.sum(1) - 1
    gone = (first - last) - (images - kept)
    return {
        "exact": right.float(),
        "nll": losses.sum(1),
        "tokens": batch.mask.sum(1),
        "image_share": kept / images,
        "output_share": 1 - gone / fed.clamp(min=1),
    }
