"""What a method may look at in one forward call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dynllava.errors import UserError
from dynllava.plan import Cut, Segment

from .attention import Observed
from .stream import TokenStream, take_rows

if TYPE_CHECKING:
    from .cache import SparseCache


@dataclass
class View:
    """What a method may look at; methods read it and change nothing.

    Attributes
    ----------
    stream : TokenStream
        Tokens at the input of the current layer.
    decoding : bool
        True when the call continues an existing cache.
    layers : int
        Decoder layers.
    sample_ids : Tensor [B] int64
        Stable identity of each row, so that hashing methods do not depend on batching.
    predictors : dict
        The model's trained modules by name, None where it has none.
    rotary : callable or None
        The model's ``rotary(x, position_ids) -> (cos, sin)``.
    cache : SparseCache or None
    embeds : TokenStream or None
        What entered layer 0, where a look chooses its rows by it.
    cut : Cut or None
        The cut that is being decided.
    seen : Observed or None
        What that cut's looks saw.
    record : dict
        What is reported after the call, see :meth:`note`.
    grids : list of list of (int, int) or None
        Per row, the (rows, columns) of each grid of image tokens (crops, pictures), in token order;
        None = one picture a row, as nearly square as its tokens allow.
    """

    stream: TokenStream
    decoding: bool
    layers: int
    sample_ids: torch.Tensor
    predictors: dict[str, Any] = field(default_factory=dict)
    rotary: Any = None
    cache: SparseCache | None = None
    embeds: TokenStream | None = None
    cut: Cut | None = None
    seen: Observed | None = None
    record: dict[str, Any] = field(default_factory=dict)
    original: torch.Tensor | None = None
    grids: list[list[tuple[int, int]]] | None = None
    _memo: dict[str, Any] = field(default_factory=dict)
    _seen: dict[int, Observed] = field(default_factory=dict)
    _outputs: bool | None = None

    @property
    def hidden(self) -> torch.Tensor:
        """Hidden states at the input of the current layer, [B, L, D]."""
        return self.stream.hidden

    @property
    def is_image(self) -> torch.Tensor:
        """[B, L] bool, True where a token is an image token."""
        return self.stream.is_segment(Segment.IMAGE)

    @property
    def is_output(self) -> torch.Tensor:
        """[B, L] bool, True where a token is an output token."""
        return self.stream.is_segment(Segment.OUTPUT)

    @property
    def output_index(self) -> torch.Tensor:
        """[B, L] int64: output tokens of the row before each token (its ordinal if it is one)."""
        is_output = self.is_output
        ordinal = is_output.cumsum(1) - is_output.long()
        before = None if self.cache is None else self.cache.outputs
        return ordinal if before is None else ordinal + before[:, None]

    @property
    def attention(self) -> torch.Tensor:
        """Probabilities of the query rows that the cut looks at, float32 [B, H, R, L].

        While decoding, L covers the cached entries, then this call's tokens.
        """
        return self._saw("rows", "Attention")

    @property
    def sums(self) -> torch.Tensor:
        """Attention received by each token, summed over the valid queries, float32 [B, H, L]."""
        return self._saw("sums", "ColumnSums")

    @property
    def keys(self) -> torch.Tensor:
        """Rotated keys of the layer before the cut, [B, Hkv, L, d]."""
        return self._saw("keys", "Keys")

    def _saw(self, name: str, look: str) -> torch.Tensor:
        value = getattr(self.seen, name, None)
        if value is None:
            raise UserError(f"the cut has no look {look}: give it by={look}(...)")
        return value

    def keep_for(self, decision: int, seen: Observed) -> None:
        """Keep what was observed for a decision of a later layer."""
        self._seen[decision] = seen

    def seen_by(self, decision: int) -> Observed | None:
        """Return what was observed for a decision."""
        return self._seen.get(decision)

    def predictor(self, name: str) -> Any:
        """Return a trained module of the model.

        Raises
        ------
        UserError
            If the model has none of that name.
        """
        module = self.predictors.get(name)
        if module is None:
            raise UserError(f"the model has no {name} predictor: set its keep rate to 1.0")
        return module

    def memo(self, name: str, build: Callable[[], Any]) -> Any:
        """Return what ``build`` returned when ``name`` was first asked for in this call."""
        if name not in self._memo:
            self._memo[name] = build()
        return self._memo[name]

    def note(self, **values: Any) -> None:
        """Report values of the cut that is being decided, as ``L<layer>.<name>``."""
        layer = 0 if self.cut is None else self.cut.layer
        self.record.update({f"L{layer}.{name}": value for name, value in values.items()})

    def has_outputs(self) -> bool:
        """Return whether any token is an output token."""
        # A decode step is one token a row and always an output token; asking the tensor would
        # cost a host synchronisation.
        if self.decoding and self.stream.size == 1:
            return True
        if self._outputs is None:
            self._outputs = bool(self.is_output.any())
        return self._outputs

    def has_images(self) -> bool:
        """Return whether any token is an image token."""
        return self.memo("has images", lambda: bool(self.is_image.any()))

    def last_prompt_row(self) -> torch.Tensor:
        """Return [B] int64: stream row of each row's last prompt token."""
        rows = torch.arange(self.stream.size, device=self.stream.segment.device)
        prompt = self.stream.valid() & ~self.is_output
        return torch.where(prompt, rows, 0).amax(1)

    def newest_row(self) -> torch.Tensor:
        """Return [B] int64: stream row of each row's newest token."""
        return (self.stream.length - 1).clamp(min=0)

    def last_image_row(self) -> torch.Tensor:
        """Return [B] int64: stream row of each row's last image token, -1 if it has none."""
        is_image = self.is_image
        columns = torch.arange(self.stream.size, device=is_image.device)
        return torch.where(is_image, columns, -1).amax(1)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the hidden states [B, R, D] of stream rows [B, R]."""
        return take_rows(self.stream.hidden, rows)
