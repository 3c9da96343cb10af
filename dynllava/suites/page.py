"""Write docs/performance.md from the bench records (in short, targets, lengths) and its log."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from dynllava.errors import UserError
from dynllava.output.files import write_text
from dynllava.output.tables import Table, as_markdown
from dynllava.records import Measured, RunRecord, read_tree
from dynllava.records.pooling import pooled
from dynllava.timing import targets
from dynllava.timing.intervals import interval
from dynllava.timing.targets import TARGETS, Target, shown, verdict
from dynllava.timing.words import method_in_words, task_in_words

from .breakdown import TASK as BREAKDOWN
from .breakdown import names as classes
from .headline import COMPILED, headline, value_of

QUANTITIES = (
    "ttft",
    "tpot",
    "tokens_per_second",
    "nocache_call",
    "time_ratio_prefill",
    "realised_share_prefill",
    "time_ratio_decode",
    "time_ratio_decode_late",
    "time_ratio_to_full_decode",
    "time_ratio_to_compiled_decode",
    "realised_share_decode",
    "realised_share_decode_nocache",
    "step",
    "time_ratio_step",
    "time_ratio_to_compiled_step",
    "realised_share_step",
    "peak_memory",
)
FAMILY = "family-"
RUNS = (
    "samples_per_second",
    "speedup_over_first_batch",
    "speedup_over_when_due",
    "training_step",
    "time_ratio_training",
)
LOADING = ("loading_time_ratio", "loading_cpu_time_ratio", "loading_memory_ratio")
MODES = {
    targets.SHARE: "prefill",
    targets.RATIO: "prefill",
    targets.STEP: "decode",
    targets.LATE: "decode",
    targets.TO_FULL: "decode",
    targets.NOCACHE: "decode_nocache",
    targets.AT_LENGTH: "decode",
    targets.COMPILED: "decode",
    targets.STEP_TO_FULL: "decode",
}
"""Quantity of a target -> mode of the breakdown that explains it."""

TITLE = """# Performance

What the speed records under `results/` say, in short (times a dense call takes, medians; below 1 is
faster). Written by `python -m dynllava.suites.page`.

"""

PROTOCOL = """
## How it was measured

Protocol, clocks, intervals and "realised share" are explained in [profiling.md](profiling.md).
Dense is the stock transformers model, timed in the same rounds, decoding with the faster of its
caches (`StaticCache`, which is allocated for the whole run beforehand, or the growing
`DynamicCache`); `full` is our dense path. Compiled methods are compared with eager dense and with
the dense model's compiled steps. Rows measured on a CPU use process CPU time (one thread), which
other work on the machine disturbs less than wall-clock time. A share above 1 means that the dense
baseline lost time elsewhere. "That keeps all" judges every token and drops none: against `full` it
is the cost of judging. Every measurement, and the time of each class of operators, stands in
[the log](LOG).

    python -m dynllava.suites.prefill --processes 8
    python -m dynllava.suites.prefill --model large-size --processes 8 --repeats 8 \\
      --methods full dynamic_llava fastv visionzip pyramiddrop h2o
    python -m dynllava.suites.steps --model large-size --batch 8 --output-tokens 64,1024 \\
      --processes 8
    python -m dynllava.suites.steps --compile --stock static --processes 8
    python -m dynllava.suites.looks --processes 8
    python -m dynllava.suites.decode --processes 8 --no-cache --compile
    python -m dynllava.suites.breakdown --mode prefill
    python -m dynllava.suites.breakdown --mode decode --compile
    python -m dynllava.suites.evaluation
    python -m dynllava.suites.pictures
    python -m dynllava.suites.loading --threads 1
    python -m dynllava.suites.training
    python -m dynllava.suites.families --processes 8
    python -m dynllava.suites.page

Targets at 7B shape need a GPU (LLaVA-1.5-7B, random weights, bfloat16). One command measures them
all in order of worth, within its time, and goes on where it stopped
([profiling.md](profiling.md#a-gpu-campaign)); its records are taken up here:

    python -m dynllava bench --campaign results/campaign-7b --minutes 9

What needs no clock is tested instead. Host synchronisations in a decode step: none, for every
method (counted on CPU by `dynllava.timing.syncs`, `tests/core/test_invariants.py`). KV
allocated: at most 10 % above batch x longest row behind a prompt and 15 % at any length
(`tests/core/test_stream_and_cache.py`); for that some seven entries are copied for each token, at
any length. Compiled steps: the same tokens (`tests/core/test_compiled.py`).
"""

LOG_TITLE = """# Log of the speed measurements

Every row behind [docs/performance.md](PAGE), which explains them. Written by
`python -m dynllava.suites.page`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dynllava.suites.page", description=__doc__)
    parser.add_argument("--store", default="results", help="folder of record stores")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--log", type=Path, help="default: bench/performance_log.md in the store")
    args = parser.parse_args(argv)
    log = args.log or Path(args.store) / "bench" / "performance_log.md"
    try:
        records, problems = read_tree(args.store)
    except UserError as error:
        print(f"summary: {error}", file=sys.stderr)
        return error.exit_code
    for problem in problems:
        print(problem, file=sys.stderr)
    speed = [one for one in records if one.kind == "bench" and one.task and one.status == "ok"]
    everything = latest(pooled(speed))
    families = [one for one in everything if one.task_name.startswith(FAMILY)]
    newest = [one for one in everything if not one.task_name.startswith(FAMILY)]
    tables = [
        target_table(newest),
        length_table(newest, "time_ratio_decode", LENGTH_TITLE, LENGTH_NOTE),
        length_table(newest, "time_ratio_step", STEP_TITLE, STEP_NOTE),
        measured_table(
            "Evaluation through lmms-eval, and training steps",
            newest,
            RUNS,
            "Evaluation: embedded model, one task, samples/s while generating.",
        ),
        family_table(families),
        measured_table(
            "Loading a checkpoint / stock `from_pretrained`",
            newest,
            LOADING,
            "Random weights in bfloat16, loaded into the data type that is named until every "
            "weight was read; one thread. Memory: the process's peak above what it held before.",
        ),
    ]
    logged = [
        breakdown_table(newest),
        measured_table(
            "All speed measurements",
            newest,
            QUANTITIES,
            "Times in ms where no unit stands.",
        ),
    ]
    lines = "\n".join(headline(newest)) or "- Nothing is measured yet."
    protocol = PROTOCOL.replace("LOG", link(args.out, log))
    # A measurement without a row is left out: a table of nothing but names says nothing.
    text = as_markdown([table for table in tables if table.rows])
    write_text(args.out, f"{TITLE}{lines}\n{protocol}\n{text}")
    log_title = LOG_TITLE.replace("PAGE", link(log, args.out))
    write_text(log, f"{log_title}\n{as_markdown(logged)}")
    print(f"wrote {args.out}\nwrote {log}")
    return 0


def link(page: Path, other: Path) -> str:
    """Return the path of ``other`` as a page links to it."""
    return Path(os.path.relpath(other.resolve(), page.resolve().parent)).as_posix()


def latest(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the newest record of every model, task, method and device."""
    found = {}
    for record in records:
        key = (record.model.name, record.task_name, record.method.shown, record.environment.device)
        found[key] = record
    return list(found.values())


def target_table(records: Sequence[RunRecord]) -> Table:
    """Return every target with what was measured."""
    rows = []
    for target in TARGETS:
        rows += target_rows(target, records)
    columns = ("target", "method", "bound", "measured", "reached", "where", "time lost in")
    notes = [
        "measured: median [95 % interval] (rounds, processes). The interval is that of the median "
        "over processes; with one process it is that process's own, and what differs between "
        "processes is not inside: no verdict. Under 6 rounds there is no interval. Time lost: "
        "the class of operators that exceeds its counted cost (or dense, where nothing is saved) "
        "by most, in ms a call (the log has all classes). + = uncommitted changes."
    ]
    return Table("Targets", columns, rows, notes, left=2)


def target_rows(target: Target, records: Sequence[RunRecord]) -> list[list[str]]:
    """Return one row per record that the target covers, else one that says so."""
    head = [target.text, method_in_words(target.method), target.promise]
    rows = []
    for record in records:
        same = record.method.shown == target.method and record.model.name.startswith(target.models)
        found = value_of(record, target.quantity)
        if not same or found is None or not target.covers(record.task_name):
            continue
        says = verdict(target, found)
        kept = says.startswith("yes") or says.endswith("interval: yes)")
        lost = "" if kept else time_lost(target, record, records)
        rows.append([*head, shown(found), says, where(record), lost])
    return rows or [[*head, "not measured", "-", "-", ""]]


def time_lost(target: Target, record: RunRecord, records: Sequence[RunRecord]) -> str:
    """Return the class of operators that costs more than it should by most, from a breakdown."""
    mode = MODES.get(target.quantity)
    if mode is None:
        return ""
    _, batch, *_, outputs = record.task_name.split("-")
    task = f"{BREAKDOWN}-{mode}-{batch}" + ("" if mode == "prefill" else f"-{outputs}")
    found: dict[str, RunRecord] = {}
    for other in records:
        same = other.environment.device == record.environment.device
        if same and other.task_name == task:
            found[other.method.shown] = other
    compiled = target.method.endswith(COMPILED)
    dense = [
        found[name]
        for name in found
        if name.startswith("dense") and name.endswith(COMPILED) == compiled
    ]
    if not dense or target.method not in found:
        return "no breakdown"
    base = min(dense, key=lambda one: sum(one.measured[name].median for name in classes()))
    saves = target.quantity in (targets.SHARE, targets.NOCACHE)
    ratio = record.counted[f"cost_ratio_{mode}"].value if saves else 1.0
    excess = {
        name: found[target.method].measured[name].median - ratio * base.measured[name].median
        for name in classes()
    }
    worst = max(excess, key=excess.__getitem__)
    return f"{worst} {1e3 * excess[worst]:+.1f} ms (in all {1e3 * sum(excess.values()):+.1f})"


LENGTH_TITLE = "Decode step with a cache / dense, by generated tokens"
LENGTH_NOTE = (
    "Mean over the steps up to each length, divided by the stock model's; median [95 % interval]. "
    "Faster from: the shortest measured length from which on every interval lies below 1."
)
STEP_TITLE = "Decode step with a cache / dense, at a number of generated tokens"
STEP_NOTE = "Steps right behind that many generated tokens, divided by the stock model's."


def length_table(records: Sequence[RunRecord], quantity: str, title: str, note: str) -> Table:
    """Return the decode step against dense by output length, and from where on it is faster."""
    groups: dict[tuple[str, ...], dict[int, Measured]] = {}
    for record in records:
        found = value_of(record, quantity)
        if found is None or record.method.label.startswith("dense"):
            continue
        _, batch, _, _, length = record.task_name.split("-")
        method = method_in_words(record.method.shown)
        key = (record.model.name, record.environment.device or "", batch[1:], method)
        groups.setdefault(key, {})[int(length[1:])] = found
    lengths = sorted({length for steps in groups.values() for length in steps})
    rows = []
    for group, steps in sorted(groups.items()):
        cells = [bounded(steps[length]) if length in steps else "-" for length in lengths]
        rows.append([*group, *cells, faster_from(steps)])
    columns = ("model", "device", "batch", "method", *map(str, lengths), "faster from")
    return Table(title, columns, rows, [note], 4)


def family_table(records: Sequence[RunRecord]) -> Table:
    """Return what our loop costs in other families."""
    rows = [
        [
            record.model.name,
            shown(record.measured["time_ratio_prefill"]),
            shown(record.measured["time_ratio_step"]),
            where(record),
        ]
        for record in records
    ]
    note = (
        "`full` against the stock model on the same random weights (8 layers, hidden 512), batch "
        "1, process CPU time; a step is the mean over 32."
    )
    title = "Our loop / stock transformers in other families"
    return Table(title, ("model", "prefill", "step", "where"), rows, [note], 4)


def bounded(item: Measured) -> str:
    """Return a median with its interval, or with its rounds where these are too few."""
    found = interval(item)
    if found is None:
        return f"{item.median:.2f} ({item.repeats} rounds)"
    return f"{item.median:.2f} [{found.low:.2f}, {found.high:.2f}]"


def faster_from(found: dict[int, Measured]) -> str:
    """Return the shortest measured length from which on the step is faster than dense."""
    start = None
    for length in sorted(found, reverse=True):
        around = interval(found[length])
        if around is None or around.high >= 1:
            break
        start = length
    return "-" if start is None else str(start)


def breakdown_table(records: Sequence[RunRecord]) -> Table:
    """Return the time of each class of operators, in ms a call."""
    rows = []
    for record in records:
        if not record.task_name.startswith(BREAKDOWN):
            continue
        cells = [f"{1e3 * record.measured[name].median:.2f}" for name in classes()]
        total = sum(record.measured[name].median for name in classes())
        method = method_in_words(record.method.shown)
        rows.append([method, where(record), *cells, f"{1e3 * total:.2f}"])
    columns = ("method", "where", *classes(), "all")
    notes = [
        "ms a call, medians, under torch's profiler (which slows small operators down): operators' "
        "own time, the rest is Python's."
    ]
    return Table("Where the time goes", columns, rows, notes, left=2)


def where(record: RunRecord) -> str:
    """Return task, device, date and commit of a record."""
    environment = record.environment
    commit = (environment.commit or "no checkout")[:8] + ("+" if environment.dirty else "")
    task = task_in_words(record.task_name)
    return f"{task}; {environment.device}, {environment.date[:10]}, {commit}"


def measured_table(
    title: str, records: Sequence[RunRecord], quantities: Sequence[str], note: str
) -> Table:
    """Return measured quantities, one row a record that has any of them."""
    rows = []
    for record in records:
        cells = [cell(value_of(record, quantity)) for quantity in quantities]
        if any(item != "-" for item in cells):
            method = method_in_words(record.method.shown)
            rows.append([record.model.name, method, where(record), *cells])
    columns = ("model", "method", "where", *[name.replace("_", " ") for name in quantities])
    return Table(title, columns, rows, [f"Median (inter-quartile range). {note}"], left=3)


def cell(item: Measured | None) -> str:
    """Return a quantity with its spread, seconds as ms."""
    if item is None:
        return "-"
    factor, unit = (1e3, " ms") if item.unit == "s" else (1, "")
    spread = "" if item.iqr is None else f" ({factor * item.iqr:.3g})"
    return f"{factor * item.median:.3g}{spread}{unit}"


if __name__ == "__main__":
    sys.exit(main())
