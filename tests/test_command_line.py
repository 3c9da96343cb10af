"""Manners of the command line: help, hints, Ctrl-C, width, nothing written unasked."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynllava import cli
from dynllava.cli import build_parser, main
from dynllava.output import terminal
from dynllava.output.tables import Table, as_text, quantity


def sub_parsers():
    found = next(
        item for item in build_parser()._actions if isinstance(item, argparse._SubParsersAction)
    )
    return found.choices


@pytest.mark.parametrize("name", sorted(sub_parsers()))
def test_help_has_an_example_that_parses_and_names_the_defaults(name):
    sub = sub_parsers()[name]
    example = sub.epilog.split("example:")[1].strip()
    words = shlex.split(example)
    assert words[:2] == ["dynllava", name]
    build_parser().parse_args(words[1:])
    text = " ".join(sub.format_help().split())
    for action in sub._actions:
        silent = action.default in (None, False, [], "", argparse.SUPPRESS) or action.nargs == 0
        if not silent:
            several = isinstance(action.default, (list, tuple))
            values = action.default if several else [action.default]
            shown = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
            assert shown in text, action.dest


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("profil", "did you mean profile?"), ("profile --modle x", "did you mean --model?"),
     ("methods --frobnicate", "dynllava methods: error: unrecognized"),
     # The nearest option of this command, not of another one.
     ("methods --minute", "unrecognized arguments: --minute\n")],
)  # fmt: skip
def test_a_slip_names_the_nearest_word(typed, hint, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(typed.split())
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(("resumes", "more"), [(True, ": start again to go on"), (False, "")])
def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys, resumes, more):
    def stop(args):
        raise KeyboardInterrupt

    name = "compare" if resumes else "methods"
    module = sys.modules[f"dynllava.commands.{name}"]
    monkeypatch.setattr(module, "run", stop)
    assert main([name]) == cli.INTERRUPTED == 130
    assert capsys.readouterr().err == f"dynllava {name}: interrupted{more}\n"


def test_ctrl_c_in_a_real_process():
    code = (
        "import signal, sys, time, dynllava.commands.methods as m; "
        # A shell that runs the tests in the background hands on an ignored interrupt.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "m.run = lambda args: (print('on', flush=True), time.sleep(60)); "
        "from dynllava.cli import main; sys.exit(main(['methods']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "on\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "dynllava methods: interrupted\n")


def test_python_m_runs_it():
    done = subprocess.run(
        [sys.executable, "-m", "dynllava", "methods", "--json"], capture_output=True, check=True
    )
    assert done.stdout.startswith(b"[")


LISTINGS = (
    "profile", "profile --grid", "profile --published", "table 1 --format text",
    "table 3 --format text", "table all --format text", "profile --per-layer",
    "choose --batch 8 --max-kv 1GB", "methods", "plan-samples --per-image 2 --icc 0.5",
)  # fmt: skip


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("command", LISTINGS)
def test_no_table_is_wider_than_the_terminal(command, width, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(command.split()) == 0
    assert max(map(len, output.getvalue().splitlines())) <= width
    assert os.listdir() == []


@pytest.mark.parametrize("name", sorted(sub_parsers()))
def test_no_help_is_wider_than_the_terminal(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = sub_parsers()[name].format_help().split("\nexample:")[0].splitlines()
    assert max(map(len, lines)) <= 80


def test_a_wide_table_loses_nothing():
    rows = [["a_long_name:with=parameters,more=1", "3.25", "a sentence of several words"]]
    made = Table("Title", ["method", "score", "remark"], rows, ["A note that is long."])
    for width in (30, 44, 60, 200):
        text = as_text([made], width)
        assert max(map(len, text.splitlines())) <= width
        assert "3.25" in text


def test_long_words_break_behind_their_marks():
    assert terminal.wrap_cell("fastv:k=2,keep_ratio=0.25", 12) == [
        "fastv:k=2,", "keep_ratio=", "0.25",
    ]  # fmt: skip


def test_one_system_of_units():
    assert quantity(1.5 * 2**30, "byte") == "1.5 GiB"
    assert quantity(3072, "byte") == "3 KiB"
    assert quantity(2e12, "FLOP") == "2 TFLOP"
    assert quantity(-0.0001, "1") == "0.0 %"
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("costs", "output", "models", "commands", "evaluation")
        for path in (Path(cli.__file__).parent / folder).rglob("*.py")
    )
    assert " kB" not in source


def test_bench_writes_only_where_it_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = "bench --model mid-size --methods full --repeats 1 --warmup 0 --output-tokens 2"
    assert main([*line.split(), "--prompt-tokens", "4", "--stock", "dynamic"]) == 0
    assert os.listdir() == []
    assert main(["bench", "--processes", "2"]) == 2
    assert "--store FOLDER" in capsys.readouterr().err


def test_too_many_columns_stand_in_tables_below_each_other():
    header = ["method", *(f"task{i}" for i in range(12))]
    rows = [[name, *(f"0.{i}5±0.0123 (n=40)" for i in range(12))] for name in ("full", "fastv 96")]
    lines = terminal.grid(header, rows, 1, 80)
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  fastv 96") for line in lines) == sum("---" in x for x in lines)
    assert all(f"0.{i}5±0.0123" in "".join(lines) for i in range(12))


def test_compare_marks_the_best_and_fits(monkeypatch):
    from dynllava.evaluation.summary import summary
    from dynllava.records import MethodInfo, ModelInfo, RunRecord, Score, TaskInfo

    def record(method, task, value, better=True):
        return RunRecord(
            "evaluation", ModelInfo("m"), MethodInfo(method),
            task=TaskInfo(task, metric="x", higher_is_better=better),
            scores={"x": Score(value, 0.01, 40)},
        )  # fmt: skip

    found = [
        record("full", "acc", 0.9), record("fastv", "acc", 0.8),
        record("full", "ppl", 3.0, False), record("fastv", "ppl", 2.0, False),
    ]  # fmt: skip
    text = summary(found, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "0.9±0.01* (n=40)" in " ".join(text.split())
    assert "2±0.01* (n=40)" in " ".join(text.split())
    assert "*" not in summary(found)


LIVE = {"serve", "serve-check", "reproduce"}
"""What they find is told while they run, for hours; results are in the log and the records."""


@pytest.mark.parametrize("name", sorted(set(sub_parsers()) - LIVE))
def test_every_command_has_a_form_for_programs(name):
    known = {word for each in sub_parsers()[name]._actions for word in each.option_strings}
    assert known & {"--json", "--format"}


SAYING = {
    "pareto": "pareto out --results {store} --source fastv",
    "report": "report out.html --results {store}",
    "new-method": "new-method my_method",
    "plan-samples": "plan-samples --discordance 0.03",
    "train": "train embedded --dry-run",
    "convert": "convert {model} out",
    "export": "export {model} out",
}


@pytest.fixture
def said_by(tmp_path, monkeypatch, capsys):
    from dynllava.embedded import model_path

    monkeypatch.chdir(tmp_path)
    # Planning takes ten seconds; what is said of a plan takes none.
    monkeypatch.setattr("dynllava.training.plan.plan", lambda config, processes: ["a line"])
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "records.jsonl").touch()

    def run(name, *more):
        line = SAYING[name].format(store="store", model=model_path())
        assert main([*line.split(), *more]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", sorted(SAYING))
def test_json_is_all_that_is_printed_and_names_what_was_written(name, said_by):
    before = set(Path().rglob("*"))
    found = json.loads(said_by(name, "--json"))
    made = {str(path) for path in Path().rglob("*") if path.is_file() and path not in before}
    if name not in ("plan-samples", "train"):
        assert all(Path(path).exists() for path in found["written"])
        named = [Path(path) for path in found["written"]]
        assert all(any(Path(path).is_relative_to(one) for one in named) for path in made)


@pytest.mark.parametrize("name", sorted(set(SAYING) - {"plan-samples"}))
def test_quiet_prints_nothing(name, said_by):
    assert said_by(name, "--quiet") == ""


def test_json_and_quiet_contradict_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["report", "out.html", "--json", "--quiet"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_mean_is_over_tasks_with_a_scale_and_rows_that_have_them_all():
    from dynllava.evaluation.summary import summary
    from dynllava.records import MethodInfo, ModelInfo, RunRecord, Score, TaskInfo

    def record(method, task, value, scale, better=True):
        return RunRecord(
            "evaluation", ModelInfo("m"), MethodInfo(method),
            task=TaskInfo(task, metric="x", higher_is_better=better, scale=scale),
            scores={"x": Score(value, 0.01, 40)},
        )  # fmt: skip

    found = [
        record("full", "acc", 0.9, 1), record("full", "vqa", 70.0, 100),
        record("full", "ppl", 3.0, None, False), record("fastv", "acc", 0.8, 1),
        record("fastv", "vqa", 60.0, 100), record("h2o", "acc", 0.99, 1),
    ]  # fmt: skip
    text = summary(found, width=200)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "mean of 2" in text
    assert "80.0*" in rows["full"]
    assert "70.0" in rows["fastv"]
    assert "99.0" not in rows["h2o"]
    assert "mean of 2: acc, vqa; others have no scale of 0 to 100." in text
