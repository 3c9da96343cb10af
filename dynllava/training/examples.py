"""From a conversation and its pictures to tokens, labels and what the model takes as pictures.

LLaVA-1.5's conversations are written in its training template; every other family's in its
checkpoint's own chat template, its pictures cut and counted by its checkpoint's own processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dynllava.errors import UserError
from dynllava.images import ImagePreparation
from dynllava.models.encoding import is_llava, resolve_aspect
from dynllava.output.files import reason
from dynllava.prompts.templates import Turn, choose_template, placeholder, transcript

from .losses import IGNORED
from .templates import PLACEHOLDER, check_template, render

if TYPE_CHECKING:
    from PIL import Image

PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""What a processor returns that has a value a token, as ``input_ids`` has."""
_NOMINAL = (640, 480)
"""Pixels of the picture whose tokens stand for any picture's, where only an estimate is needed."""
_REFUSALS = (UserError, ValueError, IndexError, TypeError, RuntimeError, ZeroDivisionError)


@dataclass
class Example:
    """One conversation as the model takes it.

    Attributes
    ----------
    ids, labels : list of int
        [L] tokens, and the same at answers, -100 elsewhere.
    truncated : bool
        Whether tokens were cut off.
    pictures : dict of str to Tensor
        Arguments of the model that have a row a picture (or a crop); empty without pictures.
    kinds : dict of str to Tensor
        Arguments [L] of the model that have a value a token.
    """

    ids: list[int]
    labels: list[int]
    truncated: bool
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    kinds: dict[str, torch.Tensor] = field(default_factory=dict)


class Examples(Protocol):
    """Makes examples of conversations."""

    most_images: int | None
    image_tokens: int

    def __call__(
        self, turns: Sequence[tuple[str, str]], pictures: Sequence[Image.Image]
    ) -> Example:
        """Return the tokens of a conversation whose ``turns`` are (question, answer) pairs.

        Raises
        ------
        UserError
            If its pictures cannot be shown to the model.
        """


def examples_of(
    processor: Any,
    template: str | None,
    image_aspect: str | None,
    max_length: int,
    image_tokens: int | None = None,
) -> Examples:
    """Return what makes examples for a processor's model.

    Parameters
    ----------
    processor : ProcessorMixin
        With a fast tokenizer (character offsets say which tokens are answers).
    template, image_aspect, max_length
        See :class:`~dynllava.training.config.DataConfig`.
    image_tokens : int, optional
        Language-model tokens of one picture of LLaVA-1.5.
    """
    if not processor.tokenizer.is_fast:
        raise UserError("training needs a fast tokenizer (character offsets)")
    aspect = resolve_aspect(is_llava(processor), image_aspect)
    if is_llava(processor):
        return LlavaExamples(processor, template or "vicuna_v1", aspect, max_length, image_tokens)
    if template not in (None, "checkpoint"):
        raise UserError(
            f"data.template={template}: is LLaVA-1.5's; for other families accepted is checkpoint "
            "(its own chat template)"
        )
    return FamilyExamples(processor, max_length)


class LlavaExamples:
    """LLaVA-1.5: one picture of one size a record, its placeholder in front of the question.

    Parameters
    ----------
    processor : LlavaProcessor
    template : str
        Key of :data:`dynllava.training.templates.SYSTEMS`.
    image_aspect : str
        See :class:`~dynllava.images.ImagePreparation`.
    max_length : int
        Longer conversations are cut.
    image_tokens : int, optional
        Language-model tokens of one image (default: LLaVA-1.5's 576).
    """

    most_images: int | None = 1

    def __init__(
        self,
        processor: Any,
        template: str,
        image_aspect: str,
        max_length: int,
        image_tokens: int | None = None,
    ) -> None:
        check_template(template)
        self.tokenizer, self.template, self.max_length = processor.tokenizer, template, max_length
        self.image_tokens = 576 if image_tokens is None else image_tokens
        self.image_text = processor.image_token * self.image_tokens
        self.prepare = ImagePreparation(processor.image_processor, image_aspect)

    def __call__(
        self, turns: Sequence[tuple[str, str]], pictures: Sequence[Image.Image]
    ) -> Example:
        """See :class:`Examples`."""
        text, spans = render(turns, self.template, self.tokenizer.eos_token, self.image_text)
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        labels = labels_of(ids, encoded["offset_mapping"], spans)
        pixels = [torch.from_numpy(self.prepare(picture)) for picture in pictures]
        return Example(
            ids[: self.max_length],
            labels[: self.max_length],
            len(ids) > self.max_length,
            {"pixel_values": torch.stack(pixels)} if pixels else {},
        )


class FamilyExamples:
    """Any other family: its own chat template and processor; any number of pictures a record.

    Parameters
    ----------
    processor : ProcessorMixin
    max_length : int
        Longer conversations are cut; one whose pictures alone are longer is refused.

    Raises
    ------
    UserError
        If the chat template loses the question, the picture or the place of the answer, or
        changes earlier turns.
    """

    most_images: int | None = None

    def __init__(self, processor: Any, max_length: int) -> None:
        self.processor, self.max_length = processor, max_length
        self.template = choose_template(None, processor)
        self.token = placeholder(processor)
        # Before any record is read: a template that cannot be trained with is no record's fault.
        self.written([(f"{PLACEHOLDER}\nfirst question", "one"), ("second question", "two")])
        self.image_tokens = self._nominal_tokens()

    def __call__(
        self, turns: Sequence[tuple[str, str]], pictures: Sequence[Image.Image]
    ) -> Example:
        """See :class:`Examples`."""
        text, spans = self.written(turns)
        if text.count(self.token) != len(pictures):
            raise UserError(
                f"{text.count(self.token)} image placeholders ({self.token}) for {len(pictures)} "
                "images"
            )
        try:
            given = self._processed(text, pictures)
        except _REFUSALS as error:
            raise UserError(reason(error)) from None
        offsets = given.pop("offset_mapping")[0]
        moves = given.pop("text_replacement_offsets", None)
        moves = moves[0] if pictures and moves is not None else []
        ids = given.pop("input_ids")[0].tolist()
        labels = labels_of(ids, offsets.tolist(), [_moved(span, moves) for span in spans])
        if self._last_picture(ids) >= self.max_length:
            raise UserError(
                f"its pictures end at token {self._last_picture(ids) + 1}, behind "
                f"data.max_length={self.max_length}"
            )
        given.pop("attention_mask")
        kinds = {name: given.pop(name)[0][: self.max_length] for name in PER_TOKEN if name in given}
        return Example(
            ids[: self.max_length],
            labels[: self.max_length],
            len(ids) > self.max_length,
            given if pictures else {},
            kinds,
        )

    def written(self, turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation's text and the character spans of its answers.

        A span begins where the model's own words would, and ends with what the template writes
        behind an answer; where that is white space alone, the tokenizer's end token takes its
        place, so that the model learns to stop.

        Raises
        ------
        UserError
            If the template writes earlier turns anew when later ones follow.
        """
        messages: list[Turn] = []
        text, spans, whole = "", [], ""
        for question, answer in turns:
            images = [None] * question.count(PLACEHOLDER)
            messages.append(Turn("user", question, images))
            asked = transcript(self.template, messages, self.processor, open_end=True)
            messages.append(Turn("assistant", answer))
            answered = transcript(self.template, messages, self.processor, open_end=False)
            tail = answered[len(asked) :]
            if not answered.startswith(asked) or answer.strip() not in tail:
                raise UserError(
                    "the checkpoint's chat template does not write an answer behind its prompt: "
                    "it cannot be trained with"
                )
            if not asked.startswith(whole):
                raise UserError(
                    "the checkpoint's chat template writes earlier turns anew when later ones "
                    "follow: it cannot be trained with"
                )
            text += asked[len(whole) :]
            start, whole = len(text), answered
            if tail.rstrip().endswith(answer.strip()):
                tail = tail.rstrip() + self.processor.tokenizer.eos_token
            text += tail
            spans.append((start, start + len(tail.rstrip())))
        return text, spans

    def _processed(self, text: str, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        options: dict[str, Any] = {
            "return_tensors": "pt",
            "return_offsets_mapping": True,
            "return_text_replacement_offsets": True,
        }
        bos = self.processor.tokenizer.bos_token
        if bos is not None and text.startswith(bos):
            # The template wrote it.
            options["add_special_tokens"] = False
        images = [list(pictures)] if pictures else None
        return dict(self.processor(text=[text], images=images, **options))

    def _last_picture(self, ids: Sequence[int]) -> int:
        """Return the place of the last image token, -1 without one."""
        image = self.processor.image_token_id
        return max((place for place, token in enumerate(ids) if token == image), default=-1)

    def _nominal_tokens(self) -> int:
        from PIL import Image

        picture = Image.new("RGB", _NOMINAL)
        given = self._processed(self.token, [picture])
        return int(given["input_ids"].shape[1])


def labels_of(
    ids: Sequence[int], offsets: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Return the tokens that overlap a span of answers, -100 for all others.

    Parameters
    ----------
    ids : sequence of int
        [L] tokens of a text.
    offsets : sequence of (int, int)
        [L] the characters each one stands for.
    spans : sequence of (int, int)
        Of characters, in order.
    """
    labels, span = [], 0
    for token, (start, stop) in zip(ids, offsets, strict=True):
        while span < len(spans) and start >= spans[span][1]:
            span += 1
        answer = span < len(spans) and stop > spans[span][0] and stop > start
        labels.append(token if answer else IGNORED)
    return labels


def _moved(span: tuple[int, int], replacements: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return where a span lies once placeholders before it are written out."""
    gained = 0
    for item in replacements:
        if item["span"][1] <= span[0]:
            gained = item["new_span"][1] - item["span"][1]
    return span[0] + gained, span[1] + gained
