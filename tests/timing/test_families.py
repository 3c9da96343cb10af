"""Timing other families: the same tokens on both sides, rounds by process, one line a mistake."""

from __future__ import annotations

import pytest

from dynllava import cli
from dynllava.records import RecordStore
from dynllava.suites import families


def test_a_run_appends_every_round_and_the_summary_reads_them(tmp_path, capsys):
    store = str(tmp_path / "store")
    command = ["--families", "internvl", "--processes", "1", "--repeats", "2"]
    for seed in ("0", "1"):
        more = ["--output-tokens", "3", "--store", store, "--seed", seed]
        assert families.main([*command, *more]) == 0
    assert "full / stock, median of 2 rounds" in capsys.readouterr().out
    records = RecordStore(store).read()[0]
    assert [record.task.name for record in records] == ["family-internvl-b1-t56-i144-o3"] * 2
    for record in records:
        for name in ("time_ratio_prefill", "time_ratio_step"):
            (rounds,) = record.measured[name].rounds.values()
            assert len(rounds) == 2
            assert all(ratio > 0 for ratio in rounds)
    text = families.summary(store)
    assert text.count("family-internvl-b1-t56-i144-o3") == 2
    assert "under six rounds" in text


def test_different_tokens_are_an_error_and_no_ratio(monkeypatch):
    tokens = iter([[1], [2]])
    monkeypatch.setattr(families, "timed", lambda *args: (1.0, 1.0, next(tokens)))
    with pytest.raises(RuntimeError, match="different tokens"):
        families.measure("internvl", 1, 3, 1, "cpu", 0)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (["--processes", "0"], "--processes 0: accepted is a number from 1"),
        (["--output-tokens", "1"], "--output-tokens 1: accepted is a number from 2"),
        (["--repeats", "0"], "--repeats 0: accepted is a number from 1"),
    ],
)
def test_nonsense_is_one_line(option, line, capsys):
    assert families.main(option) == 2
    assert line in capsys.readouterr().err


def test_bench_says_which_models_it_times(capsys):
    assert cli.main(["bench", "--model", "qwen2.5-vl-7b"]) == 2
    assert "python -m dynllava.suites.families" in capsys.readouterr().err
