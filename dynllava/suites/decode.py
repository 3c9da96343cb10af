"""Decoding with a cache and without one, at growing lengths, batch 1 and 8."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynllava.methods.presets import MEASURED
from dynllava.timing.targets import KEEPS_ALL

from .common import bench_arguments, bench_parser, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = bench_parser("decode", __doc__)
    options.add_argument("--output-tokens", help="generated tokens, e.g. 64,512")
    options.add_argument("--no-cache", action="store_true", help="also calls without a cache")
    options.add_argument("--compile", action="store_true", help="also compiled decode steps")
    options.set_defaults(methods=[*MEASURED, KEEPS_ALL])
    args = options.parse_args(argv)
    cuda = args.device.startswith("cuda")
    given = args.output_tokens or ("512,2000" if cuda else "64,512")
    arguments = bench_arguments(args, [int(item) for item in given.split(",")])
    for name in ("no_cache", "compile"):
        if getattr(args, name):
            arguments.append("--" + name.replace("_", "-"))
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
