"""Write the results tables of README, docs/embedded.md and docs/methods.md from ``results``.

``python tools/readme_results.py`` rewrites the sections between their markers; ``--check`` only
says whether they are up to date (exit code 1 if not).  Runs that are evidence about nothing stand
in docs/embedded.md alone.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from dynllava.analysis.elastic.tables import elastic_tables
from dynllava.analysis.points.evidence import CAVEAT, caveat
from dynllava.analysis.report.across import across
from dynllava.analysis.report.beside_accuracy import beside_accuracy, key
from dynllava.analysis.report.serving import serving_tables
from dynllava.analysis.tables.render import markdown_caption, render

from dynllava.methods.titles import Named, titles
from dynllava.records import RunRecord
from dynllava.records.reading import Stored, latest, read_stores

ROOT = Path(__file__).parents[1]
MARKERS = r"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)"
RESULTS, POSITIONS = ROOT / "results" / "embedded", ROOT / "results" / "positions"
ELASTIC = ROOT / "results" / "elastic"
SERVING = ROOT / "results" / "serving"
SHORT = ("attribute", "counting", "digit", "existence", "multiple_choice", "relation")
TASKS = tuple(f"embedded_{family}" for family in (*SHORT, "caption", "caption_ppl"))
#: Order of the methods; within one the budgets fall, the ablation on tuned weights comes last.
ORDER = (
    "full", "dynamic_llava", "fastv", "sparsevlm", "pyramiddrop", "divprune", "h2o", "downsample",
    "pool", "uniform", "random", "no_image",
)  # fmt: skip
HEADERS = (
    "method, budget", "weights", "image tokens per layer", "prefill GFLOP",
    "KV MiB, same outputs", "QA %", "lost / won %", "agrees %", "visual gain retained %",
    "caption objects F1 %", "caption PPL", "commit",
)  # fmt: skip
INTRO = (
    "The embedded model (no evidence about LLaVA-1.5), {samples} samples a task, {device}, "
    "{dtype}, {date}. *Dense* weights are the model before its predictors were trained; training "
    "them also tunes the decoder, so only `dynamic_llava` runs on the *tuned* weights, and the "
    "last rows show what others do there. Budget: mean image tokens processed per layer (dense: "
    "144; for h2o: KV entries). Prefill is counted, tower and a method's own overhead included; "
    "KV is what is stored after the same reference caption. QA is the mean of six short families, "
    "exact match; *lost / won*, *agrees* and *visual gain retained* (with its 95 % interval) "
    "compare its answers with the dense row's ([docs/analysis.md](docs/analysis.md)). random: "
    "mean of five seeds [lowest, highest]."
)

APART = (
    f"**{CAVEAT[0].upper()}{CAVEAT[1:]}.** Methods whose choice depends on the class token, run "
    "like those of the README's table and with its columns: this shows that they run at equal "
    "budgets and what they cost, not how good they are. Adaptive forms have no budget: their image "
    "tokens are the realised mean of the caption task."
)

Runs = dict[str, list[Stored]]


def groups() -> dict[str, Runs]:
    """Return {method at a budget on its weights: {task: its seeds}} of complete sets of tasks."""
    found: dict[str, Runs] = defaultdict(lambda: defaultdict(list))
    for item in latest(read_stores(RESULTS)[0]):
        record = item.record
        if record.kind == "evaluation" and record.task is not None:
            found[key(record)][record.task.name].append(item)
    return {name: runs for name, runs in found.items() if all(task in runs for task in TASKS)}


def order(runs: Runs) -> tuple[bool, int, float]:
    """Return where a row stands."""
    record = runs[TASKS[0]][0].record
    name = record.method.name
    ablation = record.model.weights == "tuned" and name != "dynamic_llava"
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return ablation, place, -(record.method.budget or 0)


def values(runs: Runs, task: str) -> list[float]:
    """Return the scores of a task's seeds."""
    records = [item.record for item in runs[task]]
    return [record.scores[record.task.metric or ""].value for record in records if record.task]


def spread(found: Sequence[float], text: str) -> str:
    """Return the mean, and the range where there are several."""
    mean = text.format(sum(found) / len(found))
    if len(found) == 1:
        return mean
    return f"{mean} [{text.format(min(found))}, {text.format(max(found))}]"


def mean(records: Sequence[RunRecord], name: str) -> float:
    """Return the mean of a counted quantity."""
    return sum(record.counted[name].value for record in records) / len(records)


def row(runs: Runs, beside: Sequence[str]) -> str:
    """Return one line of the table."""
    short = [values(runs, f"embedded_{family}") for family in SHORT]
    quality = [100 * sum(seed) / len(seed) for seed in zip(*short, strict=True)]
    captions = [item.record for item in runs["embedded_caption"]]
    forced = [item.record for item in runs["embedded_caption_ppl"]]
    record = captions[0]
    method = record.method
    budget = "" if method.budget is None else f" {method.budget:g}"
    title = titles([Named(method.name, method.parameters, method.budget)])[0]
    commits = sorted({(item.environment.commit or "unknown")[:8] for item in captions + forced})
    cells = (
        f"{title}{budget}",
        record.model.weights or "",
        f"{mean(captions, 'mean_image_tokens'):.0f}",
        f"{mean(captions, 'prefill_flops') / 1e9:.3f}",
        f"{mean(forced, 'forced_kv_bytes') / 2**20:.2f}",
        spread(quality, "{:.1f}"),
        *beside,
        spread([100 * value for value in values(runs, "embedded_caption")], "{:.1f}"),
        spread(values(runs, "embedded_caption_ppl"), "{:.3f}"),
        ", ".join(commits),
    )
    return f"| {' | '.join(cells)} |"


def sections() -> dict[tuple[str, str], str]:
    """Return the text of each page's marked section."""
    found = groups()
    short = [item for runs in found.values() for name in TASKS[: len(SHORT)] for item in runs[name]]
    beside = {name: figures.texts() for name, figures in beside_accuracy(short).items()}
    names = sorted(found, key=lambda name: order(found[name]))
    rows = {name: row(found[name], beside.get(name, ("-",) * 3)) for name in names}
    apart = {name for name in names if caveat(found[name][TASKS[0]][0].record)}
    first = short[0].record
    samples = {item.record.task.samples for item in short if item.record.task}
    intro = INTRO.format(
        samples="/".join(map(str, sorted(count or 0 for count in samples))),
        device=first.environment.device,
        dtype=first.environment.dtype,
        date=(first.environment.date or "")[:10],
    )
    return {
        ("README.md", "results"): table(
            intro, [text for name, text in rows.items() if name not in apart]
        ),
        ("docs/embedded.md", "results"): table(
            APART, [text for name, text in rows.items() if name in apart]
        ),
        ("docs/methods.md", "positions"): positions(),
        ("docs/serving.md", "serving"): served(),
        ("docs/beyond_the_paper.md", "elastic"): elastic(),
    }


def positions() -> str:
    """Return the pairs of runs that differ in how positions go on, with verdicts."""
    if not POSITIONS.exists():
        return ""
    # The compact runs are those of the README's table.
    found = [item for folder in (RESULTS, POSITIONS) for item in read_stores(folder)[0]]
    tables = across(found, "positions")
    parts = [f"{markdown_caption(found)}\n\n{render(found, 'markdown')}" for found in tables]
    return "\n".join(parts)


def served() -> str:
    """Return what a stock engine served, from its records."""
    found = serving_tables(read_stores(SERVING)[0]) if SERVING.exists() else []
    parts = [f"{markdown_caption(table)}\n\n{render(table, 'markdown')}" for table in found]
    return "\n".join(parts)


def elastic() -> str:
    """Return what the study of elastic predictors found, from its records."""
    found = elastic_tables(read_stores(ELASTIC)[0]) if ELASTIC.exists() else []
    parts = [f"{markdown_caption(table)}\n\n{render(table, 'markdown')}" for table in found]
    return "\n".join(parts)


def table(intro: str, rows: Sequence[str]) -> str:
    """Return a sentence and a table."""
    lines = [intro, "", f"| {' | '.join(HEADERS)} |", "|---" * len(HEADERS) + "|"]
    return "\n".join([*lines, *rows, ""])


def main() -> int:
    """Write or check."""
    stale = 0
    for (name, marker), text in sections().items():
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        pattern = re.compile(MARKERS.format(name=marker), re.DOTALL)
        new = pattern.sub(lambda match, text=text: match[1] + text + match[2], old)
        if "--check" in sys.argv[1:]:
            stale |= new != old
            continue
        page.write_text(new, encoding="utf-8")
        print(f"wrote {page}")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
