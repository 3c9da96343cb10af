"""Limits for a batch: the highest keep rates that stay within bytes of KV and FLOPs of prefill.

Before every ``generate`` (or ``score``) the model's method is scaled to the batch at hand.  The
limits hold for the worst that can come: every output token is kept and all that may be generated
are.  What is stored and computed follows from the plan alone, so nothing is tried.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.methods.ladder import ladder_of
from dynllava.methods.parameters import render
from dynllava.methods.smaller import sizing
from dynllava.output.tables import quantity
from dynllava.plan import Image, ModelDims, Shape, Text
from dynllava.plan.operations import layer_macs

from .families import MODEL_TYPE, image_token
from .layout import image_map

OWN_TYPES = (MODEL_TYPE, "llava")
"""Model types whose every image token is a patch."""
FLOPS_PER_MAC = 2
KEYS = ("kv_bytes", "prefill_flops", "cache")
CACHE = ("always", "auto")


@dataclass(frozen=True)
class Limits:
    """What a batch may cost.

    Attributes
    ----------
    kv_bytes : float or None
        Bytes of stored K and V at the end, all rows.
    prefill_flops : float or None
        FLOP of the prompt's pass, all rows (1 MAC = 2 FLOP): decoder layers, the method's own work,
        the lm head at the last position.  Without vision tower and projector.
    cache : str
        ``"always"``: decoding uses a cache.  ``"auto"``: where no rate meets ``kv_bytes``, every
        step runs the whole sequence and nothing is stored.
    """

    kv_bytes: float | None = None
    prefill_flops: float | None = None
    cache: str = "always"

    @classmethod
    def of(cls, given: Limits | Mapping[str, Any]) -> Limits:
        """Return limits from a mapping, checked.

        Raises
        ------
        UserError
            For another key, or a value that is no limit.
        """
        if isinstance(given, Limits):
            return given
        unknown = sorted(set(given) - set(KEYS))
        if unknown:
            raise UserError(f"limits: {', '.join(unknown)}: accepted are {', '.join(KEYS)}")
        for name in KEYS[:2]:
            value = given.get(name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < float("inf")):
                raise UserError(f"limits: {name}={value!r}: accepted is a number from 0")
        if given.get("cache", "always") not in CACHE:
            raise UserError(f"limits: cache={given['cache']!r}: accepted are {', '.join(CACHE)}")
        return cls(**given)


@dataclass(frozen=True)
class Chosen:
    """What a batch was run with (``model.last_report.chosen``).

    Attributes
    ----------
    method : str
        The method with its parameters.
    kv_bytes : int
        Most bytes that can be stored with it.
    prefill_flops : int
        As in :class:`Limits`.
    uses_cache : bool
    highest : bool
        Nothing had to be dropped for the limits.
    """

    method: str
    kv_bytes: int
    prefill_flops: int
    uses_cache: bool
    highest: bool


def kv_bytes(method: Method, shapes: Sequence[Shape], outputs: int, dims: ModelDims, size: int
             ) -> int:  # fmt: skip
    """Return the most bytes of K and V that a batch can store.

    Parameters
    ----------
    method : Method
    shapes : sequence of Shape
        The rows' prompts.
    outputs : int
        Tokens that may be generated; the last one is never fed.
    dims : ModelDims
    size : int
        Bytes of an element.
    """
    plan, fed = method.plan(dims.layers), max(outputs - 1, 0)
    if not plan.uses_cache:
        return 0
    entry = 2 * dims.kv_heads * dims.head_dim * size
    return entry * sum(
        count * sum(plan.schedule(shape, dims.layers).kv_lengths(fed, fed))
        for shape, count in _counted(shapes)
    )


def prefill_flops(method: Method, shapes: Sequence[Shape], dims: ModelDims) -> int:
    """Return the FLOP of a batch's prompt pass (see :class:`Limits`)."""
    plan, total = method.plan(dims.layers), 0
    for shape, count in _counted(shapes):
        rows = plan.schedule(shape, dims.layers).prefill_rows
        macs = sum(sum(layer_macs(dims, entered, entered).values()) for entered in rows)
        own = [item for item in plan.operations(shape, dims) if item.phase == "prefill"]
        macs += sum(item.macs for item in own) + dims.hidden * dims.vocab
        total += count * macs
    return FLOPS_PER_MAC * total


def choose(
    method: Method,
    limits: Limits,
    shapes: Sequence[Shape],
    outputs: int,
    dims: ModelDims,
    size: int,
) -> tuple[Method, Chosen]:
    """Return the method at the highest rates within the limits, and what was chosen.

    Parameters
    ----------
    method : Method
        Its shares keep their proportions, everything else stays.
    limits : Limits
    shapes, outputs, dims, size
        As in :func:`kv_bytes`.

    Raises
    ------
    UserError
        If not even the lowest rates fit, or counts depend on the data.
    """
    longest = max(shapes, key=lambda shape: (shape.image, shape.total))
    if method.plan(dims.layers).adapts:
        raise UserError(f"limits: {method.name} adapts itself to the picture and promises nothing")
    pictures = {image for shape in shapes for image in shape.images}
    if sizing(method) is not None and len(pictures) > 1:
        raise UserError(f"limits: {method.name} has one grid: accepted are pictures of one size")

    def fits(item: Method, stored: bool = True) -> bool:
        return _within(limits.prefill_flops, prefill_flops(item, shapes, dims)) and (
            not stored or _within(limits.kv_bytes, kv_bytes(item, shapes, outputs, dims, size))
        )

    def done(item: Method, uses_cache: bool, highest: bool) -> tuple[Method, Chosen]:
        stored = kv_bytes(item, shapes, outputs, dims, size) if uses_cache else 0
        text = render(item.name, item.parameters())
        flops = prefill_flops(item, shapes, dims)
        return item, Chosen(text, stored, flops, uses_cache, highest)

    if not longest.image:
        if fits(method):
            return done(method, method.plan(dims.layers).uses_cache, True)
        raise _refusal(method, limits, shapes, outputs, dims, size, "a prompt without an image")
    rungs = ladder_of(method, longest, dims.layers)
    top, uses_cache = rungs.highest(fits), method.plan(dims.layers).uses_cache
    if top is None and limits.cache == "auto" and not method.plan(dims.layers).stepwise:
        top, uses_cache = rungs.highest(lambda item: fits(item, stored=False)), False
    if top is None:
        lowest = rungs.method(0)
        raise _refusal(lowest, limits, shapes, outputs, dims, size, "the lowest rate")
    return done(rungs.method(top), uses_cache, top == rungs.count - 1)


def _refusal(
    method: Method,
    limits: Limits,
    shapes: Sequence[Shape],
    outputs: int,
    dims: ModelDims,
    size: int,
    what: str,
) -> UserError:
    needed = (
        ("kv_bytes", limits.kv_bytes, kv_bytes(method, shapes, outputs, dims, size), "byte"),
        ("prefill_flops", limits.prefill_flops, prefill_flops(method, shapes, dims), "FLOP"),
    )
    over = [
        f"{name} {quantity(value, unit)} of {quantity(most, unit)}"
        for name, most, value, unit in needed
        if most is not None and value > most
    ]
    return UserError(
        f"limits: {what} of {method.name} needs {' and '.join(over)} for {len(shapes)} rows and "
        f"{outputs} output tokens: accepted is a higher limit, a smaller batch or fewer tokens"
    )


def _within(limit: float | None, value: int) -> bool:
    return limit is None or value <= limit


def _counted(shapes: Sequence[Shape]) -> list[tuple[Shape, int]]:
    return [(shape, shapes.count(shape)) for shape in dict.fromkeys(shapes)]


# ---------------------------------------------------------------------- a model's batches

_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


def dims_of(model: Any) -> ModelDims:
    """Return the sizes of a model's language model and predictors."""
    text = model.config.get_text_config()
    sparsity = model.sparsity
    heads = text.num_attention_heads
    return ModelDims(
        text.num_hidden_layers,
        text.hidden_size,
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or text.hidden_size // heads,
        text.intermediate_size,
        text.vocab_size,
        sparsity.d_model,
        sparsity.nhead,
        sparsity.dim_feedforward,
        sparsity.num_layers,
    )


def shapes_of(valid: torch.Tensor, is_image: torch.Tensor) -> list[Shape]:
    """Return each row's prompt as spans of text and image.

    Parameters
    ----------
    valid, is_image : Tensor [B, L] bool
        No padding; tokens that stand for a part of a picture.
    """
    found = []
    for row, kept in zip(is_image.tolist(), valid.tolist(), strict=True):
        spans: list[Text | Image] = []
        start, kinds = 0, [kind for kind, here in zip(row, kept, strict=True) if here]
        for end in range(1, len(kinds) + 1):
            if end == len(kinds) or kinds[end] != kinds[start]:
                spans.append(Image.of(end - start) if kinds[start] else Text(end - start))
                start = end
        found.append(Shape(tuple(spans)))
    return found


class Limited:
    """Mixin of a model that can be given limits."""

    limits: Limits | None = None

    def set_limits(self, limits: Limits | Mapping[str, Any] | None = None, **given: Any) -> None:
        """Hold every later ``generate`` and ``score`` within limits; nothing lifts them.

        The method keeps its parameters but for its keep rates: before each batch the highest
        ones are taken with which the batch cannot exceed the limits.

        Parameters
        ----------
        limits : Limits or dict, optional
            ``kv_bytes``, ``prefill_flops``, ``cache`` (see :class:`Limits`).
        **given
            The same by name.

        Raises
        ------
        UserError
            For a limit that is none, or a method whose counts depend on the data.
        """
        if limits is not None and given:
            raise UserError("limits: accepted are a mapping or names, not both")
        chosen = Limits.of(given if limits is None else limits)
        self.limits = None if chosen == Limits() else chosen


def limited(call: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``generate`` or ``score`` run under the method that the model's limits allow.

    Batches of one model under limits run one after the other, whatever thread they come from.
    The model's own method comes back afterwards.
    """

    @functools.wraps(call)
    def run(model: Any, *args: Any, **kwargs: Any) -> Any:
        if model.limits is None:
            return call(model, *args, **kwargs)
        with _LOCKS.setdefault(model, threading.RLock()):
            own, device = model.method, next(model.parameters())
            batch = _Batch.of(model, args, kwargs)
            method, chosen = choose(
                own,
                model.limits,
                batch.shapes,
                batch.outputs,
                dims_of(model),
                device.element_size(),
            )
            if not chosen.uses_cache:
                kwargs = {**kwargs, "use_cache": False}
            model.set_method(method)
            try:
                result = call(model, *args, **kwargs)
            finally:
                model.set_method(own)
            if model.last_report is not None:
                model.last_report.chosen = chosen
            return result

    return run


@dataclass(frozen=True)
class _Batch:
    """What a call will run: prompts, one a row, and the tokens that may follow."""

    shapes: list[Shape]
    outputs: int

    @classmethod
    def of(cls, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Batch:
        ids = args[0] if args and args[0] is not None else kwargs.get("input_ids")
        ids = kwargs.get("inputs") if ids is None else ids
        first = kwargs.get("inputs_embeds") if ids is None else ids
        if first is None:
            raise UserError("limits: accepted are input_ids, or inputs_embeds with image_mask")
        cache = kwargs.get("past_key_values")
        if cache is not None and not cache.is_empty:
            raise UserError("limits: a later turn on a cache: accepted is a prompt of its own")
        mask = kwargs.get("attention_mask")
        valid = torch.ones(first.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        shapes = shapes_of(valid, _patches(model, ids, first, kwargs))
        answers = args[1] if len(args) > 1 else kwargs.get("continuation_ids")
        if answers is not None:
            return cls(shapes, answers.shape[1])
        outputs, rows = _generated(model, first.shape[1], kwargs)
        return cls(shapes * rows, outputs)


def _patches(
    model: Any, ids: torch.Tensor | None, first: torch.Tensor, given: Mapping[str, Any]
) -> torch.Tensor:
    """Return [B, L] bool: the tokens that a method may drop; newlines of a picture are text."""
    marked = given.get("image_mask")
    if marked is None and ids is None:
        return torch.zeros(first.shape[:2], dtype=torch.bool)
    is_image = torch.eq(ids, image_token(model.config)) if marked is None else marked
    if model.config.model_type in OWN_TYPES or not bool(is_image.any()):
        return is_image
    return image_map(model.config, dict(given), is_image).is_patch


def _generated(model: Any, columns: int, kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Return (tokens that ``generate`` may make, rows that each prompt becomes)."""
    given = kwargs.get("generation_config")
    configs = [item for item in (given, model.generation_config) if item is not None]

    def value(name: str) -> Any:
        if kwargs.get(name) is not None:
            return kwargs[name]
        return next((v for item in configs if (v := getattr(item, name, None)) is not None), None)

    rows = max(value("num_beams") or 1, value("num_return_sequences") or 1)
    if value("max_new_tokens") is not None:
        return int(value("max_new_tokens")), rows
    length = value("max_length")
    # transformers' own default is 20 tokens in all.
    return max(int(length if length is not None else 20) - columns, 1), rows
