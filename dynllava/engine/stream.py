"""The token stream that the decoder works on: left-aligned rows with a segment per token.

Rows are aligned once on entry, so inside the loop padding is always at the end of a row.
Causality then hides it, fused causal kernels stay usable, and caches are filled as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dynllava.plan import Segment

from .ranking import left_aligned


@dataclass
class TokenStream:
    """A batch of left-aligned token rows.

    Attributes
    ----------
    hidden : Tensor [B, L, D]
        Hidden states.
    segment : Tensor [B, L] int8
        :class:`Segment` of each token; ``PAD`` past a row's length.
    position : Tensor [B, L] int64
        Rotary position: the place in the full sequence, unless a method renumbers.
    column : Tensor [B, L] int64
        Column of the caller's input; -1 for padding and merged tokens.
    image_index : Tensor [B, L] int64
        Place among the row's image tokens (0 = first); -1 for other tokens, and
        ``-(2 + i)`` for the i-th merged token of the latest merge.
    length : Tensor [B] int64
        Valid tokens per row.
    host_lengths : list of int
        The same on the host.
    axes : Tensor [axes, B, L] int64 or None
        Rotary positions of models with several axes (time, height, width).
    """

    hidden: torch.Tensor
    segment: torch.Tensor
    position: torch.Tensor
    column: torch.Tensor
    image_index: torch.Tensor
    length: torch.Tensor
    host_lengths: list[int]
    axes: torch.Tensor | None = None

    @property
    def rotary_position(self) -> torch.Tensor:
        """Positions that the rotary embedding takes: [B, L], or [axes, B, L]."""
        return self.position if self.axes is None else self.axes

    @property
    def size(self) -> int:
        """Columns L of the stream (longest row)."""
        return self.segment.shape[1]

    def valid(self) -> torch.Tensor:
        """Return [B, L] bool, True where a token is not padding."""
        return self.segment != int(Segment.PAD)

    def is_segment(self, segment: Segment) -> torch.Tensor:
        """Return [B, L] bool, True where the token is of ``segment``."""
        return self.segment == int(segment)

    def text_behind_images(self) -> torch.Tensor:
        """Return [B, L] bool: text tokens behind a row's last image token; none without one."""
        is_image = self.is_segment(Segment.IMAGE)
        columns = torch.arange(self.size, device=is_image.device)
        last = torch.where(is_image, columns, -1).amax(1)[:, None]
        return self.is_segment(Segment.TEXT) & (columns > last) & (last >= 0)

    def picked(self, *masks: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the hidden states of masked tokens, left-aligned, order preserved.

        Parameters
        ----------
        *masks : Tensor [B, L] bool

        Returns
        -------
        list of tuple of Tensor
            For each mask [B, n, D], and [B, n] bool: which of the n are there.
        """
        counts = [mask.sum(1) for mask in masks]
        # One synchronisation for all.
        widths = torch.stack(counts).amax(1).clamp(min=1).tolist()
        found = []
        for mask, count, width in zip(masks, counts, widths, strict=True):
            rows = take_rows(self.hidden, left_aligned(mask, width))
            there = torch.arange(width, device=count.device) < count[:, None]
            found.append((rows, there.to(rows.device)))
        return found

    def gather(self, keep: torch.Tensor) -> TokenStream:
        """Return the stream of the kept tokens, left-aligned, order preserved.

        Parameters
        ----------
        keep : Tensor [B, L] bool
            True = the token stays.  Padding is dropped whatever it says.
        """
        keep = keep & self.valid()
        length = keep.sum(1)
        # The one synchronisation of a pruning step: the new lengths must be known on the host.
        host_lengths = length.tolist()
        width = max(*host_lengths, 1)
        order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :width]
        past_end = torch.arange(width, device=order.device)[None, :] >= length[:, None]
        return TokenStream(
            hidden=take_rows(self.hidden, order),
            segment=self.segment.gather(1, order).masked_fill(past_end, int(Segment.PAD)),
            position=self.position.gather(1, order),
            column=self.column.gather(1, order).masked_fill(past_end, -1),
            image_index=self.image_index.gather(1, order).masked_fill(past_end, -1),
            length=length,
            host_lengths=host_lengths,
            axes=None if self.axes is None else self.axes.gather(2, _per_axis(order, self.axes)),
        )

    def renumbered(self) -> TokenStream:
        """Return the stream with positions 0, 1, 2, ... within each row."""
        position = torch.arange(self.size, device=self.position.device).expand_as(self.position)
        return replace(self, position=position)

    def with_merged(self, merged: torch.Tensor, merged_length: torch.Tensor) -> TokenStream:
        """Return the stream with merged tokens put behind each row's last image token.

        Parameters
        ----------
        merged : Tensor [B, C, D]
            New tokens.
        merged_length : Tensor [B] int64
            How many of them each row has.
        """
        batch, count, _ = merged.shape
        device = self.segment.device
        columns = torch.arange(self.size, device=device).expand(batch, -1)
        image = self.is_segment(Segment.IMAGE)
        last_image = torch.where(image, columns, -1).amax(1, keepdim=True)
        # Sort keys: a merged token sorts right behind the last image token of its row.
        fraction = torch.arange(1, count + 1, device=device, dtype=torch.float64) / (count + 1)
        key = torch.cat([columns.double(), last_image + fraction[None, :]], 1)
        present = torch.arange(count, device=device)[None, :] < merged_length[:, None]
        merged_segment = torch.where(present, int(Segment.IMAGE), int(Segment.PAD))
        none = torch.full((batch, count), -1, dtype=torch.int64, device=device)
        index = (-2 - torch.arange(count, device=device)).expand(batch, -1)
        segment = torch.cat([self.segment, merged_segment.to(self.segment.dtype)], 1)
        order = torch.argsort(key.masked_fill(segment == Segment.PAD, float("inf")), dim=1)
        length = self.length + merged_length
        host_lengths = length.tolist()
        order = order[:, : max(*host_lengths, 1)]
        return TokenStream(
            hidden=take_rows(torch.cat([self.hidden, merged.to(self.hidden.dtype)], 1), order),
            segment=segment.gather(1, order),
            position=torch.cat([self.position, none.clamp(min=0)], 1).gather(1, order),
            column=torch.cat([self.column, none], 1).gather(1, order),
            image_index=torch.cat([self.image_index, index], 1).gather(1, order),
            length=length,
            host_lengths=host_lengths,
        )

    def spliced(
        self,
        drop: torch.Tensor,
        hidden: torch.Tensor,
        count: torch.Tensor,
        key: torch.Tensor,
        at: torch.Tensor,
        column: torch.Tensor,
        index: torch.Tensor,
    ) -> TokenStream:
        """Return the stream with some tokens dropped and new image tokens put in.

        Parameters
        ----------
        drop : Tensor [B, L] bool
        hidden : Tensor [B, C, D]
            New tokens.
        count : Tensor [B] int64
            How many of them each row has.
        key : Tensor [B, C] float64
            Where each goes, between the present tokens 0, 1, 2, ...
        at : Tensor [B, C] int64
            The present token whose position each takes.
        column, index : Tensor [B, C] int64
            Their ``column`` and ``image_index``.
        """
        new, device = hidden.shape[1], self.segment.device
        present = torch.arange(new, device=device) < count[:, None]
        kind = torch.where(present, int(Segment.IMAGE), int(Segment.PAD)).to(self.segment.dtype)
        segment = torch.cat([self.segment.masked_fill(drop, int(Segment.PAD)), kind], 1)
        places = torch.arange(self.size, device=device).expand_as(self.segment)
        keys = torch.cat([places.double(), key], 1)
        order = torch.argsort(keys.masked_fill(segment == Segment.PAD, float("inf")), dim=1)
        length = (segment != Segment.PAD).sum(1)
        host_lengths = length.tolist()
        order = order[:, : max(*host_lengths, 1)]
        none = segment.gather(1, order) == Segment.PAD

        def joined(old: torch.Tensor, added: torch.Tensor, empty: int) -> torch.Tensor:
            return torch.cat([old, added], 1).gather(1, order).masked_fill(none, empty)

        axes = self.axes
        if axes is not None:
            added = axes.gather(2, _per_axis(at, axes))
            axes = torch.cat([axes, added], 2).gather(2, _per_axis(order, axes))
        return TokenStream(
            hidden=take_rows(torch.cat([self.hidden, hidden.to(self.hidden.dtype)], 1), order),
            segment=segment.gather(1, order),
            position=joined(self.position, self.position.gather(1, at), 0),
            column=joined(self.column, column, -1),
            image_index=joined(self.image_index, index, -1),
            length=length,
            host_lengths=host_lengths,
            axes=axes,
        )


def _per_axis(order: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    return order.to(axes.device).expand(axes.shape[0], -1, -1)


def take_rows(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` [B, L, D] at ``index`` [B, R] as [B, R, D]."""
    index = index.to(tensor.device)
    return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1]))


def align_left(
    embeds: torch.Tensor,
    valid: torch.Tensor,
    segment: torch.Tensor,
    start: torch.Tensor,
    axes: torch.Tensor | None = None,
) -> TokenStream:
    """Build a stream from the caller's layout, whatever its padding side.

    Parameters
    ----------
    embeds : Tensor [B, L, D]
        Input embeddings.
    valid : Tensor [B, L] bool
        False = padding.
    segment : Tensor [B, L] int8
        :class:`Segment` of each token, padding not yet marked.
    start : Tensor [B] int64
        Position of each row's first token (tokens already seen).
    axes : Tensor [axes, B, L] int64, optional
        Rotary positions of models with several axes.
    """
    columns = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    is_image = (segment == Segment.IMAGE) & valid
    stream = TokenStream(
        hidden=embeds,
        segment=torch.where(valid, segment, int(Segment.PAD)).to(torch.int8),
        position=(valid.cumsum(1) - 1).clamp(min=0) + start[:, None],
        column=columns,
        image_index=torch.where(is_image, is_image.cumsum(1) - 1, -1),
        length=valid.sum(1),
        host_lengths=[valid.shape[1]] * valid.shape[0],
        axes=axes,
    )
    if embeds.shape[1] == 1:
        # A decode step has no padding: nothing to align, and no host synchronisation.
        return stream
    host_lengths = stream.length.tolist()
    if min(host_lengths) == valid.shape[1]:
        return stream
    return stream.gather(stream.valid())


def one_output(
    embeds: torch.Tensor,
    valid: torch.Tensor,
    start: torch.Tensor,
    axes: torch.Tensor | None = None,
) -> TokenStream:
    """Build the stream of a decode step: what :func:`align_left` makes of one output token a row.

    Most of it is known beforehand, and a step has no time to lose.

    Parameters
    ----------
    embeds : Tensor [B, 1, D]
    valid : Tensor [B, 1] bool
    start : Tensor [B] int64
    axes : Tensor [axes, B, 1] int64, optional
    """
    one = valid.long()
    return TokenStream(
        hidden=embeds,
        segment=valid.to(torch.int8) * int(Segment.OUTPUT),
        position=start[:, None],
        column=torch.zeros_like(one),
        image_index=torch.full_like(one, -1),
        length=one[:, 0],
        host_lengths=[1] * embeds.shape[0],
        axes=axes,
    )


def restore_columns(rows: torch.Tensor, stream: TokenStream, columns: int) -> torch.Tensor:
    """Put a tensor [B, L, ...] over the stream back into the caller's columns: [B, columns, ...].

    Columns of dropped tokens and of padding are zero.
    """
    batch = rows.shape[0]
    # One column more takes what has no place: padding and merged tokens.
    out = rows.new_zeros(batch * (columns + 1), *rows.shape[2:])
    target = torch.where(stream.column >= 0, stream.column, columns).to(rows.device)
    first = torch.arange(0, batch * (columns + 1), columns + 1, device=rows.device)
    out = out.index_copy(0, (first[:, None] + target).flatten(), rows.flatten(0, 1))
    return out.view(batch, columns + 1, *rows.shape[2:])[:, :columns]
