"""The lmms-eval plugin's model as a sweep uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval_dynllava.models import DynamicLlavaSimple


class SweepAdapter(DynamicLlavaSimple):
    """Stays alive between runs, and reports the length of what it scored."""

    def clean(self) -> None:
        """Free nothing: the next run uses the same model, and a collection takes seconds."""

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return (log-probability, greedy) of each request with its number of tokens.

        lmms-eval 0.7 prints a bare pair into a text and has no other place for the count.
        """
        self._lengths: list[int] = []
        pairs = super().loglikelihood(requests)
        if any(isinstance(pair, GenerationResult) for pair in pairs):
            return pairs
        lengths = iter(self._lengths)
        padding = [bool((item.metadata or {}).get("__padding_only__")) for item in requests]
        return [
            GenerationResult(pair, TokenCounts(output_tokens=0 if added else next(lengths)))
            for pair, added in zip(pairs, padding, strict=True)
        ]

    def _score(self, jobs: Sequence[Any], continuations: Sequence[str]) -> list[Any]:
        scores = super()._score(jobs, continuations)
        self._lengths = [score.tokens for score in scores]
        return scores
