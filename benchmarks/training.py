"""A training step under the masked softmax against plain fine-tuning of the same model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks._cli import parser
from dynllava.environment import capture
from dynllava.profiling.bench import set_threads
from dynllava.profiling.stats import paired_ratios, spread
from dynllava.records import Measured, MethodInfo, ModelInfo, RecordStore, RunRecord, TaskInfo


def main(argv: Sequence[str] | None = None) -> int:
    from dynllava.training.measure import IMAGE_TOKENS, SHAPES, compare_steps, report

    options = parser("training", __doc__)
    options.add_argument("--shape", choices=SHAPES, default="small")
    args = options.parse_args(argv)
    set_threads(args.threads)
    shape = SHAPES[args.shape]
    cuda = args.device.startswith("cuda")
    dtype = "bfloat16" if cuda else "float32"
    steps = compare_steps(shape, args.device, dtype, args.repeats or (30 if cuda else 5), False)
    report(steps, "policy", "plain", shape)
    store = RecordStore(args.store)
    for label, method in (("plain", "full"), ("policy", "dynamic_llava")):
        times = spread(steps.seconds[label])
        ratio = spread(paired_ratios(steps.seconds[label], steps.seconds["plain"]))
        measured = {
            "training_step": Measured(times.median, times.iqr, times.repeats, "s"),
            "time_ratio_training": Measured(ratio.median, ratio.iqr, ratio.repeats, "1"),
        }
        peak = steps.peak_bytes[label]
        if peak is not None:
            measured["peak_memory"] = Measured(peak, None, 1, "byte")
        store.append(
            RunRecord(
                kind="bench",
                model=ModelInfo(
                    f"{args.shape} (random weights)", None, shape.layers, shape.hidden, IMAGE_TOKENS
                ),
                method=MethodInfo(method, label=f"{label} training step"),
                task=TaskInfo(f"training-b{shape.batch}-n{shape.length}", suite="speed"),
                measured=measured,
                environment=capture(args.device, dtype, "sdpa"),
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
