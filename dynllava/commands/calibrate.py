"""Measure which threshold keeps which share, and store it in a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynllava.errors import UserError
from dynllava.output import said

HELP = "calibrate the predictors of a checkpoint for any keep rate"
EXAMPLE = "dynllava calibrate out/final --data held_out.json --image-folder images"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", type=Path, help="folder of the checkpoint; its config.json grows")
    parser.add_argument(
        "--data",
        required=True,
        help="held-out conversations, as dynllava train reads them (or embedded:SEED:COUNT)",
    )
    parser.add_argument("--image-folder", help="image paths are relative to it")
    parser.add_argument("--template", help="prompt template (default: the checkpoint's)")
    parser.add_argument("--image-aspect", help="pad, crop or checkpoint (default: as in training)")
    parser.add_argument("--dtype", default="float32", help="of the weights in memory")
    parser.add_argument(
        "--min-answer-length",
        type=int,
        help="tokens; shorter answers do not count (default: LEN_OT of the checkpoint)",
    )
    said.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print the curves, and store them."""
    from dynllava.training.calibrating import calibrate_folder, store
    from dynllava.training.config import DataConfig

    if not args.model.is_dir():
        raise UserError(f"{args.model}: no folder; accepted is a checkpoint's folder on disk")
    found = calibrate_folder(
        args.model,
        DataConfig(
            args.data,
            args.image_folder,
            template=args.template,
            image_aspect=args.image_aspect,
        ),
        min_answer_length=args.min_answer_length,
        dtype=args.dtype,
        progress=not (args.json or args.quiet),
    )
    file = store(args.model, found)
    if not (args.json or args.quiet):
        for name, curve in found.items():
            print(f"{name} predictor: {curve.samples} samples, {curve.tokens} tokens")
            print("  asked    threshold  realised on the rest")
            for row in zip(curve.rates, curve.thresholds, curve.realised, strict=True):
                print("  {:5.2f} {:12.4f} {:9.3f}".format(*row))
            print(f"  largest distance of realised from asked: {curve.worst():.3f}")
    curves = {name: curve.to_dict() for name, curve in found.items()}
    said.wrote(args, [file], "calibrated", calibrations=curves)
    return 0
