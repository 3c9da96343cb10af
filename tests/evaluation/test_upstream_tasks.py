"""The 13 upstream tasks on fixtures: upstream code must give the scores worked out by hand."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("lmms_eval")

from benchmark_fixtures import FIXTURES, write_parquet
from benchmark_scripted import ScriptedModel, evaluate

from dynllava.errors import UserError
from dynllava.evaluation import results
from dynllava.tasks.loading import LoadedTask, load_tasks
from dynllava.tasks.overlays import write_overlay
from dynllava.tasks.registry import BENCHMARKS, PAPER12, SUITES, get


@pytest.fixture(scope="module")
def run(upstream_folder, tmp_path_factory):
    answers = {}
    for name, fixture in FIXTURES.items():
        answers[f"{name}_local"] = fixture.answers
        if BENCHMARKS[name].protocol:
            # The protocol leaves out SEED's video questions, which come last.
            answers[f"{name}_protocol"] = fixture.answers
    model = ScriptedModel(answers)
    output = tmp_path_factory.mktemp("output")
    return model, evaluate(model, [upstream_folder / "tasks"], list(answers), output)


@pytest.mark.parametrize("name", list(FIXTURES))
def test_scores_equal_those_worked_out_by_hand(run, name):
    found = run[1]["results"][f"{name}_local"]
    for metric, value in FIXTURES[name].scores.items():
        assert found[f"{metric},none"] == pytest.approx(value, abs=1e-9), metric
    item = BENCHMARKS[name]
    assert (item.logged or item.metric) in FIXTURES[name].scores


@pytest.mark.parametrize("name", [name for name in FIXTURES if BENCHMARKS[name].protocol])
def test_protocol_overlay_scores_the_same_answers_the_same(run, name):
    metric = BENCHMARKS[name].metric
    found = run[1]["results"][f"{name}_protocol"]
    assert found[f"{metric},none"] == pytest.approx(FIXTURES[name].scores[metric], abs=1e-9)


def test_every_document_was_asked_with_its_pictures(run):
    model, _ = run
    for name, fixture in FIXTURES.items():
        assert sorted(model.prompts[f"{name}_local"]) == list(range(len(fixture.rows)))
        expected = [len(row["image"]) if name == "seed" else 1 for row in fixture.rows]
        assert [count for _, count in sorted(model.images[f"{name}_local"].items())] == expected
    assert len(model.prompts["seed_protocol"]) == 3


@pytest.mark.parametrize("name", list(FIXTURES))
def test_every_sample_has_a_cluster(run, upstream_folder, tmp_path, name):
    """Of the data set where it names one, else the image's hash: the same picture, the same id."""
    # SEED's data hold a video, which the benchmark's own task file leaves out.
    local = f"{name}_{'protocol' if name == 'seed' else 'local'}"
    (task,) = load_tasks([local], tmp_path, [upstream_folder / "tasks"])
    task = LoadedTask(name, task.task, BENCHMARKS[name])
    logged = sorted(run[1]["samples"][local], key=lambda item: item["doc_id"])
    samples = results.samples_of(task, BENCHMARKS[name].metric, logged)
    rows = FIXTURES[name].rows
    for one, other in itertools.combinations(samples, 2):
        assert one.cluster is not None
        if not BENCHMARKS[name].cluster:
            pictures = [_bytes(rows[item.doc_id]["image"]) for item in (one, other)]
            assert (one.cluster == other.cluster) == (pictures[0] == pictures[1])
            assert one.cluster.startswith("image:")


def _bytes(picture):
    many = picture if isinstance(picture, list) else [picture]
    return [item.tobytes() for item in many]


def test_the_same_picture_has_one_id_in_every_task(tmp_path):
    rows = [dict(FIXTURES["vizwiz"].rows[0], question=text) for text in ("What?", "Where?")]
    for name in ("one", "two"):
        data = write_parquet(rows, tmp_path / f"{name}.parquet")
        write_overlay(tmp_path / "tasks", BENCHMARKS["vizwiz"], data=data, name=name)
    tasks = load_tasks(["one", "two"], tmp_path, [tmp_path / "tasks"])
    ids = [identity for task in tasks for identity in task.image_ids(2)]
    assert len(set(ids)) == 1


def test_default_prompts_depart_from_the_protocol_as_the_registry_says(run):
    model, _ = run
    prompts = {task: shown[0] for task, shown in model.prompts.items()}
    short = "\nAnswer the question using a single word or phrase."
    letter = "\nAnswer with the option's letter from the given choices directly."
    for name in ("vqav2", "gqa", "pope", "mme"):
        assert prompts[f"{name}_local"].endswith(short)
    assert prompts["mme_local"] == f"Is it 0?{short}"
    for name in ("sciqa", "seed", "mmvp"):
        assert prompts[f"{name}_local"].endswith(letter)
    assert "OCR" not in prompts["textvqa_local"]
    assert "the atm 0?" in prompts["textvqa_local"]
    assert prompts["textvqa_protocol"] == (
        f"what brand is the ATM 0?\nReference OCR token: NOKIA, 24{short}"
    )
    assert "What is it 0?" in prompts["vizwiz_local"]
    assert prompts["vizwiz_protocol"].startswith("What is IT 0?\nWhen the provided information")
    assert "There are several options:" in prompts["mmbench_local"]
    assert prompts["mmbench_protocol"] == (
        f"A hint.\nWhat is 10?\nA. ant\nB. bee\nC. cat\nD. dog{letter}"
    )
    assert prompts["mm_vet_local"].startswith("First please perform reasoning")
    assert prompts["mm_vet_protocol"] == "What is shown 0?"
    assert prompts["cvbench_2d_local"].startswith("Note:")
    assert prompts["cvbench_2d_protocol"].endswith(f"(B) 0{letter}")


def test_the_judge_was_asked_on_loopback(run, judge):
    assert judge.asked == 2 * len(FIXTURES["mm_vet"].rows)


def test_suites_and_published_scores():
    assert len(PAPER12) == 12
    assert set(SUITES["understanding"]) == {*PAPER12, "mme"}
    assert set(BENCHMARKS) == set(FIXTURES)
    assert BENCHMARKS["gqa"].expected("llava-1.5-7b") == 62.0
    assert BENCHMARKS["mme"].expected("llava-1.5-13b") == 1531.3
    assert BENCHMARKS["vizwiz"].expected("llava-1.5-7b") == 50.0
    assert BENCHMARKS["mm_vet"].expected("llava-1.5-13b") == 36.6
    assert BENCHMARKS["gqa"].expected("no-such-model") is None
    for item in BENCHMARKS.values():
        assert item.expected("llava-1.5-7b"), item.name
        assert item.departures, item.name


def test_unknown_benchmark_is_one_clear_line():
    assert get("scienceqa_img").name == "sciqa"
    with pytest.raises(UserError, match="unknown benchmark 'gqq': accepted are vqav2, gqa"):
        get("gqq")
