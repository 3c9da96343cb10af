"""The table at the end of a sweep: one row per method, one column per task."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dynllava.analysis.points.evidence import caveat
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.report.against_dense import against_dense
from dynllava.analysis.report.against_dense import lines as lines_against
from dynllava.analysis.report.beside_accuracy import HEADERS, Beside, beside_accuracy, key
from dynllava.output import terminal
from dynllava.records import RecordStore, RunRecord
from dynllava.records.reading import Stored
from dynllava.tasks.registry import BENCHMARKS

_NUMBER = re.compile(r"-?[0-9.]+(e[+-]?[0-9]+)?")

PAPER_MODELS: dict[tuple[int | None, int | None], str] = {
    (32, 4096): "llava-1.5-7b",
    (40, 5120): "llava-1.5-13b",
}
"""Models of the published tables by decoder layers and hidden size."""

COSTS = (
    ("mean_image_tokens", "image tokens/layer", 1.0),
    ("prefill_flops", "prefill GFLOP", 1e-9),
    ("forced_kv_bytes", "KV KiB, same outputs", 1 / 1024),
    ("kv_bytes", "KV KiB, own outputs", 1 / 1024),
)


def summary(
    records: Sequence[RunRecord], store: RecordStore | None = None, width: int | None = None
) -> str:
    """Return a text table of scores ± standard errors (with n) and mean costs.

    Runs that differ in the seed of their draw alone are one row: the mean, and the lowest and
    highest score.  With the store of their samples, lines below the table say whether each run is
    as good as the dense one to within a point (but for those that are no evidence, which stand in a
    part of their own), and each row shows its flips and agreement
    against the dense row, and the visual gain retained where ``no_image`` ran at layer 0.  Costs
    are means over the tasks of a row.  Failed runs show as ``failed`` and are listed below.  Below
    them stand, for each of the paper's benchmarks, the published score of the dense model (where it
    is one of the paper's) and what keeps an own score from being compared with it.

    Where several tasks score on a scale, ``mean`` is the mean over them in points of 0-100, every
    task counting the same; only rows that have them all get one.

    With a ``width`` the table wraps within so many columns, and the best score of each task is
    marked with ``*``.
    """
    rows: dict[tuple[str, str, str], dict[str, list[RunRecord]]] = {}
    tasks: dict[str, None] = {}
    for record in records:
        assert record.task is not None
        name = (record.method.shown, *identity(record))
        rows.setdefault(name, {}).setdefault(record.task.name, []).append(record)
        tasks[record.task.name] = None
    costs = [item for item in COSTS if any(item[0] in record.counted for record in records)]
    named = ["weights"] if any(record.model.weights for record in records) else []
    beside = _beside(records, store)
    extra = HEADERS if beside else ()
    pooled = _in_the_mean(records)
    means = [f"mean of {len(pooled)}"] if len(pooled) > 1 else []
    table = [["method", *named, *means, *tasks, *extra, *(title for _, title, _ in costs)]]
    for (label, _, weights), found in rows.items():
        cells = [_score(found.get(task, ())) for task in tasks]
        flat = [record for items in found.values() for record in items]
        mean = [_mean(found, pooled)] if means else []
        row = [label, *([weights] if named else []), *mean, *cells]
        if beside:
            figures = beside.get(key(flat[0]))
            row += figures.texts() if figures else ["-"] * len(HEADERS)
        table.append([*row, *(_cost(flat, *item) for item in costs)])
    notes = [caveat(next(iter(found.values()))[0]) for found in rows.values()]
    if width is not None:
        first = 1 + len(named) + len(means)
        _mark_best(table, {first + i: task for i, task in enumerate(tasks)}, records)
        if means:
            _mark_highest(table, 1 + len(named))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    if width is not None and max(map(len, lines)) > width:
        lines = []
        for note in sorted(dict.fromkeys(notes)):
            own = [row for row, said in zip(table[1:], notes, strict=True) if said == note]
            lines += [f"{note}:"] if note else []
            lines += terminal.grid(table[0], own, len(table[0]), width)
    else:
        lines = _apart(lines, notes, "  ".join("-" * size for size in widths))
    lines += [
        f"failed: {record.method.shown}, {record.task.name}: {record.error}"
        for record in records
        if record.status == "failed" and record.task is not None
    ]
    below = [*_against_dense(records, store), *_published(records)]
    if means and len(pooled) < len(tasks):
        below.insert(0, f"{means[0]}: {', '.join(pooled)}; others have no scale of 0 to 100.")
    if width is not None:
        below = [line for text in below for line in _wrapped(text, width)]
    return "\n".join([*lines, *below])


def _wrapped(text: str, width: int) -> list[str]:
    start = text[: len(text) - len(text.lstrip())]
    return terminal.paragraph(text, width, start, f"{start}  ")


def _mark_best(
    table: list[list[str]], columns: dict[int, str], records: Sequence[RunRecord]
) -> None:
    """Put ``*`` behind the best value of each task, where rows differ."""
    better = {record.task.name: record.task.higher_is_better for record in records if record.task}
    for column, task in columns.items():
        cells = [row[column] for row in table[1:]]
        numbers = {cell: float(found[0]) for cell in cells if (found := _NUMBER.match(cell))}
        if len(set(numbers.values())) > 1:
            best = (max if better[task] else min)(numbers.values())
            for row in table[1:]:
                if numbers.get(row[column]) == best:
                    row[column] = row[column].replace(" (", "* (", 1)


def _mark_highest(table: list[list[str]], column: int) -> None:
    numbers = [row[column] for row in table[1:] if _NUMBER.match(row[column])]
    if len(set(numbers)) > 1:
        best = max(numbers, key=float)
        for row in table[1:]:
            row[column] += "*" if row[column] == best else ""


def _in_the_mean(records: Sequence[RunRecord]) -> list[str]:
    """Return the tasks whose scores have a best value, so that points of 0-100 compare."""
    return list(
        dict.fromkeys(
            record.task.name
            for record in records
            if record.task and record.task.scale and record.task.higher_is_better
        )
    )


def _mean(found: dict[str, list[RunRecord]], tasks: Sequence[str]) -> str:
    points = []
    for name in tasks:
        runs = [record for record in found.get(name, ()) if record.status == "ok"]
        if not runs or len(runs) < len(found[name]):
            return "-"
        values = [
            100 * record.scores[record.task.metric or ""].value / (record.task.scale or 1)
            for record in runs
            if record.task
        ]
        points.append(sum(values) / len(values))
    return f"{sum(points) / len(points):.1f}"


def _apart(lines: list[str], notes: list[str], rule: str) -> list[str]:
    """Return a table's lines, rows with a note in a part of their own below it."""
    header, *rows = lines
    found = [header, rule]
    for note in sorted(dict.fromkeys(notes)):
        found += [f"{note}:"] if note else []
        found += [row for row, own in zip(rows, notes, strict=True) if own == note]
    return found


def _against_dense(records: Sequence[RunRecord], store: RecordStore | None) -> list[str]:
    if store is None:
        return []
    good = [Stored(record, store) for record in records if record.status == "ok"]
    return lines_against(against_dense(measured_points(good)))


def _published(records: Sequence[RunRecord]) -> list[str]:
    lines: dict[str, None] = {}
    for record in records:
        if record.task is None or record.task.name not in BENCHMARKS:
            continue
        benchmark = BENCHMARKS[record.task.name]
        model = PAPER_MODELS.get((record.model.layers, record.model.hidden))
        score = benchmark.expected(model) if model else None
        caution = benchmark.caution(record.task.prompts)
        if score is None and not caution:
            continue
        shown = "" if score is None else f"published score of {model}: {score:g}"
        known = caution.removeprefix(f"{benchmark.title}: ")
        text = "; ".join(part for part in (shown, known) if part)
        lines[f"{benchmark.title} ({record.task.name}): {text}"] = None
    return list(lines)


def _beside(records: Sequence[RunRecord], store: RecordStore | None) -> dict[str, Beside]:
    if store is None:
        return {}
    return beside_accuracy(Stored(record, store) for record in records if record.status == "ok")


def as_row(record: RunRecord) -> dict[str, Any]:
    """Return a run as plain values: what ran, its scores, what was counted."""
    return {
        "record": record.record_id,
        "status": record.status,
        "error": record.error,
        "method": record.method.name,
        "label": record.method.label,
        "parameters": record.method.parameters,
        "budget": record.method.budget,
        "weights": record.model.weights,
        "task": record.task.name if record.task else None,
        "metric": record.task.metric if record.task else None,
        "scores": {name: asdict(score) for name, score in record.scores.items()},
        "counted": {name: asdict(item) for name, item in record.counted.items()},
    }


def identity(record: RunRecord) -> tuple[str, str]:
    """Return a run's parameters without the seed of a draw, and its weights."""
    # Records that were read back have their parameters in another order than those just made.
    parameters = json.dumps(record.method.without_seed(), sort_keys=True)
    return parameters, record.model.weights or ""


def _score(records: Sequence[RunRecord]) -> str:
    if not records:
        return "-"
    if any(record.status == "failed" for record in records):
        return "failed"
    scores = [record.scores[record.task.metric or ""] for record in records if record.task]
    values = [score.value for score in scores]
    errors = [score.stderr for score in scores if score.stderr is not None]
    error = f"±{sum(errors) / len(errors):.3g}" if errors else ""
    text = f"{sum(values) / len(values):.4g}{error} (n={scores[0].n})"
    if len(values) == 1:
        return text
    return f"{text} [{min(values):.4g}, {max(values):.4g}; {len(values)} seeds]"


def _cost(records, name: str, title: str, factor: float) -> str:
    values = [record.counted[name].value for record in records if name in record.counted]
    return f"{factor * sum(values) / len(values):.4g}" if values else "-"
