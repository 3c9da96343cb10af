"""Conversation templates: a checkpoint's own, or a named one, from turns to text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dynllava.errors import UserError
from dynllava.output.files import reason

IMAGE = "<image>"
NAMES = ("checkpoint", "vicuna_v1", "plain")
#: Another name of ``checkpoint``: the template embedded in the checkpoint.
ALIASES = {"embedded": "checkpoint"}
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PLAIN_QUESTION = "USER: <image>\n{} ASSISTANT:"
"""One question about one picture in Vicuna's turn format, without its system prompt."""

#: ``vicuna_v1`` for processors: LLaVA-1.5's training prompt, in the form chat templates have.
VICUNA_JINJA = (
    "{% if messages[0]['role'] != 'system' %}{{ '" + VICUNA_SYSTEM.replace("'", "\\'") + " ' }}"
    "{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_PROBE = "Which of these words comes last?"
_ANSWER = "Zebra"


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
        if not self._own_placeholders():
            return f"{IMAGE}\n" * len(self.images) + self.text
        return self.text

    def parts(self) -> list[dict[str, str]]:
        """Return content parts for a chat template: images where the text has them, or first."""
        self._own_placeholders()
        texts = self.text.split(IMAGE)
        if len(texts) == 1:
            return [{"type": "image"}] * len(self.images) + [{"type": "text", "text": self.text}]
        found: list[dict[str, str]] = []
        for index, text in enumerate(texts):
            found += [{"type": "image"}] if index else []
            text = text.strip("\n") if index else text.rstrip("\n")
            found += [{"type": "text", "text": text}] if text else []
        return found

    def _own_placeholders(self) -> int:
        own = self.text.count(IMAGE)
        if own not in (0, len(self.images)):
            raise UserError(
                f"{own} image placeholders ({IMAGE}) in the prompt for {len(self.images)} images; "
                "leave them out, or write one for each image"
            )
        return own


@dataclass(frozen=True)
class Template:
    """A chosen template.

    Attributes
    ----------
    name : str
        One of :data:`NAMES`.
    source : str or None
        The chat template of a checkpoint.
    as_parts : bool
        Whether it takes a message's content as parts (else as one text).
    separator : str
        What stands between the prompt and the assistant's first word.
    """

    name: str
    source: str | None = None
    as_parts: bool = True
    separator: str = " "


def choose_template(name: str | None, processor: Any) -> Template:
    """Return the wanted template, or the one that fits the checkpoint, after a trial rendering.

    A checkpoint's own template is used as its authors' processor uses it; a checkpoint without
    one gets ``vicuna_v1``, LLaVA-1.5's training prompt.

    Parameters
    ----------
    name : str, optional
        One of :data:`NAMES`.
    processor : ProcessorMixin

    Raises
    ------
    UserError
        If the name is unknown, or the template loses the question, the image or the place where
        the answer begins.
    """
    own, token = own_template(processor), placeholder(processor)
    wanted = ALIASES.get(name, name) if name is not None else None
    if wanted is None:
        if own is None and token != IMAGE:
            raise UserError(
                "no chat template (chat_template.jinja or chat_template.json), which this model "
                f"needs to place {token}: take the file of the same checkpoint"
            )
        # The original format has no template; its processor gets Vicuna's from this module.
        wanted = "vicuna_v1" if own in (None, VICUNA_JINJA) else "checkpoint"
    if wanted not in NAMES:
        raise UserError(f"conv_template={name}: accepted are {', '.join(NAMES)}")
    if wanted != "checkpoint":
        if token != IMAGE:
            raise UserError(
                f"conv_template={name}: does not know this model's image token {token}; accepted "
                "is checkpoint"
            )
        return Template(wanted, separator="" if wanted == "plain" else " ")
    if own is None:
        raise UserError(
            f"conv_template={name}: this checkpoint has no chat template of its own; accepted are "
            f"{', '.join(NAMES[1:])}"
        )
    complaints = []
    for as_parts in (True, False):
        template = Template(wanted, own, as_parts)
        complaint = _complaint(template, processor)
        if complaint is None:
            return replace(template, separator=_separator(template, processor))
        complaints.append(complaint)
    others = "conv_template=vicuna_v1 or plain" if token == IMAGE else "another chat_template file"
    raise UserError(f"the checkpoint's chat template {complaints[0]}; give {others}")


def render(template: Template, turns: Sequence[Turn], processor: Any) -> str:
    """Return the prompt text, open for the assistant's next words.

    Parameters
    ----------
    template : Template
    turns : sequence of Turn
        Ends with a user turn.
    processor : ProcessorMixin
        Its tokenizer's special tokens are used.

    Raises
    ------
    UserError
        If placeholders and images differ in number, or a chat template refuses the conversation or
        loses or changes words of the user.
    """
    if template.name == "plain":
        return "".join(f"{turn.placed()}\n" for turn in turns)
    if template.name == "vicuna_v1":
        return _render_vicuna(turns, processor)
    text = transcript(template, turns, processor, True)
    images = sum(len(turn.images) for turn in turns)
    token = placeholder(processor)
    found = text.count(token)
    if found != images:
        raise UserError(f"{found} image placeholders in the prompt for {images} images")
    for turn in turns:
        # The trial question may pass where a longer one, or an earlier turn, is cut.
        if turn.role == "user" and not all(part.strip() in text for part in turn.text.split(IMAGE)):
            others = "; give conv_template=vicuna_v1 or plain" if token == IMAGE else ""
            raise UserError(
                f"the checkpoint's chat template leaves out or changes {shortened(turn.text)}"
                f"{others}"
            )
    return text


def shortened(text: str, length: int = 60) -> str:
    """Return a text's beginning, quoted, for a message."""
    return repr(text if len(text) <= length else text[:length] + "...")


def placeholder(processor: Any) -> str:
    """Return what stands for an image in the prompts of a processor's model."""
    token = getattr(processor, "image_token", None)
    return token if isinstance(token, str) else IMAGE


def continuation_separator(template: Template) -> str:
    """Return what stands between the prompt and the assistant's first word."""
    return template.separator


def own_template(processor: Any) -> str | None:
    """Return the chat template of a checkpoint, None if it has none."""
    for owner in (processor, processor.tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str) and template:
            return template
    return None


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


def transcript(template: Template, turns: Sequence[Turn], processor: Any, open_end: bool) -> str:
    """Return what a checkpoint's own template writes, with or without the assistant's turn opened.

    Raises
    ------
    UserError
        If the template refuses the conversation.
    """
    messages = [
        {"role": turn.role, "content": turn.parts() if template.as_parts else turn.placed()}
        for turn in turns
    ]
    try:
        text = str(
            processor.tokenizer.apply_chat_template(
                messages,
                chat_template=template.source,
                tokenize=False,
                add_generation_prompt=open_end,
            )
        )
        token = placeholder(processor)
        # Some templates write <image> where the processor looks for a token of another name.
        return text if token in text else text.replace(IMAGE, token)
    except Exception as error:
        # Templates are programs of their own: they raise what their authors wrote.
        raise UserError(f"the checkpoint's chat template fails ({reason(error)})") from None


def _complaint(template: Template, processor: Any) -> str | None:
    """Return what a trial rendering lost, None if nothing."""
    turns = [Turn("user", _PROBE, [None])]
    try:
        text = transcript(template, turns, processor, True)
        closed = transcript(template, turns, processor, False)
    except UserError as error:
        return str(error).removeprefix("the checkpoint's chat template ")
    if _PROBE not in text:
        return f"leaves the question out: {text[-80:]!r}"
    found = text.count(placeholder(processor))
    if found != 1:
        return f"writes {found} image placeholders for one image: {text[-80:]!r}"
    if text == closed and _between(template, processor) is None:
        return "has no generation prompt: nothing says that the assistant speaks next"
    return None


def _separator(template: Template, processor: Any) -> str:
    """Return the white space that the template writes before the assistant's words."""
    between = _between(template, processor)
    return " " if between is None else between


def _between(template: Template, processor: Any) -> str | None:
    """Return what stands between a prompt and its answer; None if that is more than white space.

    Mistral's templates end a question with ``[/INST]``, and the answer follows it.
    """
    turns = [Turn("user", _PROBE, [None])]
    try:
        text = transcript(template, turns, processor, True)
        answered = transcript(template, [*turns, Turn("assistant", _ANSWER)], processor, False)
    except UserError:
        return None
    head, found, _ = answered.partition(_ANSWER)
    between = head.removeprefix(text)
    return between if found and head.startswith(text) and not between.strip() else None
