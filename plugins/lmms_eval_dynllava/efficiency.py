"""What one request cost, read from the model's report, and how it reaches lmms-eval's results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts


@dataclass
class EfficiencyCounts(TokenCounts):
    """Token counts of one request plus what the method kept.

    lmms-eval writes ``to_dict()`` of every request beside the sample, so ``extra`` lands in the
    samples file.
    """

    extra: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts that are known, by name."""
        return {**super().to_dict(), **self.extra}


class LogLikelihood(GenerationResult):
    """The pair (log-probability, greedy) of one request; unpacks like a tuple.

    lmms-eval 0.7 turns a bare pair into its printed text before a task sees it; what a
    ``GenerationResult`` holds it passes on as it is.
    """

    def __init__(
        self, value: float, greedy: bool, tokens: int, costs: dict[str, float] | None = None
    ) -> None:
        super().__init__((value, greedy), EfficiencyCounts(output_tokens=tokens, extra=costs or {}))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.text)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: Any) -> Any:
        return self.text[index]


def request_costs(report: Any, rows: Sequence[int], fed: Sequence[int]) -> list[dict[str, float]]:
    """Return the efficiency numbers of rows of a batch; the report is read once for all of them.

    A row that ended early was fed padding until the longest row of its batch ended; what that
    padding stored is taken off again, so a row's numbers do not depend on its batch.

    Parameters
    ----------
    report : dynllava.engine.report.CallReport
        Of the ``generate()`` call.
    rows : sequence of int
        Rows of the batch.
    fed : sequence of int
        For each of them: output tokens that were fed back to the model (all but the last one).

    Returns
    -------
    list of dict
        ``image_tokens_kept`` (those that reached the last layer, merged ones included),
        ``output_tokens_fed`` and ``output_tokens_kept``, ``kv_entries`` (sum over the layers)
        and ``kv_bytes``.
    """
    # Every property of a report waits for the device: ask each once.
    decisions, images = report.output_kept, report.image_tokens
    lengths, prompts, stored_bytes = report.kv_lengths, report.layer_tokens, report.kv_bytes_per_row
    found = []
    for row, own_fed in zip(rows, fed, strict=True):
        output = [bool(kept) for kept in decisions[row]] if decisions else []
        own, padding = output[:own_fed], output[own_fed:]
        stored = [layer[row] for layer in lengths]
        entered = [layer[row] for layer in prompts] if lengths else []
        entries = sum(
            _own_entries(now, before, own, padding)
            for now, before in zip(stored, entered, strict=True)
        )
        total = sum(stored)
        found.append(
            {
                "image_tokens_kept": images[row],
                "output_tokens_fed": len(own),
                "output_tokens_kept": sum(own),
                "kv_entries": entries,
                "kv_bytes": round(stored_bytes[row] * entries / total) if total else 0,
            }
        )
    return found


def scored_costs(report: Any, fed: Sequence[int]) -> list[dict[str, float]]:
    """Return what continuations of given tokens left in the cache: equal work for every method.

    Parameters
    ----------
    report : dynllava.engine.report.CallReport
        Of the ``score()`` call.
    fed : sequence of int
        For each row of the batch: tokens of its continuation that were fed (all but the last one).

    Returns
    -------
    list of dict
        ``forced_kv_entries`` and ``forced_kv_bytes``; empty where there was no cache.
    """
    if report is None or not report.kv_lengths:
        return [{} for _ in fed]
    # Tokens fed together store no padding; those fed one by one do, and leave a decision each.
    rows = request_costs(report, range(len(fed)), fed)
    names = ("kv_entries", "kv_bytes")
    return [{f"forced_{name}": costs[name] for name in names} for costs in rows]


def _own_entries(stored: int, prompt: int, own: Sequence[bool], padding: Sequence[bool]) -> int:
    """Return a layer's cache entries without those of the padding behind the row's end."""
    added = stored - prompt
    if added == len(own) + len(padding):
        return stored - len(padding)
    if added == sum(own) + sum(padding):
        return stored - sum(padding)
    # A cache with a budget (H2O): its length says nothing about the padding.
    return stored


def mean_costs(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every number over the requests that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    means = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        means[name] = sum(values) / len(values)
    return means
