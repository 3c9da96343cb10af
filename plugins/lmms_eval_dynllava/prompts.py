"""From lmms-eval's requests to prompts: text, image, generation arguments, identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dynllava.errors import UserError
from dynllava.images import open_image
from dynllava.prompts import Turn

PADDING_FLAG = "__padding_only__"


@dataclass(frozen=True)
class Source:
    """Which document of which task a prompt comes from."""

    task: str
    split: str
    doc_id: int

    @property
    def sample_id(self) -> int:
        """A stable identity (31 bits) for methods that hash: independent of batch and launch."""
        digest = hashlib.sha256(f"{self.task}\0{self.split}\0{self.doc_id}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def __str__(self) -> str:
        return f"task {self.task}, document {self.doc_id}"


@dataclass
class Prompt:
    """One prompt, ready for the processor.

    Attributes
    ----------
    source : Source
    text : str
        Rendered conversation with image placeholders.
    images : list of PIL image
        In RGB, in the order of the placeholders.
    question : str
        What is asked: the last turn of the user, without template.
    """

    source: Source
    text: str
    images: list[Image.Image] = field(default_factory=list)
    question: str = ""


@dataclass
class GenerationArguments:
    """What a task asks of the generation.

    Attributes
    ----------
    options : dict
        Keyword arguments of ``model.generate``.
    until : list of str
        The answer ends before the first of these.
    """

    options: dict[str, Any] = field(default_factory=dict)
    until: list[str] = field(default_factory=list)

    def cut(self, text: str) -> str:
        """Return ``text`` up to the first stop string, stripped."""
        ends = [text.find(stop) for stop in self.until]
        return text[: min((end for end in ends if end >= 0), default=len(text))].strip()


# Passed on to ``generate`` as they are.
_OPTIONS = [
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "early_stopping",
]
_SAMPLING = ("temperature", "top_p", "top_k")


def generation_arguments(
    kwargs: dict[str, Any], default_max_new_tokens: int
) -> GenerationArguments:
    """Return a task's ``generation_kwargs`` as arguments of ``model.generate``.

    Keys that belong to other models (``image_aspect_ratio`` ...) are left out.  A temperature of
    0 means greedy decoding whatever ``do_sample`` says.

    Raises
    ------
    UserError
        If ``max_new_tokens`` is no positive integer or ``until`` no text.
    """
    until = kwargs.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(stop, str) for stop in until):
        raise UserError(f"until={until!r}: accepted is a text or a list of texts")
    options = {key: kwargs[key] for key in _OPTIONS if kwargs.get(key) is not None}
    options.setdefault("max_new_tokens", default_max_new_tokens)
    limit = options["max_new_tokens"]
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise UserError(f"max_new_tokens={limit!r}: accepted is an integer from 1")
    temperature = kwargs.get("temperature")
    wanted = kwargs.get("do_sample", temperature is not None and temperature > 0)
    options["do_sample"] = bool(wanted) and temperature != 0
    if options["do_sample"]:
        options |= {key: kwargs[key] for key in _SAMPLING if kwargs.get(key) is not None}
    return GenerationArguments(options, [stop for stop in until if stop])


def turns_from_context(context: str, visuals: Iterable[Any] | None) -> list[Turn]:
    """Return the turns of a simple request: one question, or a conversation as JSON.

    The JSON form, ``[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]``, is
    what multi-round tasks of lmms-eval hand over; roles alternate and the images belong to the
    first turn.
    """
    images = list(visuals or [])
    values = [context]
    if context.lstrip().startswith("[{"):
        try:
            values = [str(item["value"]) for item in json.loads(context)]
        except (ValueError, TypeError, KeyError):
            values = [context]
    roles = ("user", "assistant")
    turns = [Turn(roles[index % 2], value) for index, value in enumerate(values)]
    turns[0].images = images
    return turns


def turns_from_messages(messages: Iterable[dict[str, Any]]) -> list[Turn]:
    """Return the turns of a chat request.

    Raises
    ------
    UserError
        If a message holds something that is neither text nor image.
    """
    turns = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kinds = {part["type"] for part in parts}
        if kinds - {"text", "image"}:
            raise UserError(
                f"{sorted(kinds - {'text', 'image'})[0]} input: accepted is text and image"
            )
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        images = [part["url"] for part in parts if part["type"] == "image"]
        turns.append(Turn(message["role"], text, images))
    return turns


def opened_images(turns: Iterable[Turn]) -> list[Image.Image]:
    """Return the conversation's images in RGB, in order.

    Raises
    ------
    UserError
        If what is there is no image.
    """
    return [open_image(image) for turn in turns for image in turn.images]
