"""Say whether a run can start and what it will do, before anything is loaded.

Exit code 0: the run can start; 1: it cannot, and a line says why.  Needs no GPU and reads no
weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dynllava.errors import UserError

RECORDS = "results/bench"
HELP = "say whether a model, its methods and tasks can run here, and how"
EXAMPLE = "dynllava check embedded --methods fastv:k=2 --tasks embedded"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="hub name, folder, or embedded")
    parser.add_argument(
        "--methods", "--method", nargs="+", default=[], metavar="METHOD", help="as for compare"
    )
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="as for compare")
    parser.add_argument("--no-judge", action="store_true", help="as for compare")
    parser.add_argument("--prompts", choices=("llava", "lmms-eval"), default="llava")
    parser.add_argument("--batch-size", default="auto", help="a number, or auto (the default)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="default: 128")
    parser.add_argument("--device", default="auto", help="default: CUDA where there is one")
    parser.add_argument("--dtype", help="default: float16 on a GPU, float32 elsewhere")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--vision-tower", metavar="MODEL", help="folder or hub name")
    parser.add_argument("--conv-template", help="checkpoint, vicuna_v1 or plain")
    parser.add_argument("--image-aspect", help="as for compare: pad, crop or checkpoint")
    parser.add_argument("--image-backend", choices=("pil", "torchvision"), default="pil")
    parser.add_argument(
        "--records",
        metavar="FOLDER",
        help=f"bench records that times are predicted from; default: {RECORDS}",
    )
    parser.add_argument(
        "--question", metavar="TEXT", help="asked about one image; default: What is in the picture?"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 only if the run can start."""
    from dynllava.preflight import Wanted, check_model, check_tasks
    from dynllava.preflight.model import QUESTION
    from dynllava.tasks.access import without_judges
    from dynllava.tasks.loading import expand

    if args.batch_size != "auto" and not (args.batch_size.isdecimal() and int(args.batch_size)):
        raise UserError(f"--batch-size {args.batch_size}: accepted are auto and numbers from 1")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: accepted is a number from 1")
    if args.records and not Path(args.records).is_dir():
        raise UserError(f"--records {args.records}: no such folder")
    found = check_model(
        Wanted(
            args.model,
            tuple(args.methods),
            args.batch_size,
            args.max_new_tokens,
            args.device,
            args.dtype,
            args.attention,
            args.vision_tower,
            args.conv_template,
            args.image_aspect,
            args.image_backend,
            args.question or QUESTION,
            args.records or RECORDS,
        )
    )
    tasks = expand(args.tasks)
    check_tasks(found, without_judges(tasks)[0] if args.no_judge else tasks, args.prompts)
    print(json.dumps(found.to_dict(), indent=2) if args.json else found.text())
    return 0 if found.ready else 1
