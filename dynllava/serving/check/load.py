"""Time to first token and throughput of a server, methods taking turns within each round."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from dynllava.plan.names import FULL
from dynllava.prompts.templates import IMAGE, Turn

from ..app import CHAT
from ..engine import KEEP
from ..prompt import Prompts
from .prompts import Prompt, data_url, fresh
from .server import Server, at_most, stream_times

STOCK = "stock"
"""The engine asked directly: its own tower, its own preparation of pictures."""
QUESTION = "describe the image."
TIMES = {"ttft": "s", "latency": "s", "requests": "request/s"}
"""Quantity -> unit: median seconds to the first token and to the last, requests by the clock."""
HIGHER = ("requests",)


@dataclass(frozen=True)
class LoadPlan:
    """What is run.

    Attributes
    ----------
    concurrency : tuple of int
        Requests under way at a time.
    rounds : int
        That count, at each concurrency; one more warms up.
    requests : int
        Of one subject in one round; at least twice the concurrency.
    tokens : int
        Of every answer, ended by nothing earlier.
    seed : int
        Of the order within the rounds.
    """

    concurrency: tuple[int, ...] = (1, 4, 16)
    rounds: int = 10
    requests: int = 16
    tokens: int = 16
    seed: int = 0


@dataclass
class Timing:
    """One subject at one concurrency: every round's values by quantity."""

    subject: str
    concurrency: int
    rounds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})
    tokens: set[int] = field(default_factory=set)


async def measure(
    server: Server,
    subjects: Sequence[str],
    plan: LoadPlan,
    prompts: Prompts,
    step: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Return the timings of all subjects at all concurrencies.

    Every request shows a picture of its own, so that neither our cache nor the engine's prefix
    cache answers; within a round all subjects see the same pictures.

    Parameters
    ----------
    server : Server
    subjects : sequence of str
        Methods, and :data:`STOCK`.
    plan : LoadPlan
    prompts : Prompts
        Renders what :data:`STOCK` gets.
    step : callable
        Called after each subject of each round.
    """
    url, _ = server.engine
    limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP)
    found: list[Timing] = []
    async with (
        server.client() as front,
        httpx.AsyncClient(
            base_url=url, timeout=front.timeout, limits=limits, trust_env=False
        ) as engine,
    ):
        for width in plan.concurrency:
            timings = {name: Timing(name, width) for name in subjects}
            number = max(plan.requests, 2 * width)
            for turn in range(plan.rounds + 1):
                pictures = fresh(f"{plan.seed}/{width}/{turn}", QUESTION)
                asked = [next(pictures) for _ in range(number)]
                order = list(subjects)
                random.Random(f"{plan.seed} {width} {turn}").shuffle(order)
                for name in order:
                    client = engine if name == STOCK else front
                    bodies = [_body(name, item, plan, prompts, server) for item in asked]
                    values, tokens = await _round(client, bodies, width)
                    if turn:
                        for key, value in values.items():
                            timings[name].rounds[key].append(value)
                        timings[name].tokens |= tokens
                    step()
            found += timings.values()
    return found


async def _round(
    client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], width: int
) -> tuple[dict[str, float], set[int]]:
    began = time.perf_counter()
    jobs = [lambda body=body: stream_times(client, CHAT, body) for body in bodies]
    done = await at_most(width, jobs)
    seconds = time.perf_counter() - began
    values = {
        "ttft": statistics.median(first for first, _, _ in done),
        "latency": statistics.median(last for _, last, _ in done),
        "requests": len(done) / seconds,
    }
    return values, {tokens for _, _, tokens in done}


def _body(
    subject: str, prompt: Prompt, plan: LoadPlan, prompts: Prompts, server: Server
) -> dict[str, Any]:
    options = {"ignore_eos": True, "min_tokens": plan.tokens}
    if subject != STOCK:
        return prompt.body(subject, plan.tokens, **options)
    text = prompts.text([Turn("user", prompt.question, [prompt.picture])])
    body = prompt.body(server.model, plan.tokens, add_special_tokens=False, **options)
    before, after = prompts.opened(text).split(IMAGE)
    shown = {"type": "image_url", "image_url": {"url": data_url(prompt.picture)}}
    body["messages"][0]["content"] = [
        {"type": "text", "text": before}, shown, {"type": "text", "text": after},
    ]  # fmt: skip
    return body


def ratios(timing: Timing, dense: Timing, name: str) -> list[float]:
    """Return a quantity over the dense model's, round by round."""
    pairs = zip(timing.rounds[name], dense.rounds[name], strict=True)
    return [own / other for own, other in pairs]


def dense_of(timings: Sequence[Timing], concurrency: int) -> Timing:
    """Return the timing of the dense model at a concurrency."""
    return next(
        item for item in timings if item.subject == FULL and item.concurrency == concurrency
    )


def run(
    server: Server,
    subjects: Sequence[str],
    plan: LoadPlan,
    prompts: Prompts,
    step: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Run :func:`measure` to its end."""
    return asyncio.run(measure(server, subjects, plan, prompts, step))
