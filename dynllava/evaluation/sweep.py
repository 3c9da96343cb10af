"""Sweeps: a grid of methods, budgets and tasks, one record each, resumable after any stop.

>>> from dynllava.evaluation.sweep import Cell, run_sweep
>>> cells = [Cell("full"), Cell("fastv", {"k": 2, "keep_ratio": 0.25}, budget=64)]
>>> records = run_sweep("embedded", cells, ["embedded"], limit=60, store="results/demo")

The model is loaded once.  Finished runs are recognised by a fingerprint of everything that can
change their numbers; it opens the record's id (``<fingerprint>-<random>``).
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.methods.titles import Named, titles
from dynllava.records import Measured, MethodInfo, RecordStore, RunRecord, TaskInfo
from dynllava.records.schema import storable
from dynllava.tasks.access import FailedTask
from dynllava.tasks.loading import LoadedTask, expand, load_tasks, one_line

from . import results
from .claims import Claims
from .evaluation import evaluate, out_of_memory, quiet
from .runner import ModelRunner, Runner

LARGEST_BATCH = 32


@dataclass(frozen=True)
class Cell:
    """One method with its parameters.

    Attributes
    ----------
    method : str
        Registry name.
    params : dict
        Hyper-parameters; defaults for the rest.
    budget : float or None
        The mean number of image tokens per layer that was asked for, where one was.
    label : str
        What tables show; by default (:func:`labelled`) title and budget.
    """

    method: str
    params: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None
    label: str = ""

    def __str__(self) -> str:
        return self.label or _with_budget(self.method, self.budget)


def labelled(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of one run, each with a label: different ones where parameters differ."""
    names = titles([Named(cell.method, cell.params, cell.budget) for cell in cells])
    return [
        cell
        if cell.label or name == cell.method
        else replace(cell, label=_with_budget(name, cell.budget))
        for cell, name in zip(cells, names, strict=True)
    ]


def _with_budget(name: str, budget: float | None) -> str:
    return name if budget is None else f"{name} {budget:g}"


@dataclass
class _Job:
    cell: Cell
    task: LoadedTask | FailedTask


def run_sweep(
    pretrained: str,
    cells: Sequence[Cell],
    tasks: Sequence[str],
    limit: int | None = None,
    batch_size: int | str = "auto",
    store: str | Path = "results/sweep",
    progress: bool = True,
    *,
    folders: Sequence[str | Path] = (),
    prompts: str = "llava",
    suite: str | None = None,
    runner: Runner | None = None,
    **model_options: Any,
) -> list[RunRecord]:
    """Evaluate every cell on every task and return their records, finished ones included.

    Parameters
    ----------
    pretrained : str
        Model, as :func:`dynllava.models.loading.load_model` takes it.
    cells : sequence of Cell
    tasks : sequence of str
        Suites, benchmarks, or tasks found in ``folders``.
    limit : int, optional
        Documents per task (the first ones); None = all.
    batch_size : int or str
        ``"auto"`` starts large and halves when memory runs out.
    store : str or Path
        Folder of the record store; records found there are not made again.
    progress : bool
        One line per run, with the time left, on standard error.
    folders : sequence of Path
        Folders with further task YAMLs.
    prompts : str
        ``"llava"`` (LLaVA-1.5 protocol) or ``"lmms-eval"`` (upstream defaults).
    suite : str, optional
        Name stored with the records.
    runner : Runner, optional
        In place of loading ``pretrained``.
    **model_options
        ``dtype``, ``device``, ``attn_implementation``, ``conv_template``.

    Returns
    -------
    list of RunRecord
        One per cell and task, in grid order.  A run that failed has ``status="failed"``; the
        others go on.  Empty in all but the first of several processes.

    Raises
    ------
    UserError
        If the grid itself is impossible: unknown task, unreadable model or store.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: accepted is a number from 1")
    RecordStore(store).check_writable()
    with tempfile.TemporaryDirectory(prefix="dynllava-") as scratch:
        names = expand(tasks)
        with quiet(Path(store)):
            loaded = load_tasks(names, Path(scratch), [Path(item) for item in folders], prompts)
        # After everything that can be refused without it: loading a model takes minutes.
        chosen: Runner = runner or ModelRunner(pretrained, **model_options)
        sweep = _Sweep(chosen, RecordStore(store), limit, batch_size, progress, suite, prompts)
        return sweep.run([_Job(cell, task) for cell in labelled(cells) for task in loaded])


class _Sweep:
    """State of one :func:`run_sweep`."""

    def __init__(
        self,
        runner: Runner,
        store: RecordStore,
        limit: int | None,
        batch_size: int | str,
        progress: bool,
        suite: str | None,
        prompts: str,
    ) -> None:
        from accelerate import PartialState

        from dynllava.records.environment import code_version

        self.runner = runner
        self.store = store
        self.limit = limit
        self.batch_size = batch_size
        self.suite = suite
        self.prompts = prompts
        self.code = code_version()
        self.claims = Claims(store.folder)
        self._warned: set[str] = set()
        self.processes = PartialState()
        self.progress = progress and self.processes.is_main_process
        self.hashes: dict[str, str] = {}
        self.seconds: dict[str, list[float]] = {}
        environment = runner.environment()
        versions = {**environment.versions, "code": self.code}
        self.environment = replace(environment, versions=versions)

    def run(self, jobs: Sequence[_Job]) -> list[RunRecord]:
        """Return the records of ``jobs``."""
        for task in {job.task.name: job.task for job in jobs}.values():
            if isinstance(task, LoadedTask):
                self.hashes[task.name] = task.content_hash(self.limit)
            elif self.progress:
                print(f"warning: task {task.name}: {task.error}", file=sys.stderr)
        finished = self._finished()
        found: dict[int, RunRecord | None] = {}
        waiting = list(range(len(jobs)))
        try:
            while waiting:
                left = [index for index in waiting if not self._run(index, jobs, finished, found)]
                if len(left) == len(waiting):
                    # Other sweeps make all that is left: take over what they do not finish.
                    self._run(left.pop(0), jobs, finished, found, wait=True)
                waiting = left
        finally:
            self.claims.close()
        return [record for _, record in sorted(found.items()) if record is not None]

    def _run(
        self,
        index: int,
        jobs: Sequence[_Job],
        finished: dict[str, RunRecord],
        found: dict[int, RunRecord | None],
        wait: bool = False,
    ) -> bool:
        """Find or make the record of one job; False if another sweep is making it."""
        job = jobs[index]
        method, error = self._method(job.cell)
        fingerprint = self._fingerprint(job, method)
        state = "found"
        if fingerprint not in finished:
            if not self._claim(fingerprint, wait):
                return False
            # Another sweep may have made it since the store was read.
            finished |= self._finished()
        record = finished.get(fingerprint)
        if record is not None:
            # The run that made it may have had nothing to tell it from.
            record = replace(record, method=replace(record.method, label=str(job.cell)))
        else:
            start = time.perf_counter()
            record = self._evaluate(job, method, error, fingerprint)
            self.seconds.setdefault(job.task.name, []).append(time.perf_counter() - start)
            state = "failed" if record and record.status == "failed" else "done"
        self.claims.release(fingerprint)
        found[index] = record
        if self.progress and record is not None:
            rest = [jobs[other] for other in range(len(jobs)) if other not in found]
            self._report(job, record, state, len(found), len(jobs), rest)
        return True

    def _claim(self, fingerprint: str, wait: bool) -> bool:
        """Claim a run for all processes of this sweep; the first one asks."""
        claimed: list[Any] = [None]
        if self.processes.is_main_process:
            claimed = [self.claims.claim(fingerprint, wait)]
        if self.processes.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(claimed)
        return bool(claimed[0])

    def _finished(self) -> dict[str, RunRecord]:
        """Return fingerprint -> record of the successful runs, the same in every process."""
        found: list[Any] = [None]
        if self.processes.is_main_process:
            records, problems = self.store.read()
            for problem in map(str, problems):
                if problem not in self._warned:
                    print(f"warning: {problem}", file=sys.stderr)
                self._warned.add(problem)
            good = (record for record in records if record.status == "ok")
            found = [{record.record_id.partition("-")[0]: record for record in good}]
        if self.processes.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found)
        return found[0]

    def _method(self, cell: Cell) -> tuple[Method | None, BaseException | None]:
        try:
            return self.runner.set_method(cell.method, cell.params), None
        except Exception as error:
            return None, error

    def _fingerprint(self, job: _Job, method: Method | None) -> str:
        identity = {
            "code": self.code,
            "checkpoint": self.runner.info.checkpoint_hash or self.runner.info.name,
            "settings": self.runner.settings,
            "method": job.cell.method,
            "parameters": method.parameters() if method else job.cell.params,
            "budget": job.cell.budget,
            "task": job.task.name,
            "data": self.hashes.get(job.task.name),
            # Another device or library is another run: numbers differ, if only in the last digit.
            "versions": self.environment.versions,
            "device": self.environment.device,
            "image_backend": self.environment.image_backend,
        }
        text = json.dumps(identity, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _evaluate(
        self, job: _Job, method: Method | None, error: BaseException | None, fingerprint: str
    ) -> RunRecord | None:
        """Run one job, store its record and return it (None where another process does)."""
        record = self._record(job, method, fingerprint)
        if isinstance(job.task, FailedTask):
            record = replace(record, status="failed", error=job.task.error)
            return self.store.append(record) if self.processes.is_main_process else None
        rows = None
        start = time.perf_counter()
        try:
            if error is not None or method is None:
                raise error or RuntimeError("no method")
            with quiet(self.store.folder):
                result = self._simple_evaluate(job.task)
            if result is None:
                return None
            logged = results.logged_samples(result, job.task)
            rows = results.rows(job.task, logged)
            seconds = time.perf_counter() - start
            record = replace(
                record,
                scores=results.scores(result, job.task, logged),
                counted=results.counted(rows, method, self.runner.spec),
                measured={"evaluation_time": Measured(seconds, None, 1, "s", False)},
            )
            record.validate()
        except Exception as failure:
            if self.processes.num_processes > 1 and error is None:
                # The other processes wait for this one: going on alone would hang them all.
                raise
            rows = None
            record = replace(
                record, status="failed", error=one_line(failure), scores={}, counted={}, measured={}
            )
        if not self.processes.is_main_process:
            return None
        return self.store.append(record, rows)

    def _record(self, job: _Job, method: Method | None, fingerprint: str) -> RunRecord:
        task = job.task
        return RunRecord(
            kind="evaluation",
            record_id=f"{fingerprint}-{uuid.uuid4().hex[:8]}",
            model=self.runner.info,
            method=MethodInfo(
                job.cell.method,
                str(job.cell),
                method.parameters() if method else storable(job.cell.params),
                job.cell.budget if job.cell.budget is None or isfinite(job.cell.budget) else None,
            ),
            task=self._task_info(task),
            environment=self.environment,
        )

    def _task_info(self, task: LoadedTask | FailedTask) -> TaskInfo:
        prompts = self.prompts if task.benchmark else None
        if isinstance(task, FailedTask):
            return TaskInfo(task.name, self.suite, prompts=prompts)
        return TaskInfo(
            task.name,
            self.suite,
            task.split,
            self.hashes[task.name],
            task.metric,
            task.higher_is_better,
            task.scale,
            task.samples(self.limit),
            prompts,
        )

    def _simple_evaluate(self, task: LoadedTask) -> dict[str, Any] | None:
        """Run lmms-eval on one task, with smaller batches for as long as memory runs out."""
        size = self.batch_size
        while True:
            try:
                return evaluate(self.runner.adapter(size), task, self.limit, self.store.folder)
            except Exception as error:
                rows = LARGEST_BATCH if size == "auto" else int(size)
                if self.batch_size != "auto" or rows == 1 or not out_of_memory(error):
                    raise
                size = rows // 2
                print(f"out of memory: trying batch size {size}", file=sys.stderr)

    def _report(
        self,
        job: _Job,
        record: RunRecord,
        state: str,
        done: int,
        total: int,
        rest: Sequence[_Job],
    ) -> None:
        assert record.task is not None
        if record.status == "failed":
            what = record.error
        else:
            metric = record.task.metric or ""
            score = record.scores[metric]
            error = "" if score.stderr is None else f" ± {score.stderr:.4g}"
            what = f"{metric} {score.value:.4g}{error} (n={score.n})"
        left = self._seconds_left(rest)
        print(
            f"[{done}/{total}] {job.cell}, {job.task.name}: {state}, {what}; "
            f"{_duration(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def _seconds_left(self, jobs: Sequence[_Job]) -> float:
        """Return an estimate from this sweep's own times, per task where it was seen."""
        everything = [value for values in self.seconds.values() for value in values]
        overall = sum(everything) / len(everything) if everything else 0.0
        total = 0.0
        for job in jobs:
            own = self.seconds.get(job.task.name)
            total += sum(own) / len(own) if own else overall
        return total


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
