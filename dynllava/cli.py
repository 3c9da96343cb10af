"""``dynllava``: finds the commands in :mod:`dynllava.commands` and runs one of them."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from dynllava import __version__, commands
from dynllava.errors import UserError
from dynllava.output.files import reason


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with one sub-parser per module of :mod:`dynllava.commands`."""
    parser = argparse.ArgumentParser(
        prog="dynllava", description="Benchmark and analysis toolkit around Dynamic-LLaVA."
    )
    parser.add_argument("--version", action="version", version=f"dynllava {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for info in sorted(pkgutil.iter_modules(commands.__path__), key=lambda item: item.name):
        module = importlib.import_module(f"dynllava.commands.{info.name}")
        sub = subparsers.add_parser(
            info.name.replace("_", "-"), help=module.HELP, description=module.__doc__
        )
        module.configure(sub)
        sub.add_argument(
            "--plugin",
            action="append",
            default=[],
            metavar="FILE.py",
            help="a file with methods of your own (see dynllava new-method); may be repeated",
        )
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dynllava`` and return its exit code (0 success, 1 failure, 2 wrong usage)."""
    args = build_parser().parse_args(argv)
    try:
        if args.plugin:
            from dynllava.methods.plugins import load_file

            for path in args.plugin:
                load_file(path)
        return int(args.run(args))
    except UserError as error:
        print(f"dynllava {args.command}: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (``| head``) has gone: nothing is left to report.
        sys.stderr.close()
        return 0
    except OSError as error:
        # A file that cannot be read or written, a full disk: nobody's fault but the machine's.
        where = f"{error.filename}: " if error.filename else ""
        print(f"dynllava {args.command}: error: {where}{reason(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _no_memory(str(error))):
            raise
        print(f"dynllava {args.command}: error: out of memory: {reason(error)}", file=sys.stderr)
        return 1


def _no_memory(message: str) -> bool:
    """Return whether torch says that memory ran out (its CPU allocator has no error class)."""
    return "out of memory" in message or "can't allocate memory" in message


if __name__ == "__main__":
    sys.exit(main())
