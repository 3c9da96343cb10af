"""Samples per second through lmms-eval on embedded tasks: batch size 1 against a larger one.

Batch sizes take turns within each round; only the generation is timed, not lmms-eval's start.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from dynllava.costs.arguments import parse_integers
from dynllava.evaluation.runner import ModelRunner
from dynllava.methods import learned
from dynllava.methods.presets import MEASURED
from dynllava.output.tables import Table, as_text
from dynllava.records import MethodInfo, RecordStore, RunRecord, TaskInfo
from dynllava.timing.bench import set_threads
from dynllava.timing.bench_report import measured_rounds
from dynllava.timing.speed import process_name
from dynllava.timing.stats import paired_ratios, spread

from .common import parser

TASK = "embedded_attribute"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser("evaluation", __doc__)
    options.add_argument("--model", default="embedded")
    options.add_argument("--methods", nargs="+", default=list(MEASURED))
    options.add_argument("--batch", default="1,16", help="batch sizes; the first is the baseline")
    options.add_argument("--limit", type=int, default=64, help="samples")
    args = options.parse_args(argv)
    set_threads(args.threads)
    batches = parse_integers(args.batch, "--batch")
    runner = ModelRunner(args.model, device=args.device)
    rows = []
    for method in args.methods:
        if learned(method) and not runner.trained:
            continue
        chosen = runner.set_method(method, {})
        seconds: dict[int, list[float]] = {batch: [] for batch in batches}
        for number in range(1 + (args.repeats or 3)):
            for batch in batches:
                elapsed = timed(runner.adapter(batch), args.limit)
                if number:
                    seconds[batch].append(elapsed)
        for batch in batches:
            rates = spread([args.limit / value for value in seconds[batch]])
            ratio = spread(paired_ratios(seconds[batches[0]], seconds[batch]))
            rows.append(
                (
                    f"{method}, batch {batch}",
                    f"{rates.median:.2f} ({rates.iqr:.2f})",
                    f"{ratio.median:.2f} ({ratio.iqr:.2f})",
                )
            )
            RecordStore(args.store).append(
                RunRecord(
                    kind="bench",
                    model=runner.info,
                    method=MethodInfo(method, parameters=chosen.parameters()),
                    task=TaskInfo(f"evaluation-{TASK}-b{batch}", suite="speed", samples=args.limit),
                    measured={
                        "samples_per_second": measured_rounds(
                            [args.limit / value for value in seconds[batch]],
                            [process_name()] * len(seconds[batch]),
                            "sample/s",
                            True,
                        ),
                        "speedup_over_first_batch": measured_rounds(
                            paired_ratios(seconds[batches[0]], seconds[batch]),
                            [process_name()] * len(seconds[batch]),
                            "1",
                            True,
                        ),
                    },
                    environment=runner.environment(),
                )
            )
    title = f"{TASK}, {args.limit} samples, median (inter-quartile range)"
    print(as_text([Table(title, ("", "samples/s", f"over batch {batches[0]}"), rows)]), end="")
    return 0


def timed(adapter: Any, limit: int) -> float:
    """Return the seconds that the adapter spends in ``generate_until``."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from dynllava.embedded import tasks_folder

    spent = 0.0
    generate = adapter.generate_until

    def clocked(requests: Any) -> Any:
        nonlocal spent
        start = time.perf_counter()
        try:
            return generate(requests)
        finally:
            spent += time.perf_counter() - start

    adapter.generate_until = clocked
    simple_evaluate(
        model=adapter,
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False),
        limit=limit,
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    return spent


if __name__ == "__main__":
    sys.exit(main())
