"""Two runs that answer alike compare equal; every kind of difference is listed."""

from __future__ import annotations

import json

import pytest
from lmms_eval_dynllava.compare_answers import main


def write_run(folder, answers, stamp="20260101"):
    folder.mkdir(exist_ok=True)
    (folder / f"{stamp}_results.json").write_text("{}")
    lines = [
        json.dumps({"doc_id": index, "filtered_resps": text, "token_counts": [{"kv_bytes": 8}]})
        for index, text in answers.items()
    ]
    (folder / f"{stamp}_samples_pope.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_equal_runs_compare_equal_whatever_the_order(tmp_path, capsys):
    first = write_run(tmp_path / "a", {0: "yes", 1: "no"})
    second = write_run(tmp_path / "b", {1: "no", 0: "yes"})
    assert main([first, second]) == 0
    assert "2 documents compared, 0 differences" in capsys.readouterr().out


def test_differences_and_missing_documents_are_listed(tmp_path, capsys):
    first = write_run(tmp_path / "a", {0: "yes", 1: "no"})
    second = write_run(tmp_path / "b", {0: "no", 2: "no"})
    assert main([first, second]) == 1
    output = capsys.readouterr().out
    assert "pope document 0: filtered_resps 'yes' != 'no'" in output
    assert "pope document 1: only in the first run" in output
    assert "pope document 2: only in the second run" in output


@pytest.mark.parametrize("results", [True, False])
def test_a_folder_without_results_or_samples_is_one_clear_line(results, tmp_path, capsys):
    if results:
        (tmp_path / "x_results.json").write_text("{}")
    assert main([str(tmp_path), str(tmp_path)]) == 1
    expected = "no samples beside" if results else "no lmms-eval results"
    assert expected in capsys.readouterr().err
