"""Every row of the published tables has a name, and commands that the programs accept."""

from __future__ import annotations

import contextlib
import functools
import io
import shlex

import pytest

from dynllava import methods
from dynllava.cli import build_parser, main
from dynllava.errors import UserError
from dynllava.methods.parameters import parse
from dynllava.published import tables
from dynllava.published.rows import HUB, find, rows
from dynllava.reproduction.expected import allowed, scale_of
from dynllava.reproduction.steps import Wanted, steps
from dynllava.tasks.registry import BENCHMARKS, SUITES
from dynllava.training.config import read_config

RUNNABLE = [name for name, row in rows().items() if not row.refused]


@functools.cache
def command_line():
    return build_parser()


def test_every_row_of_every_table_has_a_name_of_its_own():
    printed = sum(len(tables.table(number).rows) for number in tables.TABLES)
    assert len(rows()) == printed + len(tables.restore_budgets().rows)
    for name in ("table1:dynamic_llava-7b-I", "table2:tokenpacker"):
        assert not find(name).refused
    of_table = {name.partition(":")[0] for name in RUNNABLE}
    scored = {f"table{number}" for number in (1, 2, 3, 5, 6, 7, 9, 11, 12, 13, 16, 17)}
    assert of_table == scored | {"budgets"}


def test_what_a_row_prints_is_what_the_table_prints():
    row = find("table1:dynamic_llava-13b-I")
    (source,) = [
        item
        for item in tables.table(1)
        if (item["model"], item["method"], item["variant"])
        == ("llava-1.5-13b", "dynamic_llava", "I")
    ]
    assert {key: value.text for key, value in row.values.items()} == {
        key: source[key].text for key in row.values
    }
    assert row.values["mme"].text == "1554.1"
    assert find("table3:lvis_vqa_multi-full-7b").values["lvis_vqa_multi_ppl"].text == "2.97"
    # Their metric is another one there.
    assert not {"mme", "seed"} & set(find("budgets:full").values)


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_commands_of_a_row_are_accepted(name):
    row = rows()[name]
    made = steps(row, Wanted())
    parser = command_line()
    for step in made:
        words = shlex.split(step.typed())
        assert tuple(words) == step.command, "as a shell reads it"
        if words[:2] == ["hf", "download"]:
            assert words[2].count("/") == 1
        elif words[:2] == ["python", "-m"]:
            assert words[2] == "dynllava.tasks.build"
            assert words[3] in SUITES["generation"][0] + SUITES["generation"][2] + "sharegpt4v_vqa"
        else:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                try:
                    args = parser.parse_args(words[1:])
                except SystemExit:
                    pytest.fail(f"{step.typed()}: {said.getvalue()}")
            if words[1] == "train":
                config = read_config(args.config, args.overrides)
                assert config.model == HUB[row.base]
    assert made[-1].command[:2] == ("dynllava", "compare")
    for task in row.values:
        assert task in BENCHMARKS or task in SUITES["generation"]
        assert allowed(row, task, 1.0)
    chosen = parse(row.method)
    layers = 40 if "13b" in row.base else 32
    methods.create(row.method).plan(layers)
    if row.training is not None and chosen.name == "dynamic_llava":
        trained, wanted = config.sparsity, dict(chosen.parameters)
        assert float(wanted["vision_keep_rate"]) == trained.vision_keep_rate
        assert float(wanted["output_keep_rate"]) == trained.output_keep_rate
        assert int(wanted.get("sparse_layer", 2)) == config.sparse_layer
    elif row.training is not None:
        assert config.method == chosen.name
        assert methods.create(config.method, **config.method_args).plan(layers) == (
            methods.create(row.method).plan(layers)
        )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("table1:dynamc_llava-7b-I", r"did you mean table1:dynamic_llava-7b-I\?"),
        ("nothing", r"no published row 'nothing'"),
    ],
)
def test_an_unknown_row_gets_the_nearest_one(name, line):
    with pytest.raises(UserError, match=line):
        find(name)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("table2:llava-resampler-7b", "its system is not part of this package"),
        ("table1:prumerge+-7b", "weights of the row's own training are not published"),
        ("table4:full-13b", "measure your own with dynllava bench"),
        ("table10:fastv-7b", "dynllava table 10 computes it"),
    ],
)
def test_a_row_that_is_only_quoted_is_refused_with_the_reason(name, line, capsys):
    assert main(["reproduce", name]) == 2
    assert f"{name}: " in (said := capsys.readouterr().err)
    assert line in said


def test_the_list_names_every_row(capsys):
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(rows())
    assert sum("refused" in line for line in lines) == len(rows()) - len(RUNNABLE)


def test_a_page_says_protocol_weights_terms_and_what_the_number_of_questions_allows(capsys):
    assert main(["reproduce", "table1:full-7b"]) == 0
    said = capsys.readouterr().out
    assert "template vicuna_v1, images pad (PIL), float16, greedy" in said
    assert "llava-hf/llava-1.5-7b-hf" in said
    assert "Llama 2 licence" in said
    # 1.96 sqrt(0.62 x 0.38 / 12,578) = 0.85 points.
    assert "expected   gqa 62.0 (exact_match, testdev): 12,578 independent questions" in said
    assert "leave +-0.85 (95 %; shared images widen it), which can show agreement within 1.05" in (
        said
    )
    assert "mmvp 29.3" in said
    assert "150 independent pairs leave" in said
    assert "GiB" in said


def test_scales_are_those_of_print():
    assert (scale_of("gqa").factor, scale_of("gqa").full) == (100, 100)
    assert (scale_of("mme").factor, scale_of("mme").full) == (1, 2000)
    assert (scale_of("mmbench").factor, scale_of("mmbench").full) == (1, 100)
    assert (scale_of("sharegpt4v_vqa_meteor").full, scale_of("sharegpt4v_vqa_ppl").full) == (
        1,
        None,
    )
    printed = find("table1:full-7b").values
    assert scale_of("gqa").margin(printed["gqa"], 1.0) == pytest.approx(1.05)
    assert scale_of("mme").margin(printed["mme"], 1.0) == pytest.approx(20.05)
    row = find("table3:lvis_vqa_single-full-7b").values
    assert scale_of("x_ppl").margin(row["lvis_vqa_single_ppl"], 1.0) == pytest.approx(0.0509)
