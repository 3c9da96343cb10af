"""Model and data of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.models.checkpoints import hf_config
from dynllava.models.config import NO_PREDICTORS, DynamicLlavaConfig, SparsityConfig
from dynllava.models.layouts import Checkpoint, Layout, inspect
from dynllava.models.loading import load_model, load_processor
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration
from dynllava.models.stored_predictors import KEY, stored_sparsity
from dynllava.models.wrapping import wrap
from dynllava.output.files import reason
from dynllava.plan.names import FULL

from .config import TrainingConfig
from .data import InstructionDataset, load_records
from .parameters import freeze

EMBEDDED = "embedded:"


def prepare_model(config: TrainingConfig) -> tuple[Any, Any]:
    """Load the model, give it predictors if it has none, and freeze what does not train.

    Returns
    -------
    tuple
        The model in training mode (LLaVA-1.5's own class, or a wrapped model of another family),
        and its processor.
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
    if isinstance(model, DynamicLlavaForConditionalGeneration):
        model.config.use_cache = False
    return model.train(), processor


def meta_model(config: TrainingConfig) -> Any:
    """Return the model's shape without its weights (tensors on the meta device)."""
    checkpoint = inspect(config.model).require()
    if checkpoint.layout is Layout.STOCK:
        model = _meta_family(checkpoint)
        sparsify(model, config)
        freeze(model, config)
        return model
    values = dict(checkpoint.config)
    kind = values.pop("model_type", None)
    if checkpoint.is_original:
        values = hf_config(values, dict(checkpoint.eyes.config or {}), checkpoint.packer)
    elif kind == "llava":
        values[KEY] = dict(NO_PREDICTORS)
    with torch.device("meta"):
        model = DynamicLlavaForConditionalGeneration(DynamicLlavaConfig(**values))
        sparsify(model, config)
    freeze(model, config)
    return model


def _meta_family(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        values = AutoConfig.from_pretrained(str(checkpoint.folder))
        # Where its predictors lie is of no use here: there are no weights.
        values._name_or_path = ""
        with torch.device("meta"):
            model = wrap(AutoModelForImageTextToText.from_config(values))
            stored = stored_sparsity(values)
            if stored is not None:
                model.add_predictors(stored)
    except UserError:
        raise
    except Exception as error:
        # Whatever a field holds that transformers' layers do not expect.
        raise UserError(
            f"{checkpoint.folder}/config.json: makes no model ({reason(error)})"
        ) from None
    return model


def sparsify(model: Any, config: TrainingConfig) -> None:
    """Set the method that a model trains under, and what its checkpoint will say about it."""
    if not config.learns:
        model.set_method(create(config.method, **config.method_args))
        return
    targets = config.sparsity
    vision, output = targets.vision_keep_rate < 1, targets.output_keep_rate < 1
    if not (vision or output):
        raise UserError("both keep rates are 1: no predictor would be trained")
    stored = SparsityConfig.from_dict(getattr(model.config, KEY, None))
    wanted = {**stored.to_dict(), **config.predictor}
    wanted |= {
        "sparse_layer": config.sparse_layer,
        "vision_keep_rate": targets.vision_keep_rate,
        "output_text_keep_rate": targets.output_keep_rate,
        "mask_loss_weight": targets.mask_loss_weight,
        "output_text_len_for_training": targets.min_answer_length,
        "output_threshold": None,
        "elastic": targets.elastic,
        "vision_keep_rates": targets.vision_keep_rates,
        "output_text_keep_rates": targets.output_keep_rates,
        "vision_calibration": None,
        "output_calibration": None,
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
        setattr(model.config, KEY, {**(getattr(model.config, KEY, None) or {}), **wanted})
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
    told = {elastic == "condition" for elastic in (stored.elastic, config.sparsity.elastic)}
    if len(told) > 1:
        raise UserError(
            f"sparsity.elastic={config.sparsity.elastic}: {config.model} has predictors of "
            f"elastic={stored.elastic}; only predictors of condition are told the rate"
        )


def picture_tokens(model: Any) -> int | None:
    """Return the language-model tokens of a picture where all have as many (LLaVA-1.5)."""
    if isinstance(model, DynamicLlavaForConditionalGeneration):
        return model.config.image_seq_length
    return None


def stored_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the files of a checkpoint that hold for what it is trained to.

    The terms of its weights; for other families than LLaVA-1.5 also tokenizer, processor and
    template as they are published, so that stock transformers opens the result.
    """
    if checkpoint.layout is not Layout.STOCK:
        return checkpoint.licences
    kinds = (".json", ".jinja", ".model", ".txt")
    made = ("config.json", "generation_config.json")
    files = [
        path
        for path in sorted(checkpoint.folder.iterdir())
        if path.is_file() and path.suffix in kinds
        if path.name not in made and not path.name.endswith(".index.json")
    ]
    return tuple(dict.fromkeys([*checkpoint.licences, *files]))


def prepare_data(
    config: TrainingConfig, processor: Any, image_tokens: int | None
) -> InstructionDataset:
    """Return the checked data set of a run.

    ``image_tokens``: language-model tokens of one picture of LLaVA-1.5; other families' processors
    count them themselves.
    """
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
