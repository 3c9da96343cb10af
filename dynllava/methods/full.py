"""The dense model: every token in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynllava.methods.base import Method


@dataclass
class Full(Method):
    """Keeps everything; the reference that all other methods are compared with."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "dense model, nothing dropped"
    source: ClassVar[str] = "stock transformers LLaVA"
    reference: ClassVar[bool] = True
    certificate: ClassVar[str] = "equal to the stock model to float tolerance"
