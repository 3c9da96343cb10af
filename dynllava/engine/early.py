"""Cuts before layer 0: from images or embeddings to the rows that reach the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.plan import Segment, Tower

from .family import Family
from .program import Program
from .rows import ImageView, Picture, Rows, decide_all, decide_pictures
from .stream import TokenStream

#: Per stream row, the patch tokens of each of its images in order.
Images = Sequence[Sequence[int]]


def cut_early(
    program: Program,
    stream: TokenStream,
    images: Images,
    rows: Sequence[Rows] | None,
    record: dict[str, Any],
) -> tuple[TokenStream, torch.Tensor]:
    """Return the stream behind all cuts before layer 0, and [B] the next token's position.

    Parameters
    ----------
    program : Program
    stream : TokenStream
        With every patch token in its place.
    images : list of list of int
        Patch tokens of each image of each row.
    rows : list of Rows or None
        The images' rows behind the projector, all images in order, where a cut before it (or before
        the tower) has chosen them.
    """
    position = stream.length
    early = [cut for cut in program.plan.cuts if cut.early]
    first = [cut for cut in early if cut.stage != "embedded"]
    if first and rows is not None:
        found = iter(rows)
        placed = [[next(found) for _ in row] for row in images]
        compact = first[0].positions == "compact"
        stream = replace_images(stream, images, placed, compact=compact)
        images = [[len(item.origin) for item in row] for row in placed]
        position = stream.length if compact else position
    if program.embedded is not None:
        stream = cut_embedded(program, stream, images, record)
        position = stream.length if program.embedded.cut.positions == "compact" else position
    return stream, position


def cut_features(
    program: Program,
    family: Family,
    pixels: torch.Tensor,
    record: dict[str, Any],
    sizes: torch.Tensor | None = None,
    questions: Sequence[str | None] | None = None,
) -> list[Rows]:
    """Return each image's rows behind the projector.

    Parameters
    ----------
    pixels : Tensor
        What the family's model takes as ``pixel_values``.
    sizes : Tensor [images, 2], optional
        Height and width of each picture, where the family cuts pictures into crops.
    questions : sequence of (str or None), optional
        What is asked about each picture.
    """
    decision = program.features
    if decision is None:
        raise RuntimeError("the plan has no cut before the projector")
    crops, pictures = family.crops(pixels, sizes)
    several = any(picture.crops > 1 for picture in pictures)
    looks = tuple(
        look
        for look in decision.cut.looks
        if isinstance(look, Tower) and (several or not look.several)
    )
    found = family.features(crops, looks)
    seen_of: list[tuple[list[ImageView], Picture]] = []
    first = 0
    for number, picture in enumerate(pictures):
        asked = questions[number] if questions is not None else None
        views = [
            ImageView(
                found.patches[index],
                decision.cut,
                None if found.class_token is None else found.class_token[index],
                {look: seen[index] for look, seen in found.seen.items()},
                record,
                question=asked,
            )
            for index in range(first, first + picture.crops)
        ]
        first += picture.crops
        seen_of.append((views, picture))
    rows = decide_pictures(decision.method, seen_of)
    features = projected(family, [chosen.features for chosen in rows])
    return [
        replace(chosen, features=part, place=chosen.places(tokens_of(picture, views)))
        for chosen, part, (views, picture) in zip(rows, features, seen_of, strict=True)
    ]


def projected(family: Family, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return pictures' rows [K, C] behind the projector, as many at once as have as many rows."""
    alike: dict[int, list[int]] = {}
    for number, part in enumerate(rows):
        alike.setdefault(len(part), []).append(number)
    found: dict[int, torch.Tensor] = {}
    for numbers in alike.values():
        behind = family.project(torch.stack([rows[number] for number in numbers]))
        found |= zip(numbers, behind, strict=True)
    return [found[number] for number in range(len(rows))]


def tokens_of(picture: Picture, crops: Sequence[ImageView]) -> int:
    """Return the patch tokens of a picture."""
    return crops[0].features.shape[0] if picture.packed is None else len(picture.packed)


def cut_embedded(
    program: Program, stream: TokenStream, images: Images, record: dict[str, Any]
) -> TokenStream:
    """Return the stream behind the cut between projector and layer 0."""
    decision = program.embedded
    if decision is None:
        return stream
    places = images_of(stream, images)
    views = [
        ImageView(stream.hidden[row, where], decision.cut, record=record)
        for row, parts in enumerate(places)
        for where in parts
    ]
    rows = iter(decide_all(decision.method, views))
    found = [[next(rows) for _ in parts] for parts in places]
    return replace_images(stream, images, found, compact=decision.cut.positions == "compact")


def images_of(stream: TokenStream, images: Images) -> list[list[torch.Tensor]]:
    """Return the columns of the stream where each image's patch tokens lie, by row.

    Raises
    ------
    UserError
        If the rows' image tokens are not those of the images.
    """
    is_image = stream.is_segment(Segment.IMAGE)
    found = []
    for row, counts in enumerate(images):
        where = is_image[row].nonzero().flatten()
        if len(where) != sum(counts):
            raise UserError(
                f"row {row} has {len(where)} image positions: its images have {sum(counts)}"
            )
        found.append(list(where.split(list(counts))) if counts else [])
    return found


def replace_images(
    stream: TokenStream, images: Images, rows: Sequence[Sequence[Rows]], *, compact: bool
) -> TokenStream:
    """Return the stream with the image tokens of each row replaced.

    The rows of an image stand in their own order where the image began; where other tokens stand
    between its patches (newlines, text between tiles), each row stands at its place.

    Parameters
    ----------
    stream : TokenStream
    images : list of list of int
        Patch tokens of each image of each row.
    rows : list of list of Rows
        By row, each image's.
    compact : bool
        Positions are numbered anew; otherwise text stays where it is.
    """
    device, width = stream.hidden.device, stream.hidden.shape[-1]
    sizes = [sum(len(item.origin) for item in items) for items in rows]
    shape = (len(sizes), max([1, *sizes]))
    drop = torch.zeros_like(stream.valid())
    hidden = stream.hidden.new_zeros(*shape, width)
    key = torch.zeros(shape, dtype=torch.float64, device=device)
    at, column, index = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(3))
    for row, parts in enumerate(images_of(stream, images)):
        first = 0
        for where, item in zip(parts, rows[row], strict=True):
            size = len(item.origin)
            here = slice(first, first + size)
            origin = item.origin.to(device)
            places = where[item.places(len(where)).to(device)]
            fraction = torch.arange(1, size + 1, device=device, dtype=torch.float64) / (size + 1)
            unbroken = int(where[-1] - where[0]) == len(where) - 1
            own = where[origin.clamp(min=0)]
            others = -2 - torch.arange(first, first + size, device=device)
            drop[row, where] = True
            hidden[row, here] = item.features.to(hidden)
            key[row, here] = (where[:1] if unbroken else places) + fraction
            at[row, here] = places
            column[row, here] = torch.where(origin >= 0, stream.column[row, own], -1)
            index[row, here] = torch.where(origin >= 0, stream.image_index[row, own], others)
            first += size
    count = torch.tensor(sizes, device=device)
    found = stream.spliced(drop, hidden, count, key, at, column, index)
    return found.renumbered() if compact else found
