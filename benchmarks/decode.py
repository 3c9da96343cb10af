"""Decoding with a cache and without one, at growing lengths, batch 1 and 8."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks._cli import bench_arguments, parser, run


def main(argv: Sequence[str] | None = None) -> int:
    options = parser("decode", __doc__)
    options.add_argument("--output-tokens", help="generated tokens, e.g. 64,512")
    options.add_argument("--no-cache", action="store_true", help="also calls without a cache")
    args = options.parse_args(argv)
    cuda = args.device.startswith("cuda")
    given = args.output_tokens or ("512,2000" if cuda else "64,512")
    arguments = bench_arguments(args, [int(item) for item in given.split(",")])
    return run(arguments + (["--no-cache"] if args.no_cache else []))


if __name__ == "__main__":
    sys.exit(main())
