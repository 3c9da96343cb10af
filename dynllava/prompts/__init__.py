"""From conversations to token ids: one place for the plugin, ``show`` and the checks."""

from .templates import (
    NAMES,
    PLAIN_QUESTION,
    VICUNA_SYSTEM,
    Template,
    Turn,
    choose_template,
    continuation_separator,
    render,
)
from .tokens import batch, prompt_ids

__all__ = [
    "NAMES",
    "PLAIN_QUESTION",
    "VICUNA_SYSTEM",
    "Template",
    "Turn",
    "batch",
    "choose_template",
    "continuation_separator",
    "prompt_ids",
    "render",
]
