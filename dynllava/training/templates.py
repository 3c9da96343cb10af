"""Conversation templates: the text of a record and which characters are answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynllava.errors import UserError
from dynllava.prompts import VICUNA_SYSTEM

PLACEHOLDER = "<image>"
SYSTEMS = {"vicuna_v1": VICUNA_SYSTEM + " ", "plain": ""}
"""Text in front of the first turn; ``plain`` is the turn format alone (the embedded model)."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def check_template(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` is a known template."""
    if name not in SYSTEMS:
        raise UserError(f"template={name!r}: accepted are {', '.join(SYSTEMS)}")


def turns_of(conversations: Any, where: str) -> list[tuple[str, str]]:
    """Return the (question, answer) pairs of a record.

    Parameters
    ----------
    conversations : sequence of dict
        ``from`` (human, gpt) and ``value``, as LLaVA's instruction files have it.
    where : str
        Names the record in errors.

    Notes
    -----
    Leading answers and a trailing question are left out, as the official preprocessing does with
    the former.
    """
    if not isinstance(conversations, Sequence) or isinstance(conversations, str):
        raise UserError(f"{where}: no list of conversations")
    messages = []
    for number, turn in enumerate(conversations):
        role = ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise UserError(f"{where}: turn {number} needs from (human or gpt) and a text value")
        messages.append((role, turn["value"]))
    while messages and messages[0][0] != "user":
        messages.pop(0)
    for number, (role, _) in enumerate(messages):
        if role != ("user", "assistant")[number % 2]:
            raise UserError(f"{where}: turns do not alternate between human and gpt")
    pairs = zip(messages[::2], messages[1::2], strict=False)
    turns = [(question, answer) for (_, question), (_, answer) in pairs]
    if not turns:
        raise UserError(f"{where}: no question with an answer in its conversations")
    return turns


def render(
    turns: Sequence[tuple[str, str]], template: str, eos: str, image: str = PLACEHOLDER
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation and the character spans of its answers.

    Parameters
    ----------
    turns : sequence of (str, str)
        The image placeholder of a question is moved to its front, on a line of its own.
    template : str
        Key of :data:`SYSTEMS`.
    eos : str
        Ends each answer and belongs to it.
    image : str
        What stands for the image in the text (the placeholder, or as many as there are tokens).

    Returns
    -------
    str
        ``SYSTEM USER: question ASSISTANT: answer</s>USER: ...``
    list of (int, int)
        A span starts at the space in front of the answer: a tokenizer may make that space part
        of the first word or a token of its own, and both are trained, as in the official code.
    """
    text, spans = SYSTEMS[template], []
    for question, answer in turns:
        if PLACEHOLDER in question:
            question = f"{image}\n{question.replace(PLACEHOLDER, '').strip()}".strip()
        text += f"USER: {question} ASSISTANT:"
        start = len(text)
        text += f" {answer}{eos}"
        spans.append((start, len(text)))
    return text, spans
