"""Conversation templates: from turns to the prompt text that the processor gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dynllava.errors import UserError

IMAGE = "<image>"
TEMPLATES = ("vicuna_v1", "plain", "embedded")
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass
class Turn:
    """One message.

    Attributes
    ----------
    role : str
        ``system``, ``user`` or ``assistant``.
    text : str
        May hold image placeholders of its own (tasks that place images themselves).
    images : list
        What the message shows, in order.
    """

    role: str
    text: str
    images: list[Any] = field(default_factory=list)

    def placed(self) -> str:
        """Return the text with one placeholder per image, in front where it has none.

        Raises
        ------
        UserError
            If the text's own placeholders do not match the number of images.
        """
        own = self.text.count(IMAGE)
        if own not in (0, len(self.images)):
            raise UserError(f"{own} image placeholders in the prompt for {len(self.images)} images")
        if own:
            return self.text
        return f"{IMAGE}\n" * len(self.images) + self.text


def choose_template(name: str | None, processor: Any) -> str:
    """Return the template's name: the wanted one, or the one that fits the checkpoint.

    A checkpoint whose own chat template has Vicuna's roles was trained with Vicuna's system
    prompt, which the published template leaves out: it gets ``vicuna_v1``, except that a closed
    vocabulary without the prompt's words cannot read it.  Any other chat template is used as it
    is (``embedded``: embedded in the checkpoint); without one it is ``vicuna_v1`` again.

    Raises
    ------
    UserError
        If the name is unknown, or the checkpoint has no chat template but one is asked for.
    """
    own = _own_template(processor)
    if name is None:
        vicuna = own is None or ("USER:" in own and "ASSISTANT:" in own)
        return "vicuna_v1" if vicuna and (own is None or _reads_vicuna(processor)) else "embedded"
    if name not in TEMPLATES:
        raise UserError(f"conv_template={name}: accepted are {', '.join(TEMPLATES)}")
    if name == "embedded" and own is None:
        raise UserError("conv_template=embedded: this checkpoint has no chat template of its own")
    return name


def render(template: str, turns: Sequence[Turn], processor: Any) -> str:
    """Return the prompt text, open for the assistant's next words.

    Parameters
    ----------
    template : str
        One of :data:`TEMPLATES`.
    turns : sequence of Turn
        Ends with a user turn.
    processor : ProcessorMixin
        Used by ``embedded`` only.
    """
    if template == "plain":
        return "".join(f"{turn.placed()}\n" for turn in turns)
    if template == "vicuna_v1":
        return _render_vicuna(turns, processor)
    messages = [{"role": turn.role, "content": turn.placed()} for turn in turns]
    return str(
        processor.tokenizer.apply_chat_template(
            messages,
            chat_template=_own_template(processor),
            tokenize=False,
            add_generation_prompt=True,
        )
    )


def continuation_separator(template: str) -> str:
    """Return what stands between the prompt and the assistant's first word."""
    return "" if template == "plain" else " "


def _render_vicuna(turns: Sequence[Turn], processor: Any) -> str:
    system = " ".join(turn.text for turn in turns if turn.role == "system") or VICUNA_SYSTEM
    end = getattr(processor.tokenizer, "eos_token", None) or "</s>"
    text = system + " "
    for turn in turns:
        if turn.role == "user":
            text += f"USER: {turn.placed()} "
        elif turn.role == "assistant":
            text += f"ASSISTANT: {turn.text}{end}"
    return text + "ASSISTANT:"


def _own_template(processor: Any) -> str | None:
    for owner in (processor, processor.tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, str) and template:
            return template
    return None


def _reads_vicuna(processor: Any) -> bool:
    """Return whether the vocabulary holds the words of Vicuna's system prompt."""
    tokenizer = processor.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    ids = tokenizer(VICUNA_SYSTEM, add_special_tokens=False)["input_ids"]
    return unknown is None or unknown not in ids
