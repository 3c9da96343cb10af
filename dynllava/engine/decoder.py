"""The layer loop that every method shares.

It walks the stock decoder layers.  Before each one the method's plan may say that tokens leave; the
loop gathers hidden states and positions, keeps the cache's books and goes on.  Nothing here knows a
method by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from dynllava.plan import PerHead, Segment, Span

from .attention import ExtendCall, LayerCall, Observed, PromptCall, StepCall
from .cache import LayerStore, Lengths, SparseCache, places
from .eviction import EvictingStore
from .own_input import own_attention
from .program import Decision, Program, Selection, query_rows
from .split import SpanStore, first_seen, split_mask
from .stream import TokenStream
from .view import View


@dataclass
class DecoderResult:
    """What a pass gives.

    Attributes
    ----------
    stream : TokenStream
        Tokens after the last layer; ``hidden`` is normalised.
    layer_tokens : list of Tensor [B] int64
        Valid tokens that entered each layer.
    selections : list of (int, TokenStream)
        After each real dropping: the layer and the stream that entered it.
    kept : Tensor [B, q] bool or None
        While decoding: which of this call's tokens the dropping layers store.
    """

    stream: TokenStream
    layer_tokens: list[torch.Tensor] = field(default_factory=list)
    selections: list[tuple[int, TokenStream]] = field(default_factory=list)
    kept: torch.Tensor | None = None


@dataclass
class PolicyHook:
    """Training's entry: builds the key policy at the input of layer ``layer``.

    ``build(view) -> Tensor [B, L]`` gets the :class:`View` of that layer; all layers from
    there on use the masked softmax with the policy, and nothing is dropped.  ``bounded(view)``
    names the keys whose gradient is bounded, None = none
    (:func:`~dynllava.engine.masked_softmax.policy_attention`).
    """

    layer: int
    build: Callable[[View], torch.Tensor | None]
    bounded: Callable[[View], torch.Tensor | None] | None = None


class Pass:
    """One forward pass of the language model's layers under a method's plan.

    Parameters
    ----------
    language_model : Module
        Stock decoder with ``layers``, ``norm`` and ``rotary_emb``.
    program : Program
        Decides which tokens go on and which K/V stay.
    view : View
        What a method may look at; its stream is the input.
    cache : SparseCache or None
        Filled by a prompt, continued otherwise.
    kernel : str
        Attention kernel.
    compiled : callable or None
        :meth:`_walk`, compiled; then a step's shapes depend on the cache's capacity alone.
    deep_features : sequence of Tensor [image tokens, D]
        Features that are added to the image tokens behind the first layers, one tensor a layer, all
        rows' image tokens in order (Qwen3-VL); they follow the tokens that are left.
    first_image : Tensor [B] int64, optional
        Image tokens of all rows before each row, where some have left before layer 0.
    decide : callable, optional
        Decides for a prompt in place of the program's own :meth:`~.program.Program.decide`.
    """

    def __init__(
        self,
        language_model: nn.Module,
        program: Program,
        view: View,
        cache: SparseCache | None,
        kernel: str,
        compiled: Callable[..., Any] | None = None,
        deep_features: Sequence[torch.Tensor] = (),
        first_image: torch.Tensor | None = None,
        decide: Callable[..., Selection | None] | None = None,
    ) -> None:
        self.decide = decide or type(program).decide
        self.deep_features = deep_features
        self.first_image = first_image
        if first_image is None and len(deep_features):
            self.first_image = first_images(view.stream)
        self.compiled = compiled
        self.fixed = False
        self.model = language_model
        self.program = program
        self.view = view
        # The layers' outputs take each other's place in it; the caller's own stays as it is.
        view.stream = replace(view.stream)
        view.rotary = language_model.rotary_emb
        self.cache = cache
        self.kernel = kernel
        self.result = DecoderResult(view.stream)
        self.hidden_keys: torch.Tensor | None = None
        self.split: torch.Tensor | None = None
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def stream(self) -> TokenStream:
        """The tokens at the current layer's input."""
        return self.view.stream

    @stream.setter
    def stream(self, stream: TokenStream) -> None:
        if stream.position is not self.view.stream.position:
            self._rotary = None
        self.view.stream = stream

    def prompt(self, policy_hook: PolicyHook | None = None) -> DecoderResult:
        """Run a whole sequence: a prompt, or prompt and output without a cache."""
        program, view = self.program, self.view
        if policy_hook is None:
            program.check_cache(self.cache)
        if program.plan.needs_embeddings:
            view.embeds = replace(view.stream)
        if program.plan.prompt == "split":
            self.split = split_mask(view.stream)
        group: Lengths | None = None
        policy: torch.Tensor | None = None
        bounded: torch.Tensor | None = None
        selection: Selection | None
        for index, layer in enumerate(self.model.layers):
            selection = None
            if policy_hook is not None:
                if index == policy_hook.layer:
                    policy = policy_hook.build(view)
                    bounded = policy_hook.bounded(view) if policy_hook.bounded else None
            elif decisions := program.prompt[index]:
                self._look_at_input(decisions, layer)
                selection = self.decide(program, decisions, view)
                if selection is not None:
                    self._apply_to_prompt(index, selection)
            store = None
            if self.cache is not None:
                first = index == program.plan.first_output_layer
                if group is None or selection is not None or first:
                    group = self._open_group(self.cache)
                store = self._open_store(self.cache, index, group)
            stream = view.stream
            call = PromptCall(
                self.kernel,
                stream.position,
                self.model.rotary_emb,
                stream.length,
                store,
                self._hiding_mask(),
                None if policy_hook is not None else program.probe(index, view),
                policy,
                bounded,
            )
            self.result.layer_tokens.append(stream.length)
            self._run_layer(index, layer, call)
            if call.probe is not None:
                program.hand_out(index, view, call.probe, call.observed)
        return self._finish()

    def step(self) -> DecoderResult:
        """Feed one token a row on top of the cache."""
        self.fixed = self.compiled is not None
        return self._continue("step")

    def extend(self) -> DecoderResult:
        """Feed several tokens a row on top of the cache."""
        return self._continue("extend")

    def _apply_to_prompt(self, index: int, selection: Selection) -> None:
        if selection.hide:
            self.hidden_keys = ~selection.keep
            return
        stream = self.stream
        # The newest token takes part in its own step even if its K/V would not be kept.
        rows = torch.arange(stream.size, device=selection.keep.device)
        newest = (rows == (stream.length - 1)[:, None]) & stream.is_segment(Segment.OUTPUT)
        stream = stream.gather(selection.keep | newest)
        if selection.merged is not None and selection.merged_length is not None:
            stream = stream.with_merged(selection.merged, selection.merged_length)
        if selection.renumber:
            stream = stream.renumbered()
        self.stream = stream
        self.result.selections.append((index, stream))

    def _hiding_mask(self) -> torch.Tensor | None:
        """Return [B, 1, L, L] visibility where a method hides keys or splits, else None."""
        if self.hidden_keys is None:
            return self.split
        size = self.stream.size
        device = self.hidden_keys.device
        causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        own = torch.eye(size, dtype=torch.bool, device=device)
        visible = causal & ~self.hidden_keys[:, None, :]
        # A hidden token does not see itself either, unless it would see nothing at all.
        return (visible | (own & ~visible.any(-1, keepdim=True)))[:, None]

    def _look_at_input(self, decisions: tuple[Decision, ...], layer: nn.Module) -> None:
        """Observe what the layer itself would attend to, were nothing dropped before it."""
        for decision in decisions:
            if decision.own is not None and self.program.has_candidates(self.view):
                rows = query_rows(decision.own, self.view)
                seen = own_attention(layer, self.view.stream, rows, self._tables())
                self.view.keep_for(decision.index, Observed(seen))

    def _open_group(self, cache: SparseCache) -> Lengths:
        length, lengths = self.stream.length, self.stream.host_lengths
        if self.split is not None:
            length = length - first_seen(self.stream)
            lengths = length.tolist()
        group = cache.new_group(length, max(lengths), exact=min(lengths) == max(lengths))
        group.compact = self.program.plan.compact
        return group

    def _open_store(self, cache: SparseCache, index: int, group: Lengths) -> LayerStore:
        plan = self.program.plan
        store = LayerStore(group, cache.chunk)
        if isinstance(plan.store, PerHead) and index >= plan.store.first_full:
            store = EvictingStore.of(plan, self.stream.host_lengths, group.compact, cache.chunk)
        elif isinstance(plan.store, Span):
            store = SpanStore(group, first_seen(self.stream), cache.chunk)
        return cache.add(store, max(self.stream.host_lengths))

    def _continue(self, phase: str) -> DecoderResult:
        size = self.stream.size
        cache = self._continued()
        cache.make_room(size)
        walk = self.compiled if self.fixed and self.compiled is not None else Pass._walk
        for group, kept_count in walk(self, phase):
            group.advance(size, kept_count)
        return self._finish()

    def _continued(self) -> SparseCache:
        if self.cache is None:
            raise RuntimeError("nothing to continue: this pass has no cache")
        return self.cache

    def _walk(self, phase: str) -> list[tuple[Lengths, torch.Tensor | None]]:
        """Run the layers on a cache; return each group of layers with its kept tokens [B].

        Whatever the host decides from numbers that change from step to step stays outside, so that
        a step with ``fixed`` shapes can be compiled.
        """
        program, view, stores = self.program, self.view, self._continued().stores
        rotary = self.model.rotary_emb
        kept: torch.Tensor | None = None
        plan: _GroupPlan | None = None
        plans: list[tuple[Lengths, torch.Tensor | None]] = []
        for index, layer in enumerate(self.model.layers):
            selection: Selection | None = None
            if decisions := program.steps[index]:
                selection = program.decide(decisions, view)
                if selection is not None and selection.hide:
                    self.hidden_keys = ~selection.keep
                elif selection is not None:
                    kept = selection.keep & view.stream.valid()
                    self.result.kept = kept
            store = stores[index]
            if store.shares_lengths:
                if plan is None or store.lengths is not plan.group or selection is not None:
                    plan = self._plan_group(store, kept, phase)
                    plans.append((plan.group, plan.kept_count))
            elif store.lengths.compact:
                self._place_behind(store.next_position())
            # Flash's cached kernel knows lengths only, not hidden entries in between.
            kernel = self.kernel if self.hidden_keys is None else "sdpa"
            stream, probe = view.stream, program.probe(index, view)
            call: StepCall | ExtendCall
            if phase == "step":
                call = StepCall(kernel, stream.position, rotary, store, probe=probe)
            else:
                call = ExtendCall(
                    kernel, stream.position, rotary, stream.length, store, probe=probe
                )
            if store.shares_lengths and plan is not None:
                call.places, call.mask, call.span = plan.places_in(store), plan.mask, plan.span
            self._run_layer(index, layer, call)
            if probe is not None:
                program.hand_out(index, view, probe, call.observed)
        return plans

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rotary tables of the current positions."""
        if self._rotary is None:
            stream = self.stream
            self._rotary = self.model.rotary_emb(stream.hidden, position_ids=stream.rotary_position)
        return self._rotary

    def _plan_group(self, store: LayerStore, kept: torch.Tensor | None, phase: str) -> _GroupPlan:
        """Return what the layers that share ``store``'s lengths do with this call's tokens."""
        span = store.capacity if self.fixed else None
        plan = _GroupPlan.make(store.lengths, self.stream, kept, phase, self.hidden_keys, span)
        if store.lengths.compact:
            self._place_behind(store.lengths.length)
        return plan

    def _place_behind(self, length: torch.Tensor) -> None:
        """Give this call's tokens the positions from ``length`` [B] on."""
        stream = self.stream
        offsets = torch.arange(stream.size, device=stream.position.device)
        self.stream = replace(stream, position=length.to(offsets.device)[:, None] + offsets)

    def _run_layer(self, index: int, layer: nn.Module, call: LayerCall) -> None:
        stream = self.view.stream
        hidden = layer(
            stream.hidden,
            attention_mask=None,
            position_ids=stream.position,
            position_embeddings=self._tables(),
            sparse_call=call,
        )
        if index < len(self.deep_features):
            hidden = hidden + self._deep_features_of(stream, self.deep_features[index])
        stream.hidden = hidden

    def _deep_features_of(self, stream: TokenStream, features: torch.Tensor) -> torch.Tensor:
        """Return [B, L, D]: each image token's feature, by its place among all image tokens."""
        index = stream.image_index.to(features.device)
        assert self.first_image is not None  # set with the features
        place = (self.first_image.to(features.device)[:, None] + index).clamp(min=0)
        chosen = features[place.clamp(max=features.shape[0] - 1)].to(stream.hidden)
        return torch.where((index >= 0)[..., None].to(chosen.device), chosen, 0)

    def _finish(self) -> DecoderResult:
        stream = self.stream
        stream.hidden = self.model.norm(stream.hidden)
        self.result.stream = stream
        return self.result


@dataclass
class _GroupPlan:
    """Slots and visibility that a group of layers shares in one decoding call.

    ``slots`` are where its entries go, [B, 1, q] int64 or the same ones in every row;
    ``kept_count`` [B] is how many of them stay (None = all).
    """

    group: Lengths
    slots: torch.Tensor | slice
    mask: torch.Tensor | None
    span: int
    kept_count: torch.Tensor | None
    _places: torch.Tensor | None = None
    _shape: torch.Size | None = None

    @classmethod
    def make(
        cls,
        group: Lengths,
        stream: TokenStream,
        kept: torch.Tensor | None,
        phase: str,
        hidden_keys: torch.Tensor | None,
        span: int | None,
    ) -> _GroupPlan:
        """Plan a call; ``span`` is the number of entries that a step of fixed shape looks at."""
        step = phase == "step"
        plan = cls._step(group, kept, span) if step else cls._extend(group, stream, kept)
        if hidden_keys is not None:
            plan.hide(hidden_keys)
        return plan

    def places_in(self, store: LayerStore) -> torch.Tensor | slice:
        """Return the slots as ``store`` takes them; layers of one shape share them."""
        if isinstance(self.slots, slice):
            return self.slots
        shape = store.entries()[0].shape[:3]
        if self._places is None or shape != self._shape:
            self._places, self._shape = places(self.slots, shape), shape
        return self._places

    @classmethod
    def _step(cls, group: Lengths, kept: torch.Tensor | None, span: int | None) -> _GroupPlan:
        kept_count = None if kept is None else kept[:, 0]
        if span is None and group.exact:
            slot = slice(group.bound, group.bound + 1)
            return cls(group, slot, None, slot.stop, kept_count)
        if span is None:
            span = group.bound + 1
        columns = torch.arange(span, device=group.length.device)
        mask = (columns <= group.length[:, None])[:, None, None, :]
        return cls(group, group.length[:, None, None], mask, span, kept_count)

    @classmethod
    def _extend(cls, group: Lengths, stream: TokenStream, kept: torch.Tensor | None) -> _GroupPlan:
        device = group.length.device
        size = stream.size
        stays = stream.valid() if kept is None else kept
        own = torch.eye(size, dtype=torch.bool, device=device)
        causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        fresh = (causal & stays[:, None, :]) | own
        cached = torch.arange(group.bound, device=device) < group.length[:, None]
        cached = cached[:, None, :].expand(-1, size, -1)
        count = stays.sum(1)
        # Dropped and padded tokens share the first free slot behind the kept ones.
        offset = torch.where(stays, stays.cumsum(1) - 1, count[:, None])
        complete = kept is None and min(stream.host_lengths) == size
        return cls(
            group,
            slots=(group.length[:, None] + offset)[:, None],
            mask=torch.cat([cached, fresh], 2)[:, None],
            span=group.bound,
            kept_count=None if complete else count,
        )

    def hide(self, hidden_keys: torch.Tensor) -> None:
        """Take keys [B, keys] out of sight (missing columns stay visible)."""
        missing = self.span - hidden_keys.shape[1]
        if self.mask is not None and self.mask.shape[-1] != self.span:
            missing = self.mask.shape[-1] - hidden_keys.shape[1]
        visible = nn.functional.pad(~hidden_keys, (0, missing), value=True)[:, None, None, :]
        self.mask = visible if self.mask is None else self.mask & visible


def first_images(stream: TokenStream) -> torch.Tensor:
    """Return [B] int64: image tokens of all rows before each row."""
    count = stream.is_segment(Segment.IMAGE).sum(1)
    return count.cumsum(0) - count


def make_view(
    stream: TokenStream,
    layers: int,
    sample_ids: torch.Tensor,
    cache: SparseCache | None,
    *,
    decoding: bool,
    predictors: dict[str, Any],
) -> View:
    """Return the view of one call."""
    return View(
        stream=stream,
        decoding=decoding,
        layers=layers,
        sample_ids=sample_ids,
        predictors=predictors,
        cache=cache,
    )
