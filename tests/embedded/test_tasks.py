"""The embedded lmms-eval tasks: scoring by hand and through lmms-eval itself."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from dynllava.embedded import FAMILIES, ask, generate_scene, tasks_folder
from dynllava.embedded.questions import describe
from dynllava.embedded.scenes import seeded_random
from dynllava.embedded.tasks import task_sources


@pytest.fixture(scope="module")
def utils():
    spec = importlib.util.spec_from_file_location("embedded_utils", task_sources() / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small_splits(tmp_path_factory):
    """A folder of tasks over four questions a family."""
    from dynllava.embedded import data

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SPLITS, "test", 4)
        yield tasks_folder(tmp_path_factory.mktemp("embedded"))


@pytest.mark.parametrize(
    ("family", "answer", "said", "score"),
    [
        ("attribute", "red", "Red.", 1.0),
        ("attribute", "red", "blue", 0.0),
        ("attribute", "red", "red blue", 0.0),
        ("existence", "yes", "Yes", 1.0),
        ("existence", "yes", "no", 0.0),
        ("counting", "three", "3", 1.0),
        ("counting", "three", "three objects", 0.0),
        ("multiple_choice", "B", "B", 1.0),
        ("multiple_choice", "B", "(B) green", 1.0),
        ("multiple_choice", "B", "green", 1.0),
        ("multiple_choice", "B", "A", 0.0),
        ("multiple_choice", "B", "", 0.0),
        ("digit", "7", "7", 1.0),
        ("digit", "7", "77", 0.0),
    ],
)
def test_exact_match(utils, family, answer, said, score):
    doc = {"family": family, "answer": answer, "options": ["red", "green", "blue", "cyan"]}
    assert utils.exact_match(doc, [said]) == {"exact_match": score}


def test_caption_scores(utils):
    scene = generate_scene("caption", min_objects=3)
    answer, _ = describe(scene)
    doc = {"answer": answer, "scene": json.dumps(scene.to_dict())}
    spaced = answer.replace(",", " ,").replace(".", " .").replace(":", " :")
    assert utils.caption_scores(doc, [spaced]) == {"mention_f1": 1.0, "sentence_f1": 1.0}
    assert utils.caption_scores(doc, [""]) == {"mention_f1": 0.0, "sentence_f1": 0.0}
    other, _ = describe(generate_scene("another", min_objects=3))
    assert utils.caption_scores(doc, [other])["sentence_f1"] < 0.5


def test_tasks_run_in_lmms_eval(small_splits):
    """A model that knows the answers scores 1 on every task, one that errs scores 0."""
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    class Scripted(lmms):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def generate_until(self, requests):
            answers = []
            for request in requests:
                context, settings, to_visual, index, task, split = request.args
                doc = self.task_dict[task][split][index]
                assert context == doc["question"]
                assert settings["max_new_tokens"] >= 8
                assert to_visual(doc)[0].size == (96, 96)
                answers.append(doc["answer"] if self.right else "nothing of the kind")
            return answers

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    manager = TaskManager(include_path=[str(small_splits)], include_defaults=False)
    for right in (True, False):
        results = simple_evaluate(
            model=Scripted(right),
            tasks=["embedded"],
            task_manager=manager,
            batch_size=1,
            bootstrap_iters=0,
        )
        for family in FAMILIES:
            scores = results["results"][f"embedded_{family}"]
            metrics = ("mention_f1", "sentence_f1") if family == "caption" else ("exact_match",)
            for metric in metrics:
                assert scores[f"{metric},none"] == float(right), (family, metric)
        assert results["n-samples"]["embedded_relation"]["effective"] == 4


def test_chat_messages(utils):
    scene = generate_scene(1)
    question = ask(scene, "existence", seeded_random("chat"))
    doc = {"image": scene.image, "question": question.text}
    (message,) = utils.doc_to_messages(doc)
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"] == question.text


OFFLINE = """
import socket, sys

touched = []

def blocked(*arguments, **options):
    touched.append(str(arguments))
    raise OSError("no network")

socket.socket.connect = socket.socket.connect_ex = blocked
socket.getaddrinfo = socket.gethostbyname = blocked

from pathlib import Path
from dynllava.tasks.loading import LoadedTask, load_tasks

names = ["embedded_attribute", "embedded_caption", "embedded_caption_ppl"]
for task in load_tasks(names, Path(sys.argv[1])):
    assert isinstance(task, LoadedTask), task
    assert task.samples(None) > 0
    doc = task.task.eval_docs_no_media[0]
    assert task.task.doc_to_text(doc), task.name
    assert task.image_ids(1)[0].startswith("image:")
    print(task.name, task.metric)
assert not touched, touched
"""


def test_embedded_tasks_touch_no_network_even_where_the_hub_is_allowed(tmp_path):
    pytest.importorskip("lmms_eval")
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The overlay scores the same captions by perplexity.
    assert done.stdout.splitlines()[-1] == "embedded_caption_ppl ppl"
