"""What own records say about a printed row: agrees, differs or undecided, by benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dynllava.published.rows import Row
from dynllava.records import RecordStore, RunRecord
from dynllava.tasks.registry import BENCHMARKS, Benchmark
from dynllava.uncertainty import holm_adjusted
from dynllava.uncertainty.one_sample import (
    AGREES,
    DIFFERS,
    NO_VERDICT,
    Agreement,
    from_error,
    from_scores,
)

from .expected import scale_of
from .steps import PROMPTS

ALPHA = 0.05
_SYNONYMS = "meteor_exact_stem_synonym"
"""The paper's METEOR; it needs nltk's WordNet corpus."""


@dataclass(frozen=True)
class Outcome:
    """One benchmark of a row.

    Attributes
    ----------
    task : str
    text : str
        Own score beside the printed one, or why there is none.
    verdict : str
        One of ``agrees``, ``differs``, ``undecided``; empty where nothing may be said.
    caution : str
        What keeps the two from being the same measurement.
    """

    task: str
    text: str
    verdict: str = ""
    caution: str = ""


def outcomes(row: Row, tasks: Sequence[str], store: RecordStore, percent: float) -> list[Outcome]:
    """Return what the newest record of each task says.

    Parameters
    ----------
    row : Row
    tasks : sequence of str
    store : RecordStore
        Of the row's evaluation.
    percent : float
        Margin, in percent of a full score.
    """
    newest = {record.task.name: record for record in store.read()[0] if record.task is not None}
    compared: dict[str, Agreement] = {}
    found: dict[str, Outcome] = {}
    for task in tasks:
        record = newest.get(task)
        if record is None or record.status != "ok":
            why = "not run" if record is None else f"failed: {record.error}"
            found[task] = Outcome(task, why)
            continue
        caution, incomparable = _cautions(task, record)
        agreement = _agreement(row, task, record, store, percent)
        if agreement is None:
            needs = f"no {_SYNONYMS} (nltk's WordNet is not installed)"
            found[task] = Outcome(task, f"no verdict: {needs}", caution=caution)
            continue
        text = _numbers(row, task, agreement)
        found[task] = Outcome(task, text, "", caution)
        if incomparable:
            found[task] = Outcome(task, f"{text}; no verdict", "", caution)
        else:
            compared[task] = agreement
    adjusted = holm_adjusted([item.p_differs for item in compared.values()])
    for (task, agreement), p_value in zip(compared.items(), adjusted, strict=True):
        verdict = agreement.verdict(ALPHA)
        if verdict == DIFFERS and p_value > ALPHA:
            verdict = NO_VERDICT
        before = found[task]
        found[task] = Outcome(task, before.text, verdict, before.caution)
    return list(found.values())


def overall(found: Iterable[Outcome]) -> str:
    """Return the verdict on a row: differs in any benchmark, agrees in all, or undecided."""
    verdicts = {item.task: item.verdict for item in found if item.verdict}
    differing = [task for task, verdict in verdicts.items() if verdict == DIFFERS]
    if differing:
        return f"{DIFFERS} in {', '.join(differing)}"
    if verdicts and set(verdicts.values()) == {AGREES}:
        return f"{AGREES} in {', '.join(verdicts)}"
    return NO_VERDICT


def _cautions(task: str, record: RunRecord) -> tuple[str, bool]:
    """Return what differs from the published measurement, and whether that forbids a verdict."""
    known = BENCHMARKS.get(task)
    prompts = record.task.prompts if record.task else None
    if known is None:
        return "other samples than the paper's, which are not published", False
    return known.caution(prompts or PROMPTS).removeprefix(f"{known.title}: "), known.submission


def _agreement(
    row: Row, task: str, record: RunRecord, store: RecordStore, percent: float
) -> Agreement | None:
    printed, scale = row.values[task], scale_of(task)
    margin = scale.margin(printed, percent)
    metric = (record.task.metric if record.task else None) or ""
    known = BENCHMARKS.get(task)
    if task.endswith("_meteor"):
        metric = _SYNONYMS
        if metric not in record.scores:
            return None
    score = record.scores[metric]
    samples = [item for item in store.samples(record) if item.get("score") is not None]
    if known is None or known.estimator in ("f1", "mme"):
        units = len(_grouped(samples))
        value, error = score.value * scale.factor, (score.stderr or 0) * scale.factor
        return from_error(value, error, units, printed.value, margin, own_error=known is None)
    scores, clusters = _scores(samples, known)
    full = scale.full or 1.0
    found = from_scores(scores, printed.value / full, margin / full, clusters, ALPHA)
    interval = found.interval
    return Agreement(
        found.value * full, printed.value, margin,
        None if interval is None else (interval[0] * full, interval[1] * full),
        found.p_differs, found.p_agrees, found.units,
    )  # fmt: skip


def _scores(samples: Sequence[dict[str, Any]], known: Benchmark) -> tuple[list[float], list[Any]]:
    """Return scores from 0 to 1 and their clusters.

    A group of questions counts as one where the benchmark wants all of them right.
    """
    if known.estimator in ("pairs", "circular"):
        groups = _grouped(samples)
        return [float(all(item["score"] for item in group)) for group in groups.values()], list(
            groups
        )
    return [float(item["score"]) for item in samples], [_unit(item) for item in samples]


def _grouped(samples: Iterable[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for item in samples:
        groups[_unit(item)].append(item)
    return groups


def _unit(sample: dict[str, Any]) -> Any:
    cluster = sample.get("cluster")
    return ("sample", sample["doc_id"]) if cluster is None else ("cluster", str(cluster))


def _numbers(row: Row, task: str, found: Agreement) -> str:
    digits = max(row.values[task].decimals, 1)
    text = f"{found.value:.{digits}f}"
    if found.interval is not None:
        low, high = found.interval
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return (
        f"{text} from {found.units} independent units, printed {row.values[task].text}, "
        f"margin {found.margin:.{digits + 1}f}"
    )
