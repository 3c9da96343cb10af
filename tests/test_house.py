"""The rooms of the house: who may import whom, and where a method's name may stand."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from pathlib import Path

import pytest

from dynllava import methods
from dynllava.methods.base import VERBS, Method
from dynllava.methods.plugins import methods_in

ROOT = Path(__file__).parents[1]
PLACES = {
    "dynllava": ROOT / "dynllava",
    "dynllava.analysis": ROOT / "analysis",
    "dynllava.paper": ROOT / "results" / "paper",
    "lmms_eval_dynllava": ROOT / "plugins" / "lmms_eval_dynllava",
}
ORDER = (
    "errors",
    "_version",
    "_moved",
    "output",
    "plan",
    "uncertainty",
    "paper",
    "published",
    "records",
    "prompts",
    "images",
    "embedded",
    "engine",
    "methods",
    "models",
    "costs",
    "training",
    "conformance",
    "timing",
    "tasks",
    "preflight",
    "lmms_eval_dynllava",
    "analysis",
    "evaluation",
    "reproduction",
    "studies",
    "serving",
    "commands",
    "cli",
    "suites",
)
"""From the ground up: a room imports what stands before it, never what stands behind."""
DOORS = ("__main__", "loading", "wrapping")
"""Public names at the top of the package that lead into a room."""


def modules() -> dict[str, Path]:
    found = {}
    for name, folder in PLACES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((name, *parts))] = path
    return found


MODULES = modules()


def imports(module: str, source: str, package: bool) -> set[tuple[str, bool]]:
    """Return (module, whether inside a function) of every import but those for types alone."""
    found = set()

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            found.update((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = module.split(".")[: None if package else -1]
                above = own[: len(own) - (node.level - 1)]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add((name if name in MODULES else base, inside))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return {(name, inside) for name, inside in found if name in MODULES}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "dynllava" and len(parts) > 1 else parts[0]


def moved(path: Path) -> bool:
    return "_moved import forward" in path.read_text(encoding="utf-8")


def back_arrows(module: str, source: str, package: bool = False) -> list[str]:
    """Return the imports of a module that run back up."""
    here = room(module)
    if here in DOORS or here == "dynllava":
        return []
    return [
        f"{module} imports {other}"
        for other, _ in sorted(imports(module, source, package))
        if room(other) not in (here, "dynllava", *DOORS)
        and ORDER.index(room(other)) > ORDER.index(here)
    ]


def test_no_import_runs_back_up():
    found = []
    for module, path in MODULES.items():
        if not moved(path) and room(module) not in ("benchmarks", "profiling"):
            source = path.read_text(encoding="utf-8")
            found += back_arrows(module, source, path.name == "__init__.py")
    assert found == []


def test_an_import_that_runs_back_up_is_noticed():
    source = "def f():\n    from ..training.losses import keep_rate_loss\n"
    assert back_arrows("dynllava.engine.attention", source) == [
        "dynllava.engine.attention imports dynllava.training.losses"
    ]


def test_every_room_has_its_place_in_the_order():
    rooms = {room(module) for module, path in MODULES.items() if not moved(path)}
    assert rooms - {"dynllava", "benchmarks", "profiling", *DOORS} == set(ORDER)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules from which an import leads back to themselves."""
    found = []
    for start in graph:
        seen, queue = set(), list(graph[start])
        while queue:
            node = queue.pop()
            if node == start:
                found.append(start)
                break
            if node not in seen:
                seen.add(node)
                queue.extend(graph.get(node, ()))
    return sorted(found)


def test_no_module_imports_itself_over_others():
    graph = defaultdict(set)
    for module, path in MODULES.items():
        found = imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
        # An import inside a function runs when both modules are there.
        graph[module] = {other for other, inside in found if not inside and other != module}
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, ["a", "b"]),
    ],
)
def test_circles_are_found(graph, expected):
    assert circles(graph) == expected


# ---------------------------------------------------------------------- methods' names

NAMES_LIVE_IN = ("methods", "published", "paper", "conformance")
"""Rooms that are about methods by name."""
NAMES_ALLOWED: dict[str, dict[str, str]] = {
    "dynllava.plan.names": {
        "full": "the dense model's name, for all rooms",
        "dynamic_llava": "the name of the trained predictors, for all rooms",
    },
    "dynllava.analysis.style": {"*": "colours, markers and printed names"},
    "dynllava.timing.targets": {
        name: "targets are set for a method"
        for name in ("fastv", "sparsevlm", "h2o", "pyramiddrop")
    },
    "dynllava.costs.conventions": {
        name: "how that paper counts" for name in ("fastv", "pyramiddrop")
    },
    "dynllava.embedded.evaluate": {"full": "a condition of the embedded model's own evaluation"},
    "dynllava.costs.spec": {"full": "a value of transformers' vision_feature_select_strategy"},
    "dynllava.models.checkpoints": {
        "full": "a value of transformers' vision_feature_select_strategy"
    },
    "dynllava.models.layout": {"full": "a value of transformers' vision_feature_select_strategy"},
    "dynllava.models.families": {"dynamic_llava": "model_type of our model class"},
    "dynllava.records.lmms_eval_results": {"dynamic_llava": "what lmms-eval calls our model"},
    "lmms_eval_dynllava": {"dynamic_llava": "what lmms-eval calls our model"},
}
"""Module -> {literal: why it may stand there}."""


def method_names(source: str, names: set[str]) -> set[str]:
    """Return the string literals of a module that are, or begin like, a method's text."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value.partition(":")[0]} & names
    return found


def test_methods_are_named_in_their_rooms_only():
    names = set(methods.names())
    found = []
    for module, path in MODULES.items():
        if room(module) in NAMES_LIVE_IN:
            continue
        allowed = NAMES_ALLOWED.get(module, {})
        literals = method_names(path.read_text(encoding="utf-8"), names)
        if "*" not in allowed:
            found += [f"{module}: {name}" for name in sorted(literals - set(allowed))]
    assert found == []


def test_no_exception_is_left_over():
    names = set(methods.names())
    for module, allowed in NAMES_ALLOWED.items():
        assert all(allowed.values())
        if module in MODULES and "*" not in allowed:
            literals = method_names(MODULES[module].read_text(encoding="utf-8"), names)
            assert literals & set(allowed), module


def test_a_method_named_elsewhere_is_noticed():
    source = (
        'def f(x):\n    """About fastv."""\n    return x.name == "fastv" or x == "h2o:heavy=0.2"'
    )
    assert method_names(source, {"fastv", "h2o", "sparsevlm"}) == {"fastv", "h2o"}


def test_shared_modules_hold_no_method():
    for name in methods.SHARED:
        assert methods_in(importlib.import_module(f"dynllava.methods.{name}")) == []


# ---------------------------------------------------------------------- how small a method is

ORIGINALLY = {"h2o": 120, "sparsevlm": 283}
"""Lines of code before plans: a third of them at least has to be gone."""
SIMPLE = ("fastervlm", "divprune", "vispruner", "pyramiddrop", "voco_llama")
MOST_LINES = {
    "fastv": 45,
    "no_image": 15,
    **dict.fromkeys(SIMPLE, 60),
    "cdpruner": 105,
    "visionzip": 150,
    "prumerge": 150,
    "hired": 150,
    "raters": 60,
    "h2o": ORIGINALLY["h2o"] * 2 // 3,
    "sparsevlm": 150,
}


def code_lines(source: str) -> int:
    """Return the lines of a module but for blank ones and docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        first = node.body[0] if isinstance(node, documented) and node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            skipped.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and number not in skipped for number, line in lines)


def test_code_lines_leave_out_docstrings_and_blank_lines():
    source = (
        '"""One.\n\nTwo.\n"""\n\nx = 1\n\n\ndef f():\n    """Say."""\n    # why\n    return x\n'
    )
    assert code_lines(source) == 4


def test_sparsevlm_is_a_third_shorter_with_its_raters():
    parts = [ROOT / "dynllava" / "methods" / f"{name}.py" for name in ("sparsevlm", "raters")]
    lines = sum(code_lines(path.read_text(encoding="utf-8")) for path in parts)
    assert lines <= ORIGINALLY["sparsevlm"] * 2 // 3


@pytest.mark.parametrize(("name", "most"), MOST_LINES.items())
def test_methods_are_small(name, most):
    source = (ROOT / "dynllava" / "methods" / f"{name}.py").read_text(encoding="utf-8")
    assert code_lines(source) <= most


def test_a_method_is_a_plan_and_four_verbs():
    public = {name for name in vars(Method) if not name.startswith("_")}
    derived = {"parts", "title", "has", "validate", "schedule", "overhead", "parameters"}
    values = {"name", "summary", "source", "certificate", "learned"}
    # ``choose_all`` is ``choose`` for several images at once, of which a method may make use.
    assert public - derived - values == {"plan", *VERBS, "choose_all"}
    for method in methods.registry().values():
        overridden = derived & set(vars(method))
        assert overridden <= {"title"}, method


# ---------------------------------------------------------------------- one of each

ONE_OF_EACH = {
    "import csv": {"dynllava.published.tables", "dynllava.output.tables"},
    "rglob(FILE_NAME)": {"dynllava.records.reading"},
    "A chat between a curious user": {"dynllava.prompts.templates"},
    "USER: <image>": {
        "dynllava.prompts.templates",
        "dynllava.embedded.tokenizer",
        "dynllava.embedded.card",
        "dynllava.embedded.packing",
    },
    ".method.label or ": set(),
}
"""What stands in so many modules: reader and writer of CSV, of stores, the prompt, the label."""


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_there_is_one_of_each(text):
    holders = {
        module for module, path in MODULES.items() if text in path.read_text(encoding="utf-8")
    }
    assert holders <= ONE_OF_EACH[text]


# ---------------------------------------------------------------------- inside a room


def absolute_imports_of_its_own_room(module: str, source: str) -> list[str]:
    """Return the absolute imports of a module's own room."""
    package = "lmms_eval_dynllava" if module.startswith("lmms") else f"dynllava.{room(module)}"
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        if any(name == package or name.startswith(f"{package}.") for name in names):
            found.append(f"{module}:{node.lineno}")
    return found


def test_imports_inside_a_room_are_relative():
    found = []
    for module, path in MODULES.items():
        if room(module) in ("dynllava", "benchmarks", "profiling", *DOORS):
            continue
        found += absolute_imports_of_its_own_room(module, path.read_text(encoding="utf-8"))
    assert found == []


def test_an_absolute_import_of_the_own_room_is_noticed():
    source = "from dynllava.plan import Cut\n\nfrom dynllava import engine\n"
    assert absolute_imports_of_its_own_room("dynllava.engine.view", source) == [
        "dynllava.engine.view:3"
    ]
