"""A training step under the masked softmax against plain fine-tuning of the same model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynllava.records import RecordStore
from dynllava.records.environment import capture
from dynllava.timing.bench import set_threads
from dynllava.timing.campaign.extras import training_records

from .common import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    from dynllava.timing.training_step import SHAPES, compare_steps, report

    options = parser("training", __doc__)
    options.add_argument("--shape", choices=SHAPES, default="small")
    args = options.parse_args(argv)
    set_threads(args.threads)
    shape = SHAPES[args.shape]
    cuda = args.device.startswith("cuda")
    dtype = "bfloat16" if cuda else "float32"
    steps = compare_steps(shape, args.device, dtype, args.repeats or (30 if cuda else 5), False)
    report(steps, "policy", "plain", shape)
    report(steps, "predictors", "policy", shape)
    store = RecordStore(args.store)
    for record in training_records(steps, args.shape, capture(args.device, dtype, "sdpa")):
        store.append(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
