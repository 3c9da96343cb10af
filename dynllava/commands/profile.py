"""Count what a model and method cost, without weights: FLOPs, KV memory, estimated times.

Every number says its unit, mode and convention.  Times are roofline estimates.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dynllava.plan.names import LEARNED

if TYPE_CHECKING:
    from dynllava.costs.ledger import Run
    from dynllava.costs.quantities import Options, Quantity
    from dynllava.output.tables import Table

HELP = "count FLOPs and KV memory, estimate times (no weights needed)"
EXAMPLE = "dynllava profile --method fastv:k=2,keep_ratio=0.25 --device a100-80g"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    what = parser.add_argument_group("what is profiled")
    what.add_argument(
        "--model", default="llava-1.5-7b", help="preset, embedded, or a folder with a config.json"
    )
    what.add_argument(
        "--method",
        default=LEARNED,
        help="see 'dynllava methods'; with parameters if wanted: fastv:k=2,keep_ratio=0.25",
    )
    what.add_argument(
        "--method-args", nargs="*", default=[], metavar="NAME=VALUE", help="method parameters"
    )
    what.add_argument("--prompt-tokens", type=int, default=60, help="text tokens of the prompt")
    picture = what.add_mutually_exclusive_group()
    picture.add_argument(
        "--image", metavar="WIDTHxHEIGHT", help="pixels of the picture; default: 336x336"
    )
    picture.add_argument("--no-image", action="store_true", help="text-only prompt")
    what.add_argument("--output-tokens", type=int, default=64, help="generated tokens")
    what.add_argument("--batch", type=int, default=1, help="equal sequences")
    what.add_argument("--dtype", default="float16", help="of weights and KV cache")
    what.add_argument(
        "--realised-output-keep", type=float, help="share of output tokens really kept"
    )
    how = parser.add_argument_group("how it is counted")
    how.add_argument("--convention", default="counted", help="counted, eq13, fastv or pyramiddrop")
    how.add_argument("--unit", choices=("FLOP", "MAC"), default="FLOP")
    how.add_argument("--counter", choices=("closed", "fvcore", "torch"), default="closed")
    how.add_argument("--device", help="estimate times and what fits, e.g. a100-80g")
    how.add_argument("--compute-efficiency", type=float, default=0.6, metavar="SHARE")
    how.add_argument("--bandwidth-efficiency", type=float, default=0.8, metavar="SHARE")
    show = parser.add_argument_group("what is shown")
    show.add_argument("--per-layer", action="store_true", help="add the cost of each layer")
    show.add_argument("--audit", action="store_true", help="add the three-way audit")
    show.add_argument("--grid", action="store_true", help="all methods, 7B and 13B, all modes")
    show.add_argument(
        "--published", action="store_true", help="estimates beside published A100 measurements"
    )
    style = show.add_mutually_exclusive_group()
    for name in ("json", "csv", "markdown"):
        style.add_argument(
            f"--{name}", dest="style", action="store_const", const=name, default="text"
        )
    show.add_argument("--store", help="append a record to this store (default: nothing is written)")
    show.add_argument("--no-record", action="store_true", help="append no record to --store")


def run(args: argparse.Namespace) -> int:
    """Print the profile; append its record where a store is named."""
    from dynllava.costs import report
    from dynllava.costs.grid import COLUMNS, grid
    from dynllava.records import RecordStore

    options = _options(args)
    if args.published:
        from dynllava.costs.against_published import compare

        rows = compare(options.efficiency)
        columns = (*rows[0].__dataclass_fields__, "ratio")
        cells = [(*asdict(row).values(), row.ratio) for row in rows]
        _print(args.style, [report.published_table(rows)], columns, cells)
        return 0
    if args.grid:
        result = grid(args.prompt_tokens, args.output_tokens, args.batch, options)
        _print(args.style, [result.table()], COLUMNS, result.rows)
        return 0
    item = _run_of(args)
    if args.store and not args.no_record:
        RecordStore(args.store).check_writable()
    return _profile(args, item, options)


def _profile(args: argparse.Namespace, item: Run, options: Options) -> int:
    from dynllava.costs import report
    from dynllava.costs.quantities import profile

    numbers = profile(item, options)
    tables = report.tables(item, options, numbers)
    if args.per_layer:
        tables.append(report.layer_table(numbers))
    failed = False
    if args.audit:
        from dynllava.costs.audit import audit
        from dynllava.costs.ledger import modes

        findings = [finding for mode in modes(item) for finding in audit(item, mode)]
        tables += report.audit_tables(item, findings)
        failed = not all(finding.agrees for finding in findings)
    if args.style == "json":
        document = report.describe(item, options)
        document["quantities"] = [asdict(number) for number in numbers]
        print(json.dumps(document, indent=2))
    else:
        _print(args.style, tables, report.CSV_COLUMNS, report.csv_rows(numbers))
    if args.store and not args.no_record:
        _record(args.store, item, numbers, options)
    if failed:
        print("dynllava profile: the counters disagree", file=sys.stderr)
    return int(failed)


def _options(args: argparse.Namespace) -> Options:
    from dynllava.costs import conventions, flops, spec
    from dynllava.costs.devices import load_device
    from dynllava.costs.quantities import Options
    from dynllava.costs.roofline import Efficiency
    from dynllava.errors import UserError

    conventions.convention(args.convention)
    spec.dtype_bytes(args.dtype)
    for name in ("compute", "bandwidth"):
        share = getattr(args, f"{name}_efficiency")
        if not 0 < share <= 1:
            raise UserError(f"--{name}-efficiency {share}: accepted is a share in (0, 1]")
    device = load_device(args.device) if args.device else None
    if device is not None:
        device.flops(args.dtype)
    layer_counter: Any = flops.decoder_layer
    if args.counter != "closed":
        from dynllava.costs.counters import LayerMacs

        layer_counter = LayerMacs(args.counter)
    return Options(
        args.convention,
        args.unit,
        args.dtype,
        device,
        Efficiency(args.compute_efficiency, args.bandwidth_efficiency),
        layer_counter,
    )


def _run_of(args: argparse.Namespace) -> Run:
    from dynllava.costs.arguments import LARGEST, check_count
    from dynllava.costs.ledger import Run
    from dynllava.costs.spec import load_spec
    from dynllava.errors import UserError
    from dynllava.methods.parameters import parse_with

    spec = load_spec(args.model)
    if args.image is not None:
        width, height = _size(args.image)
        spec = spec.for_image(height, width)
    method = parse_with(args.method, args.method_args).create()
    method.plan(spec.dims.layers).check_model(spec.dims.heads, spec.image_tokens)
    for name, most in LARGEST.items():
        check_count(f"--{name.replace('_', '-')}", getattr(args, name), most)
    shape = spec.prompt(args.prompt_tokens, images=0 if args.no_image else 1)
    item = Run(spec, method, shape, args.output_tokens, args.batch)
    rate = args.realised_output_keep
    if rate is None:
        return item
    if not 0 <= rate <= 1:
        raise UserError(f"--realised-output-keep {rate}: accepted is a share in [0, 1]")
    return item.realised(output_keep=rate)


def _size(text: str) -> tuple[int, int]:
    from dynllava.errors import UserError
    from dynllava.images import LONGEST_SIDE

    width, cross, height = text.partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (width, height)]
    if not cross or not all(1 <= side <= LONGEST_SIDE for side in sides):
        raise UserError(
            f"--image {text}: accepted is WIDTHxHEIGHT in pixels, each from 1 to {LONGEST_SIDE}"
        )
    return sides[0], sides[1]


def _print(style: str, tables: list[Table], columns: Any, rows: Any) -> None:
    from dynllava.output import tables as render
    from dynllava.output import terminal

    if style == "json":
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    elif style == "csv":
        print(render.as_csv(columns, rows), end="")
    else:
        text = render.as_text(tables, terminal.columns())
        print(render.as_markdown(tables) if style == "markdown" else text, end="")


def _record(store: str, item: Run, numbers: list[Quantity], options: Options) -> None:
    from dynllava.costs.recording import profile_record
    from dynllava.records import RecordStore
    from dynllava.records.environment import capture

    environment = capture(dtype=options.dtype)
    record = RecordStore(store).append(profile_record(item, numbers, environment))
    print(f"record {record.record_id} appended to {store}", file=sys.stderr)
