"""``dynllava table across``: pairs that differ in one parameter alone. Made-up scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dynllava.analysis.points.evidence import CAVEAT
from dynllava.analysis.report.across import across

from dynllava.cli import main
from dynllava.embedded.untrained import UNTRAINED
from dynllava.records import MethodInfo, ModelInfo
from dynllava.records.reading import read_stores

EMBEDDED = ModelInfo("embedded", next(iter(UNTRAINED)), 6, 128, 144)


def run(record, name, budget=67.0, **parameters):
    made = record(method=MethodInfo(name, f"{name} {budget:g}", parameters, budget), budget=budget)
    return replace(made, model=EMBEDDED)


@pytest.fixture
def folder(store, record):
    """``original`` loses a fifth with divprune, nothing with pyramiddrop."""
    generator = np.random.default_rng(0)
    right = generator.random(400) < 0.9
    lost = right & (generator.random(400) > 0.2)
    share = {"keep_ratio": 0.4}
    return store(
        "runs",
        [
            (run(record, "divprune", **share, positions="compact"), right),
            (run(record, "divprune", **share, positions="original"), lost),
            (run(record, "divprune", 54.0, keep_ratio=0.3, positions="compact"), right),
            (run(record, "pyramiddrop", budgets="9/5/2", positions="original"), right),
            (run(record, "pyramiddrop", budgets="9/5/2", positions="compact"), right),
            (run(record, "fastervlm", **share, positions="compact"), right),
            (run(record, "fastervlm", **share, positions="original"), lost),
            (run(record, "fastv", keep_ratio=0.4), right),
        ],
    )


def test_runs_that_differ_in_it_alone_are_paired_with_its_default(folder):
    table, apart = across(read_stores(folder)[0], "positions")
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows.keys() == {"divprune 67", "pyramiddrop 67"}
    assert rows["divprune 67"][0] == "original"
    assert float(rows["divprune 67"][1].split()[0]) < -10
    assert rows["divprune 67"][-1] == "worse"
    assert rows["pyramiddrop 67"][1].startswith("+0.0 [-0.")
    assert rows["pyramiddrop 67"][2] == "400"
    assert rows["pyramiddrop 67"][-1] == "not worse"
    # No verdict where the choice itself is noise, and no part in the others' correction.
    assert CAVEAT in apart.title
    assert "verdict" in table.headers
    assert not {"verdict", "p worse"} & set(apart.headers)
    assert "over 2 pairs" in " ".join(table.notes)


def test_the_command_prints_both_and_refuses_a_parameter_that_tells_nothing_apart(folder, capsys):
    assert main(["table", "across", "--parameter", "positions", "--results", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "| divprune 67 | original |" in shown
    assert CAVEAT in shown
    assert main(["table", "across", "--parameter", "k", "--results", str(folder)]) == 1
    assert "no two runs with samples differ in it alone" in capsys.readouterr().err
