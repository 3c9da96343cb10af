"""Mutation run over the core: small changes to the code that a test must notice.

``python tools/mutate.py --count 40 --seed 1 --results mutants.jsonl`` draws 40 mutants from the
modules of :data:`TESTS`, runs for each the tests that belong to its module, and prints the score.
A drawn mutant is one replaced operator, number or keyword on one line of code (docstrings, comments
and the lines of error messages are left alone).  Results are appended one JSON line a mutant, and
those already there are not run again, so a run can be stopped and continued.  Works on a copy of
the repository: the working tree is not touched.

``--list`` prints the mutants with their lines; ``--only PATH`` limits the modules.
Exit status: 0 if every drawn mutant was killed, 1 if one survived.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_ENGINE = ["tests/core/test_cache_rows.py", "tests/core/test_stream_and_cache.py"]
_METHODS = ["tests/methods/test_counts.py", "tests/methods/test_plans.py"]
_PLUGIN = ["tests/plugins/test_request_rules.py", "tests/plugins/test_adapter.py"]
_COSTS = ["tests/profiling/test_overheads.py", "tests/profiling/test_components.py"]
TESTS: dict[str, list[str]] = {
    "dynllava/engine/attention.py": [*_ENGINE, *_METHODS, "tests/core/test_invariants.py"],
    "dynllava/engine/cache.py": [*_ENGINE, "tests/core/test_invariants.py"],
    "dynllava/engine/decoder.py": [*_ENGINE, *_METHODS, "tests/core/test_invariants.py"],
    "dynllava/engine/eviction.py": ["tests/methods/test_h2o.py", *_ENGINE],
    "dynllava/engine/stream.py": [*_ENGINE, *_METHODS, "tests/core/test_invariants.py"],
    "dynllava/inputs.py": [*_METHODS, "tests/core/test_invariants.py", "tests/core/test_model.py"],
    "dynllava/predictors.py": ["tests/methods/test_counts.py", "tests/core/test_conformance.py"],
    "dynllava/methods/dynamic_llava.py": [*_METHODS, "tests/core/test_conformance.py"],
    "dynllava/methods/fastv.py": [*_METHODS, "tests/methods/test_selection.py", *_COSTS],
    "dynllava/methods/h2o.py": ["tests/methods/test_h2o.py", *_METHODS, *_COSTS],
    "dynllava/methods/sparsevlm.py": [*_METHODS, "tests/methods/test_golden_baselines.py"],
    "dynllava/methods/budget.py": ["tests/methods/test_budget_rounding.py", *_METHODS],
    "dynllava/profiling/ledger.py": [*_COSTS, "tests/profiling/test_ledger.py"],
    "dynllava/profiling/kv.py": [
        "tests/profiling/test_components.py",
        "tests/profiling/test_estimates.py",
        "tests/profiling/test_real_runs.py",
    ],
    "dynllava/benchmarks/text_metrics.py": ["tests/benchmarks/test_main_scores.py"],
    "dynllava/records/store.py": ["tests/test_record_durability.py", "tests/test_records.py"],
    "dynllava/uncertainty/paired.py": ["tests/uncertainty/test_paired.py"],
    "dynllava/uncertainty/families.py": ["tests/uncertainty/test_medians.py"],
    "plugins/lmms_eval_dynllava/adapter.py": _PLUGIN,
    "plugins/lmms_eval_dynllava/efficiency.py": _PLUGIN,
    "plugins/lmms_eval_dynllava/engine.py": _PLUGIN,
    "plugins/lmms_eval_dynllava/prompts.py": _PLUGIN,
}
"""Module -> the quick tests that must notice a change of it."""

SWAPS: dict[str, tuple[str, ...]] = {
    "<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"),
    "==": ("!=",), "!=": ("==",), "+": ("-",), "-": ("+",), "*": ("+",), "//": ("*",),
    "%": ("+",), "&": ("|",), "|": ("&",), "+=": ("-=",), "-=": ("+=",), "&=": ("|=",),
    "and": ("or",), "or": ("and",), "True": ("False",), "False": ("True",),
    "min": ("max",), "max": ("min",), "amax": ("amin",), "amin": ("amax",),
    "argmax": ("argmin",), "floor": ("ceil",), "any": ("all",), "all": ("any",),
    "break": ("continue",), "continue": ("break",),
}  # fmt: skip
PASSED_OVER = ("raise ", "import ", "from ", "def ", "class ", "assert ", "@", "note(")


@dataclass(frozen=True)
class Mutant:
    """One change: ``old`` at (line, column) of ``path`` becomes ``new``."""

    path: str
    line: int
    column: int
    old: str
    new: str

    @property
    def key(self) -> str:
        """What identifies it in a results file."""
        return f"{self.path}:{self.line}:{self.column}:{self.old}>{self.new}"


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    depth_of_message = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text, first = token.string, token.line.strip()
        if first.startswith("raise "):
            depth_of_message = 1
        elif token.type == tokenize.NEWLINE:
            depth_of_message = 0
        if depth_of_message or first.startswith(PASSED_OVER) or (text == "|" and "None" in first):
            continue
        line, column = token.start
        if token.type in (tokenize.OP, tokenize.NAME) and text in SWAPS:
            binary = token.line[column - 1 : column + 2] == f" {text} "
            if text in ("*", "-") and not binary:
                continue  # an unpacked argument, a sign
            for new in SWAPS[text]:
                yield Mutant(path, line, column, text, new)
        elif token.type == tokenize.NUMBER and text.isdecimal():
            yield Mutant(path, line, column, text, str(int(text) + 1))


def applied(source: str, mutant: Mutant) -> str:
    """Return the module's text with the mutant in it."""
    lines = source.splitlines(keepends=True)
    row, column = lines[mutant.line - 1], mutant.column
    lines[mutant.line - 1] = row[:column] + mutant.new + row[column + len(mutant.old) :]
    return "".join(lines)


def killed(folder: Path, mutant: Mutant, timeout: float) -> str:
    """Return ``killed``, ``survived`` or ``timeout`` (which counts as killed)."""
    target = folder / mutant.path
    source = target.read_text()
    target.write_text(applied(source, mutant))
    paths = os.pathsep.join([str(folder), str(folder / "plugins")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *TESTS[mutant.path]],
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=timeout,
            preexec_fn=lambda: os.nice(15),
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        target.write_text(source)
    return "survived" if done.returncode == 0 else "killed"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    paths = [path for path in TESTS if not arguments.only or path in arguments.only]
    generator = random.Random(arguments.seed)
    by_path = {path: list(mutants(path, (ROOT / path).read_text())) for path in paths}
    for found in by_path.values():
        generator.shuffle(found)
    # Module after module, so that a small sample touches all of them.
    turns = [found[turn] for turn in range(max(map(len, by_path.values()), default=0))
             for found in by_path.values() if turn < len(found)]  # fmt: skip
    drawn = turns[: arguments.count]
    if arguments.list:
        print("\n".join(mutant.key for mutant in drawn))
        return 0
    lines = arguments.results.read_text().splitlines() if arguments.results.is_file() else []
    known = {entry["key"]: entry["outcome"] for entry in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository"
        ignored = shutil.ignore_patterns(".git", ".tox", ".hypothesis", "__pycache__", "runs")
        shutil.copytree(ROOT, folder, ignore=ignored)
        for mutant in drawn:
            if mutant.key not in known:
                known[mutant.key] = killed(folder, mutant, arguments.timeout)
                entry = {"key": mutant.key, "outcome": known[mutant.key], **asdict(mutant)}
                with arguments.results.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            print(f"{known[mutant.key]:9}{mutant.key}", flush=True)
    survived = [mutant.key for mutant in drawn if known[mutant.key] == "survived"]
    print(f"{len(drawn) - len(survived)} of {len(drawn)} killed")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
