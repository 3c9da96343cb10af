"""Steps that time: prefill, decode steps at a length, calls without a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynllava import methods
from dynllava.errors import UserError
from dynllava.methods.presets import MEASURED

from .. import bench, speed
from ..speed import Clock, Inputs, Subject, Times
from . import windows
from .session import Session, failure
from .steps import Step


def run_prefill(session: Session, step: Step) -> None:
    """Time the prefill (and the time to the first token) of the six methods."""
    _prefill(session, step, MEASURED)


def run_further(session: Session, step: Step) -> None:
    """Time the prefill of every registered method that part 2 does not have.

    The prompt is embeddings: a method that looks at pictures is left out, its language model runs
    a shorter prompt.
    """
    layers = session.shape.spec.dims.layers
    _prefill(session, step, [name for name in methods.names() if _further(name, layers)])


def _further(name: str, layers: int) -> bool:
    """Return whether a method is none of the six and runs on embeddings with its defaults."""
    try:
        method = methods.create(name)
        method.validate(layers)
    except (UserError, TypeError):
        return False
    return name not in MEASURED and not method.plan(layers).needs_pictures


def _prefill(session: Session, step: Step, names: Sequence[str]) -> None:
    shape, spec = session.shape, _spec(session, step)
    plan = bench.Plan(
        spec.prompt(shape.text), step.batch, 1, shape.rounds["prefill"], seed=step.number
    )
    ready, inputs = bench.prepare(session.subjects(spec, names), plan)
    ready = _warm(session, step, ready, lambda subject: subject.time(inputs, 1))

    def one(number: int) -> dict[str, Times]:
        found = bench.run_round(ready, inputs, plan, number)
        return {item.name: times for item, times in zip(ready, found, strict=True)}

    session.rounds(step.key, plan, step.name, ready, one)


def run_nocache(session: Session, step: Step) -> None:
    """Time one call without a cache behind each number of output tokens."""
    shape, spec = session.shape, _spec(session, step)
    for length in shape.lengths:
        plan = bench.Plan(
            spec.prompt(shape.text), step.batch, length, shape.rounds["nocache"],
            nocache_fed=(length,), seed=step.number, what="nocache",
        )  # fmt: skip
        ready, inputs = bench.prepare(session.subjects(spec, MEASURED), plan)
        ready = [item for item in ready if not item.evicts(inputs.shape)]
        ready = _warm(session, step, ready, functools.partial(_call, inputs=inputs, fed=length))

        def one(
            number: int,
            ready: Sequence[Subject] = ready,
            inputs: Inputs = inputs,
            plan: bench.Plan = plan,
        ) -> dict[str, Times]:
            order = plan.order(number, len(ready))
            return {ready[i].name: _call(ready[i], inputs, plan.outputs) for i in order}

        session.rounds(step.key, plan, f"{step.name}-o{length}", ready, one)


@torch.inference_mode()
def _call(subject: Subject, inputs: Inputs, fed: int) -> Times:
    model, clock = subject.prepare(), Clock(subject.bench.device)
    call = subject.nocache_call(model, inputs, subject.with_image(model, inputs), fed)
    times = Times()
    start = clock.now()
    call()
    times.add("nocache_call", start, clock.now())
    return times


def run_step(session: Session, step: Step) -> None:
    """Time decode steps behind each number of generated tokens, on caches filled once."""
    shape, spec = session.shape, _spec(session, step)
    names = shape.compiled if step.compiled else MEASURED
    rounds, prompt = shape.rounds["step"], spec.prompt(shape.text)
    plans = [
        bench.Plan(prompt, step.batch, length, rounds, seed=step.number, what="step",
                   window=shape.window)
        for length in shape.lengths
    ]  # fmt: skip
    # A warm-up window and every round take new tokens.
    behind = (rounds + 1) * shape.window
    total = shape.lengths[-1] + behind
    subjects = session.subjects(spec, names, compiled=step.compiled, steps=True)
    inputs = speed.make_inputs(subjects[0].bench, prompt, step.batch, total)
    ready = [speed.calibrate_keep_rate(item, inputs, total) for item in subjects]
    ready = _warm(
        session, step, ready, lambda one: windows.filled(one, inputs, 1, 4, session.check)
    )
    stepped: dict[str, windows.Track] = {}
    for plan in plans:
        cell = f"{step.name}-o{plan.outputs}"
        if len(session.journal.rounds(step.key, cell)) >= plan.repeats:
            session.record(step.key, plan, cell, ready)
            continue
        tracks = []
        for item in ready:
            if windows.drops_outputs(item, inputs):
                # Stepping is slow: its cache goes on from length to length.
                track = stepped.get(item.name) or windows.filled(
                    item, inputs, 0, total, session.check
                )
                windows.advance(track, inputs, plan.outputs, session.check)
                stepped[item.name] = track
            else:
                room = plan.outputs + behind
                track = windows.filled(item, inputs, plan.outputs, room, session.check)
            tracks.append(track)
        windows.run_round(tracks, inputs, plan, -1)

        def one(
            number: int, tracks: Sequence[windows.Track] = tracks, plan: bench.Plan = plan
        ) -> dict[str, Times]:
            return windows.run_round(tracks, inputs, plan, number)

        session.rounds(step.key, plan, cell, ready, one)


def _spec(session: Session, step: Step) -> Any:
    shape = session.shape
    return shape.larger if step.larger and shape.larger is not None else shape.spec


def _warm(
    session: Session, step: Step, subjects: Sequence[Subject], work: Callable[[Subject], Any]
) -> list[Subject]:
    """Run each subject once uncounted; leave out, with a word, one that fails (e.g. no memory)."""
    ready = []
    for subject in subjects:
        session.check()
        try:
            work(subject)
        except (RuntimeError, UserError) as error:
            session.journal.add("dropped", step.key, subject=subject.name, error=failure(error))
            print(f"{step.key}: {subject.name} left out: {failure(error)}", flush=True)
            continue
        ready.append(subject)
    return ready
