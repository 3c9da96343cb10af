"""Every computed cell of the paper's tables, recomputed here from the printed token counts."""

from __future__ import annotations

import csv
import dataclasses
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from dynllava.analysis.points.measured import measured_points
from dynllava.analysis.tables import paper as tables

from dynllava.published import tables as published
from dynllava.records import Score, TaskInfo
from dynllava.records.reading import read_stores

DATA = Path(__file__).parents[1] / "data" / "table_mismatches.csv"
SIZES = {"7b": (4096, 32), "13b": (5120, 40)}
COLUMNS = {
    number: [item.name for item in published.table(number).columns] for number in range(1, 18)
}


#: Computed cells of each table.
COUNTED = {1: 16, 2: 17, 3: 220, 11: 2, 12: 8, 13: 60, 17: 56}


def size(row):
    name = row.get("model") or row.get("method")
    return SIZES["13b" if "13b" in name else "7b"]


def eq13(hidden, segments):
    """TFLOPs of the paper's Eq. 13: 32 N C^2 + 4 N^2 C a layer."""
    return sum(n * (32 * t * hidden**2 + 4 * t**2 * hidden) for n, t in segments) / 1e12


def prefill(row, kept, base):
    hidden, layers = size(row)
    method = f"{row['method']} {row.get('variant') or ''}"
    dense = 2 if "dynamic" in method else 0
    if "fastv" in method:
        dense = int(re.search(r"k=(\d+)", method)[1])
    return eq13(hidden, [(dense, base), (layers - dense, kept)])


def generation(row, column):
    """Decode TFLOPs or KV megabytes (half precision) of the output tokens."""
    run = column.rsplit("_", 1)[1]
    total, sparse = (int(row[f"{kind}_tokens_{run}"].value) for kind in ("total", "computing"))
    model = {**row, "method": row.get("method") or "7b"}
    hidden, layers = size(model)
    dynamic = "dynamic" in model["method"] or row.get("context") in ("vision", "language")
    dense = 2 if dynamic else 0
    if column.startswith("decode"):
        # H2O evicts from the cache and computes every token.
        sparse = total if "h2o" in model["method"] else sparse
        return eq13(hidden, [(dense, total), (layers - dense, sparse)])
    return 2 * hidden * 2 * (dense * total + (layers - dense) * sparse) / 1e6


def kept_of(row):
    """Image tokens that a generation table's method keeps, of 576 or of TokenPacker's 144."""
    base = 144 if "tokenpacker" in row["method"] else 576
    if "fastv" in row["method"]:
        return base // 4, base
    if "dynamic" in row["method"]:
        return int(base * (0.4 if base == 144 else 0.2)), base
    return base, base


def expected(number, row, column):
    if number in (1, 2, 11, 12):
        if column != "prefill_tflops" or row["image_tokens"] is None:
            return None
        base = 144 if row.get("projector") == "tokenpacker" else 576
        return prefill(row, int(row["image_tokens"].value), base)
    if number in (3, 13, 17):
        if column == "prefill_tflops":
            return prefill(row, *kept_of(row))
        needed = f"total_tokens_{column.rsplit('_', 1)[-1]}"
        known = (
            row.get(needed) is not None and row[needed.replace("total", "computing")] is not None
        )
        return (
            generation(row, column) if column.startswith(("decode", "kv_mem")) and known else None
        )
    return None


@pytest.mark.parametrize("number", [1, 2, 3, 11, 12, 13, 17])
def test_every_computed_cost_follows_from_the_printed_token_counts(number):
    table, counted = tables.build(number), 0
    for row, cells in zip(published.table(number), table.rows, strict=True):
        for column, cell in zip(COLUMNS[number], cells, strict=True):
            value = expected(number, row, column)
            if value is None:
                assert cell.origin != "computed" or column == "average", column
                continue
            assert (cell.origin, cell.value) == ("computed", pytest.approx(value, rel=1e-9))
            counted += 1
    assert counted == COUNTED[number]


def test_cells_by_hand():
    """Independent of any formula here: products written out."""
    rows = {tuple(cell.text for cell in row[:2]): row for row in tables.build(13).rows}
    packed = rows["lvis_vqa_single", "tokenpacker-7b-144"]
    index = COLUMNS[13].index
    # 32 layers x (32 x 144 x 4096^2 + 4 x 144^2 x 4096)
    assert packed[index("prefill_tflops")].value == pytest.approx(2.484772798, abs=1e-9)
    # 2 layers with 159 and 30 with 83 tokens, K and V, 4096 values of 2 bytes
    sparse = rows["lvis_vqa_single", "dynamic-llava-tokenpacker-7b I|T"]
    assert sparse[index("kv_mem_mb_ppl")].value == 2 * 4096 * 2 * (2 * 159 + 30 * 83) / 1e6
    assert packed[index("kv_mem_mb_ppl")].value == 2 * 4096 * 2 * 32 * 159 / 1e6


def test_totals_of_table_8_count_what_each_method_keeps():
    data = tables.build(8)
    totals = {row[0].text: [cell.value for cell in row[1:]] for row in data.rows}
    images, text, outputs = [576] * 6, [8, 10, 15, 56, 205, 51], [2, 3, 6, 159, 351, 1555]
    whole = [sum(parts) for parts in zip(images, text, outputs, strict=True)]
    assert totals["total_tokens"] == totals["computed llava-1.5-13b"] == whole
    assert totals["computed fastv-13b k=3,r=0.75"] == [n - 576 + 144 for n in whole]
    kept = [2, 3, 6, 84, 181, 763]
    dynamic = [115 + t + o for t, o in zip(text, kept, strict=True)]
    assert totals["computed dynamic-llava-13b I|T"] == dynamic
    assert totals["image_tokens"] == images


def rounded(value, printed):
    """``value`` as a table of ``printed``'s precision shows it, half up."""
    step = Decimal(1).scaleb(-len(printed.partition(".")[2]))
    return str(Decimal(repr(value)).quantize(step, ROUND_HALF_UP))


def mismatches():
    found = []
    for number in range(1, 18):
        table = tables.build(number)
        for row, cells in enumerate(table.rows):
            for column, cell in zip(COLUMNS[number], cells, strict=True):
                if not cell.agrees:
                    shown = rounded(cell.value, cell.printed)
                    assert shown != cell.printed, "a mismatch that rounds to the printed cell"
                    found.append((str(number), str(row + 1), column, shown, cell.printed))
    return found


def test_computed_costs_differ_from_the_printed_ones_in_the_listed_cells_only():
    """A change of a formula, or of a transcribed number, moves this list."""
    with DATA.open(newline="") as file:
        listed = [tuple(row) for row in list(csv.reader(file))[1:]]
    assert mismatches() == listed


TASKS = ("lvis_vqa_single", "sharegpt4v_vqa")
OWN = {  # (method, task) -> perplexity, METEOR
    ("full", "lvis_vqa_single"): (4.5, 0.31),
    ("full", "sharegpt4v_vqa"): (2.5, 0.21),
    ("fastv", "lvis_vqa_single"): (4.75, 0.3),
    ("fastv", "sharegpt4v_vqa"): (2.25, 0.22),
}


def generation_runs(record, both):
    """Records of generation runs: perplexity and METEOR are tasks of their own."""
    runs = []
    for (method, task), values in OWN.items():
        metrics = (("ppl", "perplexity", False), ("meteor", "meteor_exact_stem", True))
        for value, (kind, metric, higher) in zip(values, metrics, strict=True):
            if kind in both:
                scale = 1.0 if higher else None
                name = f"{task}_{kind}"
                info = TaskInfo(name, "generation", "test", "h", metric, higher, scale, 9)
                scores = {metric: Score(value)}
                runs.append(dataclasses.replace(record(method, scores=scores), task=info))
    return runs


@pytest.mark.parametrize("both", [("ppl", "meteor"), ("ppl",), ("meteor",)])
def test_own_rows_show_each_metric_in_its_own_column(store, record, both):
    runs = generation_runs(record, both)
    points = measured_points(read_stores(store("g", [(run, None) for run in runs]))[0])
    table = tables.build(3, points, with_ours=True)
    index = COLUMNS[3].index
    shown = {}
    for row in table.rows[len(list(published.table(3))) :]:
        method = "fastv" if "fastv" in row[index("method")].text else "full"
        cells = [row[index(name)] for name in ("ppl", "meteor")]
        shown[method, row[index("benchmark")].text] = [
            cell.value if cell.value is None else pytest.approx(cell.value) for cell in cells
        ]
        # The difference to dense, and who is better, within the metric.
        if method == "fastv":
            dense = OWN["full", row[index("benchmark")].text]
            for cell, kind, base in zip(cells, ("ppl", "meteor"), dense, strict=True):
                if kind in both:
                    assert cell.delta == pytest.approx(cell.value - base)
    assert shown == {
        key: [
            value if kind in both else None
            for value, kind in zip(values, ("ppl", "meteor"), strict=True)
        ]
        for key, values in OWN.items()
    }
