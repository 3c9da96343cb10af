"""A plan made ready to run: what to observe and what to decide at each layer's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynllava.errors import UserError
from dynllava.plan import Alternate, Attention, ColumnSums, Count, Cut, Keys, Look, PerHead, Segment

from .attention import Observed, Probe
from .ranking import Dropped, kept_counts, ranked
from .split import check_split
from .view import View

if TYPE_CHECKING:
    from dynllava.methods.base import Method

    from .cache import SparseCache


#: Name of what a cache remembers of a re-ranking cut, the layer behind it.
STORED = "image tokens at layer "


@dataclass
class Selection:
    """Which tokens go on, as seen from one layer's input.

    Attributes
    ----------
    keep : Tensor [B, L] bool
        True = the token goes on.  Positions past a row's length are ignored.
    hide : bool
        The tokens stay and are computed, but as keys they are invisible from this layer on, in
        this call only (re-ranking).  While decoding, ``keep`` then covers the cached entries and
        this call's token.
    merged : Tensor [B, C, D] or None
        New tokens that stand for dropped ones; they are put behind the last kept image token.
    merged_length : Tensor [B] int64 or None
        How many of the C merged tokens each row has.
    renumber : bool
        Renumber positions 0.. within the shortened row instead of keeping the original ones.
    """

    keep: torch.Tensor
    hide: bool = False
    merged: torch.Tensor | None = None
    merged_length: torch.Tensor | None = None
    renumber: bool = False


@dataclass(frozen=True, eq=False)
class Decision:
    """A cut in the decoder and the method that decides it.

    Attributes
    ----------
    index : int
        Number of the cut.
    verb : str
        ``"score"``, ``"choose"`` or ``"none"`` (the keep rule says it all).
    looks : tuple of Look
        What is observed in the attention of the layer before the cut.
    own : Attention or None
        What is observed from the cut's own layer and its input.
    """

    index: int
    cut: Cut
    method: Method
    verb: str
    looks: tuple[Look, ...]
    own: Attention | None

    @classmethod
    def of(cls, index: int, cut: Cut, method: Method) -> Decision:
        """Return the decision; a method without a verb for it is refused."""
        verb = "choose" if cut.of is Segment.OUTPUT or not method.has("score") else "score"
        if not method.has(verb):
            none = isinstance(cut.keep, Count) and cut.keep.number == 0
            fixed = none or isinstance(cut.keep, Alternate)
            if not fixed:
                raise UserError(f"{method.name}: a cut of {cut.of.name.lower()} tokens, no {verb}")
            verb = "none"
        attention = [look for look in cut.looks if isinstance(look, Attention)]
        before: list[Look] = [look for look in cut.looks if isinstance(look, (ColumnSums, Keys))]
        own = [look for look in attention if look.of == "own_input"]
        before += [look for look in attention if look.of == "output"]
        if before and cut.layer == 0:
            raise UserError(f"{method.name}: a cut at layer 0 has no layer before it to look at")
        return cls(index, cut, method, verb, tuple(before), own[0] if own else None)


class Program:
    """A method's plan for a model of some depth, ready to run.

    Parameters
    ----------
    method : Method
        Its parts' plans are joined.
    layers : int
        Decoder layers.

    Attributes
    ----------
    features, embedded : Decision or None
        What is decided before the projector, and behind it before layer 0.
    cuts_early : bool
        Whether any cut acts before layer 0.
    prompt, steps : list of tuple of Decision
        [layers] what is decided at each layer's input, in a prompt and while decoding.
    """

    def __init__(self, method: Method, layers: int) -> None:
        self.method, self.layers = method, layers
        self.plan = method.plan(layers)
        check_split(method.name, self.plan)
        cuts = [(cut, part) for part in method.parts for cut in part.plan(layers).cuts]
        found = [
            Decision.of(index, cut, part) for index, (cut, part) in enumerate(cuts) if not cut.early
        ]
        early = {
            cut.stage: Decision(index, cut, part, "rows", (), None)
            for index, (cut, part) in enumerate(cuts)
            if cut.early
        }
        self.features, self.embedded = early.get("features"), early.get("embedded")
        self.cuts_early = bool(early)
        self.hides = self.plan.decode == "rerank"
        stepwise = [item for item in found if self.hides or item.cut.of is Segment.OUTPUT]
        self.prompt = _by_layer(found, layers)
        self.steps = _by_layer(stepwise, layers)
        looking = [item for item in found if item.looks]
        self._prompt_looks = _by_layer(looking, layers, before=True)
        self._step_looks = _by_layer(looking if self.hides else [], layers, before=True)
        if self.hides and any(item.own for item in found):
            raise UserError(f"{method.name}: a re-ranking cut cannot look at its own layer's input")
        store = self.plan.store
        first = store.first_full if isinstance(store, PerHead) else layers
        self._sums = [layer >= first for layer in range(layers)]

    def check_cache(self, cache: SparseCache | None) -> None:
        """Refuse to run a prompt with a cache, or without one, where the plan needs the other."""
        if cache is not None and not self.plan.uses_cache:
            raise UserError(f"{self.method.name} runs without a cache here: use_cache=False")
        if cache is None and self.plan.evicts:
            raise UserError(f"{self.method.name} evicts cache entries: it needs use_cache=True")

    # ------------------------------------------------------------------ observing

    def probe(self, layer: int, view: View) -> Probe | None:
        """Return what must be observed in the attention of ``layer``, or None."""
        looks = (self._step_looks if view.decoding else self._prompt_looks)[layer]
        sums = self._sums[layer] and not view.decoding
        if not looks or not self.has_candidates(view):
            return Probe(column_sums=True) if sums else None
        rows: list[torch.Tensor] = []
        keys = False
        for decision in looks:
            for look in decision.looks:
                keys |= isinstance(look, Keys)
                sums |= isinstance(look, ColumnSums)
                if isinstance(look, Attention):
                    rows.append(query_rows(look, view))
        sizes = tuple(part.shape[1] for part in rows)
        return Probe(torch.cat(rows, 1) if rows else None, sums, keys, sizes, asked=True)

    def hand_out(
        self, layer: int, view: View, probe: Probe | None, observed: Observed | None
    ) -> None:
        """Give each decision at the next layer's input its part of what was observed."""
        looks = (self._step_looks if view.decoding else self._prompt_looks)[layer]
        if probe is None or observed is None or not probe.asked:
            return
        parts = iter(() if observed.rows is None else observed.rows.split(probe.sizes, 2))
        for decision in looks:
            rows = None
            for look in decision.looks:
                if isinstance(look, Attention):
                    rows = next(parts)
            view.keep_for(decision.index, Observed(rows, observed.sums, keys=observed.keys))

    # ------------------------------------------------------------------ deciding

    def decide(self, decisions: tuple[Decision, ...], view: View) -> Selection | None:
        """Return which tokens go on at the input of a layer."""
        selection: Selection | None = None
        for decision in decisions:
            view.cut, view.seen = decision.cut, view.seen_by(decision.index)
            if decision.cut.of is Segment.OUTPUT:
                if not view.has_outputs():
                    continue
                found = Selection(self._choose_outputs(decision, view))
            elif not self.has_candidates(view):
                continue
            else:
                found = self._choose_images(decision, view)
            if selection is not None:
                found.keep = found.keep & selection.keep
                if found.merged is None:
                    found.merged, found.merged_length = selection.merged, selection.merged_length
                found.renumber |= selection.renumber
            selection = found
        return selection

    def has_candidates(self, view: View) -> bool:
        """Return whether there is any image token to choose among."""
        if view.decoding and self.hides:
            # What the prompt had: asking the tensor would be a host synchronisation in every step.
            return view.cache is not None and any(map(_is_stored, view.cache.method_state))
        return view.has_images()

    def _choose_outputs(self, decision: Decision, view: View) -> torch.Tensor:
        is_output = view.is_output
        if decision.verb == "none":
            return (torch.remainder(view.output_index, 2) == 0) | ~is_output
        return decision.method.choose(view).to(is_output.device) | ~is_output

    def _choose_images(self, decision: Decision, view: View) -> Selection:
        cut, renumber = decision.cut, decision.cut.positions == "compact"
        is_image = self._candidates(decision, view)
        present = is_image.sum(1)
        if view.original is None or self.hides:
            view.original = present
        if decision.verb == "none":
            return Selection(~is_image, renumber=renumber)
        if decision.verb == "choose":
            chosen = decision.method.choose(view).to(is_image.device)
            return Selection(chosen | ~is_image, renumber=renumber)
        scores = decision.method.score(view)
        is_image, present = is_image.to(scores.device), present.to(scores.device)
        original = view.original.to(scores.device)
        counts = kept_counts(cut, view, original, present)
        order, rank = ranked(scores, is_image)
        best = rank < counts[:, None]
        view.note(scores=scores, order=order, count=counts, kept=best & is_image)
        selection = Selection(
            (best | ~is_image).to(view.stream.segment.device), self.hides, renumber=renumber
        )
        if cut.merge is not None:
            dropped = present - counts
            new = cut.merge.count(dropped) * (present > 0)
            selection.merged = decision.method.merge(view, Dropped(order, counts, dropped, new))
            selection.merged_length = new
        return selection

    def _candidates(self, decision: Decision, view: View) -> torch.Tensor:
        """Return [B, keys] bool: the image tokens that a cut chooses among."""
        is_image = view.is_image
        if not self.hides or view.cache is None:
            return is_image
        name = f"{STORED}{decision.cut.layer}"
        if not view.decoding:
            view.cache.method_state[name] = is_image
            return is_image
        stored = view.cache.method_state[name]
        keys = view.attention.shape[-1]
        return torch.nn.functional.pad(stored, (0, keys - stored.shape[1]))


def _is_stored(name: str) -> bool:
    return name.startswith(STORED)


def query_rows(look: Attention, view: View) -> torch.Tensor:
    """Return [B, R] int64: the stream rows whose attention is wanted."""
    if callable(look.rows):
        return look.rows(view)
    row = view.last_prompt_row() if look.rows == "last_prompt" else view.newest_row()
    return row[:, None]


def _by_layer(
    decisions: list[Decision], layers: int, *, before: bool = False
) -> list[tuple[Decision, ...]]:
    table: list[list[Decision]] = [[] for _ in range(layers)]
    for decision in decisions:
        table[decision.cut.layer - before].append(decision)
    return [tuple(row) for row in table]
