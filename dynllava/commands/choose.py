"""From limits to a short list of methods: what fits by count, and what it is known to lose.

Costs are counted for the load that is asked for.  Accuracy comes from published tables and own
records of the same model; it is never carried over from another model or study.
"""

from __future__ import annotations

import argparse
import json

HELP = "which method stays within compute, memory, time and loss"

EXAMPLE = "dynllava choose --batch 8 --max-prefill 0.6x --max-kv 1GB --max-loss 1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    load = parser.add_argument_group("what is run")
    load.add_argument(
        "--model", default="llava-1.5-7b", help="preset, embedded, or a folder with a config.json"
    )
    load.add_argument("--batch", type=int, default=1, help="equal sequences")
    load.add_argument("--prompt-tokens", type=int, default=60, help="text tokens of a prompt")
    load.add_argument(
        "--image", metavar="WxH", help="picture size in pixels; LLaVA-1.5 makes 576 tokens of any"
    )
    load.add_argument(
        "--outputs",
        type=int,
        default=16,
        metavar="T",
        help="generated tokens (the benchmarks' answers are about as long as the default)",
    )
    load.add_argument("--dtype", default="float16", help="of weights and KV cache")
    load.add_argument("--device", help="for time limits, e.g. a100-80g")
    limits = parser.add_argument_group("limits (any of them)")
    limits.add_argument(
        "--max-prefill", metavar="C", help="compute of the prefill: 0.6x of dense, or 3TFLOP"
    )
    limits.add_argument(
        "--max-kv", metavar="SIZE", help="KV cache at the end, whole batch: 1GB (10^9) or 1GiB"
    )
    limits.add_argument("--max-ttft", metavar="TIME", help="time to first token: 80ms")
    limits.add_argument("--max-tpot", metavar="TIME", help="time per output token: 30ms")
    limits.add_argument(
        "--max-loss", type=float, metavar="P", help="points of 0-100 scores, mean over the tasks"
    )
    limits.add_argument(
        "--max-worst-loss", type=float, metavar="P", help="points that any one task may lose"
    )
    known = parser.add_argument_group("what is believed")
    known.add_argument("--tasks", default="", help="only these, e.g. gqa,pope,mme")
    known.add_argument("--servable", default="", metavar="A,B", help="only these classes (A to D)")
    known.add_argument("--source", choices=("published", "own", "both"), default="both")
    known.add_argument("--results", default="results", help="folder of own run records")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list; 0 also where nothing qualifies (the answer says so)."""
    from dynllava.analysis.choose import choose
    from dynllava.analysis.choose.text import document, text
    from dynllava.output import terminal

    answer = choose(
        args.model,
        batch=args.batch,
        prompt_tokens=args.prompt_tokens,
        outputs=args.outputs,
        image=args.image,
        max_prefill=args.max_prefill,
        max_kv=args.max_kv,
        max_ttft=args.max_ttft,
        max_tpot=args.max_tpot,
        device=args.device,
        max_loss=args.max_loss,
        max_worst_loss=args.max_worst_loss,
        tasks=filter(None, args.tasks.split(",")),
        servable=filter(None, args.servable.split(",")),
        source=args.source,
        results=args.results,
        dtype=args.dtype,
    )
    print(json.dumps(document(answer), indent=2) if args.json else text(answer, terminal.columns()),
          end="" if not args.json else "\n")  # fmt: skip
    return 0
