"""Every row of the table in docs/errors_and_inputs.md is what the command does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dynllava.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "errors_and_inputs.md"
ROWS = re.findall(r"^\| `dynllava ([^`]+)` \| (\d) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)


def test_the_page_has_its_rows():
    assert len(ROWS) >= 8


@pytest.mark.parametrize(("command", "code", "line"), ROWS)
def test_a_row_is_what_the_command_does(command, code, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    try:
        ended = main(shlex.split(command))
    except SystemExit as stop:
        ended = stop.code
    assert ended == int(code)
    assert line in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_the_code_has_a_hash_without_git():
    from dynllava.records.environment import code_version

    assert re.fullmatch(r"[\w.]+\+[0-9a-f]{12}", code_version())
