"""The generation benchmarks: selection, task YAMLs, perplexity and METEOR."""

from __future__ import annotations

import io
import json
import math
import random

import pytest

pytest.importorskip("lmms_eval")

from benchmark_fixtures import picture
from benchmark_scripted import ScriptedModel, evaluate

from dynllava.errors import UserError
from dynllava.tasks import build, lmms_tasks, text_metrics
from dynllava.tasks.registry import GENERATION, SUITES

# Answers of known length; the trailing numbers make each one different.
LONG = " ".join(["word"] * 101)
SHORT = " ".join(["word"] * 100)


def _entry(number, answers, image=None):
    turns = []
    for place, answer in enumerate(answers):
        mark = "<image>\n" if place == 0 else ""
        turns.append({"from": "human", "value": f"{mark}Question {number}.{place}?"})
        turns.append({"from": "gpt", "value": answer})
    image = image or f"coco/train2017/{number:012d}.jpg"
    return {"id": f"s{number}", "image": image, "conversations": turns}


ENTRIES = [
    _entry(1, [LONG]),
    _entry(2, [LONG], "coco/val2017/000000000002.jpg"),
    _entry(3, [SHORT]),  # 100 words are not more than 100
    _entry(4, [LONG]),  # trained on
    _entry(5, ["word " * 38] * 8),  # 8 rounds, 304 words
    _entry(6, ["word " * 38] * 8),
    _entry(7, ["word " * 60] * 7),  # 7 rounds are not more than 7
    _entry(8, ["word " * 37] * 8),  # 296 words
    _entry(9, [" ".join(["word"] * 300)]),
    _entry(10, [" ".join(["word"] * 299)]),
    {"id": "text only", "conversations": [{"from": "human", "value": "Hi"}]},
    {"id": "odd", "image": "a.jpg", "conversations": [{"from": "gpt", "value": "Hi"}]},
]
TRAINED = [{"id": "t", "image": "coco/train2014/COCO_train2014_000000000004.jpg"}]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    (root / "lvis.json").write_text(json.dumps(ENTRIES))
    (root / "train.json").write_text(json.dumps(TRAINED))
    for entry in ENTRIES[:10]:
        path = root / "images" / entry["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        picture(entry["id"]).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
    return root


def _build(sources, out, benchmark, samples, **options):
    return build.build(
        benchmark,
        annotations=sources / options.pop("annotations", "lvis.json"),
        images=sources / "images",
        train_annotations=[sources / "train.json"],
        out=out,
        samples=samples,
        **options,
    )


@pytest.fixture(scope="module")
def folder(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("generation")
    for benchmark, samples in zip(GENERATION, (2, 2, 1), strict=True):
        _build(sources, out, benchmark, samples)
    return out


def _ids(folder, benchmark):
    return json.loads((folder / f"{benchmark}.json").read_text())["ids"]


def test_selection_follows_the_papers_description(sources, tmp_path):
    _build(sources, tmp_path, "lvis_vqa_single", 4)
    assert set(_ids(tmp_path, "lvis_vqa_single")) == {"s1", "s2", "s9", "s10"}
    _build(sources, tmp_path, "lvis_vqa_multi", 2)
    assert set(_ids(tmp_path, "lvis_vqa_multi")) == {"s5", "s6"}
    _build(sources, tmp_path, "sharegpt4v_vqa", 1)
    assert _ids(tmp_path, "sharegpt4v_vqa") == ["s9"]


def test_training_images_are_left_out_under_either_coco_name(sources, tmp_path):
    with pytest.raises(UserError, match="4 images qualify, 5 samples were asked for"):
        _build(sources, tmp_path, "lvis_vqa_single", 5)
    assert build.image_key("COCO_val2014_000000000009.jpg") == build.image_key("000000000009.png")
    assert build.image_key("vg/VG_100K/9.jpg") != build.image_key("000000000009.jpg")


def test_selection_does_not_depend_on_the_order_of_the_file(sources, tmp_path):
    shuffled = list(ENTRIES)
    random.Random(1).shuffle(shuffled)
    (sources / "shuffled.json").write_text(json.dumps(shuffled))
    _build(sources, tmp_path / "a", "lvis_vqa_single", 3)
    _build(sources, tmp_path / "b", "lvis_vqa_single", 3, annotations="shuffled.json")
    _build(sources, tmp_path / "c", "lvis_vqa_single", 3, seed=1)
    first, second, other = (_ids(tmp_path / name, "lvis_vqa_single") for name in "abc")
    assert first == second
    assert first != other


def test_bad_input_is_one_clear_line(sources, tmp_path, capsys):
    arguments = ["lvis_vqa_single", "--images", str(sources / "images"), "--out", str(tmp_path)]
    arguments += ["--train-annotations", str(sources / "train.json"), "--samples", "1"]
    (tmp_path / "broken.json").write_text("[{")
    assert build.main([*arguments, "--annotations", str(tmp_path / "broken.json")]) == 2
    assert build.main([*arguments, "--annotations", str(tmp_path / "absent.json")]) == 2
    lost = [_entry(77, [LONG])]
    (tmp_path / "lost.json").write_text(json.dumps(lost))
    assert build.main([*arguments, "--annotations", str(tmp_path / "lost.json")]) == 1
    escape = [_entry(78, [LONG], "../lvis.json")]
    (tmp_path / "escape.json").write_text(json.dumps(escape))
    assert build.main([*arguments, "--annotations", str(tmp_path / "escape.json")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "not JSON" in lines[0]
    assert "cannot read" in lines[1]
    assert "000000000077.jpg" in lines[2]
    assert "lies outside" in lines[3]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    answers = {
        # (perplexity, tokens): one request a document, eight for a conversation.
        "lvis_vqa_single_ppl": [(2.0, 10), (4.0, 30)],
        "sharegpt4v_vqa_ppl": [(3.0, 7)],
        "lvis_vqa_single_meteor": ["word " * 101, "nothing"],
        "sharegpt4v_vqa_meteor": ["word " * 300],
        "lvis_vqa_multi_meteor": [["word " * 38] * 8, ["word " * 38] * 4 + [""] * 4],
    }
    model = ScriptedModel(answers)
    rounds = iter([2.0] * 4 + [4.0] * 4 + [1.0] * 8)
    model.answers["lvis_vqa_multi_ppl"] = _Rounds(rounds)
    output = tmp_path_factory.mktemp("output")
    return model, evaluate(model, [folder], list(SUITES["generation"]), output)


class _Rounds:
    """Hands out one perplexity per request, whatever the document."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, doc_id):
        return next(self.values), 5


def _value(run, task, metric):
    return run[1]["results"][task][f"{metric},none"]


def test_perplexity_is_the_mean_over_rounds_then_documents(run):
    assert _value(run, "lvis_vqa_single_ppl", "ppl") == pytest.approx((2 + 4) / 2)
    assert _value(run, "sharegpt4v_vqa_ppl", "ppl") == pytest.approx(3)
    assert _value(run, "lvis_vqa_multi_ppl", "ppl") == pytest.approx(((4 * 2 + 4 * 4) / 8 + 1) / 2)


def test_corpus_perplexity_weighs_tokens(run):
    expected = math.exp((10 * math.log(2) + 30 * math.log(4)) / 40)
    assert _value(run, "lvis_vqa_single_ppl", "ppl_corpus") == pytest.approx(expected)


def _same_words(count):
    # All words match in one chunk: 1 - 0.5 * (1 / count) ** 3.
    return 1 - 0.5 / count**3


def test_meteor_equals_the_formula(run):
    lengths = [300 if _id == "s9" else 299 if _id == "s10" else 101 for _id in run_ids(run)]
    precision, recall = 1.0, 101 / lengths[0]
    matches = 101
    f = precision * recall / (0.9 * precision + 0.1 * recall)
    first = f * (1 - 0.5 * (1 / matches) ** 3)
    metric = text_metrics.METEOR
    assert _value(run, "lvis_vqa_single_meteor", metric) == pytest.approx(first / 2)
    assert _value(run, "sharegpt4v_vqa_meteor", metric) == pytest.approx(_same_words(300))
    assert _value(run, "lvis_vqa_multi_meteor", metric) == pytest.approx(
        (_same_words(38) + _same_words(38) * 4 / 8) / 2
    )


def run_ids(run):
    return [sample["doc"]["id"] for sample in run[1]["samples"]["lvis_vqa_single_meteor"]]


def test_conversations_carry_the_rounds_before(run):
    model, _ = run
    last = json.loads(model.prompts["lvis_vqa_multi_ppl"][0])
    number = run[1]["samples"]["lvis_vqa_multi_ppl"][0]["doc"]["id"][1:]
    answer = ("word " * 38).strip()
    assert [turn["from"] for turn in last] == ["human", "gpt"] * 7 + ["human"]
    assert [turn["value"] for turn in last[:3]] == [
        f"Question {number}.0?",
        answer,
        f"Question {number}.1?",
    ]
    assert last[-1]["value"] == f"Question {number}.7?"
    assert model.continuations["lvis_vqa_multi_ppl"][0] == answer
    # When answers are generated, the model's own earlier answers are in the prompt.
    second = json.loads(model.prompts["lvis_vqa_multi_meteor"][1])
    assert [turn["value"] for turn in second[9::2]] == [""] * 3


def test_chat_messages_hold_the_same_turns():
    doc = {"image": picture("chat"), "question": ["Q0", "Q1"], "answer": ["A0", "A1"]}
    first = lmms_tasks.doc_to_messages(doc)
    assert [part["type"] for part in first[0]["content"]] == ["image", "text"]
    messages, over, said, _ = lmms_tasks.doc_to_messages(doc, ["mine"], 1)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [message["content"][-1]["text"] for message in messages] == ["Q0", "mine", "Q1"]
    assert (over, said) == (False, ["mine"])
    assert lmms_tasks.doc_to_messages(doc, ["mine", "too"], 2) == (
        None,
        True,
        ["mine", "too"],
        None,
    )


def test_meteor_stems_but_knows_no_synonyms():
    text = "A large dog runs. It's in the park."
    same = text_metrics.meteor(text, "a large dog running. it's in the parks.")[text_metrics.METEOR]
    assert same == pytest.approx(_same_words(11))
    other = text_metrics.meteor(text, "a big dog runs. it's in the park.")[text_metrics.METEOR]
    assert other < same
    assert text_metrics.words("A dog. The cat's here.") == [
        "A",
        "dog",
        ".",
        "The",
        "cat",
        "'s",
        "here",
        ".",
    ]


def test_a_model_without_token_counts_is_refused_by_name(folder, tmp_path):
    class Silent(ScriptedModel):
        def loglikelihood(self, requests):
            return [(-1.0, False) for _ in requests]

    with pytest.raises(UserError, match="sharegpt4v_vqa_ppl: the model reports no token count"):
        evaluate(Silent({}), [folder], ["sharegpt4v_vqa_ppl"], tmp_path)
