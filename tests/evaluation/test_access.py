"""What keeps a task from running is found before anything runs; the rest of a sweep goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from benchmark_fixtures import FIXTURES, picture, write_parquet
from benchmark_scripted import ScriptedRunner

from dynllava.evaluation.statistics import Sample, category_mean_f1, f1
from dynllava.evaluation.summary import summary
from dynllava.evaluation.sweep import Cell, run_sweep
from dynllava.tasks import access
from dynllava.tasks.overlays import write_overlay, write_yaml
from dynllava.tasks.registry import BENCHMARKS, PAPER12

ANSWERS = {"full": {name: FIXTURES[name].answers for name in ("pope", "seed")}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("access")
    for name in ("pope", "seed"):
        data = write_parquet(FIXTURES[name].rows, root / "data" / f"{name}.parquet")
        write_overlay(root / "tasks", BENCHMARKS[name], data=data, name=name)
    return root / "tasks"


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv(access.JUDGE_KEY, raising=False)


def sweep(folder, store, tasks):
    runner = ScriptedRunner(ANSWERS)
    records = run_sweep(
        "scripted", [Cell("full")], tasks, store=store, folders=[folder], runner=runner
    )
    return records, runner


def test_a_task_without_a_judge_fails_first_and_alone(folder, tmp_path, no_key, capsys):
    records, runner = sweep(folder, tmp_path, ["mm_vet", "pope"])
    assert [(r.task.name, r.status) for r in records] == [("mm_vet", "failed"), ("pope", "ok")]
    assert "set OPENAI_API_KEY" in records[0].error
    assert runner.asked == [("full", "auto")]
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("warning: task mm_vet: MM-Vet is scored by a language model")
    assert "failed: full, mm_vet: MM-Vet is scored" in summary(records)


def test_questions_with_several_images_are_asked(folder, tmp_path):
    # The fixture keeps upstream's questions about frames, as --prompts lmms-eval does.
    records, _ = sweep(folder, tmp_path, ["seed", "pope"])
    assert [(r.task.name, r.status) for r in records] == [("seed", "ok"), ("pope", "ok")]


@pytest.mark.parametrize(("column", "kind"), [("video", "Video"), ("audio", "Audio")])
def test_video_and_sound_are_refused_by_the_column(column, kind):
    import datasets

    feature = getattr(datasets, kind)(decode=False)
    features = datasets.Features({column: feature, "question": datasets.Value("string")})
    rows = {column: [None], "question": ["What?"]}
    data = datasets.Dataset.from_dict(rows, features=features)
    assert access.input_problem(data) == f"its questions are about {column}: accepted are images"


def test_lists_of_images_are_accepted():
    import datasets

    features = datasets.Features({"image": datasets.Sequence(datasets.Image())})
    images = [[picture("a")], [picture("a"), picture("b")], []]
    data = datasets.Dataset.from_dict({"image": images}, features=features)
    assert access.input_problem(data) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("LocalTokenNotFoundError('Token is required (`token=True`)')", "run hf auth login"),
        ("OSError('401 Client Error: Unauthorized')", "run hf auth login"),
        ("OSError('Cannot access gated repo for url x')", "run hf auth login"),
        ("FileNotFoundError('no file part401/aggregated.parquet')", "its data cannot be loaded"),
        ("FileNotFoundError('no such file')", "its data cannot be loaded (FileNotFoundError"),
    ],
)
def test_a_login_is_told_from_missing_data(error, line):
    from huggingface_hub.errors import LocalTokenNotFoundError

    raised = eval(error, {"LocalTokenNotFoundError": LocalTokenNotFoundError})
    text = access.loading_problem(raised)
    assert line in text
    assert len(text.splitlines()) == 1


def test_a_task_whose_data_are_missing_is_recorded(tmp_path, folder):
    tasks = tmp_path / "tasks"
    write_overlay(tasks, BENCHMARKS["gqa"], data=tmp_path / "missing.parquet", name="gqa")
    (tasks / "pope.yaml").write_text((folder / "pope.yaml").read_text())
    records, _ = sweep(tasks, tmp_path / "store", ["gqa", "pope"])
    assert [record.status for record in records] == ["failed", "ok"]
    assert records[0].error.startswith("its data cannot be loaded")


def test_no_judge_leaves_only_judged_tasks_out():
    kept, judged = access.without_judges(list(PAPER12))
    assert judged == ["mm_vet"]
    assert [*kept, *judged].__len__() == len(PAPER12)


def test_every_upstream_task_says_whether_it_wants_a_login(tmp_path):
    needs = {name: access.requirements(item) for name, item in BENCHMARKS.items()}
    assert all(item.dataset for item in needs.values())
    assert needs["pope"].login
    assert not needs["textvqa"].login
    write_yaml(tmp_path / "own.yaml", {"dataset_path": "a/b", "dataset_kwargs": {"token": True}})
    assert access.read_requirements(tmp_path / "own.yaml") == access.Requirements("a/b", True)


def test_the_page_names_the_tasks_whose_prompts_differ_and_those_that_need_no_login():
    page = " ".join((Path(__file__).parents[2] / "docs" / "lmms_eval.md").read_text().split())
    prompts = page.partition("**Prompts.**")[2].partition("**Tasks that cannot run.**")[0]
    logins = page.partition("**Tasks that cannot run.**")[2].partition("## Model arguments")[0]
    for item in BENCHMARKS.values():
        assert (item.title.removesuffix(" 2D") in prompts) == bool(item.protocol), item.title
    free = [item.task for item in BENCHMARKS.values() if not access.requirements(item).login]
    assert f"all but {', '.join(f'`{name}`' for name in free)})" in logins
    assert len(BENCHMARKS) - len(free) == 10
    assert "Ten of the paper's thirteen tasks" in logins


# ------------------------------------------------------------------ scores beside published ones


def answer(number, category, truth, prediction):
    return Sample(number, float(truth == prediction), None, category, truth, prediction)


def test_pope_is_the_mean_of_three_f1_beside_the_pooled_one(folder, tmp_path):
    records, _ = sweep(folder, tmp_path, ["pope"])
    scores = records[0].scores
    # adversarial: yes/yes, no/yes: 2/3; popular: yes/yes, no/no: 1; random: yes/no, no/maybe: 0.
    assert scores["pope_f1_category_mean"].value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["pope_f1_score"].value == pytest.approx(2 / 3)
    assert records[0].task.metric == "pope_f1_category_mean"
    assert scores["pope_f1_category_mean"].n == 6
    assert scores["pope_f1_category_mean"].stderr > 0


def test_pooling_differs_from_the_mean_where_categories_differ_in_size():
    samples = [answer(n, "random", "yes", "yes") for n in range(9)]
    samples += [answer(9, "adversarial", "no", "yes"), answer(10, "adversarial", "yes", "yes")]
    assert category_mean_f1(samples) == pytest.approx((1 + 2 / 3) / 2)
    assert f1(samples) == pytest.approx(2 * 10 / (2 * 10 + 1))


def test_split_and_departure_stand_beside_the_published_number(folder, tmp_path):
    records, _ = sweep(folder, tmp_path, ["pope"])
    line = summary(records).splitlines()[-1]
    assert line.startswith("POPE (pope): published score of llava-1.5-7b: 85.9; an answer other")
    assert records[0].task.prompts == "llava"


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_caution_names_another_split_and_upstream_prompts(name):
    item = BENCHMARKS[name]
    ours, upstream = item.caution("llava"), item.caution("lmms-eval")
    assert (item.paper_split in ours) == (item.paper_split in upstream) == item.submission
    if item.protocol:
        assert "lmms-eval's own prompts" in upstream
        assert "lmms-eval's own prompts" not in ours
    assert item.caution(None) == upstream


def test_tables_of_own_runs_carry_the_caution(folder, tmp_path):
    from dynllava.analysis.points.measured import measured_points
    from dynllava.analysis.tables import paper as tables

    from dynllava.records.reading import read_stores

    sweep(folder, tmp_path, ["pope"])
    own = measured_points(read_stores(tmp_path)[0], samples=False)
    caution = BENCHMARKS["pope"].caution("llava")
    assert caution in tables.build(1, own, with_ours=True).notes
    assert caution not in tables.build(1).notes
    assert caution in tables.ours(own)[0].notes
