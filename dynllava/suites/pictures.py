"""Samples per second where several questions share a picture: prepared ahead, and encoded once.

Three ways take turns within each round: pictures prepared when their batch is due, prepared by a
thread while the model answers the batch before, and that with features kept for the next question.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from dynllava.embedded import load_split
from dynllava.errors import UserError
from dynllava.evaluation.runner import ModelRunner
from dynllava.methods import learned
from dynllava.methods.presets import MEASURED
from dynllava.output.tables import Table, as_text
from dynllava.prompts import Turn, render
from dynllava.records import MethodInfo, RecordStore, RunRecord, TaskInfo
from dynllava.timing.bench import set_threads
from dynllava.timing.bench_report import measured_rounds
from dynllava.timing.speed import process_name
from dynllava.timing.stats import paired_ratios, spread

from .common import parser

WAYS = {"when due": (False, 0), "ahead": (True, 0), "ahead, once": (True, 2**30)}
"""Name -> whether pictures are prepared ahead, and the bytes that features may take."""
BASE = "when due"
NEW_TOKENS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser("pictures", __doc__)
    options.add_argument("--model", default="embedded")
    options.add_argument("--methods", nargs="+", default=list(MEASURED))
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--pictures", type=int, default=16)
    options.add_argument("--questions", type=int, default=4, help="questions on each picture")
    args = options.parse_args(argv)
    set_threads(args.threads)
    runner = ModelRunner(args.model, device=args.device)
    prompts = questions(runner, args.pictures, args.questions)
    batches = in_batches(prompts, args.batch)
    count = args.pictures * args.questions
    rows = []
    for method in args.methods:
        if learned(method) and not runner.trained:
            continue
        chosen = runner.set_method(method, {})
        seconds, cpu, answers = turns(runner, batches, args.repeats or 5)
        if any(given != answers[BASE] for given in answers.values()):
            raise UserError(f"{method}: the answers differ between the ways", 1)
        for way in WAYS:
            rates = [count / value for value in seconds[way]]
            faster = paired_ratios(seconds[BASE], seconds[way])
            less = paired_ratios(cpu[way], cpu[BASE])
            process = [process_name()] * len(rates)
            cells = [spread(values) for values in (rates, faster, less)]
            rows.append((f"{method}, {way}", *(f"{s.median:.2f} ({s.iqr:.2f})" for s in cells)))
            label = f"{method}, {way}"
            task = f"pictures-b{args.batch}-q{args.questions}"
            RecordStore(args.store).append(
                RunRecord(
                    kind="bench",
                    model=runner.info,
                    method=MethodInfo(method, label=label, parameters=chosen.parameters()),
                    task=TaskInfo(task, suite="speed", samples=count),
                    measured={
                        "samples_per_second": measured_rounds(rates, process, "sample/s", True),
                        "speedup_over_when_due": measured_rounds(faster, process, "1", True),
                        "cpu_time_ratio_to_when_due": measured_rounds(less, process, "1", False),
                    },
                    environment=runner.environment(),
                )
            )
    title = (
        f"{args.pictures} pictures, {args.questions} questions on each, same answers: median (IQR)"
    )
    columns = ("", "samples/s", f"over {BASE}", "CPU time / " + BASE)
    print(as_text([Table(title, columns, rows)]), end="")
    print(f"wrote {len(rows)} records to {args.store}")
    return 0


def questions(runner: ModelRunner, pictures: int, each: int) -> list[Any]:
    """Return prompts about embedded pictures, those of one picture far from each other."""
    from lmms_eval_dynllava.prompts import Prompt, Source

    samples = load_split("test", "attribute", limit=pictures)
    template = runner.adapter(1).template
    found: list[Prompt] = []
    for number in range(each):
        text = samples[number % len(samples)]["question"]
        for sample in samples:
            turns = [Turn("user", text, [sample["image"]])]
            shown = render(template, turns, runner.processor)
            source = Source("pictures", "test", len(found))
            found.append(Prompt(source, shown, [sample["image"]], text))
    return found


def in_batches(prompts: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    """Return prompts in batches."""
    return [prompts[start : start + rows] for start in range(0, len(prompts), rows)]


def turns(
    runner: ModelRunner, batches: list[Sequence[Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[str]]]:
    """Return wall and process CPU seconds of each round by way, and the answers.

    The first round is left out.  Features are forgotten between rounds.
    """
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    answers: dict[str, list[str]] = {}
    for number in range(repeats + 1):
        for way, (ahead, limit) in WAYS.items():
            start, used = time.perf_counter(), time.process_time()
            answers[way] = answer(runner, batches, ahead, limit)
            if number:
                seconds[way].append(time.perf_counter() - start)
                cpu[way].append(time.process_time() - used)
    return seconds, cpu, answers


def answer(
    runner: ModelRunner, batches: list[Sequence[Any]], ahead: bool, limit: float
) -> list[str]:
    """Return the answers to all prompts."""
    from lmms_eval_dynllava.batching import prefetched
    from lmms_eval_dynllava.pictures import PictureCache
    from lmms_eval_dynllava.prompts import GenerationArguments

    engine = runner.adapter(len(batches[0])).engine
    engine.pictures = PictureCache(limit)
    if ahead:
        prepared = prefetched(engine.encode, batches)
    else:
        prepared = ((part, engine.encode(part)) for part in batches)
    arguments = GenerationArguments({"max_new_tokens": NEW_TOKENS, "do_sample": False}, [])
    return [
        found.text
        for part, encoded in prepared
        for found in engine.generate(part, encoded, arguments)
    ]


if __name__ == "__main__":
    sys.exit(main())
