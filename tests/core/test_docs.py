"""The commands and snippets of the core's pages run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dynllava.cli import main

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", ["checkpoints.md", "conformance.md"])
def test_commands_run(page, tmp_path, monkeypatch):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(blocks(page, "bash")).splitlines()
    commands = [line for line in lines if line.strip()]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "dynllava"
        assert main(arguments) == 0, command


def test_python_snippets_run():
    scope: dict = {}
    for block in blocks("models.md", "python"):
        exec(compile(block, "docs/models.md", "exec"), scope)
    assert scope["report"].image_tokens == [36]


@pytest.mark.parametrize(
    "page",
    ["../README.md", "architecture.md", "choosing.md", "embedded.md", "records.md",
     "uncertainty.md"],
)  # fmt: skip
def test_every_python_block_of_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), scope)
