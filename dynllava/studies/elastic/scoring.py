"""Answers to the study's questions and captions, one score a sample.

Short questions are teacher-forced (:mod:`dynllava.studies.teacher_forcing`), captions generated
(METEOR) and teacher-forced (PPL).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dynllava.embedded.questions import FAMILIES

from ..predictors import CAPTION, family_rows
from ..teacher_forcing import Batch, forced, prepared

QUESTIONS = tuple(family for family in FAMILIES if family != CAPTION)
BATCH = 50
_TOWERS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
CAPTION_TOKENS = 160


@dataclass
class Answers:
    """What one setting scored, in the order of the task's samples.

    Attributes
    ----------
    values : list of float
        1 or 0 for exact answers; METEOR of a caption.
    nll : list of float
        Negative log-likelihood of the answer, in nats.
    tokens : list of int
        Answer tokens, the end included.
    image_share, output_share : list of float
        Share of image tokens kept, and of judged output tokens.
    """

    values: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    image_share: list[float] = field(default_factory=list)
    output_share: list[float] = field(default_factory=list)


@dataclass
class Task:
    """One family's samples, prepared once for all models of the study (same processor)."""

    name: str
    rows: list[dict[str, Any]]
    batches: list[Batch]

    @classmethod
    def load(cls, family: str, split: str, processor: Any, limit: int | None = None) -> Task:
        """Return a family of a split, in batches of similar length."""
        rows = family_rows(split, family, limit)
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]["question"]), i))
        parts = [order[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        return cls(family, rows, [prepared(rows, part, processor) for part in parts])

    @property
    def objects(self) -> list[int]:
        """Objects in each sample's scene, the digit included."""
        scenes = (json.loads(row["scene"]) for row in self.rows)
        return [len(scene["objects"]) + (scene["digit"] is not None) for scene in scenes]


def seen_once(batch: Batch, model: Any) -> dict[str, Any]:
    """Return the prompt as ``model`` takes it; its tower sees the pictures once.

    The study trains no tower: all models of a seed have the same one.
    """
    tower = tower_hash(model)
    if tower not in batch.features:
        pixels = batch.inputs["pixel_values"].to(model.dtype)
        out = model.model.get_image_features(pixel_values=pixels, return_dict=True)
        batch.features = {tower: torch.stack(list(out.pooler_output))}
    found = BaseModelOutputWithPooling(pooler_output=list(batch.features[tower]))
    return {
        "input_ids": batch.inputs["input_ids"],
        "attention_mask": batch.inputs["attention_mask"],
        "mm_encoder_outputs": {"image": found},
    }


@torch.inference_mode()
def teacher_forced(model: Any, task: Task) -> Answers:
    """Return exact answers (1 or 0), likelihoods and realised shares."""
    found = _empty(task)
    for batch in task.batches:
        columns = forced(model, batch, seen_once(batch, model))
        _put(found, batch.rows, {"values": columns.pop("exact"), **columns})
    return found


@torch.inference_mode()
def generated(model: Any, processor: Any, task: Task) -> Answers:
    """Return METEOR of greedy captions, with the realised shares of that generation."""
    from dynllava.tasks.text_metrics import METEOR, meteor

    found = _empty(task)
    for batch in task.batches:
        prompt = batch.inputs["input_ids"].shape[1]
        out = model.generate(
            **seen_once(batch, model),
            max_new_tokens=CAPTION_TOKENS,
            do_sample=False,
        )
        new = out[:, prompt:]
        texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        report = model.last_report
        images = model.config.image_seq_length
        kept = torch.tensor(report.image_tokens)
        judged, stayed = judged_tokens(report, new, processor.tokenizer.eos_token_id)
        columns = {
            "values": torch.tensor(
                [
                    meteor(task.rows[row]["answer"], text)[METEOR]
                    for row, text in zip(batch.rows, texts, strict=True)
                ]
            ),
            "tokens": judged,
            "image_share": kept / images,
            "output_share": stayed / judged.clamp(min=1),
        }
        _put(found, batch.rows, columns)
    return found


def tower_hash(model: Any) -> str:
    """Return a hash of what pictures go through; computed once a model."""
    if model not in _TOWERS:
        digest = hashlib.sha256()
        for part in (model.model.vision_tower, model.model.multi_modal_projector):
            for tensor in part.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        _TOWERS[model] = digest.hexdigest()
    return _TOWERS[model]


def judged_tokens(report: Any, new: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many generated tokens of each row were judged, and how many of them stayed.

    A row that has ended is fed on until the batch has; these tokens do not count, nor does its end
    token, after which nothing is generated.
    """
    ended = (new == end).int()
    lengths = torch.where(ended.any(1), ended.argmax(1), new.shape[1] - 1)
    steps = torch.tensor(report.output_kept, dtype=torch.bool)
    within = torch.arange(steps.shape[1]) < lengths[:, None]
    return lengths, (steps & within).sum(1)


def _empty(task: Task) -> Answers:
    count = len(task.rows)
    return Answers([0.0] * count, [0.0] * count, [0] * count, [1.0] * count, [1.0] * count)


def _put(found: Answers, rows: list[int], columns: dict[str, torch.Tensor]) -> None:
    for name, column in columns.items():
        target = getattr(found, name)
        for row, value in zip(rows, column.tolist(), strict=True):
            target[row] = value
