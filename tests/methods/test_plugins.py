"""Methods of other people: from a file, from an installed package."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from dynllava import methods
from dynllava.errors import UserError
from dynllava.methods import plugins

SOURCE = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from dynllava.methods.base import Method


@dataclass(frozen=getattr(Method, "__dataclass_params__").frozen)
class Mine(Method):
    """Keeps everything."""

    name: ClassVar[str] = "{name}"
    share: float = 0.5
'''


@pytest.fixture
def forget(monkeypatch):
    """Leave no method behind for other tests."""
    monkeypatch.setattr(methods, "_EXTERNAL", dict(methods._EXTERNAL))
    monkeypatch.setattr(plugins, "_FILES", {})
    monkeypatch.setattr(plugins, "_INSTALLED", {})
    monkeypatch.setattr(plugins, "_SEARCHED", [])


def write(folder: Path, name: str) -> Path:
    path = folder / "mine.py"
    path.write_text(SOURCE.replace("{name}", name))
    return path


@pytest.mark.usefixtures("forget")
def test_a_method_of_a_file_is_known_by_name_and_its_parameters_are_typed(tmp_path):
    path = write(tmp_path, "mine")
    plugins.load_file(path)
    plugins.load_file(path)
    assert "mine" in methods.names()
    assert methods.create("mine:share=1").share == 1.0
    with pytest.raises(UserError, match="did you mean share"):
        methods.create("mine:shar=1")
    assert list(plugins.loaded_files()) == [str(path)]


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot be read"),
        ("x = 1\n", "defines no method"),
        ("import no_such_module\n", "cannot be imported (ModuleNotFoundError"),
        ("def broken(:\n", "cannot be imported (SyntaxError"),
        (SOURCE.replace("{name}", "fastv"), "is taken"),
    ],
)
def test_a_file_that_is_no_plugin_costs_one_line(tmp_path, content, line):
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    before = methods.names()
    with pytest.raises(UserError) as caught:
        plugins.load_file(path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert methods.names() == before


@pytest.mark.usefixtures("forget")
def test_entry_points_bring_methods_and_a_broken_one_costs_only_itself(tmp_path, monkeypatch):
    write(tmp_path, "installed_one")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        importlib.metadata.EntryPoint("broken", "no_such_module:Thing", plugins.GROUP),
        importlib.metadata.EntryPoint("good", "mine:Mine", plugins.GROUP),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.warns(UserWarning, match="entry point broken .no_such_module:Thing. are left out"):
        assert "installed_one" in methods.names()
