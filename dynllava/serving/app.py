"""The server: OpenAI's interface in front, images chosen here, the rest left to the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from dynllava._version import __version__
from dynllava.errors import UserError

from .cache import RowCache
from .engine import BrokeOff, Engine, EngineLost
from .limits import Limits
from .metrics import Metrics
from .prompt import Prompts
from .requests import Chat, Refused, read_chat, read_completion, read_object
from .selection import Selector
from .tower import Tower

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Front:
    """What the handlers share.

    Attributes
    ----------
    selectors : mapping
        Name in a request's ``model`` -> selector; the first is the default.
    engine : Engine
    engine_model : str
        What the engine calls the model.
    prompts : Prompts
    tower : Tower
    limits : Limits
    metrics : Metrics
    """

    selectors: Mapping[str, Selector]
    engine: Engine
    engine_model: str
    prompts: Prompts
    tower: Tower
    limits: Limits
    metrics: Metrics
    under_way: int = 0

    def selector(self, model: str | None) -> Selector:
        """Return the selector that a request names.

        Raises
        ------
        Refused
            For an unknown name (404).
        """
        if model is None or model == self.engine_model:
            return next(iter(self.selectors.values()))
        if model not in self.selectors:
            known = ", ".join([self.engine_model, *self.selectors])
            raise Refused(f"model={model!r}: accepted are {known}", 404)
        return self.selectors[model]

    async def chat_body(self, chat: Chat) -> dict[str, Any]:
        """Return what the engine gets for a chat request.

        Raises
        ------
        UserError
            If a picture or the conversation is not accepted.
        """
        selector, images = self.selector(chat.model), chat.images
        text = self.prompts.text(chat.turns)
        asked = [self.tower.rows(selector, image, chat.question) for image in images]
        found = await asyncio.gather(*asked, return_exceptions=True)
        rows: list[torch.Tensor] = []
        for number, item in enumerate(found):
            if isinstance(item, UserError):
                raise Refused(f"image {number + 1}: {item}")
            if isinstance(item, BaseException):
                raise item
            rows.append(item)
        rows = selector.finish(self.prompts.ids(text, rows), rows)
        kept = sum(len(item) for item in rows)
        self.metrics.kept.labels(selector.text).inc(kept)
        whole = selector.side.image_tokens * len(rows)
        self.metrics.dropped.labels(selector.text).inc(max(0, whole - kept))
        message = {"role": "user", "content": self.prompts.content(text, rows)}
        own = {"model": self.engine_model, "messages": [message], "add_special_tokens": False}
        return {**chat.options, **own}


def make_front(
    selectors: Mapping[str, Selector],
    engine: Engine,
    engine_model: str,
    limits: Limits,
    metrics: Metrics,
    cache_bytes: int,
    batch: int = 16,
) -> Front:
    """Return the shared state of one server."""
    processor = next(iter(selectors.values())).side.processor
    tower = Tower(RowCache(cache_bytes), metrics, batch)
    return Front(selectors, engine, engine_model, Prompts(processor), tower, limits, metrics)


def make_app(front: Front) -> FastAPI:
    """Return the server; its engine is started and stopped with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        front.tower.start()
        await front.engine.start()
        yield
        await front.tower.stop()
        await front.engine.stop()

    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(title="dynllava serve", version=__version__, lifespan=lifespan,
                  docs_url=None, redoc_url=None, openapi_url=None)  # fmt: skip

    @app.exception_handler(HTTPException)
    async def wrong_path(_: Request, error: HTTPException) -> Response:
        return refusal(str(error.detail), error.status_code)

    @app.get("/health")
    async def health() -> Response:
        process = front.engine.process
        state = {
            "status": "ok" if front.engine.ready else "engine not ready",
            "why": front.engine.why,
            "engine": {"url": front.engine.url, "pid": None if process is None else process.pid},
        }
        return JSONResponse(state, 200 if front.engine.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        text = front.metrics.text()
        if front.engine.ready:
            try:
                own = await front.engine.guard(front.engine.client.get("/metrics", timeout=5.0))
                text += own.text if own.status_code == 200 else ""
            except (EngineLost, httpx.HTTPError) as error:
                # Ours are worth having without the engine's; a comment says what is missing.
                text += f"# the engine's metrics are missing: {type(error).__name__}\n"
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Response:
        entries = [
            {"id": name, "object": "model", "owned_by": "dynllava", "created": 0}
            for name in (front.engine_model, *front.selectors)
        ]
        return JSONResponse({"object": "list", "data": entries})

    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        return await answered(front, request, CHAT, _chat)

    @app.post(COMPLETIONS)
    async def completions(request: Request) -> Response:
        return await answered(front, request, COMPLETIONS, _completion)

    return app


async def _chat(front: Front, value: dict[str, Any]) -> dict[str, Any]:
    return await front.chat_body(read_chat(value, front.limits))


async def _completion(front: Front, value: dict[str, Any]) -> dict[str, Any]:
    model, options = read_completion(value)
    front.selector(model)
    return {**options, "model": front.engine_model}


async def answered(front: Front, request: Request, path: str, build: Any) -> Response:
    """Return the engine's answer to a request, or one line that says why there is none."""
    if front.under_way >= front.limits.requests:
        response = refusal(f"{front.limits.requests} requests are under way: try again", 429)
    else:
        front.under_way += 1
        front.metrics.waiting.set(front.under_way)
        try:
            response = await _answer(front, request, path, build)
        finally:
            front.under_way -= 1
            front.metrics.waiting.set(front.under_way)
    front.metrics.requests.labels(path, str(response.status_code)).inc()
    return response


async def _answer(front: Front, request: Request, path: str, build: Any) -> Response:
    engine = front.engine
    try:
        value = read_object(await _body(request, front.limits))
        body = await build(front, value)
        async with asyncio.timeout(front.limits.seconds) as timer:
            reply = await _sent(engine, path, body)
            if body.get("stream") and reply.status_code == 200:
                until = timer.when() or 0.0
                return StreamingResponse(
                    _pieces(engine, reply, until), media_type="text/event-stream"
                )
            try:
                content = await engine.guard(reply.aread())
            finally:
                await reply.aclose()
    except Refused as error:
        return refusal(str(error), error.status)
    except UserError as error:
        return refusal(str(error), 400)
    except EngineLost as error:
        return refusal(str(error), 503)
    except TimeoutError:
        return refusal(f"the engine took more than {front.limits.seconds:g} s", 504)
    if reply.status_code >= 500:
        # Its own words are a traceback's; a dead engine is noticed by the watch.
        return refusal(f"the engine failed ({_said(content)})", 503)
    if reply.status_code >= 400:
        return refusal(f"the engine refused ({_said(content)})", reply.status_code)
    return Response(content, reply.status_code, media_type="application/json")


async def _sent(engine: Engine, path: str, body: dict[str, Any]) -> httpx.Response:
    """Return the head of the engine's answer.

    An idle connection that the engine closes just now breaks before any answer: asked once more.
    """
    try:
        request = engine.client.build_request("POST", path, json=body)
        return await engine.guard(engine.client.send(request, stream=True))
    except BrokeOff:
        request = engine.client.build_request("POST", path, json=body)
        return await engine.guard(engine.client.send(request, stream=True))


async def _body(request: Request, limits: Limits) -> bytes:
    """Return the body, refusing more than the limits allow before it is all here."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.body:
            raise Refused(f"the body has more than {limits.body} bytes", 413)
        parts.append(part)
    return b"".join(parts)


async def _pieces(engine: Engine, reply: httpx.Response, until: float) -> AsyncIterator[bytes]:
    """Yield a streamed answer; what ends it early is said in a last event."""
    source, tail = reply.aiter_raw(), b""
    try:
        while True:
            async with asyncio.timeout_at(until):
                piece = await engine.guard(_next(source))
            if piece is None:
                if b"data: [DONE]" not in tail:
                    yield _event("the engine's answer broke off", 503)
                return
            tail = (tail + piece)[-64:]
            yield piece
    except EngineLost as error:
        yield _event(str(error), 503)
    except TimeoutError:
        yield _event("the engine took too long", 504)
    finally:
        await reply.aclose()


async def _next(source: AsyncIterator[bytes]) -> bytes | None:
    return await anext(source, None)


def _said(content: bytes) -> str:
    """Return the first line of an engine's error."""
    try:
        found = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        found = content.decode("utf-8", "replace")
    return " ".join(str(found).split())[:300] or "no reason given"


def _error(message: str, status: int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    line = " ".join(message.split())
    return {"error": {"message": line, "type": kind, "param": None, "code": status}}


def _event(message: str, status: int) -> bytes:
    return f"data: {json.dumps(_error(message, status))}\n\n".encode()


def refusal(message: str, status: int) -> Response:
    """Return an error as OpenAI's interface has it, its message one line."""
    return JSONResponse(_error(message, status), status)
