"""``dynllava profile`` and ``dynllava bench``."""

import csv
import io
import json
import subprocess
import sys

import pytest

from dynllava.cli import main
from dynllava.output import tables as render
from dynllava.records import RecordStore

pytest.importorskip("fvcore", reason="fvcore is not installed (the profile extra)")

FULL = ["profile", "--model", "llava-1.5-7b", "--method", "dynamic_llava", "--device", "a100-80g"]


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_profile_prints_tables_and_appends_a_record(capsys, tmp_path):
    store = str(tmp_path / "store")
    code, out, _ = run(capsys, *FULL, "--output-tokens", "100", "--store", store)
    assert code == 0
    for text in ("vision tower", "decode, no cache", "KV cache", "ESTIMATE", "saved share"):
        assert text in out
    records, problems = RecordStore(store).read()
    assert not problems
    assert records[0].kind == "profile"
    assert records[0].counted["prefill_flops"].unit == "FLOP"
    assert records[0].counted["mean_image_tokens"].value == pytest.approx((2 * 576 + 30 * 115) / 32)


def test_profile_json_and_csv_hold_the_same_numbers(capsys):
    _, out, _ = run(capsys, *FULL, "--json", "--no-record")
    quantities = json.loads(out)["quantities"]
    _, out, _ = run(capsys, *FULL, "--csv", "--no-record")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["value"]) for row in rows] == [item["value"] for item in quantities]
    assert {item["unit"] for item in quantities if item["section"] == "compute"} == {"FLOP", "1"}


def test_counters_give_the_same_profile(capsys):
    outputs = set()
    for counter in ("fvcore", "torch", "closed"):
        arguments = ("--csv", "--no-record", "--counter", counter, "--output-tokens", "4")
        outputs.add(run(capsys, *FULL, *arguments)[1])
    assert len(outputs) == 1


@pytest.mark.parametrize("convention", ["eq13", "fastv", "pyramiddrop"])
def test_profile_names_its_convention(capsys, convention):
    code, out, _ = run(capsys, "profile", "--convention", convention, "--no-record", "--markdown")
    assert code == 0
    assert f"convention {convention}" in out
    assert out.startswith("### Run")


def test_eq13_is_the_papers_number(capsys):
    _, out, _ = run(capsys, "profile", "--convention", "eq13", "--no-record", "--json")
    totals = {
        item["name"]: item["value"]
        for item in json.loads(out)["quantities"]
        if item["section"] == "compute" and item["mode"] == "prefill"
    }
    assert round(totals["total"] / 1e12, 1) == 2.5
    assert round(totals["dense total"] / 1e12, 1) == 10.1


def test_audit_is_shown_and_agrees(capsys):
    code, out, _ = run(
        capsys, "profile", "--model", "mid-size", "--audit", "--output-tokens", "3", "--no-record"
    )
    assert code == 0
    assert "FlopCounterMode" in out
    assert "NO" not in out.split("Not counted")[0].split("Audit")[1].split()


def test_grid_has_every_method_on_both_models(capsys):
    from dynllava import methods

    code, out, _ = run(capsys, "profile", "--grid", "--output-tokens", "8", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == 2 * (3 * len(methods.names()) - 1)
    assert not [row for row in rows if row["method"] == "h2o" and "nocache" in row["mode"]]


def test_published_comparison(capsys):
    code, out, _ = run(capsys, "profile", "--published")
    assert code == 0
    assert "measured / estimated" in out


def test_bench_on_the_embedded_model(capsys, tmp_path):
    arguments = "bench --model embedded --methods dynamic_llava --output-tokens 4 --repeats 1"
    store = str(tmp_path)
    code, out, _ = run(capsys, *arguments.split(), "--prompt-tokens", "12", "--store", store)
    assert code == 0
    assert "Realised savings" in out
    records, _ = RecordStore(store).read()
    caches = [record.method.parameters.get("implementation") for record in records]
    assert caches == ["transformers, DynamicCache", "transformers, StaticCache", None]


@pytest.mark.parametrize(
    "arguments",
    [
        ["profile", "--model", "llava-9b"],
        ["profile", "--method", "fastw"],
        ["profile", "--method-args", "sparse_layer"],
        ["profile", "--method-args", "sparse_layer=99"],
        ["profile", "--device", "tpu"],
        ["profile", "--dtype", "int3"],
        ["profile", "--convention", "eq14"],
        ["profile", "--output-tokens", "0"],
        ["profile", "--prompt-tokens", "-1"],
        ["profile", "--batch", "0"],
        ["profile", "--compute-efficiency", "2"],
        ["profile", "--realised-output-keep", "1.5"],
        ["bench", "--batch", "1,x"],
        ["bench", "--output-tokens", "0"],
        ["bench", "--methods", "fastw"],
        ["bench", "--methods", "full", "--repeats", "0", "--no-record"],
        ["bench", "--methods", "full", "--dtype", "int3", "--no-record"],
        ["bench", "--methods", "full", "--device", "tpu", "--no-record"],
        ["bench", "--methods", "full", "--threads", "0", "--no-record"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "accepted" in err


def test_importing_the_package_is_light():
    code = (
        "import sys, dynllava.costs, dynllava.commands.profile, dynllava.commands.bench;"
        "print([name for name in ('torch', 'transformers', 'fvcore') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_readable_quantities():
    assert render.quantity(8_855_890_788_352, "FLOP") == "8.856 TFLOP"
    assert render.quantity(0.652, "1") == "65.2 %"
    assert render.quantity(0.0123, "s") == "12.3 ms"
    assert render.quantity(512, "byte") == "512 B"


def test_csv_and_markdown_escape():
    table = render.Table("t", ("a", "b"), [["x|y", "1"]])
    assert "x\\|y" in render.as_markdown([table])
    assert render.as_csv(("a",), [["x,y"]]) == 'a\n"x,y"\n'


def test_bench_in_several_processes_stores_each_and_pools_all(tmp_path, capsys, monkeypatch):
    """Two processes, two records a subject, one pooled record; here both run in this one."""
    from dynllava.commands import bench as command_module
    from dynllava.records.pooling import pooled
    from dynllava.timing import speed

    started = []

    def run(arguments):
        assert arguments[:3] == [sys.executable, "-m", "dynllava"]
        started.append(arguments)
        monkeypatch.setattr(speed, "process_name", lambda: f"process {len(started)}")
        return main(arguments[3:])

    monkeypatch.setattr(command_module, "_child", run)
    command = ["bench", "--model", "embedded", "--methods", "fastv", "--output-tokens", "2"]
    command += ["--repeats", "3", "--processes", "2", "--stock", "static", "--batch", "1"]
    assert main([*command, "--store", str(tmp_path)]) == 0
    assert "process 2/2" in capsys.readouterr().err
    records, problems = RecordStore(tmp_path).read()
    assert not problems
    assert [arguments[-1] for arguments in started] == ["0", "1"]  # seeds of the order
    assert [record.method.name for record in records] == ["full", "fastv"] * 2
    fastv = pooled(records)[1]
    found = fastv.measured["prefill"]
    assert [len(values) for values in found.rounds.values()] == [3, 3]
    assert found.repeats == 6
    values = sorted(value for rounds in found.rounds.values() for value in rounds)
    assert found.median == pytest.approx((values[2] + values[3]) / 2)
    assert fastv.record_id == records[3].record_id
    assert main([*command, "--json"]) == 2
