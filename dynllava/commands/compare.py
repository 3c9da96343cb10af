"""Evaluate methods and budgets on benchmarks: a resumable grid, one record per method and task.

Runs that are in the store already are not made again; a run that failed is made again.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError
from dynllava.methods import learned
from dynllava.methods.presets import COMPARED

if TYPE_CHECKING:
    from dynllava.costs.spec import ModelSpec
    from dynllava.evaluation.sweep import Cell
    from dynllava.records import RunRecord

HELP = "evaluate methods and budgets on benchmarks, resumable"
EXAMPLE = "dynllava compare --methods full fastv dynamic_llava --budgets 96 67 --out runs/embedded"
RESUMES = True
"""Started again, it goes on where it was stopped."""
DEFAULT_STORE = "results/compare"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--pretrained", default="embedded", help="hub name, folder, or embedded (the default)"
    )
    parser.add_argument(
        "--dense",
        metavar="MODEL",
        help="the model that --pretrained was tuned from: dense row and baselines run on it, "
        "dynamic_llava on --pretrained (embedded: known)",
    )
    parser.add_argument(
        "--on-tuned",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="methods that also run on the weights of --pretrained",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="draws of methods that draw (default: 5)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(COMPARED),
        metavar="METHOD",
        help="names, with parameters if wanted: fastv:k=2,keep_ratio=0.25+h2o:heavy=0.25",
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=float,
        default=[],
        metavar="TOKENS",
        help="mean image tokens processed per layer; each method's parameters are solved for it",
    )
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="METHOD.NAME=VALUE",
        help="a parameter of every METHOD in the run; may be repeated",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--suite", help="paper12, understanding, generation, embedded or smoke")
    group.add_argument("--tasks", nargs="+", metavar="TASK", help="benchmarks or lmms-eval tasks")
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders with further task files, such as built generation benchmarks",
    )
    parser.add_argument(
        "--no-judge", action="store_true", help="leave out tasks that a language model scores"
    )
    parser.add_argument("--limit", type=int, help="documents per task (default: all)")
    parser.add_argument("--batch-size", default="auto", help="a number, or auto (the default)")
    parser.add_argument(
        "--prompts",
        choices=("llava", "lmms-eval"),
        default="llava",
        help="prompts of the LLaVA-1.5 protocol (the default), or lmms-eval's own",
    )
    parser.add_argument(
        "--vision-tower",
        metavar="MODEL",
        help="folder or hub name of the vision tower (default: the one that the checkpoint names)",
    )
    parser.add_argument(
        "--conv-template",
        choices=("checkpoint", "vicuna_v1", "plain"),
        help="conversation template (default: the checkpoint's own, else vicuna_v1)",
    )
    parser.add_argument(
        "--image-aspect",
        choices=("pad", "crop", "checkpoint"),
        help="pad to a square (default for LLaVA-1.5: its protocol), centre crop, or as the "
        "checkpoint's image processor does (the only rule of other families)",
    )
    parser.add_argument(
        "--image-backend",
        choices=("pil", "torchvision"),
        default="pil",
        help="what resizes images (default: pil, with which LLaVA was trained)",
    )
    parser.add_argument("--dtype", help="default: float16 on a GPU, float32 elsewhere")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--out", type=Path, default=Path(DEFAULT_STORE), help="record store")
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    parser.add_argument("--json", action="store_true", help="print one JSON row a run, no table")
    parser.add_argument("--launcher", choices=("none", "accelerate"), default="none")
    parser.add_argument("--num-processes", type=int, help="for --launcher accelerate")
    parser.add_argument(
        "--launcher-args", default="", help="further options of accelerate launch, in one text"
    )


def run(args: argparse.Namespace) -> int:
    """Run the grid; 1 if any run failed."""
    if args.launcher == "accelerate":
        from dynllava.evaluation import launch

        return launch.run(sys.argv[1:], args.num_processes, args.launcher_args)
    from dynllava.evaluation import before, weights
    from dynllava.evaluation.grid import cells, check
    from dynllava.evaluation.runner import ModelRunner
    from dynllava.evaluation.summary import as_row, summary
    from dynllava.evaluation.sweep import run_sweep
    from dynllava.output import terminal
    from dynllava.preflight import Wanted, check_model
    from dynllava.records import RecordStore
    from dynllava.tasks.access import without_judges
    from dynllava.tasks.loading import expand

    batch_size = _batch_size(args.batch_size)
    parameters = _parameters(args.param)
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: accepted is a number from 1")
    check([*args.methods, *args.on_tuned], parameters)
    tasks = expand(args.tasks or [args.suite or "embedded"])
    if args.no_judge:
        tasks, judged = without_judges(tasks)
        print(f"left out, scored by a judge: {', '.join(judged) or 'none'}", file=sys.stderr)
        if not tasks:
            raise UserError("--no-judge leaves no task: accepted is at least one without a judge")
    chosen = weights.parts(args.pretrained, args.methods, args.dense, args.on_tuned)
    if not chosen[0].role and any(learned(name) for name in args.methods):
        print(
            f"note: every row runs on the weights of {args.pretrained}, tuned with its predictors; "
            "--dense MODEL puts the dense row and the baselines on dense weights",
            file=sys.stderr,
        )
    for part in chosen:
        check_model(
            Wanted(
                part.source,
                tuple(part.methods),
                batch_size,
                device=args.device,
                dtype=args.dtype,
                attention=args.attention,
                vision_tower=args.vision_tower,
                conv_template=args.conv_template,
                image_aspect=args.image_aspect,
                image_backend=args.image_backend,
            )
        ).require()

    def load(part: weights.Part) -> ModelRunner:
        options = (args.dtype, args.device, args.attention)
        return ModelRunner(
            part.source,
            *options,
            name=args.pretrained,
            weights=part.role,
            conv_template=args.conv_template,
            image_aspect=args.image_aspect,
            vision_tower=args.vision_tower,
            image_backend=args.image_backend,
        )

    def grid(part: weights.Part, spec: ModelSpec) -> list[Cell]:
        found = cells(part.methods, args.budgets, parameters, spec, args.seeds)
        return [weights.label(part, cell) for cell in found]

    def sweep(runner: ModelRunner, grid: list[Cell]) -> list[RunRecord]:
        return run_sweep(
            args.pretrained,
            grid,
            tasks,
            limit=args.limit,
            batch_size=batch_size,
            store=args.out,
            progress=not args.quiet,
            folders=args.data,
            prompts=args.prompts,
            suite=None if args.tasks else args.suite or "embedded",
            runner=runner,
        )

    before.check_request(
        args.tasks or [args.suite or "embedded"], args.budgets, args.limit, args.data, args.out
    )
    before.check_machine(args.device, args.dtype, args.attention)
    for part in chosen:
        before.check_cells(part.source, functools.partial(grid, part), args.vision_tower)
    records = weights.run_parts(chosen, load, grid, sweep)
    if not records:
        # Not the first of several processes: that one prints and returns the outcome.
        return 0
    if args.json:
        print(json.dumps([as_row(record) for record in records], indent=2))
    else:
        print(summary(records, RecordStore(args.out), terminal.columns()))
    print(f"wrote {len(records)} records to {args.out}", file=sys.stderr if args.json else None)
    return int(any(record.status == "failed" for record in records))


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch-size {text}: accepted are auto and numbers from 1")
    return int(text)


def _parameters(items: list[str]) -> dict[str, dict[str, Any]]:
    """Return {method: {name: value}} from ``METHOD.NAME=VALUE`` texts."""
    from dynllava.methods.parameters import convert

    found: dict[str, dict[str, Any]] = {}
    for item in items:
        name, equals, text = item.partition("=")
        method, dot, key = name.partition(".")
        if not (equals and dot and method and key):
            raise UserError(f"--param {item}: accepted is METHOD.NAME=VALUE")
        found.setdefault(method, {})[key] = convert(method, key, text)
    return found
