"""Notices logits that are no numbers while a model generates.

Such logits still have a largest one, so that a broken model answers every question with the same
token and is scored 0 like a bad one.
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from dynllava.errors import UserError


class FiniteLogits(LogitsProcessor):
    """Counts the rows of a batch that had NaN or infinite logits in any step.

    Minus infinity alone is no fault: processors before this one set it for suppressed tokens.
    """

    def __init__(self) -> None:
        self._wrong: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the scores [B, V] of one step and return them as they are."""
        self.add(scores)
        return scores

    def add(self, logits: torch.Tensor) -> None:
        """Look at logits [B, ..., V]; nothing waits for the device."""
        # The largest is NaN if any is, and infinite if one is or if all are minus infinity.
        largest = logits.amax(-1)
        wrong = ~largest.isfinite()
        wrong = wrong.flatten(1).any(1) if wrong.dim() > 1 else wrong
        self._wrong = wrong if self._wrong is None else self._wrong | wrong

    @property
    def rows(self) -> list[int]:
        """Rows of the batch with such logits."""
        return [] if self._wrong is None else self._wrong.nonzero().flatten().tolist()

    def check(self, where: str) -> None:
        """Raise :class:`UserError` if there were any; ``where`` names the batch."""
        rows = self.rows
        if self._wrong is not None and rows:
            raise UserError(
                f"{where}: {len(rows)} of {len(self._wrong)} rows have logits that are no finite "
                "numbers: the weights do not suit this dtype, or are damaged",
                1,
            )

    def as_list(self) -> LogitsProcessorList:
        """Return what ``generate(logits_processor=...)`` takes."""
        return LogitsProcessorList([self])
