"""Elastic predictors against one training for each rate: the study's tables."""

from __future__ import annotations

from collections.abc import Iterable

from dynllava.records.reading import Stored
from dynllava.uncertainty import Comparison

from ..tables.cells import Cell, TableData
from .names import (
    CAPTIONS,
    ELASTIC,
    FULL_DENSE,
    FULL_ELASTIC,
    OFFICIAL,
    OUTPUT_RATES,
    OWN,
    SHORT,
    VISION_RATES,
)
from .verdicts import Study, off_rate, per_image, realised, verdicts


def elastic_tables(stored: Iterable[Stored]) -> list[TableData]:
    """Return the study's tables that have rows."""
    study = Study(stored)
    tables = [
        verdict_table(study),
        realised_table(study),
        off_rate_table(study),
        per_image_table(study),
        *(per_image_parts(study, kind) for kind in ("family", "objects")),
        full_table(study),
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


def verdict_table(study: Study) -> TableData:
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
    return table("Elastic against trained for the rate", note, header, rows)


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
            f"{item.spread[0]:.2f} to {item.spread[1]:.2f}",
            f"{100 * item.fixed:.1f}",
            f"{100 * item.per_image:.1f}",
            interval(item.comparison),
        ]
        for seed in study.seeds
        for item in per_image(study, seed)
    ]
    header = [
        "mean rate",
        "seed",
        "realised mean",
        "share of a picture, 10th to 90th percentile",
        "same share of each",
        "by threshold",
        "difference",
    ]
    note = "Exact answers in %; elastic weights; the threshold was calibrated on other pictures."
    return table("Image budgets by threshold against the same top-k", note, header, rows)


def per_image_parts(study: Study, kind: str) -> TableData:
    """Return the difference of budgets by task or by number of objects, a column a rate."""
    rows = []
    rates: list[float] = []
    for seed in study.seeds:
        items = per_image(study, seed)
        rates = [item.rate for item in items] or rates
        values = sorted({value for item in items for name, value in item.parts if name == kind})
        for value in values:
            cells = [interval(item.parts[kind, value]) for item in items]
            count = str(items[0].parts[kind, value].samples)
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
        for task, metric, form in (
            (SHORT, "exact_match", "{:.1f}"), (CAPTIONS, "meteor_exact_stem", "{:.1f}")
        ):  # fmt: skip
            for role in (FULL_DENSE, FULL_ELASTIC):
                record = study.find(role, task, 1.0, seed)
                value = None if record is None else 100 * record.scores[metric].value
                row.append("-" if value is None else form.format(value))
        rows.append(row)
    header = [
        "seed",
        "exact %: dense weights",
        "elastic weights",
        "METEOR: dense weights",
        "elastic weights",
    ]
    note = "Exact answers in %, METEOR in points."
    return table("Nothing dropped", note, header, [row for row in rows if set(row[1:]) != {"-"}])
