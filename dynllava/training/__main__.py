"""``python -m dynllava.training CONFIG.yaml [key=value ...]``."""

from __future__ import annotations

import argparse
import sys

from dynllava.errors import UserError

from .arguments import configure
from .run import run


def main() -> int:
    """Parse the command line and run; one line on errors."""
    parser = argparse.ArgumentParser(prog="python -m dynllava.training", description=__doc__)
    configure(parser)
    try:
        return run(parser.parse_args())
    except UserError as error:
        print(f"dynllava.training: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
