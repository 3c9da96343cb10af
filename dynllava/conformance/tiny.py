"""Tiny random LLaVA models and batches, on which methods are checked."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from dynllava.engine.report import CallReport
from dynllava.models.config import DynamicLlavaConfig
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration

IMAGE_TOKEN = 99
IMAGE_TOKENS = 16
PREDICTORS = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "num_layers": 2}


def vision_config() -> CLIPVisionConfig:
    """Return a tower of 16 patches and two layers."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )


def text_config(kind: str = "llama", kv_heads: int = 4, layers: int = 5) -> PretrainedConfig:
    """Return a text model's configuration: ``llama``, ``mistral`` or ``qwen2``."""
    classes = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    extra = {"sliding_window": None} if kind == "mistral" else {}
    return classes[kind](
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=100,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **extra,
    )


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every token matters and decisions are far from ties."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5 * 1.2, generator=generator)
            elif "norm" not in name:
                parameter.normal_(0, 0.1, generator=generator)


def stock_model(kind: str = "llama", kv_heads: int = 4, seed: int = 0, layers: int = 5) -> Any:
    """Return a stock LLaVA with random weights."""
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(kind, kv_heads, layers),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
    )
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


def tiny_model(
    kind: str = "llama", kv_heads: int = 4, seed: int = 0, layers: int = 5, **sparse
) -> DynamicLlavaForConditionalGeneration:
    """Return a model of ours with random weights and predictors."""
    config = DynamicLlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(kind, kv_heads, layers),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        sparse_config={**PREDICTORS, **sparse},
    )
    model = DynamicLlavaForConditionalGeneration(config).eval()
    randomise(model, seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompts(seed: int = 0, rows: int = 4) -> list[torch.Tensor]:
    """Ragged prompts [L]; every third one is text only."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for row in range(rows):
        before = int(torch.randint(2, 6, (1,), generator=generator))
        after = int(torch.randint(4, 12, (1,), generator=generator))
        image = 0 if row % 3 == 2 else IMAGE_TOKENS
        text = torch.randint(3, 98, (before + after,), generator=generator)
        out.append(torch.cat([text[:before], torch.full((image,), IMAGE_TOKEN), text[before:]]))
    return out


def pixels(seed: int = 0, rows: int = 4) -> list[torch.Tensor | None]:
    """Return the prompts' images [3, 56, 56], None where a row has none."""
    generator = torch.Generator().manual_seed(1000 + seed)
    images = [torch.randn(3, 56, 56, generator=generator) for _ in range(rows)]
    return [None if row % 3 == 2 else image for row, image in enumerate(images)]


def batch(
    ids: list[torch.Tensor], images: list[torch.Tensor | None], side: str = "left"
) -> dict[str, torch.Tensor]:
    """Return padded model inputs."""
    width = max(len(row) for row in ids)
    input_ids = torch.zeros(len(ids), width, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(ids):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        input_ids[index, where] = row
        mask[index, where] = 1
    real = [image for image in images if image is not None]
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    if real:
        inputs["pixel_values"] = torch.stack(real)
    return inputs


def last_report(model: Any) -> CallReport:
    """Return the report of the model's last call."""
    report = model.last_report
    assert report is not None  # a call was made
    return report
