"""Prefill alone (one generated token), batch 1 and 8."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .common import bench_arguments, bench_parser, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(bench_arguments(bench_parser("prefill", __doc__).parse_args(argv), [1]))


if __name__ == "__main__":
    sys.exit(main())
