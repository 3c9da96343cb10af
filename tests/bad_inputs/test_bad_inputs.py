"""Whatever a user gets wrong: one clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import datasets  # noqa: F401
import pytest
import transformers  # noqa: F401  (its log handler must not bind to one row's captured stream)

from tests.bad_inputs import harness, rows_checkpoints, rows_commands

CASES = [*rows_checkpoints.cases, *rows_commands.cases, *rows_commands.survived]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run in the row's own folder, without the network."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_input_gets_one_line(case, tmp_path, capsys):
    harness.check(case, tmp_path, capsys)
