"""The plugin through lmms-eval itself, on a real model with random weights and embedded tasks."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest

from dynllava.embedded import tasks_folder
from dynllava.errors import UserError

TASKS = ["embedded_attribute", "embedded_caption"]
LIMIT = 4


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return a folder with an untrained model of the embedded model's shape."""
    from dynllava.embedded.model import build_model, build_processor
    from dynllava.models.loading import load_model

    folder = tmp_path_factory.mktemp("random-llava")
    plain = tmp_path_factory.mktemp("plain-llava")
    build_model(seed=3).save_pretrained(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model, _ = load_model(plain, "dynamic_llava", untrained=True)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dense(checkpoint):
    """Return the answers of one process on one device."""
    return evaluate(checkpoint, 4, method="full")[0]


def evaluate(checkpoint, batch_size, force_simple=False, **arguments):
    """Return (task, document) -> (answer, token counts), and the throughput."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    values = {"pretrained": checkpoint, "max_new_tokens": 20, **arguments}
    results = simple_evaluate(
        model="dynamic_llava",
        model_args=",".join(f"{key}={value}" for key, value in values.items()),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False),
        batch_size=batch_size,
        device="cpu",
        limit=LIMIT,
        bootstrap_iters=0,
        force_simple=force_simple,
        process_docs_parallel=1,
    )
    answers = {
        (task, sample["doc_id"]): (sample["filtered_resps"], sample["token_counts"])
        for task in TASKS
        for sample in results["samples"][task]
    }
    return answers, results["throughput"]


@pytest.mark.parametrize(
    "method",
    [
        {"method": "full"},
        {"method": "dynamic_llava", "vision_keep_rate": 0.2, "output_keep_rate": 0.5},
        {"method": "random", "image_keep_rate": 0.2, "output_keep_rate": 0.5},
    ],
    ids=lambda method: method["method"],
)
def test_batched_answers_and_costs_equal_one_by_one(checkpoint, method):
    single, _ = evaluate(checkpoint, 1, **method)
    batched, throughput = evaluate(checkpoint, 16, **method)
    assert len(single) == len(TASKS) * LIMIT
    assert batched == single
    kept = 144 if method["method"] == "full" else 28
    assert throughput["avg_image_tokens_kept"] == kept
    assert all(counts[0]["image_tokens_kept"] == kept for _, counts in single.values())


def test_chat_and_simple_requests_give_the_same_answers(checkpoint, dense):
    assert evaluate(checkpoint, 8, method="full", force_simple=True)[0] == dense


def test_two_processes_give_the_answers_of_one(checkpoint, dense, tmp_path):
    # The module behind ``accelerate launch``.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "lmms_eval", "--model", "dynamic_llava", "--device", "cpu"]
    command += ["--model_args", f"pretrained={checkpoint},max_new_tokens=20,method=full"]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(tasks_folder())]
    command += ["--batch_size", "4", "--limit", str(LIMIT), "--log_samples"]
    command += ["--output_path", str(tmp_path), "--process_docs_parallel", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = {}
    for task in TASKS:
        # lmms-eval exits 0 whatever happened: the file is the proof.
        for file in tmp_path.rglob(f"*_samples_{task}.jsonl"):
            for line in file.read_text().splitlines():
                sample = json.loads(line)
                found[task, sample["doc_id"]] = (sample["filtered_resps"], sample["token_counts"])
    expected = {key: (answer[0], counts) for key, (answer, counts) in dense.items()}
    assert found == expected, done.stderr[-2000:]


def test_device_map_auto_answers_like_one_device(checkpoint, dense):
    assert evaluate(checkpoint, 4, method="full", device_map="auto")[0] == dense


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dynamic_llava", "vision_keep_rate": 2}, "vision_keep_rate=2"),
        ({"method": "dynamic_llava", "vision_keep_rate": 0}, "vision_keep_rate=0"),
        ({"method": "dynamic_llava", "vision_keep_rate": float("nan")}, "vision_keep_rate=nan"),
        ({"method": "dynamic_llava", "sparse_layer": 6}, "sparse_layer=6"),
        ({"method": "full", "device": "toaster"}, "device=toaster"),
        ({"method": "full", "attn_implementation": "fast"}, "attn_implementation='fast'"),
        (
            {"method": "full", "compile": True, "attn_implementation": "flash_attention_2"},
            "compile=True with flash_attention_2: accepted are sdpa and eager",
        ),
        ({"method": "full", "compile": True, "device_map": "auto"}, "accepted is one device"),
        ({"method": "full", "pretrained": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_what_does_not_fit_the_model_is_one_clear_line(checkpoint, arguments, message):
    from lmms_eval_dynllava.models import DynamicLlavaSimple

    with pytest.raises(UserError, match=message) as error:
        DynamicLlavaSimple(**{"pretrained": str(checkpoint), "device": "cpu", **arguments})
    assert "\n" not in str(error.value)


def test_greedy_answers_are_greedy_under_loglikelihood(checkpoint):
    """What ``generate`` answers without sampling, ``loglikelihood`` calls greedy."""
    from lmms_eval.api.instance import Instance
    from lmms_eval_dynllava.models import DynamicLlavaSimple

    from dynllava.embedded import load_split

    adapter = DynamicLlavaSimple(pretrained=str(checkpoint), device="cpu", batch_size=3)
    documents = load_split("test", "attribute")[:3]
    adapter.task_dict = {"t": {"test": documents}}

    def requests(kind, second):
        metadata = {"task": "t", "repeats": 1}
        return [
            Instance(
                request_type=kind,
                arguments=(doc["question"], second(i), lambda d: [d["image"]], i, "t", "test"),
                idx=0,
                metadata={**metadata, "doc_id": i},
            )
            for i, doc in enumerate(documents)
        ]

    answers = adapter.generate_until(requests("generate_until", lambda i: {"max_new_tokens": 6}))
    texts = [answer.text for answer in answers]
    assert all(texts)
    scores = adapter.loglikelihood(requests("loglikelihood", lambda i: lambda doc: texts[i]))
    other = adapter.loglikelihood(requests("loglikelihood", lambda i: lambda doc: "Z red Z"))
    assert all(greedy for _, greedy in scores)
    assert not any(greedy for _, greedy in other)
