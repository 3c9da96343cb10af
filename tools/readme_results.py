"""Write the results table of the README from the records in ``results/embedded``.

``python tools/readme_results.py`` rewrites the section between its markers; ``--check`` only says
whether it is up to date (exit code 1 if not).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from dynllava.records import RecordStore, RunRecord

ROOT = Path(__file__).parents[1]
MARKERS = re.compile(r"(<!-- results:start -->\n).*?(<!-- results:end -->)", re.DOTALL)
SHORT = ("attribute", "counting", "digit", "existence", "multiple_choice", "relation")
#: Rows of the table: (method, budget label); the rest is in the records.
ROWS = (
    "full", "dynamic_llava 96", "dynamic_llava 67", "dynamic_llava 54", "fastv 96", "fastv 67",
    "fastv 54", "sparsevlm 96", "sparsevlm 67", "sparsevlm 54", "h2o 67", "random 67",
    "uniform 67", "no_image",
)  # fmt: skip


def label(record: RunRecord) -> str:
    """Return ``method budget``; other FastV layers than the first run's are left to the report."""
    budget = record.method.budget
    name = record.method.name
    if name == "fastv" and record.method.parameters.get("k") != 2:
        name = f"fastv k={record.method.parameters.get('k')}"
    return name if not budget else f"{name} {budget:g}"


def row(name: str, tasks: dict[str, RunRecord]) -> str:
    """Return one line of the table."""
    short = [tasks[f"embedded_{family}"] for family in SHORT]
    scores = [next(iter(record.scores.values())).value for record in short]
    caption, ppl = tasks["embedded_caption"], tasks["embedded_caption_ppl"]
    counted = caption.counted
    commit = (caption.environment.commit or "unknown")[:8]
    return (
        f"| {name} | {counted['mean_image_tokens'].value:.0f} "
        f"| {counted['prefill_flops'].value / 1e9:.3f} | {counted['kv_bytes'].value / 2**20:.2f} "
        f"| {100 * sum(scores) / len(scores):.1f} "
        f"| {100 * next(iter(caption.scores.values())).value:.1f} "
        f"| {next(iter(ppl.scores.values())).value:.3f} | {commit} |"
    )


def section() -> str:
    """Return the section's text."""
    records, _ = RecordStore(ROOT / "results" / "embedded").read()
    runs: dict[str, dict[str, RunRecord]] = defaultdict(dict)
    for record in records:
        if record.kind == "evaluation" and record.status == "ok" and record.task is not None:
            runs[label(record)][record.task.name] = record
    first = next(iter(runs["full"].values()))
    samples = {task.task.samples for task in runs["full"].values() if task.task}
    lines = [
        "The embedded model (no evidence about LLaVA-1.5), "
        f"{'/'.join(str(count) for count in sorted(samples))} samples a task, "
        f"{first.environment.device}, {first.environment.dtype}, "
        f"{first.environment.date[:10]}. Budget: mean image tokens processed per layer (dense: "
        "144; for h2o: KV entries). Prefill GFLOP and KV bytes (after the caption) are counted, a "
        "method's own overhead included; QA is the mean of six short families, exact match.",
        "",
        "| method, budget | image tokens per layer | prefill GFLOP | KV MiB | QA % "
        "| caption objects F1 % | caption PPL | commit |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, runs[name]) for name in ROWS if name in runs),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Write or check."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = MARKERS.sub(lambda match: match[1] + section() + match[2], old)
    if "--check" in sys.argv[1:]:
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    print(f"wrote {readme}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
