"""``dynllava compare``: grid, bad arguments, launcher, exit code."""

from __future__ import annotations

import sys

import pytest

from dynllava import cli
from dynllava.benchmarks import grid, launch
from dynllava.benchmarks.summary import summary
from dynllava.benchmarks.sweep import Cell
from dynllava.commands import compare
from dynllava.errors import UserError
from dynllava.profiling.spec import LLAVA_15_7B
from dynllava.records import MethodInfo, ModelInfo, RunRecord, Score, TaskInfo


def test_one_cell_per_method_without_budgets():
    found = grid.cells(["full", "uniform"], [], {"uniform": {"layer": 3}}, LLAVA_15_7B)
    assert found == [Cell("full"), Cell("uniform", {"layer": 3})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "fastw"], "method='fastw': accepted are"),
        (["--param", "uniform.layer=3"], "uniform is not among the methods"),
        (["--methods", "uniform", "--param", "uniform.layr=3"], "no parameter 'layr'"),
        (["--param", "layer"], "accepted is METHOD.NAME=VALUE"),
        (["--batch-size", "0"], "accepted are auto and numbers from 1"),
        (["--pretrained", "/nowhere"], "no such folder"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message, capsys):
    assert cli.main(["compare", "--methods", "full", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_parameters_are_json_or_text():
    items = ["a.layers=[2, 6]", "a.rate=0.5", "b.version=1.5x", "b.on=true"]
    assert compare._parameters(items) == {
        "a": {"layers": (2, 6), "rate": 0.5},
        "b": {"version": "1.5x", "on": True},
    }


def test_the_launcher_starts_the_same_command_without_a_launcher():
    command = launch.command(["compare", "--launcher", "accelerate"], 2, "--main_port 7", cpu=True)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[3:7] == ["--num_processes", "2", "--cpu", "--main_port"]
    module = command.index("dynllava.cli")
    assert command[module - 1] == "-m"
    args = cli.build_parser().parse_args(command[module + 1 :])
    assert args.launcher == "none"


def test_the_summary_always_shows_the_number_of_samples():
    record = RunRecord(
        "evaluation",
        ModelInfo("m"),
        MethodInfo("full", "full"),
        TaskInfo("gqa", metric="exact_match"),
        scores={"exact_match": Score(0.5, 0.125, 16)},
    )
    assert "0.5±0.125 (n=16)" in summary([record])


def test_a_budget_nothing_meets_is_refused():
    pytest.importorskip("dynllava.methods.budget")
    with pytest.raises(UserError, match="budget"):
        grid.cells(["uniform"], [10_000.0], {}, LLAVA_15_7B)
