"""A scripted lmms-eval model, how to evaluate it, and a judge on loopback (OpenAI protocol)."""

from __future__ import annotations

import argparse
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval_dynllava.efficiency import EfficiencyCounts

from dynllava import methods
from dynllava.costs.spec import LLAVA_15_7B
from dynllava.records import Environment, ModelInfo


class ScriptedModel(lmms):
    """Answers document ``i`` of task ``t`` with ``answers[t][i]`` and remembers the prompts.

    A scripted answer to a log-likelihood request is ``(perplexity, tokens)``.
    """

    def __init__(self, answers: dict[str, list[Any]]) -> None:
        super().__init__()
        self.answers = answers
        self.prompts: dict[str, dict[int, str]] = {}
        self.continuations: dict[str, dict[int, str]] = {}
        self.images: dict[str, dict[int, int]] = {}
        self.device = torch.device("cpu")

    def clean(self) -> None:
        """There is nothing to free, and collecting garbage takes seconds."""

    def _see(self, context: str, visual: Any, doc_id: int, task: str, split: str) -> None:
        doc = self.task_dict[task][split][doc_id]
        self.prompts.setdefault(task, {})[doc_id] = context
        self.images.setdefault(task, {})[doc_id] = len(visual(doc))

    def generate_until(self, requests):
        replies = {}
        # Backwards, as a model that sorts by length would: the order must not matter.
        for place, request in reversed(list(enumerate(requests))):
            context, _, visual, doc_id, task, split = request.args
            self._see(context, visual, doc_id, task, split)
            text = self.answers[task][doc_id]
            costs = {"image_tokens_kept": 10 + doc_id, "output_tokens_fed": 4, "kv_bytes": 100}
            costs["output_tokens_kept"] = 2 - doc_id % 2
            counts = EfficiencyCounts(input_tokens=626, output_tokens=5, extra=costs)
            replies[place] = GenerationResult(text, counts)
        return [replies[place] for place in range(len(requests))]

    def loglikelihood(self, requests):
        replies = []
        for request in requests:
            context, target, visual, doc_id, task, split = request.args
            self._see(context, visual, doc_id, task, split)
            doc = self.task_dict[task][split][doc_id]
            text = target(doc) if callable(target) else target
            self.continuations.setdefault(task, {})[doc_id] = text
            perplexity, tokens = self.answers[task][doc_id]
            likelihood = -tokens * math.log(perplexity)
            counts = TokenCounts(output_tokens=tokens)
            replies.append(GenerationResult((likelihood, False), counts))
        return replies

    def generate_until_multi_round(self, requests):
        replies = []
        for request in requests:
            context, _, visual, next_turn, doc_id, task, split = request.args
            self._see(context, visual, doc_id, task, split)
            doc = self.task_dict[task][split][doc_id]
            said: list[str] = []
            done = False
            while not done:
                said.append(self.answers[task][doc_id][len(said)])
                _, context, done, said, _ = next_turn(
                    doc, previous_output=said, round_idx=len(said), previous_round_info=None
                )
                if not done:
                    self.prompts[task][doc_id] = context
            replies.append(list(said))
        return replies


class ScriptedRunner:
    """The model side of a sweep without a model: ``answers[method][task]``.

    ``asked`` lists (method, batch size) of every adapter that was handed out.
    """

    def __init__(self, answers: dict[str, dict[str, list[Any]]], checkpoint: str = "one") -> None:
        self.answers = answers
        self.info = ModelInfo("scripted", f"sha256:{checkpoint}", 32, 4096, 576)
        self.settings = {"dtype": "float32"}
        self.spec = LLAVA_15_7B
        self.method = None
        self.asked: list[tuple[str, Any]] = []

    def set_method(self, name, params):
        self.method = methods.create(name, **params)
        self.method.validate(32)
        return self.method

    def adapter(self, batch_size):
        self.asked.append((self.method.name, batch_size))
        return ScriptedModel(self.answers[self.method.name])

    def environment(self):
        return Environment(versions={"dynllava": "test"}, device="cpu", date="2026-01-01")


def evaluate(model, folders, tasks, output, **options):
    """Run lmms-eval in this process over the tasks found in ``folders`` only."""
    arguments = argparse.Namespace(output_path=str(output), process_with_media=False)
    return simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=TaskManager(
            include_path=[str(folder) for folder in folders], include_defaults=False
        ),
        cli_args=arguments,
        bootstrap_iters=0,
        **options,
    )


class _Judge(BaseHTTPRequestHandler):
    """Grades the last row of the prompt's table: 1 same text, 0.5 a common word, else 0."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1  # type: ignore[attr-defined]
        row = body["messages"][-1]["content"].strip().splitlines()[-1]
        _, truth, said = [cell.strip() for cell in row.strip().strip("|").split("|")]
        common = set(truth.split()) & set(said.split())
        grade = "1.0" if truth == said else "0.5" if common else "0.0"
        reply = {
            "id": "0",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": grade},
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Keep the test output clean."""


@contextmanager
def stub_judge() -> Iterator[ThreadingHTTPServer]:
    """Serve the judge; ``server.asked`` counts requests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    server.asked = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
