"""Options that the speed measurements share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dynllava.cli import main as dynllava

STORE = "results/bench"
METHODS = ("full", "dynamic_llava", "fastv", "sparsevlm", "h2o")


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the shared options."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    found.add_argument("--device", default="cpu", help="cpu or cuda")
    found.add_argument("--repeats", type=int, help="rounds (default: 30 on cuda, 5 on cpu)")
    found.add_argument("--store", default=STORE, help="folder of the record store")
    found.add_argument("--threads", type=int, help="CPU threads")
    return found


def bench_arguments(args: argparse.Namespace, lengths: Sequence[int]) -> list[str]:
    """Return ``dynllava bench`` arguments: LLaVA-1.5-7B in bfloat16 on CUDA, else mid-size."""
    cuda = args.device.startswith("cuda")
    repeats = args.repeats or (30 if cuda else 5)
    model = ["--model", "llava-1.5-7b", "--dtype", "bfloat16"] if cuda else ["--model", "mid-size"]
    arguments = ["bench", *model, "--prompt-tokens", "60" if cuda else "56", "--batch", "1,8"]
    arguments += ["--methods", *METHODS, "--device", args.device, "--repeats", str(repeats)]
    arguments += ["--output-tokens", ",".join(map(str, lengths)), "--store", args.store]
    return arguments + (["--threads", str(args.threads)] if args.threads else [])


def run(arguments: Sequence[str]) -> int:
    """Run ``dynllava`` and return its exit code."""
    print("dynllava", " ".join(arguments), file=sys.stderr)
    return dynllava(arguments)
