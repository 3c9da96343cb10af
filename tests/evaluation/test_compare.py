"""``dynllava compare``: grid, bad arguments, launcher, exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dynllava import cli, methods
from dynllava.commands import compare
from dynllava.costs.spec import LLAVA_15_7B
from dynllava.errors import UserError
from dynllava.evaluation import grid, launch
from dynllava.evaluation.summary import summary
from dynllava.evaluation.sweep import Cell
from dynllava.methods import budget
from dynllava.records import MethodInfo, ModelInfo, RecordStore, RunRecord, Score, TaskInfo


def test_one_cell_per_method_without_budgets():
    found = grid.cells(["full", "uniform"], [], {"uniform": {"layer": 3}}, LLAVA_15_7B)
    assert found == [Cell("full"), Cell("uniform", {"layer": 3})]


def test_cells_of_one_grid_have_labels_of_their_own_where_parameters_differ():
    names = ["full", "prumerge", "prumerge:plus=true", "fastv:k=2", "fastv:k=3", "random"]
    found = grid.cells(names, [192, 128], {}, LLAVA_15_7B, seeds=2)
    assert list(dict.fromkeys(map(str, found))) == [
        *("full", "prumerge 192", "prumerge 128", "prumerge+ 192", "prumerge+ 128"),
        *("fastv k=2 192", "fastv k=2 128", "fastv 192", "fastv 128", "random 192", "random 128"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "fastw"], "method='fastw': did you mean fastv? accepted are"),
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


@pytest.mark.parametrize("method", ["fastv:k=77", "fastv:keep=99999", "h2o:recent=0.0001"])
def test_cells_are_checked_before_anything_is_loaded(method, capsys, monkeypatch, tmp_path):
    def load(*arguments, **options):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("dynllava.evaluation.runner.ModelRunner.__init__", load)
    monkeypatch.setattr("dynllava.evaluation.sweep.load_tasks", load)
    out = tmp_path / "store"
    arguments = ["compare", "--suite", "smoke", "--methods", "full", method, "--out", str(out)]
    assert cli.main(arguments) == 2
    assert "accepted is" in capsys.readouterr().err
    assert not out.exists()


def test_parameters_have_their_own_types():
    items = [
        "sparsevlm.pruning_layers=[2, 6]",
        "sparsevlm.version=1.5",
        "fastv.keep_ratio=0.5",
        "dynamic_llava.strict_official=false",
    ]
    assert compare._parameters(items) == {
        "sparsevlm": {"pruning_layers": (2, 6), "version": "1.5"},
        "fastv": {"keep_ratio": 0.5},
        "dynamic_llava": {"strict_official": False},
    }
    with pytest.raises(UserError, match="strict_official='x': accepted is true or false"):
        compare._parameters(["dynamic_llava.strict_official=x"])


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


def test_the_summary_has_one_row_a_setting_whether_its_records_were_made_or_found():
    """Parameters of a record that was read back stand in another order."""
    parameters = {"keep_ratio": 0.3, "positions": "compact"}
    orders = (parameters, dict(reversed(parameters.items())))
    records = [
        RunRecord(
            "evaluation",
            ModelInfo("m"),
            MethodInfo("divprune", "divprune", own),
            TaskInfo(task, metric="exact_match"),
            scores={"exact_match": Score(0.5, 0.125, 16)},
        )
        for task, own in zip(("gqa", "pope"), orders, strict=True)
    ]
    rows = [line for line in summary(records).splitlines() if line.startswith("divprune")]
    assert len(rows) == 1


def test_budgets_are_solved_for_each_method():
    names = ["full", "fastv", "uniform", "sparsevlm", "no_image"]
    found = grid.cells(names, [192, 128], {"fastv": {"k": 3}}, LLAVA_15_7B)
    assert [str(cell) for cell in found] == [
        "full",
        *[f"{name} {tokens}" for name in names[1:4] for tokens in (192, 128)],
        "no_image",
    ]
    for cell in found:
        method = methods.create(cell.method, **cell.params)
        tokens = budget.processed(method, LLAVA_15_7B.prompt(64), 32)
        assert cell.budget is None or tokens == pytest.approx(cell.budget, abs=1.5)
    assert found[1].params["k"] == 3


@pytest.mark.parametrize("budgets", [[40], [192, 40], [40, 192]])
def test_a_budget_out_of_reach_refuses_the_grid(budgets):
    # Three of 32 layers at full length are 54 tokens per layer already.
    with pytest.raises(UserError, match="a budget of 40 is out of reach"):
        grid.cells(["uniform", "fastv"], budgets, {"fastv": {"k": 3}}, LLAVA_15_7B)


@pytest.mark.parametrize("name", ["structure", "structure:layer=2", "structure+h2o"])
def test_a_method_without_a_budget_never_runs_beside_budgeted_rows(name):
    with pytest.raises(UserError, match=r"no budget to set|no part drops|both parts drop"):
        grid.cells(["full", "fastv", name], [192], {}, LLAVA_15_7B)
    if "+" not in name:
        assert len(grid.cells(["full", "fastv", name], [], {}, LLAVA_15_7B)) == 3


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("fastv:keep_ratio=0.3", "keep_ratio"),
        ("fastv:keep=20", "keep"),
        ("sparsevlm:retain=64", "retain"),
        ("h2o:heavy=0.1", "heavy"),
        ("dynamic_llava:vision_keep_rate=0.2", "vision_keep_rate"),
        ("fastv:keep=9+h2o", "keep"),
    ],
)
def test_a_parameter_that_a_budget_sets_is_not_overridden_silently(name, key):
    with pytest.raises(UserError, match=f"{key} is given, and a budget sets it too"):
        grid.cells([name], [192], {}, LLAVA_15_7B)


@pytest.mark.slow
def test_two_processes_with_the_embedded_model_answer_as_one(tmp_path):
    pytest.importorskip("lmms_eval")
    command = [sys.executable, "-m", "dynllava.cli", "compare", "--methods", "full", "fastv"]
    command += ["--tasks", "embedded_attribute", "embedded_caption_ppl", "--limit", "5", "--quiet"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    launcher = ["--launcher", "accelerate", "--num-processes", "2"]
    found = []
    for name, options in (("one", []), ("two", launcher)):
        arguments = [*command, *options, "--out", str(tmp_path / name)]
        subprocess.run(arguments, env=environment, check=True, timeout=600)
        store = RecordStore(tmp_path / name)
        records, problems = store.read()
        assert not problems
        found.append([(r.scores, r.counted, store.samples(r)) for r in records])
    assert len(found[0]) == 4
    assert found[0] == found[1]
