"""The engine behind the front: a process of ours or a server elsewhere, watched all the time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import httpx

from dynllava.errors import UserError

from .metrics import Metrics
from .prompt import TEMPLATE
from .selection import Bundle

HOST = "127.0.0.1"
TEMPLATE_FILE = "parts.jinja"
POLL = 0.5
"""Seconds between two looks at the process."""
PATIENCE = 3.5
"""Seconds for an answer to /health; twice in a row missed, the engine counts as dead."""
KEEP = 2.0
"""Seconds that an idle connection is kept: fewer than the 5 after which servers close theirs."""
RESTARTS, WITHIN = 5, 600.0
"""Starts after the first that are tried within so many seconds."""
KV_BYTES = 2**30
"""KV cache of an engine on a CPU; by itself vLLM would take nearly all memory."""

T = TypeVar("T")


class EngineLost(Exception):
    """The engine died, does not answer or is not there yet."""


class BrokeOff(EngineLost):
    """A connection to the engine broke; the engine itself may be well."""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def command(
    bundle: Bundle, port: int, template: Path, cpu: bool, more: Sequence[str] = ()
) -> list[str]:
    """Return the command that starts stock vLLM for a bundle.

    Parameters
    ----------
    bundle : Bundle
    port : int
        On the loopback interface.
    template : Path
        File that holds :data:`~dynllava.serving.prompt.TEMPLATE`.
    cpu : bool
        Add what an engine on a CPU needs: a KV cache of :data:`KV_BYTES`, no compiling.
    more : sequence of str
        Further arguments; the last of a name counts.
    """
    words = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(bundle.folder), "--served-model-name", bundle.folder.name,
        "--host", HOST, "--port", str(port), "--dtype", bundle.dtype,
        "--enable-prompt-embeds", "--chat-template", str(template),
        "--chat-template-content-format", "openai", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if cpu:
        words += ["--enforce-eager", "--kv-cache-memory-bytes", str(KV_BYTES)]
    return [*words, *more]


class Engine:
    """An OpenAI-compatible server that takes ``prompt_embeds`` parts.

    Parameters
    ----------
    metrics : Metrics
    url : str
        Where it listens.
    words : sequence of str, optional
        Command that starts it; None: it runs elsewhere and is only watched.
    log : Path, optional
        File for what the process prints.
    restart : bool
        Start it again when it dies, :data:`RESTARTS` times in :data:`WITHIN` seconds at most.
    scratch : Path, optional
        Folder that goes with the engine.
    """

    def __init__(
        self,
        metrics: Metrics,
        url: str,
        words: Sequence[str] | None = None,
        log: Path | None = None,
        restart: bool = True,
        scratch: Path | None = None,
    ) -> None:
        self.scratch = scratch
        self.metrics, self.url, self.words, self.log = metrics, url.rstrip("/"), words, log
        self.restart = restart
        self.process: subprocess.Popen[bytes] | None = None
        self.ready, self.why = False, "the engine starts"
        self._client: httpx.AsyncClient | None = None
        self._lost: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._starts: list[float] = []

    @property
    def client(self) -> httpx.AsyncClient:
        """The connection to the engine."""
        if self._client is None:
            raise EngineLost("the engine was not started")
        return self._client

    async def start(self) -> None:
        """Start the process, where it is ours, and watch it; returns at once."""
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP)
        # No proxies of the environment: the engine is on this machine.
        self._client = httpx.AsyncClient(
            base_url=self.url, timeout=None, limits=limits, trust_env=False
        )
        self._spawn()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End the process that was started, and all it started."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._mark(False, "the server stops")
        await asyncio.to_thread(self._end)
        if self._client is not None:
            await self._client.aclose()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    async def guard(self, work: Awaitable[T]) -> T:
        """Return what ``work`` gives, or raise as soon as the engine is lost.

        Raises
        ------
        EngineLost
            If it is not ready, or is lost before the work is done.
        """
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        if not self.ready or self._lost is None:
            task.cancel()
            raise EngineLost(self.why)
        try:
            await asyncio.wait({task, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineLost(self.why)
            return task.result()
        except httpx.TransportError as error:
            raise BrokeOff(f"the engine broke off ({type(error).__name__})") from None
        finally:
            task.cancel()

    # ------------------------------------------------------------------ the process

    def _spawn(self) -> None:
        if self.words is None:
            return
        self._starts.append(time.monotonic())
        # What is not meant for other machines stays on this one; nothing is reported anywhere.
        local = {"VLLM_HOST_IP": HOST, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        output: Any = subprocess.DEVNULL if self.log is None else self.log.open("ab")
        try:
            self.process = subprocess.Popen(
                list(self.words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **local},
                start_new_session=True,
            )
        finally:
            if self.log is not None:
                output.close()

    def _end(self) -> None:
        """End the process group: politely, then for certain."""
        if self.process is None:
            return
        main, self.process = self.process, None
        group = main.pid
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                break
            until = time.monotonic() + seconds
            while time.monotonic() < until and _alive(group, main):
                time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            main.wait(1)

    def _mark(self, ready: bool, why: str) -> None:
        self.why = why
        self.metrics.up.set(ready)
        if ready == self.ready:
            return
        self.ready = ready
        if ready:
            self._lost = asyncio.get_running_loop().create_future()
        elif self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    async def _watch(self) -> None:
        missed = 0
        while True:
            if self.process is not None and self.process.poll() is not None:
                await self._again(f"the engine ended (exit code {self.process.returncode})")
                missed = 0
            status = await self._health()
            if status == 200:
                missed = 0
                self._mark(True, "")
            elif self.ready:
                missed += 1
                if status is not None or missed > 1:
                    said = "does not answer" if status is None else f"says {status}"
                    await self._again(f"the engine {said}")
                    missed = 0
            await asyncio.sleep(POLL)

    async def _health(self) -> int | None:
        """Return the status of /health: 0 if nobody listens, None if no answer came in time."""
        try:
            return (await self.client.get("/health", timeout=PATIENCE)).status_code
        except httpx.TimeoutException:
            return None
        except httpx.TransportError:
            return 0

    async def _again(self, why: str) -> None:
        """Give the engine up, and start it anew where it is ours."""
        self._mark(False, why)
        if self.words is None:
            return
        await asyncio.to_thread(self._end)
        recent = [at for at in self._starts if at > time.monotonic() - WITHIN]
        if self.restart and len(recent) <= RESTARTS:
            self.why = f"{why}; it is started again"
            self.metrics.restarts.inc()
            self._spawn()
        else:
            self.why = f"{why}; it is not started again"


def _alive(group: int, main: subprocess.Popen[bytes]) -> bool:
    main.poll()
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def check_installed() -> None:
    """Refuse to start an engine that is not installed.

    Raises
    ------
    UserError
        If vLLM cannot be found.
    """
    if find_spec("vllm") is None:
        raise UserError(
            "no vLLM here: install the extra serve into an environment of its own "
            "(docs/serving.md), or give --engine-url"
        )


def write_template(folder: Path) -> Path:
    """Write the engine's chat template to a file of a folder."""
    path = folder / TEMPLATE_FILE
    path.write_text(TEMPLATE, encoding="utf-8")
    return path
