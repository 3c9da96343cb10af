"""Runs batches of prompts through the model: left padding, answers, log-probabilities, costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from loguru import logger
from transformers import StoppingCriteriaList

from dynllava.errors import UserError
from dynllava.models.encoding import encoder_of, image_tokens
from dynllava.models.finite_logits import FiniteLogits

from .efficiency import request_costs, scored_costs
from .pictures import PictureCache
from .prompts import GenerationArguments, Prompt
from .stopping import StopStrings


@dataclass
class Answer:
    """What came out of one prompt.

    Attributes
    ----------
    text : str
    input_tokens, output_tokens : int
        Prompt tokens (image tokens included), generated tokens (the end token included).
    costs : dict
        See :func:`~lmms_eval_dynllava.efficiency.request_costs`.
    """

    text: str
    input_tokens: int
    output_tokens: int
    costs: dict[str, float] = field(default_factory=dict)


@dataclass
class Scored:
    """A continuation's log-probability (natural logarithm), its tokens, greediness, and costs.

    For the costs see :func:`~lmms_eval_dynllava.efficiency.scored_costs`.
    """

    logprob: float
    tokens: int
    greedy: bool
    costs: dict[str, float] = field(default_factory=dict)


class Engine:
    """A model with its processor.

    Parameters
    ----------
    model : DynamicLlavaForConditionalGeneration, or a wrapped model of another family
    processor : ProcessorMixin
        The checkpoint's.
    device : torch.device
        Where inputs go.
    auto : bool
        Halve a batch that does not fit into memory instead of failing.
    image_aspect : str, optional
        See :func:`dynllava.models.encoding.resolve_aspect`.
    picture_cache : float
        Bytes for features of pictures (:class:`~lmms_eval_dynllava.pictures.PictureCache`).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: torch.device,
        auto: bool = False,
        image_aspect: str | None = None,
        picture_cache: float = 0,
    ) -> None:
        self.encoder = encoder_of(processor, image_aspect)
        self.model = model
        self.processor = processor
        self.device = device
        self.auto = auto
        self.pictures = PictureCache(picture_cache)
        self.seconds = 0.0
        self._limit: int | None = None
        self._warned = False

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end an answer."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = self.processor.tokenizer.eos_token_id if ids is None else ids
        return set(ids) if isinstance(ids, (list, tuple)) else {ids}

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Return left-padded inputs of a batch, on the host.

        Raises
        ------
        UserError
            If the processor refuses the batch.
        """
        return self.encoder.encode(
            [prompt.text for prompt in prompts],
            [prompt.images for prompt in prompts],
            [prompt.source for prompt in prompts],
        )

    @cached_property
    def tokenizer(self) -> Any:
        """Return this thread's tokenizer; the processor's own encodes in another one.

        A fast tokenizer cannot change its padding in one thread while another one uses it.
        """
        return copy.deepcopy(self.processor.tokenizer)

    def generate(
        self,
        prompts: Sequence[Prompt],
        encoded: dict[str, torch.Tensor],
        arguments: GenerationArguments,
    ) -> list[Answer]:
        """Return the answers of one batch, in its order.

        Raises
        ------
        UserError
            If memory runs out and the batch must not (``auto``) or cannot be halved.
        """
        half = (len(prompts) + 1) // 2
        if self._limit is None or len(prompts) <= self._limit:
            try:
                return self._generate(prompts, encoded, arguments)
            except torch.OutOfMemoryError as error:
                if not self.auto or len(prompts) == 1:
                    raise UserError(
                        f"out of memory with {len(prompts)} prompts in a batch: "
                        "use a smaller --batch_size, or auto",
                        1,
                    ) from error
                self._limit = half
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return [
            answer
            for part in (prompts[:half], prompts[half:])
            for answer in self.generate(part, self.encode(part), arguments)
        ]

    def _generate(
        self,
        prompts: Sequence[Prompt],
        encoded: dict[str, torch.Tensor],
        arguments: GenerationArguments,
    ) -> list[Answer]:
        inputs, pixels = self._to_device(prompts, encoded)
        options = dict(arguments.options)
        width = inputs["input_ids"].shape[1]
        prompt_lengths = encoded["attention_mask"].sum(1).tolist()
        self._check_positions(max(prompt_lengths), options["max_new_tokens"])
        stop = self._stop_strings(arguments, width)
        if stop is not None:
            options["stopping_criteria"] = StoppingCriteriaList([stop])
        finite = FiniteLogits()
        start = time.perf_counter()
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                **self._encoded(pixels),
                **options,
                logits_processor=finite.as_list(),
                eos_token_id=sorted(self.end_ids),
                pad_token_id=self._pad_id(),
            )
        tokens = output[:, width:].tolist()
        self.seconds += time.perf_counter() - start
        finite.check(f"batch from {prompts[0].source}")
        stopped = stop.lengths if stop is not None else {}
        answers = [
            _until_end(tokens_of_row[: stopped.get(row)], self.end_ids)
            for row, tokens_of_row in enumerate(tokens)
        ]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        # With beams, a prompt's rows lie side by side in the report.
        beams = arguments.options.get("num_beams", 1)
        costs = request_costs(
            self.model.last_report,
            [row * beams for row in range(len(answers))],
            [max(len(own) - 1, 0) for own in answers],
        )
        shown = image_tokens(self.processor, encoded, self.model, prompts)
        for own_costs, count in zip(costs, shown or (), strict=False):
            own_costs["image_tokens"] = count
        return [
            Answer(arguments.cut(text), length, len(own), own_costs)
            for text, length, own, own_costs in zip(
                texts, prompt_lengths, answers, costs, strict=True
            )
        ]

    def _stop_strings(self, arguments: GenerationArguments, width: int) -> StopStrings | None:
        """Return what ends rows at the task's stop strings (beams are cut afterwards only)."""
        if not arguments.until or arguments.options.get("num_beams", 1) != 1:
            return None
        return StopStrings(self.tokenizer, arguments.until, width, self.end_ids)

    def _check_positions(self, prompt: int, new_tokens: int) -> None:
        """Say once that a prompt and its answer may need more positions than were trained."""
        config = getattr(self.model, "config", None)
        limit = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
        if limit is None or prompt + new_tokens <= limit or self._warned:
            return
        self._warned = True
        logger.warning(
            f"a prompt of {prompt} tokens and an answer of up to {new_tokens} exceed the model's "
            f"{limit} positions (max_position_embeddings): beyond them answers are unreliable"
        )

    def continuation_ids(self, prompt: str, continuation: str) -> list[int]:
        """Return the tokens that ``continuation`` adds to ``prompt``."""
        return self.encoder.continuation_ids(self.tokenizer, prompt, continuation)

    def score(
        self,
        prompts: Sequence[Prompt],
        encoded: dict[str, torch.Tensor],
        continuations: Sequence[Sequence[int]],
    ) -> list[Scored]:
        """Return the log-probability of each prompt's continuation.

        The method's decode-time sparsification is active and image tokens are chosen from the
        prompt alone (:meth:`DynamicLlavaForConditionalGeneration.score`).
        """
        longest = max(len(row) for row in continuations)
        ids = torch.full((len(prompts), max(longest, 1)), self._pad_id())
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(continuations):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=ids.dtype)
            mask[row, : len(tokens)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        inputs, pixels = self._to_device(prompts, encoded)
        start = time.perf_counter()
        with torch.inference_mode():
            logits = self.model.score(
                **inputs,
                **self._encoded(pixels),
                continuation_ids=ids,
                continuation_mask=mask,
                return_logits=True,
            ).float()
            finite = FiniteLogits()
            finite.add(logits)
            finite.check(f"batch from {prompts[0].source}")
            ids, mask = ids.to(logits.device), mask.bool().to(logits.device)
            chosen = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
            logprobs = chosen.double().masked_fill(~mask, 0.0).sum(1).tolist()
            greedy = ((logits.argmax(-1) == ids) | ~mask).all(1).tolist()
        self.seconds += time.perf_counter() - start
        fed = [max(len(tokens) - 1, 0) for tokens in continuations]
        costs = scored_costs(self.model.last_report, fed)
        lengths = map(len, continuations)
        return [Scored(*values) for values in zip(logprobs, lengths, greedy, costs, strict=True)]

    def _to_device(
        self, prompts: Sequence[Prompt], encoded: dict[str, torch.Tensor]
    ) -> tuple[dict[str, Any], torch.Tensor | None]:
        """Return the inputs, and apart from them pixels that the cache looks up, on the host."""
        given, pixels = dict(encoded), None
        if "pixel_values" in given and self.pictures.serves(self.model):
            pixels = given.pop("pixel_values")
        inputs: dict[str, Any] = {name: part.to(self.device) for name, part in given.items()}
        for name, tensor in inputs.items():
            if tensor.is_floating_point():
                inputs[name] = tensor.to(self.model.dtype)
        inputs["sample_ids"] = torch.tensor(
            [prompt.source.sample_id for prompt in prompts], device=self.device
        )
        inputs["questions"] = [prompt.question for prompt in prompts]
        return inputs, pixels

    def _encoded(self, pixels: torch.Tensor | None) -> dict[str, Any]:
        """Return the model's argument for pictures whose features the cache may hold."""
        if pixels is None:
            return {}
        return {"mm_encoder_outputs": self.pictures.encoded(self.model, pixels)}

    def _pad_id(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return min(self.end_ids) if pad is None else pad


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return a row's own tokens, the end token included, without the batch's padding."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
