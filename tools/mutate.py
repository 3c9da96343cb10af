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
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_ENGINE = ["tests/core/test_cache_rows.py", "tests/core/test_stream_and_cache.py"]
_RUNS = [*_ENGINE, "tests/core/test_invariants.py", "tests/methods/test_counts.py"]
_PLANS = ["tests/methods/test_plans.py", "tests/methods/test_selection.py"]
_PLUGIN = ["tests/plugins/test_request_rules.py", "tests/plugins/test_adapter.py"]
_COSTS = ["tests/costs/test_components.py", "tests/costs/test_estimates.py"]
TESTS: dict[str, list[str]] = {
    "dynllava/engine/attention.py": _RUNS,
    "dynllava/engine/cache.py": _RUNS,
    "dynllava/engine/decoder.py": _RUNS,
    "dynllava/engine/eviction.py": ["tests/methods/test_h2o.py", *_ENGINE],
    "dynllava/engine/program.py": [*_RUNS, *_PLANS],
    "dynllava/engine/ranking.py": ["tests/methods/test_counts.py", *_PLANS],
    "dynllava/engine/rows.py": [*_RUNS, *_PLANS],
    "dynllava/engine/stream.py": _RUNS,
    "dynllava/plan/plan.py": [*_PLANS, "tests/methods/test_budget_and_composition.py"],
    "dynllava/plan/keeps.py": ["tests/methods/test_counts.py", *_PLANS],
    "dynllava/plan/looks.py": [*_PLANS, "tests/costs/test_overheads.py"],
    "dynllava/plan/schedule.py": [*_PLANS, "tests/costs/test_ledger.py"],
    "dynllava/plan/stores.py": ["tests/methods/test_h2o.py", *_PLANS],
    "dynllava/methods/predictors.py": [
        "tests/methods/test_counts.py",
        "tests/core/test_conformance.py",
    ],
    "dynllava/methods/dynamic_llava.py": ["tests/methods/test_counts.py", *_PLANS],
    "dynllava/methods/sparsevlm.py": [*_PLANS, "tests/methods/test_golden_baselines.py"],
    "dynllava/methods/uniform.py": ["tests/methods/test_controls.py", *_PLANS],
    "dynllava/methods/budget.py": ["tests/methods/test_budget_rounding.py", *_PLANS],
    "dynllava/costs/ledger.py": [*_COSTS, "tests/costs/test_ledger.py"],
    "dynllava/costs/kv.py": _COSTS,
    "dynllava/costs/roofline.py": ["tests/costs/test_components.py"],
    "dynllava/images.py": ["tests/test_images.py"],
    "dynllava/output/cells.py": ["tests/test_inputs_and_provenance.py"],
    "dynllava/models/finite_logits.py": ["tests/test_inputs_and_provenance.py"],
    "dynllava/tasks/text_metrics.py": ["tests/evaluation/test_main_scores.py"],
    "dynllava/records/store.py": ["tests/test_record_durability.py", "tests/test_records.py"],
    "dynllava/uncertainty/paired.py": ["tests/uncertainty/test_paired.py"],
    "dynllava/uncertainty/families.py": ["tests/uncertainty/test_medians.py"],
    "plugins/lmms_eval_dynllava/adapter.py": _PLUGIN,
    "plugins/lmms_eval_dynllava/efficiency.py": _PLUGIN,
    "plugins/lmms_eval_dynllava/engine.py": _PLUGIN,
    "plugins/lmms_eval_dynllava/prompts.py": [*_PLUGIN, "tests/test_images.py"],
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


def warm_up() -> None:
    """Import what every test needs once: each mutant runs in a fork of this process."""
    import accelerate  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers.models.llava.modeling_llava  # noqa: F401

    with contextlib.suppress(ImportError):
        import lmms_eval.tasks  # noqa: F401
    torch.set_num_threads(1)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "dynllava"]
    assert not loaded, f"the fork would run the installed {loaded}"


def copy_repository(folder: Path) -> None:
    """Copy the repository to ``folder``, so that its packages are imported from there."""
    ignored = shutil.ignore_patterns(".git", ".tox", ".hypothesis", "__pycache__", "runs")
    shutil.copytree(ROOT, folder, ignore=ignored)
    # Packages that live elsewhere in the tree are found through their parent before the installed
    # ones are.
    (folder / "dynllava" / "analysis").symlink_to(folder / "analysis")
    (folder / "dynllava" / "paper").symlink_to(folder / "results" / "paper")


def run_tests(folder: Path, arguments: list[str], timeout: float) -> str:
    """Return ``killed`` (a test failed), ``survived`` or ``timeout``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            os.nice(15)
            signal.alarm(int(timeout))
            sink = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(sink, descriptor)
            sys.path[:0] = [str(folder), str(folder / "plugins")]
            sys.dont_write_bytecode = True
            import pytest

            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments])
        finally:
            os._exit(int(code))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def killed(folder: Path, mutant: Mutant, timeout: float) -> str:
    """Return ``killed``, ``survived`` or ``timeout`` (which counts as killed)."""
    target = folder / mutant.path
    source = target.read_text()
    target.write_text(applied(source, mutant))
    try:
        return run_tests(folder, TESTS[mutant.path], timeout)
    finally:
        target.write_text(source)


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
        copy_repository(folder)
        warm_up()
        for tests in {tuple(TESTS[mutant.path]) for mutant in drawn if mutant.key not in known}:
            # A test that fails anyway would kill every mutant.
            if run_tests(folder, list(tests), arguments.timeout) != "survived":
                raise SystemExit(f"without any mutant, a test fails in {', '.join(tests)}")
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
