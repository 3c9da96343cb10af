"""Dense: the stock model, nothing dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Method


@dataclass(frozen=True)
class Full(Method):
    """Keeps every token in every layer."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "dense model, nothing dropped"
    source: ClassVar[str] = "stock transformers LLaVA"
    certificate: ClassVar[str] = "equal to the stock model to float tolerance"
