"""Where the time of prefill, a decode step or a call without a cache goes, method against dense.

Each subject runs under torch's profiler, in turn; operators are grouped into a few classes.  The
profiler slows small operators down, so what counts is where a difference sits, not the total.
"""

from __future__ import annotations

import functools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dynllava.costs.spec import load_spec
from dynllava.methods.presets import MEASURED
from dynllava.output.tables import Table, as_text
from dynllava.records import Measured, RecordStore, RunRecord, TaskInfo
from dynllava.records.environment import capture
from dynllava.timing import bench, speed
from dynllava.timing.bench_model import build_bench
from dynllava.timing.bench_report import describe
from dynllava.timing.speed import STATIC, STOCK, Inputs, Subject
from dynllava.timing.stats import spread

from .common import MODEL_ON, PROMPT_TOKENS, parser

MODES = ("prefill", "decode", "decode_nocache")
STEPS = 8
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
CLASSES = {
    "matrix products": (),
    "fused attention": ("scaled_dot_product", "flash", "efficient_attention"),
    "softmax": ("softmax", "log_softmax"),
    "copying, allocating": ("copy", "cat", "fill", "zero", "empty", "clone", "constant_pad"),
    "gathering, sorting": ("gather", "index", "scatter", "sort", "argsort", "cumsum", "argmax"),
}
"""Class -> starts of its operators' names."""
OTHERS, HOST = "element-wise, others", "Python, idle"
TASK = "breakdown"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser("breakdown", __doc__)
    options.add_argument("--mode", choices=MODES, default="prefill")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--fed", type=int, default=64, help="output tokens fed before")
    options.add_argument("--methods", nargs="+", default=list(MEASURED))
    options.add_argument("--compile", action="store_true", help="also compiled decode steps")
    args = options.parse_args(argv)
    bench.set_threads(args.threads)
    cuda = args.device.startswith("cuda")
    name, dtype = MODEL_ON[cuda]
    spec = load_spec(name)
    subjects = bench.make_subjects(
        lambda: build_bench(name, spec, args.device, dtype, "sdpa"),
        args.methods,
        spec,
        args.compile and args.mode == "decode",
        stock=(STOCK, STATIC) if args.mode == "decode" else (STOCK,),
    )
    shape, outputs = spec.prompt(PROMPT_TOKENS[cuda]), args.fed + STEPS
    inputs = speed.make_inputs(subjects[0].bench, shape, args.batch, outputs)
    subjects = [speed.calibrate_keep_rate(item, inputs, args.fed) for item in subjects]
    if args.mode == "decode_nocache":
        subjects = [item for item in subjects if not item.evicts(inputs.shape)]
    found: list[list[dict[str, float]]] = [[] for _ in subjects]
    for number in range(1 + (args.repeats or 10)):
        for item, rounds in zip(subjects, found, strict=True):
            call, calls = prepared(item, inputs, args.mode, args.fed)
            times = profiled(call, calls, cuda)
            if number:
                rounds.append(times)
    print(as_text([table(subjects, found, f"{args.mode}, batch {args.batch}")]), end="")
    task = f"{TASK}-{args.mode}-b{args.batch}" + ("" if args.mode == "prefill" else f"-o{args.fed}")
    environment = capture(args.device, dtype, "sdpa")
    for item, rounds in zip(subjects, found, strict=True):
        model, method = describe(item)
        spreads = {key: spread([times[key] for times in rounds]) for key in names()}
        measured = {
            key: Measured(s.median, s.iqr, s.repeats, "s", False) for key, s in spreads.items()
        }
        RecordStore(args.store).append(
            RunRecord(
                kind="bench",
                model=model,
                method=method,
                task=TaskInfo(task, suite="speed"),
                measured=measured,
                environment=environment,
            )
        )
    return 0


def names() -> list[str]:
    """Return the classes in table order."""
    return [*CLASSES, OTHERS, HOST]


def prepared(
    subject: Subject, inputs: Inputs, mode: str, fed: int
) -> tuple[Callable[[], object], int]:
    """Return what is profiled, everything before it done, and how many calls it makes."""
    model = subject.prepare()
    with torch.inference_mode():
        embeds = subject.with_image(model, inputs)
        if mode == "prefill":
            return functools.partial(subject.prefill, model, inputs, embeds, 1), 1
        if mode == "decode_nocache":
            return subject.nocache_call(model, inputs, embeds, fed), 1
        token, cache = subject.prefill(model, inputs, embeds, fed + STEPS)
        token = subject.decode(model, token, cache, inputs.fed, 0, fed)
    steps = functools.partial(subject.decode, model, token, cache, inputs.fed, fed, fed + STEPS)
    return steps, STEPS


def profiled(call: Callable[[], object], calls: int, cuda: bool) -> dict[str, float]:
    """Return seconds a call by class: operators' own time, on the device where there is one.

    The rest of the time that elapsed is Python's, or the device idled.  Needs a quiet machine.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with torch.inference_mode(), profile(activities=activities) as profiler:
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        total = time.perf_counter() - start
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, which its operator counts already
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        times[class_of(event.key)] += own / 1e6 / calls
    times[HOST] = max(0.0, total / calls - sum(times.values()))
    return times


def class_of(operator: str) -> str:
    """Return the class of an operator of the profile, e.g. ``aten::mm``."""
    short = operator.removeprefix("aten::").removeprefix("_")
    if short in PRODUCTS:
        return "matrix products"
    return next((name for name, starts in CLASSES.items() if short.startswith(starts)), OTHERS)


def table(
    subjects: Sequence[Subject], found: Sequence[Sequence[dict[str, float]]], what: str
) -> Table:
    """Return medians in ms, one row a subject."""
    rows = []
    for item, rounds in zip(subjects, found, strict=True):
        cells = [f"{1e3 * spread([times[key] for times in rounds]).median:.2f}" for key in names()]
        total = spread([sum(times.values()) for times in rounds]).median
        rows.append([item.name, *cells, f"{1e3 * total:.2f}"])
    return Table(f"Time by class, {what}, ms a call", ("", *names(), "all"), rows)


if __name__ == "__main__":
    sys.exit(main())
