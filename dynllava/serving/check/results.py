"""What the checks found: run records, and tables for the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dynllava.costs import flops, ledger
from dynllava.costs.spec import ModelSpec, load_spec
from dynllava.methods import create
from dynllava.methods.parameters import parse
from dynllava.output.tables import Table
from dynllava.plan import PromptShape
from dynllava.plan.names import FULL
from dynllava.records import (
    Counted,
    Environment,
    Measured,
    MethodInfo,
    ModelInfo,
    RunRecord,
    Score,
    TaskInfo,
)
from dynllava.timing.bench_report import measured_rounds
from dynllava.timing.intervals import interval
from dynllava.timing.speed import process_name
from dynllava.timing.stats import realised_share

from .answers import Agreement
from .faults import Killed, Mixed
from .load import HIGHER, STOCK, TIMES, Timing, dense_of, ratios

ANSWERS, LOAD, FAULTS = "served answers", "served load", "served faults"
"""Names of the tasks in records; the second is followed by the concurrency."""
SHARES = {"ttft": "prefill", "requests": "whole request"}
"""Quantity -> the work whose saving it is held against."""


class Recorder:
    """Makes records about one exported folder.

    Parameters
    ----------
    folder : Path
    checkpoint_hash : str
    environment : Environment
        With the engine's version.
    """

    def __init__(self, folder: Path, checkpoint_hash: str, environment: Environment) -> None:
        self.spec: ModelSpec = load_spec(str(folder))
        self.environment = environment
        dims = self.spec.dims
        self.model = ModelInfo(
            folder.name, checkpoint_hash, dims.layers, dims.hidden, self.spec.image_tokens
        )
        self.process = process_name()

    def method(self, text: str) -> MethodInfo:
        """Return a method's place in a record; asking the engine directly is a dense run."""
        if text == STOCK:
            return MethodInfo(FULL, "the engine's own tower")
        chosen = parse(text)
        return MethodInfo(chosen.name, text, chosen.create().parameters())

    def answers(self, found: Agreement) -> RunRecord:
        """Return the record of a method's answers."""
        number, entered = len(found.answers), [item.tokens for item in found.answers]
        share = sum(item.agrees for item in found.answers) / number
        engine = sum(item.engine_tokens for item in found.answers) / number
        return RunRecord(
            kind="serving",
            model=self.model,
            method=self.method(found.method),
            task=TaskInfo(ANSWERS, metric="agreement", scale=1.0, samples=number),
            scores={"agreement": Score(share, None, number)},
            counted={
                "prompt_tokens": Counted(
                    sum(entered) / number, "token", "our loop, mean", "prefill"
                ),
                "engine_prompt_tokens": Counted(engine, "token", "the engine, mean", "prefill"),
            },
            environment=self.environment,
        )

    def flops(self, method: str, text_tokens: int, outputs: int, work: str) -> float:
        """Return the counted FLOPs of one request: tower, selection and language model.

        Parameters
        ----------
        method : str
        text_tokens, outputs : int
        work : str
            ``"prefill"`` or ``"whole request"``.
        """
        chosen = create(FULL if method == STOCK else method)
        shape = PromptShape(1, self.spec.image_tokens, text_tokens - 1)
        run = ledger.Run(self.spec, chosen, shape, outputs)
        modes = ("prefill",) if work == "prefill" else ("prefill", "decode")
        macs = sum(ledger.total(ledger.entries(run, mode)) for mode in modes)
        return flops.FLOPS_PER_MAC * macs

    def load(self, timings: Sequence[Timing], text_tokens: int, outputs: int) -> list[RunRecord]:
        """Return the records of a load measurement, one per subject and concurrency."""
        found = []
        for timing in timings:
            dense = dense_of(timings, timing.concurrency)
            measured = {
                name: self._measured(timing.rounds[name], unit, name in HIGHER)
                for name, unit in TIMES.items()
            }
            counted = {}
            for name in TIMES:
                if timing.subject not in (FULL, STOCK):
                    own = ratios(timing, dense, name)
                    measured[f"{name} ratio"] = self._measured(own, "1", name in HIGHER)
            for name, work in SHARES.items():
                own_cost, cost = (
                    self.flops(text, text_tokens, outputs, work) for text in (timing.subject, FULL)
                )
                key = "prefill_flops" if work == "prefill" else "request_flops"
                counted[key] = Counted(own_cost, "FLOP", "counted", work)
                shares = []
                if timing.subject not in (FULL, STOCK):
                    for ratio in ratios(timing, dense, name):
                        # A rate's share is that of the time of one request.
                        time_ratio = 1 / ratio if name in HIGHER else ratio
                        shares.append(realised_share(time_ratio, own_cost / cost))
                known = [share for share in shares if share is not None]
                if known:
                    measured[f"{name} realised share"] = self._measured(known, "1", True)
            found.append(
                RunRecord(
                    kind="serving",
                    model=self.model,
                    method=self.method(timing.subject),
                    task=TaskInfo(f"{LOAD}, {timing.concurrency} at a time"),
                    counted=counted,
                    measured=measured,
                    environment=self.environment,
                )
            )
        return found

    def faults(self, mixed: Mixed, killed: Sequence[Killed]) -> RunRecord:
        """Return the record of the fault checks."""
        counted, measured = {}, {}
        for kind, statuses in mixed.statuses.items():
            for status, number in sorted(statuses.items()):
                counted[f"{kind} {status}"] = Counted(number, "request", "counted", "mixed")
        for item in killed:
            if item.clients:
                measured[f"{item.what} killed, last client"] = _once(max(item.clients))
            for name, value in (("health 503", item.health), ("serves again", item.again)):
                if value is not None:
                    measured[f"{item.what} killed, {name}"] = _once(value)
            counted[f"{item.what} killed, waiting clients"] = Counted(
                len(item.clients), "request", "counted", item.what
            )
            counted[f"{item.what} killed, answered afterwards"] = Counted(
                item.answered, "request", "counted", item.what
            )
        wrong = [*mixed.wrong, *(line for item in killed for line in item.wrong)]
        return RunRecord(
            kind="serving",
            model=self.model,
            method=MethodInfo(FULL),
            task=TaskInfo(FAULTS),
            status="failed" if wrong else "ok",
            error=wrong[0] if wrong else None,
            counted=counted,
            measured=measured,
            environment=self.environment,
        )

    def _measured(self, values: Sequence[float], unit: str, higher: bool) -> Measured:
        return measured_rounds(values, [self.process] * len(values), unit, higher)


def _once(seconds: float) -> Measured:
    return Measured(seconds, None, 1, "s", False)


def with_engine(environment: Environment, engine: str, load: str) -> Environment:
    """Return an environment that names the engine and how busy the machine was."""
    versions = {**environment.versions, "engine": engine, "load average": load}
    return dataclasses.replace(environment, versions=versions)


def answers_table(found: Sequence[Agreement]) -> Table:
    """Return the table of answers."""
    rows = []
    for item in found:
        margins = [answer.margin for answer in item.differing if answer.margin is not None]
        tokens = {answer.engine_tokens for answer in item.answers}
        image = {answer.image_tokens for answer in item.answers}
        rows.append(
            [
                item.method,
                str(len(item.answers)),
                str(len(item.differing)),
                f"{max(margins):.2g}" if margins else "-",
                _range(image),
                _range(tokens),
                "all" if not item.miscounted else f"{len(item.miscounted)} differ",
            ]
        )
    columns = (
        "method", "prompts", "differing", "largest margin", "image tokens",
        "engine's prompt tokens", "equal to the ledger's",
    )  # fmt: skip
    return Table("Served answers beside our layer loop's", columns, rows)


def _range(values: set[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def load_table(records: Sequence[RunRecord]) -> Table:
    """Return the table of times, from their records."""
    rows = []
    for record in records:
        cells = [record.task_name.removeprefix(f"{LOAD}, "), record.method.shown]
        cells += [
            shown(record.measured[name], scale, digits)
            for name, scale, digits in (("ttft", 1e3, 1), ("latency", 1e3, 1), ("requests", 1, 2))
        ]
        for name in ("ttft ratio", "requests ratio"):
            cells.append(shown(record.measured.get(name), 1, 3))
        for name in ("ttft realised share", "requests realised share"):
            cells.append(shown(record.measured.get(name), 100, 0))
        rows.append(cells)
    columns = (
        "concurrency", "method", "TTFT ms", "latency ms", "requests/s", "TTFT / full",
        "requests/s / full", "realised TTFT %", "realised requests %",
    )  # fmt: skip
    notes = [
        "Median of the rounds [95 % interval by order statistics, of this one process]; ratios are "
        "taken within a round. Realised: share of the counted saving (prefill; whole request) that "
        "became time."
    ]
    return Table("Load: methods took turns within each round", columns, rows, notes, left=2)


def shown(item: Measured | None, scale: float, digits: int) -> str:
    """Return a median with its interval."""
    if item is None:
        return "-"
    found = interval(item)
    middle = f"{item.median * scale:.{digits}f}"
    if found is None:
        return middle
    return f"{middle} [{found.low * scale:.{digits}f}, {found.high * scale:.{digits}f}]"


def faults_table(mixed: Mixed, killed: Sequence[Killed]) -> Table:
    """Return the table of the fault checks."""
    rows = []
    for kind, statuses in mixed.statuses.items():
        said = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
        rows.append([f"{kind} requests", said])
    for item in killed:
        last = f"{max(item.clients):.2f} s" if item.clients else "-"
        said = ", ".join(f"{number} x {name}" for name, number in sorted(item.outcomes.items()))
        rows.append(
            [
                f"{item.what} killed: {len(item.clients)} waiting clients",
                f"{said}; last after {last}",
            ]
        )
        health, again = (
            "never" if value is None else f"after {value:.2f} s"
            for value in (item.health, item.again)
        )
        rows.append([f"{item.what} killed: /health", f"503 {health}, 200 {again}"])
        rows.append(
            [f"{item.what} killed: afterwards", f"{item.answered} of {item.asked} answered"]
        )
    return Table("Malformed requests, and an engine that dies", ("case", "outcome"), rows, left=2)
