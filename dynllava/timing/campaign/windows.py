"""Decode steps at a length: fill the caches of all subjects once, then time short windows in turn.

Decoding 2,000 tokens anew in every round would cost most of a GPU's minutes.  Where a method keeps
every output token (or evicts to a fixed size) the tokens are fed in blocks, which leaves a cache
of the same lengths; methods that drop output tokens are stepped, because only steps drop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..bench import Plan
from ..speed import Clock, Inputs, Subject, Times, allocated_bytes

BLOCK = 256
"""Tokens fed at once while a cache is filled."""


@dataclass
class Track:
    """A subject with its own cache, some output tokens in."""

    subject: Subject
    cache: Any
    token: torch.Tensor
    fed: int


@torch.inference_mode()
def filled(
    subject: Subject, inputs: Inputs, upto: int, room: int, keep_going: Callable[[], None]
) -> Track:
    """Return a subject's cache after ``upto`` output tokens, with room for ``room`` in all."""
    model = subject.prepare()
    token, cache = subject.prefill(model, inputs, subject.with_image(model, inputs), room)
    track = Track(subject, cache, token, 0)
    advance(track, inputs, upto, keep_going)
    return track


@torch.inference_mode()
def advance(track: Track, inputs: Inputs, upto: int, keep_going: Callable[[], None]) -> None:
    """Feed output tokens until ``upto`` were fed; ``keep_going`` may raise between blocks."""
    subject, model = track.subject, track.subject.prepare()
    stepped = drops_outputs(subject, inputs)
    while track.fed < upto:
        keep_going()
        last = min(track.fed + (16 if stepped else BLOCK), upto)
        if stepped:
            track.token = subject.decode(
                model, track.token, track.cache, inputs.fed, track.fed, last
            )
        else:
            block = inputs.output_tokens()[:, track.fed : last]
            model(input_ids=block, past_key_values=track.cache, use_cache=True, logits_to_keep=1)
        track.fed = last


def drops_outputs(subject: Subject, inputs: Inputs) -> bool:
    """Return whether some layer keeps only part of the output tokens."""
    if subject.method is None:
        return False
    schedule = subject.run_of(inputs.shape, 2, 1, None).schedule
    grown = zip(schedule.kv_lengths(64), schedule.kv_lengths(0), schedule.kv_limit, strict=True)
    return any(limit is None and late - early < 64 for late, early, limit in grown)


@torch.inference_mode()
def time_window(track: Track, inputs: Inputs, plan: Plan) -> Times:
    """Time the next ``plan.window`` steps; seconds a step under ``step``."""
    model, clock = track.subject.prepare(), Clock(track.subject.bench.device)
    last = track.fed + plan.window
    start = clock.now()
    track.token = track.subject.decode(model, track.token, track.cache, inputs.fed, track.fed, last)
    end = clock.now()
    track.fed = last
    times = Times(
        output_keep=track.subject.realised_keep(model),
        kv_allocated=allocated_bytes(track.cache),
    )
    times.add("step", start, end, plan.window)
    return times


def run_round(tracks: Sequence[Track], inputs: Inputs, plan: Plan, number: int) -> dict[str, Times]:
    """Time one window of every subject, in the order of this round."""
    return {
        tracks[index].subject.name: time_window(tracks[index], inputs, plan)
        for index in plan.order(number, len(tracks))
    }
