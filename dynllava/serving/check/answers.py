"""The same prompts through our layer loop and through the engine: answers and prompt tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynllava.costs.realised import adapts
from dynllava.engine.report import CallReport
from dynllava.errors import UserError
from dynllava.images import open_image
from dynllava.methods import create
from dynllava.models.encoding import LlavaEncoder
from dynllava.models.loading import load_model
from dynllava.plan import PromptShape
from dynllava.plan.names import FULL
from dynllava.prompts.templates import Turn, choose_template, render

from ..app import CHAT
from ..selection import compacted
from .prompts import Prompt
from .server import Server, at_most

MOST_DIFFERING = 0.01
"""Share of prompts, over all methods together, whose answers may differ."""
MARGIN = 1e-3
"""Logits between first and second choice below which a difference is one of rounding."""


@dataclass(frozen=True)
class Answer:
    """One prompt's answers.

    Attributes
    ----------
    prompt : str
    ours, served : list of int
        Tokens, the end token included.
    tokens, engine_tokens, declared : int
        Prompt tokens that entered layer 0 of our loop, that the engine counted, and that the plan
        declares.
    image_tokens : int
        Of ``tokens``.
    margin : float or None
        Our logits' distance between first and second choice where the answers part.
    """

    prompt: str
    ours: list[int]
    served: list[int]
    tokens: int
    engine_tokens: int
    declared: int
    image_tokens: int
    margin: float | None

    @property
    def agrees(self) -> bool:
        """Whether both answers are the same tokens."""
        return self.ours == self.served


@dataclass(frozen=True)
class Agreement:
    """All answers of one method.

    Attributes
    ----------
    method : str
    answers : list of Answer
    exact : bool
        Whether the plan's count is exact (it does not depend on the data).
    """

    method: str
    answers: list[Answer]
    exact: bool

    @property
    def differing(self) -> list[Answer]:
        """Answers that are not the same."""
        return [item for item in self.answers if not item.agrees]

    @property
    def miscounted(self) -> list[Answer]:
        """Prompts that the engine counts otherwise than our loop, or the loop than the plan."""
        return [
            item
            for item in self.answers
            if item.tokens != item.engine_tokens or (self.exact and item.tokens != item.declared)
        ]


def complaints(found: Sequence[Agreement]) -> list[str]:
    """Return what speaks against the engine, one line each."""
    lines = []
    answers = sum(len(item.answers) for item in found)
    differing = [(item.method, answer) for item in found for answer in item.differing]
    if len(differing) > MOST_DIFFERING * answers:
        lines.append(
            f"{len(differing)} of {answers} answers differ: at most {MOST_DIFFERING:.0%} may"
        )
    for method, answer in differing:
        if answer.margin is None or answer.margin >= MARGIN:
            size = "no" if answer.margin is None else f"a margin of {answer.margin:.3g}"
            lines.append(f"{method}, {answer.prompt}: answers part at {size} (limit {MARGIN:g})")
    for item in found:
        for answer in item.miscounted[:3]:
            lines.append(
                f"{item.method}, {answer.prompt}: {answer.engine_tokens} prompt tokens in the "
                f"engine, {answer.tokens} in our loop, {answer.declared} declared"
            )
    return lines


class Loop:
    """Our layer loop on an exported folder.

    Parameters
    ----------
    folder : Path
    dtype : str
    device : str
    """

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        self.model, self.processor = load_model(folder, FULL, dtype=dtype, device=device)
        self.template = choose_template(None, self.processor)
        self.encoder = LlavaEncoder(self.processor, "pad")
        self.layers = self.model.config.text_config.num_hidden_layers
        self.image_tokens = self.model.config.image_seq_length

    @torch.inference_mode()
    def answer(self, method: str, prompt: Prompt, tokens: int) -> tuple[list[int], Any, CallReport]:
        """Return the greedy answer, its logits [steps, V], and what the prompt's call did."""
        self.model.set_method(compacted(create(method)))
        image = open_image(prompt.picture)
        text = render(self.template, [Turn("user", prompt.question, [image])], self.processor)
        inputs = self.encoder.encode([text], [[image]], [prompt.name])
        inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
        out: Any = self.model.generate(
            **inputs, questions=[prompt.question], max_new_tokens=tokens, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        report = self.model.last_report
        if report is None:
            raise UserError("our loop left no report", 1)
        logits = torch.cat(out.logits).float()
        return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), logits, report

    def declared(self, method: str, text_tokens: int) -> int:
        """Return the prompt tokens that the plan declares."""
        shape = PromptShape(1, self.image_tokens, text_tokens - 1)
        return create(method).schedule(shape, self.layers).prefill_rows[0]


async def served(
    server: Server, method: str, prompts: Sequence[Prompt], tokens: int, concurrency: int
) -> list[tuple[list[int], int]]:
    """Return the engine's tokens and prompt tokens for each prompt."""
    async with server.client() as client:

        async def one(prompt: Prompt) -> tuple[list[int], int]:
            body = prompt.body(method, tokens, return_token_ids=True)
            reply = await client.post(CHAT, json=body)
            if reply.status_code != 200:
                raise UserError(f"{method}, {prompt.name}: {reply.status_code} {reply.text}", 1)
            value = reply.json()
            return value["choices"][0]["token_ids"], value["usage"]["prompt_tokens"]

        jobs = [lambda prompt=prompt: one(prompt) for prompt in prompts]
        return await at_most(concurrency, jobs)


def compare(
    loop: Loop,
    method: str,
    prompts: Sequence[Prompt],
    engine: Sequence[tuple[list[int], int]],
    tokens: int,
    step: Callable[[], object] = lambda: None,
) -> Agreement:
    """Return how the engine's answers stand beside our loop's.

    Parameters
    ----------
    loop : Loop
    method : str
    prompts : sequence of Prompt
    engine : sequence of (list of int, int)
        What :func:`served` gave.
    tokens : int
        Most tokens of an answer.
    step : callable
        Called after each prompt.
    """
    answers = []
    for prompt, (other, counted) in zip(prompts, engine, strict=True):
        own, logits, report = loop.answer(method, prompt, tokens)
        entered = report.layer_tokens[0][0]
        image = report.image_tokens[0]
        margin = None
        if own != other:
            at = next(
                (i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b),
                min(len(own), len(other)),
            )
            if at < len(logits):
                best = logits[at].topk(2).values
                margin = float(best[0] - best[1])
        text = entered - image
        answers.append(
            Answer(
                prompt.name, own, other, entered, counted, loop.declared(method, text), image,
                margin,
            )
        )  # fmt: skip
        step()
    return Agreement(method, answers, not adapts(create(method), loop.layers))
