"""Write a method of your own: a file that works as it is, and its test."""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path

from dynllava.errors import UserError
from dynllava.output import said

HELP = "write a file with a method of your own, ready to be changed"
EXAMPLE = "dynllava new-method my_method"

METHOD = '''"""{title}: say here which tokens stay, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.methods.base import Method, check_fraction, check_layer, share
from dynllava.plan import Attention, Cut, Plan, Share

if TYPE_CHECKING:
    import torch
    from dynllava.engine.view import View


@dataclass(frozen=True)
class {cls}(Method):
    """Keeps the image tokens that the last prompt token attends to most.

    Parameters
    ----------
    layer : int
        First decoder layer (from 0) that sees the reduced set; at least 1.
    keep_ratio : float
        Share of the image tokens kept.  ``share`` marks what a budget may set.
    """

    name: ClassVar[str] = "{name}"
    summary: ClassVar[str] = "image tokens the last prompt token attends to"
    source: ClassVar[str] = "this file"

    layer: int = 2
    keep_ratio: float = share(0.5)

    def plan(self, layers: int) -> Plan:
        """Say where tokens leave, how many stay and what decides."""
        check_layer("layer", self.layer, layers, first=1)
        check_fraction("keep_ratio", self.keep_ratio)
        return Plan((Cut(self.layer, Share(self.keep_ratio), by=Attention("last_prompt")),))

    def score(self, view: View) -> torch.Tensor:
        """Return [B, L]: the highest scores stay (other than image tokens are ignored)."""
        return view.attention[:, :, 0].mean(1)
'''

TEST = '''"""The method keeps the library's invariants, and its budget is one it can meet."""

from pathlib import Path

from dynllava.conformance.invariants import check_method
from dynllava.methods.plugins import load_file

METHODS = load_file(Path(__file__).with_name("{name}.py"))


def test_every_invariant_holds():
    for cls in METHODS:
        broken = [item for item in check_method(cls()) if item.status == "failed"]
        assert not broken, broken
'''


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("name", help="name of the method, as it will be typed: my_method")
    parser.add_argument("--out", type=Path, default=Path(), help="folder (default: this one)")
    said.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Write both files and print what to type next."""
    from dynllava.methods import names

    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name) or keyword.iskeyword(args.name):
        raise UserError(
            f"name {args.name!r}: accepted are lower-case letters, digits and underscores, a "
            "letter first"
        )
    if args.name in names():
        raise UserError(f"name {args.name!r} is taken by a method of dynllava")
    title = args.name.replace("_", " ").capitalize()
    values = {"name": args.name, "title": title, "cls": title.title().replace(" ", "")}
    files = {
        args.out / f"{args.name}.py": METHOD.format(**values),
        args.out / f"test_{args.name}.py": TEST.format(**values),
    }
    for path in files:
        if path.exists():
            raise UserError(f"{path} is there already: accepted is a new name or another --out")
    if not args.out.is_dir():
        raise UserError(f"--out {args.out}: no such folder")
    for path, text in files.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})", 1) from None
    file = args.out / f"{args.name}.py"
    following = [
        f"dynllava check-method {file}",
        f"dynllava compare --plugin {file} --methods full {args.name} --budgets 67",
    ]
    said.wrote(args, list(files), next=following)
    if not (args.json or args.quiet):
        print(f"next: {following[0]}\n      {following[1]}")
    return 0
