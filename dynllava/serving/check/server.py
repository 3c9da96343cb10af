"""A server of our own for the checks: started, waited for, asked, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from dynllava.errors import UserError

from ..engine import HOST, KEEP, free_port

START = 600.0
"""Seconds that an engine may take to start."""
PATIENCE = 120.0
"""Seconds after which a request counts as hung."""


class Server:
    """``dynllava serve`` as a process.

    Parameters
    ----------
    folder : Path
        Of ``dynllava export``.
    methods : sequence of str
    options : sequence of str
        More arguments of ``dynllava serve``.
    logs : Path
        Folder for what it and the engine print.
    """

    def __init__(
        self, folder: Path, methods: Sequence[str], options: Sequence[str], logs: Path
    ) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.log, self.engine_log = logs / "serve.log", logs / "engine.log"
        self.words = [
            sys.executable, "-m", "dynllava", "serve", str(folder), "--methods", *methods,
            "--port", str(self.port), "--engine-log", str(self.engine_log), *options,
        ]  # fmt: skip
        self.model = folder.name
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    def __enter__(self) -> Server:
        began = time.monotonic()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            self.wait(START)
        except BaseException:
            self.__exit__()
            raise
        self.started = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return status and content of /health; 0 if nobody listens."""
        try:
            reply = httpx.get(f"{self.url}/health", timeout=5, trust_env=False)
            return reply.status_code, reply.json()
        except (httpx.TransportError, ValueError):
            return 0, {}

    def wait(self, seconds: float) -> float:
        """Return after how many seconds the engine answers.

        Raises
        ------
        UserError
            If it does not in time, or the server has ended.
        """
        began = time.monotonic()
        while True:
            status, _ = self.health()
            waited = time.monotonic() - began
            if status == 200:
                return waited
            if self.process is None or self.process.poll() is not None:
                raise UserError(f"dynllava serve ended: {self._tail(self.log)}", 1)
            if waited > seconds:
                raise UserError(f"no engine after {seconds:g} s: {self._tail(self.engine_log)}", 1)
            time.sleep(0.2)

    @property
    def engine(self) -> tuple[str, int]:
        """URL and process of the engine."""
        found = self.health()[1]["engine"]
        return found["url"], found["pid"]

    def client(self) -> httpx.AsyncClient:
        """Return a client for many requests at a time."""
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP)
        return httpx.AsyncClient(
            base_url=self.url, timeout=PATIENCE, limits=limits, trust_env=False
        )

    @staticmethod
    def _tail(log: Path) -> str:
        if not log.is_file():
            return "it printed nothing"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        telling = [line for line in said if "rror" in line]
        return (telling or said or ["it printed nothing"])[-1][-300:]


def core_of(pid: int) -> int:
    """Return the process in which vLLM's model runs, a descendant of its server."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            if Path(f"/proc/{child}/comm").read_text().startswith("VLLM"):
                return child
    return pid


def kill(pid: int) -> None:
    """Kill one process at once."""
    os.kill(pid, signal.SIGKILL)


async def stream_times(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> tuple[float, float, int]:
    """Return seconds to the first token, seconds to the end and tokens of a streamed answer.

    Raises
    ------
    UserError
        If the answer is an error or ends early.
    """
    began = time.perf_counter()
    first, tokens, done = None, 0, False
    asked = {**body, "stream": True, "return_token_ids": True}
    async with client.stream("POST", path, json=asked) as reply:
        if reply.status_code != 200:
            said = (await reply.aread()).decode("utf-8", "replace")[:300]
            raise UserError(f"a request got {reply.status_code}: {said}", 1)
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                break
            piece = json.loads(line[6:])
            if "error" in piece:
                raise UserError(f"an answer broke off: {piece['error'].get('message')}", 1)
            got = sum(len(choice.get("token_ids") or []) for choice in piece.get("choices", []))
            if got and first is None:
                first = time.perf_counter() - began
            tokens += got
    if first is None or not done:
        raise UserError("an answer ended without a token or without its end", 1)
    return first, time.perf_counter() - began, tokens


async def at_most(limit: int, jobs: Sequence[Any]) -> list[Any]:
    """Return what each job (a function without arguments) gives, ``limit`` of them at a time."""
    gate = asyncio.Semaphore(limit)

    async def one(job: Any) -> Any:
        async with gate:
            return await job()

    return list(await asyncio.gather(*(one(job) for job in jobs)))
