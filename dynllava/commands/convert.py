"""Convert a checkpoint between the official and the Hugging Face format."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynllava.output import said

HELP = "convert a checkpoint (official <-> Hugging Face)"
EXAMPLE = "dynllava convert liuhaotian/llava-v1.5-7b out/llava-1.5-7b-hf"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("source", help="checkpoint: folder or hub name")
    parser.add_argument("target", type=Path, help="folder to create")
    parser.add_argument("--to", choices=("hf", "official"), default="hf", help="target format")
    parser.add_argument("--vision-tower", metavar="MODEL", help="folder or hub name")
    said.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Convert and say where the result is."""
    from dynllava.models.checkpoints import convert

    folder = convert(args.source, args.target, args.to, args.vision_tower)
    said.wrote(args, [folder], f"{args.to} format", format=args.to)
    return 0
