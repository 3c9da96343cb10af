"""The plan: all that a method promises, as one value.

Tokens per layer, cache lengths, the cost of looking, budgets, composition, whether a cache is
used and how positions go on are derived from it.  Nothing here computes with tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dynllava.errors import UserError

from .cuts import Cut, Stage
from .keeps import Alternate, Count, Rule, Share
from .looks import NOTHING, Attention, Look, Question, Tower, column_sums
from .operations import ModelDims, Operation
from .schedule import Schedule
from .segments import Segment
from .shapes import Shape, Voco
from .stores import DENSE, Dense, PerHead, Span, Store

Work = Callable[[Shape, ModelDims, tuple[Stage, ...]], Iterable[Operation]]
"""Operations of a method's own layers for a prompt, a model, and what the cuts do to it."""

SERVED = {
    "A": "before layer 0, blind to the question: embeddings into a stock engine, shared by image",
    "B": "before layer 0, sees the question: embeddings into a stock engine",
    "C": "inside the layers: an engine whose layers may differ in length",
    "D": "per head or while decoding: the engine's own KV manager",
}
"""Class of a plan -> what serving it takes."""


@dataclass(frozen=True)
class Plan:
    """What a method promises.

    Attributes
    ----------
    cuts : tuple of Cut
        Where tokens leave.
    store : Store
        What the cache of a layer keeps.
    prompt : str
        ``"causal"``; ``"own_budget"``: the prompt's own attention is restricted to what the store
        would keep; ``"split"``: text behind the learned tokens sees those, not what is before.
    decode : str
        ``"static"``: chosen once, in prefill.  ``"rerank"``: nothing is dropped, every step ranks
        anew and hides.  ``"recompute"``: no cache, every step runs the whole sequence.
    work : tuple of callable
        The method's own layers, see :data:`Work`.
    """

    cuts: tuple[Cut, ...] = ()
    store: Store = DENSE
    prompt: str = "causal"
    decode: str = "static"
    work: tuple[Work, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(sorted(self.cuts, key=lambda cut: cut.order)))

    # ------------------------------------------------------------------ what follows for the engine

    def of(self, segment: Segment) -> tuple[Cut, ...]:
        """Return the cuts of a segment, in the order in which they act."""
        return tuple(cut for cut in self.cuts if cut.of is segment)

    @property
    def looks(self) -> tuple[Look, ...]:
        """All looks."""
        return tuple(look for cut in self.cuts for look in cut.looks)

    @property
    def first_output_layer(self) -> int | None:
        """First layer that may lack output tokens, None if none does."""
        return min((cut.layer for cut in self.of(Segment.OUTPUT)), default=None)

    @property
    def uses_cache(self) -> bool:
        """False where every step runs the whole sequence."""
        return self.decode != "recompute"

    @property
    def evicts(self) -> bool:
        """Whether entries leave the cache while decoding: there is then no decoding without one."""
        return isinstance(self.store, PerHead)

    @property
    def stepwise(self) -> bool:
        """Whether a continuation must be scored token by token: its tokens change what is seen."""
        return self.evicts or self.decode == "rerank"

    @property
    def learned_token(self) -> int | None:
        """Id of the learned tokens that a prompt is split at, None if it is not."""
        return self.store.token if isinstance(self.store, Span) else None

    @property
    def compact(self) -> bool:
        """Whether a decode query's position is the layer's own cache length."""
        return any(cut.positions == "compact" and not cut.early for cut in self.cuts)

    @property
    def needs_pictures(self) -> bool:
        """Whether a cut looks at pictures or their features: embeddings alone do not do."""
        return any(cut.stage in ("pixels", "features") for cut in self.cuts)

    @property
    def needs_embeddings(self) -> bool:
        """Whether a look chooses its rows by what entered layer 0."""
        return any(isinstance(look, Attention) and callable(look.rows) for look in self.looks)

    @property
    def looks_at_class_token(self) -> bool:
        """Whether a look asks the vision tower's class token what matters."""
        return any(isinstance(look, Tower) and look.class_token for look in self.looks)

    def check_model(self, heads: int, image_tokens: int) -> None:
        """Refuse numbers that the model does not have.

        Parameters
        ----------
        heads : int
            Attention heads of a decoder layer.
        image_tokens : int
            Image tokens of one image.

        Raises
        ------
        UserError
            For more tokens or heads than there are, a share that keeps none, or a look at a
            question without a text tower.
        """
        for cut in self.cuts:
            keep = cut.keep
            if isinstance(keep, Count) and keep.number > image_tokens:
                raise _beyond(keep.name, keep.number, image_tokens, "image tokens")
        for look in self.looks:
            if isinstance(look, Question):
                _check_question(look)
            if isinstance(look, Attention) and look.heads is not None and look.heads > heads:
                raise _beyond("priority_heads", look.heads, heads, "attention heads")
        if isinstance(self.store, PerHead):
            for name in ("heavy", "recent"):
                value = getattr(self.store, name)
                if 0 < value < 1 and int(value * image_tokens) == 0:
                    raise UserError(
                        f"{name}={value!r}: keeps none of {image_tokens} tokens; accepted is 0 or "
                        f"a share from {1 / image_tokens:.2g}"
                    )

    # ------------------------------------------------------------------ what follows for the costs

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return what each cut of image tokens does to a prompt."""
        found: list[Stage] = []
        present = original = shape.image
        entered = [(0, shape.total)]
        for cut in self.of(Segment.IMAGE):
            if cut.early:
                first = not found
                counts = [span.patches for span in shape.images] if first else [present]
                kept = sum(cut.keep.count(shape, count, count) for count in counts)
            else:
                kept = cut.keep.count(shape, original, present)
            merged = 0
            if cut.merge is not None and present:
                merged = cut.merge.count(present - kept)
            # Two cuts at one layer's input look at the same layer before it.
            rows = [count for layer, count in entered if layer < max(cut.layer, 1)][-1]
            stage = Stage(cut, shape, rows, present, kept, merged)
            found.append(stage)
            if self.decode != "rerank":
                present = stage.after
            original = present if cut.early else original
            entered.append((cut.layer, shape.total - shape.image + present))
        return tuple(found)

    def schedule(self, shape: Shape, layers: int) -> Schedule:
        """Return the tokens per layer for one row; counts that depend on the data are estimates."""
        rows = [shape.total] * layers
        if self.decode != "rerank":
            for stage in self.stages(shape):
                left = shape.total - shape.image + stage.after
                rows[stage.cut.layer :] = [left] * (layers - stage.cut.layer)
        first, keep = self.first_output_layer, self._output_keep()
        drops = [first is not None and layer >= first for layer in range(layers)]
        stored = list(rows)
        limits: list[int | None] = [None] * layers
        if isinstance(self.store, PerHead):
            limits = [self.store.limit(layer, held) for layer, held in enumerate(rows)]
            stored = [
                held if limit is None else min(held, limit)
                for held, limit in zip(rows, limits, strict=True)
            ]
        elif isinstance(self.store, Span):
            stored = [shape.since(Voco) or shape.total] * layers
        return Schedule(tuple(rows), tuple(stored), tuple(drops), tuple(limits), keep)

    def _output_keep(self) -> float | str:
        for cut in self.of(Segment.OUTPUT):
            if isinstance(cut.keep, Share):
                return cut.keep.rate
            if isinstance(cut.keep, Alternate):
                return "alternate"
        return 1.0

    def operations(self, shape: Shape, dims: ModelDims) -> list[Operation]:
        """Return all that the method computes beside the stock layers."""
        stages = self.stages(shape)
        phases = ("prefill", "decode") if self.decode == "rerank" else ("prefill",)
        found: list[Operation] = []
        for stage in stages:
            for look in stage.cut.looks:
                for phase in phases:
                    found += look.operations(stage, dims, phase)
        if isinstance(self.store, PerHead):
            rows = self.schedule(shape, dims.layers).prefill_rows
            own = self.prompt == "own_budget"
            for layer in range(self.store.first_full, dims.layers):
                found += column_sums(layer, rows[layer], dims, "scoring", scores=own)
        for work in self.work:
            found += work(shape, dims, stages)
        return [operation for operation in found if operation.macs]

    # ------------------------------------------------------------------ what follows for a reader

    @property
    def is_reference(self) -> bool:
        """Whether it stands beside any budget: everything is kept, or no image token at all."""
        if not self.cuts:
            return isinstance(self.store, Dense)
        image = self.of(Segment.IMAGE)
        nothing = [isinstance(cut.keep, Count) and cut.keep.number == 0 for cut in image]
        return len(image) == len(self.cuts) and all(nothing)

    @property
    def prunes(self) -> str:
        """What leaves, in words."""
        image, output = bool(self.of(Segment.IMAGE)), bool(self.of(Segment.OUTPUT))
        kinds = {(True, True): "image and output tokens", (True, False): "image tokens"}
        kinds[False, True] = "output tokens"
        tokens = kinds.get((image, output))
        entries = None if isinstance(self.store, Dense) else "KV entries"
        return ", ".join(filter(None, (tokens, entries))) or "nothing"

    @property
    def saves(self) -> tuple[str, ...]:
        """The modes in which it saves computation."""
        fewer = self.decode != "rerank" and bool(self.of(Segment.IMAGE))
        shorter = fewer or bool(self.of(Segment.OUTPUT))
        modes = {
            "prefill": fewer,
            "decode with cache": (shorter or not isinstance(self.store, Dense)) and self.uses_cache,
            "decode without cache": shorter and not self.evicts,
        }
        return tuple(mode for mode, saved in modes.items() if saved)

    @property
    def adapts(self) -> bool:
        """Whether a count depends on the data: what is declared is then an estimate."""
        pixels = [cut for cut in self.cuts if cut.stage == "pixels"]
        return any(isinstance(cut.keep, Rule) for cut in self.cuts if cut not in pixels)

    @property
    def served(self) -> str:
        """What a server must be able to do, a letter of :data:`SERVED`."""
        if not isinstance(self.store, Dense) and not isinstance(self.store, Span):
            return "D"
        if self.of(Segment.OUTPUT) or self.decode != "static":
            return "D"
        # At layer 0 without a look a token goes before anything was computed of it.
        inside = [
            cut for cut in self.cuts if not cut.early and (cut.layer or cut.looks != (NOTHING,))
        ]
        if self.prompt != "causal" or inside:
            return "C"
        # Looks of the language model see the prompt; those before it say so where they read text.
        return "B" if self.reads_question else "A"

    @property
    def reads_question(self) -> bool:
        """Whether something before the language model reads the question as text."""
        return any(getattr(look, "reads_question", False) for look in self.looks)

    @property
    def positions(self) -> str:
        """How positions go on, in words."""
        if isinstance(self.store, PerHead) and self.store.rolled:
            return "rolled to cache slots"
        if self.compact:
            return "compact per layer"
        return "compact" if any(cut.positions == "compact" for cut in self.cuts) else "original"

    # ------------------------------------------------------------------ composition

    def __or__(self, other: Plan) -> Plan:
        """Return both plans in one pass.

        Raises
        ------
        UserError
            If both drop image tokens in the decoder or both before it, both change the cache, or
            one needs all cache entries and the other drops some.
        """
        image = [plan.of(Segment.IMAGE) for plan in (self, other)]
        for early in (True, False):
            if all(any(cut.early is early for cut in cuts) for cuts in image):
                raise UserError("both parts drop image tokens; one of them may")
        managers = [plan._changes_cache for plan in (self, other)]
        if all(managers):
            raise UserError("both parts drop cache entries; one of them may")
        decodes = [plan.decode for plan in (self, other)]
        if any(managers) and any(decode != "static" for decode in decodes):
            raise UserError(
                "the form of one part that looks at every cached token cannot work on a cache "
                "that the other part changes"
            )
        changed = [decode for decode in decodes if decode != "static"]
        prompts = [plan.prompt for plan in (self, other) if plan.prompt != "causal"]
        if "split" in prompts:
            raise UserError("learned tokens stand for the image: nothing else may be dropped")
        if len(changed) > 1 or len(prompts) > 1:
            raise UserError("both parts change how prompts or steps run; one of them may")
        return Plan(
            self.cuts + other.cuts,
            self.store if isinstance(other.store, Dense) else other.store,
            prompts[0] if prompts else "causal",
            changed[0] if changed else "static",
            self.work + other.work,
        )

    @property
    def _changes_cache(self) -> bool:
        return self.first_output_layer is not None or not isinstance(self.store, Dense)


def _check_question(look: Question) -> None:
    if look.text_tower is None:
        raise UserError(
            "text_tower=None: accepted is the folder of a CLIP model with text tower and tokenizer"
        )


def _beyond(name: str, value: int, most: int, what: str) -> UserError:
    return UserError(f"{name}={value!r}: accepted is a number from 1 to {most}, the model's {what}")
