"""``dynllava``: finds the commands in :mod:`dynllava.commands` and runs one of them."""

from __future__ import annotations

import argparse
import difflib
import importlib
import pkgutil
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from dynllava import __version__, commands
from dynllava.errors import UserError
from dynllava.output.files import reason

_SAYS_DEFAULT = re.compile(r"default: |\(default|\(the default|by default|the default[,)]")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that names defaults and is no wider than the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap paragraphs; an example stays one line, to be pasted."""
        parts = text.strip().split("\n\n")
        return "\n\n".join(
            part if part.startswith("example:") else textwrap.fill(" ".join(part.split()), width)
            for part in parts
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Add the default where the text does not say it and there is one."""
        text, value = action.help, action.default
        if not text and not action.option_strings:
            return text
        silent = value in (None, False, argparse.SUPPRESS, "") or value == []
        if silent or action.nargs == 0 or _SAYS_DEFAULT.search(text or ""):
            return text
        values = value if isinstance(value, (list, tuple)) else [value]
        shown = " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in values)
        return f"{text or ''} (default: {shown.replace('%', '%%')})".lstrip()


class Parser(argparse.ArgumentParser):
    """A parser whose complaints name the nearest word that it knows."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parse; a word that is left over is the sub-command's to complain about."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            parsers = _sub_parsers(self)
            complaining = parsers.get(getattr(found, "command", ""), self)
            complaining.error(f"unrecognized arguments: {' '.join(rest)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Print the usage and one line, and exit with 2."""
        super().error(message + _hint(message, self))


def _hint(message: str, parser: argparse.ArgumentParser) -> str:
    wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
    if wrong is not None:
        return _nearest(wrong[1], re.findall(r"'([^']*)'", wrong[2]))
    wrong = re.search(r"unrecognized arguments: (--[\w-]+)", message)
    if wrong is None:
        return ""
    return _nearest(wrong[1], list(parser._option_string_actions))


def _sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's sub-commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with one sub-parser per module of :mod:`dynllava.commands`."""
    parser = Parser(
        prog="dynllava", description="Benchmark and analysis toolkit around Dynamic-LLaVA."
    )
    parser.add_argument("--version", action="version", version=f"dynllava {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for info in sorted(pkgutil.iter_modules(commands.__path__), key=lambda item: item.name):
        module = importlib.import_module(f"dynllava.commands.{info.name}")
        sub = subparsers.add_parser(
            info.name.replace("_", "-"),
            help=module.HELP,
            description=module.__doc__,
            epilog=f"example:\n  {getattr(module, 'EXAMPLE', parser.prog)}",
            formatter_class=Help,
        )
        module.configure(sub)
        for action in sub._actions:
            # argparse shows nothing at all, the default neither, of an option without help.
            if action.help is None and action.nargs != 0 and action.default not in (None, False):
                action.help = "%(default)s by default"
        sub.add_argument(
            "--plugin",
            action="append",
            default=[],
            metavar="FILE.py",
            help="a file with methods of your own (see dynllava new-method); may be repeated",
        )
        sub.set_defaults(run=module.run, resumes=getattr(module, "RESUMES", False))
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
    except KeyboardInterrupt:
        more = ": start again to go on" if args.resumes else ""
        print(f"dynllava {args.command}: interrupted{more}", file=sys.stderr)
        return INTERRUPTED
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
