"""What a layer's cache keeps."""

from __future__ import annotations

from dataclasses import dataclass

from .segments import Segment

#: Entries by which a cache grows; None = by a share of what it holds (:func:`room`).
DEFAULT_CHUNK: int | None = None
LEAST_ROOM = 4


@dataclass(frozen=True)
class Dense:
    """Every token that the layer keeps."""


@dataclass(frozen=True)
class PerHead:
    """Per key/value head the newest entries and those that received most attention.

    Attributes
    ----------
    heavy, recent : float or int
        A float is a share of the layer's prompt tokens (``int(share * N)``, fixed by the prompt),
        an integer a number of entries.
    first_full : int
        Layers from 0 on that keep everything.
    rolled : bool
        An entry's position is its rank in the cache at that step.
    """

    heavy: float
    recent: float
    first_full: int = 0
    rolled: bool = False

    def budget(self, length: int) -> tuple[int, int]:
        """Return (heavy, recent) entries for ``length`` prompt tokens in a layer."""
        return _entries(self.heavy, length), _entries(self.recent, length)

    def limit(self, layer: int, held: int) -> int | None:
        """Return the most entries that a layer with ``held`` prompt tokens keeps, None = all."""
        return None if layer < self.first_full else sum(self.budget(held))


@dataclass(frozen=True)
class Span:
    """Everything from the first token of ``segment`` on; a row without one keeps everything.

    ``token`` is its id in ``input_ids``.
    """

    segment: Segment = Segment.VOCO
    token: int | None = None


Store = Dense | PerHead | Span
DENSE = Dense()


def _entries(value: float, length: int) -> int:
    return int(value * length) if isinstance(value, float) else value


def round_up(value: int, multiple: int) -> int:
    """Return ``value`` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def room(needed: int, chunk: int | None, *, grown: bool) -> int:
    """Return the entries allocated for a row that needs ``needed``.

    Parameters
    ----------
    needed : int
        Entries, the next token's included.
    chunk : int or None
        Whole chunks of so many; None: a tenth beyond a prompt, and a seventh more whenever the room
        is used up, but :data:`LEAST_ROOM` beyond the next token.  The longer a row, the rarer it is
        copied: some seven entries a token, at any length.
    grown : bool
        False behind a prompt, True where a cache grows.
    """
    if chunk is not None:
        return round_up(needed, chunk)
    more = needed + needed // 7 if grown else (needed - 1) * 11 // 10
    return max(needed + LEAST_ROOM, more)
