"""Start workers one after the other within the time; resume what a kill or the clock cut short."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynllava.errors import UserError

from .journal import Journal
from .shapes import Shape, load_shape
from .steps import PARTS, Step, planned

WORKER = (sys.executable, "-m", "dynllava.timing.campaign.worker")

GRACE = 3.0
"""Seconds that a worker has to stop by itself when the time is up; then it is killed."""

STARTING = 10.0
"""Seconds that are not worth starting a worker for."""

PATIENCE = 30.0
"""Seconds to wait for the worker of a killed campaign, which stops once it sees that."""


def run(
    folder: str | os.PathLike[str],
    minutes: float,
    *,
    shape: str = "7b",
    part: int | None = None,
    device: str | None = None,
    start: float | None = None,
) -> int:
    """Measure for ``minutes``, or until all is done; return 0, or 1 if a step was given up.

    ``start`` is when the time began (``time.time()``; default: now).

    Raises
    ------
    UserError
        If an argument is wrong, the device is not there, or a campaign runs in ``folder``.
    """
    start = time.time() if start is None else start
    chosen = load_shape(shape)
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g}: accepted is more than 0")
    if part is not None and part not in PARTS:
        accepted = "; ".join(f"{number}: {text}" for number, text in PARTS.items())
        raise UserError(f"--part {part}: accepted are {accepted}")
    device = device or chosen.device
    _check_device(device)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    deadline = start + 60 * minutes
    with _lock(path) as lock:
        steps = planned(chosen, part)
        while True:
            journal = Journal(path)
            pending = [step for step in steps if step.key not in journal.finished()]
            if not pending or time.time() + STARTING > deadline:
                break
            _work(path, chosen, device, _group(pending), deadline, lock)
        return _report(path, steps, time.time() - start)


def _group(pending: Sequence[Step]) -> list[str]:
    """Return the next steps that share a process: those of one pass."""
    return [step.key for step in pending if step.number == pending[0].number]


def _work(
    folder: Path, shape: Shape, device: str, steps: Sequence[str], deadline: float, lock: int
) -> None:
    """Run a worker until it ends or the time is up; note a step that it died in."""
    command = [*WORKER, "--folder", str(folder)]
    command += ["--shape", shape.name, "--device", device, "--dtype", shape.dtype]
    command += ["--deadline", str(deadline), "--parent", str(os.getpid()), "--steps", *steps]
    worker = subprocess.Popen(command, pass_fds=(lock,))
    try:
        code = worker.wait(timeout=max(0.0, deadline - time.time()) + GRACE)
    except subprocess.TimeoutExpired:
        code = 0  # the clock's doing, not a failure of the step
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    running = Journal(folder).running()
    if code not in (0, 3, 4):
        running = running or steps[0]  # it did not even start
        Journal(folder).add("failed", running, error=f"the process ended with code {code}")
        print(f"{running}: the process ended with code {code}", flush=True)


def _check_device(device: str) -> None:
    import torch

    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device {device!r}: accepted are cpu, cuda, cuda:0 ...")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here: --shape tiny rehearses a campaign on a CPU")


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Hold the folder; a worker inherits the lock, so that an orphan keeps it until it stops."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    until = time.time() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.time() > until:
                    raise UserError(f"{folder}: another campaign is running there", 1) from None
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def _report(folder: Path, steps: Sequence[Step], seconds: float) -> int:
    """Print what is done and what is not; return the exit code."""
    journal = Journal(folder)
    done = {entry["step"] for entry in journal.of("done")}
    given_up = [step.key for step in steps if step.key in journal.finished() - done]
    left = [step.key for step in steps if step.key not in journal.finished()]
    failed = [entry for entry in journal.of("check") if entry["passed"] is False]
    print(f"{sum(step.key in done for step in steps)} of {len(steps)} steps done in {folder}, "
          f"{seconds:.0f} s")  # fmt: skip
    for entry in failed:
        print(f"failed check: {entry['name']}: {entry['detail']}")
    for key in given_up:
        print(f"given up: {key}: {journal.of('failed', key)[-1]['error']}")
    if left:
        print(f"next: {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}; the same command "
              "goes on")  # fmt: skip
    print(f"records: {folder}/records.jsonl; python -m dynllava.suites.page writes the page")
    return 1 if given_up or failed else 0
