"""What a stock engine made of methods that choose before layer 0: answers, times, faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynllava.records import Measured, RunRecord
from dynllava.records.reading import Stored, latest
from dynllava.timing.intervals import interval

from ..tables.cells import Cell, TableData

FAULTS = "served faults"
NOTE = (
    "Served by a stock engine behind dynllava serve; counts and our loop's answers beside it. "
    "Medians [95 % interval by order statistics, of one process]; ratios are taken within rounds. "
    "Realised: share of the counted saving that became time."
)


def serving_tables(stored: Iterable[Stored]) -> list[TableData]:
    """Return a table of answers and one of times, where records have them."""
    records = [item.record for item in latest(stored) if item.record.kind == "serving"]
    answers = [record for record in records if "agreement" in record.scores]
    timed = [record for record in records if "ttft" in record.measured]
    found = []
    if answers:
        found.append(_answers(answers))
    if timed:
        found.append(_times(timed))
    found += [_faults(record) for record in records if record.task_name == FAULTS]
    return found


def _faults(record: RunRecord) -> TableData:
    counted = [
        (name, _number(item.value, 0), Cell(item.unit)) for name, item in record.counted.items()
    ]
    measured = [
        (name, _number(item.median, 2), Cell(item.unit)) for name, item in record.measured.items()
    ]
    rows = tuple((Cell(name), value, unit) for name, value, unit in (*counted, *measured))
    note = (
        "Requests by kind and HTTP status; then the engine was killed while clients waited: its "
        "model's process (core), and its HTTP server."
    )
    title = f"Served faults ({record.model.name}, {_engine(record)})"
    return TableData("ours", title, ("what", "value", "unit"), rows, (), (note,))


def _answers(records: Sequence[RunRecord]) -> TableData:
    rows = []
    for record in records:
        score = record.scores["agreement"]
        tokens = [
            _number(record.counted[name].value if name in record.counted else None, 1)
            for name in ("prompt_tokens", "engine_prompt_tokens")
        ]
        cells = [Cell(record.model.name), Cell(record.method.shown), Cell(str(score.n or "-"))]
        rows.append((*cells, _number(100 * score.value, 1), *tokens, Cell(_engine(record))))
    headers = (
        "model", "method", "prompts", "equal answers %", "prompt tokens, our loop",
        "prompt tokens, engine", "engine",
    )  # fmt: skip
    return TableData("ours", "Served answers", headers, tuple(rows), (), (NOTE,))


def _times(records: Sequence[RunRecord]) -> TableData:
    rows = []
    for record in sorted(records, key=lambda item: (item.model.name, _width(item))):
        measured = record.measured
        cells = [Cell(record.model.name), Cell(str(_width(record))), Cell(record.method.shown)]
        cells += [
            _cell(measured.get(name), scale, digits)
            for name, scale, digits in (
                ("ttft", 1e3, 1), ("requests", 1, 2), ("ttft ratio", 1, 3),
                ("requests ratio", 1, 3), ("ttft realised share", 100, 0),
                ("requests realised share", 100, 0),
            )
        ]  # fmt: skip
        rows.append((*cells, Cell(_engine(record))))
    headers = (
        "model", "requests at a time", "method", "TTFT ms", "requests/s", "TTFT / full",
        "requests/s / full", "realised, TTFT %", "realised, requests %", "engine",
    )  # fmt: skip
    return TableData("ours", "Served load", headers, tuple(rows), (), (NOTE,))


def _width(record: RunRecord) -> int:
    """Return the concurrency in a task's name, e.g. ``served load, 16 at a time``."""
    words = record.task_name.split()
    return next((int(word) for word in words if word.isdecimal()), 0)


def _engine(record: RunRecord) -> str:
    return record.environment.versions.get("engine", "-")


def _number(value: float | None, digits: int) -> Cell:
    if value is None:
        return Cell("", "missing", reason="not recorded")
    return Cell(f"{value:.{digits}f}", "measured", value)


def _cell(item: Measured | None, scale: float, digits: int) -> Cell:
    if item is None:
        return Cell("-")
    found, middle = interval(item), f"{item.median * scale:.{digits}f}"
    if found is not None:
        middle += f" [{found.low * scale:.{digits}f}, {found.high * scale:.{digits}f}]"
    return Cell(middle, "measured", item.median * scale)
