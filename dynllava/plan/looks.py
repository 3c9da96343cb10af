"""What a cut looks at, and what looking costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .operations import ModelDims, Operation
from .shapes import Shape

if TYPE_CHECKING:
    from .cuts import Stage

#: Query rows of one block of column sums: memory grows with the prompt, not with its square.
QUERY_BLOCK = 256


@dataclass(frozen=True)
class Nothing:
    """Neither tokens nor attention: a rule about places alone."""

    def operations(self, stage: Stage, dims: ModelDims, phase: str) -> Iterator[Operation]:
        """Return what looking costs."""
        return iter(())


NOTHING = Nothing()


@dataclass(frozen=True)
class Hidden(Nothing):
    """The tokens themselves, at the cut (``view.stream``)."""


@dataclass(frozen=True)
class Predictor(Nothing):
    """A trained module of the model reads the tokens at the cut; its work is the plan's.

    Attributes
    ----------
    name : str
        ``"image"`` or ``"output"``.
    rate : float or None
        Keep rate that the checkpoint must have been trained or calibrated for; None = any.
    calibrated : bool
        Whether it must be a calibrated one.
    """

    name: str
    rate: float | None = None
    calibrated: bool = False


@dataclass(frozen=True)
class Attention:
    """Attention probabilities of a few query rows (``view.attention`` [B, H, rows, L]).

    Attributes
    ----------
    rows : str or callable
        ``"last_prompt"``, ``"newest"``, or ``rows(view) -> [B, R] int64``, rows of the stream at
        the layer that is looked at.  Such a function also finds the stream that entered layer 0
        in ``view.embeds``.
    of : str
        ``"output"``: the attention of the layer before the cut.  ``"own_input"``: what the
        cut's own layer would attend to without it, from its own norm, projections and rotary.
    count : int or callable
        Rows, or their expected number ``count(shape)``; for the cost.
    heads : int or None
        Heads that vote, at most the model's; None = the method does not say.
    component : str
        The ledger's name of the work.
    """

    rows: str | Callable[[Any], Any] = "last_prompt"
    of: str = "output"
    count: int | Callable[[Shape], int] = 1
    heads: int | None = None
    component: str = "ranking"

    def operations(self, stage: Stage, dims: ModelDims, phase: str) -> Iterator[Operation]:
        """Return the products of the query rows and all keys, per head."""
        if not stage.shape.image:
            return
        count = self.count(stage.shape) if callable(self.count) else self.count
        own = self.of == "own_input"
        layer, keys = stage.cut.layer - (not own), stage.rows_before
        if own:
            width = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
            yield Operation("query", self.component, layer, phase, count, dims.hidden, width[0])
            yield Operation(
                "keys", self.component, layer, phase, width[1], dims.hidden, keys, grows=1
            )
        # Tokens that come later are keys too.
        yield Operation(
            "scores", self.component, layer, phase, count, dims.head_dim, keys, dims.heads, grows=1
        )


@dataclass(frozen=True)
class ColumnSums:
    """Attention that each token receives in the layer before the cut (``view.sums`` [B, H, L])."""

    component: str = "scoring"

    def operations(self, stage: Stage, dims: ModelDims, phase: str) -> Iterator[Operation]:
        """Return the products that form the sums; the attention itself is the layer's own."""
        yield from column_sums(stage.cut.layer - 1, stage.rows_before, dims, self.component)


@dataclass(frozen=True)
class Keys(Nothing):
    """Keys of the layer before the cut, rotated (``view.keys`` [B, Hkv, L, d]): computed anyway."""


#: The tower's layer that produces the selected features, and the one after it.
PRODUCING, NEXT = "producing", "next"


@dataclass(frozen=True)
class Tower:
    """A look into the vision tower, beside its usual kernel (``view.tower[look]``).

    Attributes
    ----------
    what : str
        ``"class_row"``: attention of the class token to the patches, [H, N] (softmax over all
        rows, so a head's patches sum to less than 1).  ``"keys"``: keys of all rows [N + 1, C],
        heads side by side, class token first.  ``"class_query"``: its query [C].
    layer : str or int
        :data:`PRODUCING` or :data:`NEXT`, named from the selected feature layer; or a number.
    several : bool
        Looked at only where pictures have several crops.
    """

    what: str
    layer: str | int = PRODUCING
    several: bool = False

    @property
    def class_token(self) -> bool:
        """Whether what is seen depends on the class token (of the keys only its own does)."""
        return self.what != "keys"

    def operations(self, stage: Stage, dims: ModelDims, phase: str) -> Iterator[Operation]:
        """Return the class row's products; projections are the tower's own."""
        tower = dims.tower
        if tower is None or not stage.shape.image:
            return
        if self.several and all(image.crops == 1 for image in stage.shape.images):
            return
        if self.what == "class_row":
            rows, depth = tower.patches + 1, tower.hidden // tower.heads
            yield Operation("class_scores", "tower_look", None, phase, 1, depth, rows, tower.heads)


@dataclass(frozen=True)
class Question(Nothing):
    """The question, by a text tower of the method's own; its work is the plan's.

    Attributes
    ----------
    text_tower : str or None
        Folder of that tower.
    question : str or None
        What is asked.
    """

    reads_question: ClassVar[bool] = True

    text_tower: str | None
    question: str | None


Look = Nothing | Hidden | Predictor | Attention | ColumnSums | Keys | Tower


def column_sums(
    layer: int, rows: int, dims: ModelDims, component: str, *, scores: bool = False
) -> Iterator[Operation]:
    """Return the products of one layer's column sums over ``rows`` tokens.

    The prompt's own attention forms the probabilities that are summed; only where it is restricted
    do they need a pass of their own (``scores``).  A block of queries sees only the keys up to its
    end.
    """
    for start in range(0, rows, QUERY_BLOCK):
        block = min(QUERY_BLOCK, rows - start)
        products = [("column_sums", 1, block)]
        if scores:
            products.append(("scores", block, dims.head_dim))
        for name, m, k in products:
            yield Operation(name, component, layer, "prefill", m, k, start + block, dims.heads)
