"""Which threshold keeps which share: measured on held-out conversations, stored in the checkpoint.

What the predictors read, the input of the sparse layer, does not depend on what they drop: one pass
a sample, with all its answer in place, sees what decoding would see token by token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.calibration import Calibration
from dynllava.models.loading import load_model
from dynllava.models.stored_predictors import KEY
from dynllava.output.files import read_json_object, write_text
from dynllava.plan.names import FULL, LEARNED

from .batches import Collator
from .config import DataConfig, TrainingConfig
from .data import InstructionDataset
from .losses import IGNORED
from .prepare import EMBEDDED, picture_tokens, prepare_data
from .step import NO_INPUTS

RATES = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Asked rates of a calibration, 0.05 to 0.95."""
STORED = {"image": "vision_calibration", "output": "output_calibration"}
"""Predictor -> entry of ``sparse_config``."""
KEEP_ALL = -1e30
BATCH = 16


def calibrate(
    model: Any,
    dataset: InstructionDataset,
    data: str,
    min_answer_length: int,
    progress: bool = True,
) -> dict[str, Calibration]:
    """Return the calibration of each predictor of ``model``.

    Samples are taken in turns: every other one sets the thresholds, the others say what these keep.

    Parameters
    ----------
    model : SparseGeneration
        With trained predictors; its method is set and put back.
    dataset : InstructionDataset
        Held-out conversations; their first answers are judged.
    data : str
        What the result calls them.
    min_answer_length : int
        Tokens; shorter answers do not count for the output predictor.
    progress : bool
        Show a bar.

    Raises
    ------
    UserError
        If the model has no predictors, or a predictor judged fewer than two samples.
    """
    predictors = {name: part for name, part in model.predictors().items() if part is not None}
    if not predictors:
        raise UserError("no predictors to calibrate: train them first (dynllava train)")
    read = read_inputs(model, dataset, min_answer_length, progress)
    found = {}
    for name, predictor in predictors.items():
        if len(read[name]) < 2:
            raise UserError(
                f"{data}: {len(read[name])} samples for the {name} predictor; accepted are two or "
                f"more (answers count from {min_answer_length} tokens)"
            )
        found[name] = curve(predictor, read[name], data)
    return found


def curve(predictor: Any, inputs: Sequence[torch.Tensor], data: str = "") -> Calibration:
    """Return one predictor's thresholds for :data:`RATES`, and the shares that they keep.

    Parameters
    ----------
    predictor : ImagePredictor or OutputPredictor
    inputs : sequence of Tensor [1, tokens, D]
        What it reads, one tensor a sample.
    data : str
        What the samples are called.
    """
    thresholds, realised = [], []
    told = predictor.rate_shift is not None
    margins = [margins_of(predictor, part, RATES[0]) for part in inputs]
    for rate in RATES:
        if told:
            margins = [margins_of(predictor, part, rate) for part in inputs]
        setting, checking = torch.cat(margins[::2]), torch.cat(margins[1::2])
        thresholds.append(cut_off(setting, rate))
        realised.append(float((checking > thresholds[-1]).double().mean()))
    used = (len(inputs) + 1) // 2
    return Calibration(RATES, tuple(thresholds), tuple(realised), data, used, len(setting))


@torch.no_grad()
def margins_of(predictor: Any, hidden: torch.Tensor, rate: float) -> torch.Tensor:
    """Return logit0 - logit1 of each token, float32 [tokens]."""
    logits = predictor(hidden, rate=rate).float()
    return (logits[..., 0] - logits[..., 1]).flatten().cpu()


def cut_off(margins: torch.Tensor, rate: float) -> float:
    """Return the threshold above which a share of ``margins`` lies, midway to the next one."""
    ordered = margins.double().sort(descending=True).values
    kept = min(max(round(rate * len(ordered)), 1), len(ordered) - 1) if len(ordered) > 1 else 0
    return float((ordered[max(kept - 1, 0)] + ordered[kept]) / 2)


def read_inputs(
    model: Any, dataset: InstructionDataset, min_answer_length: int, progress: bool
) -> dict[str, list[torch.Tensor]]:
    """Return what each predictor reads, [1, tokens, D] a sample."""
    from tqdm import tqdm

    collate = Collator(model.config.text_config.pad_token_id or 0)
    read: dict[str, list[torch.Tensor]] = {"image": [], "output": []}
    judged: dict[str, tuple[Any, ...]] = {}
    before, sparsity = model.method, model.sparsity
    output = sparsity.output_text_keep_rate if sparsity.use_output_text_predictor else 1.0
    model.set_method(
        create(
            LEARNED,
            sparse_layer=sparsity.sparse_layer,
            vision_keep_rate=sparsity.vision_keep_rate if sparsity.use_vision_predictor else 1.0,
            output_keep_rate=output,
            output_threshold=KEEP_ALL,
        )
    )
    order = sorted(range(len(dataset)), key=lambda index: dataset.lengths[index])
    order = [index for index in order if dataset.has_image[index]]
    try:
        with listening(model, judged), torch.no_grad():
            for start in tqdm(range(0, len(order), BATCH), desc="calibrate", disable=not progress):
                items = [first_answer(dataset[index]) for index in order[start : start + BATCH]]
                items = [(item, first, size) for item, first, size in items if size > 0]
                if not items:
                    continue
                batch = collate([item for item, _, _ in items])
                inputs = {k: v.to(model.device) for k, v in batch.items() if k not in NO_INPUTS}
                first = torch.tensor([first for _, first, _ in items], device=model.device)
                judged.clear()
                model(**inputs, use_cache=False, prompt_length=first)
                if "image" in judged:
                    read["image"] += rows_of(*judged["image"])
                if "output" in judged:
                    for row, (_, _, size) in enumerate(items):
                        if size + 1 >= min_answer_length:
                            read["output"].append(judged["output"][0][row : row + 1, :size])
    finally:
        model.set_method(before)
        model.last_report = None
    return read


def rows_of(hidden: torch.Tensor, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return each row's image tokens, [1, tokens, D]; rows without any are left out."""
    if mask is None:
        return list(hidden.split(1))
    rows = [hidden[row : row + 1, present] for row, present in enumerate(mask)]
    return [row for row in rows if row.shape[1]]


@contextmanager
def listening(model: Any, judged: dict[str, tuple[Any, ...]]) -> Iterator[None]:
    """Put what each predictor is given into ``judged`` while it lasts."""

    def note(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...]) -> None:
            judged[name] = arguments

        return hook

    handles = [
        predictor.register_forward_pre_hook(note(name))
        for name, predictor in model.predictors().items()
        if predictor is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_answer(item: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """Return one conversation up to its first answer's last token but one.

    While decoding the last token is never fed, so no predictor judges it.

    Returns
    -------
    item : dict
        As the data set gives it, shortened.
    first, size : int
        Tokens in front of the answer, and answer tokens that are left (0 without an answer).
    """
    labelled = item["labels"] != IGNORED
    if not bool(labelled.any()):
        return item, 0, 0
    first = int(labelled.int().argmax())
    size = int(labelled[first:].int().cumprod(0).sum()) - 1
    end = first + size
    short = {name: item[name][:end] for name in ("input_ids", "labels")}
    kinds = {name: value[:end] for name, value in item["kinds"].items()}
    return {**item, **short, "kinds": kinds}, first, size


def calibrate_folder(
    folder: Path,
    data: DataConfig,
    *,
    min_answer_length: int | None = None,
    dtype: str = "float32",
    progress: bool = True,
) -> dict[str, Calibration]:
    """Calibrate a checkpoint on disk on ``data``; nothing is written (:func:`store`).

    Parameters
    ----------
    folder : Path
    data : DataConfig
        As a training run's; generated conversations need no template.
    min_answer_length : int or None
        As in :func:`calibrate`; None: LEN_OT of the checkpoint.

    Raises
    ------
    UserError
        As :func:`calibrate`, or without a tokenizer.
    """
    if data.path.startswith(EMBEDDED):
        data = replace(data, template=data.template or "plain", image_aspect="pad")
    model, processor = load_model(str(folder), method=FULL, dtype=dtype)
    if processor is None:
        raise UserError(f"{folder} has no tokenizer: calibration needs one")
    config = TrainingConfig(model=str(folder), data=data)
    dataset = prepare_data(config, processor, picture_tokens(model))
    if min_answer_length is None:
        min_answer_length = model.sparsity.output_text_len_for_training
    return calibrate(model, dataset, data.path, min_answer_length, progress)


def store(folder: Path, found: dict[str, Calibration]) -> Path:
    """Write calibrations into the checkpoint's ``config.json``; return that file.

    Raises
    ------
    UserError
        If the file says nothing of predictors.
    """
    file = folder / "config.json"
    config = read_json_object(file)
    sparse = config.get(KEY)
    if not isinstance(sparse, dict):
        raise UserError(f"{file}: no {KEY}, so no predictors to calibrate")
    sparse |= {STORED[name]: calibration.to_dict() for name, calibration in found.items()}
    return write_text(file, json.dumps(config, indent=2) + "\n")
