"""``dynllava serve``: from its settings to a running server."""

from __future__ import annotations

import shlex
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import uvicorn

from dynllava.errors import UserError
from dynllava.models.loading import check_device
from dynllava.output.files import reason

from .app import Front, make_app, make_front
from .engine import HOST, TEMPLATE_FILE, Engine, check_installed, command, free_port, write_template
from .limits import Limits
from .metrics import Metrics
from .prompt import TEMPLATE
from .selection import Bundle, ImageSide, Selector


@dataclass
class Settings:
    """What the command line says; see ``dynllava serve --help``."""

    folder: Path
    methods: list[str] = field(default_factory=list)
    host: str = HOST
    port: int = 8000
    device: str | None = None
    threads: int | None = None
    batch: int = 16
    cache_bytes: int = 2**28
    engine_url: str | None = None
    engine_model: str | None = None
    engine_args: list[str] = field(default_factory=list)
    engine_port: int | None = None
    engine_log: Path | None = None
    restart: bool = True
    show: bool = False
    limits: Limits = field(default_factory=Limits)


def serve(settings: Settings) -> int:
    """Serve until interrupted.

    Raises
    ------
    UserError
        If the folder, a method or an option is not accepted, or vLLM is not installed.
    """
    bundle = Bundle.read(settings.folder)
    port = settings.engine_port or free_port()
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    cpu = not torch.cuda.is_available()
    if settings.show:
        template = Path(TEMPLATE_FILE)
        print(f"printf '%s' {shlex.quote(TEMPLATE)} > {template}")
        print(shlex.join(command(bundle, port, template, cpu, settings.engine_args)))
        return 0
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    url = settings.engine_url
    if url is None:
        check_installed()
    side = ImageSide(bundle, device, settings.limits)
    texts = settings.methods or [bundle.method]
    selectors = {text: Selector(side, text) for text in dict.fromkeys(texts)}
    metrics = Metrics()
    listening = listen(settings.host, settings.port)
    if url is None:
        scratch = Path(tempfile.mkdtemp(prefix="dynllava-serve-"))
        words = command(bundle, port, write_template(scratch), cpu, settings.engine_args)
        log = settings.engine_log or scratch / "engine.log"
        engine = Engine(metrics, f"http://{HOST}:{port}", words, log, settings.restart, scratch)
        print(f"engine: {shlex.join(words)}\nits output: {log}", file=sys.stderr)
    else:
        engine = Engine(metrics, url)
    name = settings.engine_model or bundle.folder.name
    front = make_front(
        selectors, engine, name, settings.limits, metrics, settings.cache_bytes, settings.batch
    )
    shown = ", ".join(f"{text} (class {item.served})" for text, item in selectors.items())
    print(f"serving {shown} on http://{settings.host}:{settings.port}", file=sys.stderr)
    _run(front, listening)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    UserError
        If the address cannot be had.
    """
    try:
        return socket.create_server((host, port), backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({reason(error)})", 1) from None


def _run(front: Front, listening: socket.socket) -> None:
    # Clients keep idle connections for a while: one that is closed under them is a lost request.
    config = uvicorn.Config(
        make_app(front), log_level="warning", timeout_keep_alive=75, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listening])
