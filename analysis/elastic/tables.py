"""Elastic predictors against one training for each rate: the study's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dynllava.records.reading import Stored
from dynllava.uncertainty import Comparison

from ..tables.cells import Cell, TableData
from .names import (
    CAPTIONS,
    ELASTIC,
    FULL_DENSE,
    FULL_ELASTIC,
    FULL_TUNED,
    OFFICIAL,
    OUTPUT_RATES,
    OWN,
    SHORT,
    VARIANT,
    VISION_RATES,
)
from .verdicts import (
    Study,
    longer,
    off_rate,
    paired,
    per_image,
    predictors_only,
    realised,
    verdicts,
)

FULL = (FULL_DENSE, FULL_TUNED, FULL_ELASTIC)
Beside = list[tuple[str, float, float, float, Comparison]]


def elastic_tables(stored: Iterable[Stored]) -> list[TableData]:
    """Return the study's tables that have rows."""
    stored = list(stored)
    study = Study(stored)
    others = [name for name in study.variants if name != VARIANT]
    tables = [
        verdict_table(study),
        realised_table(study),
        off_rate_table(study),
        per_image_table(study),
        *(per_image_parts(study, kind) for kind in ("family", "objects")),
        full_table(study),
        beside_table(
            study, "Predictors only, at equal steps", ("all tuned", "predictors"), predictors_only
        ),
        beside_table(
            study, "The recipe at one rate, for twice the steps", ("300 steps", "600"), longer
        ),
        *(verdict_table(Study(stored, name), f" ({name})") for name in others),
    ]
    return [table for table in tables if table.rows]


def interval(found: Comparison) -> str:
    """Return a difference in points with its interval."""
    middle = f"{100 * found.difference:+.1f}"
    if found.interval is None:
        return middle
    low, high = (100 * value for value in found.interval)
    return f"{middle} [{low:+.1f}, {high:+.1f}]"


def table(title: str, note: str, header: list[str], rows: list[list[str]]) -> TableData:
    """Return a table of plain cells."""
    cells = tuple(tuple(Cell(text) for text in row) for row in rows)
    return TableData("ours", title, tuple(header), cells, (), (note,))


def verdict_table(study: Study, suffix: str = "") -> TableData:
    """Return elastic against trained for the rate: a row a rate and seed."""
    rows = []
    for seed in study.seeds:
        for item in verdicts(study, seed):
            what = "vision" if item.task == SHORT else "output"
            rows.append(
                [
                    f"{what} {item.rate:g}",
                    str(seed),
                    f"{item.comparison.samples:,}",
                    f"{100 * item.own:.1f}",
                    f"{100 * item.elastic:.1f}",
                    interval(item.comparison),
                    item.verdict,
                ]
            )
    rows.sort(key=lambda row: (row[0].split()[0] == "output", float(row[0].split()[1]), row[1]))
    header = ["keep rate", "seed", "n", "trained for it", "elastic", "difference", "verdict"]
    note = (
        "Exact answers in % (vision rates; output rate 0.5) and METEOR in points (output rates; "
        "vision rate 0.2). Interval: 95 %, one comparison; verdict: Holm over the eight rates of a "
        "seed, each direction by itself at 5 %. Seeds stand side by side, nothing is averaged. "
        "Embedded model: no evidence about LLaVA-1.5."
    )
    return table(f"Elastic against trained for the rate{suffix}", note, header, rows)


def realised_table(study: Study) -> TableData:
    """Return asked and realised output rates, with METEOR and perplexity beside them."""
    rows = []
    for rate in OUTPUT_RATES:
        for seed in study.seeds:
            shares = {asked: both for asked, *both in realised(study, seed)}
            if rate not in shares:
                continue
            row = [f"{rate:g}", str(seed), *(f"{share:.3f}" for share in shares[rate])]
            for role in (ELASTIC, OWN, OFFICIAL):
                record = study.find(role, CAPTIONS, rate, seed)
                if record is None:
                    row.append("-")
                    continue
                scores = record.scores
                shown = f"{100 * scores['meteor_exact_stem'].value:.1f}"
                shown += f" / {scores['perplexity'].value:.4f}"
                if role == OFFICIAL:
                    shown += f" at {scores['kept_output_share'].value:.2f}"
                row.append(shown)
            rows.append(row)
    header = [
        "asked output rate",
        "seed",
        "realised, generating",
        "realised, teacher-forced",
        "elastic: METEOR / PPL",
        "trained for it, calibrated",
        "trained for it, logit0 > logit1: at its realised rate",
    ]
    note = "Shares over all judged tokens; PPL a token, teacher-forced."
    return table("Asked and realised output rates", note, header, rows)


def off_rate_table(study: Study) -> TableData:
    """Return what the checkpoint for 0.2 does at other rates."""
    cells = {seed: off_rate(study, seed) for seed in study.seeds}
    rows = [
        [f"{rate:g}", str(seed), f"{100 * mean:.1f}", interval(found)]
        for at in range(len(VISION_RATES))
        for seed, items in cells.items()
        for rate, mean, found in items[at : at + 1]
    ]
    header = ["vision rate", "seed", "trained for 0.2", "minus trained for the rate"]
    note = "Exact answers in %; the image predictor ranks, so any rate can be asked of it."
    return table("The paper's checkpoint for 0.2 at other rates", note, header, rows)


def per_image_table(study: Study) -> TableData:
    """Return budgets by score against fixed ones."""
    rows = [
        [
            f"{item.rate:g}",
            str(seed),
            f"{item.realised:.3f}",
            f"{item.same:.3f}",
            f"{item.spread[0]:.2f} to {item.spread[1]:.2f}",
            f"{100 * item.fixed:.1f}",
            f"{100 * item.per_image:.1f}",
            interval(item.comparison),
        ]
        for seed in study.seeds
        for item in per_image(study, seed)
    ]
    header = [
        "asked mean",
        "seed",
        "realised mean",
        "share of the same top-k",
        "share of a picture, 10th to 90th percentile",
        "same top-k",
        "by threshold",
        "difference",
    ]
    note = (
        "Exact answers in %; elastic weights; the threshold was calibrated on other pictures, and "
        "the same top-k keeps its realised mean, to the next token, of each picture."
    )
    return table("Image budgets by threshold against the same top-k", note, header, rows)


def per_image_parts(study: Study, kind: str) -> TableData:
    """Return the difference of budgets by task or by number of objects, a column a rate."""
    found = {seed: {item.rate: item for item in per_image(study, seed)} for seed in study.seeds}
    rates = sorted({rate for items in found.values() for rate in items})
    rows = []
    for seed, items in found.items():
        parts = {rate: item.parts for rate, item in items.items()}
        values = sorted({value for own in parts.values() for name, value in own if name == kind})
        for value in values:
            shown = {rate: own[kind, value] for rate, own in parts.items() if (kind, value) in own}
            cells = [interval(shown[rate]) if rate in shown else "-" for rate in rates]
            count = str(max(item.samples for item in shown.values()))
            rows.append([str(value).replace("_", " "), str(seed), count, *cells])
    what = {"family": "task", "objects": "objects in the picture"}[kind]
    header = [what, "seed", "n", *(f"rate {rate:g}" for rate in rates)]
    note = "Points, with 95 % intervals of one comparison each."
    return table(f"By threshold minus same top-k, by {what}", note, header, rows)


def full_table(study: Study) -> TableData:
    """Return what the weights do with nothing dropped."""
    rows = []
    for seed in study.seeds:
        row = [str(seed)]
        for task in (SHORT, CAPTIONS):
            found = {role: study.find(role, task, 1.0, seed) for role in FULL}
            for record in found.values():
                metric = "" if record is None or record.task is None else record.task.metric or ""
                row.append("-" if record is None else f"{100 * record.scores[metric].value:.1f}")
            tuned, elastic = found[FULL_TUNED], found[FULL_ELASTIC]
            if tuned is None or elastic is None:
                row.append("-")
            else:
                row.append(interval(paired(study, tuned, elastic)))
        rows.append(row)
    columns = ["dense weights", "trained for 0.2", "elastic", "elastic - trained for 0.2"]
    header = [
        "seed",
        *(f"{what}: {columns[0]}" if not at else name for what in ("exact %", "METEOR")
          for at, name in enumerate(columns)),
    ]  # fmt: skip
    note = "Exact answers in %, METEOR in points; intervals of one comparison each."
    return table("Nothing dropped", note, header, [row for row in rows if set(row[1:]) != {"-"}])


def beside_table(
    study: Study, title: str, columns: tuple[str, str], find: Callable[[Study, int], Beside]
) -> TableData:
    """Return one role beside another: a row a rate and seed."""
    rows = [
        [
            f"{'vision' if task == SHORT else 'output'} {rate:g}",
            str(seed),
            f"{found.samples:,}",
            f"{100 * first:.1f}",
            f"{100 * second:.1f}",
            interval(found),
        ]
        for seed in study.seeds
        for task, rate, first, second, found in find(study, seed)
    ]
    header = ["keep rate", "seed", "n", *columns, "difference"]
    note = (
        "Exact answers in % (vision rates) and METEOR in points (output rates); intervals of one "
        "comparison each."
    )
    return table(title, note, header, rows)
