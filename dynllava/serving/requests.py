"""Bodies of OpenAI's chat and completion requests: what is accepted, read and passed on."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

from dynllava.errors import UserError
from dynllava.prompts.templates import Turn, shortened

from .limits import Limits

ROLES = ("system", "user", "assistant")
_OWN = (
    "add_generation_prompt", "add_special_tokens", "chat_template", "chat_template_kwargs",
    "continue_final_message", "documents", "functions", "media_io_kwargs", "mm_processor_kwargs",
    "prompt_embeds", "tool_choice", "tools",
)  # fmt: skip
"""What the front decides itself or cannot render: set, they would change the prompt unseen."""


class Refused(UserError):
    """A request that is answered with an HTTP status and one line."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message, 1)
        self.status = status


@dataclass
class Chat:
    """A chat request.

    Attributes
    ----------
    turns : list of Turn
        Their ``images`` are encoded pictures (bytes).
    model : str or None
        What the request calls the model.
    options : dict
        Everything else, for the engine.
    """

    turns: list[Turn]
    model: str | None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[bytes]:
        """All pictures, in the order of the prompt."""
        return [image for turn in self.turns for image in turn.images]

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "user")

    @property
    def stream(self) -> bool:
        """Whether the answer is wanted piece by piece."""
        return bool(self.options.get("stream"))


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises
    ------
    Refused
        If it is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(f"the body is a {type(value).__name__}: a JSON object is expected")
    return value


def read_chat(value: dict[str, Any], limits: Limits) -> Chat:
    """Return a chat request.

    Raises
    ------
    Refused
        For what is not accepted: one line that says what is.
    """
    options = _options(value, "messages")
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("messages: a list of at least one message is expected")
    turns = [_turn(message, index, limits) for index, message in enumerate(messages)]
    if turns[-1].role != "user":
        raise Refused(f"messages: the last is of the {turns[-1].role}, accepted is a user's")
    images = sum(len(turn.images) for turn in turns)
    if images > limits.images:
        raise Refused(f"{images} images: at most {limits.images} are accepted in a request")
    return Chat(turns, _model(value), options)


def read_completion(value: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return model and options of a completion, whose prompt is text alone.

    Raises
    ------
    Refused
        For a prompt that is none, or fields that are not accepted.
    """
    options = _options(value, "prompt")
    prompt = value.get("prompt")
    parts = prompt if isinstance(prompt, list) and prompt else [prompt]
    if not all(isinstance(part, str) for part in parts):
        raise Refused("prompt: a text, or a list of texts, is expected")
    return _model(value), {**options, "prompt": prompt}


def _options(value: dict[str, Any], own: str) -> dict[str, Any]:
    for name in _OWN:
        if value.get(name) is not None:
            raise Refused(f"{name}: not accepted here")
    return {key: item for key, item in value.items() if key not in (own, "model", *_OWN)}


def _model(value: dict[str, Any]) -> str | None:
    model = value.get("model")
    if model is not None and not isinstance(model, str):
        raise Refused("model: a text is expected")
    return model or None


def _turn(message: Any, index: int, limits: Limits) -> Turn:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise Refused(f"{where}: a JSON object is expected")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Refused(f"{where}.role={role!r}: accepted are {', '.join(ROLES)}")
    if isinstance(content, str):
        return Turn(role, _text(content, f"{where}.content"))
    if not isinstance(content, list) or not content:
        raise Refused(f"{where}.content: a text or a list of parts is expected")
    texts: list[str] = []
    images: list[bytes] = []
    for number, part in enumerate(content):
        here = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(_text(part.get("text"), f"{here}.text"))
        elif kind == "image_url":
            if role != "user":
                raise Refused(f"{here}: images are accepted in a user's message alone")
            if len(images) >= limits.images:
                raise Refused(f"{here}: at most {limits.images} images are accepted in a request")
            images.append(_image(part.get("image_url"), here, limits))
        else:
            raise Refused(f"{here}.type={kind!r}: accepted are text and image_url")
    return Turn(role, "".join(texts), images)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{where}: a text is expected")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{where}: not valid Unicode text") from None
    return value


def _image(value: Any, where: str, limits: Limits) -> bytes:
    """Return the bytes of a ``data:`` URL; nothing is fetched from anywhere."""
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise Refused(f"{where}.image_url.url: a text is expected")
    head, comma, data = url.partition(",")
    if not head.startswith("data:image/") or not comma or not head.endswith(";base64"):
        raise Refused(
            f"{where}.image_url.url={shortened(url, 30)}: accepted is data:image/...;base64,..."
        )
    if len(data) > limits.image_bytes * 4 // 3 + 4:
        raise Refused(f"{where}: the image has more than {limits.image_bytes} bytes", 413)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{where}.image_url.url: not valid base64") from None
