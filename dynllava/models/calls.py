"""What the outer model's door knows and the text model needs, for the length of one call.

A stock outer model hands its text model embeddings and positions only.  Which tokens are image
tokens, where the output begins and which cache is meant is known at its door; a context variable
carries it past the stock code, so that calls in several threads do not meet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from dynllava.engine.rows import Rows
from dynllava.engine.stream import TokenStream


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
    early : bool
        Whether the plan has cuts before layer 0, which the layer loop carries out on a prompt.
    rows : list of Rows or None
        The images' rows behind the projector, all images in order, where a cut before it chose
        them.
    present : Tensor [B, L] bool or None
        False for placeholders that hold nothing.
    grids : list of list of (int, int) or None
        Per row, the (rows, columns) of each grid of patch tokens, in token order.
    pictures : list of list of int or None
        Per row, the patch tokens of each image; None = an unbroken run of them is an image.
    questions : sequence of (str or None), optional
        What each row asks.
    learned : Tensor [B, L] bool or None
        Learned tokens that stand for an image.
    last_only : bool
        Only each row's last token is wanted.
    sparse_logits : bool
        The caller takes hidden states of the tokens that are left instead of all columns', and
        brings what it makes of them back to the columns.
    left : TokenStream or None
        Set by the layer loop: the tokens that are left, where it gave back those alone.
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
    early: bool = False
    rows: list[Rows] | None = None
    present: torch.Tensor | None = None
    grids: list[list[tuple[int, int]]] | None = None
    pictures: list[list[int]] | None = None
    questions: Sequence[str | None] | None = None
    learned: torch.Tensor | None = None
    last_only: bool = False
    sparse_logits: bool = False
    left: TokenStream | None = None
    ran: bool = False

    def images(self) -> list[list[int]]:
        """Return the patch tokens of each image of each row."""
        if self.pictures is not None or self.is_image is None:
            return self.pictures or []
        return [
            [sum(1 for _ in run) for mark, run in itertools.groupby(row) if mark]
            for row in self.is_image.tolist()
        ]


@dataclass(frozen=True)
class PromptImages:
    """Where the images of a prompt lie.

    Attributes
    ----------
    is_patch : Tensor [B, L] bool
        Placeholders that stand for patches; newline tokens are left out (kept as text is).
    grids : list of list of (int, int)
        Per row, the (rows, columns) of each grid of patch tokens, in token order.
    pictures : list of list of int
        Per row, the patch tokens of each image.
    rows : list of list of Rows or None
        Per row, what is left of each image where a cut before the projector chose already.
    """

    is_patch: torch.Tensor
    grids: list[list[tuple[int, int]]]
    pictures: list[list[int]]
    rows: list[list[Rows]] | None = None

    def of(self, is_image: torch.Tensor) -> PromptImages:
        """Return them for a call: rows repeated (beams), columns behind the prompt without images.

        ``is_image`` [B * n, L or more] are the call's placeholders.
        """
        times = is_image.shape[0] // self.is_patch.shape[0]
        patches = self.is_patch.to(is_image.device).repeat_interleave(times, 0)
        more = is_image.shape[1] - patches.shape[1]

        def repeated(rows: list[Any]) -> list[Any]:
            return [row for row in rows for _ in range(times)]

        return PromptImages(
            torch.nn.functional.pad(patches, (0, more)),
            repeated(self.grids),
            repeated(self.pictures),
            None if self.rows is None else repeated(self.rows),
        )


_PROMPT: ContextVar[PromptImages | None] = ContextVar("dynllava_prompt_images", default=None)
_CURRENT: ContextVar[ModelCall | None] = ContextVar("dynllava_model_call", default=None)


@contextmanager
def calling(call: ModelCall) -> Iterator[ModelCall]:
    """Make ``call`` the current one."""
    token = _CURRENT.set(call)
    try:
        yield call
    finally:
        _CURRENT.reset(token)


@contextmanager
def remembering(images: PromptImages | None) -> Iterator[None]:
    """Remember where the images of a prompt lie, while ``generate()`` runs."""
    token = _PROMPT.set(images)
    try:
        yield
    finally:
        _PROMPT.reset(token)


def prompt_images() -> PromptImages | None:
    """Return where the images of the prompt lie, while ``generate()`` runs."""
    return _PROMPT.get()


def current() -> ModelCall | None:
    """Return the call that is under way in this thread, or None."""
    return _CURRENT.get()
