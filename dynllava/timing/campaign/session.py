"""What the steps of one worker share: the model, the journal, the clock, the record store."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynllava.costs.spec import ModelSpec
from dynllava.records import Environment, Measured, RecordStore, RunRecord
from dynllava.records.environment import capture

from .. import bench, bench_report
from ..bench_model import Bench, random_bench
from ..speed import STATIC, STOCK, Subject, Times
from ..targets import TARGETS, shown, verdict
from .journal import Journal
from .shapes import Shape


class Stopped(Exception):
    """The time is up, or whoever started this worker has gone."""


@dataclass
class Session:
    """One worker.

    Attributes
    ----------
    folder : Path
        Of the campaign: journal and records.
    shape : Shape
    device, dtype : str
    deadline : float
        ``time.time()`` at which nothing new is begun.
    parent : int
        Process that started this one; when it goes, the worker stops.
    """

    folder: Path
    shape: Shape
    device: str
    dtype: str
    deadline: float
    parent: int
    journal: Journal
    _bench: Bench | None = None
    _environment: Environment | None = field(default=None)

    @property
    def cuda(self) -> bool:
        """Whether it runs on a CUDA device."""
        return self.device.startswith("cuda")

    def check(self, ahead: float = 0.0) -> None:
        """Raise :class:`Stopped` if there is no time left for ``ahead`` seconds of work."""
        if time.time() + ahead > self.deadline or os.getppid() != self.parent:
            raise Stopped

    def model(self, spec: ModelSpec) -> Bench:
        """Return the random model of these sizes, built on the device; one is kept at a time."""
        if self._bench is None or self._bench.spec.name != spec.name:
            self._bench = None
            if self.cuda:
                import torch

                torch.cuda.empty_cache()
            self._bench = random_bench(spec, self.device, self.dtype)
            self._bench.compiled_steps.backend = self.shape.compiler
        return self._bench

    def subjects(
        self,
        spec: ModelSpec,
        methods: Sequence[str],
        *,
        compiled: bool = False,
        steps: bool = False,
    ) -> list[Subject]:
        """Return the dense model (both its caches where ``steps`` are timed) and the methods."""
        stock = (STOCK, STATIC) if steps else (STOCK,)
        return bench.make_subjects(lambda: self.model(spec), methods, spec, compiled, stock)

    def rounds(
        self,
        step: str,
        plan: bench.Plan,
        cell: str,
        subjects: Sequence[Subject],
        one: Callable[[int], dict[str, Times]],
    ) -> None:
        """Make the rounds of a cell that are still missing, store each, then append records.

        ``one`` runs a round and returns its times by subject.  What was stored before a kill
        counts, whichever process made it.
        """
        took = 0.0
        while len(self.journal.rounds(step, cell)) < plan.repeats:
            self.check(took)
            start = time.time()
            self.journal.add_round(step, cell, one(len(self.journal.rounds(step, cell))))
            took = time.time() - start
        self.record(step, plan, cell, subjects)

    def record(self, step: str, plan: bench.Plan, cell: str, subjects: Sequence[Subject]) -> None:
        """Append one record a subject from all stored rounds of a cell, unless it is there."""
        found = self.journal.rounds(step, cell)
        written = [e for e in self.journal.of("recorded", step) if e["cell"] == cell]
        if not found or (written and written[-1]["rounds"] == len(found)):
            return
        present = set.intersection(*(set(times) for times in found))
        chosen = [subject for subject in subjects if subject.name in present]
        rounds = [[times[subject.name] for subject in chosen] for times in found]
        results = bench.summarise(chosen, dataclasses.replace(plan, repeats=len(found)), rounds)
        for result in results:
            self.append(bench_report.record(result, self.environment()))
        self.journal.add("recorded", step, cell=cell, rounds=len(found))

    def environment(self) -> Environment:
        """Return what the records were made with; driver and CUDA stand among the versions."""
        if self._environment is None:
            found = capture(self.device, self.dtype, "sdpa")
            more = device_versions() if self.cuda else {}
            self._environment = dataclasses.replace(found, versions=found.versions | more)
        return dataclasses.replace(self._environment, date=capture("cpu").date)

    def append(self, record: RunRecord) -> None:
        """Store a record, and say so for every target that it falls under."""
        if self.cuda:
            clock = Measured(device_clock(), None, 1, "MHz")
            record = dataclasses.replace(record, measured=record.measured | {"sm_clock": clock})
        RecordStore(self.folder).append(record)
        for line in target_lines(record):
            print(line, flush=True)


def target_lines(record: RunRecord) -> list[str]:
    """Return one line a target that the record falls under."""
    label = record.method.shown
    lines = []
    for target in TARGETS:
        item = record.measured.get(target.quantity)
        if label != target.method or item is None or record.task is None:
            continue
        if target.covers(record.task.name) and record.model.name.startswith(target.models):
            says = verdict(target, item).replace("**", "")
            what = f"{target.text} [{label}, {record.task.name}] {target.promise}"
            lines.append(f"{what}: {shown(item)}: {says}")
    return lines


def device_versions() -> dict[str, str]:
    """Return the CUDA version torch was built for and the driver's."""
    import torch

    return {"cuda": str(torch.version.cuda), "driver": _query("driver_version")}


def device_clock() -> float:
    """Return the streaming multiprocessors' clock in MHz (0 where it cannot be asked for)."""
    try:
        return float(_query("clocks.sm").split()[0])
    except (ValueError, IndexError):
        return 0.0


def _query(what: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout else "unknown"


def failure(error: BaseException) -> str:
    """Return an error in one line."""
    text: Any = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:300]
