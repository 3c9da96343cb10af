"""What a server does with malformed requests, and when its engine is killed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from PIL import Image

from ..app import CHAT
from .prompts import Prompt, data_url
from .server import START, Server, at_most, core_of, kill

WITHIN = 10.0
"""Seconds within which clients and /health must say that the engine is gone."""
LONG = 400
"""Tokens of an answer that is under way when the engine is killed."""


@dataclass(frozen=True)
class Mixed:
    """Requests of which some are malformed.

    Attributes
    ----------
    statuses : dict
        ``"good"`` and ``"malformed"`` -> HTTP status -> how many; 0 = no answer.
    wrong : list of str
        What should not have happened.
    """

    statuses: dict[str, dict[int, int]]
    wrong: list[str]


@dataclass
class Killed:
    """An engine that was killed while it answered.

    Attributes
    ----------
    what : str
        ``"core"`` (the process of the model) or ``"server"`` (its HTTP server).
    clients : list of float
        Seconds from the kill until each waiting client had its error.
    outcomes : dict
        HTTP status, or ``"event"`` for an error within a stream -> how many.
    health : float or None
        Seconds until /health said 503.
    again : float or None
        Seconds until /health said 200.
    answered : int
        Of ``asked`` requests after that, how many were answered.
    wrong : list of str
    """

    what: str
    clients: list[float] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    health: float | None = None
    again: float | None = None
    asked: int = 0
    answered: int = 0
    wrong: list[str] = field(default_factory=list)


def malformed(prompt: Prompt, model: str) -> list[bytes]:
    """Return bodies that a server must refuse, each wrong in its own way."""
    good = prompt.body(model, 8)
    text = {"type": "text", "text": prompt.question}

    def shown(*urls: Any) -> bytes:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        message = {"role": "user", "content": [*parts, text]}
        return json.dumps({**good, "messages": [message]}).encode()

    def encoded(data: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(data).decode()

    strip = io.BytesIO()
    Image.new("RGB", (3000, 4)).save(strip, "PNG")
    whole = data_url(prompt.picture)
    role = {**good, "messages": [{"role": "robot", "content": "hello"}]}
    return [
        b"{",
        json.dumps([good]).encode(),
        json.dumps({"model": model, "messages": []}).encode(),
        json.dumps(role).encode(),
        json.dumps({**good, "model": "nobody"}).encode(),
        json.dumps({**good, "temperature": "warm"}).encode(),
        json.dumps({**good, "max_tokens": -1}).encode(),
        json.dumps({**good, "tools": [{"type": "function"}]}).encode(),
        shown("https://example.invalid/cat.png"),
        shown("data:image/png;base64,###"),
        shown(encoded(b"no picture")),
        shown(encoded(prompt.picture[: len(prompt.picture) // 2])),
        shown(encoded(strip.getvalue())),
        shown(*[whole] * 9),
        shown(7),
    ]


async def mixed(
    server: Server, model: str, prompts: Sequence[Prompt], requests: int, share: float, width: int
) -> Mixed:
    """Send requests, a share of them malformed, ``width`` at a time; return what became of them."""
    count = max(1, round(requests * share))
    places = set(random.Random(requests).sample(range(requests), count))
    statuses: dict[str, Counter[int]] = {"good": Counter(), "malformed": Counter()}
    wrong: list[str] = []
    async with server.client() as client:

        async def one(number: int) -> None:
            prompt = prompts[number % len(prompts)]
            bad = malformed(prompt, model)
            kind = "malformed" if number in places else "good"
            body = (
                bad[sorted(places).index(number) % len(bad)]
                if number in places
                else json.dumps(prompt.body(model, 8)).encode()
            )
            try:
                reply = await client.post(
                    CHAT, content=body, headers={"Content-Type": "application/json"}
                )
                status, said = reply.status_code, reply.text[:200]
            except httpx.HTTPError as error:
                status, said = 0, type(error).__name__
            statuses[kind][status] += 1
            fits = 400 <= status < 500 if number in places else status == 200
            if not fits:
                wrong.append(f"a {kind} request got {status}: {said}")

        await at_most(width, [lambda number=number: one(number) for number in range(requests)])
    return Mixed({kind: dict(found) for kind, found in statuses.items()}, wrong)


async def killed(
    server: Server,
    model: str,
    prompts: Sequence[Prompt],
    what: str,
    width: int,
    afterwards: str | None = None,
) -> Killed:
    """Kill the engine while ``width`` clients wait; return who noticed when.

    Parameters
    ----------
    server : Server
    model : str
    prompts : sequence of Prompt
        What is asked, before and (all of them) after the engine is back.
    what : str
        ``"core"`` or ``"server"``.
    width : int
        Clients; half of them read streams.
    afterwards : str, optional
        Question to ask instead when it is back.
    """
    found, outcomes = Killed(what), Counter[str]()
    _, pid = server.engine
    async with server.client() as client:
        ended: list[float] = []

        async def wait(number: int) -> None:
            prompt = prompts[number % len(prompts)]
            stream = number % 2 == 0
            body = prompt.body(model, LONG, ignore_eos=True, stream=stream)
            outcome = "no answer"
            try:
                async with client.stream("POST", CHAT, json=body) as reply:
                    text = (await reply.aread()).decode("utf-8", "replace")
                    outcome = str(reply.status_code)
                    if reply.status_code == 200 and '"length"' not in text:
                        outcome = "event" if 'data: {"error"' in text else "cut off"
            except httpx.HTTPError as error:
                outcome = type(error).__name__
            ended.append(time.perf_counter())
            outcomes[outcome] += 1

        waiting = [asyncio.create_task(wait(number)) for number in range(width)]
        await asyncio.sleep(1.0)
        early = len(ended)
        at = time.perf_counter()
        await asyncio.to_thread(kill, core_of(pid) if what == "core" else pid)
        found.health = await _until(client, at, 503, 3 * WITHIN)
        await asyncio.wait(waiting, timeout=START)
        found.clients = [end - at for end in ended[early:]]
        found.outcomes = dict(outcomes)
        found.again = await _until(client, at, 200, START)
        found.asked = len(prompts)
        for prompt in prompts:
            asked = replace(prompt, question=afterwards or prompt.question)
            reply = await client.post(CHAT, json=asked.body(model, 8))
            found.answered += reply.status_code == 200
        for task in waiting:
            task.cancel()
    found.wrong = _judge(found, width, early)
    return found


def _judge(found: Killed, width: int, early: int) -> list[str]:
    wrong = []
    if found.health is None or found.health > WITHIN:
        wrong.append(f"{found.what}: /health was not 503 within {WITHIN:g} s ({found.health})")
    if len(found.clients) + early < width:
        wrong.append(f"{found.what}: {width - early - len(found.clients)} clients hang")
    late = [seconds for seconds in found.clients if seconds > WITHIN]
    if late:
        wrong.append(f"{found.what}: {len(late)} clients waited up to {max(late):.1f} s")
    if not found.clients:
        wrong.append(f"{found.what}: no client was waiting when the engine was killed")
    odd = set(found.outcomes) - {"200", "503", "event"}
    if odd:
        wrong.append(f"{found.what}: clients got {', '.join(sorted(odd))}")
    if found.again is None:
        wrong.append(f"{found.what}: the engine did not come back")
    if found.answered < found.asked:
        wrong.append(f"{found.what}: {found.answered} of {found.asked} answered afterwards")
    return wrong


async def _until(
    client: httpx.AsyncClient, since: float, status: int, seconds: float
) -> float | None:
    """Return seconds since ``since`` when /health first says ``status``."""
    while time.perf_counter() - since < seconds:
        reply = await client.get("/health")
        if reply.status_code == status:
            return time.perf_counter() - since
        await asyncio.sleep(0.05)
    return None
