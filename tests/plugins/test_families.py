"""Every family through lmms-eval: answers are stock transformers', one row at a time.

The questions show one picture, two or none, so that every batch is ragged.  What stock answers is
computed from the folder by ``AutoModelForImageTextToText`` and transformers' own
``apply_chat_template``; nothing of the plugin, its templates or its batches is in it.
"""

from __future__ import annotations

import family_folders
import picture_task
import pytest
import several_pictures_task as task
import torch
import transformers
from clip_folder import save_clip
from family_folders import BUILDERS, internvl
from PIL import Image

from dynllava import wrap
from dynllava.errors import UserError
from dynllava.models.encoding import encoder_of
from dynllava.models.family_processors import load_family_processor
from dynllava.models.loading import load_model
from dynllava.prompts import Turn, choose_template, continuation_separator, render

TOKENS = 6
QUICK = ("llava_next", "qwen2_5_vl", "internvl")
#: A cold evaluation of each family takes seconds: the quick suite takes three of them.
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS
]
FASTV = {"k": 2, "keep_ratio": 0.5}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with family_folders.quiet():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return family_folders.made_once(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return task.write(tmp_path_factory.mktemp("tasks") / "several", TOKENS)


def evaluated(folder, tasks, batch_size=3, **arguments):
    """Answers and kept image tokens of lmms-eval in this process."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    values = {"pretrained": folder, **arguments}
    results = simple_evaluate(
        model="dynamic_llava",
        model_args=",".join(f"{key}={value}" for key, value in values.items()),
        tasks=[task.NAME],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=batch_size,
        device="cpu",
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    assert "exact_match,none" in results["results"][task.NAME]
    samples = sorted(results["samples"][task.NAME], key=lambda item: item["doc_id"])
    answers = [item["filtered_resps"][0] for item in samples]
    return answers, [item["token_counts"][0]["image_tokens_kept"] for item in samples]


def processor_of(name, folder):
    """transformers' own where it works without torchvision, else its class without video."""
    if name in ("llava_next", "idefics3"):
        return transformers.AutoProcessor.from_pretrained(folder)
    return load_family_processor(folder, name)


def rows(processor):
    """Inputs of each question alone, by transformers' own apply_chat_template."""
    pictures = picture_task.pictures()
    for shown, question in zip(task.SHOWN, task.QUESTIONS, strict=True):
        content = [{"type": "image", "image": pictures[index]} for index in shown]
        content.append({"type": "text", "text": question})
        yield processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


@torch.no_grad()
def by_hand(name, folder, method=None, questions=None, **parameters):
    """Greedy answers, and image tokens, of the stock model or of it wrapped."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = processor_of(name, folder)
    image = load_family_processor(folder, name).image_token_id
    model = wrap(model, method, **(parameters or FASTV)) if method else model
    answers, counts = [], []
    for number, inputs in enumerate(rows(processor)):
        asked = {"questions": [questions[number]]} if questions else {}
        out = model.generate(**inputs, **asked, max_new_tokens=TOKENS, do_sample=False)
        ids = out[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(ids, skip_special_tokens=True).strip())
        counts.append(int((inputs["input_ids"] == image).sum()))
        if method:
            counts[-1] = model.last_report.image_tokens[0]
    return answers, counts


@pytest.mark.parametrize("name", FAMILIES)
def test_lmms_eval_answers_as_stock_transformers(folders, tasks, name):
    expected, counts = by_hand(name, folders(name))
    assert len(set(expected)) >= 3, "pictures and questions must matter"
    answers, kept = evaluated(folders(name), tasks, method="full")
    assert answers == expected
    assert [count > 0 for count in kept] == [bool(shown) for shown in task.SHOWN]
    # Newline tokens of LLaVA-NeXT and OneVision are no patches, so they are not counted as kept.
    newlines = name in ("llava_next", "llava_onevision")
    assert all(k < c if newlines and c else k == c for k, c in zip(kept, counts, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_fastv_through_lmms_eval_is_the_stock_model_wrapped(folders, tasks, name):
    _, everything = evaluated(folders(name), tasks, method="full")
    expected = by_hand(name, folders(name), "fastv")
    found = evaluated(folders(name), tasks, method="fastv", **FASTV)
    assert found == expected
    assert found[1] != everything
    for kept, before in zip(found[1], everything, strict=True):
        assert kept == before // 2


@pytest.mark.slow  # Two more evaluations of what the batches above show already.
def test_batches_of_any_size_answer_alike(folders, tasks):
    folder = folders("qwen2_5_vl")
    assert evaluated(folder, tasks, batch_size=5) == evaluated(folder, tasks, batch_size=1)


def picture(width=40, height=32):
    return Image.new("RGB", (width, height), (200, 30, 30))


@pytest.fixture(scope="module")
def qwen(folders):
    return load_family_processor(folders("qwen2_5_vl"), "qwen2_5_vl")


def test_more_pictures_than_placeholders_in_one_row_is_one_line(qwen):
    encoder = encoder_of(qwen)
    texts = [f"{qwen.image_token} a", f"{qwen.image_token} b"]
    pictures = [[picture()], [picture(), picture()]]
    with pytest.raises(UserError) as caught:
        encoder.encode(texts, pictures, ["document 4", "document 7"])
    assert str(caught.value) == (
        "document 7: 1 image placeholders (<|image_pad|>) in the prompt for 2 images"
    )


def test_a_picture_that_a_processor_refuses_is_named(qwen):
    pictures = [[picture()], [picture(201, 1)]]
    with pytest.raises(UserError) as caught:
        encoder_of(qwen).encode([qwen.image_token] * 2, pictures, ["document 4", "document 7"])
    assert str(caught.value).startswith("document 7: ")
    assert "\n" not in str(caught.value)


def test_a_template_that_writes_image_for_another_token(folders, tmp_path):
    """Two revisions of InternVL3's template: one says <image>, one <IMG_CONTEXT>."""
    processors = [
        load_family_processor(folder, "internvl")
        for folder in (folders("internvl"), internvl(tmp_path / "other", written="<image>"))
    ]
    turns = [Turn("user", "What?", [None, None])]
    texts = [render(choose_template(None, item), turns, item) for item in processors]
    assert texts[0] == texts[1]
    assert texts[0].count("<IMG_CONTEXT>") == 2


@pytest.mark.parametrize(
    ("name", "separator"), [("qwen2_5_vl", ""), ("llava_next", " "), ("smolvlm", " ")]
)
def test_a_continuation_begins_where_the_template_puts_it(folders, name, separator):
    processor = load_family_processor(folders(name), name)
    assert continuation_separator(choose_template(None, processor)) == separator


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image_aspect": "pad"}, "image_aspect=pad: is a rule of LLaVA-1.5"),
        ({"conv_template": "vicuna_v1"}, r"does not know this model's image token <\|image_pad\|>"),
        ({"vision_tower": "somewhere"}, "which has its tower inside"),
        ({"method": "dynamic_llava"}, "no trained predictors"),
        ({"method": "visionzip"}, "acts before layer 0|class token"),
    ],
)
def test_what_other_families_do_not_take(folders, tasks, changes, line):
    with pytest.raises(UserError, match=line):
        evaluated(folders("qwen2_5_vl"), tasks, **{"method": "full", **changes})


def test_missing_weights_are_an_error_and_no_random_numbers(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = BUILDERS["qwen2_vl"](tmp_path / "made")
    state = load_file(folder / "model.safetensors")
    gone = next(key for key in state if "layers.3.mlp.down_proj" in key)
    del state[gone]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack .*layers\.3\.mlp\.down_proj"):
        load_model(folder)


def test_a_method_that_reads_the_question_gets_each_rows_own(folders, tasks, tmp_path):
    folder = folders("llava_next")
    width = transformers.AutoConfig.from_pretrained(folder).vision_config.hidden_size
    options = {"text_tower": save_clip(tmp_path / "clip", width), "keep_ratio": 0.3}
    expected = by_hand("llava_next", folder, "cdpruner", task.QUESTIONS, **options)
    others = by_hand("llava_next", folder, "cdpruner", task.QUESTIONS[::-1], **options)
    assert others != expected, "questions must matter"
    assert evaluated(folder, tasks, method="cdpruner", **options) == expected
