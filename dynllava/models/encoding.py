"""From rendered prompts and their pictures to a batch of model inputs.

LLaVA-1.5's prompts are cut at the image as its official code cuts them, its pictures prepared as
its authors evaluated; every other family goes through its checkpoint's own processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dynllava.errors import UserError
from dynllava.images import ASPECTS, ImagePreparation
from dynllava.output.files import reason
from dynllava.prompts.templates import IMAGE, placeholder
from dynllava.prompts.tokens import batch, image_positions, prompt_ids

from .layout import layouts

if TYPE_CHECKING:
    import torch
    from PIL import Image

#: Families whose pictures have newline tokens among their image tokens.
NEWLINES = ("llava_next", "llava_onevision")
#: What a processor may refuse a prompt or a picture with.
_REFUSALS = (UserError, ValueError, IndexError, TypeError, RuntimeError, ZeroDivisionError)


class Encoder(Protocol):
    """Turns a batch of prompts into model inputs."""

    image_aspect: str

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], names: Sequence[object]
    ) -> dict[str, torch.Tensor]:
        """Return left-padded inputs of a batch, on the host.

        Parameters
        ----------
        texts : sequence of str
            [B] rendered prompts.
        images : sequence of sequence of PIL image
            [B] pictures of each prompt, in the order of its placeholders.
        names : sequence
            [B] what a line of error calls each prompt.
        """

    def continuation_ids(self, tokenizer: Any, prompt: str, continuation: str) -> list[int]:
        """Return the tokens that ``continuation`` adds to ``prompt``.

        Both are tokenised together, because a tokenizer may cut a word differently at the start
        of a text; where that changes the prompt's own tokens the continuation stands alone.
        """


def encoder_of(processor: Any, image_aspect: str | None = None) -> Encoder:
    """Return what encodes the prompts of a processor's model.

    Parameters
    ----------
    processor : ProcessorMixin
    image_aspect : str, optional
        See :func:`resolve_aspect`.
    """
    aspect = resolve_aspect(is_llava(processor), image_aspect)
    if is_llava(processor):
        return LlavaEncoder(processor, aspect)
    return StockEncoder(processor, aspect)


def is_llava(processor: Any) -> bool:
    """Return whether a processor is LLaVA-1.5's."""
    from transformers import LlavaProcessor
    from transformers.processing_utils import ProcessorMixin

    return isinstance(processor, LlavaProcessor) or not isinstance(processor, ProcessorMixin)


def resolve_aspect(llava: bool, wanted: str | None) -> str:
    """Return what is done to a picture that is not square.

    ``None``: for LLaVA-1.5 ``pad``, as it was evaluated; for others ``checkpoint``, the only rule
    that their image tokens are defined for.

    Raises
    ------
    UserError
        For an unknown rule, or one that is LLaVA-1.5's with another family.
    """
    if wanted is not None and wanted not in ASPECTS:
        raise UserError(f"image_aspect={wanted}: accepted are {', '.join(ASPECTS)}")
    if llava:
        return wanted or "pad"
    if wanted not in (None, "checkpoint"):
        raise UserError(
            f"image_aspect={wanted}: is a rule of LLaVA-1.5; for other families accepted is "
            "checkpoint (its own image processor)"
        )
    return "checkpoint"


class LlavaEncoder:
    """Encodes as LLaVA-1.5's official code does; pictures all have one size."""

    def __init__(self, processor: Any, image_aspect: str) -> None:
        self.processor, self.image_aspect = processor, image_aspect
        self.prepare = ImagePreparation(processor.image_processor, image_aspect)

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], names: Sequence[object]
    ) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask`` and, with images, ``pixel_values``."""
        import torch

        rows, pixels = [], []
        for text, pictures, name in zip(texts, images, names, strict=True):
            try:
                check_placeholders(text, IMAGE, len(pictures))
                own = [torch.from_numpy(self.prepare(picture)) for picture in pictures]
                count = image_positions(self.processor, own[0]) if own else 0
                image_id = self.processor.image_token_id if own else None
                rows.append(prompt_ids(self.processor.tokenizer, text, image_id, count))
                pixels += own
            except _REFUSALS as error:
                raise UserError(f"{name}: {_line(error)}", 1) from error
        pad = self.processor.tokenizer.pad_token_id
        encoded = batch(rows, self.processor.tokenizer.eos_token_id if pad is None else pad)
        return {**encoded, "pixel_values": torch.stack(pixels)} if pixels else encoded

    def continuation_ids(self, tokenizer: Any, prompt: str, continuation: str) -> list[int]:
        """See :class:`Encoder`; the image's own positions are the same in both texts."""
        image = self.processor.image_token_id
        before = prompt_ids(tokenizer, prompt, image, 1)
        both = prompt_ids(tokenizer, prompt + continuation, image, 1)
        return added_ids(tokenizer, before, both, continuation)


def image_tokens(
    processor: Any, encoded: dict[str, Any], model: Any, prompts: Sequence[Any]
) -> list[int] | None:
    """Return the image tokens of each row, newline tokens left out, as methods count them.

    Parameters
    ----------
    processor : ProcessorMixin
    encoded : dict
        What :meth:`Encoder.encode` gave.
    model : PreTrainedModel
    prompts : sequence
        [B] prompts with their ``images``.

    Returns
    -------
    list of int or None
        None for LLaVA-1.5, whose pictures all have as many.
    """
    if is_llava(processor):
        return None
    if model.config.model_type in NEWLINES:
        pictures = iter(layouts(model.config, encoded, []) if "image_sizes" in encoded else [])
        return [sum(next(pictures).patches for _ in prompt.images) for prompt in prompts]
    return [int(count) for count in (encoded["input_ids"] == processor.image_token_id).sum(1)]


class StockEncoder:
    """Encodes with a stock processor: its own resizing, cutting and counting of image tokens."""

    def __init__(self, processor: Any, image_aspect: str) -> None:
        self.processor, self.image_aspect = processor, image_aspect

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], names: Sequence[object]
    ) -> dict[str, torch.Tensor]:
        """Return what the family's model takes, by name."""
        token = placeholder(self.processor)
        for text, pictures, name in zip(texts, images, names, strict=True):
            try:
                check_placeholders(text, token, len(pictures))
            except UserError as error:
                raise UserError(f"{name}: {error}", 1) from None
        try:
            return self._encoded(texts, images)
        except _REFUSALS as error:
            # A processor does not say which row it means.
            for text, pictures, name in zip(texts, images, names, strict=True):
                try:
                    self._encoded([text], [pictures])
                except _REFUSALS as own:
                    raise UserError(f"{name}: {_line(own)}", 1) from own
            raise UserError(f"{names[0]} and its batch: {_line(error)}", 1) from error

    def _encoded(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]
    ) -> dict[str, torch.Tensor]:
        options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        bos = self.processor.tokenizer.bos_token
        if bos is not None and texts[0].startswith(bos):
            # The template wrote it; transformers' apply_chat_template does the same.
            options["add_special_tokens"] = False
        pictures = [list(row) for row in images]
        given = pictures if any(pictures) else None
        return dict(self.processor(text=list(texts), images=given, **options))

    def continuation_ids(self, tokenizer: Any, prompt: str, continuation: str) -> list[int]:
        """See :class:`Encoder`; placeholders are not expanded in either text."""
        before = list(tokenizer(prompt)["input_ids"])
        both = list(tokenizer(prompt + continuation)["input_ids"])
        return added_ids(tokenizer, before, both, continuation)


def check_placeholders(text: str, token: str, images: int) -> None:
    """Refuse a prompt whose placeholders are not as many as its images."""
    found = text.count(token)
    if found != images:
        raise UserError(f"{found} image placeholders ({token}) in the prompt for {images} images")


def added_ids(
    tokenizer: Any, before: Sequence[int], both: Sequence[int], continuation: str
) -> list[int]:
    """Return what ``both`` has behind ``before``, or the continuation's own tokens."""
    if list(both[: len(before)]) != list(before):
        return list(tokenizer(continuation, add_special_tokens=False)["input_ids"])
    return list(both[len(before) :])


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else reason(error)
