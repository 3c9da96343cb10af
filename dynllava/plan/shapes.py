"""A prompt as spans in order: text, images, learned tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A span of text tokens."""

    tokens: int


@dataclass(frozen=True)
class Voco:
    """A span of learned tokens that stand for the images before it."""

    tokens: int


@dataclass(frozen=True)
class Image:
    """An image's tokens: one grid of patches a crop, and newline tokens between its rows.

    Attributes
    ----------
    rows, columns : int
        Patches of one crop.
    crops : int
        Crops, the whole picture included.
    newlines : int
        Tokens of the span that are no patches; no method ranks or merges them.
    """

    rows: int
    columns: int
    crops: int = 1
    newlines: int = 0

    @property
    def patches(self) -> int:
        """Tokens that stand for a part of the picture."""
        return self.rows * self.columns * self.crops

    @property
    def tokens(self) -> int:
        """All tokens of the span."""
        return self.patches + self.newlines

    @classmethod
    def of(cls, tokens: int) -> Image:
        """Return one crop of ``tokens`` patches, its grid as nearly square as it can be."""
        rows = next((n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0), 1)
        return cls(rows, tokens // rows)


Span = Text | Image | Voco


@dataclass(frozen=True)
class Shape:
    """One prompt: its spans in order."""

    spans: tuple[Span, ...]

    @property
    def total(self) -> int:
        """All prompt tokens."""
        return sum(span.tokens for span in self.spans)

    @property
    def images(self) -> tuple[Image, ...]:
        """The images, in order."""
        return tuple(span for span in self.spans if isinstance(span, Image))

    @property
    def image(self) -> int:
        """Image tokens, all images together; newline tokens count as text."""
        return sum(span.patches for span in self.images)

    @property
    def text_before(self) -> int:
        """Text tokens before the first image (all of them, if there is none)."""
        return self._tokens(Text, self.spans[: self._ends(Image)[0]])

    @property
    def text_after(self) -> int:
        """Text tokens behind the last image (none, if there is no image)."""
        return self._tokens(Text, self.spans[self._ends(Image)[1] :])

    def since(self, kind: type) -> int:
        """Return the tokens from the first span of a kind on (0 if there is none)."""
        return sum(span.tokens for span in self.spans[self._ends(kind)[0] :])

    def _ends(self, kind: type) -> tuple[int, int]:
        """Return the index of the first span of a kind and the one behind the last."""
        found = [index for index, span in enumerate(self.spans) if isinstance(span, kind)]
        return (found[0], found[-1] + 1) if found else (len(self.spans), len(self.spans))

    @staticmethod
    def _tokens(kind: type, spans: tuple[Span, ...]) -> int:
        return sum(span.tokens for span in spans if isinstance(span, kind))


def PromptShape(text_before: int, image: int, text_after: int) -> Shape:
    """Return the shape of text, one image of ``image`` tokens (0 = none), text."""
    middle = (Image.of(image),) if image else ()
    return Shape((Text(text_before), *middle, Text(text_after)))
