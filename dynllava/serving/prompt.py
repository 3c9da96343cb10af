"""A conversation as the engine gets it: rendered here, rows of pictures in their places.

The engine's own template passes parts on as they are (:data:`TEMPLATE`): the prompt that it runs
is the one that research code runs, and each picture's rows stand where its placeholder stood.  Rows
go as ``prompt_embeds`` parts.  ``image_embeds`` parts would be batched by the engine, and two of
different length in one step end it (vLLM 0.32.0).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynllava.prompts.templates import IMAGE, Template, Turn, choose_template, render
from dynllava.prompts.tokens import prompt_ids

from .requests import Refused

TEMPLATE = (
    "{%- for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor -%}"
)
"""Chat template of the engine."""

Finish = Callable[[Sequence[int], Sequence[torch.Tensor]], list[torch.Tensor]]


class Prompts:
    """Renders conversations with a checkpoint's template.

    Parameters
    ----------
    processor : LlavaProcessor
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.template: Template = choose_template(None, processor)

    def text(self, turns: Sequence[Turn]) -> str:
        """Return the prompt with a placeholder for each picture.

        Raises
        ------
        UserError
            If the user's texts hold placeholders of their own that do not fit the pictures.
        """
        return render(self.template, turns, self.processor)

    def opened(self, text: str) -> str:
        """Return a prompt with the BOS that the tokenizer would put before it."""
        tokenizer = self.processor.tokenizer
        bos = tokenizer.bos_token_id
        ids = list(tokenizer(text)["input_ids"])
        adds = bos is not None and ids[:1] == [bos] and not text.startswith(tokenizer.bos_token)
        return (tokenizer.bos_token if adds else "") + text

    def ids(self, text: str, rows: Sequence[torch.Tensor]) -> list[int]:
        """Return the tokens of a prompt with an image position for every row [K, D]."""
        own = self.processor.tokenizer
        pieces = text.split(IMAGE)
        found: list[int] = []
        whole = prompt_ids(own, text, self.processor.image_token_id, 1)
        counts = iter(len(item) for item in rows)
        for token in whole:
            found += [token] * (next(counts) if token == self.processor.image_token_id else 1)
        if len(pieces) != len(rows) + 1:
            raise Refused(f"{len(pieces) - 1} image placeholders for {len(rows)} images")
        return found

    def content(self, text: str, rows: Sequence[torch.Tensor]) -> list[dict[str, str]]:
        """Return the parts of the one message that the engine gets.

        Parameters
        ----------
        text : str
            With a placeholder for each of ``rows``.
        rows : sequence of Tensor [K, D]
            A picture of which nothing is left has no part.
        """
        pieces = text.split(IMAGE)
        if len(pieces) != len(rows) + 1:
            raise Refused(f"{len(pieces) - 1} image placeholders for {len(rows)} images")
        parts = [{"type": "text", "text": self.opened(pieces[0])}]
        for item, piece in zip(rows, pieces[1:], strict=True):
            if len(item):
                parts.append({"type": "prompt_embeds", "data": encoded(item)})
            parts.append({"type": "text", "text": piece})
        return [part for part in parts if part.get("text") != ""]


def encoded(rows: torch.Tensor) -> str:
    """Return rows [K, D] in base64, as engines read them."""
    buffer = io.BytesIO()
    # A view would bring its whole storage along.
    torch.save(rows.contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
