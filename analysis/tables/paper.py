"""The paper's tables 1-17 as data: costs computed, scores published or measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynllava.published import labels
from dynllava.published import tables as published

from .. import style
from ..points import names as benchmarks
from ..points.values import Point, display_unit
from ..report.beside_accuracy import HEADERS, NOTE
from .cells import Cell, TableData, compare, computed
from .cells import published as published_cell
from .specs import SPECS, Spec

KEPT_OUTPUTS = {"lvis_single": 84, "lvis_multi": 181, "sharegpt4v": 763}
"""Output tokens that Dynamic-LLaVA-13B I|T computes in its sparse layers (table 3)."""

_GENERATION_METRICS = ("ppl", "meteor")


def build(number: int, own: Sequence[Point] = (), *, with_ours: bool = False) -> TableData:
    """Return the paper's table ``number``.

    Parameters
    ----------
    number : int
        1 to 17.
    own : sequence of Point
        Own runs; used only if ``with_ours``.
    with_ours : bool
        Append the rows of own runs that have scores of the table's benchmarks.

    Raises
    ------
    UserError
        If there is no such table.
    """
    data = published.table(number)
    if number == 8:
        return _token_statistics(data, with_ours)
    spec = SPECS[number]
    names = [column.name for column in data.columns]
    sources: list[dict[str, Any]] = list(data.rows)
    rows = [[_cell(row, name, spec) for name in names] for row in sources]
    notes = list(spec.notes)
    if with_ours:
        extra = _own_rows(names, spec, own)
        sources += [row for row, _ in extra]
        rows += [cells for _, cells in extra]
        notes += cautions(own, [name for name in names if _is_score(name, spec)])
        if not extra:
            notes.append("No own run has scores of this table's benchmarks or its quantities.")
    if spec.scores:
        scored = [index for index, name in enumerate(names) if _is_score(name, spec)]
        rows = compare(
            rows,
            scored,
            lambda index: sources[index].get("_group") or spec.group(sources[index]),
            lambda index: spec.dense(sources[index]),
            lambda column: not benchmarks.higher_is_better(names[column]),
        )
    return TableData(
        number,
        data.title,
        tuple(_header(data, name) for name in names),
        tuple(tuple(row) for row in rows),
        tuple(names.index(name) for name in spec.exploded),
        (f"Scores and token counts: {data.source}.", *notes),
    )


def cautions(own: Sequence[Point], names: Sequence[str]) -> list[str]:
    """Return what keeps own scores of benchmarks ``names`` from being compared with print."""
    found = (point.scores[name].caution for name in names for point in own if name in point.scores)
    return list(dict.fromkeys(caution for caution in found if caution))


def _cell(row: dict[str, Any], name: str, spec: Spec) -> Cell:
    if name in spec.formulas:
        formula = spec.formulas[name]
        return computed(formula(row), row[name], lambda ratio: spec.reasons(row, name, ratio))
    if name in spec.text:
        value = row[name]
        return Cell(value.text if isinstance(value, published.Printed) else value or "")
    return published_cell(row[name])


def _is_score(name: str, spec: Spec) -> bool:
    return name not in spec.text and (name not in spec.formulas or name == "average")


def _header(data: published.PublishedTable, name: str) -> str:
    title = benchmarks.TITLES.get(name, "")
    if title and name != "average":
        return title
    words = name.replace("_tflops", " TFLOPs").replace("tflops", "TFLOPs")
    words = words.replace("_mem_", " memory ").replace("_", " ")
    words = words.replace("kv ", "KV ").replace("ppl", "PPL").replace("meteor", "METEOR")
    unit = data.unit(name)
    shown = unit in ("s", "ms", "ms/token", "GB", "h") and f" {unit}" not in words
    return f"{words} ({unit})" if shown else words


def _own_rows(
    names: list[str], spec: Spec, own: Sequence[Point]
) -> list[tuple[dict[str, Any], list[Cell]]]:
    """Return rows of own runs: those with a score in one of the table's columns."""
    scored = [name for name in names if _is_score(name, spec)]
    rows = []
    for point in own:
        keyed = "benchmark" in names
        tasks = _generation_tasks(point) if keyed else [""]
        for task in tasks:
            cells = [_own_cell(point, name, task, spec) for name in names]
            if any(cells[names.index(name)].value is not None for name in scored):
                row = {"method": point.curve, "context": "", "_group": ("own", point.model, task)}
                rows.append((row, cells))
    return rows


def _generation_tasks(point: Point) -> list[str]:
    """Return the generation benchmarks of table 3 that a run answered (a task for each metric)."""
    benchmarks_of_table_3 = dict.fromkeys(str(row["benchmark"]) for row in published.table(3))
    return [
        task
        for task in benchmarks_of_table_3
        if any(f"{task}_{metric}" in point.scores for metric in _GENERATION_METRICS)
    ]


def _own_cell(point: Point, name: str, task: str, spec: Spec) -> Cell:
    fixed = {"model": point.model, "method": f"{point.label} (own run)", "benchmark": task}
    if name in fixed:
        return Cell(fixed[name])
    axis = {"prefill_tflops": "prefill_flops", "image_tokens": "image_tokens"}.get(name)
    if axis and axis in point.costs:
        value = point.costs[axis].value
        return Cell(f"{value:.4g}", "text" if name in spec.text else "measured", value)
    if name in spec.text:
        return Cell("")
    metric = task and name in _GENERATION_METRICS
    score = point.scores.get(f"{task}_{name}" if metric else name)
    if score is None:
        return Cell("", "missing", reason="no own run")
    # Scores come in percent; the paper prints METEOR as a share.
    value = score.value / 100 if metric and score.perfect == 100 else score.value
    return Cell(f"{value:.4g}", "measured", value)


def _token_statistics(data: published.PublishedTable, with_ours: bool) -> TableData:
    """Table 8: totals and what remains of them, from the first three rows."""
    names = [column.name for column in data.columns]
    tasks = names[1:]
    given = {row["quantity"]: row for row in data}
    image, text, outputs = (
        {task: int(given[f"{kind}_tokens"][task].value) for task in tasks}
        for kind in ("image", "text", "output")
    )
    rows = []
    for row in data:
        cells = [Cell(row["quantity"])]
        for task in tasks:
            images, out = image[task], outputs[task]
            if labels.cuts_at_its_k(row["quantity"]):
                images = round(images * 0.25)
            elif labels.is_learned(row["quantity"]):
                images, out = int(images * 0.2), KEPT_OUTPUTS.get(task, out)
            elif "total" not in row["quantity"] and "13b" not in row["quantity"]:
                cells.append(published_cell(row[task]))
                continue
            cells.append(
                computed(
                    images + text[task] + out,
                    row[task],
                    lambda ratio: "the printed total is not the sum of the printed parts",
                )
            )
        rows.append(tuple(cells))
    notes = [
        f"Token counts: {data.source}. Totals are computed from its first three rows.",
        "Dynamic-LLaVA: kept output tokens of table 3; short answers keep every token.",
    ]
    if with_ours:
        notes.append("No own run: the table is about the published benchmarks.")
    headers = ("quantity", *(benchmarks.title(task) for task in tasks))
    return TableData(8, data.title, headers, tuple(rows), (), tuple(notes))


def ours(own: Sequence[Point]) -> list[TableData]:
    """Return one table of own runs per model: scores, costs, differences to dense.

    Runs that are no evidence (:attr:`Point.caveat`) follow in a table of their own, beside dense.
    """
    tables = []
    groups = dict.fromkeys((point.model, point.caveat) for point in own if point.scores)
    for model, caveat in sorted(groups, key=lambda group: bool(group[1])):
        points = [
            point
            for point in own
            if point.model == model
            and point.scores
            and (point.caveat == caveat or (point.is_dense and point.weights != "tuned"))
        ]
        points.sort(key=lambda point: (not point.is_dense, point.curve, -_tokens(point)))
        tasks = list(dict.fromkeys(name for point in points for name in point.scores))
        axes = [axis for axis in _AXIS_HEADERS if any(axis in point.costs for point in points)]
        units = {axis: _unit(axis, points) for axis in axes}
        named = any(point.weights for point in points)
        beside = HEADERS if any(point.beside for point in points) else ()
        counts = {task: _samples(points, task) for task in tasks}
        rows = [
            [
                Cell(point.label),
                *([Cell(point.weights)] if named else []),
                *_own_summary(point, units, tasks, counts),
                *(Cell(text) for text in (point.beside or ("-",) * len(beside))[: len(beside)]),
            ]
            for point in points
        ]
        lower = {
            task for point in points for task in tasks
            if task in point.scores and not point.scores[task].higher_is_better
        }  # fmt: skip
        start = 1 + named + len(axes)
        rows = compare(
            rows,
            range(start, start + len(tasks)),
            lambda index: None,
            [point.is_dense for point in points].__getitem__,
            {start + place: task in lower for place, task in enumerate(tasks)}.__getitem__,
        )
        headers = ("method", *(["weights"] if named else []),
                   *(f"{_AXIS_HEADERS[axis]} {units[axis][1]}".strip() for axis in axes),
                   *(benchmarks.title(task) + (f" (n={counts[task]})" if counts[task] else "")
                     for task in tasks), *beside)  # fmt: skip
        notes = ["Own runs, newest record of each configuration; ± standard error, n: samples."]
        if any(score.draws for point in points for score in point.scores.values()):
            notes.append("[lowest, highest] of several draws, whose mean is shown.")
        if beside:
            notes.append(NOTE)
        notes += cautions(points, tasks)
        if not any(point.is_dense for point in points):
            notes.append("No dense run of this model: differences cannot be given.")
        title = f"Own runs of {style.model_name(model)}" + (f", {caveat}" if caveat else "")
        parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
        scores = tuple(range(start, start + len(tasks)))
        others = tuple(index for index in range(1, len(headers)) if index not in scores)
        if others and len(headers) > WIDE:
            parts = (("cost and what is lost", others), ("scores (difference to dense)", scores))
        shown = tuple(map(tuple, rows))
        tables.append(TableData("ours", title, headers, shown, (), tuple(notes), parts))
    return tables


WIDE = 9
"""Columns beyond which a page shows a table as two."""


_AXIS_HEADERS = {
    "image_tokens": "image tokens per layer",
    "prefill_flops": "prefill",
    "decode_flops": "decode",
    "kv_bytes": "KV",
    "ttft": "TTFT",
    "tpot": "TPOT",
}


def _unit(axis: str, points: Sequence[Point]) -> tuple[float, str]:
    largest = max(point.costs[axis].value for point in points if axis in point.costs)
    factor, unit = display_unit(axis, largest)
    return factor, "" if axis == "image_tokens" else unit


def _tokens(point: Point) -> float:
    return point.costs["image_tokens"].value if "image_tokens" in point.costs else 0.0


def _samples(points: Sequence[Point], task: str) -> int | None:
    """Return the number of samples of a task, None if it differs between runs."""
    found = {point.scores[task].n for point in points if task in point.scores}
    return found.pop() if len(found) == 1 else None


def _own_summary(
    point: Point,
    units: dict[str, tuple[float, str]],
    tasks: list[str],
    counts: dict[str, int | None],
) -> list[Cell]:
    cells: list[Cell] = []
    for axis, (factor, _) in units.items():
        cost = point.costs.get(axis)
        if cost is None:
            cells.append(Cell("", "missing", reason="not recorded"))
        else:
            cells.append(Cell(f"{factor * cost.value:.4g}", "measured", cost.value))
    for task in tasks:
        score = point.scores.get(task)
        if score is None:
            cells.append(Cell("", "missing", reason="no run of this task"))
            continue
        error = f" ± {score.stderr:.2g}" if score.stderr is not None else ""
        count = f" (n={score.n})" if score.n and not counts[task] else ""
        shown = f"{score.value:.1f}" if score.value >= 20 else f"{score.value:.3g}"
        spread = f" [{min(score.draws):.1f}, {max(score.draws):.1f}]" if score.draws else ""
        cells.append(Cell(f"{shown}{error}{count}{spread}", "measured", score.value))
    return cells
