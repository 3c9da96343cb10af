"""Names of before the house was rearranged: each works for one more minor version, and warns."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynllava.methods import base

PACKAGE = Path(__file__).parents[1] / "dynllava"


def forwarded() -> dict[str, str]:
    """Return {old module: new module} as the modules that forward say it."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        match = re.search(r'forward\(__name__, "([\w.]+)"\)', source)
        if match:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found[".".join(parts)] = match[1]
    return found


MOVED = forwarded()


def public_names(module: str) -> list[str]:
    """Return the functions and classes that a module itself defines, private ones left out."""
    path = PACKAGE.parent / Path(*module.split(".")).with_suffix(".py")
    path = path if path.is_file() else path.with_suffix("") / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith("_")]


def test_the_old_names_are_all_there():
    modules = "attention cache checkpoints clustering compiled config decoder environment eviction"
    modules += " files modeling predictors report tokens benchmarks.sweep profiling.kv"
    modules += " profiling.ledger"
    assert set(MOVED) == {f"dynllava.{name}" for name in modules.split()}


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_module_gives_the_same_objects_and_warns(old, new):
    here, there = importlib.import_module(old), importlib.import_module(new)
    names = public_names(new)
    assert names
    for name in names:
        with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
            assert getattr(here, name) is getattr(there, name)
    with pytest.raises(AttributeError), pytest.warns(DeprecationWarning, match=old):
        _ = here.no_such_name
    with pytest.raises(AttributeError):
        _ = here.__no_such_name__


def test_from_import_of_an_old_name_warns_where_it_stands():
    code = (
        "import warnings\nwarnings.simplefilter('error', DeprecationWarning)\n"
        "try:\n    from dynllava.files import write_text\n"
        "except DeprecationWarning as warning:\n    print(warning)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "dynllava.files is now dynllava.output.files"


@pytest.mark.parametrize(("name", "home"), base._MOVED.items())
def test_what_left_the_methods_base_is_found_there_and_warns(name, home):
    with pytest.warns(DeprecationWarning, match=home):
        assert getattr(base, name) is getattr(importlib.import_module(home), name)


def test_nothing_of_ours_uses_an_old_name():
    roots = [PACKAGE, *(PACKAGE.parent / name for name in ("analysis", "plugins", "tools"))]
    used = []
    for path in (path for root in roots for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            if not node.level and node.module in MOVED:
                used.append(f"{path.name}: {node.module}")
            if node.module in ("base", "methods.base", "dynllava.methods.base"):
                names = {alias.name for alias in node.names} & set(base._MOVED)
                used += [f"{path.name}: {name}" for name in names]
    assert used == []
