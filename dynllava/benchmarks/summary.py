"""The table at the end of a sweep: one row per method, one column per task."""

from __future__ import annotations

from collections.abc import Sequence

from dynllava.records import RunRecord

COSTS = (
    ("mean_image_tokens", "image tokens/layer", 1.0),
    ("prefill_flops", "prefill GFLOP", 1e-9),
    ("kv_bytes", "KV KiB", 1 / 1024),
)


def summary(records: Sequence[RunRecord]) -> str:
    """Return a text table of scores ± standard errors (with n) and mean costs.

    Costs are means over the tasks of a row.  Failed runs show as ``failed`` and are listed below.
    """
    rows: dict[tuple[str, str], dict[str, RunRecord]] = {}
    tasks: dict[str, None] = {}
    for record in records:
        assert record.task is not None
        key = (record.method.label or record.method.name, str(record.method.parameters))
        rows.setdefault(key, {})[record.task.name] = record
        tasks[record.task.name] = None
    costs = [item for item in COSTS if any(item[0] in record.counted for record in records)]
    table = [["method", *tasks, *(title for _, title, _ in costs)]]
    for (label, _), found in rows.items():
        cells = [_score(found.get(task)) for task in tasks]
        table.append([label, *cells, *(_cost(found.values(), *item) for item in costs)])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [
        f"failed: {record.method.label}, {record.task.name}: {record.error}"
        for record in records
        if record.status == "failed" and record.task is not None
    ]
    return "\n".join(lines)


def _score(record: RunRecord | None) -> str:
    if record is None or record.task is None:
        return "-"
    if record.status == "failed":
        return "failed"
    score = record.scores[record.task.metric or ""]
    error = "" if score.stderr is None else f"±{score.stderr:.3g}"
    return f"{score.value:.4g}{error} (n={score.n})"


def _cost(records, name: str, title: str, factor: float) -> str:
    values = [record.counted[name].value for record in records if name in record.counted]
    return f"{factor * sum(values) / len(values):.4g}" if values else "-"
