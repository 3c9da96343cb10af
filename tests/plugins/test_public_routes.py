"""Every public layout by every route a user has: answers are those of stock transformers.

Routes: ``lmms-eval`` and ``dynllava compare``; a folder, a hub name that only the hub's cache can
resolve, and the folder that ``dynllava convert`` writes; pictures padded and cropped.  The expected
answers come from the published files and stock transformers alone (tests/support/stock_answers.py).
The default run takes a sample of the routes in this process; ``-m slow`` takes them all as typed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import layout_variants
import picture_task
import public_layouts as layouts
import pytest
import stock_answers
import torch

from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.models.checkpoints import convert
from dynllava.models.loading import load_model
from dynllava.records import RecordStore
from dynllava.wrapping import wrap

TOKENS = 8
SIZES = layouts.Sizes(seed=1, layers=5, hidden=96, heads=6)
EVERYTHING = (SIZES.image // SIZES.patch) ** 2
BUILDERS = {
    "llava-hf": ("llava-hf/llava-1.5-7b-hf", layouts.llava_hf),
    "original": ("liuhaotian/llava-v1.5-7b", layouts.original),
    "official": ("someone/dynamic-llava-7b", layouts.official),
}


class Made:
    """Folders, a hub cache, converted folders and a task; built once."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        cache = self.home / "hub"
        self.tower = layouts.clip_tower(root / "clip-vit-large-patch14-336", SIZES)
        layouts.into_cache(cache, layouts.TOWER, self.tower)
        self.folders, self.names, self.converted = {}, {}, {}
        for layout, (name, build) in BUILDERS.items():
            self.folders[layout] = build(root / layout, SIZES)
            layouts.into_cache(cache, name, self.folders[layout])
            self.names[layout] = name
            self.converted[layout] = convert(self.folders[layout], root / "converted" / layout)
        self.task = picture_task.write(root / "task", TOKENS)

    def route(self, layout: str, route: str) -> str:
        places = {"folder": self.folders, "hub": self.names, "converted": self.converted}
        return str(places[route][layout])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("routes"))


def stock(made, layout, aspect, sparse=False):
    found = stock_answers.reference(layout, made.folders[layout], made.tower, sparse)
    return [
        found.answer(question, picture, aspect, TOKENS)
        for question, picture in zip(picture_task.QUESTIONS, picture_task.pictures(), strict=True)
    ]


def compared(made, pretrained, store, *options):
    """Answers and kept image tokens that ``dynllava compare`` stores, and the record."""
    command = ["compare", "--pretrained", pretrained, "--out", str(store), "--quiet"]
    command += ["--tasks", picture_task.NAME, "--data", str(made.task), "--device", "cpu"]
    assert main([*command, *options]) == 0
    return stored(store)


def stored(store):
    (record,) = RecordStore(store).read()[0]
    rows = RecordStore(store).samples(record)
    assert record.status == "ok", record.error
    answers = [row["answer"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    answers = [item[0] if isinstance(item, list) else item for item in answers]
    return answers, [row["costs"]["image_tokens_kept"] for row in rows], record


def evaluated(made, pretrained, **arguments):
    """Answers and kept image tokens of lmms-eval in this process."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    values = {"pretrained": pretrained, **arguments}
    results = simple_evaluate(
        model="dynamic_llava",
        model_args=",".join(f"{key}={value}" for key, value in values.items()),
        tasks=[picture_task.NAME],
        task_manager=TaskManager(include_path=str(made.task), include_defaults=False),
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    samples = sorted(results["samples"][picture_task.NAME], key=lambda item: item["doc_id"])
    answers = [item["filtered_resps"][0] for item in samples]
    return answers, [item["token_counts"][0]["image_tokens_kept"] for item in samples]


@pytest.mark.parametrize("aspect", ["pad", "crop"])
@pytest.mark.parametrize("layout", list(BUILDERS))
def test_lmms_eval_answers_as_stock_transformers(made, layout, aspect):
    expected = stock(made, layout, aspect)
    assert len(set(expected)) == len(expected), "every picture and question must matter"
    found, kept = evaluated(made, made.route(layout, "folder"), method="full", image_aspect=aspect)
    assert found == expected
    assert set(kept) == {EVERYTHING}
    # Two of the three pictures are not square: the other protocol answers otherwise.
    assert expected != stock(made, layout, "crop" if aspect == "pad" else "pad")


@pytest.mark.parametrize("layout", list(BUILDERS))
@pytest.mark.parametrize(("route", "aspect"), [("folder", "crop"), ("converted", "pad")])
def test_compare_answers_as_stock_transformers(made, tmp_path, layout, route, aspect):
    options = ("--methods", "full", "--image-aspect", aspect)
    found, kept, record = compared(made, made.route(layout, route), tmp_path / "store", *options)
    assert found == stock(made, layout, aspect)
    assert set(kept) == {EVERYTHING}
    assert record.environment.image_aspect == aspect
    assert record.environment.image_backend == "PIL"
    assert record.environment.template == ("checkpoint" if layout == "llava-hf" else "vicuna_v1")


def wrapped(made, layout, root):
    """FastV round the model that stock transformers loads; stock pixels and ids."""
    folder = made.folders[layout]
    if layout == "official":
        # Without its predictors it is a plain LLaVA in the original format, tower inside.
        folder = shutil.copytree(folder, root / "plain")
        state = layout_variants.state_of(folder)
        state = {name: value for name, value in state.items() if "score_predictor" not in name}
        layout_variants.store(folder, state, "model.safetensors")
        tower = str(made.tower)
        layouts.edit_json(folder / "config.json", sparse_config=None, mm_vision_tower=tower)
        converted = convert(folder, root / "stock")
    else:
        converted = made.converted[layout]
    reference = stock_answers.LlavaHf(converted)
    reference.images = folder if layout == "llava-hf" else made.tower
    reference.official = None if layout == "llava-hf" else folder
    return reference, wrap(reference.model, "fastv", k=2, keep_ratio=0.5)


@pytest.mark.parametrize("layout", list(BUILDERS))
def test_fastv_is_the_stock_model_wrapped(made, tmp_path, layout):
    """Through lmms-eval from the folder, and through compare from the converted one."""
    reference, model = wrapped(made, layout, tmp_path)
    expected = {
        aspect: [
            reference.answer(question, picture, aspect, TOKENS, model)
            for question, picture in zip(
                picture_task.QUESTIONS, picture_task.pictures(), strict=True
            )
        ]
        for aspect in ("pad", "crop")
    }
    arguments = {"method": "fastv", "k": 2, "keep_ratio": 0.5, "image_aspect": "crop"}
    found, kept = evaluated(made, made.route(layout, "folder"), **arguments)
    assert found == expected["crop"]
    assert found != stock(made, layout, "crop")
    assert set(kept) == {EVERYTHING // 2}
    options = ("--methods", "fastv:k=2,keep_ratio=0.5", "--image-aspect", "pad")
    converted = made.route(layout, "converted")
    assert compared(made, converted, tmp_path / "store", *options)[:2] == (expected["pad"], kept)


def test_the_vision_tower_can_be_given(made, tmp_path):
    """In place of the one that the checkpoint names, which is nowhere; not for other layouts."""
    alone = shutil.copytree(made.folders["original"], tmp_path / "far" / "away")
    layouts.edit_json(alone / "config.json", mm_vision_tower="someone/no-such-tower")
    expected = stock(made, "original", "pad")
    found, _ = evaluated(made, str(alone), method="full", vision_tower=str(made.tower))
    assert found == expected
    options = ("--methods", "full", "--vision-tower", str(made.tower))
    assert compared(made, str(alone), tmp_path / "store", *options)[0] == expected
    with pytest.raises(UserError, match="vision tower 'someone/no-such-tower' not found"):
        evaluated(made, str(alone), method="full")
    with pytest.raises(UserError, match="which has its tower inside; accepted for checkpoints in"):
        evaluated(made, made.route("llava-hf", "folder"), vision_tower=str(made.tower))


@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_dynamic_llava_on_the_official_layout_is_the_plain_sparse_loop(made, tmp_path, aspect):
    expected = stock(made, "official", aspect, sparse=True)
    assert expected != stock(made, "official", aspect)
    folder = made.route("official", "folder")
    found, kept = evaluated(made, folder, method="dynamic_llava", image_aspect=aspect)
    assert found == expected
    assert set(kept) == {int(EVERYTHING * 0.2)}
    options = ("--methods", "dynamic_llava", "--image-aspect", aspect)
    converted = made.route("official", "converted")
    assert compared(made, converted, tmp_path / "store", *options)[:2] == (found, kept)


def test_the_sparse_loop_keeps_and_forgets_what_the_model_does(made):
    """Not the answers alone: every image token and every output token."""
    loop = stock_answers.reference("official", made.folders["official"], made.tower, True)
    model, processor = load_model(made.folders["official"], "dynamic_llava")
    picture = picture_task.pictures()[0]
    ids = stock_answers.official_ids(made.folders["official"], picture_task.QUESTIONS[0])
    values = stock_answers.pixels(picture, "pad", made.tower)
    expected = loop.generate(ids, values, 24)
    assert 0 < sum(loop.kept_outputs) < len(loop.kept_outputs)
    at = ids.index(-200)
    row = [*ids[:at], *[processor.image_token_id] * EVERYTHING, *ids[at + 1 :]]
    inputs = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row)).long()}
    with torch.no_grad():
        out = model.generate(**inputs, pixel_values=values, max_new_tokens=24, do_sample=False)
    assert out[0, len(row) :].tolist() == expected
    decided = [bool(kept) for kept in model.last_report.output_kept[0]]
    assert decided[: len(loop.kept_outputs)] == loop.kept_outputs


# ------------------------------------------------------------------- as typed, every route


def typed(made, command, tmp_path):
    environment = {**os.environ, "HF_HOME": str(made.home), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=500
    )


@pytest.mark.slow  # 36 cold starts of two command lines: ten minutes.
@pytest.mark.parametrize("aspect", ["pad", "crop"])
@pytest.mark.parametrize("route", ["folder", "hub", "converted"])
@pytest.mark.parametrize("layout", list(BUILDERS))
@pytest.mark.parametrize("program", ["lmms-eval", "compare"])
def test_every_route_as_typed(made, tmp_path, program, layout, route, aspect):
    expected, pretrained = stock(made, layout, aspect), made.route(layout, route)
    if program == "compare":
        command = [sys.executable, "-m", "dynllava", "compare", "--pretrained", pretrained]
        command += ["--methods", "full", "--tasks", picture_task.NAME, "--data", str(made.task)]
        command += ["--image-aspect", aspect, "--device", "cpu", "--out", "store"]
        done = typed(made, command, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "wrote 1 records to store" in done.stdout
        found, kept, record = stored(tmp_path / "store")
        assert record.environment.image_aspect == aspect
    else:
        script = Path(sys.executable).with_name("lmms-eval")
        command = [str(script)] if script.is_file() else [sys.executable, "-m", "lmms_eval"]
        command += ["--model", "dynamic_llava"]
        arguments = f"pretrained={pretrained},method=full,image_aspect={aspect}"
        command += ["--model_args", arguments, "--tasks", picture_task.NAME, "--device", "cpu"]
        command += ["--include_path", str(made.task), "--batch_size", "2"]
        command += ["--output_path", "runs", "--log_samples"]
        done = typed(made, command, tmp_path)
        assert done.returncode == 0, done.stderr
        # The exit code is 0 whatever happened: the files are the proof.
        (results,) = (tmp_path / "runs").rglob("*_results.json")
        assert picture_task.NAME in json.loads(results.read_text())["results"]
        (samples,) = (tmp_path / "runs").rglob(f"*_samples_{picture_task.NAME}.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        found = [row["filtered_resps"] for row in rows]
        found = [item[0] if isinstance(item, list) else item for item in found]
        kept = [row["token_counts"][0]["image_tokens_kept"] for row in rows]
    assert found == expected
    assert set(kept) == {EVERYTHING}
