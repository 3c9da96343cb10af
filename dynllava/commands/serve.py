"""Serve an exported model with a stock engine: methods choose here, the engine sees fewer tokens.

OpenAI's interface on the loopback interface: /v1/chat/completions, /v1/completions, /v1/models,
/health, /metrics.  A request's model may name one of the methods; the first is the default.
"""

from __future__ import annotations

import argparse
import shlex
from importlib.util import find_spec
from pathlib import Path

from dynllava.errors import UserError

HELP = "serve an exported model: an OpenAI-compatible server on a stock engine"
EXAMPLE = "dynllava serve out/pruned --methods visionzip:keep_ratio=0.11 --port 8000"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", type=Path, help="written by dynllava export")
    parser.add_argument(
        "--methods",
        "--method",
        nargs="+",
        metavar="METHOD",
        help="of class A or B, NAME or NAME:PARAMETER=VALUE,...; the first is the default "
        "(default: the exported one)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--device", help="of tower and projector (default: cuda where it is)")
    parser.add_argument("--threads", type=int, help="CPU threads of tower and projector")
    parser.add_argument(
        "--batch", type=int, default=16, help="most pictures in the tower at a time"
    )
    parser.add_argument(
        "--cache-mb", type=int, default=256, help="rows of pictures kept, in MiB; 0 = none"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine-url", metavar="URL", help="runs already; default: start vLLM")
    engine.add_argument(
        "--engine-model",
        metavar="NAME",
        help="what it calls the model (default: the folder's name)",
    )
    engine.add_argument(
        "--engine-args", default="", metavar="TEXT", help="more of vLLM's own arguments"
    )
    engine.add_argument("--engine-port", type=int, help="default: a free one")
    engine.add_argument("--engine-log", type=Path, metavar="FILE", help="what vLLM prints")
    engine.add_argument(
        "--no-restart", action="store_true", help="leave an engine that died as it is"
    )
    engine.add_argument(
        "--show-engine", action="store_true", help="print vLLM's command line and start nothing"
    )
    limits = parser.add_argument_group("limits of a request")
    limits.add_argument("--max-images", type=int, default=4, help="pictures")
    limits.add_argument("--max-image-mb", type=float, default=20, help="MiB of a picture's file")
    limits.add_argument("--max-pixels", type=int, default=50_000_000, help="pixels of a picture")
    limits.add_argument("--max-requests", type=int, default=256, help="under way at a time")
    limits.add_argument(
        "--max-seconds", type=float, default=600, help="until its answer is complete"
    )


def need_packages() -> None:
    """Refuse to go on without the packages of the extra ``proxy``.

    Raises
    ------
    UserError
        Naming the first that is missing.
    """
    for name in ("fastapi", "httpx", "prometheus_client", "uvicorn"):
        if find_spec(name) is None:
            raise UserError(f"{name} is missing: install the extra proxy, or serve with an engine")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from dynllava.serving.limits import Limits
    from dynllava.serving.selection import Bundle

    limits = Limits(
        images=args.max_images,
        image_bytes=int(args.max_image_mb * 2**20),
        pixels=args.max_pixels,
        requests=args.max_requests,
        seconds=args.max_seconds,
    )
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: accepted is a number from 1")
    for name in ("port", "engine_port"):
        value = getattr(args, name)
        if value is not None and not 1 <= value < 65_536:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {value}: accepted is a number from 1 to 65535")
    if args.cache_mb < 0:
        raise UserError(f"--cache-mb {args.cache_mb}: accepted is a number from 0")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads}: accepted is a number from 1")
    url = args.engine_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise UserError(f"--engine-url {url}: accepted is http://HOST:PORT")
    try:
        more = shlex.split(args.engine_args)
    except ValueError as error:
        raise UserError(f"--engine-args: {error}") from None
    bundle = Bundle.read(args.folder)
    bundle.check(args.methods or [bundle.method])
    need_packages()
    from dynllava.serving.run import Settings, serve

    settings = Settings(
        folder=args.folder,
        methods=args.methods or [],
        host=args.host,
        port=args.port,
        device=args.device,
        threads=args.threads,
        batch=args.batch,
        cache_bytes=args.cache_mb * 2**20,
        engine_url=args.engine_url,
        engine_model=args.engine_model,
        engine_args=more,
        engine_port=args.engine_port,
        engine_log=args.engine_log,
        restart=not args.no_restart,
        show=args.show_engine,
        limits=limits,
    )
    return serve(settings)
