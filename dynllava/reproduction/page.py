"""What ``dynllava reproduce`` prints before and after a run."""

from __future__ import annotations

from collections.abc import Sequence

from dynllava.costs.spec import PRESETS
from dynllava.errors import UserError
from dynllava.models.layouts import inspect
from dynllava.models.supported import published_licence
from dynllava.preflight import Preflight, check_tasks
from dynllava.preflight.resources import shown
from dynllava.published.rows import ALIASES, HUB, TOWER, Row, rows
from dynllava.tasks.registry import BENCHMARKS

from .expected import allowed
from .steps import ASPECT, INSTRUCTIONS, PROMPTS, TEMPLATE, Wanted, original, steps, tasks_of
from .verdict import Outcome, overall

_UNKNOWN = "no licence was found: see its page before you use it"


def listing() -> list[str]:
    """Return one line a row: its name and what it ran, or why it cannot be run here."""
    other = {name: short for short, name in ALIASES.items()}
    width = max(map(len, rows()))
    lines = []
    for row in rows().values():
        ran = f"refused: {row.refused}" if row.refused else row.method
        ran += f" at {row.budget:g} image tokens" if row.budget is not None else ""
        also = f"  (also {other[row.name]})" if row.name in other else ""
        lines.append(f"{row.name:{width}}  {ran}{also}")
    return lines


def plan(row: Row, wanted: Wanted) -> list[str]:
    """Return protocol, downloads, expected values and commands of a row, a line each."""
    made = steps(row, wanted)
    tasks = tasks_of(row, wanted)
    lines = [f"{row.name}: {row.label}", f"source     {row.source}"]
    lines.append(
        f"protocol   template {TEMPLATE}, images {ASPECT} (PIL), {wanted.dtype}, greedy, prompts "
        f"of the {PROMPTS} protocol"
    )
    lines += [f"weights    {line}" for line in _weights(row, wanted)]
    lines += [f"data       {line}" for line in _data(tasks, wanted)]
    for task in tasks:
        known = BENCHMARKS.get(task)
        where = f"{known.metric}, {known.split}" if known else "built from public files"
        says = allowed(row, task, wanted.margin)
        lines.append(f"expected   {task} {row.values[task].text} ({where}): {says}")
    lines.append("commands")
    lines += [f"  {step.typed()}  # {step.purpose}" for step in made]
    return lines


def result(row: Row, found: Sequence[Outcome]) -> list[str]:
    """Return the verdict of each benchmark and of the row."""
    lines = []
    for item in found:
        verdict = f"{item.verdict}: " if item.verdict else ""
        lines.append(f"{item.task}: {verdict}{item.text}")
        if item.caution:
            lines.append(f"  note: {item.caution}")
    return [*lines, f"{row.name}: {overall(found)}"]


def _weights(row: Row, wanted: Wanted) -> list[str]:
    if wanted.checkpoint is not None:
        return [f"{wanted.checkpoint} (yours)"]
    name = HUB[row.base]
    licence = published_licence(name) or _UNKNOWN
    lines = [f"{name}, {_size(name, row.base)}; {licence}"]
    if original(row):
        lines.append(f"{TOWER}, its vision tower, about 0.6 GiB in float16")
    if row.training is not None:
        lines.append(
            f"trained from them on {INSTRUCTIONS} and its images (liuhaotian/LLaVA-Instruct-150K; "
            "sizes not known here), so a run repeats the training too; --checkpoint takes weights "
            "that are there"
        )
    return lines


def _size(name: str, base: str) -> str:
    """Return what is there of a hub model, else its size by closed form."""
    try:
        checkpoint = inspect(name)
    except UserError:
        checkpoint = None
    if checkpoint is not None and checkpoint.weights is not None and not checkpoint.downloads:
        return f"{shown(checkpoint.weights.bytes)} in the hub's cache"
    preset = PRESETS[f"llava-1.5-{base.rpartition('-')[2]}"]
    return f"to be downloaded, about {shown(preset.weight_bytes('float16'))} in float16"


def _data(tasks: Sequence[str], wanted: Wanted) -> list[str]:
    if wanted.data:
        return [f"{', '.join(map(str, wanted.data))} (yours)"]
    found = Preflight()
    check_tasks(found, [task for task in tasks if task in BENCHMARKS], PROMPTS)
    lines = [item.text for item in found.findings]
    if lines:
        lines.append("sizes and terms of data sets: their pages at the hub")
    if any(task not in BENCHMARKS for task in tasks):
        lines.append(
            f"annotations of LVIS-Instruct4V or ShareGPT4V, their images, and {INSTRUCTIONS}: "
            "docs/benchmarks.md (sizes not known here)"
        )
    return lines
