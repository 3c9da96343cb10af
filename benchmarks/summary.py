"""Write docs/performance.md from the bench records: targets, measured values, all rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks._cli import STORE
from benchmarks._targets import TARGETS, Target
from dynllava.errors import UserError
from dynllava.profiling.render import Table, as_markdown
from dynllava.profiling.speed import CPU_SUFFIX
from dynllava.records import Measured, RecordStore, RunRecord

QUANTITIES = (
    "ttft",
    "tpot",
    "tokens_per_second",
    "nocache_call",
    "time_ratio_prefill",
    "realised_share_prefill",
    "time_ratio_decode",
    "realised_share_decode",
    "realised_share_decode_nocache",
)

INTRODUCTION = """# Performance

Written by `python -m benchmarks.summary` from the records in `results/bench`; protocol, clocks and
"realised share" are explained in [profiling.md](profiling.md). Dense is the stock transformers
model with its `DynamicCache`, timed in the same rounds. Rows measured on a CPU use process CPU
time (one thread), which other work on the machine disturbs less than wall-clock time; the spread
says how much is left. A share above 1 means that the dense baseline lost time elsewhere.

Targets at 7B shape need a GPU; to measure them:

    python -m benchmarks.prefill --device cuda
    python -m benchmarks.decode --device cuda --no-cache
    python -m benchmarks.training --device cuda --shape 7b-8-layers
    python -m benchmarks.evaluation --device cuda
    python -m benchmarks.summary

Host synchronisations in a decode step: none, for every method (counted on CPU by
`dynllava.profiling.syncs`, `tests/profiling/test_bench.py`).
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__)
    parser.add_argument("--store", default=STORE)
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args(argv)
    try:
        records, problems = RecordStore(args.store).read()
    except UserError as error:
        print(f"summary: {error}", file=sys.stderr)
        return error.exit_code
    for problem in problems:
        print(problem, file=sys.stderr)
    newest = latest(record for record in records if record.kind == "bench" and record.task)
    tables = [target_table(newest), measured_table(newest)]
    args.out.write_text(f"{INTRODUCTION}\n{as_markdown(tables)}", encoding="utf-8")
    print(args.out)
    return 0


def latest(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the newest record of every model, task, method and device."""
    found = {}
    for record in records:
        key = (record.model.name, record.task.name, label(record), record.environment.device)
        found[key] = record
    return list(found.values())


def label(record: RunRecord) -> str:
    """Return what the tables call the record's method."""
    return record.method.label or record.method.name


def value_of(record: RunRecord, quantity: str) -> Measured | None:
    """Return a measured quantity, on a CPU in process CPU time."""
    suffix = CPU_SUFFIX if record.environment.device == "cpu" else ""
    return record.measured.get(quantity + suffix) or record.measured.get(quantity)


def target_table(records: Sequence[RunRecord]) -> Table:
    """Return every target with what was measured."""
    rows = []
    for target in TARGETS:
        rows += target_rows(target, records)
    columns = ("target", "method", "bound", "measured", "reached", "where")
    return Table("Targets", columns, rows, left=2)


def target_rows(target: Target, records: Sequence[RunRecord]) -> list[list[str]]:
    """Return one row per record that the target covers, else one that says so."""
    sign = "≥" if target.at_least else "≤"
    head = [target.text, target.method, f"{sign} {target.bound:.2f}"]
    rows = []
    for record in records:
        same = record.method.name == target.method and record.model.name.startswith(target.models)
        found = value_of(record, target.quantity)
        if not same or found is None or not target.covers(record.task.name):
            continue
        half = (found.iqr or 0) / 2
        value = f"{found.median:.2f} ± {half:.2f} (n={found.repeats})"
        rows.append([*head, value, verdict(target, found.median, half), where(record)])
    return rows or [[*head, "not measured", "-", "-"]]


def verdict(target: Target, median: float, half: float) -> str:
    """Return whether a target is reached; half the inter-quartile range may leave it open."""
    if target.reached(median - half) and target.reached(median + half):
        return "yes"
    if target.reached(median - half) or target.reached(median + half):
        median_says = "yes" if target.reached(median) else "no"
        return f"open: bound within the spread (median: {median_says})"
    return "**not reached**"


def where(record: RunRecord) -> str:
    """Return task, device, date and commit of a record."""
    environment = record.environment
    commit = (environment.commit or "no checkout")[:8] + ("+" if environment.dirty else "")
    return f"{record.task.name}, {environment.device}, {environment.date[:10]}, {commit}"


def measured_table(records: Sequence[RunRecord]) -> Table:
    """Return all measured quantities, one row a record."""
    rows = []
    for record in records:
        cells = [cell(value_of(record, quantity)) for quantity in QUANTITIES]
        if any(item != "-" for item in cells):
            rows.append([record.model.name, label(record), where(record), *cells])
    columns = ("model", "method", "where", *[name.replace("_", " ") for name in QUANTITIES])
    notes = [
        "Median (inter-quartile range). Task names: b = batch, t = text, i = image, o = output "
        "tokens; + = uncommitted changes."
    ]
    return Table("All measurements", columns, rows, notes, left=3)


def cell(item: Measured | None) -> str:
    """Return a quantity with its spread, seconds as ms."""
    if item is None:
        return "-"
    factor, unit = (1e3, " ms") if item.unit == "s" else (1, "")
    spread = "" if item.iqr is None else f" ({factor * item.iqr:.3g})"
    return f"{factor * item.median:.3g}{spread}{unit}"


if __name__ == "__main__":
    sys.exit(main())
