"""What the outer model's door knows and the text model needs, for the length of one call.

A stock outer model hands its text model embeddings and positions only.  Which tokens are image
tokens, where the output begins and which cache is meant is known at its door; a context variable
carries it past the stock code, so that calls in several threads do not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class ModelCall:
    """One call of a wrapped model.

    Attributes
    ----------
    model : Module
        The wrapped outer model.
    input_ids : Tensor [B, L] int64 or None
    is_image : Tensor [B, L] bool
        Image placeholders.
    prompt_length, sample_ids, outputs_fed, policy_hook
        As in ``forward`` of the wrapped model.
    last_only : bool
        Only each row's last token is wanted.
    ran : bool
        Set by the layer loop: a call that stock code took elsewhere is an error, not a dense run.
    """

    model: Any
    input_ids: torch.Tensor | None
    is_image: torch.Tensor | None
    prompt_length: torch.Tensor | None = None
    sample_ids: torch.Tensor | None = None
    outputs_fed: bool | None = None
    policy_hook: Any = None
    last_only: bool = False
    training: bool = False
    ran: bool = False


_CURRENT: ContextVar[ModelCall | None] = ContextVar("dynllava_model_call", default=None)


@contextmanager
def calling(call: ModelCall) -> Iterator[ModelCall]:
    """Make ``call`` the current one."""
    token = _CURRENT.set(call)
    try:
        yield call
    finally:
        _CURRENT.reset(token)


def current() -> ModelCall | None:
    """Return the call that is under way in this thread, or None."""
    return _CURRENT.get()
