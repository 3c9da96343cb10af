"""Pictures of many requests through the tower in batches, one batch at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from dynllava.errors import UserError

from .cache import RowCache, name_of
from .metrics import Metrics
from .selection import Selector


@dataclass(frozen=True)
class _Job:
    selector: Selector
    picture: bytes
    question: str
    answer: asyncio.Future[torch.Tensor]


class Tower:
    """Queue in front of the tower: whatever waits when a batch is done becomes the next one.

    Parameters
    ----------
    cache : RowCache
        Of methods that do not look at the question.
    metrics : Metrics
    batch : int
        Most pictures at a time.
    """

    def __init__(self, cache: RowCache, metrics: Metrics, batch: int = 16) -> None:
        self.cache, self.metrics, self.batch = cache, metrics, batch
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._under_way: dict[tuple[str, str], asyncio.Future[torch.Tensor]] = {}
        # One thread: batches would only share the cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tower")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; who still waits is told."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while not self._jobs.empty():
            self._jobs.get_nowait().answer.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def rows(self, selector: Selector, picture: bytes, question: str) -> torch.Tensor:
        """Return the rows [K, D] of an encoded picture.

        Raises
        ------
        UserError
            If it is no picture.
        """
        if not selector.shared:
            self.metrics.images.labels(selector.text, "miss").inc()
            return await self._ask(selector, picture, question)
        key = (selector.text, name_of(picture))
        found = self.cache.get(*key)
        under_way = self._under_way.get(key)
        hit = found is not None or under_way is not None
        self.metrics.images.labels(selector.text, "hit" if hit else "miss").inc()
        if found is not None:
            return found
        if under_way is None:
            under_way = asyncio.ensure_future(self._ask(selector, picture, ""))
            self._under_way[key] = under_way
            under_way.add_done_callback(lambda done: self._keep(key, done))
        # A client that goes away takes nothing from the others.
        return await asyncio.shield(under_way)

    def _keep(self, key: tuple[str, str], done: asyncio.Future[torch.Tensor]) -> None:
        del self._under_way[key]
        if not done.cancelled() and done.exception() is None:
            self.cache.put(*key, done.result())
            self.metrics.cached.set(self.cache.bytes)

    async def _ask(self, selector: Selector, picture: bytes, question: str) -> torch.Tensor:
        answer: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait(_Job(selector, picture, question, answer))
        return await answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = [await self._jobs.get()]
            while len(jobs) < self.batch and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            groups: dict[int, list[_Job]] = {}
            for job in jobs:
                groups.setdefault(id(job.selector), []).append(job)
            for group in groups.values():
                selector = group[0].selector
                started = time.perf_counter()
                try:
                    found = await loop.run_in_executor(self._thread, _work, selector, group)
                except asyncio.CancelledError:
                    for job in jobs:
                        job.answer.cancel()
                    raise
                except Exception as error:
                    found = [error] * len(group)
                self.metrics.tower.labels(selector.text).observe(time.perf_counter() - started)
                self.metrics.batch.observe(len(group))
                for job, item in zip(group, found, strict=True):
                    if job.answer.done():
                        continue
                    if isinstance(item, Exception):
                        job.answer.set_exception(item)
                    else:
                        job.answer.set_result(item)


def _work(selector: Selector, jobs: Sequence[_Job]) -> list[torch.Tensor | Exception]:
    """Return each picture's rows, or why it has none: a bad one takes no other along."""
    found: list[torch.Tensor | Exception] = []
    pixels, questions = [], []
    for job in jobs:
        try:
            pixels.append(selector.side.pixels(job.picture))
            questions.append(job.question)
            found.append(pixels[-1])
        except UserError as error:
            found.append(error)
    asked = None if selector.shared else questions
    rows = iter(selector.rows(torch.stack(pixels), asked) if pixels else [])
    return [item if isinstance(item, Exception) else next(rows) for item in found]
