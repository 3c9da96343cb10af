"""Run a loaded model on one sample and take down what its method kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError

from .overlay import Overlay, encode

if TYPE_CHECKING:
    from PIL.Image import Image


def look_at(
    model: Any,
    processor: Any,
    image: Image,
    question: str,
    *,
    label: str,
    model_name: str,
    max_new_tokens: int = 64,
    conv_template: str | None = None,
    image_aspect: str = "pad",
    expected: str = "",
) -> Overlay:
    """Answer ``question`` greedily and return the overlay.

    Parameters
    ----------
    model : DynamicLlavaForConditionalGeneration
        With its method set.
    processor : LlavaProcessor
    image : PIL image
    question : str
        Rendered with the checkpoint's own conversation template.
    label, model_name : str
        What pictures call method and model.
    max_new_tokens : int
    conv_template, image_aspect : str
        As in the plugin.
    expected : str
        Reference answer, if there is one.

    Raises
    ------
    UserError
        If the checkpoint has no tokenizer or image processor, or its image tokens form no square.
    """
    import torch

    from dynllava.images import ImagePreparation
    from dynllava.models.finite_logits import FiniteLogits
    from dynllava.prompts import Turn, batch, choose_template, prompt_ids, render
    from dynllava.prompts.tokens import image_positions

    if processor is None:
        raise UserError(f"{model_name}: has no tokenizer, so it cannot answer questions", 1)
    turns = [Turn("user", question, [image])]
    text = render(choose_template(conv_template, processor), turns, processor)
    pixels = torch.from_numpy(ImagePreparation(processor.image_processor, image_aspect)(image))
    count = image_positions(processor, pixels)
    ids = prompt_ids(processor.tokenizer, text, processor.image_token_id, count)
    inputs = {name: value.to(model.device) for name, value in batch([ids], 0).items()}
    inputs["pixel_values"] = pixels[None].to(model.device, model.dtype)
    finite = FiniteLogits()
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=finite.as_list(),
        )
    finite.check(model_name)
    report = model.last_report
    generated = output[0, inputs["input_ids"].shape[1] :].tolist()
    tokens = int((inputs["input_ids"] == model.config.image_token_index).sum())
    grid = math.isqrt(tokens)
    if not grid or grid * grid != tokens:
        raise UserError(f"{model_name}: {tokens} image tokens form no square to draw on", 1)
    decisions = report.output_kept[0] if report.output_kept else []
    return Overlay(
        model.method.name,
        label,
        model_name.rstrip("/").rpartition("/")[2],
        encode(seen_image(inputs["pixel_values"][0], processor.image_processor)),
        grid,
        tuple(sorted(set(report.kept_image_indices[0]))),
        question,
        processor.tokenizer.decode(generated, skip_special_tokens=True).strip(),
        words(processor.tokenizer, generated, decisions),
        expected,
        _cached(model, len(ids) + len(generated) - 1),
    )


def _cached(model: Any, seen: int) -> float | None:
    """Return the share of ``seen`` tokens that stayed cached, where the method evicts entries."""
    if not model.program.plan.evicts:
        return None
    lengths = [row[0] for row in model.last_report.kv_lengths]
    return min(1.0, sum(lengths) / (len(lengths) * seen))


def seen_image(pixels: Any, image_processor: Any) -> Image:
    """Return the picture that the vision tower saw, after resizing and cropping.

    Parameters
    ----------
    pixels : Tensor [3, H, W]
        Normalised with the processor's mean and standard deviation.
    image_processor : CLIPImageProcessor
    """
    import numpy as np
    from PIL import Image as images

    values = pixels.float().cpu().numpy().transpose(1, 2, 0)
    values = values * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    return images.fromarray((values.clip(0, 1) * 255).round().astype("uint8"))


def words(
    tokenizer: Any, generated: Sequence[int], kept: Sequence[bool]
) -> tuple[tuple[str, bool], ...]:
    """Return the answer in pieces with their decisions.

    A token's piece is what it adds to the decoded text, so that joined pieces give the answer.
    The last token was never fed and so has no decision; it counts as kept.
    """
    pieces = []
    before = ""
    for index in range(len(generated)):
        text = tokenizer.decode(generated[: index + 1], skip_special_tokens=True)
        if text == before:
            continue
        # A token can complete a character that was shown as a replacement sign before.
        added = text[len(before) :] if text.startswith(before) else text[len(before) - 1 :]
        pieces.append((added, bool(kept[index]) if index < len(kept) else True))
        before = text
    return tuple(pieces)
