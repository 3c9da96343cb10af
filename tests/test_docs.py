"""Every command that a page or the README shows is one that the program accepts; light ones run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from dynllava import methods
from dynllava.cli import build_parser, main
from dynllava.methods import plugins

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
START = re.compile(r"^(?:- run: |run: |srun bash -c \")?(dynllava|python -m) ")
#: Modules whose parser the docs' options are checked against.
CHECKED = ("dynllava.embedded.train", "dynllava.embedded.evaluate", "dynllava.tasks.build",
           "dynllava.suites.prefill", "dynllava.suites.decode", "dynllava.suites.breakdown",
           "dynllava.suites.training", "dynllava.suites.families", "dynllava.suites.evaluation",
           "dynllava.suites.page", "dynllava.suites.loading", "dynllava.suites.steps",
           "dynllava.suites.looks",
           "dynllava.suites.pictures")  # fmt: skip


def commands(page: Path) -> list[str]:
    """Commands in fenced blocks, indented lines and back-ticks, continuation lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    lines += re.findall(r"`(dynllava [^`]+)`", text)
    found = []
    for line in lines:
        match = START.match(line)
        if match:
            command = line[match.start(1) :].split("  #")[0].split(" # ")[0]
            found.append(re.sub(r"\s+", " ", command).strip())
    return found


def shown() -> list[tuple[str, str]]:
    return sorted({(page.name, command) for page in PAGES for command in commands(page)})


def words(command: str) -> list[str]:
    """Arguments, with placeholders made concrete and optional parts (in brackets) left out."""
    command = re.sub(r"\[[^\]]*\]", "", command.replace('\\"', '"'))
    command = re.sub(r"\$\w+", "2", command.replace("table N", "table 1")).rstrip('" ')
    if command.count('"') % 2:
        command += '"'
    return shlex.split(command)


DYNLLAVA = [item for item in shown() if item[1].startswith("dynllava ")]
MODULES = [item for item in shown() if item[1].startswith("python -m ")]


def test_the_pages_show_commands():
    assert len(DYNLLAVA) > 25
    assert len(MODULES) > 8


def parse(arguments: list[str]) -> str | None:
    """Return what the parser complains about, or None."""
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            build_parser().parse_args(arguments)
    except SystemExit as stop:
        return error.getvalue() if stop.code else None
    return None


@pytest.mark.parametrize(("page", "command"), DYNLLAVA, ids=lambda item: item)
def test_a_shown_dynllava_command_parses(page, command):
    arguments = words(command)[1:]
    if "..." in arguments:
        arguments = arguments[: arguments.index("...")] or arguments
    complaint = parse(arguments)
    # A page may name a command without its arguments, but nothing that does not exist.
    assert complaint is None or "required" in complaint, complaint


@pytest.mark.parametrize(("page", "command"), MODULES, ids=lambda item: item)
def test_a_shown_module_exists_and_knows_the_options(page, command, monkeypatch):
    arguments = words(command)[2:]
    module, options = arguments[0], [word for word in arguments if word.startswith("--")]
    if module in ("pip", "venv", "tox"):
        return
    monkeypatch.syspath_prepend(str(ROOT))
    assert importlib.util.find_spec(module) is not None
    if module in CHECKED and options:
        output = io.StringIO()
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            runpy.run_module(module, run_name="__main__")
        assert [option for option in options if option not in output.getvalue()] == []


def test_a_command_that_does_not_exist_would_be_caught():
    with pytest.raises(AssertionError, match="invalid choice"):
        test_a_shown_dynllava_command_parses("", "dynllava frobnicate")
    with pytest.raises(AssertionError, match="unrecognized arguments"):
        test_a_shown_dynllava_command_parses("", "dynllava methods --frobnicate")


#: Its commands fail, as tests/test_errors_page.py checks.
FAILING = "errors_and_inputs.md"
LIGHT = [
    command
    for page, command in DYNLLAVA
    if page != FAILING
    and " --run" not in command
    and re.match(
        r"dynllava (check |choose |methods$|table (ours|all)|profile |reproduce )", command
    )
]


def write_shown_files(folder: Path) -> None:
    """Write the Python files that the pages show in full: blocks that begin with their name."""
    for page in PAGES:
        for name, source in re.findall(
            r"```python\n# (\w+\.py)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            (folder / name).write_text(source, encoding="utf-8")


#: A checkpoint of the hub: nothing is fetched in a test, so the answer is what is missing.
OF_THE_HUB = [command for command in LIGHT if " llava-hf/" in command]


@pytest.mark.parametrize("command", OF_THE_HUB)
def test_a_check_of_a_checkpoint_that_is_not_here_says_how_to_get_it(command, capsys):
    name = next(word for word in words(command) if word.startswith("llava-hf/"))
    if main(words(command)[1:]) == 0:
        pytest.skip(f"{name} is on this machine")
    printed = capsys.readouterr()
    assert f"hf download {name}" in printed.out + printed.err


@pytest.mark.parametrize("command", [item for item in LIGHT if item not in OF_THE_HUB])
def test_light_commands_run(command, capsys, tmp_path, monkeypatch):
    write_shown_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "_EXTERNAL", dict(methods._EXTERNAL))
    monkeypatch.setattr(plugins, "_FILES", {})
    assert main(words(command)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_pareto_and_report_run_on_the_published_numbers_alone(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["pareto", str(tmp_path / "pareto"), "--results", str(tmp_path / "empty")]) == 0
    assert list((tmp_path / "pareto").glob("*.png"))
    assert main(["table", "10"]) == 0
    assert "10.1" in capsys.readouterr().out
