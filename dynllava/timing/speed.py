"""What is timed: prefill, decoding with a cache, decoding without one, on embeddings.

All subjects share weights.  ``stock`` is transformers' own model with its ``DynamicCache``; the
others are our decoder under a method.  Timing and synchronisation stay outside the model's code.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from transformers import StaticCache

from dynllava.costs.ledger import Run, evicts
from dynllava.engine.rows import Rows
from dynllava.methods import create
from dynllava.methods.base import Method
from dynllava.models.calls import PromptImages, remembering
from dynllava.plan import Predictor, Shape

from .bench_model import Bench

CPU_SUFFIX = "_cpu"

STOCK = "stock"
"""Name of the dense stock transformers model with its ``DynamicCache`` among the subjects."""

STATIC = "stock, StaticCache"
"""Name of the same with its ``StaticCache``, allocated for the whole run."""

STATIC_COMPILED = f"{STATIC}, compiled"
"""Name of the same with compiled decode steps: what compiled methods are compared with."""


@dataclass(frozen=True)
class Inputs:
    """One batch of prompts as embeddings [B, L, D]; ``pixels`` only where a vision tower runs.

    ``fed`` [B, T] are the output tokens that every subject is fed, so that all do the same work
    (None: each its own greedy ones).
    """

    shape: Shape
    embeds: torch.Tensor
    image_mask: torch.Tensor
    pixels: torch.Tensor | None
    fed: torch.Tensor | None = None

    def output_tokens(self) -> torch.Tensor:
        """Return :attr:`fed`, where all subjects are fed the same."""
        assert self.fed is not None
        return self.fed


@functools.cache
def process_name() -> str:
    """Return a name of this process under which names sort by when they were first asked for."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}"


@dataclass
class Times:
    """Seconds of one run, and what it did.

    Attributes
    ----------
    seconds : dict
        ``ttft``: from the start (vision tower included, where there is one) to the first token.
        ``prefill``: the language model's prefill and the choice of the first token.
        ``tpot``: mean of the decoding steps with a cache; ``tpot_late``: of their second half.
        ``nocache_call``: mean of the probed calls without a cache.
        Wall-clock; the same names with ``_cpu`` are the process's CPU time, which other
        processes on a shared machine disturb less.
    output_keep : float or None
        Share of fed output tokens that the dropping layers kept.
    kv_allocated : int
        Bytes allocated for K and V at the end.
    process : str
        Which process ran it (:func:`process_name`).
    """

    seconds: dict[str, float] = field(default_factory=dict)
    output_keep: float | None = None
    kv_allocated: int = 0
    process: str = field(default_factory=lambda: process_name())

    def add(
        self, name: str, start: tuple[float, float], end: tuple[float, float], parts: int = 1
    ) -> None:
        """Add the mean over ``parts`` of the span between two stamps of the clock."""
        for suffix, begin, stop in zip(("", CPU_SUFFIX), start, end, strict=True):
            key = name + suffix
            self.seconds[key] = self.seconds.get(key, 0.0) + (stop - begin) / parts


def make_inputs(bench: Bench, shape: Shape, batch: int, outputs: int = 0, seed: int = 0) -> Inputs:
    """Return random embeddings in place of text and (without a vision tower) of images.

    With random weights ``outputs`` random tokens are fed as output: greedy ones would run into
    loops in which a row's tokens are all kept or all dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (batch, shape.total, bench.spec.dims.hidden)
    embeds = torch.randn(size, generator=generator).mul_(0.02).to(bench.device, bench.dtype)
    mask = torch.zeros(batch, shape.total, dtype=torch.bool, device=bench.device)
    mask[:, shape.text_before : shape.text_before + shape.image] = True
    pixels = None
    tower = bench.spec.square_tower
    if tower is not None and shape.image:
        side = tower.image_size
        noise = torch.randn(batch, tower.channels, side, side, generator=generator)
        pixels = noise.to(bench.device, bench.dtype)
    fed = None
    if bench.random_weights and outputs:
        fed = torch.randint(0, bench.spec.dims.vocab - 1, (batch, outputs), generator=generator)
        fed = fed.to(bench.device)
    return Inputs(shape, embeds, mask, pixels, fed)


class Subject:
    """One competitor: the stock model, or ours under a method.

    Parameters
    ----------
    bench : Bench
        Shared weights.
    name : str
        :data:`STOCK` or a label.
    method : Method or None
        None for the stock model.
    compiled : bool
        Whether decode steps are compiled.
    """

    def __init__(
        self, bench: Bench, name: str, method: Method | None, compiled: bool = False
    ) -> None:
        self.bench, self.name, self.method, self.compiled = bench, name, method, compiled

    def prepare(self) -> Any:
        """Return the model, switched to this subject's method."""
        if self.method is None:
            return self.bench.stock
        self.bench.wrapped.set_method(self.method)
        self.bench.wrapped.compiled_steps = self.bench.compiled_steps if self.compiled else None
        return self.bench.wrapped

    def run_of(self, shape: Shape, outputs: int, batch: int, keep: float | None) -> Run:
        """Return the ledger's run with the realised share of kept output tokens."""
        run = Run(self.bench.spec, self.method or Method(), shape, outputs, batch)
        return run if keep is None else run.realised(output_keep=keep)

    @torch.inference_mode()
    def time(self, inputs: Inputs, outputs: int, nocache_fed: tuple[int, ...] = ()) -> Times:
        """Run once: prefill, ``outputs - 1`` cached steps, and calls without a cache.

        ``nocache_fed`` are the numbers of output tokens at which a call without a cache is timed.
        """
        model, clock = self.prepare(), Clock(self.bench.device)
        start = clock.now()
        embeds = self.with_image(model, inputs)
        prefill = clock.now()
        token, cache = self.prefill(model, inputs, embeds, outputs)
        first = clock.now()
        steps, late = outputs - 1, outputs // 2
        token = self.decode(model, token, cache, inputs.fed, 0, steps - late)
        middle = clock.now()
        self.decode(model, token, cache, inputs.fed, steps - late, steps)
        end = clock.now()
        times = Times(output_keep=self.realised_keep(model), kv_allocated=allocated_bytes(cache))
        times.add("ttft", start, first)
        times.add("prefill", prefill, first)
        if outputs > 1:
            times.add("tpot", first, end, steps)
            times.add("tpot_late", middle, end, late)
        if self.evicts(inputs.shape):
            nocache_fed = ()
        for fed in nocache_fed:
            call = self.nocache_call(model, inputs, embeds, fed)
            start = clock.now()
            call()
            times.add("nocache_call", start, clock.now(), len(nocache_fed))
        return times

    def evicts(self, shape: Shape) -> bool:
        """Return whether the method needs a cache to evict from."""
        return evicts(self.run_of(shape, 1, 1, None).schedule)

    def prefill(
        self, model: Any, inputs: Inputs, embeds: torch.Tensor, outputs: int
    ) -> tuple[torch.Tensor, Any]:
        """Run the language model on the prompt; return the first token [B, 1] and the cache.

        ``outputs`` is how many tokens the run generates (a static cache is allocated for them).
        """
        extra: dict[str, Any] = {}
        images = None
        if self.method is not None:
            extra["image_mask"] = inputs.image_mask
            images = self.chosen_before(inputs)
        elif self.name.startswith(STATIC):
            size = inputs.shape.total + outputs
            extra["past_key_values"] = StaticCache(model.config.text_config, max_cache_len=size)
        with remembering(images):
            out = model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1, **extra)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def chosen_before(self, inputs: Inputs) -> PromptImages | None:
        """Return rows in the images' place, as many as a method that looks at the tower leaves.

        What looking and choosing cost belongs to the tower (``python -m dynllava.suites.looks``).
        """
        assert self.method is not None
        if not self.method.plan(self.bench.spec.dims.layers).needs_pictures:
            return None
        shape, (batch, _) = inputs.shape, inputs.image_mask.shape
        rows = self.run_of(shape, 1, 1, None).schedule.prefill_rows[0]
        kept = rows - (shape.total - shape.image)
        place = torch.linspace(0, shape.image - 1, kept, device=inputs.embeds.device).long()
        features = inputs.embeds[:, shape.text_before :][:, place]
        left = [[Rows(features[row], place)] for row in range(batch)]
        return PromptImages(
            inputs.image_mask, [[(shape.image, 1)]] * batch, [[shape.image]] * batch, left
        )

    def decode(
        self,
        model: Any,
        token: torch.Tensor,
        cache: Any,
        fed: torch.Tensor | None,
        first: int,
        last: int,
    ) -> torch.Tensor:
        """Run the steps from ``first`` to before ``last`` on the cache; return the last token.

        A step feeds its column of ``fed`` [B, T], or else the token chosen before, [B, 1].
        """
        # Our own model compiles its steps itself; a prompt is never compiled.
        call = self.bench.stock_step() if self.compiled and self.method is None else model
        for step in range(first, last):
            if fed is not None:
                token = fed[:, step : step + 1]
            logits = call(
                input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits
            token = logits[:, -1:].argmax(-1)
        return token

    def with_image(self, model: Any, inputs: Inputs) -> torch.Tensor:
        """Return the prompt's embeddings [B, L, D], the image's features from the vision tower."""
        if inputs.pixels is None:
            return inputs.embeds
        features = model.model.get_image_features(pixel_values=inputs.pixels, return_dict=True)
        flat = torch.stack(list(features.pooler_output)).to(inputs.embeds)
        return inputs.embeds.masked_scatter(
            inputs.image_mask[..., None], flat.reshape(-1, flat.shape[-1])
        )

    def nocache_call(
        self, model: Any, inputs: Inputs, embeds: torch.Tensor, fed: int
    ) -> Callable[[], torch.Tensor]:
        """Return one call without a cache on the prompt and ``fed`` output tokens."""
        outputs = embeds[:, :1].expand(-1, fed, -1)
        if inputs.fed is not None:
            outputs = model.get_input_embeddings()(inputs.fed[:, :fed])
        longer = torch.cat([embeds, outputs], 1)
        extra: dict[str, Any] = {}
        if self.method is not None:
            mask = torch.nn.functional.pad(inputs.image_mask, (0, fed))
            length = torch.full((embeds.shape[0],), inputs.shape.total, device=embeds.device)
            extra = {"image_mask": mask, "prompt_length": length}

        def call() -> torch.Tensor:
            out = model(inputs_embeds=longer, use_cache=False, logits_to_keep=1, **extra)
            return out.logits[:, -1:].argmax(-1)

        return call

    def realised_keep(self, model: Any) -> float | None:
        """Return the share of stepped output tokens that the model's last run kept."""
        if self.method is None or not any(model.last_report.output_kept):
            return None
        kept = torch.tensor(model.last_report.output_kept, dtype=torch.float32)
        return float(kept.mean())


def calibrate_keep_rate(subject: Subject, inputs: Inputs, outputs: int) -> Subject:
    """Return the subject with a threshold at which untrained predictors keep the asked-for share.

    Random predictors keep almost all or almost nothing; a trained one keeps about its rate.  A
    threshold that was asked for stays.
    """
    method = subject.method
    if method is None or outputs < 2 or not hasattr(method, "output_threshold"):
        return subject
    looks = method.plan(subject.bench.spec.dims.layers).looks
    outputs_look = [look for look in looks if isinstance(look, Predictor) and look.name == "output"]
    rates = [look.rate for look in outputs_look if look.rate is not None]
    if not rates:
        return subject
    margins = []
    # Without a threshold a checkpoint refuses every rate but the one it was trained for.
    asked = create(method.name, **{**method.parameters(), "output_threshold": 0.0})
    model = Subject(subject.bench, subject.name, asked).prepare()
    with torch.inference_mode():
        out = model(inputs_embeds=inputs.embeds, image_mask=inputs.image_mask, logits_to_keep=1)
        for step in range(min(outputs - 1, 64)):
            token = out.logits[:, -1:].argmax(-1)
            if inputs.fed is not None:
                token = inputs.fed[:, step : step + 1]
            out = model(input_ids=token, past_key_values=out.past_key_values, logits_to_keep=1)
            logits = model.last_report.record["output_predictor_logits"].float()
            margins.append((logits[..., 0] - logits[..., 1]).flatten())
    threshold = float(torch.cat(margins).quantile(1 - rates[0]))
    calibrated = create(method.name, **{**method.parameters(), "output_threshold": threshold})
    return Subject(subject.bench, subject.name, calibrated, subject.compiled)


def allocated_bytes(cache: Any) -> int:
    """Return the bytes that a stock or sparse cache holds for K and V."""
    if hasattr(cache, "allocated_bytes"):
        return cache.allocated_bytes()
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Clock:
    """Wall-clock and process CPU seconds, with all queued work of the device done."""

    def __init__(self, device: torch.device) -> None:
        self.sync: Callable[[], None] = (
            (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
        )

    def now(self) -> tuple[float, float]:
        """Return both clocks in seconds."""
        self.sync()
        return time.perf_counter(), time.process_time()
