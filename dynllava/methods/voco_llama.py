"""VoCo-LLaMA (Ye et al., CVPR 2025): learned tokens take an image in, text sees those alone.

The prompt holds ``<voco>`` tokens behind the image: ``<image>``, newline, the tokens, newline, then
the conversation.  Text behind the last of them sees nothing before the first, neither the image
nor the text there, so the cache keeps what is behind: one pass under that mask, a prefix followed
by the rest on its cut cache, and whole sequences without a cache give the same logits.  Positions
stay the original ones, although the cache is short.  A prompt without such tokens is plain causal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynllava.plan import Plan, Span

from .base import Method, check_number


@dataclass(frozen=True)
class VocoLlama(Method):
    """Keeps the cache from the first learned token on; inference of checkpoints trained for it.

    Parameters
    ----------
    token_id : int
        Id of ``<voco>`` (the official checkpoints add one row, 32000, to the vocabulary).
    """

    name: ClassVar[str] = "voco_llama"
    summary: ClassVar[str] = "text sees learned tokens instead of the image, and so does the cache"
    source: ClassVar[str] = "arXiv 2406.12275, official repository Yxxxb/VoCo-LLaMA"
    certificate: ClassVar[str] = "golden/projectors_and_stages"

    token_id: int = 32000

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_number("token_id", self.token_id, first=0)
        return Plan(store=Span(token=self.token_id), prompt="split")
