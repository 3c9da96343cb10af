"""The CI recipe of the gate's page: it parses, fits together, and its steps run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from dynllava.cli import build_parser, main

PAGE = Path(__file__).parents[2] / "docs" / "regression_gate.md"
RECIPE = next(
    yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    if "jobs:" in block
)
STEPS = [(job, step) for job in RECIPE["jobs"] for step in RECIPE["jobs"][job]["steps"]]


def commands():
    """Every dynllava command of the recipe, the summary's path filled in."""
    found = []
    for _, step in STEPS:
        for line in step.get("run", "").splitlines():
            match = re.search(r"(?:^|/)(dynllava .*)", line.strip())
            if match:
                text = match[1].replace("$GITHUB_STEP_SUMMARY", "summary.md")
                found.append(shlex.split(text)[1:])
    return found


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_parses(arguments):
    build_parser().parse_args(arguments)


def test_the_steps_fit_together():
    kinds = {arguments[0] for arguments in commands()}
    assert kinds == {"compare", "bench", "regress"}
    # PyYAML reads the key "on" as true.
    assert set(RECIPE[True]) == {"pull_request", "push", "schedule"}
    uploads = [step["with"]["name"] for _, step in STEPS if "upload-artifact" in str(step)]
    downloads = [re.findall(r"--name (\S+)", step.get("run", "")) for _, step in STEPS]
    assert uploads == [name for names in downloads for name in names]
    for _, step in STEPS:
        if "uses" in step:
            assert re.search(r"@v\d+\.\d+\.\d+$", step["uses"]), step
        if "pip install" in step.get("run", ""):
            assert "-c constraints.txt" in step["run"]


def test_the_steps_run_from_records_to_verdict(tmp_path, monkeypatch, capsys):
    """Small: two samples; the base is what a run of the same code stored."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    by_kind = {}
    for arguments in commands():
        by_kind.setdefault(arguments[0], arguments)
    run = by_kind["compare"]
    run = ["--tasks" if word == "--suite" else word for word in run]
    run = ["embedded_attribute" if word == "embedded" else word for word in run]
    run = ["2" if word == "100" else word for word in run]
    assert main([*run[: run.index("--out")], "--out", "candidate", "--quiet"]) == 0
    shutil.copytree("candidate", "base")
    capsys.readouterr()
    assert main(by_kind["regress"]) == 0
    assert capsys.readouterr().out.startswith("UNDECIDED")
    assert "Largest drops" not in Path("summary.md").read_text()
    assert Path("summary.md").read_text().startswith("## UNDECIDED")
