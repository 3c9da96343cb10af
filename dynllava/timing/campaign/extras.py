"""Part 1, 4 and 5: checks, peak memory, a training step, generation on the embedded scenes."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dynllava.costs import kv, ledger
from dynllava.methods.presets import MEASURED
from dynllava.plan.names import FULL, LEARNED
from dynllava.records import Counted, Measured, MethodInfo, ModelInfo, RunRecord, TaskInfo

from .. import bench
from ..bench_report import describe, measured_rounds
from ..peak import peak_memory
from ..speed import process_name
from . import smoke
from .session import Session
from .steps import Step

MEMORY_OUTPUTS = 16
ROOT = Path(__file__).parents[3]
"""Of a checkout: where the tests and ``benchmarks`` lie."""


def run_smoke(session: Session, step: Step) -> None:
    """Run every check, write each; then ``pytest -m gpu`` where there are a GPU and the tests."""
    for check in smoke.checks(
        session.shape.spec, session.device, session.dtype, session.shape.compiler
    ):
        session.journal.add("check", step.key, **vars(check))
        says = {True: "passed", False: "FAILED", None: "not run"}[check.passed]
        print(f"smoke, {check.name}: {says} ({check.detail})", flush=True)
        session.check()
    reason = "needs CUDA" if not session.cuda else ""
    if not importlib.util.find_spec("pytest") or not (ROOT / "tests").is_dir():
        reason = "pytest or the tests are not here"
    passed, detail = None, reason
    if not reason:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-x"]
        done = _bounded(session, [*command, "tests/timing/test_gpu.py"])
        passed, detail = done.returncode == 0, (done.stdout.splitlines() or [""])[-1]
    session.journal.add("check", step.key, name="pytest -m gpu", passed=passed, detail=detail)
    print(f"smoke, pytest -m gpu: {detail}", flush=True)


def _bounded(session: Session, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command from the checkout's root within the time that is left."""
    left = max(1.0, session.deadline - time.time())
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False
    )


def run_memory(session: Session, step: Step) -> None:
    """Measure the peak of prefill and a few steps, and fit what the estimate leaves out.

    The estimate is :func:`dynllava.costs.kv.memory_bytes`: weights, KV cache, working set of
    the MLP.  ``peak - estimate`` is its overhead (``memory_overhead``, bytes).
    """
    shape = session.shape
    plan = bench.Plan(shape.spec.prompt(shape.text), step.batch, MEMORY_OUTPUTS, 1, what="memory")
    ready, inputs = bench.prepare(session.subjects(shape.spec, MEASURED), plan)
    for subject in ready:
        session.check()
        work = functools.partial(subject.time, inputs, plan.outputs)
        times = work()
        peak = peak_memory(ready[0].bench.device, work)
        if peak is None:
            continue
        run = subject.run_of(plan.shape, plan.outputs, plan.batch, times.output_keep)
        estimate = kv.memory_bytes(run, session.dtype)
        weights = run.spec.weight_bytes(session.dtype)
        if not session.cuda:
            estimate -= weights  # the growth of a process, which holds its weights already
        model, method = describe(subject)
        note = f"batch {plan.batch}, {'weights included' if session.cuda else 'without weights'}"
        session.append(
            RunRecord(
                kind="bench",
                model=model,
                method=method,
                task=_task(f"memory-b{plan.batch}-t{shape.text}-i{plan.shape.image}"
                           f"-o{plan.outputs}"),
                measured={
                    "peak_memory": Measured(peak, None, 1, "byte", False),
                    "memory_overhead": Measured(peak - estimate, None, 1, "byte", False),
                },
                counted={
                    "memory_estimate": Counted(estimate, "byte", note, "prefill and decode"),
                    "working_set": Counted(
                        kv.activation_bytes(run, session.dtype), "byte", note, "prefill"
                    ),
                    "kv_bytes_allocated": Counted(times.kv_allocated, "byte", note, "decode"),
                    "prefill_macs": Counted(
                        ledger.total(ledger.entries(run, "prefill", vision=False)),
                        "MAC", note, "prefill",
                    ),
                },
                environment=session.environment(),
            )
        )  # fmt: skip
        session.journal.add(
            "memory", step.key, subject=subject.name, batch=plan.batch, peak=peak,
            estimate=estimate, working=kv.activation_bytes(run, session.dtype),
        )  # fmt: skip
    fit_overhead(session)


def fit_overhead(session: Session) -> dict[str, Any] | None:
    """Fit ``peak - estimate = constant + factor x working set`` to all that was measured.

    Written to ``memory_fit.json`` (bytes; ``residual`` is the largest deviation).  None with
    fewer than three measurements.
    """
    import numpy as np

    found = session.journal.of("memory")
    if len(found) < 3:
        return None
    working = np.array([entry["working"] for entry in found], float)
    over = np.array([entry["peak"] - entry["estimate"] for entry in found], float)
    table = np.stack([np.ones_like(working), working], 1)
    solution, *_ = np.linalg.lstsq(table, over, rcond=None)
    residual = float(np.abs(table @ solution - over).max())
    fit: dict[str, Any] = {
        "constant": float(solution[0]),
        "factor": float(solution[1]),
        "residual": residual,
        "measurements": len(found),
        "device": session.environment().device,
    }
    (session.folder / "memory_fit.json").write_text(json.dumps(fit, indent=2) + "\n")
    print(
        f"memory: peak = estimate {fit['constant'] / 2**20:+.0f} MiB "
        f"{fit['factor']:+.2f} x working set, within {residual / 2**20:.0f} MiB "
        f"({len(found)} measurements)",
        flush=True,
    )
    return fit


def run_training(session: Session, step: Step) -> None:
    """Time a training step under the masked softmax against plain fine-tuning, in turns."""
    from ..training_step import SHAPES, compare_steps

    repeats = session.shape.rounds["training"]
    name = session.shape.training
    session.check(5.0 if session.cuda else 0.0)
    steps = compare_steps(SHAPES[name], session.device, session.dtype, repeats, False)
    for record in training_records(steps, name, session.environment()):
        session.append(record)


def training_records(steps: Any, name: str, environment: Any) -> list[RunRecord]:
    """Return the records of a :class:`dynllava.timing.training_step.Comparison`."""
    from ..stats import paired_ratios
    from ..training_step import IMAGE_TOKENS, SHAPES

    shape, records = SHAPES[name], []
    for label, method in (("plain", FULL), ("policy", LEARNED), ("predictors", LEARNED)):
        seconds = steps.seconds[label]
        process = [process_name()] * len(seconds)
        ratios = paired_ratios(seconds, steps.seconds["plain"])
        measured = {
            "training_step": measured_rounds(seconds, process, "s", False),
            "time_ratio_training": measured_rounds(ratios, process, "1", False),
        }
        if steps.peak_bytes[label] is not None:
            measured["peak_memory"] = Measured(steps.peak_bytes[label], None, 1, "byte", False)
        records.append(
            RunRecord(
                kind="bench",
                model=ModelInfo(
                    f"{name} (random weights)", None, shape.layers, shape.hidden, IMAGE_TOKENS
                ),
                method=MethodInfo(method, label=f"{label} training step"),
                task=_task(f"training-b{shape.batch}-n{shape.length}"),
                measured=measured,
                environment=environment,
            )
        )
    return records


def run_generation(session: Session, step: Step) -> None:
    """Answer embedded questions, batch 1 against a larger one; through lmms-eval where it is."""
    from .generation import generation_records

    for record in generation_records(session, step):
        session.append(record)
    # The rehearsal leaves lmms-eval out: it has to run the same with it and without it.
    if session.shape.name != "tiny" and importlib.util.find_spec("lmms_eval"):
        command = [sys.executable, "-m", "dynllava.suites.evaluation", "--device", session.device]
        done = _bounded(session, [*command, "--store", str(session.folder.resolve())])
        print(done.stdout if done.returncode == 0 else done.stderr[-500:], flush=True)


def _task(name: str) -> TaskInfo:
    return TaskInfo(name, suite="speed")
