"""Decode steps with a cache at given lengths: caches filled once, then windows of steps in turn.

A prompt of the large shape takes far longer than the steps behind it.  Here each subject's cache is
filled once a process and length, and each round times a short window of steps of every subject, in
random order; the ratios are taken within the rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from dynllava.costs.spec import LARGE_SIZE
from dynllava.errors import UserError
from dynllava.methods.presets import MEASURED
from dynllava.timing.targets import KEEPS_ALL

from .common import LARGE_PROMPT, MODEL_ON, PROMPT_TOKENS, parser

STOCK_CACHES = ("dynamic", "static")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser("steps", __doc__)
    options.add_argument("--model", help="preset that is timed (default: mid-size, 7B on cuda)")
    options.add_argument("--batch", type=int, default=1, help="rows")
    options.add_argument("--methods", nargs="+", default=[*MEASURED, KEEPS_ALL])
    options.add_argument("--output-tokens", default="64", help="lengths, e.g. 64,1024")
    options.add_argument("--window", type=int, default=16, help="steps that a round times")
    options.add_argument("--compile", action="store_true", help="also compiled decode steps")
    options.add_argument("--stock", nargs="+", choices=STOCK_CACHES, default=list(STOCK_CACHES))
    options.add_argument("--processes", type=int, default=1, help="run so often, each on its own")
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"{options.prog}: error: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    from dynllava.costs.arguments import parse_integers

    for name in ("batch", "window", "processes"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: accepted is a number from 1")
    lengths = parse_integers(args.output_tokens, "--output-tokens")
    rounds = 8 if args.repeats is None else args.repeats
    if rounds < 1:
        raise UserError(f"--repeats {rounds}: accepted is a number from 1")
    if args.processes > 1:
        for number in range(args.processes):
            print(f"process {number + 1}/{args.processes}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "dynllava.suites.steps", "--repeats", str(rounds)]
            for name in ("model", "device", "store", "threads", "batch", "output_tokens", "window"):
                if getattr(args, name) is not None:
                    command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
            command += ["--methods", *args.methods, "--stock", *args.stock]
            command += ["--compile"] if args.compile else []
            done = subprocess.run([*command, "--seed", str(args.seed + number)], check=False)
            if done.returncode:
                return done.returncode
        return 0
    for length in lengths:
        _measure(args, length, rounds)
    return 0


def _measure(args: argparse.Namespace, length: int, rounds: int) -> None:
    """Time the windows behind ``length`` output tokens and append one record a subject."""
    from tqdm import tqdm

    from dynllava.costs.spec import load_spec
    from dynllava.output import tables, terminal
    from dynllava.records import RecordStore
    from dynllava.records.environment import capture
    from dynllava.timing import bench, bench_report, speed
    from dynllava.timing.bench_model import build_bench
    from dynllava.timing.campaign import windows
    from dynllava.timing.speed import STATIC, STOCK

    default, dtype = MODEL_ON[args.device.startswith("cuda")]
    name = args.model or default
    spec = load_spec(name)
    text = PROMPT_TOKENS[args.device.startswith("cuda")]
    prompt = spec.prompt(LARGE_PROMPT if name == LARGE_SIZE.name else text)
    bench.set_threads(args.threads)
    subjects = bench.make_subjects(
        lambda: build_bench(name, spec, args.device, dtype, "sdpa"),
        args.methods,
        spec,
        args.compile,
        [{"dynamic": STOCK, "static": STATIC}[cache] for cache in args.stock],
    )
    plan = bench.Plan(
        prompt, args.batch, length, rounds, seed=args.seed, what="step", window=args.window
    )
    room = length + (rounds + 1) * args.window
    inputs = speed.make_inputs(subjects[0].bench, prompt, args.batch, room)
    ready = [speed.calibrate_keep_rate(subject, inputs, room) for subject in subjects]
    tracks = [
        windows.filled(subject, inputs, length, room, lambda: None)
        for subject in tqdm(ready, desc=f"caches at {length}")
    ]
    windows.run_round(tracks, inputs, plan, -1)
    found = [
        windows.run_round(tracks, inputs, plan, number)
        for number in tqdm(range(rounds), desc="rounds")
    ]
    results = bench.summarise(
        ready, plan, [[times[subject.name] for subject in ready] for times in found]
    )
    store = RecordStore(args.store)
    environment = capture(args.device, dtype, "sdpa")
    for result in results:
        store.append(bench_report.record(result, environment))
    clock = "wall" if args.device.startswith("cuda") else "cpu"
    print(tables.as_text(bench_report.tables(results, clock), terminal.columns()), end="")
    print(f"wrote {len(results)} records to {args.store}")


if __name__ == "__main__":
    sys.exit(main())
