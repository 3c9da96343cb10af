"""Generation tasks for lmms-eval: perplexity from log-likelihoods, METEOR from answers.

A document has ``image``, ``question`` and ``answer``, the last two a text each or, for a
conversation, a list with one text per round.
"""

from __future__ import annotations

import ast
import functools
import json
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask

from dynllava.errors import UserError

from .text_metrics import mean_meteor, perplexity

Doc = dict[str, Any]


def rounds(doc: Doc) -> tuple[list[str], list[str]]:
    """Return the questions and the reference answers of a document, one per round."""
    questions, answers = doc["question"], doc["answer"]
    if isinstance(questions, str):
        return [questions], [answers]
    return list(questions), list(answers)


def context(doc: Doc, answers: list[str]) -> str:
    """Return the prompt of round ``len(answers)``, with the rounds before it.

    Round 0 is the question itself; later rounds are the conversation as JSON, from which the
    model adapter makes turns in its own template.
    """
    turns = _turns(doc, answers)
    if len(turns) == 1:
        return turns[0]
    speakers = ("human", "gpt")
    return json.dumps([{"from": speakers[n % 2], "value": text} for n, text in enumerate(turns)])


def _turns(doc: Doc, answers: list[str]) -> list[str]:
    """Return question, answer, question ... up to the question of round ``len(answers)``."""
    questions, _ = rounds(doc)
    turns = [text for pair in zip(questions, answers, strict=False) for text in pair]
    return [*turns, questions[len(answers)]]


def doc_to_visual(doc: Doc) -> list[Any]:
    """Return the document's image."""
    return [doc["image"].convert("RGB")]


def doc_to_target(doc: Doc) -> str:
    """Return the reference answers as one text (for sample logs)."""
    return "\n".join(rounds(doc)[1])


def doc_to_text(
    doc: Doc,
    lmms_eval_specific_kwargs: Doc | None = None,
    previous_output: list[str] | None = None,
    round_idx: int | None = None,
    previous_round_info: Any = None,
) -> Any:
    """Return the prompt; from round 1 on, lmms-eval's tuple for a conversation.

    The tuple is (images, prompt, whether the conversation is over, answers so far, None).
    """
    if not round_idx:
        return context(doc, [])
    said = list(previous_output or [])
    if round_idx >= len(rounds(doc)[0]):
        return None, None, True, said, None
    return doc_to_visual(doc), context(doc, said), False, said, None


def doc_to_messages(
    doc: Doc,
    previous_output: list[str] | None = None,
    round_idx: int | None = None,
    previous_round_info: Any = None,
) -> Any:
    """Return the chat messages; from round 1 on, lmms-eval's tuple for a conversation.

    The tuple is (messages, whether the conversation is over, answers so far, None).
    """
    said = list(previous_output or []) if round_idx else []
    if round_idx and round_idx >= len(rounds(doc)[0]):
        return None, True, said, None
    roles = ("user", "assistant")
    messages = [
        {"role": roles[number % 2], "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(_turns(doc, said))
    ]
    image = {"type": "image", "url": doc_to_visual(doc)[0]}
    messages[0]["content"] = [image, *messages[0]["content"]]
    return (messages, False, said, None) if round_idx else messages


def meteor_results(doc: Doc, results: list[Any]) -> dict[str, float]:
    """Return METEOR of the answer, averaged over rounds."""
    answers = [results[0]] if isinstance(results[0], str) else list(results[0])
    return mean_meteor(rounds(doc)[1], answers)


def perplexity_results(doc: Doc, results: list[Any]) -> Doc:
    """Return the document's perplexity from (log-likelihood, tokens) of each round."""
    values = [perplexity(likelihood, tokens) for likelihood, tokens in results]
    total = [sum(likelihood for likelihood, _ in results), sum(tokens for _, tokens in results)]
    return {"ppl": sum(values) / len(values), "ppl_corpus": total}


class PerplexityTask(ConfigurableTask):
    """Perplexity of the reference answers under teacher forcing.

    Each round is one log-likelihood request whose context holds the rounds before it.  As in
    the paper's script a document's perplexity is the mean over its rounds of
    exp(mean negative log-likelihood per answer token), end-of-text token left out, and the
    task's is the mean over documents.  ``ppl_corpus`` is over all tokens instead.

    A class rather than a YAML of functions, because lmms-eval's chat models accept no
    log-likelihood tasks otherwise, and because the number of answer tokens, which only the
    model knows, does not reach ``process_results`` otherwise.
    """

    def __init__(self, config: dict[str, Any], model_name: str | None = None) -> None:
        settings = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config={**settings, "output_type": "loglikelihood"}, model_name=model_name)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> list[Instance]:
        """Return one request per round."""
        split = kwargs["metadata"]["split"]
        doc = self.dataset_no_image[split][doc_id]
        _, answers = rounds(doc)
        requests = []
        for number in range(len(answers)):
            # A function, not the text: texts are the choices of multiple-choice tasks.
            target = functools.partial(_answer, number)
            text = context(doc, answers[:number])
            arguments = (text, target, self.doc_to_visual, doc_id, self.config.task, split)
            requests.append(Instance("loglikelihood", arguments, number, **kwargs))
        return requests

    def apply_filters(self) -> Any:
        """Put the number of tokens beside each log-likelihood before results are processed."""
        for request in self._instances:
            counts = [item.output_tokens if item else None for item in request.token_counts]
            if not all(counts):
                raise UserError(
                    f"{self.config.task}: the model reports no token count for a log-likelihood "
                    "(TokenCounts.output_tokens), so there is no perplexity",
                    1,
                )
            request.resps = [
                (_log_likelihood(reply), tokens)
                for reply, tokens in zip(request.resps, counts, strict=True)
            ]
        return super().apply_filters()


def _answer(number: int, doc: Doc) -> str:
    return rounds(doc)[1][number]


def _log_likelihood(reply: Any) -> float:
    # lmms-eval turns a bare (log-likelihood, greedy) pair into its printed form.
    pair = ast.literal_eval(reply) if isinstance(reply, str) else reply
    return float(pair[0])
