"""Tiny random models and batches: those of the package, by their short name."""

from dynllava.conformance.tiny import (
    IMAGE_TOKEN,
    IMAGE_TOKENS,
    PREDICTORS,
    batch,
    pixels,
    prompts,
    randomise,
    stock_model,
    text_config,
    tiny_model,
    vision_config,
)

__all__ = [
    "IMAGE_TOKEN",
    "IMAGE_TOKENS",
    "PREDICTORS",
    "batch",
    "pixels",
    "prompts",
    "randomise",
    "stock_model",
    "text_config",
    "tiny_model",
    "vision_config",
]
