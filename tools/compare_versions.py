"""Is this checkout slower than another one?  Prefill and decode step of every method, in turns.

``python tools/compare_versions.py OLD`` with OLD a folder that holds another version of the code
(``git archive COMMIT | tar -x -C OLD``).  Each of ``--processes`` processes loads both versions,
gives their models the same random weights and prompts, and times them in turns for ``--rounds``
rounds; its figure is the median of the rounds' ratios new / old, in process CPU time.  Printed are
the median over processes and its 95 % interval (order statistics; from six processes on).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parents[1]
#: Where the timing modules are: now, and before the rooms were named.
PLACES = (
    ("dynllava.timing.speed", "dynllava.timing.bench_model", "dynllava.costs.spec",
     "dynllava.engine.attention"),
    ("dynllava.profiling.speed", "dynllava.profiling.bench_model", "dynllava.profiling.spec",
     "dynllava.attention"),
)  # fmt: skip
QUANTITIES = ("prefill_cpu", "tpot_cpu")


class Version:
    """One version of the package: its modules are in ``sys.modules`` while it is used."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.modules = folder, {}
        with self.used():
            rooms = folder / "dynllava" / "timing"
            place = PLACES[0] if rooms.is_dir() else PLACES[1]
            self.speed, self.bench_model, self.spec, self.attention = map(
                importlib.import_module, place
            )
            self.methods = importlib.import_module("dynllava.methods")
            self.names = set(self.methods.names())

    modules: dict[str, ModuleType]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Import from this version's folder; functions that import late find its modules."""
        others = {name: sys.modules.pop(name) for name in _loaded()}
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.folder))
        if self.modules:
            # Both versions give transformers a function under the same name.
            self.attention.register()
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            self.modules = {name: sys.modules.pop(name) for name in _loaded()}
            sys.modules.update(others)

    def prepare(self, args: argparse.Namespace) -> tuple[Any, Any]:
        """Return the timed model and its inputs."""
        with self.used():
            spec = self.spec.load_spec(args.model)
            bench = self.bench_model.random_bench(spec, "cpu", "float32")
            shape = spec.prompt(args.prompt_tokens)
            return bench, self.speed.make_inputs(bench, shape, args.batch, args.outputs)

    def time(self, bench: Any, inputs: Any, text: str, outputs: int) -> tuple[dict, list]:
        """Return the seconds of one run, and the entries that each layer stored."""
        with self.used():
            subject = self.speed.Subject(bench, text, self.methods.create(text))
            seconds = subject.time(inputs, outputs).seconds
            return seconds, bench.wrapped.last_report.kv_lengths


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "dynllava"]


def one_process(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return {method: {quantity: median ratio}} of this process."""
    import torch

    torch.set_num_threads(1)
    # An editable install finds its own version of what another one lacks.
    sys.meta_path[:] = [item for item in sys.meta_path if "editable" not in item.__module__]
    versions = {"old": Version(args.old.resolve()), "new": Version(HERE)}
    ready = {name: version.prepare(args) for name, version in versions.items()}
    shared = versions["old"].names & versions["new"].names
    found = {}
    for text in args.methods or sorted(shared):
        ratios: dict[str, list[float]] = {name: [] for name in QUANTITIES}
        same = True
        for number in range(args.rounds + 1):
            seconds, kept = {}, {}
            # Who begins changes from round to round.
            order = list(versions) if number % 2 else list(reversed(versions))
            for name in order:
                bench, inputs = ready[name]
                seconds[name], kept[name] = versions[name].time(bench, inputs, text, args.outputs)
            same = same and kept["old"] == kept["new"]
            if number:  # the first round warms up
                for name in QUANTITIES:
                    ratios[name].append(seconds["new"][name] / seconds["old"][name])
        found[text if same else f"{text} (other lengths)"] = {
            name: statistics.median(values) for name, values in ratios.items()
        }
    return found


def interval(values: list[float]) -> str:
    """Return the median and its 95 % interval by order statistics."""
    values = sorted(values)
    count, median = len(values), statistics.median(values)
    if count < 6:
        return f"{median:.3f} ({count} processes)"
    # The widest rank whose two tails hold at most 5 %.
    from scipy.stats import binom

    rank = max(1, int(binom.ppf(0.025, count, 0.5)))
    return f"{median:.3f} [{values[rank - 1]:.3f}, {values[-rank]:.3f}]"


def main() -> int:
    """Run the processes one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="folder with the other version")
    parser.add_argument("--methods", nargs="+", help="default: every method of both versions")
    parser.add_argument("--model", default="mid-size")
    parser.add_argument("--prompt-tokens", type=int, default=56)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--outputs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_process(args)))
        return 0
    all_found: dict[str, dict[str, list[float]]] = {}
    for number in range(args.processes):
        print(f"process {number + 1} of {args.processes}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one"], stdout=subprocess.PIPE, check=True
        )
        for method, values in json.loads(done.stdout.splitlines()[-1]).items():
            kept = all_found.setdefault(method, {name: [] for name in QUANTITIES})
            for name, value in values.items():
                kept[name].append(value)
    print("method: prefill, step (new / old, process CPU time; median [95 % interval])")
    for method, quantities in all_found.items():
        print(f"{method}: {', '.join(interval(quantities[name]) for name in QUANTITIES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
