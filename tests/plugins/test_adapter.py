"""Invariants of the lmms-eval adapter, on a scripted model whose answers are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lmms_eval.api.instance import Instance, unwrap_generation_output
from lmms_eval.models.model_utils import gen_metrics
from lmms_eval_dynllava.models import DynamicLlavaChat, DynamicLlavaSimple

from dynllava.errors import UserError


def answer(text, pixel):
    """Name the question's last word and the image's colour: any mix-up of rows shows."""
    word = text.rsplit("ASSISTANT", 1)[0].split()[-1]
    return f" {word}-{'none' if pixel is None else int(pixel[0])}"


def instance(kind, arguments, index=0, **metadata):
    task = arguments[-2]
    data = {"task": task, "doc_id": arguments[-3], "repeats": 1, **metadata}
    return Instance(request_type=kind, arguments=arguments, idx=index, metadata=data)


@pytest.fixture
def documents(picture):
    """Sixteen documents of different lengths; every third one has no image."""
    rows = []
    for index in range(16):
        image = None if index % 3 == 2 else picture(index)
        rows.append({"question": "x" * ((index * 7) % 11) + f" q{index}", "image": image})
    return rows


def visuals(doc):
    return [] if doc["image"] is None else [doc["image"]]


def messages(doc):
    content = [{"type": "image", "url": image} for image in visuals(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def make(cls, model, processor, documents, **values):
    adapter = cls.from_model(model, processor, **values)
    adapter.task_dict = {"t": {"test": documents}}
    return adapter


def requests_for(cls, documents, kwargs=lambda index: {"max_new_tokens": 30}):
    found = []
    for index, doc in enumerate(documents):
        middle = (kwargs(index), visuals) if cls.is_simple else (messages, kwargs(index))
        found.append(instance("generate_until", (doc["question"], *middle, index, "t", "test")))
    return found


def expected(documents):
    return [f"q{i}-{'none' if d['image'] is None else i}" for i, d in enumerate(documents)]


@pytest.mark.parametrize("cls", [DynamicLlavaSimple, DynamicLlavaChat])
@pytest.mark.parametrize("batch_size", [1, 4, 16, "auto"])
def test_answers_come_back_in_the_order_of_the_requests(
    cls, batch_size, scripted, processor, documents
):
    model = scripted(answer)
    adapter = make(cls, model, processor, documents, batch_size=batch_size)
    results = adapter.generate_until(requests_for(cls, documents))
    assert [result.text for result in results] == expected(documents)
    rows = 32 if batch_size == "auto" else batch_size
    assert max(len(prompts) for prompts, _, _ in model.calls) == min(rows, 16)


def test_only_equal_generation_arguments_share_a_batch(scripted, processor, documents):
    model = scripted(answer)
    adapter = make(DynamicLlavaSimple, model, processor, documents, batch_size=16)

    def kwargs(index):
        return {"max_new_tokens": 20 + index % 2, "until": ["\n"], "temperature": 0, "top_p": 1.0}

    results = adapter.generate_until(requests_for(DynamicLlavaSimple, documents, kwargs))
    assert [result.text for result in results] == expected(documents)
    assert sorted(options["max_new_tokens"] for _, _, options in model.calls) == [20, 21]
    assert all(options["do_sample"] is False for _, _, options in model.calls)
    assert all("top_p" not in options for _, _, options in model.calls)


def test_a_row_reports_the_same_cost_whatever_its_batch(scripted, processor, documents):
    def uneven(text, pixel):
        return answer(text, pixel) * (1 + len(text) % 4)

    counts = []
    for batch_size in (1, 16):
        adapter = make(
            DynamicLlavaSimple, scripted(uneven), processor, documents, batch_size=batch_size
        )
        results = adapter.generate_until(requests_for(DynamicLlavaSimple, documents))
        counts.append([result.token_counts.to_dict() for result in results])
    assert counts[0] == counts[1]
    first = counts[0][0]
    prompt, fed = first["input_tokens"], first["output_tokens"] - 1
    assert first["output_tokens_fed"] == fed
    assert first["output_tokens_kept"] == math.ceil(fed / 2)
    assert first["image_tokens_kept"] == 2
    assert first["kv_entries"] == (prompt + fed) + (prompt - 2 + math.ceil(fed / 2))
    assert first["kv_bytes"] == 8 * first["kv_entries"]


def test_throughput_and_mean_costs_reach_the_results(scripted, processor, documents):
    gen_metrics.reset_logged_metrics()
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, documents, batch_size=4)
    results = adapter.generate_until(requests_for(DynamicLlavaSimple, documents))
    summary = gen_metrics.summarize_logged_metrics()
    tokens = sum(result.token_counts.output_tokens for result in results)
    assert summary["total_gen_tokens"] == tokens
    assert summary["total_elapsed_time"] > 0
    assert summary["avg_image_tokens_kept"] == pytest.approx(2 * 11 / 16)
    assert {"avg_kv_bytes", "avg_output_tokens_kept", "avg_latency"} <= summary.keys()


def test_sample_identity_depends_on_the_document_not_on_the_batch(scripted, processor, documents):
    seen = []
    for batch_size in (1, 5):
        model = scripted(answer)
        adapter = make(DynamicLlavaSimple, model, processor, documents, batch_size=batch_size)
        adapter.generate_until(requests_for(DynamicLlavaSimple, documents))
        seen.append(
            {p[0]: i for prompts, ids, _ in model.calls for p, i in zip(prompts, ids, strict=True)}
        )
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == 16


def test_stop_strings_cut_the_answer_and_max_new_tokens_has_a_default(
    scripted, processor, documents
):
    model = scripted(lambda text, pixel: " yes\n\nand more")
    adapter = make(DynamicLlavaSimple, model, processor, documents[:1], max_new_tokens=77)
    requests = requests_for(DynamicLlavaSimple, documents[:1], lambda _: {"until": ["\n\n"]})
    assert adapter.generate_until(requests)[0].text == "yes"
    assert model.calls[0][2]["max_new_tokens"] == 77


def test_padding_requests_of_a_parallel_launch_cost_nothing(scripted, processor, documents):
    model = scripted(answer)
    adapter = make(DynamicLlavaSimple, model, processor, documents, batch_size=4)
    requests = requests_for(DynamicLlavaSimple, documents[:2])
    padding = requests_for(DynamicLlavaSimple, documents[:1])[0]
    padding.metadata["__padding_only__"] = True
    texts = [result.text for result in adapter.generate_until([*requests, padding])]
    assert texts == [*expected(documents[:2]), ""]
    assert sum(len(prompts) for prompts, _, _ in model.calls) == 2


def test_auto_batch_size_halves_when_memory_runs_out_and_keeps_the_order(
    scripted, processor, documents
):
    model = scripted(answer, memory=3)
    adapter = make(DynamicLlavaSimple, model, processor, documents, batch_size="auto")
    results = adapter.generate_until(requests_for(DynamicLlavaSimple, documents))
    assert [result.text for result in results] == expected(documents)
    fixed = make(DynamicLlavaSimple, scripted(answer, memory=3), processor, documents, batch_size=4)
    with pytest.raises(UserError, match="out of memory with 4 prompts"):
        fixed.generate_until(requests_for(DynamicLlavaSimple, documents))


def test_loglikelihood_is_the_sum_of_log_probabilities_and_knows_greediness(
    scripted, processor, documents
):
    def requests(target):
        return [
            instance("loglikelihood", (doc["question"], target, visuals, index, "t", "test"))
            for index, doc in enumerate(documents)
        ]

    def right(doc):
        return expected(documents)[documents.index(doc)]

    values = []
    for batch_size in (1, 16):
        adapter = make(
            DynamicLlavaSimple, scripted(answer), processor, documents, batch_size=batch_size
        )
        values.append(adapter.loglikelihood(requests(right)))
        wrong = adapter.loglikelihood(requests(lambda doc: "wrong"))
        assert not any(greedy for _, greedy in wrong)
        assert all(low[0] < high[0] for low, high in zip(wrong, values[-1], strict=True))
    per_token = torch.log_softmax(torch.tensor([7.0] + [0.0] * 137), 0)[0].item()
    for index, (logprob, greedy) in enumerate(values[0]):
        tokens = len(" " + expected(documents)[index])
        assert logprob == pytest.approx(tokens * per_token, rel=1e-5)
        assert greedy
    assert [value for value, _ in values[0]] == pytest.approx([value for value, _ in values[1]])


def test_multiple_choice_is_a_loss_because_lmms_eval_takes_the_smallest(
    scripted, processor, documents
):
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, documents, batch_size=4)
    choices = [" wrong", " q0-0", " other"]
    requests = [
        instance("loglikelihood", ("q0", choice, visuals, 0, "t", "test"), index)
        for index, choice in enumerate(choices)
    ]
    losses = [value for value, _ in adapter.loglikelihood(requests)]
    assert min(losses) == losses[1] > 0


def rounds(doc, previous_output=None, round_idx=None, previous_round_info=None, **_):
    """Ask document d for d + 1 rounds; each question quotes the answer before."""
    if round_idx > int(doc["question"].split("q")[-1]):
        return None, None, True, previous_output, None
    info = (previous_round_info or 0) + 1
    question = f"{previous_output[-1]}/r{round_idx}i{info}"
    return visuals(doc), question, False, previous_output, info


def round_messages(doc, round_idx=None, **state):
    if round_idx is None:
        return messages(doc)
    _, text, finished, outputs, info = rounds(doc, round_idx=round_idx, **state)
    turns = None if finished else messages({"question": text, "image": doc["image"]})
    return turns, finished, outputs, info


@pytest.mark.parametrize("cls", [DynamicLlavaSimple, DynamicLlavaChat])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_rounds_of_many_conversations_are_batched_and_stay_apart(
    cls, batch_size, scripted, processor, picture
):
    documents = [{"question": f"q{index}", "image": picture(index)} for index in range(4)]
    model = scripted(answer)
    adapter = make(cls, model, processor, documents, batch_size=batch_size)
    requests = []
    for index, doc in enumerate(documents):
        kwargs = {"max_new_tokens": 60}
        middle = (kwargs, visuals, rounds) if cls.is_simple else (round_messages, kwargs)
        requests.append(
            instance("generate_until_multi_round", (doc["question"], *middle, index, "t", "test"))
        )
    outputs = adapter.generate_until_multi_round(requests)
    assert [len(row) for row in outputs] == [1, 2, 3, 4]
    assert outputs[2] == ["q2-2", "q2-2/r1i1-2", "q2-2/r1i1-2/r2i2-2"]
    assert max(len(prompts) for prompts, _, _ in model.calls) == batch_size


def test_a_conversation_in_json_becomes_turns(scripted, processor, picture):
    model = scripted(answer)
    adapter = make(DynamicLlavaSimple, model, processor, [{"image": picture(5)}])
    history = [
        {"from": "human", "value": "first"},
        {"from": "gpt", "value": "reply"},
        {"from": "human", "value": "second"},
    ]
    arguments = (json.dumps(history), {}, visuals, 0, "t", "test")
    assert adapter.generate_until([instance("generate_until", arguments)])[0].text == "second-5"
    text = model.calls[0][0][0][0]
    assert text.endswith("USER: \nfirst ASSISTANT: reply</s>USER: second ASSISTANT:")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([b""], "not a readable image"),
        ([b"no image at all"], "not a readable image"),
        (["missing.png"], "not a readable image"),
        ([42], "int is no image"),
    ],
)
def test_bad_images_are_one_clear_line_that_names_the_document(image, message, scripted, processor):
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, [{}])
    request = instance("generate_until", ("q", {}, lambda doc: image, 0, "t", "test"))
    with pytest.raises(UserError, match=f"task t, document 0: .*{message}") as error:
        adapter.generate_until([request])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "I;16", "1", "LA"])
def test_every_image_mode_is_read(mode, scripted, processor, picture):
    image = picture(9).convert("L").convert(mode) if mode == "I;16" else picture(9).convert(mode)
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, [{}])
    request = instance("generate_until", ("q", {}, lambda doc: [image], 0, "t", "test"))
    assert adapter.generate_until([request])[0].text.startswith("q-")


def test_more_placeholders_than_images_is_one_clear_line(scripted, processor, picture):
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, [{}])
    prompt = "<image> and <image> q"
    request = instance("generate_until", (prompt, {}, lambda doc: [picture(1)], 0, "t", "test"))
    with pytest.raises(UserError, match=r"2 image placeholders .* for 1 images; leave them out"):
        adapter.generate_until([request])
    own = instance("generate_until", ("a <image> q", {}, lambda doc: [picture(1)], 0, "t", "test"))
    assert adapter.generate_until([own])[0].text == "q-1"


def test_no_requests_give_no_answers(scripted, processor):
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, [])
    assert adapter.generate_until([]) == []
    assert adapter.loglikelihood([]) == []
    assert adapter.generate_until_multi_round([]) == []


@pytest.mark.parametrize("value", [0, -1, 2.5, "many", True])
def test_impossible_max_new_tokens_is_one_clear_line(value, scripted, processor, documents):
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, documents)
    requests = requests_for(DynamicLlavaSimple, documents[:1], lambda _: {"max_new_tokens": value})
    with pytest.raises(UserError, match=f"max_new_tokens={value!r}"):
        adapter.generate_until(requests)


def test_lmms_eval_hands_the_loglikelihood_pair_to_the_task_unharmed(
    scripted, processor, documents
):
    adapter = make(DynamicLlavaSimple, scripted(answer), processor, documents)
    arguments = ("q0", lambda doc: "q0-0", visuals, 0, "t", "test")
    (result,) = adapter.loglikelihood([instance("loglikelihood", arguments)])
    passed_on, counts = unwrap_generation_output(result)
    assert passed_on == tuple(result)
    assert passed_on[1] is True
    assert counts.output_tokens == len(" q0-0")


@pytest.mark.parametrize("cls", [DynamicLlavaSimple, DynamicLlavaChat])
def test_a_task_about_video_ends_before_the_first_answer(
    cls, scripted, processor, documents, picture
):
    """lmms-eval asks all tasks together: in the middle it would lose every other task's answers."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"video": datasets.Video(decode=False)})
    model = scripted(answer)
    adapter = make(cls, model, processor, documents)
    frames = datasets.Dataset.from_dict({"video": [None, None]}, features=features)
    adapter.task_dict["frames"] = {"test": frames}
    requests = requests_for(cls, documents)
    requests.append(instance("generate_until", (*requests[0].args[:-3], 0, "frames", "test")))
    with pytest.raises(UserError, match="task frames: its questions are about video: accepted are"):
        adapter.generate_until(requests)
    assert model.calls == []
