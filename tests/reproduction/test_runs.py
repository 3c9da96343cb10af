"""``dynllava reproduce ROW --run`` on replicas in a hub cache: the path works, the value cannot."""

from __future__ import annotations

import json

import layout_variants
import numpy as np
import public_layouts as layouts
import pytest
import torch
from PIL import Image

pytest.importorskip("lmms_eval")

from dynllava.cli import main
from dynllava.models.token_packer import TokenPacker
from dynllava.published.rows import HUB, TOWER, find
from dynllava.records import RecordStore, RunRecord
from dynllava.reproduction.verdict import outcomes, overall
from dynllava.tasks import build
from dynllava.tasks.overlays import write_overlay
from dynllava.tasks.registry import BENCHMARKS

ROWS = 40
#: The sizes of LLaVA-1.5's pictures and depth, everything else small: budgets are of 576 tokens.
SIZES = layouts.Sizes(
    seed=1, layers=32, hidden=32, mlp=48, heads=4, image=336, positions=4096, vision_layers=24
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub cache with replicas of the published weights, and a trained one in a folder."""
    root = tmp_path_factory.mktemp("replicas")
    cache = root / "hub"
    layouts.into_cache(cache, HUB["llava-1.5-7b"], layouts.llava_hf(root / "llava", SIZES))
    layouts.into_cache(cache, TOWER, layouts.clip_tower(root / "tower", SIZES))
    packed = layouts.original(root / "tokenpacker", SIZES)
    state = layout_variants.state_of(packed)
    state = {name: tensor for name, tensor in state.items() if "mm_projector" not in name}
    torch.manual_seed(0)
    packer = TokenPacker(SIZES.vision, SIZES.hidden, 2, 128, 1)
    state |= {f"model.mm_projector.{name}": part for name, part in packer.state_dict().items()}
    layout_variants.store(packed, state, "model.safetensors")
    layouts.edit_json(packed / "config.json", scale_factor=2, mm_projector_type="tokenpacker")
    layouts.into_cache(cache, HUB["tokenpacker-7b"], packed)
    return cache, layouts.official(root / "trained", SIZES)


def use(cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cached(hub, monkeypatch):
    use(hub[0], monkeypatch)
    return hub[1]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A hub cache with a LLaVA-1.5 of five layers and 16 image tokens."""
    sizes = layouts.Sizes(seed=1, layers=5, hidden=96, heads=6)
    layouts.into_cache(
        tmp_path / "hub", HUB["llava-1.5-7b"], layouts.llava_hf(tmp_path / "llava", sizes)
    )
    use(tmp_path / "hub", monkeypatch)


def pictures(count):
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(count)
    ]


def questions(folder, benchmark, answers):
    """Write a benchmark with these correct answers, one picture each, as a task of its name."""
    import datasets

    rows = []
    for number, (picture, answer) in enumerate(zip(pictures(len(answers)), answers, strict=True)):
        row = {"image": picture, "question": f"What is number {number}?"}
        if benchmark == "gqa":
            row |= {"id": str(number), "imageId": f"n{number}", "answer": answer}
        elif benchmark == "textvqa":
            row |= {"question_id": number, "image_id": f"n{number}", "ocr_tokens": ["stop"]}
            row |= {"answers": [answer] * 10}
        else:
            row |= {"question_id": f"q{number}", "answers": [answer] * 10, "category": "other"}
        rows.append(row)
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{benchmark}.parquet"
    table.to_parquet(data)
    write_overlay(folder, BENCHMARKS[benchmark], data=data, name=benchmark)
    return folder


def generation(folder):
    """Build LVIS-VQA single- and multi-round benchmarks of a few samples."""
    (folder / "images").mkdir(parents=True)
    words = ["red", "circle", "in", "the", "top", "row", "there", "is", "a", "blue", "star"]
    entries = []
    for number, picture in enumerate(pictures(16)):
        name, rounds = f"{number:012d}.png", 1 if number < 8 else 8
        picture.save(folder / "images" / name)
        turns = []
        for turn in range(rounds):
            count = 101 if rounds == 1 else 38
            answer = " ".join(words[(number * turn + place) % len(words)] for place in range(count))
            turns += [{"from": "human", "value": f"describe {turn}."}]
            turns += [{"from": "gpt", "value": answer}]
        entries.append({"id": str(number), "image": name, "conversations": turns})
    (folder / "all.json").write_text(json.dumps(entries))
    (folder / "train.json").write_text("[]")
    for name in ("lvis_vqa_single", "lvis_vqa_multi"):
        build.build(
            name, folder / "all.json", folder / "images", [folder / "train.json"],
            folder / "tasks", samples=8,
        )  # fmt: skip
    return folder / "tasks"


def reproduced(capsys, row, data, out, *options):
    command = ["reproduce", row, "--run", "--data", str(data), "--out", str(out)]
    code = main([*command, "--device", "cpu", "--dtype", "float32", *options])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out.splitlines()


def test_a_row_ends_in_a_verdict_that_follows_the_answers(small, tmp_path, capsys):
    """Nothing right: differs.  62.5 % right where 62.0 is printed: agrees within 20 points."""
    wrong = questions(tmp_path / "wrong", "gqa", ["no such answer"] * ROWS)
    options = ("--tasks", "gqa", "--batch-size", "8")
    lines = reproduced(capsys, "table1:full-7b", wrong, tmp_path / "first", *options)
    weights = next(line for line in lines if line.startswith("weights"))
    assert "llava-hf/llava-1.5-7b-hf" in weights
    assert "MiB in the hub's cache; Llama 2 licence" in weights
    assert lines[-1] == "table1:full-7b: differs in gqa"
    store = RecordStore(tmp_path / "first")
    (record,) = store.read()[0]
    assert record.environment.template == "vicuna_v1"
    assert (record.environment.image_aspect, record.task.prompts) == ("pad", "llava")
    rows = sorted(store.samples(record), key=lambda item: item["doc_id"])
    given = [item["answer"][0] if isinstance(item["answer"], list) else item["answer"]
             for item in rows]  # fmt: skip
    known = [answer.lower().rstrip(".").strip() for answer in given]
    answers = [answer if number < 25 else "another" for number, answer in enumerate(known)]
    right = questions(tmp_path / "right", "gqa", answers)
    lines = reproduced(
        capsys, "table1:full-7b", right, tmp_path / "second", *options, "--margin", "20"
    )
    assert lines[-1] == "table1:full-7b: agrees in gqa"
    (line,) = [item for item in lines if item.startswith("gqa: ")]
    assert line.startswith("gqa: agrees: 62.5 [")
    assert "from 40 independent units, printed 62.0, margin 20.05" in line


@pytest.mark.slow  # A dozen evaluations of 32 layers over 576 image tokens: minutes.
@pytest.mark.parametrize(
    ("row", "task", "trained"),
    [
        ("table2:tokenpacker", "gqa", False),
        ("table2:llava-tokenpacker-fastv-7b-k3-r0.5", "vizwiz", False),
        ("table3:lvis_vqa_single-fastv-7b-k3-r0.75", "lvis_vqa_single_ppl", False),
        ("table3:lvis_vqa_single-random-7b", "lvis_vqa_single_meteor", False),
        ("table5:vision-0.5", "gqa", True),
        ("table6:sparse_layer-4", "gqa", True),
        ("table7:dynamic-llava-7b-IT", "gqa", True),
        ("table9:dynamic-llava-7b-IT", "gqa", True),
        ("table11:sparsevlm-7b", "gqa", False),
        ("table12:dynamic_llava-7b-I", "vizwiz", True),
        ("table13:lvis_vqa_single-tokenpacker-7b-144", "lvis_vqa_single_ppl", False),
        ("table16:language-0.5", "textvqa", True),
        ("table17:lvis_vqa_multi-full-1.0", "lvis_vqa_multi_ppl", False),
        ("budgets:fastv-192", "gqa", False),
    ],
)
def test_a_row_of_every_table_runs(row, task, trained, cached, tmp_path, capsys):
    if task.startswith("lvis"):
        data = generation(tmp_path / "made")
    else:
        data = questions(tmp_path / "made", task, ["no such answer"] * 8)
    options = ["--tasks", task, "--batch-size", "4"]
    options += ["--checkpoint", str(cached)] if trained else []
    lines = reproduced(capsys, row, data, tmp_path / "store", *options)
    (record,) = RecordStore(tmp_path / "store").read()[0]
    assert record.status == "ok"
    assert record.method.name == find(row).method.partition(":")[0]
    (line,) = [item for item in lines if item.startswith(f"{task}: ")]
    if task == "vizwiz":
        assert "no verdict" in line
        assert any("submission server" in item for item in lines)
    elif task.endswith("meteor"):
        assert "WordNet" in line or "printed" in line
    else:
        assert "printed" in line
    assert lines[-1].startswith(f"{find(row).name}: ")


# ------------------------------------------------------------------- verdicts from records


def stored(folder, task, scores, value, **score):
    """Write a record of one task and its samples; return the store."""
    from dynllava.records import (
        Environment,
        MethodInfo,
        ModelInfo,
        Score,
        TaskInfo,
    )

    known = BENCHMARKS.get(task)
    metric = known.metric if known else "ppl"
    store = RecordStore(folder)
    record = RunRecord(
        kind="evaluation",
        model=ModelInfo("m"),
        method=MethodInfo("full", "full"),
        environment=Environment(),
        task=TaskInfo(task, metric=metric, samples=len(scores), prompts="llava"),
        scores={metric: Score(value, **score)},
    )
    store.append(record, samples=scores)
    return store


def samples(scores, per_cluster=1):
    return [
        {"doc_id": number, "score": score, "cluster": number // per_cluster}
        for number, score in enumerate(scores)
    ]


def test_pairs_count_once_and_by_the_pair(tmp_path):
    """MMVP: 150 pairs, both answers right in 44 of them (29.3 %)."""
    scores = [1.0, 1.0] * 44 + [1.0, 0.0] * 106
    store = stored(tmp_path, "mmvp", samples(scores, 2), 44 / 150)
    (found,) = outcomes(find("table1:full-7b"), ["mmvp"], store, 10.0)
    assert found.text.startswith("29.3 [")
    assert "from 150 independent units" in found.text
    assert found.verdict == "agrees"
    (found,) = outcomes(find("table1:full-7b"), ["mmvp"], store, 1.0)
    assert found.verdict == "undecided"


def test_questions_on_one_image_count_together(tmp_path):
    """200 images of ten questions, all right or all wrong: 200 answers, not 2,000."""
    scores = [float(image < 116) for image in range(200) for _ in range(10)]
    row = find("table1:full-7b")
    store = stored(tmp_path / "together", "gqa", samples(scores, 10), 0.58)
    (together,) = outcomes(row, ["gqa"], store, 1.0)
    assert "from 200 independent units" in together.text
    assert together.verdict == "undecided"
    (apart,) = outcomes(row, ["gqa"], stored(tmp_path / "apart", "gqa", samples(scores), 0.58), 1.0)
    assert apart.verdict == "differs"


def test_several_benchmarks_are_corrected_together(tmp_path):
    """One score is off at p = 0.03: alone it differs, as one of four it does not."""
    row, tasks = find("table1:full-7b"), ["gqa", "sciqa", "realworldqa", "cvbench_2d"]
    store = None
    for task, share in zip(tasks, (0.587, 0.672, 0.540, 0.589), strict=True):
        right = round(2000 * share)
        store = stored(tmp_path, task, samples([1.0] * right + [0.0] * (2000 - right)), share)
    alone = outcomes(row, ["gqa"], store, 1.0)
    together = outcomes(row, tasks, store, 1.0)
    assert alone[0].verdict == "differs"
    assert together[0].verdict == "undecided"
    assert overall(alone) == "differs in gqa"
    assert overall(together) == "undecided"


def test_a_score_of_the_submission_server_gets_no_verdict(tmp_path):
    store = stored(tmp_path, "vqav2", samples([1.0] * 100), 1.0)
    (found,) = outcomes(find("table1:full-7b"), ["vqav2"], store, 1.0)
    assert found.verdict == ""
    assert "test-dev" in found.caution
    assert overall([found]) == "undecided"


def test_other_samples_than_the_papers_widen_what_is_said(tmp_path):
    """4.59 is printed; 4.72 with an error of 0.05 differs only if print had no error of its own."""
    store = stored(tmp_path, "lvis_vqa_single_ppl", samples([4.7] * 1000), 4.72, stderr=0.05)
    row = find("table3:lvis_vqa_single-full-7b")
    (found,) = outcomes(row, ["lvis_vqa_single_ppl"], store, 0.1)
    assert found.verdict == "undecided"
    assert found.caution.startswith("other samples")


def test_what_failed_or_is_missing_is_said(tmp_path):
    (found,) = outcomes(find("table1:full-7b"), ["gqa"], RecordStore(tmp_path), 1.0)
    assert (found.text, found.verdict) == ("not run", "")
