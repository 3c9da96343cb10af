"""Write a plain Hugging Face folder for stock engines, and the method that selects before them."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynllava.output import said
from dynllava.plan.names import FULL

HELP = "write a folder that stock engines load"
EXAMPLE = "dynllava export llava-hf/llava-1.5-7b-hf out/pruned --method fastervlm:keep=64"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("source", help="checkpoint: folder, hub name or embedded")
    parser.add_argument("target", type=Path, help="folder to create")
    parser.add_argument(
        "--method",
        default=FULL,
        help="chooses before layer 0, with parameters if wanted: fastervlm:keep=64 (default: full)",
    )
    parser.add_argument("--dtype", help="of the weights (default: the checkpoint's)")
    parser.add_argument("--vision-tower", metavar="MODEL", help="folder or hub name")
    said.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Export and say where the result is."""
    from dynllava.models.export import METHOD_FILE, export

    folder = export(args.source, args.target, args.method, args.dtype, args.vision_tower)
    note = f"stock LLaVA; {METHOD_FILE}: {args.method}"
    said.wrote(args, [folder], note, method=args.method)
    return 0
