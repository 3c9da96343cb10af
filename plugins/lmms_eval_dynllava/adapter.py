"""What the simple and the chat model share: requests in, answers and metrics out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from dynllava.errors import UserError
from dynllava.images import UNREADABLE, strict_decoding
from dynllava.output.files import reason
from dynllava.preflight import Wanted, check_model
from dynllava.prompts import Turn, choose_template, continuation_separator, render
from dynllava.prompts.templates import IMAGE
from dynllava.tasks.access import input_problem

from .arguments import ModelArguments, check_cache
from .batching import plan_batches, prefetched
from .efficiency import EfficiencyCounts, LogLikelihood, mean_costs
from .engine import Answer, Engine, Scored
from .prompts import (
    PADDING_FLAG,
    Prompt,
    Source,
    generation_arguments,
    opened_images,
    turns_from_context,
)


@dataclass
class Job:
    """One prompt to answer: built only when its batch is due, so images do not pile up.

    Attributes
    ----------
    source : Source
    turns : callable
        Returns the conversation.
    options : dict
        The task's generation arguments.
    length : int
        Characters of the question; orders the batches.
    """

    source: Source
    turns: Callable[[], list[Turn]]
    options: dict[str, Any]
    length: int


class DynamicLlava(lmms):
    """lmms-eval model over :func:`dynllava.models.loading.load_model`.

    Keyword arguments are those of :class:`~lmms_eval_dynllava.arguments.ModelArguments` and the
    parameters of the chosen method.
    """

    def __init__(self, **values: Any) -> None:
        arguments = ModelArguments.parse(values)
        check_cache(arguments.code_version)
        from dynllava.engine.compiled import refuse_compiling
        from dynllava.models.loading import default_dtype, load_model

        accelerator = Accelerator()
        device = _device(arguments, accelerator)
        dtype = arguments.dtype or default_dtype(device)
        if arguments.compile:
            refuse_compiling(arguments.attn_implementation)
        check_model(
            Wanted(
                arguments.pretrained,
                () if arguments.method is None else (arguments.method,),
                # Rows of the first batch may be halved, or are the user's to lower: not refused.
                "auto",
                device=None if arguments.device_map else str(device),
                dtype=dtype,
                attention=arguments.attn_implementation,
                vision_tower=arguments.vision_tower,
                conv_template=arguments.conv_template,
                image_aspect=arguments.image_aspect,
                image_backend=arguments.image_backend,
            )
        ).require()
        model, processor = load_model(
            arguments.pretrained,
            method=arguments.method,
            method_args=arguments.parameters,
            dtype=dtype,
            device=device,
            attn_implementation=arguments.attn_implementation,
            device_map=arguments.device_map,
            compile=arguments.compile,
            vision_tower=arguments.vision_tower,
            image_backend=arguments.image_backend,
        )
        if processor is None:
            raise UserError(f"{arguments.pretrained}: the checkpoint has no tokenizer", 1)
        self._set_up(model, processor, arguments, accelerator)

    @classmethod
    def from_model(cls, model: Any, processor: Any, **values: Any) -> DynamicLlava:
        """Return an adapter around a loaded model (sweeps load it once and switch methods).

        ``values`` are ``conv_template``, ``image_aspect``, ``batch_size``, ``max_batch_size``,
        ``max_new_tokens``, ``picture_cache``.
        """
        adapter = cls.__new__(cls)
        adapter._set_up(model, processor, ModelArguments.parse(values), Accelerator())
        return adapter

    def _set_up(
        self, model: Any, processor: Any, arguments: ModelArguments, accelerator: Accelerator
    ) -> None:
        super().__init__()
        self.arguments = arguments
        self.accelerator = accelerator
        self._rank = accelerator.process_index
        self._world_size = accelerator.num_processes
        # lmms-eval deletes a model's modules after each evaluation; inside the engine it lives on.
        self.engine = Engine(
            model,
            processor,
            torch.device(model.device),
            auto=arguments.batch_size == "auto",
            image_aspect=arguments.image_aspect,
            picture_cache=2**30 * arguments.picture_cache,
        )
        self.template = choose_template(arguments.conv_template, processor)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.engine.device

    @property
    def model(self) -> Any:
        """The model."""
        return self.engine.model

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.arguments.rows

    # ------------------------------------------------------------------ requests

    def jobs(self, requests: Sequence[Instance]) -> list[Job]:
        """Return the prompts of generation requests (the subclass knows their arguments)."""
        raise NotImplementedError

    def next_turns(
        self, request: Instance, round_index: int, outputs: list[str], info: Any
    ) -> tuple[list[Turn] | None, list[str], Any]:
        """Return the next round's conversation (None: finished), the answers, and task state."""
        raise NotImplementedError

    def document(self, source: Source) -> dict[str, Any]:
        """Return the data set's row."""
        return self.task_dict[source.task][source.split][source.doc_id]

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request; see :meth:`lmms_eval.api.model.lmms.generate_until`."""
        real = [request for request in requests if not _is_padding(request)]
        self._check_inputs(real)
        answers = iter(self._answer(self.jobs(real)))
        return [
            GenerationResult("") if _is_padding(request) else _result(next(answers))
            for request in requests
        ]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer conversations: every round of all requests together, in batches."""
        outputs: list[list[str]] = [[] for _ in requests]
        state: list[Any] = [None] * len(requests)
        active = [index for index, item in enumerate(requests) if not _is_padding(item)]
        self._check_inputs([requests[index] for index in active])
        jobs = self.jobs([requests[index] for index in active])
        round_index = 0
        while active:
            for index, answer in zip(active, self._answer(jobs), strict=True):
                outputs[index].append(answer.text)
            round_index += 1
            remaining, following = [], []
            for index, job in zip(active, jobs, strict=True):
                turns, outputs[index], state[index] = self.next_turns(
                    requests[index], round_index, outputs[index], state[index]
                )
                if turns is not None:
                    remaining.append(index)
                    following.append(_job_with(job, turns))
            active, jobs = remaining, following
        return outputs

    def loglikelihood(self, requests: list[Instance]) -> list[LogLikelihood]:
        """Score continuations.

        Returns
        -------
        list of LogLikelihood
            Pairs: sum of the log-probabilities (natural logarithm), and whether greedy decoding
            would give the continuation.  For multiple choice, lmms-eval takes the choice with the
            *smallest* value, so there it is the mean negative log-probability per token.
        """
        real = [request for request in requests if not _is_padding(request)]
        self._check_inputs(real)
        jobs, continuations, is_choice = [], [], []
        for request in real:
            context, target, doc_to_visual, doc_id, task, split = request.args
            source = Source(task, split, doc_id)
            jobs.append(self.question(source, context, doc_to_visual, {}))
            is_choice.append(isinstance(target, str))
            continuations.append(target if is_choice[-1] else target(self.document(source)))
        scores = zip(self._score(jobs, continuations), is_choice, strict=True)
        values = iter(
            [
                LogLikelihood(_choice_loss(s) if choice else s.logprob, s.greedy, s.tokens, s.costs)
                for s, choice in scores
            ]
        )
        nothing = LogLikelihood(0.0, False, 0)
        return [nothing if _is_padding(request) else next(values) for request in requests]

    def question(
        self, source: Source, context: str, doc_to_visual: Callable[[Any], Any], options: Any
    ) -> Job:
        """Return the prompt of a request that gives its text and its images separately."""

        def turns() -> list[Turn]:
            return turns_from_context(context, doc_to_visual(self.document(source)))

        return Job(source, turns, options, len(context))

    def _check_inputs(self, requests: Sequence[Instance]) -> None:
        """Refuse, before the first answer, a task whose questions are about video or sound.

        lmms-eval asks all tasks of a command together: found in the middle, such a question would
        lose the answers to every other task too.
        """
        for task, split in dict.fromkeys(tuple(request.args[-2:]) for request in requests):
            problem = input_problem(self.task_dict[task][split])
            if problem is not None:
                raise UserError(f"task {task}: {problem}; leave it out of --tasks", 1)

    # ------------------------------------------------------------------ batches

    def _answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Return the answers to ``jobs`` in their order, and log the throughput."""
        keys = [json.dumps(job.options, sort_keys=True, default=str) for job in jobs]
        batches = plan_batches(keys, [job.length for job in jobs], self.batch_size)
        answers: list[Answer | None] = [None] * len(jobs)
        self.engine.seconds = 0.0
        for batch, (prompts, encoded) in self._prepared(jobs, batches, "Answering"):
            arguments = generation_arguments(jobs[batch[0]].options, self.arguments.max_new_tokens)
            found = self.engine.generate(prompts, encoded, arguments)
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
        done = [answer for answer in answers if answer is not None]
        if done:
            self._log(done)
        return done

    def _score(self, jobs: Sequence[Job], continuations: Sequence[str]) -> list[Scored]:
        """Return the scores of each job's continuation, in their order."""
        lengths = [job.length + len(text) for job, text in zip(jobs, continuations, strict=True)]
        batches = plan_batches([None] * len(jobs), lengths, self.batch_size)
        scores: list[Scored | None] = [None] * len(jobs)
        separator = continuation_separator(self.template)
        for batch, (prompts, encoded) in self._prepared(jobs, batches, "Scoring"):
            texts = [continuations[index].lstrip() for index in batch]
            tokens = [
                self.engine.continuation_ids(prompt.text, separator + text)
                for prompt, text in zip(prompts, texts, strict=True)
            ]
            found = self.engine.score(prompts, encoded, tokens)
            for index, score in zip(batch, found, strict=True):
                scores[index] = score
        return [score for score in scores if score is not None]

    def _prepared(self, jobs: Sequence[Job], batches: list[list[int]], title: str) -> Any:
        """Yield (batch, (prompts, encoded)) under a progress bar."""

        def prepare(batch: list[int]) -> tuple[list[Prompt], dict[str, torch.Tensor]]:
            prompts = [self._prompt(jobs[index]) for index in batch]
            return prompts, self.engine.encode(prompts)

        with tqdm(total=len(jobs), desc=title, disable=self.rank != 0) as progress:
            for batch, prepared in prefetched(prepare, batches):
                yield batch, prepared
                progress.update(len(batch))

    def _prompt(self, job: Job) -> Prompt:
        try:
            # Data sets decode their pictures when the document is read.
            with strict_decoding():
                turns = job.turns()
                images = opened_images(turns)
            text = render(self.template, turns, self.engine.processor)
            asked = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
            return Prompt(job.source, text, images, asked.replace(IMAGE, "").strip())
        except UserError as error:
            raise UserError(f"{job.source}: {error}", 1) from error
        except UNREADABLE as error:
            raise UserError(f"{job.source}: not a readable image ({reason(error)})", 1) from error

    def _log(self, answers: Sequence[Answer]) -> None:
        """Hand throughput and mean efficiency numbers to lmms-eval's results."""
        tokens = sum(answer.output_tokens for answer in answers)
        seconds = self.engine.seconds
        means = mean_costs([answer.costs for answer in answers])
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / seconds if seconds else 0.0,
            additional_metrics={"total_requests": len(answers), **means},
        )


def _job_with(job: Job, turns: list[Turn]) -> Job:
    length = sum(len(turn.text) for turn in turns)
    return Job(job.source, lambda: turns, job.options, length)


def _is_padding(request: Instance) -> bool:
    """Return whether lmms-eval only added the request to give every process equally many."""
    return bool((request.metadata or {}).get(PADDING_FLAG))


def _choice_loss(score: Scored) -> float:
    return -score.logprob / max(score.tokens, 1)


def _result(answer: Answer) -> GenerationResult:
    counts = EfficiencyCounts(
        input_tokens=answer.input_tokens, output_tokens=answer.output_tokens, extra=answer.costs
    )
    return GenerationResult(answer.text, counts)


def _device(arguments: ModelArguments, accelerator: Accelerator) -> torch.device:
    """Return where this process computes."""
    if accelerator.num_processes > 1:
        if arguments.device_map:
            raise UserError("device_map spreads one process over devices: launch one process only")
        return accelerator.device
    wanted = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device={wanted}: accepted are cpu, cuda, cuda:0 ...") from None
