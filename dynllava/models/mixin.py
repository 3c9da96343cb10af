"""What stands behind a mixin, for type checkers: a stock class of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Stock
else:
    Stock = object

__all__ = ["Stock"]
