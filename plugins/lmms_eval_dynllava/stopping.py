"""Ending an answer at a task's stop strings while it is generated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

_TOKENS_PER_CHARACTER = 4
"""Tokens that one character can take: the bytes of its UTF-8 form."""


class StopStrings(StoppingCriteria):
    """Ends a row as soon as its decoded answer holds a stop string.

    transformers' own criterion also matches where prompt and answer together form the string, and
    reads a token's text off the vocabulary; this one asks the same question as the cutting of the
    finished answer, so answers are those of an unstopped generation, only sooner.

    Parameters
    ----------
    tokenizer : tokenizer
        Used by this criterion alone: the tokenizer that encodes the next batch meanwhile in
        another thread must not decode.
    until : sequence of str
        Stop strings.
    width : int
        Columns of the prompt.
    ends : collection of int
        Tokens that end a row without a stop string.

    Attributes
    ----------
    lengths : dict
        Row -> tokens of its answer, for the rows that a stop string has ended.
    """

    def __init__(
        self, tokenizer: Any, until: Sequence[str], width: int, ends: Collection[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.until = tuple(until)
        self.width = width
        self.ends = frozenset(ends)
        self.lengths: dict[int, int] = {}
        self._finished: set[int] = set()
        self._tail = _TOKENS_PER_CHARACTER * (max(map(len, until)) + 1)

    def __call__(
        self, input_ids: torch.LongTensor, scores: Any = None, **kwargs: Any
    ) -> torch.BoolTensor:
        """Return [B] bool: rows whose answer holds a stop string."""
        count = input_ids.shape[1] - self.width
        tails = input_ids[:, max(self.width, input_ids.shape[1] - self._tail) :].tolist()
        self._finished.update(row for row, tail in enumerate(tails) if tail[-1] in self.ends)
        active = [row for row in range(len(tails)) if row not in self._finished]
        # The string may begin in an earlier token, but it ends in the newest one.
        texts = self._decoded([tails[row] for row in active])
        near = [row for row, text in zip(active, texts, strict=True) if self._stops(text)]
        if near and count > self._tail:
            texts = self._decoded(input_ids[near, self.width :].tolist())
            near = [row for row, text in zip(near, texts, strict=True) if self._stops(text)]
        for row in near:
            self.lengths[row] = count
        self._finished.update(near)
        done = torch.zeros(len(tails), dtype=torch.bool)
        done[list(self.lengths)] = True
        return done.to(input_ids.device)  # type: ignore[return-value]

    def _decoded(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []

    def _stops(self, text: str) -> bool:
        return any(stop in text for stop in self.until)
