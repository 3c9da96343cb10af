"""Options that the speed measurements share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dynllava.cli import main as dynllava
from dynllava.costs.spec import LARGE_SIZE
from dynllava.methods.presets import MEASURED

STORE = "results/bench"
MODEL_ON = {True: ("llava-1.5-7b", "bfloat16"), False: ("mid-size", "float32")}
"""Whether on CUDA -> what is timed by default, and its dtype."""
PROMPT_TOKENS = {True: 60, False: 56}
"""Whether on CUDA -> text tokens of the prompt."""
LARGE_PROMPT = 60
"""Text tokens of the prompt at the large shape."""


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the shared options."""
    found = argparse.ArgumentParser(
        prog=f"python -m dynllava.suites.{name}", description=description
    )
    found.add_argument("--device", default="cpu", help="cpu or cuda")
    found.add_argument("--repeats", type=int, help="rounds (default: 30 on cuda, 5 on cpu)")
    found.add_argument("--store", default=STORE, help="folder of the record store")
    found.add_argument("--threads", type=int, help="CPU threads")
    return found


def bench_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for measurements that ``dynllava bench`` makes."""
    found = parser(name, description)
    found.add_argument("--model", help="preset that is timed (default: mid-size, 7B on cuda)")
    found.add_argument("--batch", default="1,8", help="batch sizes")
    found.add_argument("--methods", nargs="+", default=list(MEASURED))
    found.add_argument("--processes", type=int, default=1, help="run so often, each on its own")
    return found


def bench_arguments(args: argparse.Namespace, lengths: Sequence[int]) -> list[str]:
    """Return ``dynllava bench`` arguments."""
    cuda = args.device.startswith("cuda")
    repeats = args.repeats or (30 if cuda else 5)
    model, dtype = MODEL_ON[cuda]
    arguments = ["bench", "--model", args.model or model, "--dtype", dtype, "--batch", args.batch]
    prompt = LARGE_PROMPT if args.model == LARGE_SIZE.name else PROMPT_TOKENS[cuda]
    arguments += ["--prompt-tokens", str(prompt), "--methods", *args.methods]
    arguments += ["--device", args.device, "--repeats", str(repeats)]
    arguments += ["--output-tokens", ",".join(map(str, lengths)), "--store", args.store]
    arguments += ["--processes", str(args.processes)]
    return arguments + (["--threads", str(args.threads)] if args.threads else [])


def run(arguments: Sequence[str]) -> int:
    """Run ``dynllava`` and return its exit code."""
    print("dynllava", " ".join(arguments), file=sys.stderr)
    return dynllava(arguments)
