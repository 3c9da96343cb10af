"""``dynllava choose``: costs by count, losses by table, nothing joined that was not measured."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from dynllava.analysis.choose import choose
from dynllava.analysis.choose import question as ask
from dynllava.analysis.choose import search as choosing
from dynllava.analysis.choose.candidates import published_candidates
from dynllava.analysis.choose.losses import loss
from dynllava.analysis.choose.text import document, text
from dynllava.analysis.points.published import published_points
from dynllava.analysis.points.values import Point, Value, dense_of

from dynllava.cli import main
from dynllava.costs import bands, ledger, roofline
from dynllava.costs.devices import load_device
from dynllava.costs.spec import LLAVA_15_7B, load_spec
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.records import MethodInfo

TYPED = [
    *("--model", "llava-1.5-7b", "--batch", "8"),
    *("--max-prefill", "0.6x", "--max-kv", "1GB", "--max-loss", "1"),
]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def table(name):
    file = resources.files("dynllava.paper") / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def by_label(answer, label):
    return next(row for row in document(answer)["rows"] if row["label"] == label)


def test_the_question_as_typed_checks_by_hand(empty, capsys):
    assert main(["choose", *TYPED, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = next(item for item in found["rows"] if item["label"] == "dynamic_llava I|T")

    # KV: 2 layers hold 576, 30 hold int(576 * 0.2) image tokens; 60 text and 15 fed outputs in all.
    entries = 2 * 576 + 30 * 115 + 32 * (60 + 15)
    assert row["costs"]["--max-kv"]["most"] == 8 * entries * (2 * 4096 * 2)

    # Loss: straight from the files.
    printed = {item["method"] + " " + item["variant"]: item for item in
               table("table01_understanding.csv") if item["model"] == "llava-1.5-7b"}  # fmt: skip
    more = {item["method"]: item for item in table("table12_vizwiz_wild_mmvet.csv")
            if item["model"] == "llava-1.5-7b"}  # fmt: skip
    dense, ours = printed["full "], printed["dynamic_llava I|T"]
    losses = [float(dense[name]) - float(ours[name]) for name in dense
              if name not in ("model", "method", "variant", "training_free", "image_tokens",
                              "prefill_tflops", "mme")]  # fmt: skip
    pair = more["full"], more["dynamic_llava I|T"]
    losses += [float(pair[0][name]) - float(pair[1][name]) for name in ("vizwiz", "mm_vet")]
    assert len(losses) == row["loss"]["asked"] == 12
    assert row["loss"]["mean"] == pytest.approx(sum(losses) / 12)
    assert row["loss"]["worst"]["points"] == pytest.approx(max(losses))
    assert row["loss"]["interval"] is None

    # Compute: the ledger of exactly what is to be pasted.
    run = ledger.Run(LLAVA_15_7B, create(row["method"]), LLAVA_15_7B.prompt(60), 16, 8)
    counted = 2 * ledger.total(ledger.entries(run, "prefill"))
    assert row["costs"]["--max-prefill"]["most"] == counted
    dense_run = 2 * ledger.total(ledger.entries(run.dense(), "prefill"))
    assert counted <= 0.6 * dense_run
    assert row["costs"]["--max-prefill"]["limit"] == pytest.approx(0.6 * dense_run)
    # A token more than the outputs that are said to fit breaks the limit.
    most = row["output_tokens_within_kv"]
    per_token = 8 * 32 * 2 * 4096 * 2
    held = row["costs"]["--max-kv"]["most"] + (most - 16) * per_token
    assert held <= 1e9 < held + per_token


def test_no_row_breaks_a_limit_and_every_method_is_accounted_for(empty):
    answer = choose("llava-1.5-7b", batch=8, max_prefill="0.6x", max_kv="1GB", max_loss=1)
    assert answer.rows
    for item in answer.rows:
        assert all(choosing.verdict(item, limit) == "fits" for limit in answer.limits)
    losses = [item.loss.mean for item in answer.rows]
    assert losses == sorted(losses)
    named = {item.name for item in answer.rows} | {miss.name for miss in answer.left_out}
    assert {"fastv", "sparsevlm", "h2o", "visionzip", "divprune", "holov", "random"} <= named
    miss = next(miss for miss in answer.left_out if miss.name == "visionzip")
    # 1 GB at batch 8 is 238 tokens a row, 75 of them text and outputs.
    assert "costs allow 163 image tokens" in miss.why
    assert miss.candidate.label == "visionzip 192"


def test_it_needs_no_torch():
    code = (
        "import sys; from dynllava.cli import main; main(['choose', '--max-kv', '1GB']); "
        "main(['methods']); main(['profile']); main(['table', '10']); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_impossible_limit_is_named_and_ten_percent_more_is_said(empty, capsys):
    answer = choose("llava-1.5-7b", batch=8, max_kv="1MB", max_loss=1, source="published")
    assert not answer.rows
    assert [item.limit.name for item in answer.binding] == ["--max-kv"]
    assert answer.relaxed[0].rows == ()
    # 10 % more reaches 875.3 MiB, which a row of less than a point needs.
    near = choose("llava-1.5-7b", batch=8, max_kv="850MB", max_loss=1, source="published")
    assert not near.rows
    relaxed = {item.limit.name: item for item in near.relaxed}
    assert relaxed["--max-kv"].to == pytest.approx(935e6)
    assert {item.name for item in relaxed["--max-kv"].rows} >= {"dynamic_llava"}
    shown = text(near, 90)
    assert "None qualifies." in shown
    assert "10 % more (891.7 MiB) buys" in shown
    assert "would do alone" in shown


def test_limits_that_only_give_together_are_all_named(empty):
    answer = choose("llava-1.5-7b", batch=8, max_kv="1MB", max_loss=-50, source="published")
    assert {item.limit.name for item in answer.binding} == {"--max-kv", "--max-loss"}


def test_missing_tasks_are_never_filled_in(empty):
    answer = choose("llava-1.5-7b", source="published", tasks=["gqa", "vizwiz"])
    plus = by_label(choose("llava-1.5-7b", source="published", tasks=["vqav2", "gqa"]), "prumerge+")
    assert (list(plus["loss"]["tasks"]), plus["loss"]["asked"]) == (["vqav2"], 2)
    assert all(set(item.loss.tasks) <= {"gqa", "vizwiz"} for item in answer.rows)


def test_mme_counts_only_where_it_is_named_and_as_percent(empty):
    points = published_points("restore", "llava-1.5-7b")
    chosen = next(item for item in points if item.label == "visionzip 192")
    dense = dense_of(points, chosen)
    assert "mme" not in loss(chosen, dense, [], 1).tasks
    assert loss(chosen, dense, ["mme"], 1).mean == pytest.approx(100 * (1 - 1749 / 1862))


def test_studies_are_never_mixed():
    for source in ("dynamic-llava", "restore"):
        points = published_points(source, "llava-1.5-7b")
        for point in points:
            assert dense_of(points, point).source == point.source


def test_another_protocol_is_not_compared():
    here, there = Value(80.0, perfect=100, protocol="a"), Value(90.0, perfect=100, protocol="b")
    dense = Point("measured", "own runs", "m", "full", "full", {"gqa": there, "pope": here})
    ours = Point("measured", "own runs", "m", "fastv", "fastv", {"gqa": here, "pope": here})
    found = loss(ours, dense, [], 1)
    assert (found.tasks, found.asked) == ({"pope": 0.0}, 2)


def own_store(record, store, planted):
    """Records of LLaVA-1.5-7B: dense, and three methods of which ``planted`` loses nothing."""
    rng = np.random.default_rng(0)
    dense = (rng.random(400) < 0.8).astype(int)
    items = []
    for method, parameters in (
        ("full", {}),
        ("fastv", {"k": 2, "keep_ratio": 0.2}),
        ("uniform", {"image_keep_rate": 0.2}),
        ("divprune", {"keep_ratio": 0.2}),
    ):
        lost = rng.random(400) < (0.0 if method in ("full", planted) else 0.2)
        scores = np.where(lost, 0, dense)
        item = record(method, "gqa", scores.mean(), model="llava-1.5-7b-hf")
        items.append((replace(item, method=MethodInfo(method, parameters=parameters)), scores))
    return str(store("own", items))


@pytest.mark.parametrize("planted", ["fastv", "divprune"])
def test_a_planted_best_method_is_found_on_own_records(record, store, planted):
    folder = own_store(record, store, planted)
    answer = choose("llava-1.5-7b", max_prefill="0.6x", max_loss=1, source="own", results=folder)
    assert [item.name for item in answer.rows] == [planted]
    low, high = answer.rows[0].loss.interval
    assert low <= 0 <= high
    assert "lose at most 1" in answer.rows[0].loss.verdict
    others = {miss.name: miss for miss in answer.left_out if miss.candidate is not None}
    assert set(others) == {"fastv", "uniform", "divprune"} - {planted}
    assert all("loss +" in miss.why for miss in others.values())
    assert all("shown to lose more" in m.candidate.loss.verdict for m in others.values())


def test_own_and_published_rows_say_what_they_are(record, store):
    folder = own_store(record, store, "fastv")
    answer = choose("llava-1.5-7b", max_loss=2, results=folder)
    kinds = {item.evidence == "own runs" for item in answer.rows}
    assert kinds == {True, False}
    assert "published, no interval" in text(answer, 100)


def test_times_carry_the_band_of_published_runs(empty):
    method = create("fastv:k=3,keep_ratio=0.25")
    run = ledger.Run(LLAVA_15_7B, method, LLAVA_15_7B.prompt(60), 16, 1)
    device = load_device("a100-80g")
    seconds = roofline.estimate(run, "prefill", device, "float16").total
    band = bands.time_band("prefill", 1, True)
    for most, said in (
        (seconds * band.low * 0.99, "does not fit"),
        (seconds * (band.low + band.high) / 2, "may fit"),
        (seconds * band.high * 1.01, "fits"),
    ):
        asked = ask.Question(LLAVA_15_7B, device=device)
        known = {item.label: item for item in published_candidates(asked, [], 1)}
        limit = ask.Limit(ask.TTFT, most, "s")
        assert choosing.verdict(known["fastv k=3,r=0.75"], limit) == said
    answer = choose("llava-1.5-7b", max_ttft="1ms", device="a100-80g", source="published")
    assert [item.limit.name for item in answer.binding] == ["--max-ttft"]


def test_a_time_without_a_device_is_refused():
    with pytest.raises(UserError, match="needs --device"):
        choose("llava-1.5-7b", max_ttft="80ms")


def test_only_the_classes_that_can_be_served_are_listed(empty):
    answer = choose("llava-1.5-7b", servable=["A"], source="published")
    assert {item.served for item in answer.rows} == {"A"}
    assert next(miss for miss in answer.left_out if miss.name == "fastv").why == "class C"


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_nothing_is_wider_than_the_terminal(empty, width):
    for more in ({"max_loss": 1}, {"max_kv": "1MB"}):
        answer = choose("llava-1.5-7b", batch=8, max_prefill="0.6x", source="published", **more)
        assert max(map(len, text(answer, width).splitlines())) <= width


@pytest.mark.parametrize(
    ("read", "given", "expected"),
    [
        (ask.compute, "0.6x", (0.6, True)),
        (ask.compute, "60%", (0.6, True)),
        (ask.compute, "3TFLOP", (3e12, False)),
        (ask.size, "1GB", 1e9),
        (ask.size, "1GiB", 2**30),
        (ask.size, "512mib", 2**29),
        (lambda given: ask.seconds("--max-ttft", given), "80ms", 0.08),
    ],
)
def test_limits_are_read_in_their_units(read, given, expected):
    assert read(given) == pytest.approx(expected)


@pytest.mark.parametrize(
    "arguments",
    ["--max-kv 1", "--max-kv 0GB", "--max-prefill 3", "--max-prefill 0x", "--servable E",
     "--tasks gqqa", "--model nope", "--batch 0", "--image 5", "--max-ttft 3", "--max-loss nan"],
)  # fmt: skip
def test_a_wrong_word_is_one_line(arguments, capsys):
    assert main(["choose", *arguments.split()]) == 2
    complaint = capsys.readouterr().err.splitlines()
    assert len(complaint) == 1
    assert "accepted" in complaint[0] or "needs" in complaint[0]


def test_the_pictures_size_counts_where_the_family_follows_it(empty):
    small, large = (
        choose("qwen2.5-vl-7b", image=size, max_kv="100MB", source="published")
        for size in ("280x280", "1120x840")
    )
    tokens = [answer.question.spec.prompt(60).image for answer in (small, large)]
    assert tokens == [100, 1200]
    assert not small.rows
    assert "No accuracy is known" in text(small, 80)
    same = choose("llava-1.5-7b", image="640x480", source="published", max_loss=1)
    assert same.question.spec.prompt(60).image == 576


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-7B-Instruct", "llava-v1.6-vicuna-7b"])
def test_a_model_without_known_accuracy_says_so_and_what_costs_allow(empty, model):
    answer = choose(model, batch=8, max_prefill="0.6x", max_kv="4GB", max_loss=1)
    assert answer.rows == ()
    shown = text(answer, 100)
    assert "None qualifies.\nNo accuracy is known on" in shown
    assert "costs allow" in shown


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"),
        ("liuhaotian/llava-v1.5-13b", "llava-1.5-13b"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", "llava-v1.6-mistral-7b"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava-onevision-7b"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl-8b"),
        ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "smolvlm2-500m"),
        ("OpenGVLab/InternVL3-8B-hf", "internvl3-8b"),
    ],
)
def test_a_published_checkpoint_is_asked_for_by_its_name(name, preset):
    assert load_spec(name) == load_spec(preset)


def test_an_unknown_name_is_refused_not_guessed():
    with pytest.raises(UserError, match="accepted are llava"):
        load_spec("llava-hf/llava-9.9-7b-hf")
