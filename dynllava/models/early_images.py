"""Images that a cut before layer 0 chooses from: encoded once, rows that reach the text model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dynllava.engine.early import cut_features
from dynllava.engine.family import family_of
from dynllava.engine.rows import Rows
from dynllava.errors import UserError
from dynllava.methods.smaller import sizing

from .calls import PromptImages

#: What the stock classes take of an image and a cut before the projector takes for them.
IMAGE_ARGUMENTS = ("pixel_values", "image_sizes")


def replaces_images(model: Any) -> bool:
    """Return whether the model's method puts its own rows in the images' place."""
    return any(cut.early and cut.stage != "embedded" for cut in model.program.plan.cuts)


def encoded(
    model: Any,
    given: dict[str, Any],
    images: PromptImages,
    questions: Sequence[str | None] | None = None,
) -> PromptImages:
    """Return the images with the rows that reach the text model.

    Parameters
    ----------
    model : PreTrainedModel
        A wrapped model.
    given : dict
        Its images (:data:`IMAGE_ARGUMENTS`).
    images : PromptImages
        Where they lie.
    questions : sequence of (str or None), optional
        What each row asks about them.

    Raises
    ------
    UserError
        If there are more or fewer images than the prompt has places for, or questions than rows.
    """
    record: dict[str, Any] = {}
    pixels = given.get("pixel_values")
    if pixels is None:
        raise UserError(f"{model.method.name} looks at images: pass pixel_values, not features")
    smaller = sizing(model.method)
    if smaller is not None:
        found = [_resized(features) for features in smaller.encode_images(model, pixels)]
    else:
        family = family_of(model.model, model.config)
        asked = questions_of_images(questions, images)
        sizes = given.get("image_sizes")
        found = cut_features(model.program, family, pixels, record, sizes, asked)
    wanted = sum(map(len, images.pictures))
    if len(found) != wanted:
        raise UserError(f"{len(found)} images were given: the prompt has places for {wanted}")
    rest = iter(found)
    return replace(images, rows=[[next(rest) for _ in row] for row in images.pictures])


def questions_of_images(
    questions: Sequence[str | None] | None, images: PromptImages
) -> list[str | None] | None:
    """Return the question about each image of a prompt, from one a row; None if none was given."""
    if questions is None:
        return None
    if isinstance(questions, str) or len(questions) != len(images.pictures):
        raise UserError(f"questions: accepted is one text a row, {len(images.pictures)} in all")
    return [asked for asked, row in zip(questions, images.pictures, strict=True) for _ in row]


def _resized(features: torch.Tensor) -> Rows:
    """Return the rows of a picture that was made smaller: they take its first places."""
    return Rows(features, torch.arange(len(features), device=features.device))


def put_in(
    model: Any, call: Any, given: dict[str, Any], images: PromptImages, is_image: torch.Tensor
) -> None:
    """Make the arguments of the stock model those of a prompt whose images come later.

    Parameters
    ----------
    model : PreTrainedModel
    call : ModelCall
        Gets the rows; columns that hold nothing then are marked.
    given : dict
        The stock model's arguments; changed.
    images : PromptImages
    is_image : Tensor [B, L] bool
        Image placeholders, newline tokens included.
    """
    for name in IMAGE_ARGUMENTS:
        given.pop(name, None)
    ids = given.pop("input_ids", None)
    embeds = model.get_input_embeddings()(ids) if ids is not None else given["inputs_embeds"]
    others = (is_image & ~images.is_patch).to(embeds.device)
    newline = getattr(model.model, "image_newline", None)
    if newline is not None and bool(others.any()):
        if newline.is_meta:
            raise UserError(
                "image_newline is offloaded: with this method accepted are models whose own "
                "parameters stay on a device"
            )
        embeds = torch.where(others[..., None], newline.to(embeds), embeds)
    given["inputs_embeds"] = embeds
    rows = images.rows or []
    call.rows = [item for row in rows for item in row]
    alone = torch.tensor([any(item.alone for item in row) for row in rows], device=others.device)
    if bool(alone.any()):
        call.present = ~(others & alone[:, None])
