"""Answer a question about an image and draw what the method kept of it.

Writes a picture of kept patches and dropped output words.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dynllava.errors import UserError

HELP = "answer one question and draw kept patches and dropped words"
EXAMPLE = 'dynllava show photo.jpg "what is on the table?" --pretrained llava-hf/llava-1.5-7b-hf'


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("image", help="picture file")
    parser.add_argument("question")
    parser.add_argument(
        "--pretrained", default="embedded", help="hub name, folder, or embedded (the default)"
    )
    parser.add_argument(
        "--method",
        help="see 'dynllava methods'; with parameters if wanted: fastv:k=2,keep_ratio=0.25 "
        "(default: the checkpoint's)",
    )
    parser.add_argument(
        "--method-args", nargs="*", default=[], metavar="NAME=VALUE", help="method parameters"
    )
    parser.add_argument("--vision-tower", metavar="MODEL", help="folder or hub name")
    parser.add_argument("--conv-template", choices=("checkpoint", "vicuna_v1", "plain"))
    parser.add_argument("--image-aspect", choices=("pad", "crop", "checkpoint"), default="pad")
    parser.add_argument("--out", help="PNG to write (default: IMAGE with -METHOD.png)")
    parser.add_argument("--store", help="also keep the overlay for the report in this folder")
    parser.add_argument("--expected", default="", help="reference answer, shown beside the own one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", help="default: float16 on a GPU, float32 elsewhere")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa")


def run(args: argparse.Namespace) -> int:
    """Print the answer and the paths of what was written."""
    from dynllava.images import open_image

    image = open_image(args.image)
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: accepted is a number from 1")

    from dynllava.analysis.report.overlay import FOLDER, draw
    from dynllava.analysis.report.visualise import look_at
    from dynllava.methods.parameters import parse_with, render
    from dynllava.models.loading import default_dtype, load_model
    from dynllava.output.files import check_output_file, check_output_folder, write_bytes

    if args.method is None and args.method_args:
        raise UserError("--method-args needs --method: accepted is --method NAME --method-args ...")
    given = args.method is not None
    chosen = parse_with(args.method, args.method_args) if given else None
    if chosen is not None:
        chosen.create()
    if args.out:
        check_output_file(args.out, "--out")
    if args.store:
        check_output_folder(args.store, "--store")
    model, processor = load_model(
        args.pretrained,
        method=chosen.name if chosen else None,
        method_args=chosen.parameters if chosen else None,
        dtype=args.dtype or default_dtype(args.device),
        device=args.device,
        attn_implementation=args.attention,
        vision_tower=args.vision_tower,
    )
    name = model.method.name
    label = render(name, chosen.parameters) if chosen else name
    overlay = look_at(
        model,
        processor,
        image,
        args.question,
        label=label,
        model_name=args.pretrained,
        max_new_tokens=args.max_new_tokens,
        conv_template=args.conv_template,
        image_aspect=args.image_aspect,
        expected=args.expected,
    )
    source = Path(args.image)
    drawn = args.out or source.with_name(f"{source.stem}-{name}.png")
    written = [write_bytes(drawn, draw(overlay))]
    if args.store:
        written.append(overlay.write(Path(args.store) / FOLDER / f"{source.stem}-{name}.json"))
    if args.json:
        shown = {key: value for key, value in asdict(overlay).items() if key != "image"}
        print(json.dumps({**shown, "right": overlay.right, "written": list(map(str, written))}))
        return 0
    wanted = f"expected: {overlay.expected}"
    verdict = {
        True: " (right)",
        False: f" (wrong, {wanted})",
        None: f" ({wanted})" if overlay.expected else "",
    }
    print(f"{overlay.answer}{verdict[overlay.right]}")
    dropped = sum(not keep for _, keep in overlay.words)
    print(f"{label}: {overlay.dropped}, {dropped} output tokens dropped")
    for path in written:
        print(f"wrote {path}")
    return 0
