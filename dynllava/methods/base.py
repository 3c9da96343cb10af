"""What a compression method is: hyper-parameters, a declared schedule, pure selection functions.

The decoder (:mod:`dynllava.engine.decoder`) owns the loop, the gathering and the cache.  A method
only answers questions: *which tokens go on into layer i*, *what must be observed in layer i's
attention*, and *how many tokens does each layer process*.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dynllava.engine.stream import Segment, TokenStream
from dynllava.errors import UserError
from dynllava.plan import ModelDims, Operation, PromptShape, Schedule, Shape  # noqa: F401

if TYPE_CHECKING:
    from dynllava.engine.cache import LayerStore, Lengths, SparseCache


@dataclass
class Probe:
    """What the decoder must observe in one layer's attention; nothing else is computed.

    Attributes
    ----------
    query_rows : Tensor [B, R] int64 or None
        Query rows whose softmax probabilities over all keys are wanted.  Observed as
        ``rows`` float32 [B, H, R, L].  While decoding, rows count this call's tokens and L covers
        the cached entries, then this call's tokens.
    column_sums : bool
        Sum over the valid queries of the causal attention, per head.  Observed as ``sums``
        float32 [B, H, L].
    """

    query_rows: torch.Tensor | None = None
    column_sums: bool = False


@dataclass
class Observed:
    """What a :class:`Probe` saw (see there for shapes).

    ``output`` [B, H, L, d] is the attention's output, where the column sums brought it along.
    """

    rows: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    output: torch.Tensor | None = None


@dataclass
class Selection:
    """Which tokens go on, as seen from one layer's input.

    Attributes
    ----------
    keep : Tensor [B, L] bool
        True = the token goes on.  Positions past a row's length are ignored.
    hide : bool
        The tokens stay and are computed, but as keys they are invisible from this layer on, in
        this call only (FastV's re-ranking decoder).  While decoding, ``keep`` then covers the
        cached entries and this call's token.
    merged : Tensor [B, C, D] or None
        New tokens that stand for dropped ones (SparseVLM's recycling); they are put
        behind the row's last kept image token.
    merged_length : Tensor [B] int64 or None
        How many of the C merged tokens each row has.
    renumber : bool
        Renumber positions 0.. within the shortened row (SparseVLM v1.5) instead of keeping
        the original ones.
    """

    keep: torch.Tensor
    hide: bool = False
    merged: torch.Tensor | None = None
    merged_length: torch.Tensor | None = None
    renumber: bool = False


@dataclass
class StepContext:
    """What a method may look at in one forward call.

    Attributes
    ----------
    stream : TokenStream
        Tokens at the input of the current layer.
    image_predictor, output_predictor : Module or None
        The model's predictors (Dynamic-LLaVA only).
    decoding : bool
        True when the call continues an existing cache.
    state : dict
        The method's own scratch space for this call (e.g. SparseVLM's raters).
    num_layers : int
        Decoder layers.
    output_index : Tensor [B, L] int64
        How many output tokens of the row came before each token (a token's own ordinal if
        it is an output token).
    cache : SparseCache or None
        The cache, for methods that look at what was stored.
    sample_ids : Tensor [B] int64
        Stable identity of each row, so that hashing methods do not depend on batching.
    rotary : callable or None
        The model's ``rotary(x, position_ids) -> (cos, sin)``.
    record : dict
        What the method wants reported (scores, logits, kept indices) after the call.
    """

    stream: TokenStream
    image_predictor: torch.nn.Module | None
    output_predictor: torch.nn.Module | None
    decoding: bool
    num_layers: int
    sample_ids: torch.Tensor
    output_index: torch.Tensor
    cache: SparseCache | None = None
    rotary: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def last_prompt_row(self) -> torch.Tensor:
        """Return [B] int64: stream row of each row's last prompt token."""
        rows = torch.arange(self.stream.size, device=self.stream.segment.device)
        prompt = self.stream.valid() & ~self.stream.is_segment(Segment.OUTPUT)
        return torch.where(prompt, rows, 0).amax(1)


@dataclass
class Method:
    """Base class: keeps every token everywhere.

    Subclasses are dataclasses whose fields are the method's hyper-parameters.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    prunes: ClassVar[str] = "nothing"
    saves: ClassVar[tuple[str, ...]] = ()
    positions: ClassVar[str] = "original"
    certificate: ClassVar[str] = ""
    #: Fields that name the first short layer and the kept share of image tokens, where a budget of
    #: image tokens is met by one cut.
    single_cut: ClassVar[tuple[str, str] | None] = None
    #: A reference that stands beside any budget (dense, no image).
    reference: ClassVar[bool] = False
    #: Whether a budget is met by ``rows`` x ``columns`` image tokens before layer 0.
    sets_grid: ClassVar[bool] = False

    def validate(self, num_layers: int) -> None:
        """Raise :class:`UserError` if a parameter does not fit a model of ``num_layers``."""

    def check_model(self, heads: int, image_tokens: int) -> None:
        """Raise :class:`UserError` if a parameter does not fit the model's other sizes.

        Parameters
        ----------
        heads : int
            Attention heads of a decoder layer.
        image_tokens : int
            Image tokens of one image.
        """

    def encode_images(self, model: Any, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        """Return the image tokens [images, P, D] that enter layer 0, in the prompt's first places.

        Placeholders beyond P of them hold nothing, as if the prompt had been written for a smaller
        picture.

        Parameters
        ----------
        model : DynamicLlavaForConditionalGeneration
        pixel_values : Tensor [images, 3, S, S]
        **options
            For the vision tower.
        """
        found = model.model.get_image_features(
            pixel_values=pixel_values, return_dict=True, **options
        )
        return torch.stack(list(found.pooler_output))

    def tower_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the patches (rows, columns) that the vision tower processes."""
        return rows, columns

    def probe(self, layer: int, ctx: StepContext) -> Probe | None:
        """Return what must be observed in the attention of ``layer`` (0-based), or None."""
        return None

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Return which tokens enter ``layer``; ``observed`` comes from layer ``layer - 1``.

        While decoding with a cache, ``keep`` says whose K/V is stored from this layer on.
        """
        return None

    def output_layer(self) -> int | None:
        """Return the first layer that may lack output tokens, or None if none does."""
        return None

    def check_checkpoint(self, sparse_config: dict[str, Any]) -> None:
        """Raise :class:`UserError` if the checkpoint was not trained for these parameters."""

    def make_store(
        self, layer: int, stream: TokenStream, lengths: Lengths, chunk: int
    ) -> LayerStore:
        """Return the cache of ``layer`` for the prompt tokens in ``stream``.

        Methods that evict per head return a store of their own.
        """
        from dynllava.engine.cache import LayerStore

        return LayerStore(lengths, chunk)

    def scores_stepwise(self) -> bool:
        """Return whether a continuation must be scored token by token.

        True where what a token sees depends on decisions made while decoding that have no mask
        formula (eviction).
        """
        return False

    def uses_cache(self) -> bool:
        """Return False for a method that is defined without a cache only."""
        return True

    def needs_whole_cache(self) -> bool:
        """Return whether the method looks at cached entries by their place while decoding.

        Such a method cannot be combined with one that evicts entries.
        """
        return False

    def compact_positions(self) -> bool:
        """Return whether a decode query's position is the layer's own cache length."""
        return False

    def schedule(self, shape: Shape, num_layers: int) -> Schedule:
        """Return the declared tokens per layer for one row."""
        total = (shape.total,) * num_layers
        return Schedule(total, total, (False,) * num_layers, (None,) * num_layers)

    def overhead(self, shape: Shape, dims: ModelDims) -> list[Operation]:
        """Return the method's own matmul-class operations (predictors, scores, clustering)."""
        return []

    def overhead_on(self, rows: tuple[int, ...], shape: Shape, dims: ModelDims) -> list[Operation]:
        """Return :meth:`overhead` where another method leaves ``rows`` [layers] tokens."""
        return self.overhead(shape, dims)

    def limit_cache(self, schedule: Schedule) -> Schedule:
        """Return ``schedule`` with this method's limit on each layer's cache."""
        return schedule

    def parameters(self) -> dict[str, Any]:
        """Return the hyper-parameters as plain values."""
        return dataclasses.asdict(self)


def check_fraction(name: str, value: float, *, low_open: bool = True) -> None:
    """Raise :class:`UserError` unless ``value`` is a share in (0, 1] (or [0, 1])."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    low_ok = number and (value > 0 if low_open else value >= 0)
    if not number or math.isnan(value) or not low_ok or value > 1:
        raise UserError(
            f"{name}={value!r}: accepted is a number in {'(' if low_open else '['}0, 1]"
        )


def check_count(name: str, value: int, most: int, of: str) -> None:
    """Raise :class:`UserError` unless ``value`` is an integer in [1, ``most``].

    ``of`` says what the model has ``most`` of, for the message.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UserError(f"{name}={value!r}: accepted is a number from 1 to {most}, the {of}")


def check_layer(name: str, value: int, num_layers: int, *, first: int = 0) -> None:
    """Raise :class:`UserError` unless ``value`` is a layer index in [first, num_layers - 1]."""
    if not isinstance(value, int) or isinstance(value, bool) or not first <= value < num_layers:
        raise UserError(
            f"{name}={value!r}: accepted is a layer index from {first} to {num_layers - 1}"
        )


def top_image_tokens(
    scores: torch.Tensor, stream: TokenStream, counts: torch.Tensor
) -> torch.Tensor:
    """Return [B, L] bool: every other token, and the image tokens with the highest scores.

    Parameters
    ----------
    scores : Tensor [B, L] float
        Score of each image token; other columns are ignored.
    stream : TokenStream
        The tokens.
    counts : Tensor [B] int64
        Image tokens to keep per row.

    Notes
    -----
    Equal scores go to the earlier token, so that a choice never depends on the sort kernel.
    """
    return keep_highest(scores, stream.is_segment(Segment.IMAGE), counts)


def keep_highest(
    scores: torch.Tensor, candidates: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Return [B, L] bool: everything but the candidates, and the best ``counts`` [B] of those.

    ``scores`` is [B, L] float, ``candidates`` [B, L] bool; equal scores go to the earlier one.
    """
    masked = scores.masked_fill(~candidates.to(scores.device), float("-inf"))
    order = torch.argsort(masked, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    best = (rank < counts.to(rank.device)[:, None]).to(candidates.device)
    return ~candidates | best
