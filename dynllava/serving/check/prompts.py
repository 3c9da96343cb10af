"""Pictures and questions that the checks ask."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dynllava.embedded import FAMILIES, generate_scene
from dynllava.embedded.data import split_questions

SPLIT = "test"


@dataclass(frozen=True)
class Prompt:
    """A question about a picture.

    Attributes
    ----------
    name : str
    picture : bytes
        PNG.
    question : str
    """

    name: str
    picture: bytes
    question: str

    def body(self, model: str, tokens: int, **options: Any) -> dict[str, Any]:
        """Return the chat request for at most ``tokens`` tokens, greedy."""
        parts = [
            {"type": "image_url", "image_url": {"url": data_url(self.picture)}},
            {"type": "text", "text": self.question},
        ]
        return {
            "model": model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": tokens,
            "temperature": 0,
            **options,
        }


def data_url(picture: bytes) -> str:
    """Return a PNG as a ``data:`` URL."""
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def png(image: Image.Image) -> bytes:
    """Return a picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def questions(count: int) -> list[Prompt]:
    """Return the first ``count`` questions of the embedded test split, all families in turn."""
    each = -(-count // len(FAMILIES))
    found = {name: list(split_questions(SPLIT, name, each)) for name in FAMILIES}
    prompts = [
        Prompt(f"{name}-{index}", png(found[name][index][0].image), found[name][index][1].text)
        for index in range(each)
        for name in FAMILIES
    ]
    return prompts[:count]


def fresh(seed: str, question: str) -> Iterator[Prompt]:
    """Yield questions about pictures that nobody has seen: no cache can know them."""
    index = 0
    while True:
        name = f"serve-check/{seed}/{index}"
        yield Prompt(name, png(generate_scene(name).image), question)
        index += 1
