"""Model and data of a training run."""

from __future__ import annotations

from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.models.checkpoints import hf_config
from dynllava.models.config import DynamicLlavaConfig, SparsityConfig
from dynllava.models.layouts import inspect
from dynllava.models.loading import load_model, load_processor
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration
from dynllava.plan.names import FULL

from .config import TrainingConfig
from .data import InstructionDataset, load_records
from .parameters import freeze

EMBEDDED = "embedded:"


def prepare_model(config: TrainingConfig) -> tuple[DynamicLlavaForConditionalGeneration, Any]:
    """Load the model, give it predictors if it has none, and freeze what does not train.

    Returns
    -------
    tuple
        The model in training mode, and its processor.
    """
    model, processor = load_model(
        config.model,
        method=FULL,
        dtype=config.run.dtype,
        attn_implementation=config.run.attention,
    )
    if processor is None:
        raise UserError(f"{config.model} has no tokenizer: training needs one")
    torch.manual_seed(config.run.seed)
    sparsify(model, config)
    freeze(model, config)
    model.config.use_cache = False
    return model.train(), processor


def meta_model(config: TrainingConfig) -> DynamicLlavaForConditionalGeneration:
    """Return the model's shape without its weights (tensors on the meta device)."""
    checkpoint = inspect(config.model).require()
    values = dict(checkpoint.config)
    kind = values.pop("model_type", None)
    if checkpoint.is_original:
        values = hf_config(values, dict(checkpoint.eyes.config or {}), checkpoint.packer)
    elif kind == "llava":
        none = {"use_vision_predictor": False, "use_output_text_predictor": False}
        values["sparse_config"] = none
    with torch.device("meta"):
        model = DynamicLlavaForConditionalGeneration(DynamicLlavaConfig(**values))
        sparsify(model, config)
    freeze(model, config)
    return model


def sparsify(model: DynamicLlavaForConditionalGeneration, config: TrainingConfig) -> None:
    """Set the method that a model trains under, and what its checkpoint will say about it."""
    if not config.learns:
        model.set_method(create(config.method, **config.method_args))
        return
    targets = config.sparsity
    vision, output = targets.vision_keep_rate < 1, targets.output_keep_rate < 1
    if not (vision or output):
        raise UserError("both keep rates are 1: no predictor would be trained")
    stored = model.config.sparsity()
    wanted = {**stored.to_dict(), **config.predictor}
    wanted |= {
        "sparse_layer": config.sparse_layer,
        "vision_keep_rate": targets.vision_keep_rate,
        "output_text_keep_rate": targets.output_keep_rate,
        "mask_loss_weight": targets.mask_loss_weight,
        "output_text_len_for_training": targets.min_answer_length,
        "output_threshold": None,
    }
    existing = {"vision": model.image_predictor, "output_text": model.output_predictor}
    if all(predictor is None for predictor in existing.values()):
        wanted |= {"use_vision_predictor": vision, "use_output_text_predictor": output}
        model.add_predictors(SparsityConfig.from_dict(wanted))
    else:
        _check_sizes(stored, config)
        for name, predictor in existing.items():
            if predictor is None and (vision if name == "vision" else output):
                raise UserError(f"{config.model} has predictors, but no {name} predictor to train")
        model.config.sparse_config = {**(model.config.sparse_config or {}), **wanted}
    model.set_method(
        config.method,
        sparse_layer=config.sparse_layer,
        vision_keep_rate=targets.vision_keep_rate,
        output_keep_rate=targets.output_keep_rate,
    )


def _check_sizes(stored: SparsityConfig, config: TrainingConfig) -> None:
    for name, value in config.predictor.items():
        if getattr(stored, name) != value:
            raise UserError(
                f"predictor.{name}={value}: {config.model} has predictors of "
                f"{name}={getattr(stored, name)}"
            )


def prepare_data(config: TrainingConfig, processor: Any, image_tokens: int) -> InstructionDataset:
    """Return the checked data set of a run."""
    data = config.data
    records = (
        _embedded_records(data.path)
        if data.path.startswith(EMBEDDED)
        else load_records(data.path, data.split)
    )
    return InstructionDataset(
        records,
        processor,
        data.image_folder,
        template=data.template,
        image_aspect=data.image_aspect,
        max_length=data.max_length,
        image_tokens=image_tokens,
        skip_missing=data.skip_missing,
    )


def _embedded_records(path: str) -> list[dict[str, Any]]:
    from dynllava.embedded.data import training_records

    seed, _, count = path.removeprefix(EMBEDDED).partition(":")
    if not (seed.isdigit() and count.isdigit()):
        raise UserError(f"data.path={path!r}: accepted is embedded:SEED:COUNT")
    return [
        {"id": f"{path}/{index}", "image": image, "conversations": conversations}
        for index, (image, conversations) in enumerate(training_records(int(seed), int(count)))
    ]


def data_processor(config: TrainingConfig) -> Any:
    """Return the processor alone (for a plan, which needs no weights)."""
    processor = load_processor(config.model)
    if processor is None:
        raise UserError(f"{config.model} has no tokenizer: training needs one")
    return processor
