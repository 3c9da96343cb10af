import csv
import io
import re

import pytest
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.tables import paper as tables
from dynllava.analysis.tables import render as table_render
from dynllava.analysis.tables.cells import Cell, TableData

from dynllava.cli import main
from dynllava.published import tables as published
from dynllava.records.reading import read_stores


def column(table, name):
    return [row[table.headers.index(name)] for row in table.rows]


def test_table_10_agrees_in_18_of_20_rows():
    table = tables.build(10)
    cells = column(table, "TFLOPs")
    assert len(cells) == 20
    wrong = {row[0].text for row, cell in zip(table.rows, cells, strict=True) if not cell.agrees}
    assert wrong == {"hired-7b", "tokenpacker-13b-144"}
    assert all(cell.ratio is not None for cell in cells)


def test_prefill_of_table_1_is_computed_and_agrees():
    cells = column(tables.build(1), "prefill TFLOPs")
    assert {cell.origin for cell in cells} == {"computed"}
    assert all(cell.agrees for cell in cells)


@pytest.mark.parametrize("number", [3, 17])
def test_decode_tflops_show_computed_printed_and_ratio(number):
    table = tables.build(number)
    cells = column(table, "decode TFLOPs PPL")
    shown = [cell for cell in cells if cell.printed]
    assert len(shown) > 10
    assert all(cell.value and cell.ratio for cell in shown)
    assert all(cell.reason for cell in shown if not cell.agrees)


def test_suspected_error_in_table_3_is_named():
    found = [
        cell
        for label, header, cell in tables.build(3).mismatches()
        if "lvis_vqa_single, llava-1.5-7b, random" in label and header == "decode TFLOPs PPL"
    ]
    assert found[0].ratio == pytest.approx(0.51, abs=0.01)
    assert "error at the source" in found[0].reason


def test_differences_best_and_second_of_table_1():
    table = tables.build(1)
    rows = {(row[0].text, row[1].text, row[2].text): row for row in table.rows}
    gqa = table.headers.index("GQA")
    dense = rows["llava-1.5-7b", "full", ""][gqa]
    assert dense.delta is None
    assert dense.rank == 0
    first = rows["llava-1.5-7b", "dynamic_llava", "I"][gqa]
    assert (first.rank, round(first.delta, 1)) == (1, -0.6)
    assert rows["llava-1.5-7b", "dynamic_llava", "I|T"][gqa].rank == 2


def test_perplexity_ranks_the_lowest_first():
    table = tables.build(17)
    best = [
        row[1].text
        for row, cell in zip(table.rows, column(table, "PPL"), strict=True)
        if cell.rank == 1 and row[2].text == "lvis_vqa_multi"
    ]
    assert best == ["0.8"]


def test_missing_cells_say_why():
    text = table_render.render(tables.build(11), "markdown")
    assert "the number of image tokens is not reported: prefill TFLOPs" in text
    assert "n/a, not reported:" in text


def test_table_all_is_one_document_with_17_headings(capsys):
    assert main(["table", "all"]) == 0
    text = capsys.readouterr().out
    for number in published.TABLES:
        assert text.count(f"\n## Table {number}\n") + text.startswith(f"## Table {number}\n") == 1
    assert "## Cells whose computed cost differs" in text
    assert "hired-7b, 32x115 | TFLOPs | 1.983 | 2.07" in text


@pytest.mark.parametrize("kind", table_render.FORMATS)
@pytest.mark.parametrize("number", published.TABLES)
def test_every_format_of_every_table(kind, number):
    text = table_render.render(tables.build(number), kind)
    if kind == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
    if kind == "latex":
        assert text.count("{") == text.count("}")
        assert " dynamic_llava" not in text
    if kind == "html":
        assert text.count("<tr>") == text.count("</tr>")


def test_hostile_text_is_escaped():
    table = TableData(1, "<b>&", ("a|b",), ((Cell("<script>|x_%"),),), (), ("<i>",))
    assert "<script>" not in table_render.render(table, "html")
    assert "<script>" not in table_render.render(table, "markdown")
    assert r"\textless{}script\textgreater{}\textbar{}x\_\%" in table_render.render(table, "latex")


@pytest.mark.parametrize("kind", [kind for kind in table_render.FORMATS if kind != "text"])
def test_a_label_stays_text_in_whatever_opens_the_table(kind):
    hostile = [
        "=HYPERLINK(1)", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1",
        "a\n\\input{/etc/passwd}", "\\immediate\\write18{id}", "$x$%_&#{}~^",
        "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "![a](http://example.org)",
        "| --- | `x`", "a\r\n\r\n# heading",
    ]  # fmt: skip
    rows = tuple((Cell(text), Cell("1.5")) for text in hostile)
    table = TableData(1, hostile[5], ("a\n=b", hostile[8]), rows, (), (hostile[5], hostile[8]))
    text = table_render.render(table, kind, heading=True)
    if kind == "csv":
        read = list(csv.reader(io.StringIO(text)))
        assert len(read) == len(hostile) + 1
        cells = [cell for row in read for cell in row]
        assert not [cell for cell in cells if cell.lstrip()[:1] in ("=", "+", "@")]
        assert "'-2+3" in cells
    elif kind == "latex":
        # No command that the text brought, no line that leaves its cell or its comment.
        read = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        for live in ("\\input", "\\immediate", "\\write18"):
            assert live not in read
        assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    else:
        assert "<img" not in text
        if kind == "markdown":
            assert "\n# heading" not in text
            assert "](" not in text
            bars = {line.replace("\\|", "").count("|") for line in text.splitlines()
                    if line.startswith("|")}  # fmt: skip
            assert len(bars) == 1


def test_own_runs_table(small_store):
    points = measured_points(read_stores(small_store)[0], samples=False)
    made = tables.ours(points)
    assert len(made) == 1
    text = table_render.render(made[0], "markdown")
    assert "dynamic_llava 8" in text
    assert "± 5" in text
    assert "(n=40)" in text
    # A value and its difference are two words.
    assert re.search(r"± 5(</u>)? \(-30\.0\)", text)
    assert "5 (-30.0)" in table_render.render(made[0], "latex").replace("}", "")


def test_own_rows_join_a_published_table(store, record):
    rows = [record(task="gqa", value=0.61), record("fastv", task="gqa", value=0.58)]
    points = measured_points(read_stores(store("s", [(r, None) for r in rows]))[0])
    table = tables.build(1, points, with_ours=True)
    own = [row for row in table.rows if "(own run)" in row[1].text]
    cells = [row[table.headers.index("GQA")] for row in own]
    assert [cell.text for cell in cells] == ["61", "58"]
    assert cells[1].delta == pytest.approx(-3)


def test_without_own_runs_the_table_says_so():
    assert "No own run" in tables.build(1, [], with_ours=True).notes[-1]


@pytest.mark.parametrize("number", ["0", "18", "x", "-1"])
def test_unknown_table_exits_2(number, capsys):
    assert main(["table", "--", number]) == 2
    assert "accepted are" in capsys.readouterr().err


def test_missing_results_folder_exits_2(capsys):
    assert main(["table", "ours", "--results", "no-such-folder"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
