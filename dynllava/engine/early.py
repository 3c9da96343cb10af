"""Cuts before layer 0: from images or embeddings to the rows that reach the language model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.plan import Segment, Tower

from .family import Family
from .program import Program
from .rows import ImageView, Rows, decide_rows
from .stream import TokenStream


def cut_early(
    program: Program,
    family: Family,
    stream: TokenStream,
    pixels: torch.Tensor | None,
    record: dict[str, Any],
) -> tuple[TokenStream, torch.Tensor]:
    """Return the stream behind all cuts before layer 0, and [B] the next token's position.

    Raises
    ------
    UserError
        If a cut before the projector has no images to look at.
    """
    position = stream.length
    if program.features is not None:
        has_image = stream.is_segment(Segment.IMAGE).any(1).tolist()
        if any(has_image):
            if pixels is None:
                raise UserError(f"{program.method.name} looks at images: pass pixel_values")
            rows, patches = cut_features(program, family, pixels, record)
            counts = stream.is_segment(Segment.IMAGE).sum(1).tolist()
            if sum(has_image) != len(rows) or any(n not in (0, patches) for n in counts):
                raise UserError(
                    f"{len(rows)} images of {patches} tokens for rows of {counts} image positions"
                )
            found = iter(rows)
            placed = [next(found) if has else None for has in has_image]
            compact = program.features.cut.positions == "compact"
            stream = place_rows(stream, placed, compact=compact, patches=patches)
            position = stream.length if compact else position
    if program.embedded is not None:
        stream = cut_embedded(program, stream, record)
        position = stream.length if program.embedded.cut.positions == "compact" else position
    return stream, position


def cut_features(
    program: Program, family: Family, pixels: torch.Tensor, record: dict[str, Any]
) -> tuple[list[Rows], int]:
    """Return each image's rows behind the projector, and the patches of an image before the cut."""
    decision = program.features
    if decision is None:
        raise RuntimeError("the plan has no cut before the projector")
    looks = tuple(look for look in decision.cut.looks if isinstance(look, Tower))
    found = family.features(pixels, looks)
    rows = []
    for index in range(found.patches.shape[0]):
        view = ImageView(
            found.patches[index],
            decision.cut,
            None if found.class_token is None else found.class_token[index],
            {look: seen[index] for look, seen in found.seen.items()},
            record,
        )
        chosen = decide_rows(decision.method, view)
        rows.append(replace(chosen, features=family.project(chosen.features[None])[0]))
    return rows, found.patches.shape[1]


def cut_embedded(program: Program, stream: TokenStream, record: dict[str, Any]) -> TokenStream:
    """Return the stream behind the cut between projector and layer 0."""
    decision = program.embedded
    if decision is None:
        return stream
    is_image = stream.is_segment(Segment.IMAGE)
    found: list[Rows | None] = []
    for row, count in enumerate(is_image.sum(1).tolist()):
        if not count:
            found.append(None)
            continue
        where = is_image[row].nonzero().flatten()
        view = ImageView(stream.hidden[row, where], decision.cut, record=record)
        chosen = decide_rows(decision.method, view)
        place = chosen.places(count)
        index = stream.image_index[row, where]
        origin = torch.where(chosen.origin >= 0, index[chosen.origin.clamp(min=0)], chosen.origin)
        found.append(replace(chosen, origin=origin, place=place))
    compact = decision.cut.positions == "compact"
    return place_rows(stream, found, compact=compact)


def place_rows(
    stream: TokenStream, rows: list[Rows | None], *, compact: bool, patches: int | None = None
) -> TokenStream:
    """Return the stream with each row's image tokens replaced.

    Parameters
    ----------
    stream : TokenStream
    rows : list of Rows or None
        [B] one image a stream row; None = none.
    compact : bool
        Positions are numbered anew; otherwise text stays where it is.
    patches : int, optional
        Patches of an image before the cut, where ``place`` is not given.
    """
    if len(rows) != stream.segment.shape[0]:
        raise UserError(f"{len(rows)} images for {stream.segment.shape[0]} rows")
    device, width = stream.hidden.device, stream.hidden.shape[-1]
    most = max([1, *(item.origin.shape[0] for item in rows if item is not None)])
    hidden = stream.hidden.new_zeros(len(rows), most, width)
    index = torch.full((len(rows), most), -1, dtype=torch.int64, device=device)
    place = torch.zeros_like(index)
    count = torch.tensor([0 if item is None else item.origin.shape[0] for item in rows])
    others = -2 - torch.arange(most, device=device)
    for row, item in enumerate(rows):
        if item is None:
            continue
        size = item.origin.shape[0]
        origin = item.origin.to(device)
        hidden[row, :size] = item.features.to(hidden)
        index[row, :size] = torch.where(origin >= 0, origin, others[:size])
        place[row, :size] = item.places(patches or 0).to(device)
    found = stream.with_images(hidden, count.to(device), index, place)
    return found.renumbered() if compact else found
