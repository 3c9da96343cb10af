"""A sweep in a process of its own, to be killed or launched twice: STORE TASKS SECONDS."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from benchmark_fixtures import FIXTURES
from benchmark_scripted import ScriptedModel, ScriptedRunner

from dynllava.evaluation.sweep import Cell, run_sweep

TASKS = ("gqa", "pope", "mmvp")
CELLS = (Cell("full"), Cell("random", {"output_keep_rate": 0.5}), Cell("structure"))
ANSWERS = {cell.method: {name: FIXTURES[name].answers for name in TASKS} for cell in CELLS}


class SlowRunner(ScriptedRunner):
    """Takes a while for every run."""

    seconds = 0.0

    def adapter(self, batch_size) -> ScriptedModel:
        time.sleep(self.seconds)
        return super().adapter(batch_size)


if __name__ == "__main__":
    import dynllava.records.environment

    dynllava.records.environment.code_version = lambda: "test"
    store, tasks, seconds = sys.argv[1:]
    runner = SlowRunner(ANSWERS)
    runner.seconds = float(seconds)
    run_sweep("scripted", CELLS, TASKS, store=store, folders=[tasks], runner=runner)
