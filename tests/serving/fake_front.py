"""A front on an engine that repeats what it gets."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from dynllava.serving.app import Front, make_app, make_front
from dynllava.serving.engine import Engine, free_port
from dynllava.serving.limits import Limits
from dynllava.serving.metrics import Metrics
from dynllava.serving.run import listen
from dynllava.serving.selection import Selector

FAKE = Path(__file__).with_name("fake_engine.py")
LIMITS = Limits(images=2, image_bytes=100_000, pixels=200_000, requests=8)


@contextmanager
def served(side, methods, cache=2**20, **engine: Any) -> Iterator[tuple[str, Front]]:
    """Run a front on a fake engine; give its address and its state."""
    port = free_port()
    metrics = Metrics()
    words = [sys.executable, "-S", str(FAKE), str(port)]
    watched = Engine(metrics, f"http://127.0.0.1:{port}", words, **engine)
    selectors = {text: Selector(side, text) for text in methods}
    front = make_front(selectors, watched, "model", side.limits, metrics, cache)
    listening = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(make_app(front), log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until = time.monotonic() + 60
        while not (server.started and httpx.get(f"{url}/health").status_code == 200):
            assert time.monotonic() < until, "the fake engine did not come up"
            time.sleep(0.05)
        yield url, front
    finally:
        server.should_exit = True
        thread.join(30)
