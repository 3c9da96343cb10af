"""Generation throughput on embedded scenes, without lmms-eval."""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from dynllava.methods.presets import MEASURED
from dynllava.prompts import PLAIN_QUESTION
from dynllava.records import MethodInfo, ModelInfo, RunRecord, TaskInfo

from ..bench_report import measured_rounds
from ..speed import process_name
from ..stats import paired_ratios
from .session import Session
from .steps import Step

BATCHES = (1, 16)
NEW_TOKENS = 8


def generation_records(session: Session, step: Step) -> list[RunRecord]:
    """Return one record a method and batch size: samples/s, all of them in turns."""
    from dynllava.embedded import dynamic_path
    from dynllava.models.loading import load_model

    model, processor = load_model(str(dynamic_path()), device=session.device)
    processor.tokenizer.padding_side = "left"
    samples = questions(session.shape.samples)
    runs = [(name, batch) for name in MEASURED for batch in BATCHES]
    seconds: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
    generator = random.Random(step.number)
    for number in range(1 + session.shape.rounds["generation"]):
        for run in generator.sample(runs, len(runs)):
            session.check()
            model.set_method(run[0])
            took = _answer(model, processor, samples, run[1], session.cuda)
            if number:
                seconds[run].append(took)
    records = []
    for (name, batch), found in seconds.items():
        process = [process_name()] * len(found)
        rates = [len(samples) / value for value in found]
        gains = paired_ratios(seconds[name, BATCHES[0]], found)
        records.append(
            RunRecord(
                kind="bench",
                model=ModelInfo("embedded", None, *_sizes(model)),
                method=MethodInfo(name),
                task=TaskInfo(f"generation-b{batch}", suite="speed", samples=len(samples)),
                measured={
                    "samples_per_second": measured_rounds(rates, process, "sample/s", True),
                    "speedup_over_first_batch": measured_rounds(gains, process, "1", True),
                },
                environment=session.environment(),
            )
        )
    return records


def questions(count: int) -> list[tuple[Any, str]]:
    """Return ``count`` pictures of generated scenes with a question each."""
    from dynllava.embedded.data import split_questions

    # Drawn anew, without the data files that lmms-eval reads.
    asked = split_questions("test", "attribute", count)
    return [(scene.image, question.text) for scene, question in asked]


@torch.inference_mode()
def _answer(model: Any, processor: Any, samples: list[Any], batch: int, cuda: bool) -> float:
    """Return the seconds that generating the answers takes, processing the pictures included."""
    start = time.perf_counter()
    for first in range(0, len(samples), batch):
        images, texts = zip(*samples[first : first + batch], strict=True)
        inputs = processor(
            images=list(images), text=[PLAIN_QUESTION.format(text) for text in texts],
            return_tensors="pt", padding=True,
        ).to(model.device)  # fmt: skip
        model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _sizes(model: Any) -> tuple[int, int, None]:
    text = model.config.text_config
    return text.num_hidden_layers, text.hidden_size, None
