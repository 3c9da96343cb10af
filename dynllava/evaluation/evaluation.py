"""Running lmms-eval on one loaded task in this process."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from dynllava.tasks.loading import LoadedTask

LOG_NAME = "sweep.log"


def evaluate(
    adapter: Any, task: LoadedTask, limit: int | None, output: Path
) -> dict[str, Any] | None:
    """Run lmms-eval in this process on one loaded task; None in all but the first process."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    return simple_evaluate(
        model=adapter,
        tasks=[task.task],
        task_manager=TaskManager(include_defaults=False),
        limit=limit,
        # Standard errors are ours (see statistics), so upstream need not draw bootstraps.
        bootstrap_iters=0,
        cli_args=argparse.Namespace(output_path=str(output), process_with_media=False),
    )


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Send what lmms-eval prints (bars, tables per task) to a log file in the store's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / LOG_NAME).open("a", encoding="utf-8")
    with log, redirect_stdout(log), redirect_stderr(log):
        yield


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory ran out."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
