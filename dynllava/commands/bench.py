"""Measure time to first token, time per token and realised savings, interleaved with dense.

Random weights are used for presets: speed does not depend on what the weights are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from dynllava.errors import UserError
from dynllava.methods.presets import MEASURED

HELP = "measure speed against the dense model, and how much of the counted saving is real"
EXAMPLE = "dynllava bench --model mid-size --methods dynamic_llava fastv:k=2 --output-tokens 64"

LARGEST_BATCH = 65_536


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--model", default="mid-size", help="preset, embedded, or a folder")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(MEASURED),
        metavar="NAME[:PARAMETER=VALUE,...]",
        help="what is compared with the dense stock model",
    )
    parser.add_argument("--prompt-tokens", type=int, default=56, help="text tokens")
    parser.add_argument("--batch", default="1", help="batch sizes, e.g. 1,8")
    parser.add_argument("--output-tokens", default="64", help="generated tokens, e.g. 64,512")
    parser.add_argument("--repeats", type=int, default=30, help="rounds that count")
    parser.add_argument(
        "--processes", type=int, default=1, help="run all of it so often, each in its own process"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order within the rounds")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them")
    parser.add_argument("--no-cache", action="store_true", help="also decode without a cache")
    parser.add_argument(
        "--compile", action="store_true", help="time every method with compiled decode steps too"
    )
    parser.add_argument(
        "--stock",
        nargs="+",
        choices=("dynamic", "static"),
        default=["dynamic", "static"],
        help="caches of the dense stock model; ratios of decoding take the faster one",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", help="default: float16 on a GPU, float32 elsewhere")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="what the tables show (records hold both)",
    )
    style = parser.add_mutually_exclusive_group()
    for name in ("json", "csv", "markdown"):
        style.add_argument(
            f"--{name}", dest="style", action="store_const", const=name, default="text"
        )
    campaign = parser.add_argument_group("campaign: all GPU measurements, within a time, resumable")
    campaign.add_argument("--campaign", metavar="DIR", help="folder of its journal and records")
    campaign.add_argument("--minutes", type=float, default=9.0, help="wall-clock time it may take")
    campaign.add_argument("--part", type=int, help="one part only, 1 to 6")
    campaign.add_argument("--shape", default="7b", help="7b, 13b or tiny (a rehearsal on a CPU)")
    parser.add_argument(
        "--store", help="append records to this store (default: nothing is written)"
    )
    parser.add_argument("--no-record", action="store_true", help="append no records to --store")


def run(args: argparse.Namespace) -> int:
    """Measure every batch size and length, print the tables, append records where asked."""
    if args.campaign:
        start = time.time()  # importing torch is part of the time
        from dynllava.timing.campaign import runner

        device = None if args.device == "cpu" else args.device
        return runner.run(
            args.campaign,
            args.minutes,
            shape=args.shape,
            part=args.part,
            device=device,
            start=start,
        )
    if args.processes != 1:
        return _processes(args)
    from dynllava.costs.arguments import LARGEST, check_count, parse_integers
    from dynllava.costs.spec import load_spec
    from dynllava.engine import flash
    from dynllava.engine.attention import check_kernel
    from dynllava.models.loading import check_device, default_dtype, parse_dtype
    from dynllava.output import tables as render
    from dynllava.output import terminal
    from dynllava.records import RecordStore
    from dynllava.records.environment import capture
    from dynllava.timing import bench, bench_report
    from dynllava.timing.bench_model import build_bench
    from dynllava.timing.speed import STATIC, STOCK

    batches = parse_integers(args.batch, "--batch")
    lengths = parse_integers(args.output_tokens, "--output-tokens")
    check_count("--prompt-tokens", args.prompt_tokens, LARGEST["prompt_tokens"])
    for value in lengths:
        check_count("--output-tokens", value, LARGEST["output_tokens"])
    for value in batches:
        check_count("--batch", value, LARGEST_BATCH)
    check_count("--repeats", args.repeats, LARGEST["output_tokens"])
    if args.warmup < 0:
        raise UserError(f"--warmup {args.warmup}: accepted is a number from 0")
    writes = args.store and not args.no_record
    if writes:
        RecordStore(args.store).check_writable()
    check_device(args.device)
    check_kernel(args.attention)
    dtype = args.dtype or default_dtype(args.device)
    if args.attention == flash.NAME:
        flash.check_available(parse_dtype(dtype), args.device)
    spec = load_spec(args.model)
    if spec.family is not None:
        raise UserError(
            f"--model {args.model}: accepted are models of LLaVA-1.5's kind; for other families "
            "python -m dynllava.suites.families times full against stock transformers"
        )
    shape = spec.prompt(args.prompt_tokens)
    bench.set_threads(args.threads)
    subjects = bench.make_subjects(
        lambda: build_bench(args.model, spec, args.device, dtype, args.attention),
        args.methods,
        spec,
        args.compile,
        [{"dynamic": STOCK, "static": STATIC}[name] for name in args.stock],
    )
    rows: list[tuple[Any, ...]] = []
    for batch in batches:
        for outputs in lengths:
            probes = bench.nocache_probes(outputs) if args.no_cache else ()
            plan = bench.Plan(shape, batch, outputs, args.repeats, args.warmup, probes, args.seed)
            results = bench.measure(subjects, plan, _progress)
            rows += bench_report.csv_rows(results)
            if args.style in ("text", "markdown"):
                made = bench_report.tables(results, args.clock)
                text = render.as_text(made, terminal.columns())
                print(render.as_markdown(made) if args.style == "markdown" else text)
            if writes:
                environment = capture(args.device, dtype, args.attention)
                for result in results:
                    RecordStore(args.store).append(bench_report.record(result, environment))
    if args.style == "csv":
        print(render.as_csv(bench_report.COLUMNS, rows), end="")
    elif args.style == "json":
        document = [dict(zip(bench_report.COLUMNS, row, strict=True)) for row in rows]
        print(json.dumps(document, indent=2))
    if writes:
        print(f"records appended to {args.store}", file=sys.stderr)
    return 0


def _processes(args: argparse.Namespace) -> int:
    """Run the same measurement in several processes in turn; their records are pooled later."""
    if args.processes < 1:
        raise UserError(f"--processes {args.processes}: accepted is 1 or more")
    if not args.store or args.no_record or args.style in ("json", "csv"):
        raise UserError(
            "--processes: several processes meet in the records (accepted is --store FOLDER), and "
            "print text or Markdown"
        )
    command = [sys.executable, "-m", "dynllava", "bench", "--methods", *args.methods]
    for name in ("model", "batch", "device", "dtype", "attention", "store", "clock", "threads"):
        value = getattr(args, name)
        command += [] if value is None else [f"--{name}", str(value)]
    command += ["--prompt-tokens", str(args.prompt_tokens), "--repeats", str(args.repeats)]
    command += ["--output-tokens", args.output_tokens, "--warmup", str(args.warmup)]
    command += ["--stock", *args.stock]
    flags = {"--no-cache": args.no_cache, "--compile": args.compile}
    flags["--markdown"] = args.style == "markdown"
    command += [flag for flag, wanted in flags.items() if wanted]
    for number in range(args.processes):
        _progress(f"process {number + 1}/{args.processes}")
        code = _child([*command, "--seed", str(args.seed + number)])
        if code:
            return code
    return 0


def _child(command: list[str]) -> int:
    return subprocess.run(command, check=False).returncode


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
